"""Checkpoints that a `kill -9` cannot spoil: one counts only once its completeness mark is written.

The trainer writes `checkpoint-<step>` file by file. A process killed in the middle leaves a folder that looks like a
checkpoint and is none, so the mark is written last, and whatever lacks it is deleted on resume.
"""

from __future__ import annotations

import shutil
from pathlib import Path

PREFIX = "checkpoint-"
MARK = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of a checkpoint is written."""
    (checkpoint / MARK).touch()


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder, if there is one."""
    complete = [path for path in folder.glob(f"{PREFIX}*") if (path / MARK).is_file()]
    return max(complete, key=step_of, default=None)


def keep_only(folder: Path, checkpoint: Path | None) -> None:
    """Delete every checkpoint but one: incomplete ones, and older ones that a kill may have left half-deleted."""
    for path in folder.glob(f"{PREFIX}*"):
        if path != checkpoint:
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))
