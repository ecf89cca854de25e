"""Run a trainer to its end: resume, report progress, save the model, sum up."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from pipeline.context import StageContext
from pipeline.training import checkpoints

log = logging.getLogger(__name__)


class Events(TrainerCallback):  # type: ignore[misc]
    """Hands every logged metric to `context.log`, under TRL's own names."""

    def __init__(self, context: StageContext[Any]) -> None:
        self.context = context

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        numbers = {name: value for name, value in logs.items() if _is_number(value)}
        self.context.log(state.global_step, state.max_steps, **numbers)


def fit(trainer: Any, context: StageContext[Any]) -> dict[str, Any]:
    """Train, from the newest complete checkpoint if there is one, and save the model into `context.output`.

    Returns:
        `steps`; the first and last values of the metrics that tell how training went; `tokens_per_second` unless
        it was resumed.

    Raises:
        ValueError: there was nothing to train on.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Events(context))
    checkpoint = checkpoints.resume(context, trainer.accelerator)
    if checkpoint is not None:
        log.info("resuming after step %d", checkpoints.step_of(checkpoint))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    if not trainer.state.global_step:
        raise ValueError("not one step was trained: the data does not fill a batch, or there are to be no steps")
    save_model(trainer, context.output / "model")
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    summary: dict[str, Any] = {"steps": trainer.state.global_step}
    tokens = next((entry["num_tokens"] for entry in reversed(history) if "num_tokens" in entry), None)
    if tokens is not None and checkpoint is None:
        summary["tokens_per_second"] = round(tokens / seconds, 1)
    return {**summary, **_ends(history)}


def save_model(trainer: Any, folder: Path) -> None:
    """Save weights, config, generation config and tokenizer as a Hugging Face folder."""
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that names local paths


_ENDS = {
    "loss": "loss",
    "mean_token_accuracy": "token_accuracy",
    "accuracy": "pair_accuracy",
    "reward": "reward",
    "completions/mean_length": "length",
}
"""Logged metrics whose first and last values tell how training went -> their short names."""


def _ends(history: list[dict[str, Any]]) -> dict[str, float]:
    ends: dict[str, float] = {}
    for metric, name in _ENDS.items():
        values = [entry[metric] for entry in history if _is_number(entry.get(metric))]
        if values:
            ends |= {f"{name}_first": values[0], f"{name}_last": values[-1]}
    return ends


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
