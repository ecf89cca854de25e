"""Training rows from several sources: `data: ["@samples", {from: general.jsonl, take: 2000}]`.

A row is one of

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>…</think> 4"}]}
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    {"prompt": "2 + 2 =", "completion": " 4"}
    {"text": "Two and two make four."}

and may have further columns, which are left alone. Chats may have `tools` (JSON schemas) and `chat_template_kwargs`
beside them, and messages what `pipeline.messages` knows: `tool_calls`, `reasoning_content`, `weight`, parts of text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.context import StageContext
from pipeline.data.filters import Contamination
from pipeline.messages import without
from pipeline.rows import RowError, read_rows
from pipeline.schema.pieces import DataRef, Strict
from rewards.text import plain


class Row(dict[str, Any]):
    """A row that knows where it stands: `data.jsonl:17`; empty where it comes from no file."""

    __slots__ = ("place",)

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        super().__init__(values)
        self.place = place


class DataError(ValueError):
    """A data file that cannot be read, or a row in it that is not a training row."""


class DataSource(Strict):
    """One source of a mixture.

    Attributes:
        source: `@stage` or a JSONL file; `from` in a recipe.
        take: how many of its rows, drawn by the stage's seed; all if not given.
        weight: how often a row comes up in an epoch: with 2 each one is there twice, with 0.5 every other one is.
        ignore: keys of messages that are left out, such as [name]; what a chat template does not use is an error
            otherwise.
    """

    source: DataRef = Field(alias="from")
    take: Annotated[int, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    ignore: list[str] = Field(default_factory=list)


def _parse(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


DataField = Annotated[DataSource, BeforeValidator(_parse)]
"""A `DataSource` in a recipe; a plain string is its `from`."""


def read(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file.

    Raises:
        DataError: the file is missing, or a line is not a JSON object; the message names the line.
    """
    try:
        yield from (Row(row, place) for place, row in read_rows(path))
    except RowError as error:
        raise DataError(str(error)) from error


def asked(row: Row) -> str:
    """What a row asks: the user's messages, a prompt that is a text, or a document as a whole."""
    if isinstance(text := row.get("text"), str):
        return text
    parts = [row.get("question"), row.get("prompt"), row.get("messages"), row.get("chosen")]
    return "\n\n".join(filter(None, map(_said_by_user, parts)))


def _said_by_user(part: Any) -> str:
    if not isinstance(part, list):
        return part if isinstance(part, str) else ""
    said = [message for message in part if isinstance(message, Mapping) and message.get("role") == "user"]
    return "\n\n".join(map(plain, said))


def mixed(sources: Sequence[DataSource], context: StageContext[Any], unclean: Contamination | None = None) -> list[Row]:
    """The rows of all sources, taken and repeated as they ask; the trainer shuffles them.

    Args:
        sources: where they come from.
        context: the stage.
        unclean: leaves out rows that ask what a test set asks, before any are taken.

    Raises:
        DataError: see `read`; or a source is empty, or holds fewer rows than are to be taken.
    """
    rows: list[Row] = []
    for position, source in enumerate(sources):
        own = list(read(context.data_path(source.source)))
        if not own:
            raise DataError(f"{source.source} has no rows")
        if unclean is not None and not (own := unclean.clean(own, asked)):
            raise DataError(f"{source.source} has no rows but those of the test sets under `decontaminate`")
        if source.take is not None and source.take > len(own):
            raise DataError(f"{source.source} has {len(own)} rows, fewer than the {source.take} to be taken")
        random.Random(f"{context.seed} {position}").shuffle(own)
        own = own[: source.take]
        if source.ignore:
            own = [Row(without(row, source.ignore), row.place) for row in own]
        whole, part = divmod(round(source.weight * len(own)), len(own))
        rows += own * whole + own[:part]
    return rows
