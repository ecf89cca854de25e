"""Held-out scores while a stage trains, and what follows from them: the fields `watch`, `keep` and `stop`.

    zero:
      kind: grpo
      model: "@base"
      tasks: [math/train]
      watch: {tasks: [math500/test], every: 50, samples: 1, problems: 200}
      keep: best                                   # by math500/test; several tasks: keep: {by: math500/test}
      stop: {by: math500/test, patience: 5}

The model in training answers the problems itself, in a `grpo` stage with the engine that it has. Imported with the
stages' configs, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.schema.pieces import Fault, TrainingConfig, check_samples
from pipeline.schema.stops import StopsField
from pipeline.schema.strict import Strict
from pipeline.tasks.resolve import TestTaskField
from rewards.registry import nearest

PASS = "pass@1"
"""The score that a task's name alone stands for."""
SEVERAL = ("pass@k", "cons@k")
"""Scores that need several samples a problem."""
MAX_TOKENS = 1024
"""Longest answer of a stage without `rollout`."""

Share = Annotated[float, Field(ge=0, le=1)]


class WatchSpec(Strict):
    """Held-out problems that the model answers while it trains: `{tasks: [math500/test], every: 50, problems: 200}`.

    They are scored before the first step, every so many steps, and after the last one. Nothing of it reaches training:
    the weights are those of a stage without `watch`, to the bit.

    Attributes:
        tasks: what on; the split is `test` where none is given. Training leaves these problems out, as it does with
            what the recipe evaluates (see `decontaminate`).
        every: steps between two looks.
        samples: samples a problem.
        problems: most problems of each task; as many as the task gives if not given.
        max_tokens: longest answer, in tokens; the stage's `rollout.max_tokens` if not given, and 1024 without one.
        stop: texts and token ids at which an answer ends, beside the model's own end-of-sequence tokens; those of the
            stage's `rollout` if not given.
        temperature, top_p: sampling, R1's own for evaluation; temperature 0 is greedy.
        batch_size: sequences at a time where the trainer's model answers, and no engine.
    """

    tasks: Annotated[list[TestTaskField], Field(min_length=1)]
    every: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(gt=0)] = 1
    problems: Annotated[int, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    stop: StopsField | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    batch_size: Annotated[int, Field(gt=0)] = 64

    @model_validator(mode="after")
    def _is_meaningful(self) -> WatchSpec:
        labels = [task.label for task in self.tasks]
        if (twice := next((label for label in labels if labels.count(label) > 1), None)) is not None:
            raise ValueError(f"task {twice!r} is given twice; define tasks of different options under `tasks:`")
        check_samples(self.samples, self.temperature)
        return self

    @property
    def names(self) -> dict[str, tuple[str, str]]:
        """What `by` may say: a task, which means its pass@1, or a task and a score -> both."""
        scores = (PASS, *(SEVERAL if self.samples > 1 else ()))
        labels = [task.label for task in self.tasks]
        return {label: (label, PASS) for label in labels} | {
            f"{label}/{score}": (label, score) for label in labels for score in scores
        }


class _ByScore(Strict):
    by: str | None = None

    def score(self, watch: WatchSpec) -> tuple[str, str]:
        """The task and the score that `by` names."""
        return watch.names[self.by or watch.tasks[0].label]

    def fault(self, watch: WatchSpec) -> str | None:
        """What is wrong with `by`."""
        known = list(watch.names)
        if self.by is None and len(watch.tasks) > 1:
            return f"say by which score: one of {', '.join(known)}"
        if self.by is not None and self.by not in known:
            return f"`watch` gives no score {self.by!r}{nearest(self.by, known)}. It gives: {', '.join(known)}"
        return None


class KeepSpec(_ByScore):
    """Publish the weights of the best look, not of the last step: `best`, or `{by: math500/test}`.

    Attributes:
        by: the score: a task of `watch`, whose pass@1 is meant, or `TASK/SPLIT/pass@k`; the task of `watch` if it has
            one only. The earlier of two looks with the same score is better; the untrained model does not count.
    """


class StopSpec(_ByScore):
    """End training early, and publish: `{patience: 5}`, `{above: 0.8}`, or several, of which the first to come ends it.

    Attributes:
        by: the score, as that of `keep`.
        patience: looks in a row without a new best score.
        above: the score, from 0 to 1, above which training has reached its goal.
        below: the score, from 0 to 1, below which training has failed.
    """

    patience: Annotated[int, Field(gt=0)] | None = None
    above: Share | None = None
    below: Share | None = None

    @model_validator(mode="after")
    def _when(self) -> StopSpec:
        if self.patience is None and self.above is None and self.below is None:
            raise ValueError("say when: patience (looks without a new best score), above or below (a score)")
        if self.above is not None and self.below is not None and self.below > self.above:
            raise ValueError(f"every score is above {self.above:g} or below {self.below:g}: it would stop at once")
        return self

    def reason(self, scores: list[float]) -> str | None:
        """Why training is to end after looks with these scores, the latest last; `None`: it goes on."""
        if not scores:
            return None
        last, best = scores[-1], scores.index(max(scores))
        if self.above is not None and last > self.above:
            return f"{last:.3f} is above {self.above:g}"
        if self.below is not None and last < self.below:
            return f"{last:.3f} is below {self.below:g}"
        if self.patience is not None and len(scores) - 1 - best >= self.patience:
            return f"no score above {scores[best]:.3f} in {self.patience} looks"
        return None


def _kept(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in ("best", "last"):
        raise ValueError(f"needs best, last or {{by: SCORE}}, not {value!r}")
    return {} if value == "best" else None


class WatchedConfig(TrainingConfig):
    """What stages share whose model answers problems.

    Attributes:
        watch: held-out problems that are scored while it trains; none if not given.
        keep: `last`, the weights after the last step are published; `best`, or `{by: math500/test}`, those of the best
            look of `watch`.
        stop: when to end early, by a score of `watch`, such as {patience: 5} or {by: math500/test, above: 0.8}.
    """

    watch: WatchSpec | None = None
    keep: Annotated[KeepSpec | None, BeforeValidator(_kept)] = None
    stop: StopSpec | None = None

    @model_validator(mode="after")
    def _watched(self) -> WatchedConfig:
        for name in ("keep", "stop"):
            if getattr(self, name) is not None and self.watch is None:
                raise ValueError(f"{name} goes by a held-out score: add watch: {{tasks: [gsm8k/test], every: 50}}")
        return self

    def faults(self, base: Path) -> Iterator[Fault]:
        """Scores that `watch` does not give, and problems that are trained on."""
        yield from super().faults(base)
        if self.watch is None:
            return
        for name, spec in (("keep", self.keep), ("stop", self.stop)):
            if spec is not None and (fault := spec.fault(self.watch)) is not None:
                yield (name, *(["by"] if spec.by is not None else [])), fault
        learnt = {task.label for task in getattr(self, "tasks", None) or ()}
        for at, task in enumerate(self.watch.tasks):
            if task.label in learnt:
                yield ("watch", "tasks", at), f"the stage trains on {task.label}, so no score on it is held out"
