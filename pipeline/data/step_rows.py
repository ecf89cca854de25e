"""Rows with a label for every step become token ids, in exactly the form in which the model will later be asked.

TRL's stepwise format, in which a label is a chance between 0 and 1, or whether the step is right::

    {"prompt": "7 +3 *7 =", "completions": ["seven ", "zero ", "one "], "labels": [0.9, 0.9, 0.1]}

A row may have `prefill`, what the assistant was made to begin with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.mixture import DataError
from rewards.process import StepReader
from rewards.verdict import PREFILL

if TYPE_CHECKING:
    from datasets import Dataset

STEPS = ("prompt", "completions", "labels")
"""Keys of a row."""


def tokenised(
    reader: StepReader, rows: Collection[Mapping[str, Any]], max_length: int
) -> tuple[Dataset, dict[str, Any]]:
    """Tokenise rows with step labels.

    Args:
        reader: how the reward model reads.
        rows: see the top of this module.
        max_length: longest prompt and answer, in tokens.

    Returns:
        A data set with `input_ids`, `ends` (where each step has its last token) and `labels`; what became of the rows.

    Raises:
        DataError: a row is none, or none is left.
    """
    from datasets import Dataset

    columns: dict[str, list[Any]] = {"input_ids": [], "ends": [], "labels": []}
    dropped = 0
    for number, row in enumerate(rows, start=1):
        place = getattr(row, "place", "") or f"row {number} of the data"
        asked, steps, labels = _parts(row, place)
        ids, ends = reader.read(reader.asked(asked, str(row.get(PREFILL) or "")), steps)
        if len(ids) > max_length:
            dropped += 1
            continue
        for name, value in zip(columns, (ids, ends, labels), strict=True):
            columns[name].append(value)
    if not columns["labels"]:
        raise DataError(f"no row is left of {len(rows)}: all are longer than max_length={max_length}")
    flat = [label for labels in columns["labels"] for label in labels]
    told = {"rows": len(columns["labels"]), "steps_labelled": len(flat), "mean_label": sum(flat) / len(flat)}
    return Dataset.from_dict(columns), {**told, "dropped": {"too_long": dropped}}


def _parts(row: Mapping[str, Any], place: str) -> tuple[Any, list[str], list[float]]:
    """Prompt, steps and labels of a row."""
    if missing := [key for key in STEPS if key not in row]:
        raise DataError(f"{place} has no {missing[0]!r}: a row has a prompt, completions (its steps) and labels")
    prompt, steps, labels = (row[key] for key in STEPS)
    chat = isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)
    if not isinstance(prompt, str) and not chat:
        raise DataError(f"{place}: prompt is text or a list of messages")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step for step in steps):
        raise DataError(f"{place}: completions is a list of texts, one a step")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise DataError(f"{place}: {len(steps)} completions need as many labels")
    for label in labels:
        if not isinstance(label, int | float) or not math.isfinite(label) or not 0 <= label <= 1:
            raise DataError(f"{place}: a label is true, false, or a number between 0 and 1, not {label!r}")
    return prompt, steps, [float(label) for label in labels]
