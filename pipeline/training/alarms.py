"""Alarms: logged metrics that say, long before the end, that a run goes wrong."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from transformers import TrainerCallback

from pipeline.context import StageContext
from pipeline.schema.health import Health

log = logging.getLogger(__name__)

ENTROPY, LENGTH, GRADIENT = "entropy", "completions/mean_length", "grad_norm"
TRUNCATED, KL, MISMATCH = "completions/clipped_ratio", "kl", "sampling/sampling_logp_difference/mean"
FAILED, EQUAL = "groups/all_failed", "groups/all_equal_above_zero"
FEWEST_BEFORE = 3
"""Steps whose median norm a step's is compared with, at least."""
LATEST = 50
"""Steps whose median norm a step's is compared with, at most."""


class HealthError(RuntimeError):
    """An alarm that stops a stage; the message has the step, the metric, the threshold and what it may mean."""


class Alarms:
    """Says which thresholds have been crossed for long enough.

    Args:
        health: the thresholds.
    """

    def __init__(self, health: Health) -> None:
        self.health = health
        self._first: dict[str, float] = {}
        self._norms: list[float] = []
        self._crossed: Counter[str] = Counter()

    def look(self, metrics: Mapping[str, Any]) -> list[str]:
        """Take what a step has logged; the reasons for alarms, each raised once until the metric has recovered."""
        known = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        reasons = dict(self._faults(known))
        self._crossed = Counter({name: self._crossed[name] + 1 for name in reasons})
        if GRADIENT in known and GRADIENT not in reasons:
            self._norms = [*self._norms, known[GRADIENT]][-LATEST:]
        for name in (ENTROPY, LENGTH):
            if name in known:
                self._first.setdefault(name, known[name])
        return [reason for name, reason in reasons.items() if self._crossed[name] == self.health.patience]

    def _faults(self, now: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Each crossed threshold, by the metric, and what it may mean."""
        health, first = self.health, self._first
        if GRADIENT in now and len(self._norms) >= FEWEST_BEFORE:
            usual = median(self._norms)
            if now[GRADIENT] > health.grad_norm * usual:
                told = f"the gradient's norm is {now[GRADIENT]:.3g}, usually {usual:.3g}"
                yield GRADIENT, f"{told} (health.grad_norm {health.grad_norm:g}): lower the learning rate"
        if ENTROPY in now and first.get(ENTROPY, 0) > 0:
            told = f"the policy's entropy is {now[ENTROPY]:.3g}, at first {first[ENTROPY]:.3g}"
            if now[ENTROPY] * health.entropy_fall < first[ENTROPY]:
                yield ENTROPY, f"{told} (health.entropy_fall {health.entropy_fall:g}): it no longer explores"
            elif now[ENTROPY] > health.entropy_rise * first[ENTROPY]:
                yield ENTROPY, f"{told} (health.entropy_rise {health.entropy_rise:g}): it falls apart"
        if LENGTH in now and first.get(LENGTH, 0) > 0 and now[LENGTH] > health.length * first[LENGTH]:
            told = f"completions have {now[LENGTH]:.0f} tokens, at first {first[LENGTH]:.0f}"
            yield LENGTH, f"{told} (health.length {health.length:g})"
        dead = now.get(FAILED, 0.0) + now.get(EQUAL, 0.0)
        if dead >= health.dead_groups:
            why = "the verifier pays everything, or problems are too easy"
            if now.get(FAILED, 0.0) > now.get(EQUAL, 0.0):
                why = "problems are too hard, or answers are not found"
            yield FAILED, f"{dead:.0%} of the groups teach nothing (health.dead_groups {health.dead_groups:g}): {why}"
        for name, limit, told in (
            (TRUNCATED, health.truncated, "of the completions are cut off (health.truncated"),
            (KL, health.kl, "nats a token lie between policy and reference (health.kl"),
            (MISMATCH, health.mismatch, "nats lie between the engine's log-probabilities and ours (health.mismatch"),
        ):
            if now.get(name, 0.0) > limit:
                yield name, f"{now[name]:.3g} {told} {limit:g})"


class Alarm(TrainerCallback):  # type: ignore[misc]
    """Raises the alarms of a trainer: a note, or the end of the stage."""

    def __init__(self, context: StageContext[Any], health: Health) -> None:
        self.context, self.health, self.alarms = context, health, Alarms(health)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at a step; every rank sees the same metrics.

        Raises:
            HealthError: an alarm is to stop the stage.
        """
        if logs is None or "train_runtime" in logs:
            return
        for reason in self.alarms.look(logs):
            text = f"alarm after step {state.global_step}: {reason}"
            log.warning("%s", text)
            if self.health.on_alarm == "stop":
                raise HealthError(f"{text}. The checkpoints are kept; to go on past alarms, set health.on_alarm: warn")
            if state.is_world_process_zero:
                self.context.note(text)
