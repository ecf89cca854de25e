"""What an alarm does: it is told, the batches around it are kept, and the stage goes on, stops or goes back.

A stage that goes back ends its process, all ranks together. Before that it writes down where to (`kept.ROLLBACKS`).
Whichever process takes the stage up next, after a `kill -9` as well, deletes the checkpoints that came later and goes
on as after any interruption, with a lower learning rate.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.records import kept
from pipeline.schema.health import Health
from pipeline.tasks.grading import ACCURACY
from pipeline.training import checkpoints, saving
from pipeline.training.health.evidence import Evidence
from pipeline.training.health.finite import DamagedError, NonFiniteError
from pipeline.training.health.thresholds import LOSS, Alarms, Tripped
from pipeline.training.parallel.collectives import by_first

log = logging.getLogger(__name__)

GO_ON = "The checkpoints are kept; to go on past alarms, set health.on_alarm: warn"


class HealthError(RuntimeError):
    """An alarm that stops a stage; the message has the step, the metric, the threshold and what it may mean."""


class RollbackError(HealthError):
    """A stage ends in order to go back to a checkpoint, and on from there: run it again."""


class Alarm(TrainerCallback):  # type: ignore[misc]
    """Raises the alarms of a trainer: a note, the end of the stage, or a way back.

    Args:
        context: the stage; its config has `health`.
        trainer: has the mixin `Watched`; its batches are kept.

    Raises:
        ValueError: the stage is to go back, and DeepSpeed trains, whose learning rate is its own.
    """

    def __init__(self, context: StageContext[Any], trainer: Any) -> None:
        self.context, self.trainer, self.health = context, trainer, context.config.health
        if self.health.on_alarm == "rollback" and trainer.is_deepspeed_enabled:
            raise ValueError("health.on_alarm: rollback: DeepSpeed has its own learning rate; set on_alarm: stop")
        config = context.config
        explores = getattr(config, "trains_sampler", False)
        self.alarms = Alarms(self.health, accuracy_of(config), is_exact(config, trainer), explores)
        self.evidence = Evidence(context, trainer)
        self._logged, self._began = 0, 0
        self._before: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Know what an interrupted stage had logged, so that it is compared with the same first steps."""
        for entry in state.log_history:
            if LOSS in entry:  # others are looks at held-out scores
                self._look(entry)
                self._follow(entry["step"])

    def _look(self, metrics: Mapping[str, Any]) -> list[Tripped]:
        """The alarms of a logged step, and what is crossed for all, as the first rank sees them. Collective."""
        tripped, self.alarms.crossed = by_first(
            self.trainer.accelerator, lambda: (self.alarms.look(metrics), self.alarms.crossed)
        )
        return tripped

    def _follow(self, step: int) -> None:
        """Notice where a symptom begins, and where it is gone."""
        if self.alarms.crossed and not self._began:
            self._began = step
            self._guard(self._logged - 1)
        if not self.alarms.crossed:
            self._began = 0
            self.evidence.healthy()
            self._forget_guard()
        self._logged = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evidence.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evidence.take(state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at a step; the first rank decides for all.

        Raises:
            HealthError: an alarm is to stop the stage, or to take it back.
        """
        if logs is None or LOSS not in logs:
            return
        tripped = self._look(logs)
        self._follow(state.global_step)
        if tripped:
            self._raise(tripped, state.global_step, logs)

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A loss or gradient that is not finite is an alarm as well, for a stage that is to go back at one."""
        try:
            yield
        except NonFiniteError as error:
            if self.health.on_alarm != "rollback" or isinstance(error, DamagedError):
                raise
            step = self.trainer.state.global_step + 1
            if not self._began:
                self._began = step
                self._guard(step - 2)
            self._raise([Tripped(LOSS, LOSS, float("nan"), float("inf"), str(error))], step, {})

    def _raise(self, tripped: list[Tripped], step: int, logs: Mapping[str, Any]) -> None:
        where = self.evidence.keep(step, self._began, self._before, tripped, logs)
        then, to = by_first(self.trainer.accelerator, lambda: self._then(step))
        for number, one in enumerate(tripped):
            text = f"alarm after step {step}: {one.reason}"
            more = "" if number else f". {where.told} {then}".rstrip()  # once is enough
            if self.trainer.is_world_process_zero():
                log.warning("%s", text)
                self._tell(step, text + more, one, where.folder, to)
        text = "; ".join(one.reason for one in tripped)
        if to is not None:
            entry = {"step": step, "began": self._began, "to": to, "alarm": tripped[0].alarm, "done": False}
            if self.trainer.is_world_process_zero():
                entries = [*kept.rollbacks(self.context.scratch), {**entry, "reason": tripped[0].reason}]
                kept.write_rollbacks(self.context.scratch, entries)
            self.trainer.accelerator.wait_for_everyone()
            raise RollbackError(f"alarm after step {step}: {text}. {where.told} {then}")
        if self.health.on_alarm != "warn":
            raise HealthError(f"alarm after step {step}: {text}. {where.told} {then}")

    def _then(self, step: int) -> tuple[str, int | None]:
        """What comes of an alarm, in words, and the step that the stage goes back to, if it does."""
        health, gone = self.health, len(kept.rollbacks(self.context.scratch))
        if health.on_alarm == "warn":
            return "", None
        if health.on_alarm == "stop":
            return GO_ON, None
        if gone >= health.rollbacks:
            return f"The stage has gone back {gone} times (health.rollbacks): it stops. {GO_ON}", None
        to = self._before or 0
        rate = f"the learning rate times {health.rollback_lr ** (gone + 1):.3g}"
        place = f"the checkpoint after step {to}" if to else "the beginning of the stage"
        return f"Rollback {gone + 1} of {health.rollbacks}: back to {place}, and on with {rate}", to

    def _tell(self, step: int, text: str, one: Tripped, folder: Path | None, to: int | None) -> None:
        fields = {name: value for name, value in one.fields().items() if value is not None}
        more = {"then": self.health.on_alarm if to is not None or self.health.on_alarm != "rollback" else "stop"}
        more |= {} if folder is None else {"kept": folder.relative_to(self.context.scratch).as_posix()}
        back = {} if to is None else {"rollback_to": to, kept.ROLLBACK: len(kept.rollbacks(self.context.scratch)) + 1}
        self.context.log(step, self.trainer.state.max_steps, note=text, **fields, **more, **back)

    def _guard(self, step: int) -> None:
        """Keep the newest complete checkpoint up to a step from being deleted while there is a symptom."""
        self._before = by_first(self.trainer.accelerator, lambda: self._guarded(step))

    def _guarded(self, step: int) -> int | None:
        folder = self.context.scratch / kept.KEPT
        paths = [*checkpoints.by_step(self.context.checkpoints), *checkpoints.by_step(folder)]
        found = [p for p in paths if checkpoints.step_of(p) <= step and (p / checkpoints.MARK).exists()]
        newest = max(found, key=checkpoints.step_of, default=None)
        if newest is None:
            return None
        link(newest, folder / newest.name)
        return checkpoints.step_of(newest)

    def _forget_guard(self) -> None:
        """Let go of a checkpoint that no kept batch belongs to."""
        before, self._before = self._before, None
        if before is None or not self.trainer.is_world_process_zero():
            return
        folder = self.context.scratch / kept.KEPT
        if before not in [record["checkpoint"] for record in kept.records(folder).values()]:
            shutil.rmtree(folder / f"{kept.CHECKPOINT}{before}")


def accuracy_of(config: Any) -> str:
    """The metric that tells how many answers are right, where a stage's rewards have `accuracy`."""
    labels = [spec.label for spec in getattr(config, "rewards", []) if spec.use == ACCURACY]
    return f"rewards/{labels[0]}/score" if labels else ""


def is_exact(config: Any, trainer: Any) -> bool:
    """Whether an engine that samples for a trainer ought to find its log-probabilities to rounding.

    The trainer computes in float32 on a CPU (on a GPU engines multiply in TF32), and nobody samples with weights that
    are some steps old.
    """
    if getattr(getattr(config, "rollout", None), "max_staleness", 1):
        return False
    whole = trainer.accelerator.mixed_precision == "no" and getattr(config, "precision", "trainer") != "fp8"
    model = trainer.accelerator.unwrap_model(trainer.model)
    return whole and model.dtype == torch.float32 and trainer.accelerator.device.type == "cpu"


def link(source: Path, target: Path) -> None:
    """The same files under a second name; they appear at once. Where files cannot have two names, they are copied."""
    if target.exists():
        return
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    durable.make_folder(part.parent)
    shutil.copytree(source, part, copy_function=saving.link)
    part.rename(target)
    durable.sync(target.parent)


def go_back(context: StageContext[Any], trainer: Any) -> None:
    """Do what the last process of a stage wrote down before it ended, and lower the learning rate.

    Collective: the first rank moves checkpoints, and the others wait for it.
    """
    health: Health | None = context.config.health
    if health is None:
        return
    if trainer.accelerator.is_main_process and kept.pending(context.scratch):
        entries = kept.rollbacks(context.scratch)
        _rewind(context, entries[-1]["to"])
        kept.write_rollbacks(context.scratch, [{**entry, "done": True} for entry in entries])
    trainer.accelerator.wait_for_everyone()
    trainer.rollbacks = len(kept.rollbacks(context.scratch))
    trainer.args.learning_rate *= health.rollback_lr**trainer.rollbacks


def _rewind(context: StageContext[Any], step: int) -> None:
    """Leave no checkpoint that came after a step, and have that of the step itself."""
    for path in checkpoints.by_step(context.checkpoints):
        if checkpoints.step_of(path) > step:
            checkpoints.remove(path)
    saved = context.scratch / kept.KEPT / f"{kept.CHECKPOINT}{step}"
    if saved.is_dir():
        shutil.rmtree(context.checkpoints / saved.name, ignore_errors=True)
        link(saved, context.checkpoints / saved.name)
