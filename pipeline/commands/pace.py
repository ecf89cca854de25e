"""How long a run will still take, as far as that can be told: from the steps of its stages, and those that are done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipeline.runner.graph import State, Step

HOUR, MINUTE = 3600, 60
"""Seconds."""


class Pace:
    """One stage's, by the seconds between the first step that was seen and the last."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self.left: float | None = None
        """Seconds, or `None` before two steps were seen or if nobody knows how many there are."""

    def see(self, step: int, total: int | None, seconds: float | None = None) -> None:
        """A step is done; it took so many seconds, if it says so."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = step, now
        done = step - self._first[0]
        each = (now - self._first[1]) / done if done else seconds
        self.left = each * (total - step) if each is not None and total else None


class Course:
    """A run's: which of its stages are done and running, and how long the others may take."""

    def __init__(self) -> None:
        self.stages = self.done = 0
        self._seconds: list[float] = []
        self._running: dict[str, Pace] = {}

    def planned(self, steps: Sequence[Step]) -> str:
        """How much there is to do, in words."""
        self.stages = len(steps)
        self.done = sum(step.state is State.FRESH for step in steps)
        todo = self.stages - self.done
        many = f"{self.stages} stage{'s' * (self.stages != 1)}"
        if todo:
            return f"{many}, {todo} to run"
        return "1 stage, which is fresh" if self.stages == 1 else f"all {many} are fresh"

    def started(self, stage: str) -> None:
        """A stage begins."""
        self._running[stage] = Pace()

    def see(self, stage: str, event: Mapping[str, Any]) -> float | None:
        """A stage has done a step; returns the seconds that are left of it, if they can be told."""
        pace = self._running.setdefault(stage, Pace())
        pace.see(event["step"], event.get("total"), event.get("step_time"))
        return pace.left

    def ended(self, stage: str, seconds: float | None = None) -> None:
        """A stage has ended; with its seconds if it is finished."""
        self._running.pop(stage, None)
        if seconds is not None:
            self.done += 1
            self._seconds.append(seconds)

    @property
    def left(self) -> float | None:
        """Seconds: of the stages that run, and for those that wait the mean of the ones before; `None` if unknown."""
        waiting = max(0, self.stages - self.done - len(self._running))
        running = [pace.left for pace in self._running.values()]
        if None in running or (waiting and not self._seconds):
            return None
        return max([left for left in running if left is not None], default=0.0) + waiting * fmean(
            self._seconds or [0.0]
        )

    def __str__(self) -> str:
        at = f"stage {min(self.stages, self.done + max(1, len(self._running)))} of {self.stages}"
        return at if self.left is None else f"{at}, about {clock(self.left)} left"


def clock(seconds: float) -> str:
    """`0:45`, `12:34`, `3:04:05`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // MINUTE, HOUR // MINUTE)
    return f"{hours}:{minutes:02}:{whole % MINUTE:02}" if hours else f"{minutes}:{whole % MINUTE:02}"
