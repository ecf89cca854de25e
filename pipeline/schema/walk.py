"""A config, value by value, each with what its annotation says of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value in a config, with where it stands and what its annotation says of it."""

    loc: Loc
    value: Any
    markers: tuple[Any, ...] = ()

    def marker(self, kind: type[Any]) -> Any:
        """The marker of this kind, or `None`."""
        return next((m for m in self.markers if isinstance(m, kind)), None)


def walk(config: BaseModel, loc: Loc = ()) -> Iterator[Leaf]:
    """Every value of a config, models and lists included, depth first."""
    for name, info in type(config).model_fields.items():
        yield from _walk(info.annotation, tuple(info.metadata), getattr(config, name), (*loc, info.alias or name))
    for name, value in (config.model_extra or {}).items():
        yield from _walk(Any, (), value, (*loc, name))


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """A config with every value that `change` gives another for replaced by it; other parts stay the same objects."""
    if (new := change(value)) is not value:
        return new
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: new for name, old in fields.items() if (new := replaced(old, change)) is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list):
        items = [replaced(item, change) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        entries = {key: replaced(item, change) for key, item in value.items()}
        return entries if any(entries[key] is not item for key, item in value.items()) else value
    return value


def _walk(annotation: Any, markers: tuple[Any, ...], value: Any, loc: Loc) -> Iterator[Leaf]:
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        markers = (*markers, *more)
    yield Leaf(loc, value, markers)
    if isinstance(value, BaseModel):
        yield from walk(value, loc)
        return
    arms = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if isinstance(value, str):
        for arm in arms:
            if get_origin(arm) is Annotated:
                yield Leaf(loc, value, get_args(arm)[1:])
    elif isinstance(value, list | dict):
        item = next((get_args(a)[-1] for a in arms if get_origin(a) in (list, dict)), Any)
        pairs = enumerate(value) if isinstance(value, list) else value.items()
        for key, entry in pairs:
            yield from _walk(item, (), entry, (*loc, key))
