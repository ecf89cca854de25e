"""What all pieces of a recipe are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A piece of a recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
    former: ClassVar[Mapping[str, str]] = {}
    """Keys that this piece had once, or that one might look for in vain -> what a recipe is told that has them."""
