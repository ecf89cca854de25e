"""Comparing what a program gave with what was expected, outside of the sandbox."""

from __future__ import annotations

import math
import re
from collections.abc import ItemsView, KeysView, ValuesView
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any

_NUMBERS = (int, float, Fraction, Decimal)
_SEQUENCES: tuple[Any, ...] = (list, tuple, range, KeysView, ValuesView, ItemsView, type(iter([])))
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
"""How programs print numbers: no other digits than these ten, no underscores, no names."""


def same_output(actual: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs are the same text, line by line, but for white space within lines and empty lines at the end.

    Args:
        actual: what a program printed.
        expected: what it should print.
        tolerance: largest absolute or relative difference of tokens that are numbers with a decimal point or an
            exponent; exact text if not given. Where an integer is expected, only its own value will do.
    """
    left, right = _lines(actual), _lines(expected)
    if len(left) != len(right):
        return False
    if tolerance is None:
        return left == right
    return all(
        len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def same_value(actual: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Whether a result is what was expected, type by type.

    Booleans equal only booleans; other numbers compare by value. A list is equalled by all that has the same items in
    the same order (tuples, ranges, what a generator or `zip` yields), since gold answers come as JSON, which has
    nothing else. Both are plain built-in values (`rewards.sandbox.inside.values`).

    Args:
        actual: the decoded result.
        expected: the gold value.
        tolerance: largest absolute or relative difference where the gold value is a float; exact if not given.
    """
    if isinstance(expected, bool) or isinstance(actual, bool):
        return type(actual) is type(expected) and bool(actual == expected)
    if isinstance(expected, float) and isinstance(actual, Fraction | Decimal) and tolerance is None:
        return _near(actual, expected, 0.0)  # 0.1 of JSON is the float that is nearest to a tenth
    if isinstance(expected, int | float) and isinstance(actual, _NUMBERS):
        if tolerance is None or isinstance(expected, int):
            return bool(actual == expected)
        return _near(actual, expected, tolerance)
    if isinstance(expected, list | tuple) and isinstance(actual, _SEQUENCES):
        if not isinstance(actual, list | tuple):
            actual = list(islice(actual, len(expected) + 1))
        return len(actual) == len(expected) and all(
            same_value(a, e, tolerance) for a, e in zip(actual, expected, strict=True)
        )
    if isinstance(expected, dict) and isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(
            same_value(actual[k], e, tolerance) for k, e in expected.items()
        )
    return type(actual) is type(expected) and bool(actual == expected)


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _close(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected:
        return True
    if not _NUMBER.fullmatch(actual) or not _NUMBER.fullmatch(expected):
        return False
    if not expected.lstrip("+-").isdigit():
        return _near(float(actual), float(expected), tolerance)
    try:
        return Decimal(actual) == Decimal(expected)
    except InvalidOperation:  # an exponent beyond all bounds
        return False


def _near(actual: Any, expected: float, tolerance: float) -> bool:
    try:
        actual = float(actual)
    except (OverflowError, ValueError):  # beyond the range of floats, or a signalling NaN
        return False
    return math.isfinite(actual) and math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance)
