"""What each stage took: time, GPU-hours, memory, speed. Nothing stands where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.report.run_data import Run, Stage, events, mapping
from pipeline.report.text import HOUR, finite

PART = "seconds/"
"""Begins the metrics that say how long a part of a step took."""
LEAST_PART = 0.005  # of a step; parts that take less are not named


@dataclass(frozen=True, slots=True)
class Use:
    """What one stage took.

    Attributes:
        stage, kind: which.
        seconds: wall time.
        work: share of it in training steps and sampling.
        gpus: how many it had.
        gpu_hours: of all of them.
        host, gpu: the most memory that its process had, in bytes.
        tokens, samples: a second, the median of what was logged.
        mfu: model FLOPs over what the devices could do, the median of what was logged.
        parts: part of a step -> share of the time of all logged steps, the largest first.
    """

    stage: str
    kind: str
    seconds: float | None = None
    work: float | None = None
    gpus: int | None = None
    gpu_hours: float | None = None
    host: float | None = None
    gpu: float | None = None
    tokens: float | None = None
    samples: float | None = None
    mfu: float | None = None
    parts: Mapping[str, float] | None = None


def uses(run: Run) -> list[Use]:
    """Of every stage that is finished or has logged its speed."""
    return [use for stage in run.stages.values() if any(use_values(use := _use(stage)))]


def use_values(use: Use) -> Iterator[object]:
    """What is known of a stage beside its name and kind."""
    return (value for value in list(_fields(use).values())[2:] if value is not None)


def gpu_hours(found: Sequence[Use]) -> float | None:
    """Of all stages; `None` where none had a GPU."""
    known = [use.gpu_hours for use in found if use.gpu_hours is not None]
    return sum(known) if known else None


def _fields(use: Use) -> dict[str, Any]:
    return {name: getattr(use, name) for name in Use.__slots__}


def _use(stage: Stage) -> Use:
    logged = events(stage)
    seconds, work = stage.seconds, finite(stage.manifest.get("work_seconds"))
    cards = stage.manifest.get("gpus")
    gpus = len(cards) if isinstance(cards, list) and cards else None
    memory = mapping(stage.manifest.get("memory"))
    return Use(
        stage.name,
        stage.kind,
        seconds,
        min(1.0, work / seconds) if work and seconds else None,
        gpus,
        gpus * seconds / HOUR if gpus and seconds is not None else None,
        finite(memory.get("host")),
        finite(memory.get("gpu")),
        _median(logged, "tokens_per_second") or finite(stage.metrics.get("tokens_per_second")),
        _median(logged, "samples_per_second"),
        _median(logged, "mfu"),
        _parts(logged),
    )


def _median(logged: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    values = [value for event in logged if (value := finite(event.get(metric))) is not None]
    return median(values) if values else None


def _parts(logged: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Shares of the time of steps. A line tells the mean of the steps since the line before, so it counts for these."""
    sums: dict[str, float] = {}
    before = 0.0
    for event in logged:
        step = float(event["step"])
        for name, value in event.items():
            if name.startswith(PART) and (seconds := finite(value)) is not None:
                part = name.removeprefix(PART)
                sums[part] = sums.get(part, 0.0) + seconds * (step - before)
        before = step
    total = sum(sums.values())
    shares = {part: took / total for part, took in sums.items() if total and took / total >= LEAST_PART}
    return dict(sorted(shares.items(), key=lambda item: -item[1])) or None
