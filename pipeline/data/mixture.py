"""Training rows from several sources: `data: ["@samples", {from: general.jsonl, take: 2000}]`.

A row is one of

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>…</think> 4"}]}
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    {"prompt": "2 + 2 =", "completion": " 4"}
    {"text": "Two and two make four."}

and may have further columns, which are left alone. ShareGPT's and Alpaca's rows are read, too (see
`pipeline.data.shapes`). Rows come from a stage, from files in any of the usual formats (see
`pipeline.files.formats`), or from the hub::

    data: ["@samples", chats/*.parquet, {from: {hub: open-r1/Mixture-of-Thoughts, config: math}, take: 20000}]

Chats may have `tools` (JSON schemas) and `chat_template_kwargs`
beside them, and messages what `pipeline.prompts.messages` knows: `tool_calls`, `reasoning_content`, `weight`, parts
of text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.context import StageContext
from pipeline.data.cleaning import Cleaner, Seen
from pipeline.data.shapes import known
from pipeline.files import formats, hub
from pipeline.files.columns import FieldError, lookup, passes
from pipeline.files.rows import RowError
from pipeline.prompts.messages import MessageError, conversation, without
from pipeline.schema.hub import Columns, HubSource, RowsRef
from pipeline.schema.strict import Strict
from rewards.text import plain

Locate = Callable[[str], Path]
MOST_TIMES = 255
"""How often a row can come up in an epoch: a byte counts it."""
LEARNT = ("messages", "prompt", "completion", "text", "chosen", "rejected", "tools", "completions", "labels")
"""Keys that make two rows the same, whatever else stands beside them."""


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
        source: `@stage`, files, or `{hub: owner/name, config, split, revision}`; `from` in a recipe.
        columns: keys of training rows and the fields they are taken from, such as `{prompt: problem, completion:
            solution}`, with dots for fields within fields; rows are taken as they are if not given.
        filter: rows to take, by their fields: `{source: aime, level: [3, 5]}` (see `pipeline.files.columns`).
        take: how many of its rows, drawn by the stage's seed; all if not given.
        weight: how often a row comes up in an epoch: with 2 each one is there twice, with 0.5 every other one is.
        ignore: keys of messages that are left out, such as [name]; what a chat template does not use is an error
            otherwise.
    """

    source: RowsRef = Field(alias="from")
    columns: Columns = Field(default_factory=dict)
    filter: dict[str, Any] = Field(default_factory=dict)
    take: Annotated[int, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    ignore: list[str] = Field(default_factory=list)


def _parse(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


DataField = Annotated[DataSource, BeforeValidator(_parse)]
"""A `DataSource` in a recipe; a plain string is its `from`."""


def read(path: Path) -> Iterator[Row]:
    """The rows of files.

    Raises:
        DataError: a file is missing, or a row cannot be read; the message names it.
    """
    try:
        yield from (Row(row, place) for place, row in formats.read(path))
    except RowError as error:
        raise DataError(str(error)) from error


def raw(source: str | HubSource, locate: Locate) -> Iterator[Row]:
    """The rows of a stage, of files or of a data set on the hub, as they are; see `read` for the errors."""
    if isinstance(source, str):
        yield from read(locate(source))
        return
    try:
        yield from (Row(row, place) for place, row in hub.rows(source))
    except RowError as error:
        raise DataError(str(error)) from error


def shaped(source: DataSource, locate: Locate) -> Iterator[Row]:
    """The rows of a source that pass its filter, in a shape that training reads.

    Raises:
        DataError: see `read`; or a row lacks a field, or holds a turn that no chat has.
    """
    for row in raw(source.source, locate):
        try:
            if source.filter and not passes(row, source.filter):
                continue
            chosen = {name: lookup(row, name_there) for name, name_there in source.columns.items()} or row
            yield Row(without(known(chosen), source.ignore), row.place)
        except (FieldError, MessageError) as error:
            raise DataError(f"{row.place}: {error}") from error


def check(source: DataSource, locate: Locate, keys: Sequence[str] = (), whole: bool = False) -> None:
    """Make sure that the rows of a source are some to train on: they have these keys, or are rows as at the top.

    Args:
        source: the source.
        locate: gives the file behind a path.
        keys: what rows have to have.
        whole: whether to look at all rows, and not at the first alone.

    Raises:
        DataError: a row is none, or no row passes the filter, or too few are there to be taken; or see `shaped`.
    """
    count = 0
    for row in shaped(source, locate):
        _check_row(row, keys)
        if not whole:
            return
        count += 1
    _check_count(source, count, count)


def _check_row(row: Row, keys: Sequence[str]) -> None:
    try:
        known = all(row.get(name) for name in keys) if keys else _is_training_row(row)
    except MessageError as error:
        raise DataError(f"{row.place}: {error}") from error
    if known:
        return
    for name in keys or ("prompt", "completion"):
        if (value := row.get(name)) is not None and not isinstance(value, str | list):
            raise DataError(f"{row.place}: {name} is a text or a list of messages, not {str(value)[:100]}")
        if name in row and (value is None or (keys and not value)):
            raise DataError(f"{row.place}: {name} is empty")
    wanted = " and ".join(keys) or "messages, or prompt and completion"
    raise DataError(
        f"{row.place}: a row needs {wanted}, and this one has: {', '.join(row)}; say which of its fields they are"
        " with columns: {prompt: …}"
    )


def _check_count(source: DataSource, read: int, kept: int) -> None:
    if not read:
        raise DataError(f"{source.source} has no rows" + (f" that pass {source.filter}" if source.filter else ""))
    if not kept:
        raise DataError(f"all rows of {source.source} ask test questions (`decontaminate`) or are duplicates")
    if source.take is not None and source.take > kept:
        raise DataError(f"{source.source} has {kept} rows, fewer than the {source.take} to be taken")
    if not round(source.weight * (source.take or kept)):
        raise DataError(
            f"{source.source} has {source.take or kept} rows, of which weight {source.weight:g} leaves none"
        )


def _is_training_row(row: Row) -> bool:
    bare = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
    return bare or conversation(row) is not None


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


def whole(row: Row) -> str:
    """All of a row that is learnt, as a text."""
    return json.dumps([row.get(key) for key in LEARNT], ensure_ascii=False, default=str)


@dataclass
class Mixture:
    """The rows of several sources, which are read anew each time they are asked for: memory holds some of them.

    Attributes:
        locate: gives the file behind `@stage` or a path.
        parts: each source, and how often each of its rows comes up.
    """

    locate: Locate
    parts: list[tuple[DataSource, bytearray]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        for source, times in self.parts:
            for row, often in zip(shaped(source, self.locate), times, strict=True):
                for _ in range(often):
                    yield row

    def __contains__(self, row: object) -> bool:
        return any(row == other for other in self)

    def __len__(self) -> int:
        return sum(sum(times) for _, times in self.parts)


def mixed(sources: Sequence[DataSource], context: StageContext[Any], cleaner: Cleaner | None = None) -> Mixture:
    """The rows of all sources, taken and repeated as they ask; the trainer shuffles them.

    All rows are read once to choose among them, and once more when they are asked for.

    Args:
        sources: where they come from.
        context: the stage.
        cleaner: leaves out rows that ask what a test set asks, and those that came before, before any are taken.

    Raises:
        DataError: see `shaped`; or a source is empty, or holds fewer rows than are to be taken.
    """
    seen = Seen()
    return Mixture(context.data_path, [(s, _times(s, at, context, cleaner, seen)) for at, s in enumerate(sources)])


def _times(
    source: DataSource, position: int, context: StageContext[Any], cleaner: Cleaner | None, seen: Seen
) -> bytearray:
    """How often each row of a source comes up."""
    times = bytearray()
    for row in shaped(source, context.data_path):
        times.append(cleaner is None or cleaner.keeps(asked(row), row.place, whole(row), seen))
    kept = [at for at, keep in enumerate(times) if keep]
    _check_count(source, len(times), len(kept))
    random.Random(f"{context.seed} {position}").shuffle(kept)
    taken = kept[: source.take]
    often, more = divmod(round(source.weight * len(taken)), len(taken))
    if often >= MOST_TIMES:
        raise DataError(f"{source.source}: a weight of {source.weight:g} is more than {MOST_TIMES}")
    times = bytearray(len(times))
    for rank, at in enumerate(taken):
        times[at] = often + (rank < more)
    return times
