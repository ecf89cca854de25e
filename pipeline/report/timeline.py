"""Wall time: one bar a stage on a common axis, so that stages which ran side by side can be seen to.

Long pauses (a run resumed the next morning) are squeezed, and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.report.run_data import Run, State
from pipeline.report.text import HOUR, MINUTE, duration

LONGEST_PAUSE = 0.05  # of the busy time; a longer pause is drawn as short as this and marked
ROUND_TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)  # seconds


@dataclass(frozen=True, slots=True)
class Bar:
    """One stage's bar; `left` and `width` in percent of the axis."""

    stage: str
    kind: str
    left: float
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class Pause:
    """A squeezed pause: where it lies (percent of the axis), and how long it really was."""

    left: float
    width: float
    label: str


@dataclass(frozen=True)
class Timeline:
    """Bars in order of their beginning, the squeezed pauses, and the axis' marks (percent, label)."""

    bars: list[Bar]
    pauses: list[Pause]
    ticks: list[tuple[float, str]]


def busy_seconds(run: Run) -> float:
    """Wall time during which at least one stage ran: pauses left out, stages side by side counted once."""
    spans = _merged(_spans(run))
    if spans:
        return sum(end - start for start, end in spans)
    return sum(stage.seconds or 0.0 for stage in run.stages.values())


def work_share(manifests: Iterable[Mapping[str, Any]]) -> float | None:
    """The share of stages' time in which they trained or sampled, rather than started, loaded and saved.

    Stages that do neither count with all of their time; `None` where no stage has said how long it did.
    """
    known = [manifest for manifest in manifests if manifest.get("work_seconds") is not None]
    seconds = sum(float(manifest["seconds"]) for manifest in known)
    work = sum(float(manifest["work_seconds"]) for manifest in known)
    return min(1.0, work / seconds) if seconds and work else None


def timeline(run: Run) -> Timeline:
    """Lay out the bars of all finished stages that say when they ran."""
    spans = _merged(_spans(run))
    busy = sum(end - start for start, end in spans)
    if not busy:
        return Timeline([], [], [])
    limit = LONGEST_PAUSE * busy
    gaps = [(end, start) for (_, end), (start, _) in pairwise(spans)]
    squeezed = [(start, end) for start, end in gaps if end - start > limit]
    total = spans[-1][1] - spans[0][0] - sum(end - start - limit for start, end in squeezed)

    def place(time: float) -> float:
        """Position of a point in time on the axis, in percent."""
        saved = sum(min(time, end) - start - limit for start, end in squeezed if time >= end)
        return 100 * (time - spans[0][0] - saved) / total

    bars = [
        Bar(
            s.name,
            s.kind,
            place(s.started),
            place(s.finished) - place(s.started),
            duration(s.seconds or s.finished - s.started),
        )
        for s in sorted(run.stages.values(), key=lambda s: s.started or 0.0)
        if s.state is State.FINISHED and s.started is not None and s.finished is not None and s.finished >= s.started
    ]
    pauses = [Pause(place(start), 100 * limit / total, duration(end - start)) for start, end in squeezed]
    return Timeline(bars, pauses, _ticks(busy, total) if not squeezed else [])


def _spans(run: Run) -> list[tuple[float, float]]:
    found = ((stage.started, stage.finished) for stage in run.stages.values())
    return sorted((a, b) for a, b in found if a is not None and b is not None and b >= a)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _ticks(busy: float, total: float) -> list[tuple[float, str]]:
    """At most nine marks at round times."""
    size, unit = (HOUR, "h") if busy >= 2 * HOUR else (MINUTE, "min") if busy >= 2 * MINUTE else (1.0, "s")
    step = next((step for step in ROUND_TIMES if total / step <= 9), total / 5)
    times = [index * step for index in range(int(total // step) + 1)]
    return [(100 * time / total, f"{time / size:.4g} {unit}") for time in times]
