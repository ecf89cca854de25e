"""Training rows become token ids and labels, in exactly the form in which the model will later generate.

What the assistant says is tokenised apart from what comes before it, as when it is generated;
`pipeline.prompts.rendering` says what is which. So what is trained is what is sampled, whatever the template does with
earlier turns (R1's drops their thoughts). A text that is no chat begins with what the tokenizer puts before a text,
which is mostly a beginning-of-sequence token.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from model.labels import IGNORED
from pipeline.data.mixture import DataError
from pipeline.files import durable
from pipeline.prompts.messages import MessageError, conversation
from pipeline.prompts.rendering import Renderer
from pipeline.prompts.templates import encode, start_ids

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_ROWS = 2000
"""Rows tokenised at a time: enough for the tokenizer to be fast, few enough to stay small in memory."""
ACCOUNT = "account.json"
"""The mark of tokenised examples: what became of the rows, and the hashes of the files."""

log = logging.getLogger(__name__)

TooLong = Literal["drop", "error"]
Example = tuple[str, list[int], list[int]]
"""(where its row stands, token ids that are read, token ids that are learnt)."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the rows.

    Attributes:
        examples: sequences to train on; a chat gives one for each of the assistant's turns.
        tokens: tokens in them.
        trained_tokens: tokens that the loss counts.
        too_long: examples that were dropped because they exceed the longest allowed length.
        longest: tokens in the longest example, dropped ones included.
        left_out: rows or documents that were left out because they ask what a test set asks, or came before.
    """

    examples: int
    tokens: int
    trained_tokens: int
    too_long: int
    longest: int
    left_out: Mapping[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, int | dict[str, int]]:
        """As metrics of a stage."""
        return {
            "examples": self.examples,
            "trained_tokens": self.trained_tokens,
            "longest": self.longest,
            "dropped": {"too_long": self.too_long},
            **self.left_out,
        }


def completions(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length: int,
    too_long: TooLong,
    renderer: Renderer | None = None,
    file: Path | None = None,
) -> tuple[Dataset, Account]:
    """Tokenise rows of chats, or of prompts and completions; only what the assistant says is trained on.

    Args:
        tokenizer: with a chat template that ends the assistant's turn with the end-of-sequence token.
        rows: see `pipeline.data.mixture`.
        max_length: longest example, in tokens. A longer one is never cut: it would teach to stop, or not to, at random.
        too_long: what to do with a longer one.
        renderer: how chats are rendered; as the tokenizer itself says if not given.
        file: where tokens go as they come, so that memory holds some of them; see `_collect`.

    Returns:
        Columns `input_ids` and `labels`, and what became of the rows.

    Raises:
        DataError: a row is not a training row, or holds what the chat template does not use; an example is too long
            and shall be an error; or none is left. The message names the row's file and line.
        TemplateError: see `Renderer`.
    """
    renderer = renderer or Renderer(tokenizer)
    turns = (turn for row in rows for turn in _turns(renderer, row, getattr(row, "place", "")))
    return _collect(_completion_ids(tokenizer, turns), max_length, too_long, file)


def documents(tokenizer: Any, texts: Iterable[str], file: Path | None = None) -> tuple[Dataset, Account]:
    """Tokenise documents, each begun as the tokenizer begins a text and closed by the end-of-sequence token; everything
    is trained on.

    Raises:
        DataError: there is none.
    """
    starts = start_ids(tokenizer)

    def pairs() -> Iterator[Example]:
        for chunk in _chunks(texts):
            for ids in encode(tokenizer, chunk):
                yield "", [], [*started(starts, ids), tokenizer.eos_token_id]

    return _collect(pairs(), None, "error", file)


def shared(folder: Path, args: Any, make: Callable[[], tuple[Dataset, Account]]) -> tuple[Dataset, Account]:
    """Examples that one process tokenises, and all of a stage's processes read from disk; a resumed stage does, too.

    Args:
        folder: where they are kept, on a file system that all processes see.
        args: transformers' training arguments, which know the processes.
        make: tokenises them.
    """
    from datasets import load_from_disk

    with args.main_process_first(local=False):
        if args.process_index == 0 and (faults := durable.damage_of(folder, ACCOUNT)):
            if folder.exists():
                log.warning("%s is damaged (%s): its rows are tokenised again", folder, durable.describe(faults))
                shutil.rmtree(folder)
            dataset, made = make()
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            dataset.save_to_disk(unfinished)
            durable.seal(unfinished, ACCOUNT, account=asdict(made))
            durable.move(unfinished, folder)
    return load_from_disk(folder), Account(**durable.read_record(folder / ACCOUNT)["account"])


Turn = tuple[str, str, str, bool]
"""(where its row stands, what comes before, what the assistant says, whether a beginning-of-sequence token is due)."""


def _turns(renderer: Renderer, row: Mapping[str, Any], place: str) -> Iterator[Turn]:
    """Every turn of a row that is to be learnt."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        eos = renderer.tokenizer.eos_token
        yield place, prompt, completion.removesuffix(eos) + eos, True
        return
    try:
        if (chat := conversation(row)) is None:
            raise MessageError(f"neither a chat nor a prompt with its completion: {str(dict(row))[:200]}")
        for before, said in renderer.turns(chat):
            yield place, before, said, False
    except MessageError as error:
        raise DataError(f"{place}: {error}" if place else str(error)) from error


def _completion_ids(tokenizer: Any, turns: Iterator[Turn]) -> Iterator[Example]:
    starts = start_ids(tokenizer)
    for chunk in _chunks(turns):
        prompts = encode(tokenizer, [before for _, before, _, _ in chunk])
        said = encode(tokenizer, [text for _, _, text, _ in chunk])
        for (place, _, _, bare), before, after in zip(chunk, prompts, said, strict=True):
            yield place, started(starts, before) if bare else before, after


def started(starts: list[int], ids: list[int]) -> list[int]:
    """Token ids behind what the tokenizer puts before a text, once."""
    return ids if ids[: len(starts)] == starts else starts + ids


def _collect(
    pairs: Iterator[Example], max_length: int | None, too_long: TooLong, file: Path | None
) -> tuple[Dataset, Account]:
    """Examples as a data set, and what became of the rows.

    With a `file`, they are written there and read from it; it has no name any more when this returns, and its space is
    free again with the data set.
    """
    import pyarrow as pa
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    memory = pa.BufferOutputStream()
    writer = ArrowWriter(features=features, path=file and str(file), stream=None if file else memory)
    tokens = trained = dropped = longest = 0
    for chunk in _chunks(pairs):
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for place, before, said in chunk:
            length = len(before) + len(said)
            longest = max(longest, length)
            if max_length is not None and length > max_length:
                if too_long == "error":
                    where = f"{place}: " if place else ""
                    raise DataError(f"{where}an example has {length} tokens, more than max_length={max_length}")
                dropped += 1
                continue
            columns["input_ids"].append(before + said)
            columns["labels"].append([IGNORED] * len(before) + said)
            tokens, trained = tokens + length, trained + len(said)
        writer.write_batch(columns)
    examples = writer.finalize()[0]
    if not examples:
        raise DataError(f"nothing to train on: {dropped} examples are longer than max_length={max_length}")
    if file is None:
        dataset = Dataset.from_buffer(memory.getvalue())
    else:
        dataset = Dataset.from_file(str(file))
        file.unlink()
    return dataset, Account(examples, tokens, trained, dropped, longest)


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        yield chunk
