"""The Hugging Face hub in a recipe: data sets, how rows are chosen by their fields, and where a model is published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from pipeline.schema.pieces import DataRef
from pipeline.schema.strict import Strict

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


FILE_ARM, HUB_ARM = "(file)", "(hub)"
"""What pydantic calls the two forms of a source; no keys, and told to nobody."""
PRESETS: Mapping[str, Mapping[str, str]] = {
    "mixture_of_thoughts": {"hub": "open-r1/Mixture-of-Thoughts", "config": "all"},
    "openr1_math": {"hub": "open-r1/OpenR1-Math-220k", "config": "default"},
    "numina_math_cot": {"hub": "AI-MO/NuminaMath-CoT"},
}
"""Chats that many train on, by short names."""


class HubSource(Strict):
    """Rows of a data set on the hub: `from: {hub: open-r1/Mixture-of-Thoughts, config: math, split: train}`.

    Attributes:
        hub: its name there: owner/name; or one of `PRESETS`, such as mixture_of_thoughts.
        revision: a commit, branch or tag; the newest commit of `main` if not given. A run takes the commit that it
            finds and records it: it stands in fingerprint and manifest.
        config: which of its configurations; the default one if not given.
        split: which of its splits; several are joined by `+`.
        files: files of the repository, also with `*`, for one whose splits are not known to `datasets`.
        streaming: read rows as they are needed and keep no copy; if not given, sets of more than 8 GB are streamed.
    """

    hub: str
    revision: Annotated[str, Field(min_length=1)] | None = None
    config: Annotated[str, Field(min_length=1)] | None = None
    split: Annotated[str, Field(min_length=1)] = "train"
    files: list[str] = Field(default_factory=list)
    streaming: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """`{hub: {path: owner/name, …}}` is `{hub: owner/name, …}`, and a preset stands for several fields."""
        if not isinstance(value, Mapping):
            return value
        inner, rest = value.get("hub"), {key: item for key, item in value.items() if key != "hub"}
        if isinstance(inner, Mapping):
            return {"hub": inner.get("path"), **{key: item for key, item in inner.items() if key != "path"}, **rest}
        return {**PRESETS[inner], **rest} if isinstance(inner, str) and inner in PRESETS else value

    @model_validator(mode="after")
    def _named(self) -> HubSource:
        if not _NAME.fullmatch(self.hub):
            raise ValueError(f"hub: {self.hub!r} is not the name of a data set, such as open-r1/Mixture-of-Thoughts")
        return self

    def __str__(self) -> str:
        named = self.hub if self.config is None else f"{self.hub}/{self.config}"
        return f"{named}@{self.revision[:8]}" if self.revision else named


class Publish(Strict):
    """A repository on the hub that a model is published in: `publish: {hub: someone/r1-small}`.

    The token is that of `HF_TOKEN` or of `hf auth login`; it is asked for before the first stage runs.

    Attributes:
        hub: its name there: owner/name. It is made if it is not there.
        private: whether only its owner sees it.
        replace: whether it may hold other files, which a new commit then replaces; refused if not.
    """

    hub: str
    private: bool = True
    replace: bool = False

    @model_validator(mode="after")
    def _named(self) -> Publish:
        if "/" not in self.hub or not _NAME.fullmatch(self.hub):
            raise ValueError(f"hub: {self.hub!r} is not owner/name, such as someone/r1-small")
        return self


def _kind(value: Any) -> str:
    return HUB_ARM if isinstance(value, Mapping | HubSource) else FILE_ARM


RowsRef = Annotated[Annotated[DataRef, Tag(FILE_ARM)] | Annotated[HubSource, Tag(HUB_ARM)], Discriminator(_kind)]
"""Where rows come from: `@stage`, files beside the recipe (see `pipeline.files.formats`), or `{hub: …}`."""


def _columns(value: Any) -> Any:
    return {name: name for name in value} if isinstance(value, list) else value


Columns = Annotated[dict[str, str], BeforeValidator(_columns)]
"""Column -> the field that it is taken from, with dots for fields within fields (`reward_model.ground_truth`)."""
