"""The second stage: what the reader of `expressions` does not know goes to math-verify, inside the pool only.

math-verify 0.9 parses LaTeX with ANTLR and compares with sympy, which may take for ever and any amount of memory.
It gets single expressions only, made of a known vocabulary, with decimals written as fractions (it would otherwise
compare to six decimal places): lists, units, words and equality chains have been taken apart before.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify

from rewards.math.compare import equal, shape_of
from rewards.math.kinds import Tokens, TooDeepError
from rewards.math.latex import latex, used
from rewards.math.numbers import TooBigError
from rewards.math.values import exact


def judge(gold: str, answer: str) -> str:
    """Compare two answers with every means there is. Runs in the pool.

    Returns:
        `equal`, `different`, or `rejected` for what is made to keep computers busy.
    """
    try:
        return "equal" if equal(shape_of(gold), shape_of(answer), _leaf) else "different"
    except (TooBigError, TooDeepError):
        return "rejected"


def _leaf(gold: Tokens, answer: Tokens) -> bool:
    known = exact(gold, answer)
    if known is not None:
        return known
    written = latex(gold, used(gold)), latex(answer, used(gold))
    return written[0] is not None and written[1] is not None and _algebra(written[0], written[1])


def _algebra(gold: str, answer: str) -> bool:
    parsed = [_parse(gold), _parse(answer)]
    return bool(parsed[0] and parsed[1]) and bool(verify(parsed[0], parsed[1], timeout_seconds=None))


def _parse(text: str) -> list[object]:
    # Only the LaTeX extractor: the other one evaluates plain text with sympy's parse_expr.
    config = [LatexExtractionConfig()]
    found: list[object] = parse(
        rf"\boxed{{{text}}}", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None
    )
    return found


for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # it warns that its own alarm clock is off
_algebra(r"\int_0^1 x^2 \, dx", r"\frac{1}{\sqrt{9}}")  # fills the parser's tables once, before workers are forked
