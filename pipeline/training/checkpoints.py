"""Checkpoints that neither a `kill -9`, nor a power cut, nor a bad disk spoils, and the way back to the last good one.

The trainer writes `checkpoint-<step>` file by file. Once all lie on the disk, the mark is written, which lists them
with their sizes and hashes (`pipeline.files.durable`). A resumed stage takes the newest checkpoint that is as its mark
says. One without a mark was being written when the process ended, and one that differs from its mark is damaged: both
are told in a line and deleted. The two newest are kept, and an older one goes only when a younger one is complete.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.records.samples import SAMPLES
from pipeline.schema.reserved import KEEP_CHECKPOINTS

log = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MARK = "complete"
TRAINED = "trained"
"""In a stage's scratch folder: the trained model and its summary, until they are published; marked like checkpoints."""
BEST = "best"
"""In a stage's scratch folder: its best weights so far, as `checkpoint-<step>`; marked like checkpoints."""
KEEP_STATE = "keep-state"
"""Empty file in a stage's scratch folder: its last checkpoint is to be kept when it is published."""
JOURNALS = ("events.jsonl", SAMPLES)
"""Files beside the folder of checkpoints that grow as training goes on; each checkpoint has them as they were."""

Say = Callable[[str], None]


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of a checkpoint is written, as a record of all of them."""
    seal(checkpoint, checkpoint.parent.parent)


def seal(folder: Path, scratch: Path) -> None:
    """Mark a folder as complete, with the journals as they are now.

    Args:
        folder: a checkpoint, or the trained model; all of its files are written.
        scratch: the stage's scratch folder, where the journals are.
    """
    for journal in JOURNALS:
        if (grown := scratch / journal).is_file():
            shutil.copyfile(grown, folder / journal)
    durable.seal(folder, MARK)


def is_whole(folder: Path, context: StageContext[Any], accelerator: Any) -> bool:
    """Whether a folder that `seal` has marked is there as it was; then the journals are what they were, too.

    An incomplete one is deleted; a damaged one is reported. The processes agree, as in `resume`.
    """
    if accelerator.is_main_process and folder.exists():
        if faults := durable.damage_of(folder, MARK):
            if (folder / MARK).exists():
                line = f"{folder} is damaged ({durable.describe(faults)}): going back to what was before it"
                log.warning("%s", line)
                context.note(line)
            shutil.rmtree(folder)
        else:
            _restore_all(context.scratch, folder)
    accelerator.wait_for_everyone()
    return (folder / MARK).exists()


def rotate(folder: Path) -> None:
    """Delete the oldest checkpoints when a new one was marked complete; sizes decide which of them still count."""
    good: list[Path] = []
    for checkpoint in by_step(folder):
        if len(good) == KEEP_CHECKPOINTS:
            break
        if faults := durable.damage_of(checkpoint, MARK, contents=False):
            log.warning("%s is damaged (%s): an older one is kept in its place", checkpoint, durable.describe(faults))
        else:
            good.append(checkpoint)
    keep_only(folder, *good)


def resume(context: StageContext[Any], accelerator: Any) -> Path | None:
    """The checkpoint that a stage goes on from, the same for all its processes; `None`: it starts from its beginning.

    Journals become what they were when the checkpoint was written, as far as they are not.

    Args:
        context: the stage; what is found to be damaged is also told as an event of it.
        accelerator: knows the processes; the main one looks, and the others wait for it.
    """
    folder = context.checkpoints
    if accelerator.is_main_process:
        durable.make_folder(folder)
        found = newest(folder, context.note)
        step = -1 if found is None else step_of(found)
        for path in by_step(folder):
            if step_of(path) > step or not (path / MARK).exists():
                remove(path)
        if found is not None:
            _restore_all(context.scratch, found)
    accelerator.wait_for_everyone()
    return next((path for path in by_step(folder) if (path / MARK).exists()), None)


def newest(folder: Path, say: Say | None = None) -> Path | None:
    """The newest checkpoint that is as its mark says, if there is one; reads all of it.

    Args:
        folder: of the checkpoints.
        say: called with each damaged one that is younger; a warning is logged in any case.
    """
    damaged: list[str] = []
    found = None
    for checkpoint in by_step(folder):
        if not (checkpoint / MARK).exists():
            log.info("%s is incomplete: the stage ended while it was written", checkpoint)
        elif faults := durable.damage_of(checkpoint, MARK):
            damaged.append(f"{checkpoint} is damaged ({durable.describe(faults)})")
        else:
            found = checkpoint
            break
    if damaged:
        way = f"going back to {found.name}" if found else "no other is whole, so the stage starts from its beginning"
        line = f"{'; '.join(damaged)}: {way}"
        log.warning("%s", line)
        if say is not None:
            say(line)
    return found


def keep_only(folder: Path, *checkpoints: Path | None) -> None:
    """Delete every checkpoint but these: incomplete ones, and older ones that a kill may have left half-deleted."""
    for path in by_step(folder):
        if path not in checkpoints:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, if it is there; its mark first, since what is half deleted must not look whole."""
    (checkpoint / MARK).unlink(missing_ok=True)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))


def by_step(folder: Path) -> list[Path]:
    """The folders of checkpoints, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def _restore_all(scratch: Path, folder: Path) -> None:
    for journal in JOURNALS:
        _restore(scratch / journal, folder / journal)


def _restore(journal: Path, copy: Path) -> None:
    """Make sure that a journal begins as its copy does; samples that were taken later are taken again."""
    if not copy.is_file():
        return
    then = copy.read_bytes()
    now = journal.read_bytes() if journal.is_file() else b""
    if now.startswith(then) and (now == then or journal.name != SAMPLES):
        return
    if not now.startswith(then):
        log.warning("%s was damaged or cut: it is taken from %s", journal, copy.parent)
    with durable.writing(journal, encoding=None) as sink:
        sink.write(then)
