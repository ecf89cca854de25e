"""What all pieces of a recipe are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class EntryError(ValueError):
    """A wrong entry of a mapping, from a validator of the whole mapping, which pydantic would name alone.

    Args:
        name: the entry's key.
        message: what is wrong with it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name} {message}")
        self.name, self.message = name, message


class Strict(BaseModel):
    """A piece of a recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
    former: ClassVar[Mapping[str, str]] = {}
    """Former keys of this piece, and keys that one might look for here -> the message for a recipe that has them."""
