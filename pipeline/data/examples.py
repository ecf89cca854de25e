"""Training rows become token ids and labels, in exactly the form in which the model will later generate.

What the assistant says is tokenised apart from what comes before it, as when it is generated: the prompt is the chat
template's own text up to the point where the assistant goes on, and the end-of-sequence token closes the turn. So
what is trained is what is sampled, whatever the template does with earlier turns (R1's drops their thoughts).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

from pipeline import durable
from pipeline.data.mixture import DataError, Row
from pipeline.templates import Chat, encode, render

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""Label of tokens that the loss leaves out (PyTorch's convention)."""
CHUNK_ROWS = 2000
"""Rows tokenised at a time: enough for the tokenizer to be fast, few enough to stay small in memory."""
THINK = "<think>"
ACCOUNT = "account.json"
"""The mark of tokenised examples: what became of the rows, and the hashes of the files."""

log = logging.getLogger(__name__)

TooLong = Literal["drop", "error"]
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
    """

    examples: int
    tokens: int
    trained_tokens: int
    too_long: int
    longest: int

    def metrics(self) -> dict[str, int | dict[str, int]]:
        """As metrics of a stage."""
        return {
            "examples": self.examples,
            "trained_tokens": self.trained_tokens,
            "longest": self.longest,
            "dropped": {"too_long": self.too_long},
        }


def completions(tokenizer: Any, rows: Sequence[Row], max_length: int, too_long: TooLong) -> tuple[Dataset, Account]:
    """Tokenise rows of chats, or of prompts and completions; only what the assistant says is trained on.

    Args:
        tokenizer: with a chat template that ends the assistant's turn with the end-of-sequence token.
        rows: see `pipeline.data.mixture`.
        max_length: longest example, in tokens. A longer one is never cut: it would teach to stop, or not to, at random.
        too_long: what to do with a longer one.

    Returns:
        Columns `input_ids` and `labels`, and what became of the rows.

    Raises:
        DataError: a row is not a training row, an example is too long and shall be an error, or none is left.
    """
    turns = (turn for row in rows for turn in _turns(row))
    return _collect(_completion_ids(tokenizer, turns), max_length, too_long)


def documents(tokenizer: Any, texts: Iterable[str]) -> tuple[Dataset, Account]:
    """Tokenise documents, each closed by the end-of-sequence token; everything is trained on.

    Raises:
        DataError: there is none.
    """

    def pairs() -> Iterator[tuple[list[int], list[int]]]:
        for chunk in _chunks(texts):
            for ids in encode(tokenizer, chunk):
                yield [], [*ids, tokenizer.eos_token_id]

    return _collect(pairs(), None, "error")


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


def _turns(row: Row) -> Iterator[tuple[Chat | str, str]]:
    """(what comes before, what the assistant says) for every turn of a row that is to be learnt."""
    prompt, completion = row.get("prompt", []), row.get("completion")
    if completion is None:
        prompt, completion = [], row.get("messages")  # whole, also where a column `prompt` tells how it begins
    if isinstance(prompt, str) and isinstance(completion, str):
        yield prompt, completion
        return
    if not _is_chat(prompt) or not _is_chat(completion):
        raise DataError(f"neither a chat nor a prompt with its completion: {str(row)[:200]}")
    chat = [*prompt, *completion]
    learnt = [at for at, message in enumerate(chat) if at >= len(prompt) and message["role"] == "assistant"]
    if not learnt:
        raise DataError(f"a chat in which the assistant says nothing: {str(row)[:200]}")
    for at in learnt:
        yield chat[:at], chat[at]["content"]


def _is_chat(value: Any) -> TypeGuard[Chat]:
    return isinstance(value, list) and all(
        isinstance(message, Mapping) and isinstance(message.get("content"), str) and "role" in message
        for message in value
    )


def _completion_ids(tokenizer: Any, turns: Iterator[tuple[Chat | str, str]]) -> Iterator[tuple[list[int], list[int]]]:
    eos = tokenizer.eos_token
    for chunk in _chunks(turns):
        rendered = iter(render(tokenizer, [before for before, _ in chunk if not isinstance(before, str)]))
        prompts = [before if isinstance(before, str) else next(rendered) for before, _ in chunk]
        said = [
            _unprefilled(prompt, text.removesuffix(eos)) + eos for prompt, (_, text) in zip(prompts, chunk, strict=True)
        ]
        yield from zip(encode(tokenizer, prompts), encode(tokenizer, said), strict=True)


def _unprefilled(prompt: str, said: str) -> str:
    """What the assistant says after a template that already opens the thought for it."""
    opened = prompt.rstrip()
    if not opened.endswith(THINK) or not said.startswith(THINK):
        return said
    return said.removeprefix(THINK).removeprefix(prompt[len(opened) :])


def _collect(
    pairs: Iterator[tuple[list[int], list[int]]], max_length: int | None, too_long: TooLong
) -> tuple[Dataset, Account]:
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    parts: list[Dataset] = []
    tokens = trained = dropped = longest = 0
    for chunk in _chunks(pairs):
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for before, said in chunk:
            length = len(before) + len(said)
            longest = max(longest, length)
            if max_length is not None and length > max_length:
                if too_long == "error":
                    raise DataError(f"an example has {length} tokens, more than max_length={max_length}")
                dropped += 1
                continue
            columns["input_ids"].append(before + said)
            columns["labels"].append([IGNORED] * len(before) + said)
            tokens, trained = tokens + length, trained + len(said)
        parts.append(Dataset.from_dict(columns, features=features))
    examples = sum(len(part) for part in parts)
    if not examples:
        raise DataError(f"nothing to train on: {dropped} examples are longer than max_length={max_length}")
    return concatenate_datasets(parts), Account(examples, tokens, trained, dropped, longest)


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        yield chunk
