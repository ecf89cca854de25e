"""Run a trainer to its end: resume, report progress, save the model, sum up."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from pipeline.context import StageContext
from pipeline.schema.longer import KEPT_BYTES, why_inexact
from pipeline.training import adapters, checkpoints, saving
from pipeline.training.checkpoints import KEEP_STATE, TRAINED
from pipeline.training.clock import Pace
from pipeline.training.health.alarm import Alarm, go_back
from pipeline.training.health.finite import SKIPPED, NonFiniteError, Watch
from pipeline.training.held_out.looks import Looks

log = logging.getLogger(__name__)


SUMMARY = "summary.json"


class Events(TrainerCallback):  # type: ignore[misc]
    """Hands every logged metric to `context.log`, under TRL's own names, with where the time went beside them."""

    def __init__(self, context: StageContext[Any], trainer: Any) -> None:
        self.context, self.pace = context, Pace(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pace.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "train_runtime" in logs:
            return
        pace = self.pace.read(state.global_step, logs)
        if state.is_world_process_zero:
            numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
            self.context.log(state.global_step, state.max_steps, **{**pace, **numbers})


MOMENT_BYTES = 8
"""Of Adam's two moments, in float32, for each weight that is trained."""


class LastStep(TrainerCallback):  # type: ignore[misc]
    """A checkpoint after the last step if the trainer's state is to be kept for a longer training; otherwise none: the
    model itself is saved then, and an interrupted stage goes on from that."""

    def __init__(self, trainer: Any, context: StageContext[Any]) -> None:
        config, weights = context.config, list(trainer.model.parameters())
        size = sum(w.numel() * (w.element_size() + MOMENT_BYTES * w.requires_grad) for w in weights)
        self.keeps = config.keep_state
        if self.keeps is None:
            self.keeps = why_inexact(config) is None and size <= KEPT_BYTES
        self.cycle, self.mark, self.size = getattr(trainer, "cycle", 1), context.scratch / KEEP_STATE, size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            return
        control.should_save = self.keeps and state.global_step % self.cycle == 0
        if self.keeps and state.is_world_process_zero:
            self.mark.touch()
            log.info("the trainer's state is kept, %.1f GiB: keep_state: false leaves it out", self.size / 2**30)


def fit(trainer: Any, context: StageContext[Any]) -> dict[str, Any]:
    """Train, from the newest complete checkpoint if there is one, and save the model into `context.output`.

    Args:
        trainer: has the mixin `Resumable`.
        context: the stage; its config is a `TrainingConfig`.

    Returns:
        `steps`; the first and last values of the metrics that tell how training went; `tokens_per_second` unless
        it was resumed; `steps_skipped` if any were; `rollbacks` if it went back; with `watch`, also what
        `Looks.summary` says.

    Raises:
        HealthError: an alarm stops the stage, or takes it back (`RollbackError`).
        NonFiniteError: a loss, a gradient or a weight is not finite; with `non_finite: skip`, those of all steps.
        ValueError: there was nothing to train on.
    """
    trained, wait = context.scratch / TRAINED, trainer.accelerator.wait_for_everyone
    if not checkpoints.is_whole(trained, context, trainer.accelerator):
        summary = _trained(trainer, context, trained)
        if trainer.is_world_process_zero():
            (trained / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
            checkpoints.seal(trained, context.scratch)
    if trainer.is_world_process_zero():
        for part in ("model", adapters.ADAPTER):
            if (trained / part).is_dir():
                shutil.copytree(trained / part, context.output / part, copy_function=saving.link)
    wait()  # a rank that leaves early takes the others' collectives with it
    found: dict[str, Any] = json.loads((trained / SUMMARY).read_text(encoding="utf-8"))
    return found


def _trained(trainer: Any, context: StageContext[Any], target: Path) -> dict[str, Any]:
    """Train, and save what is to be published; returns what `fit` does."""
    if getattr(context.config, "watch", None) is None:
        summary = _train(trainer, context)
        saving.save(trainer, target, context)
        return summary
    looks = Looks(trainer, context)
    trainer.add_callback(looks)
    try:
        summary = _train(trainer, context)
    finally:
        looks.close()
    if not looks.hand_over(target):
        saving.save(trainer, target, context)
    return {**summary, **looks.summary()}


def _train(trainer: Any, context: StageContext[Any]) -> dict[str, Any]:
    """Train to the last step; returns what `fit` does."""
    try_saving(trainer, context.scratch)
    trainer.remove_callback(PrinterCallback)
    watch = Watch(trainer, context.config.non_finite, context.scratch)
    alarm = Alarm(context, trainer) if context.config.health is not None else None
    for callback in (Events(context, trainer), LastStep(trainer, context), watch, *([] if alarm is None else [alarm])):
        trainer.add_callback(callback)
    go_back(context, trainer)
    checkpoint = checkpoints.resume(context, trainer.accelerator)
    if checkpoint is not None:
        log.info("resuming after step %d", checkpoints.step_of(checkpoint))
    if (sampler := getattr(trainer, "sampler", None)) is not None:
        sampler.ready()  # an engine that starts is no step
    started = time.perf_counter()
    with nullcontext() if alarm is None else alarm.catching():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    context.work.add(seconds - trainer.saving_seconds)
    if not trainer.state.global_step:
        raise ValueError("not one step was trained: the data does not fill a batch, or the number of steps is 0")
    watch.check_weights()
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    if (skipped := _skipped(history)) >= trainer.state.global_step:
        raise NonFiniteError(
            f"nothing was learnt: no step had a finite loss and finite gradients, so all {skipped} were skipped"
        )
    summary: dict[str, Any] = {"steps": trainer.state.global_step}
    tokens = next((entry["num_tokens"] for entry in reversed(history) if "num_tokens" in entry), None)
    if tokens is not None and checkpoint is None:
        summary["tokens_per_second"] = round(tokens / seconds, 1)
    if skipped:
        summary["steps_skipped"] = skipped
    if trainer.rollbacks:
        summary["rollbacks"] = trainer.rollbacks
    return {**summary, **_ends(history)}


def try_saving(trainer: Any, scratch: Path) -> None:
    """Save everything that is small before anything is trained: what transformers reads it may yet refuse to write.

    Raises:
        ValueError: a config of the model could not be saved; says which setting is in the way.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        parts = (trainer.model.config, getattr(trainer.model, "generation_config", None), trainer.processing_class)
        for part in parts:
            try:
                if part is not None and trainer.is_world_process_zero():
                    copy.deepcopy(part).save_pretrained(folder)
            except ValueError as error:
                raise ValueError(
                    f"the trained model could not be saved: {error} Mend it in the model's folder, or bring the model"
                    " in by a stage of kind import_model, which does that"
                ) from error


_ENDS = {
    "loss": "loss",
    "mean_token_accuracy": "token_accuracy",
    "accuracy": "pair_accuracy",
    "step_accuracy": "step_accuracy",
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


def _skipped(history: list[dict[str, float]]) -> int:
    """How many steps were left out, of those that lines of the log tell of."""
    lines = [entry for entry in history if SKIPPED in entry]
    befores = [0, *(entry["step"] for entry in lines)]
    return round(sum(line[SKIPPED] * (line["step"] - before) for line, before in zip(lines, befores, strict=False)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
