"""Other verifiers, for comparison only: nothing here judges training. Imported in pools and benchmarks only."""

from __future__ import annotations

import logging

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def math_verify(completion: str, gold: str) -> bool:
    """math-verify 0.9 in its default configuration, with the gold in a box, as its authors advise."""
    target = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
    return bool(verify(target, parse(completion, parsing_timeout=None), timeout_seconds=None))


math_verify(r"\boxed{1 + x}", r"\frac{1}{2} + x")  # fills the parser's tables once, before workers are forked
