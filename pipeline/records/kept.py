"""What an alarm leaves under a run: the batches around it, the checkpoint before it, and where a stage goes back to.

    kept/step-000006/record.json                  what tripped, with everything that was logged; seals the folder
    kept/step-000006/batch-5.rank-0.safetensors   tensors of the batch of step 5
    kept/step-000006/batch-5.rank-0.jsonl         its rows as text, for people
    kept/checkpoint-4/                            the checkpoint before the symptom, which no rotation deletes
    rollbacks.json                                how often, and where to, a stage has gone back

They lie in a stage's scratch folder, and in `RUN/kept/STAGE-FINGERPRINT/` once it is published.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.files import durable

log = logging.getLogger(__name__)

KEPT = "kept"
RECORD = "record.json"
STEP = "step-"
CHECKPOINT = "checkpoint-"
ROLLBACKS = "rollbacks.json"
ROLLBACK = "rollback"
"""In the event of an alarm that takes its stage back: how often it has by then."""
HISTORY = 20
"""Lines of the log before an alarm that are kept with it."""
MOST = 3
"""Alarms of a stage whose batches are kept; later ones are only told."""


def folder(run: Path, stage: str, fingerprint: str) -> Path | None:
    """Where a stage's kept batches are; `None` where no alarm was raised."""
    scratch = artifacts.scratch(run, stage, fingerprint)
    found = (scratch / KEPT, run / KEPT / scratch.name)
    return next((path for path in found if any(path.glob(f"{STEP}*/{RECORD}"))), None)


def records(kept: Path) -> dict[int, dict[str, Any]]:
    """The records of alarms by step, the oldest first.

    Raises:
        DamageError: a record is not what was written.
    """
    paths = sorted(kept.glob(f"{STEP}*/{RECORD}"))
    return {int(path.parent.name.removeprefix(STEP)): durable.read_record(path) for path in paths}


def publish(scratch: Path, run: Path) -> None:
    """Move what was kept out of the scratch folder of a stage that is being published."""
    kept = scratch / KEPT
    if not any(kept.glob(f"{STEP}*/{RECORD}")):
        return
    target = run / KEPT / scratch.name
    durable.make_folder(target.parent)
    if target.exists():
        shutil.rmtree(target)
    durable.move(kept, target)


def rollbacks(scratch: Path) -> list[dict[str, Any]]:
    """The times that a stage has gone back, or is about to: step of the alarm, step it went to, alarm and reason."""
    try:
        found: list[dict[str, Any]] = durable.read_record(scratch / ROLLBACKS)["rollbacks"]
    except FileNotFoundError:
        return []
    return found


def pending(scratch: Path) -> int:
    """The number of the rollback that a stage has ended for and has not done yet; 0 if there is none."""
    try:
        entries = rollbacks(scratch)
    except durable.DamageError as error:
        log.warning("%s: the stage counts as failed", error)
        return 0
    return len(entries) if entries and not entries[-1]["done"] else 0


def write_rollbacks(scratch: Path, entries: list[dict[str, Any]]) -> None:
    """Record what a stage is to do when its next process begins."""
    durable.write_record(scratch / ROLLBACKS, {"rollbacks": entries})
