"""Comparing what a program gave with what was expected, outside of the sandbox."""

from __future__ import annotations

import math
from typing import Any


def same_output(actual: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs are the same text, line by line, but for white space within lines and empty lines at the end.

    Args:
        actual: what a program printed.
        expected: what it should print.
        tolerance: largest absolute or relative difference of tokens that are numbers; exact text if not given.
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

    Booleans equal only booleans; integers and floats compare as numbers; lists and tuples are one kind, since gold
    answers come as JSON, which has no tuples. Both are plain built-in values (`rewards.sandbox.inside.values`).

    Args:
        actual: the decoded result.
        expected: the gold value.
        tolerance: largest absolute or relative difference where the gold value is a float; exact if not given.
    """
    if isinstance(expected, bool) or isinstance(actual, bool):
        return type(actual) is type(expected) and bool(actual == expected)
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        if tolerance is None or isinstance(expected, int):
            return actual == expected
        return _near(actual, expected, tolerance)
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
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
    try:
        return _near(float(actual), float(expected), tolerance)
    except ValueError:
        return False


def _near(actual: float, expected: float, tolerance: float) -> bool:
    try:
        return math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer beyond the range of floats
        return False
