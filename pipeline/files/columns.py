"""Fields of a row by name, also nested ones (`reward_model.ground_truth`, `prompt.0.content`), and filters by them.

A filter says of each field what it has to be: `{source: aime, level: [3, 5], subject: [Algebra, Geometry, Other]}`. Two
numbers are a range, both ends included; any other list holds the values that pass; and one value is that value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.registry import nearest


class FieldError(ValueError):
    """A row does not have a field."""


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field.

    Raises:
        FieldError: there is none; the message names those that there are.
    """
    if name in row:
        return row[name]
    value: Any = row
    parts = name.split(".")
    for at, part in enumerate(parts):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise FieldError(_absent(name, ".".join(parts[:at]), value))
    return value


def _absent(name: str, within: str, value: Any) -> str:
    """That there is no such field, and what stands where it was looked for."""
    where = within or "the row"
    if isinstance(value, Mapping):
        there = [f"{within}.{key}" if within else str(key) for key in value]
        return f"there is no field {name}{nearest(name, there)}; {where} has: {', '.join(map(str, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"there is no field {name}; {where} is a list of {len(value)}, counted from 0"
    return f"there is no field {name}; {where} is {str(value)[:100]!r}, which has no fields"


def passes(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a row is what a filter wants; a field that is empty is not.

    Raises:
        FieldError: the row lacks a field.
    """
    return all(_fits(lookup(row, name), value) for name, value in wanted.items())


def _fits(value: Any, wanted: Any) -> bool:
    if is_range(wanted):
        number = _number(value)
        return number is not None and wanted[0] <= number <= wanted[1]
    if isinstance(wanted, list | tuple):
        return any(_equal(value, one) for one in wanted)
    return _equal(value, wanted)


def is_range(wanted: Any) -> bool:
    """Whether a filter's value is a range of numbers."""
    numbers = isinstance(wanted, list) and all(isinstance(end, int | float) and type(end) is not bool for end in wanted)
    return numbers and len(wanted) == 2


def _equal(value: Any, wanted: Any) -> bool:
    """Equal, also where a CSV file has the text of a number."""
    if isinstance(value, list) and not isinstance(wanted, list):
        return any(_equal(one, wanted) for one in value)
    return bool(value == wanted) or (isinstance(value, str) and not isinstance(wanted, bool) and value == str(wanted))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
