"""What becomes of rollouts before they are trained on: verdicts in the background, samples to read, a look at groups.

Verifiers work in pools of processes, so the trainer's process only waits for them. It starts them as soon as the
completions are there, goes on to the passes of the policy and the reference, and collects the verdicts when they are
needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files.rows import whole_row, write_rows
from pipeline.records.dead_groups import Shares
from pipeline.records.samples import SAMPLES
from pipeline.schema.health import DEAD_SHARE
from rewards import Batch, Composite, Verdict

log = logging.getLogger(__name__)

DEAD_STEPS = 5
"""Generation batches in a row before it is said: one may be bad luck."""
TRL_COLUMNS = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of a row that TRL hands to a reward under other names."""

Verdicts = dict[str, list[Verdict | None]]


class Judge(Composite):
    """A composite that can start early, and remembers its last verdicts so that samples show why a reward was given."""

    last: Verdicts
    _started: tuple[Sequence[Any], Future[Verdicts]] | None = None
    _thread: ThreadPoolExecutor | None = None

    def start(self, batch: Batch) -> None:
        """Judge a batch in the background; `verdicts` for the same list of completions then waits for it."""
        self._thread = self._thread or ThreadPoolExecutor(1, "rewards")
        self._started = batch.completions, self._thread.submit(super().verdicts, batch)

    def verdicts(self, batch: Batch) -> Verdicts:
        """Every part's verdict on every row; see `Composite.verdicts`."""
        started, self._started = self._started, None
        if started is not None and started[0] is batch.completions:
            self.last = started[1].result()
        else:
            self.last = super().verdicts(batch)
        return self.last

    def close(self) -> None:
        """Stop the processes of all parts, and the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        super().close()


@dataclass(frozen=True, slots=True)
class Samples:
    """A few completions with their verdicts, every so many steps.

    Attributes:
        path: JSONL file that survives an interruption.
        every: steps between two looks.
        count: completions at each look.
    """

    path: Path
    every: int
    count: int

    def due(self, step: int) -> bool:
        """Whether completions sampled after this many optimizer steps are to be written."""
        return self.count > 0 and step % self.every == 0

    def rewind(self, step: int) -> None:
        """Forget what was sampled after a step that training goes back to, and a line that was not finished."""
        if self.path.exists():
            with self.path.open("rb") as source:
                rows = [row for row in map(whole_row, source) if row is not None]
            write_rows(self.path, (row for row in rows if row["step"] < step))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; all of a step at once."""
        with self.path.open("a", encoding="utf-8") as sink:
            sink.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def publish(self, folder: Path) -> None:
        """Copy them beside the model."""
        if self.path.exists():
            (folder / SAMPLES).write_bytes(self.path.read_bytes())


class GroupWatch:
    """Warns when too many groups teach nothing for too long, in a stage without alarms.

    Args:
        limit: share of dead groups; `None` where an alarm has its own (`health.dead_groups`).
    """

    def __init__(self, limit: float | None = DEAD_SHARE) -> None:
        self.limit = limit
        self.seen: list[Mapping[str, float]] = []

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take what a generation batch has logged of its groups."""
        self.seen = [*self.seen, metrics][-DEAD_STEPS:]
        if self.limit is None or len(self.seen) < DEAD_STEPS:
            return
        each, groups = [Shares.of([step]) for step in self.seen], Shares.of(self.seen)
        if all(step is not None and step.dead >= self.limit for step in each) and groups is not None:
            log.warning("%s in the last %d batches: %s", groups, DEAD_STEPS, groups.cause)
            self.seen = []
