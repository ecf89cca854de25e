"""Preference pairs become token ids, in exactly the form in which the reward model will later be asked.

A row is one of

    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.mixture import DataError, Row
from rewards.preference import ConversationReader
from rewards.text import plain
from rewards.verdict import Item

if TYPE_CHECKING:
    from datasets import Dataset


def tokenised(reader: ConversationReader, rows: Sequence[Row], max_length: int) -> tuple[Dataset, dict[str, Any]]:
    """Tokenise pairs.

    Args:
        reader: how the reward model reads.
        rows: see the top of this module.
        max_length: longest conversation, in tokens.

    Returns:
        A data set with `chosen_ids` and `rejected_ids`, and what became of the rows.

    Raises:
        DataError: a row is no pair, or none is left.
    """
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    dropped = {"too_long": 0, "equal": 0}
    for number, row in enumerate(rows, start=1):
        chosen, rejected = (reader.ids(item) for item in _items(row, number))
        if chosen == rejected:
            dropped["equal"] += 1
        elif max(len(chosen), len(rejected)) > max_length:
            dropped["too_long"] += 1
        else:
            columns["chosen_ids"].append(chosen)
            columns["rejected_ids"].append(rejected)
    if not columns["chosen_ids"]:
        raise DataError(f"no pair is left of {len(rows)}: {dropped} were dropped, with max_length={max_length}")
    return Dataset.from_dict(columns), {"pairs": len(columns["chosen_ids"]), "dropped": dropped}


def _items(row: Mapping[str, Any], number: int) -> tuple[Item, Item]:
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
        messages = None if isinstance(prompt, str) else prompt
        return (
            Item(plain(chosen), prompt=plain(prompt), messages=messages),
            Item(plain(rejected), prompt=plain(prompt), messages=messages),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"row {number} of the data is no pair of chosen and rejected: {error}") from error
