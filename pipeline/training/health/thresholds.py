"""Alarms: logged metrics that say, long before the end, that a run goes wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from pipeline.context import in_json
from pipeline.records.dead_groups import FAILED, Shares
from pipeline.schema.health import EXACT_MISMATCH, Health
from pipeline.schema.health import MISMATCH as USUAL_MISMATCH
from pipeline.training.health.finite import SKIPPED

LOSS, ENTROPY, LENGTH, GRADIENT, REWARD = "loss", "entropy", "completions/mean_length", "grad_norm", "reward"
TRUNCATED, KL, MISMATCH = "completions/clipped_ratio", "kl", "sampling/sampling_logp_difference/mean"
"""The last: mean |log-probability in the engine - log-probability in the trainer| of sampled tokens."""
EFFECTIVE = "sampling/effective_sample_size"
REPETITION, FOREIGN = "completions/repetition", "completions/foreign_words"
FEWEST_BEFORE = 3
"""Steps whose median norm a step's is compared with, at least."""
LATEST = 50
"""Steps whose median norm a step's is compared with, at most."""
SMOOTHED = 5
"""Logged steps that make the mean reward and accuracy at the start, and those now."""
RISE = 0.01
"""Accuracy that rises by less than this has not risen."""


@dataclass(frozen=True, slots=True)
class Tripped:
    """An alarm.

    Attributes:
        alarm: its field in `health`; `loss` for one that is not finite.
        metric: what was logged.
        value: of the metric.
        limit: that it crossed, in the metric's unit.
        reason: a sentence with both, and what it may mean.
        reference: what the limit is a multiple of, where it is one: the first value, or the usual one.
    """

    alarm: str
    metric: str
    value: float
    limit: float
    reason: str
    reference: float | None = None

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        return in_json(asdict(self))


class Alarms:
    """Says which thresholds have been crossed for long enough.

    Args:
        health: the thresholds.
        accuracy: the metric that tells how many answers are right, if there is one.
        exact: whether engine and trainer ought to have the same log-probabilities, to rounding.
        explores: whether the model learns from what it samples. Of one that learns from rows, entropy falls as it
            learns, and only a loss that rises beside it is a symptom.

    Attributes:
        crossed: metric -> logged steps in a row for which its threshold is crossed.
    """

    def __init__(self, health: Health, accuracy: str = "", exact: bool = False, explores: bool = True) -> None:
        usual = EXACT_MISMATCH if exact else USUAL_MISMATCH
        self.health = health if health.mismatch else health.model_copy(update={"mismatch": usual})
        self.accuracy, self.explores = accuracy, explores
        self.crossed: Counter[str] = Counter()
        self._first: dict[str, float] = {}
        self._norms: list[float] = []
        self._scores: list[tuple[float, float]] = []

    def look(self, metrics: Mapping[str, Any]) -> list[Tripped]:
        """Take what a step has logged; the alarms, each raised once until the metric has recovered."""
        known = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        if REWARD in known and self.accuracy in known:
            self._scores.append((known[REWARD], known[self.accuracy]))
        faults = {fault.metric: fault for fault in self._faults(known)}
        self.crossed = Counter({name: self.crossed[name] + 1 for name in faults})
        if GRADIENT in known and GRADIENT not in faults and math.isfinite(known[GRADIENT]):
            self._norms = [*self._norms, known[GRADIENT]][-LATEST:]
        for name in (ENTROPY, LENGTH, LOSS):
            if name in known:
                self._first.setdefault(name, known[name])
        return [fault for name, fault in faults.items() if self.crossed[name] == self._patience(fault)]

    def _patience(self, fault: Tripped) -> int:
        return 1 if fault.metric == LOSS else self.health.patience  # nothing that follows it means anything

    def _faults(self, now: Mapping[str, float]) -> Iterator[Tripped]:
        """Each crossed threshold, and what it may mean."""
        yield from self._of_training(now)
        yield from self._against_first(now)
        yield from self._of_rewards(now)
        for name, alarm, told in (
            (TRUNCATED, "truncated", "of the completions are cut off"),
            (KL, "kl", "nats a token lie between policy and reference"),
            (MISMATCH, "mismatch", "nats lie between the engine's log-probabilities and ours"),
            (REPETITION, "repetition", "of what the policy writes it has written in the same completion before"),
            (FOREIGN, "foreign_words", "of the words are in another script than their question"),
        ):
            limit = getattr(self.health, alarm)
            if now.get(name, 0.0) > limit:
                yield Tripped(alarm, name, now[name], limit, f"{now[name]:.3g} {told} (health.{alarm} {limit:g})")
        least = self.health.effective_samples
        if now.get(EFFECTIVE, 1.0) < least:
            told = (
                f"importance weights make {now[EFFECTIVE]:.2g} of the tokens count (health.effective_samples {least:g})"
            )
            yield Tripped(
                "effective_samples", EFFECTIVE, now[EFFECTIVE], least, f"{told}: engine and trainer have drifted apart"
            )

    def _of_training(self, now: Mapping[str, float]) -> Iterator[Tripped]:
        health = self.health
        if LOSS in now and not math.isfinite(now[LOSS]):
            yield Tripped(LOSS, LOSS, now[LOSS], math.inf, f"the loss is {now[LOSS]}")
        if now.get(SKIPPED, 0.0) > 0:
            told = f"{now[SKIPPED]:.0%} of the steps were skipped, since their loss or gradients were not finite"
            yield Tripped(LOSS, SKIPPED, now[SKIPPED], 0.0, told)
        if GRADIENT in now and len(self._norms) >= FEWEST_BEFORE:
            usual = median(self._norms)
            if now[GRADIENT] > (limit := health.grad_norm * usual):
                told = f"the gradient's norm is {now[GRADIENT]:.3g}, usually {usual:.3g}"
                told += f" (health.grad_norm {health.grad_norm:g}): lower the learning rate"
                yield Tripped("grad_norm", GRADIENT, now[GRADIENT], limit, told, usual)

    def _against_first(self, now: Mapping[str, float]) -> Iterator[Tripped]:
        health, entropy, length = self.health, self._first.get(ENTROPY, 0.0), self._first.get(LENGTH, 0.0)
        if ENTROPY in now and entropy > 0:
            told, value = f"the policy's entropy is {now[ENTROPY]:.3g}, at first {entropy:.3g}", now[ENTROPY]
            fall, rise = entropy / health.entropy_fall, entropy * health.entropy_rise
            loss = now.get(LOSS, 0.0)
            if value < fall and (self.explores or loss > self._first.get(LOSS, loss)):
                why = (
                    "it no longer explores" if self.explores else f"its loss is {loss:.3g}, and it is sure all the same"
                )
                told += f" (health.entropy_fall {health.entropy_fall:g}): {why}"
                yield Tripped("entropy_fall", ENTROPY, value, fall, told, entropy)
            elif value > rise:
                told += f" (health.entropy_rise {health.entropy_rise:g}): it falls apart"
                yield Tripped("entropy_rise", ENTROPY, value, rise, told, entropy)
        if LENGTH in now and length > 0 and now[LENGTH] > (limit := health.length * length):
            told = f"completions have {now[LENGTH]:.0f} tokens, at first {length:.0f} (health.length {health.length:g})"
            yield Tripped("length", LENGTH, now[LENGTH], limit, told, length)

    def _of_rewards(self, now: Mapping[str, float]) -> Iterator[Tripped]:
        health, groups = self.health, Shares.of([now])
        if groups is not None and groups.dead >= health.dead_groups:
            told = f"{groups} (health.dead_groups {health.dead_groups:g}): {groups.cause}"
            yield Tripped("dead_groups", FAILED, groups.dead, health.dead_groups, told)
        if len(self._scores) < 2 * SMOOTHED:
            return
        first, last = self._scores[:SMOOTHED], self._scores[-SMOOTHED:]
        reward, accuracy = (fmean(row[at] for row in last) - fmean(row[at] for row in first) for at in (0, 1))
        if reward > health.reward_gap and accuracy < RISE:
            told = f"the reward has risen by {reward:.3g} and the accuracy by {accuracy:.3g}"
            told += (
                f" (health.reward_gap {health.reward_gap:g}): the policy is paid for something else than right answers"
            )
            yield Tripped("reward_gap", REWARD, reward, health.reward_gap, told)
