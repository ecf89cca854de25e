"""How many checkpoints a stage writes: every `trainer.save_steps`, and one of the last step where its state is kept."""

from __future__ import annotations

from typing import Any

from pipeline.cost import memory
from pipeline.planner.work import Work
from pipeline.schema.longer import KEPT_BYTES, why_inexact

TRL_SAVE_STEPS = 500
"""Default of transformers' TrainingArguments."""


def saves(config: Any, work: Work) -> int:
    """Checkpoints of a stage that trains; 0 of one that only samples.

    Args:
        config: the stage's.
        work: its model and steps.
    """
    if work.training is None:
        return 0
    every = {**config.trainer_defaults, **config.trainer}.get("save_steps", TRL_SAVE_STEPS)
    each: int = round(every) if every >= 1 else max(1, round(every * work.steps))  # below 1 it is a share of all steps
    keeps = config.keep_state
    if keeps is None:
        state = memory.state(work.models[0], work.training.setup.adapter_rank)
        keeps = why_inexact(config) is None and state <= KEPT_BYTES
    return (work.steps - 1) // each + int(keeps)
