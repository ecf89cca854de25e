"""Preference pairs become token ids, in exactly the form in which the reward model will later be asked.

A row is one of

    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.mixture import DataError
from pipeline.prompts.messages import Message, MessageError, normal
from pipeline.prompts.rendering import Renderer
from rewards.preference import ConversationReader
from rewards.text import THINK_CLOSE, THINK_OPEN, plain
from rewards.verdict import Item

if TYPE_CHECKING:
    from datasets import Dataset


def tokenised(
    reader: ConversationReader, rows: Collection[Mapping[str, Any]], max_length: int, renderer: Renderer | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Tokenise pairs.

    Args:
        reader: how the reward model reads.
        rows: see the top of this module.
        max_length: longest conversation, in tokens.
        renderer: by which prompts are checked: their messages may have nothing that the chat template leaves out.

    Returns:
        A data set with `chosen_ids` and `rejected_ids`, and what became of the rows.

    Raises:
        DataError: a row is no pair, or none is left.
    """
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    dropped = {"too_long": 0, "equal": 0}
    for number, row in enumerate(rows, start=1):
        place = getattr(row, "place", "") or f"row {number} of the data"
        chosen, rejected = (reader.ids(item) for item in _items(row, place, renderer))
        if chosen == rejected:
            dropped["equal"] += 1
        elif max(len(chosen), len(rejected)) > max_length:
            dropped["too_long"] += 1
        else:
            columns["chosen_ids"].append(chosen)
            columns["rejected_ids"].append(rejected)
    if not columns["chosen_ids"]:
        raise DataError(
            f"no pair is left of {len(rows)}: both responses of {dropped['equal']} read the same, and"
            f" {dropped['too_long']} are longer than max_length={max_length}"
        )
    return Dataset.from_dict(columns), {"pairs": len(columns["chosen_ids"]), "dropped": dropped}


def _items(row: Mapping[str, Any], place: str, renderer: Renderer | None) -> tuple[Item, Item]:
    """The chosen and the rejected response, each with the prompt."""
    try:
        chosen, rejected = row["chosen"], row["rejected"]
        if "prompt" in row:
            prompt = row["prompt"]
        else:
            prompt = chosen[:-1]
            if prompt != rejected[:-1]:
                raise ValueError("chosen and rejected do not share their prompt")
            chosen, rejected = chosen[-1:], rejected[-1:]
        if row.get("tools"):
            raise MessageError("tools: a reward model does not see them: leave the row out")
        messages = None if isinstance(prompt, str) else _messages(prompt, renderer)
        asked = plain(prompt)
        return (
            Item(_response(chosen, "chosen"), prompt=asked, messages=messages),
            Item(_response(rejected, "rejected"), prompt=asked, messages=messages),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place} is not a pair of chosen and rejected: {error}") from error


def _messages(prompt: Sequence[Any], renderer: Renderer | None) -> list[Message]:
    """The messages of a prompt, of which the chat template uses every key."""
    messages = [normal(raw, f"prompt[{at}]")[0] for at, raw in enumerate(prompt)]
    if renderer is not None and messages:
        renderer.prompts([messages])
    return messages


def _response(said: Any, name: str) -> str:
    """What the assistant says, as one text; a thought that stands apart is put before it."""
    if isinstance(said, str):
        return said
    if not isinstance(said, Sequence) or len(said) != 1:
        raise MessageError(f"{name} is a text, or a list of one message of the assistant's")
    message, _ = normal(said[0], f"{name}[0]")
    if others := sorted(message.keys() - {"role", "content", "reasoning_content"}):
        raise MessageError(f"{name}[0].{others[0]}: a reward model is shown text alone: leave it out")
    thought, content = message.get("reasoning_content"), str(message["content"])
    return f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n{content}" if thought else content
