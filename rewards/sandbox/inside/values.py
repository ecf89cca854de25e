"""Plain values as JSON, by their exact built-in types.

Numbers, text, None, lists, tuples, sets, dicts, bytes, ranges, dates, fractions and decimals, nested. Named tuples
travel as `Record`s, iterators of the standard library as what they yield. Instances of other classes are refused,
whatever they claim to equal: `decode(encode(x))` is x, built afresh from known types.

Scalars stand for themselves (integers beyond 2**53 and special floats are tagged), everything else is `[tag, *items]`:

    >>> encode((1, 2.0, {"a": {3}}))
    ['t', 1, 2.0, ['d', ['a', ['s', 3]]]]

A conversation of two processes also has *references*: objects that stay where they are, and are named by a number. What
they look like is the caller's business (`refer`, `resolve`).
"""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100
"""Nesting of containers: deeper ones would meet the recursion limits of JSON and of comparison."""
MAX_SAME_HASH = 64
"""Elements of one set or dict whose hashes collide: with more, building it takes quadratic time."""
MAX_YIELDED = 100_000
"""Items that an iterator is asked for."""
MAX_DIGITS = 1 << 16
"""Digits of a decimal, and its largest exponent: arithmetic with larger ones may never end."""

REFERENCES = ("object", "function", "builtin")
"""Tags of references."""

_EXACT = 2**53
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "fs": frozenset, "q": deque}
_TAGS = {kind: tag for tag, kind in _SEQUENCES.items()}
_DICTS: dict[str, Any] = {"d": dict, "od": OrderedDict, "C": Counter}
_DICT_TAGS = {kind: tag for tag, kind in _DICTS.items()} | {defaultdict: "d"}
_DATES: dict[str, Any] = {
    kind.__name__: kind for kind in (datetime.date, datetime.time, datetime.datetime, datetime.timedelta)
}
_PARTS = {
    datetime.date: ("year", "month", "day"),
    datetime.time: ("hour", "minute", "second", "microsecond"),
    datetime.datetime: ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    datetime.timedelta: ("days", "seconds", "microseconds"),
}
_VIEWS = {type({}.keys()): "dk", type({}.values()): "dv", type({}.items()): "di"}
_CONTAINERS: tuple[Any, ...] = ([], (), "", {}, {}.values(), {}.items(), set(), range(0), b"", deque())
ITERATORS = frozenset(
    [type(_ for _ in ()), zip, map, filter, enumerate, reversed]
    + [type(iter(of)) for of in _CONTAINERS]
    + [type(reversed([])), type(reversed({})), type(reversed(range(0)))]
    + [kind for kind in vars(itertools).values() if isinstance(kind, type) and issubclass(kind, Iterator)]
)

PLAIN_NAMES = frozenset(
    name
    for kind in (
        bool,
        int,
        float,
        str,
        bytes,
        bytearray,
        complex,
        range,
        Fraction,
        Decimal,
        *_TAGS,
        *_DICT_TAGS,
        *_PARTS,
    )
    for name in dir(kind)
)
"""Attributes and methods that some plain value has: on what a program returned, they belong to the test."""

Refer = Callable[[Any], Any]
Resolve = Callable[[str, list[Any]], Any]


class RefusedError(ValueError):
    """A value that is not made of plain built-in types, or text that does not encode one."""


class Record(tuple[Any, ...]):
    """A named tuple as it arrives: a tuple whose items also have names."""

    _fields: tuple[str, ...]

    def __new__(cls, items: list[Any], fields: tuple[str, ...]) -> Record:
        """A record of these items, with a name for each."""
        record = super().__new__(cls, items)
        record._fields = fields
        return record

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(name)
        return self[self._fields.index(name)]

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))


def encode(value: Any, depth: int = 0, refer: Refer | None = None) -> Any:
    """A value as something `json.dumps` takes.

    Args:
        value: what.
        depth: containers around it.
        refer: encodes what is no plain value; iterators then count as that, and are not asked for their items.

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
    if depth >= MAX_DEPTH:
        raise RefusedError(f"nested deeper than {MAX_DEPTH}")
    if kind in _TAGS:
        return [_TAGS[kind], *(encode(item, depth + 1, refer) for item in value)]
    if kind in _DICT_TAGS:
        pairs = ([encode(key, depth + 1, refer), encode(item, depth + 1, refer)] for key, item in value.items())
        return [_DICT_TAGS[kind], *pairs]
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if kind in _VIEWS:
        return [_VIEWS[kind], *(encode(item, depth + 1, refer) for item in value)]
    if (fields := value._fields if kind is Record else _fields(kind)) is not None:
        return ["nt", list(fields), *(encode(item, depth + 1, refer) for item in tuple.__iter__(value))]
    if refer is not None:
        return refer(value)
    if kind in ITERATORS:
        return ["it", *(encode(item, depth + 1) for item in yielded(value))]
    raise RefusedError(f"{kind.__module__}.{kind.__qualname__} is not a plain built-in type")


def decode(data: Any, depth: int = 0, resolve: Resolve | None = None) -> Any:
    """The value that parsed JSON stands for. The input may be hostile.

    Raises:
        RefusedError: it encodes nothing.
    """
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is not list or not data or type(data[0]) is not str or depth > MAX_DEPTH:
        raise RefusedError("no encoded value")
    tag, *items = data
    try:
        if tag in _BUILDERS:
            return _BUILDERS[tag](*items)
        if tag in REFERENCES and resolve is not None:
            return resolve(tag, items)
        if tag in _DICTS:
            return _mapping(tag, [(decode(k, depth + 1, resolve), decode(v, depth + 1, resolve)) for k, v in items])
        if tag == "nt":
            fields, *items = items
            values = [decode(item, depth + 1, resolve) for item in items]
            own = [type(item) is list and item[:1] in ([tag] for tag in REFERENCES) for item in items]
            if any(is_own and field in PLAIN_NAMES for field, is_own in zip(fields, own, strict=True)):
                raise RefusedError("a field that would stand for a method of plain values")
            if type(fields) is list and len(fields) == len(values) and all(type(field) is str for field in fields):
                return Record(values, tuple(fields))
        elif tag in _SEQUENCES or tag in ("it", "dk", "dv", "di"):
            return _sequence(tag, [decode(item, depth + 1, resolve) for item in items])
    except (TypeError, ArithmeticError, LookupError, ValueError) as error:
        raise RefusedError(f"no encoded value of kind {tag!r:.20}: {error}") from error
    raise RefusedError(f"no encoded value of kind {tag!r:.20}")


def dumps(value: Any, refer: Refer | None = None) -> str:
    """A value as one line of text; see `encode`."""
    return json.dumps(encode(value, 0, refer), separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes, resolve: Resolve | None = None) -> Any:
    """The value that hostile text encodes.

    Raises:
        RefusedError: it encodes none.
    """
    try:
        return decode(json.loads(text, parse_constant=_no_constant), 0, resolve)
    except (ValueError, RecursionError, OverflowError) as error:
        raise RefusedError(f"unreadable result: {error}") from error


def yielded(value: Any) -> list[Any]:
    """What an iterator yields.

    Raises:
        RefusedError: more than `MAX_YIELDED` items.
    """
    items = list(itertools.islice(value, MAX_YIELDED + 1))
    if len(items) > MAX_YIELDED:
        raise RefusedError(f"an iterator of more than {MAX_YIELDED} items")
    return items


def _fields(kind: type) -> tuple[str, ...] | None:
    """Names of the fields, if this is a type of named tuples."""
    if not issubclass(kind, tuple):
        return None
    fields = getattr(kind, "_fields", None)
    return fields if type(fields) is tuple and all(type(field) is str for field in fields) else None


def _date(kind: str, *parts: int) -> Any:
    count = len(_PARTS[_DATES[kind]])
    zone = [datetime.timezone(datetime.timedelta(seconds=seconds)) for seconds in parts[count:]]
    return _DATES[kind](*parts[:count], *zone)


def _encode_date(value: Any) -> Any:
    parts = [getattr(value, part) for part in _PARTS[type(value)]]
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone:
        raise RefusedError("a time in a zone with rules is not a plain value")
    if zone is not None:
        parts.append(zone.utcoffset(None).total_seconds())
    return ["dt", type(value).__name__, *parts]


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if len(text) > MAX_DIGITS or (value.is_finite() and abs(value.adjusted()) > MAX_DIGITS):
        raise RefusedError("a huge decimal")
    return value


def _float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise RefusedError("no special float")
    return float(text)


def _range(*parts: str) -> range:
    return range(*(int(part, 16) for part in parts))


_SCALARS: dict[type, Callable[[Any], Any]] = {
    complex: lambda z: ["c", encode(z.real), encode(z.imag)],
    bytes: lambda b: ["b", base64.b64encode(b).decode()],
    bytearray: lambda b: ["ba", base64.b64encode(b).decode()],
    range: lambda r: ["r", hex(r.start), hex(r.stop), hex(r.step)],
    Fraction: lambda f: ["F", hex(f.numerator), hex(f.denominator)],
    Decimal: lambda d: ["D", str(d)],
    **dict.fromkeys(_PARTS, _encode_date),
}
_BUILDERS: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": _float,
    "c": lambda real, imaginary: complex(decode(real), decode(imaginary)),
    "b": lambda text: base64.b64decode(text, validate=True),
    "ba": lambda text: bytearray(base64.b64decode(text, validate=True)),
    "r": _range,
    "F": lambda n, d: Fraction(int(n, 16), int(d, 16)),
    "D": _decimal,
    "dt": _date,
}


def _sequence(tag: str, values: list[Any]) -> Any:
    if tag == "it":
        return iter(values)
    if tag == "dv":
        return dict(enumerate(values)).values()
    if tag == "di":
        _check_hashes([key for key, _ in values])
        return dict(values).items()
    if tag in ("s", "fs", "dk"):
        _check_hashes(values)
    return dict.fromkeys(values).keys() if tag == "dk" else _SEQUENCES[tag](values)


def _mapping(tag: str, pairs: list[tuple[Any, Any]]) -> Any:
    _check_hashes([key for key, _ in pairs])
    return _DICTS[tag](dict(pairs))


def _check_hashes(keys: list[Any]) -> None:
    counts = Counter([hash(key) for key in keys])
    if counts and max(counts.values()) > MAX_SAME_HASH:
        raise RefusedError("too many elements of one hash")


def _no_constant(name: str) -> Any:
    raise RefusedError(f"{name} is not JSON")
