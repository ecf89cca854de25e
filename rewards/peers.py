"""Other verifiers, for comparison only: nothing here judges training."""

from __future__ import annotations

import logging

logging.getLogger("math_verify").setLevel(logging.ERROR)


def math_verify(completion: str, gold: str) -> bool:
    """math-verify 0.9 in its default configuration, with the gold in a box, as its authors advise."""
    from math_verify import parse, verify

    target = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
    return bool(verify(target, parse(completion, parsing_timeout=None), timeout_seconds=None))
