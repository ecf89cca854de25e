"""What ends a completion, as recipes say it: the field `stop` of `rollout` and of `watch`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _stops(stop: Any) -> Any:
    stops = stop if isinstance(stop, list) else [stop]
    for one in stops:
        if not (isinstance(one, str) and one) and not (type(one) is int and one >= 0):
            raise ValueError(f"holds texts and token ids, not {one!r}")
    return stops


StopsField = Annotated[list[str | int], BeforeValidator(_stops)]
"""Texts and token ids at which a completion ends; one alone may stand without a list."""
