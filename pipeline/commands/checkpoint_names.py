"""Checkpoints of a stage by name, while it runs or after it was stopped: `runs/x@zero:step-200`, `:last`, `:best`.

A checkpoint is read in a folder of the reader's own, whose files are second names of the checkpoint's (hard links). The
stage is not disturbed, and what it deletes meanwhile stays there for the reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from pipeline import artifacts
from pipeline.conversion.checkpoints import OF_THE_TRAINER, to_model
from pipeline.files import durable, lease
from pipeline.files.locks import STAGE_LOCK, stage_lock
from pipeline.files.rows import whole_row
from pipeline.runner import longer
from pipeline.schema.reserved import KEEP_CHECKPOINTS
from pipeline.training import checkpoints
from pipeline.training.checkpoints import BEST, MARK

log = logging.getLogger(__name__)

STEP, LAST = "step-", "last"
VIEW = ".reading-"
"""Begins the names of readers' folders, in the run's."""
LINKED_BYTES = 2**20
"""Size from which on a file of a checkpoint is linked: larger than configs, and many tokenizers."""
ABANDONED_SECONDS = 60.0
"""Age from which on a reader's folder that nobody holds is deleted: its process was killed."""
FORGOTTEN_SECONDS = 7 * 24 * 3600.0
"""The same for a reader on another host, whose lock may not be seen from here."""


class NamedCheckpointError(LookupError):
    """A checkpoint that is not there, or is damaged; the message says which there are."""


@dataclass(frozen=True, slots=True)
class Named:
    """A checkpoint.

    Attributes:
        name: `step-200`, or `best`.
        folder: where it is.
    """

    name: str
    folder: Path

    @property
    def step(self) -> int:
        """After how many optimizer steps it was taken."""
        return checkpoints.step_of(self.folder)


def available(run: Path, entry: Mapping[str, Any]) -> dict[str, Named]:
    """The complete checkpoints of a stage by name, the newest first; `best` last, if its best weights are kept.

    Args:
        run: the run's folder.
        entry: the stage in the run's record.
    """
    scratch = _scratch(run, entry)
    found = {}
    for folder in checkpoints.by_step(scratch / "checkpoints"):
        if (folder / MARK).exists():
            name = f"{STEP}{checkpoints.step_of(folder)}"
            found[name] = Named(name, folder)
    for folder in checkpoints.by_step(scratch / BEST):
        if (folder / MARK).exists():
            return {**found, BEST: Named(BEST, folder)}
    return found


def _scratch(run: Path, entry: Mapping[str, Any]) -> Path:
    """The scratch folder of a stage, or what was kept of it."""
    scratch = artifacts.scratch(run, entry["name"], entry["fingerprint"])
    return scratch if scratch.is_dir() else longer.state(run, entry["name"], entry["fingerprint"])


def listed(found: Mapping[str, Named]) -> str:
    """Checkpoints in words."""
    return ", ".join(f"{name} (step {one.step})" if name == BEST else name for name, one in found.items())


def find(run: Path, entry: Mapping[str, Any], which: str) -> Named:
    """A checkpoint of a stage.

    Args:
        run, entry: see `available`.
        which: `step-200`, `last` or `best`.

    Raises:
        NamedCheckpointError: there is none of that name; says which there are.
    """
    found, stage = available(run, entry), f"{run}@{entry['name']}"
    steps = [name for name in found if name != BEST]
    name = steps[0] if which == LAST and steps else which
    if name in found:
        return found[name]
    if not found:
        raise NamedCheckpointError(f"{stage} has no checkpoint {which!r}: {_why_none(run, entry)}")
    more = f", and {LAST} is {steps[0]}" if steps else ""
    if which == BEST:
        more += f"; {BEST} needs `watch` and `keep: best`, and a look after the first step"
    told = f"A stage keeps the newest {KEEP_CHECKPOINTS}"
    raise NamedCheckpointError(f"{stage} has no checkpoint {which!r}. It has: {listed(found)}{more}. {told}")


def _why_none(run: Path, entry: Mapping[str, Any]) -> str:
    name, fingerprint = entry["name"], entry["fingerprint"]
    if artifacts.find(run, name, fingerprint) is not None:
        return f"it is finished, and its checkpoints went with its scratch folder; {run}@{name} is what it published"
    if artifacts.scratch(run, name, fingerprint).is_dir():
        return "none is complete yet; trainer.save_steps says how often one is written"
    return "it has not begun"


@contextlib.contextmanager
def opened(run: Path, entry: Mapping[str, Any], which: str) -> Iterator[Path]:
    """The model of a checkpoint as a Hugging Face folder, for as long as this lasts.

    Args:
        run, entry, which: see `find`.

    Raises:
        NamedCheckpointError: it is not there, was deleted while it was linked, is damaged, or holds no model.
    """
    _sweep(run)
    with _view(run) as view, stage_lock(view):
        named = find(run, entry, which)
        label = f"{entry['name']}:{STEP}{named.step}"
        folder = view / label / named.name  # as deep as an artifact is in its run
        with contextlib.suppress(FileNotFoundError, shutil.Error):
            _link(named.folder, folder / "checkpoint")
        if not (named.folder / MARK).exists():
            there = listed(available(run, entry)) or "none"
            raise NamedCheckpointError(
                f"{label} was deleted while it was opened, as newer ones came. There are: {there}"
            )
        _check(folder / "checkpoint", named)
        _arrange(folder, named)
        durable.seal(folder, artifacts.MANIFEST, **_manifest(run, entry, named))
        yield folder / "model"


def _arrange(folder: Path, named: Named) -> None:
    """Have the model of `checkpoint/` as `model/`, and an adapter as `adapter/`, as an artifact has them.

    Raises:
        NamedCheckpointError: it holds no model.
    """
    copy, model = folder / "checkpoint", folder / "model"
    if named.name == BEST:
        for part in copy.iterdir():
            part.rename(folder / part.name)
        return
    try:
        made = to_model(copy, model)
    except ValueError as error:
        raise NamedCheckpointError(f"{named.folder}: {error}") from error
    copy.rename(model if made == copy else folder / "adapter")


def _link(source: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns(*OF_THE_TRAINER)
    shutil.copytree(source, target, copy_function=_second_name, ignore=ignored)


def _second_name(source: str, target: str) -> None:
    """Link what is large; the rest is copied, since readers may change configs and tokenizers of theirs."""
    if Path(source).stat().st_size >= LINKED_BYTES:
        try:
            Path(target).hardlink_to(source)
            return
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            log.info("%s is copied: it cannot be linked", source)
    shutil.copyfile(source, target)


def _check(copy: Path, named: Named) -> None:
    """Compare what was linked with the mark of its checkpoint.

    Raises:
        NamedCheckpointError: a file is missing, or is not what was written.
    """
    try:
        files = durable.read_record(copy / MARK)["files"]
    except (FileNotFoundError, durable.DamageError) as error:
        raise NamedCheckpointError(f"{named.folder} is damaged: {error}") from error
    (copy / MARK).unlink()
    ignore = shutil.ignore_patterns(*OF_THE_TRAINER)
    wanted = {name: entry for name, entry in files.items() if not ignore("", list(Path(name).parts))}
    if faults := durable.damage(copy, wanted):
        raise NamedCheckpointError(f"{named.folder} is damaged: {durable.describe(faults)}")


def _manifest(run: Path, entry: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """What model cards and tables read of a stage, as far as it is known before it is finished."""
    job = artifacts.scratch(run, entry["name"], entry["fingerprint"]) / "job.json"
    done = artifacts.find(run, entry["name"], entry["fingerprint"])
    said = done.manifest if done is not None else whole_row(job.read_bytes()) if job.is_file() else None
    fingerprints = {stage["name"]: stage["fingerprint"] for stage in artifacts.record(run)["stages"]}
    return {
        "stage": f"{entry['name']}:{STEP}{named.step}",
        "kind": entry["kind"],
        "fingerprint": entry["fingerprint"],
        "config": dict((said or {}).get("config") or {}),
        "inputs": {name: fingerprints[name] for name in entry["inputs"] if name in fingerprints},
        "metrics": {"step": named.step},
    }


@contextlib.contextmanager
def _view(run: Path) -> Iterator[Path]:
    """A folder of the reader's own: in the run, where links can be made, or elsewhere if that is not to be written."""
    try:
        view = Path(mkdtemp(prefix=f"{VIEW}{_host()}-", dir=run))
    except OSError:
        with TemporaryDirectory(prefix=VIEW) as folder:
            yield Path(folder)
        return
    try:
        yield view
    finally:
        shutil.rmtree(view, ignore_errors=True)


def _host() -> str:
    return durable.file_name(lease.this_host().boot)[:12]


def _sweep(run: Path) -> None:
    """Delete the folders of readers that were killed."""
    for view in run.glob(f"{VIEW}*"):
        lock, own = view / STAGE_LOCK, view.name.startswith(f"{VIEW}{_host()}-")
        with contextlib.suppress(OSError):
            if time.time() - view.stat().st_mtime < (ABANDONED_SECONDS if own else FORGOTTEN_SECONDS):
                continue
            with lock.open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(view)
