"""What a stage leaves behind: atomic publication, manifests, lookup.

A run is a folder. `stages/<stage>/<fingerprint>/` is an artifact: the files of the stage and a `manifest.json` that
says how they came to be. `scratch/<stage>-<fingerprint>/` is a stage that is running or was interrupted. An artifact
appears by one rename of a complete folder, so nothing half-written is ever visible under `stages/`.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import durable

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
"""In the run's folder: the recipe's name, file and stages (name, kind, fingerprint, inputs, after) and the command."""
RUN_RECIPE = "recipe.yaml"
"""In the run's folder: the recipe, with overrides and defaults applied."""
SHORT = 12
"""Hexadecimal digits of a fingerprint in a folder's name: 48 bits, ample for one run."""

STAGE_FIELDS = frozenset({"name", "kind", "fingerprint"})
"""What a run's record says of each stage at least."""
MEND_RECORD = "run the recipe again, which writes it anew and keeps the stages that are finished"


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
    found = [_read(path) for path in (run / "stages" / stage).glob("[!.]*") if path.is_dir()]
    return max((a for a in found if a is not None), key=lambda a: str(a.manifest.get("finished")), default=None)


def _read(path: Path) -> Artifact | None:
    try:
        manifest = durable.read_record(path / MANIFEST, hash_required=False)
        faults = durable.damage(path, manifest["files"], contents=False)
    except FileNotFoundError as error:
        if path.exists():
            log.warning("%s is not a complete artifact (%s is missing): the stage will run again", path, error.filename)
        return None
    except durable.DamageError as error:
        log.warning("%s: the stage will run again", error)
        return None
    except (OSError, KeyError, TypeError, AttributeError) as error:  # whatever a broken manifest brings
        log.warning("%s cannot be read (%s): the stage will run again", path / MANIFEST, error)
        return None
    if faults:
        log.warning(
            "%s was altered after it was published (%s): the stage will run again", path, durable.describe(faults)
        )
        return None
    return Artifact(path, manifest)


def publish(
    source: Path, target: Path, manifest: Mapping[str, Any], allowed: Callable[[], None] = lambda: None
) -> Artifact:
    """Turn a finished folder into an artifact: hash its files, write the manifest, sync, rename into place.

    Args:
        source: the complete folder; on another file system than `target` it is copied.
        target: where the artifact will appear; a broken one there is replaced.
        manifest: everything but the files' hashes, which are added here.
        allowed: asked last of all, when all is hashed; raises if nothing may appear any more.
    """
    follow_umask(source)
    durable.seal(source, MANIFEST, **manifest)
    durable.make_folder(target.parent)
    allowed()
    if target.exists():
        shutil.rmtree(target)
    durable.move(source, target)
    return Artifact(target, durable.read_record(target / MANIFEST))


def follow_umask(folder: Path) -> None:
    """Let everybody read what the umask lets them read: safetensors, and whatever makes temporary files, says 0600."""
    probe = folder / ".umask"
    probe.touch()
    allowed = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | allowed | ((allowed & 0o444) >> 2 if path.is_dir() else 0)
        if wanted != mode:
            path.chmod(wanted)


def clean(run: Path, stage: str, artifact: Artifact) -> None:
    """Remove what a kill left behind between the publication of an artifact and the removal of its scratch folder."""
    shutil.rmtree(scratch(run, stage, str(artifact.manifest["fingerprint"])), ignore_errors=True)
    for copy in artifact.path.parent.glob(".*.part"):
        shutil.rmtree(copy, ignore_errors=True)


def record(run: Path) -> dict[str, Any]:
    """What a run is: the content of `RUN_RECORD`.

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: the file is empty, half written, altered, or something else.
    """
    path = run / RUN_RECORD
    if run.is_file():  # whose children are no missing files to the system, but an error of their own
        raise FileNotFoundError(path)
    try:
        found = durable.read_record(path, hash_required=False)
        if not isinstance(found.get("stages"), list):
            raise durable.DamageError(path, "is empty or broken (it lists no stages)")
        for number, stage in enumerate(found["stages"], 1):
            if not isinstance(stage, dict) or not stage.keys() >= STAGE_FIELDS:
                needed = ", ".join(sorted(STAGE_FIELDS))
                raise durable.DamageError(path, f"is empty or broken (stage {number} has not all of {needed})")
    except durable.DamageError as error:
        raise RecordError(f"{error}: {MEND_RECORD}") from error
    return found


def no_run(path: str, suffix: str = "") -> str:
    """What is said of a folder that is no run: the one that may be meant, or those that are here.

    Args:
        path: the folder.
        suffix: what a user wrote after it, such as `@zero`.
    """
    lacks = f"{path} is not the folder of a run (it has no {RUN_RECORD})"
    said = lacks if Path(path).exists() else f"there is no run {path}"
    names = {Path(run).name: run for run in _runs()}
    alike = next(iter(difflib.get_close_matches(Path(path).name, names, 1, 0.8)), None)
    return f"{said}. {runs_here()}" if alike is None else f"{said}: did you mean {names[alike]}{suffix}?"


def runs_here() -> str:
    """The runs in the current folder and in its `runs`, in words."""
    return f"Runs here: {', '.join(_runs()) or 'none'}"


def _runs() -> list[str]:
    return sorted(str(found.parent) for pattern in ("*", "runs/*") for found in Path().glob(f"{pattern}/{RUN_RECORD}"))


def recipe_file(run: Path) -> Path | None:
    """The recipe as it ran, if it was kept.

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: it is not what was written, or see `record`.
    """
    if faults := durable.damage(run, record(run).get("files", {})):
        raise RecordError(f"{run / RUN_RECIPE} {faults[RUN_RECIPE]}: {MEND_RECORD}")
    path = run / RUN_RECIPE
    return path if path.is_file() else None


def write_run_record(run: Path, content: Mapping[str, Any], recipe: str) -> None:
    """Write down what a run is, and its recipe beside it; `record` reads it."""
    durable.write(run / RUN_RECIPE, recipe)
    files = {RUN_RECIPE: {"sha256": durable.sha256(run / RUN_RECIPE), "bytes": (run / RUN_RECIPE).stat().st_size}}
    durable.write_record(run / RUN_RECORD, {**content, "files": files})


def current(run: Path) -> dict[str, Artifact | None]:
    """The stages of the recipe that ran here last, in order, each with its artifact (`None`: not finished).

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: see `record`.
    """
    return {stage["name"]: find(run, stage["name"], stage["fingerprint"]) for stage in record(run)["stages"]}


def damage(artifact: Artifact, under: str = "") -> dict[str, str]:
    """The files that are not as they were published: name -> fault, in words. Reads all of them.

    Args:
        artifact: a published one.
        under: only files whose names begin with this, such as `model/`.
    """
    files = {name: entry for name, entry in artifact.manifest["files"].items() if name.startswith(under)}
    return durable.damage(artifact.path, files)


def verify(artifact: Artifact) -> list[str]:
    """The files that are not as they were published; see `damage`."""
    return list(damage(artifact))
