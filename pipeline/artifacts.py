"""What a stage leaves behind: atomic publication, manifests, lookup.

A run is a folder. `stages/<stage>/<fingerprint>/` is an artifact: the files of the stage and a `manifest.json` that
says how they came to be. `scratch/<stage>-<fingerprint>/` is a stage that is running or was interrupted. An artifact
appears by one rename of a complete folder, so nothing half-written is ever visible under `stages/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
"""In the run's folder: the recipe's name, file and stages (name, kind, fingerprint, inputs, after) and the command."""
SHORT = 12
"""Hexadecimal digits of a fingerprint in a folder's name: 48 bits, ample for one run."""


class RecordError(ValueError):
    """A run's record that is no record; the message names the file, and what mends it."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]


def folder(run: Path, stage: str, fingerprint: str) -> Path:
    """Where the artifact of a stage is, or will be."""
    return run / "stages" / stage / fingerprint[:SHORT]


def scratch(run: Path, stage: str, fingerprint: str) -> Path:
    """Where a stage works until it is finished."""
    return run / "scratch" / f"{stage}-{fingerprint[:SHORT]}"


def find(run: Path, stage: str, fingerprint: str) -> Artifact | None:
    """The artifact of a stage, if it is there and whole (every file in its manifest exists with its size)."""
    artifact = _read(folder(run, stage, fingerprint))
    return artifact if artifact is not None and artifact.manifest.get("fingerprint") == fingerprint else None


def latest(run: Path, stage: str) -> Artifact | None:
    """The artifact of a stage that was finished last, whatever its fingerprint."""
    found = [_read(path) for path in (run / "stages" / stage).glob("*") if path.is_dir()]
    return max((a for a in found if a is not None), key=lambda a: str(a.manifest.get("finished")), default=None)


def _read(path: Path) -> Artifact | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = all((path / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
    except FileNotFoundError as error:
        if path.exists():
            log.warning("%s is not a whole artifact (%s is missing): the stage will run again", path, error.filename)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a broken manifest brings
        log.warning("%s cannot be read (%s): the stage will run again", path / MANIFEST, error)
        return None
    if not whole:
        log.warning("%s was altered after it was published: the stage will run again", path)
    return Artifact(path, manifest) if whole else None


def publish(source: Path, target: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Turn a finished folder into an artifact: hash its files, write the manifest, sync, rename into place.

    Args:
        source: the complete folder, on the same file system as `target`.
        target: where the artifact will appear; a broken one there is replaced.
        manifest: everything but the files' hashes, which are added here.
    """
    files = {
        str(path.relative_to(source)): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(source.rglob("*"))
        if path.is_file() and path != source / MANIFEST
    }
    full = {**manifest, "files": files}
    with (source / MANIFEST).open("w", encoding="utf-8") as sink:
        json.dump(full, sink, indent=1, ensure_ascii=False)
        sink.flush()
        os.fsync(sink.fileno())
    for name in files:
        _sync(source / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    _sync(target.parent)
    return Artifact(target, full)


def record(run: Path) -> dict[str, Any]:
    """What a run is: the content of `RUN_RECORD`.

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: the file is empty, half written, or something else.
    """
    path = run / RUN_RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found, reason = None, str(error)
    else:
        reason = "it lists no stages"
    if not isinstance(found, dict) or not isinstance(found.get("stages"), list):
        mend = "run the recipe again, which writes it anew and keeps the stages that are finished"
        raise RecordError(f"{path} is empty or broken ({reason}): {mend}")
    return found


def current(run: Path) -> dict[str, Artifact | None]:
    """The stages of the recipe that ran here last, in order, each with its artifact (`None`: not finished).

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: see `record`.
    """
    return {stage["name"]: find(run, stage["name"], stage["fingerprint"]) for stage in record(run)["stages"]}


def verify(artifact: Artifact) -> list[str]:
    """The files whose content no longer has the hash in the manifest."""
    return [
        name
        for name, entry in artifact.manifest["files"].items()
        if not (artifact.path / name).is_file() or _sha256(artifact.path / name) != entry["sha256"]
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
