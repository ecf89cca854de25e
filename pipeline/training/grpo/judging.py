"""What becomes of rollouts before they are trained on: verdicts in the background, samples to read, a look at groups.

Verifiers work in pools of processes, so the trainer's process only waits for them. It starts them as soon as the
completions are there, goes on to the passes of the policy and the reference, and collects the verdicts when they are
needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.rows import whole_row, write_rows
from pipeline.samples import SAMPLES
from pipeline.schema.health import DEAD_SHARE
from rewards import Batch, Composite, Verdict

log = logging.getLogger(__name__)

DEAD_STEPS = 5
"""Generation batches in a row before it is said: one may be bad luck."""
TRL_COLUMNS = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of a row that TRL hands to a reward under other names."""

Verdicts = dict[str, list[Verdict | None]]


class Recorded(Composite):
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
    """Warns when too many groups teach nothing for too long.

    Args:
        group: rollouts a group.
    """

    def __init__(self, group: int) -> None:
        self.group = group
        self.shares: list[tuple[float, float]] = []

    def add(self, failed: float, solved: float) -> None:
        """Take the shares of a generation batch: every rollout failed; every one got the same reward above zero."""
        self.shares = [*self.shares, (failed, solved)][-DEAD_STEPS:]
        if len(self.shares) == DEAD_STEPS and min(map(sum, self.shares)) >= DEAD_SHARE:
            log.warning("%s", explain_dead_groups(self.shares, self.group))
            self.shares = []


def explain_dead_groups(shares: Sequence[tuple[float, float]], group: int) -> str:
    """Why groups teach nothing, in a sentence, and what to do about it.

    Args:
        shares: (all failed, all equal above zero) for each of the last generation batches.
        group: rollouts a group.
    """
    failed = sum(share for share, _ in shares) / len(shares)
    solved = sum(share for _, share in shares) / len(shares)
    text = f"{failed + solved:.0%} of the groups have no variance in their rewards, so they teach nothing: "
    if failed > 2 * solved:
        return text + (
            f"in {failed:.0%} every rollout failed. The problems are too hard, the completions are cut off"
            " (rollout.max_tokens), or the answers are not found (look at samples.jsonl)"
        )
    if solved > 2 * failed:
        return text + f"in {solved:.0%} every rollout got the same reward above zero. The problems are too easy"
    return text + f"groups of {group} are too small, or problems are either trivial or hopeless"
