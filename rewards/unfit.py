"""Why a reward could not do with what it is given, as far as its signature and its annotations tell.

Nothing is built or called: this is asked about every recipe that is read.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from rewards.bounds import OfReward

if TYPE_CHECKING:
    from rewards.registry import Found

NO_SCORES = ("str", "bytes", "None")
"""Annotations of what a reward function returns that are no scores, whether of a row or of a batch."""
NUMBERS = ("float", "int", "bool")
LISTS = ("list", "tuple", "sequence", "iterable", "iterator", "generator")
_OF_VALUE = re.compile(r"(greater|less)_than|finite_number|multiple_of|string_(too|pattern)")
"""Pydantic's names of faults of a value that has the right type."""


def option(target: Callable[..., Any], name: str, value: Any) -> str:
    """What is wrong with a value as a recipe has it, such as a list for a tuple, by a parameter's annotation.

    A sentence that names the option, such as `timeout has to be greater than 0, not 0`.
    Empty where that cannot be known: there is no annotation, it names what only type checkers see, or the value is an
    object of Python's. Enums are left to the class, which names their values.
    """
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(_hints(target).get(name, Any)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        kinds = {one["type"] for one in found}
        if kinds == {"enum"}:
            return ""
        if kinds == {"literal_error"}:
            return f"{name} is {' or '.join(map(repr, _literals(_hints(target)[name])))}, not {value!r}"
        for one in found:
            if one["type"] == "value_error":
                said = str(one["ctx"]["error"])
                return said if name in said else f"{name}: {said}"
            if _OF_VALUE.match(one["type"]):
                return re.sub(r"^\w+ should", f"{name} has to", one["msg"]) + f", not {one['input']!r}"
        wanted = _told(_hints(target, constrained=False)[name])
        return f"{name} has to be {wanted}, not {value!r} ({type(value).__name__})"
    except (NameError, AttributeError, TypeError, PydanticUserError):
        pass
    return ""


def together(target: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """What its static method `unfit(**options)` says of all options together, defaults included; empty if nothing."""
    said = inspect.getattr_static(target, "unfit", None)
    if not isinstance(said, staticmethod):
        return ""
    given = inspect.signature(target).bind(**options)
    given.apply_defaults()
    return str(said.__func__(**given.arguments) or "")


def nested(target: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The rewards that options name (`rewards.bounds.RewardName`): the option, the reward, and its own options."""
    for name, parameter in inspect.signature(target).parameters.items():
        use = options.get(name, parameter.default)
        if isinstance(use, str) and _of_reward(_hints(target).get(name)):
            yield name, use, options.get(f"{name}_options") or {}


def function(found: Found) -> str:
    """Why a plain function cannot be a reward; empty if its signature does not tell, or it is a verifier."""
    if found.is_verifier:
        return ""
    target, batches = found.target, found.takes_batches
    parameters = inspect.signature(target).parameters.values()
    if hidden := [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]:
        return f"takes {', '.join(hidden)} by position, and arguments are given by name: leave out the '/'"
    if not batches and inspect.isgeneratorfunction(target):
        return "yields, and a function of one 'completion' returns its score: write return in place of yield"
    returns = inspect.signature(target).return_annotation
    said = returns if isinstance(returns, str) else inspect.formatannotation(returns)
    bare = re.sub(r"\b(?:\w+\.)+", "", said.strip("'\""))
    if bare in NO_SCORES:
        wanted = "a list with a score for each row" if batches else "a number"
        return f"returns {bare}, by its annotation: return {wanted}"
    if batches and bare in NUMBERS:
        return (
            f"takes 'completions', a list, and returns one {bare}, by its annotation: return a list with a score for"
            " each, or take 'completion', and it is called for each"
        )
    if not batches and bare.partition("[")[0].lower() in LISTS:
        return (
            f"takes one 'completion' and returns {bare}, by its annotation: return a number,"
            " or take 'completions', and it is called with all of a batch"
        )
    return ""


def _hints(target: Callable[..., Any], constrained: bool = True) -> dict[str, Any]:
    return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=constrained)


def _of_reward(hint: Any) -> bool:
    marked = any(isinstance(one, OfReward) for one in getattr(hint, "__metadata__", ()))
    return marked or any(_of_reward(inner) for inner in get_args(hint) if not isinstance(inner, str))


def _literals(hint: Any) -> Iterator[Any]:
    """The values of a `Literal`, also where something else may stand in its place."""
    for inner in get_args(hint):
        yield from _literals(inner) if get_args(inner) else [inner] if not isinstance(inner, type) else []


def _told(hint: Any) -> str:
    """An annotation as a person writes it."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_told(inner) for inner in get_args(hint))
    return "None" if hint is NoneType else re.sub(r"\b(?:\w+\.)+", "", inspect.formatannotation(hint))
