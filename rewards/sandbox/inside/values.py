"""Plain values as JSON, by their exact built-in types.

Numbers, text, None, lists, tuples, sets, frozensets, dicts, bytes and complex numbers, nested; nothing else. An
instance of a subclass is refused, whatever it claims to equal: `decode(encode(x))` is x, built afresh from known types.

Scalars stand for themselves (integers beyond 2**53 and special floats are tagged), containers are `[tag, *items]`:

    >>> encode((1, 2.0, {"a": {3}}))
    ['t', 1, 2.0, ['d', ['a', ['s', 3]]]]
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

MAX_DEPTH = 100
"""Nesting of containers: deeper ones would meet the recursion limits of JSON and of comparison."""
MAX_SAME_HASH = 64
"""Elements of one set or dict whose hashes collide: with more, building it takes quadratic time."""

_EXACT = 2**53
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "fs": frozenset, "q": deque}
_TAGS = {kind: tag for tag, kind in _SEQUENCES.items()}
_DICTS = (dict, OrderedDict, defaultdict, Counter)
"""The standard library's own subclasses of dict travel as dicts."""


class RefusedError(ValueError):
    """A value that is not made of plain built-in types, or text that does not encode one."""


def encode(value: Any, depth: int = 0) -> Any:
    """A value as something `json.dumps` takes.

    Raises:
        RefusedError: a type that is not on the list, or nesting deeper than `MAX_DEPTH` (a list within itself is).
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_EXACT < value < _EXACT else ["i", hex(value)]
    if kind is float:
        return value if math.isfinite(value) else ["f", str(value)]
    if kind is complex:
        return ["c", encode(value.real), encode(value.imag)]
    if kind is bytes:
        return ["b", base64.b64encode(value).decode()]
    if depth >= MAX_DEPTH:
        raise RefusedError(f"nested deeper than {MAX_DEPTH}")
    if kind in _TAGS:
        return [_TAGS[kind], *(encode(item, depth + 1) for item in value)]
    if kind in _DICTS:
        return ["d", *([encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items())]
    raise RefusedError(f"{kind.__module__}.{kind.__qualname__} is not a plain built-in type")


def decode(data: Any, depth: int = 0) -> Any:
    """The value that parsed JSON stands for. The input may be hostile.

    Raises:
        RefusedError: it encodes nothing.
    """
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is not list or not data or depth > MAX_DEPTH:
        raise RefusedError("no encoded value")
    tag, *items = data
    if tag in ("i", "f", "b"):
        return _scalar(tag, items)
    if tag == "c" and len(items) == 2:
        real, imaginary = (decode(item, depth + 1) for item in items)
        if isinstance(real, int | float) and isinstance(imaginary, int | float):
            return complex(real, imaginary)
    elif tag == "d" and all(type(pair) is list and len(pair) == 2 for pair in items):
        keys = [decode(key, depth + 1) for key, _ in items]
        _check_hashes(keys)
        return dict(zip(keys, (decode(item, depth + 1) for _, item in items), strict=True))
    elif isinstance(tag, str) and tag in _SEQUENCES:
        values = [decode(item, depth + 1) for item in items]
        if tag in ("s", "fs"):
            _check_hashes(values)
        return _SEQUENCES[tag](values)
    raise RefusedError(f"no encoded value of kind {tag!r:.20}")


def dumps(value: Any) -> str:
    """A value as one line of text; see `encode`."""
    return json.dumps(encode(value), separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """The value that hostile text encodes.

    Raises:
        RefusedError: it encodes none.
    """
    try:
        return decode(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError, OverflowError) as error:
        raise RefusedError(f"unreadable result: {error}") from error


def _scalar(tag: str, items: list[Any]) -> Any:
    if len(items) == 1 and type(items[0]) is str:
        if tag == "i":
            return int(items[0], 16)
        if tag == "b":
            return base64.b64decode(items[0], validate=True)
        if items[0] in ("nan", "inf", "-inf"):
            return float(items[0])
    raise RefusedError(f"no encoded value of kind {tag!r}")


def _check_hashes(keys: list[Any]) -> None:
    try:
        counts = Counter([hash(key) for key in keys])
    except TypeError as error:
        raise RefusedError(f"unhashable element: {error}") from error
    if counts and max(counts.values()) > MAX_SAME_HASH:
        raise RefusedError("too many elements of one hash")


def _no_constant(name: str) -> Any:
    raise RefusedError(f"{name} is not JSON")
