"""Longer training goes on from what is there: with `max_steps` raised, from the state that a shorter stage has left.

A stage that was stopped has left its scratch folder, and one that is published the trainer's last state, in `states/`
of the run, if it was kept. If nothing but the length differs, and where the steps do not depend on the length
(`pipeline.schema.longer`), that folder becomes the scratch folder of the longer stage.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.files import durable
from pipeline.records.kept import ROLLBACKS
from pipeline.records.samples import SAMPLES
from pipeline.schema.longer import LENGTH, why_anew
from pipeline.schema.pieces import StageConfig, TrainingConfig
from pipeline.training import checkpoints
from pipeline.training.checkpoints import BEST, KEEP_STATE, MARK, TRAINED

STATES = "states"
"""In the run's folder: what is kept of the scratch folders of stages that are published."""
IDENTITY = "identity.json"
"""In a scratch folder: what the stage's fingerprint was made from."""
EVENTS = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Shorter:
    """What a stage that differs in its length alone has left.

    Attributes:
        folder: its scratch folder, or what was kept of it; `None` if it is published and nothing was.
        step: of its newest checkpoint; 0 if it has none.
        change: what differs, in words; empty if nothing does, as what the stage has published is gone or broken.
        anew: why the stage starts from its beginning all the same; `None` if it goes on.
    """

    folder: Path | None
    step: int
    change: str
    anew: str | None

    def __str__(self) -> str:
        """For a plan."""
        more = f"goes on from step {self.step}" if self.anew is None else f"starts anew: {self.anew}"
        return f"{self.change or 'what it published is gone or broken'}; {more}"


def find(run: Path, name: str, config: StageConfig, identity: Mapping[str, Any]) -> Shorter | None:
    """What there is to go on from, the longest first; `None` if no other stage differs in its length alone.

    Args:
        run: the run's folder.
        name, config, identity: the stage's; see `pipeline.runner.graph.Node`.
    """
    if not isinstance(config, TrainingConfig):
        return None
    now, found = _plain(identity), list[Shorter]()
    for folder, other in _others(run, name):
        if _of_any_length(other) != _of_any_length(now):
            continue
        before, step = other["config"].get("trainer", {}), 0 if folder is None else _newest(folder)
        fields = {field: (before.get(field), now["config"].get("trainer", {}).get(field)) for field in LENGTH}
        change = ", ".join(f"trainer.{field} {old} → {new}" for field, (old, new) in fields.items() if old != new)
        lost = "no complete checkpoint is left" if folder else "the trainer's state was not kept (keep_state: true)"
        found.append(Shorter(folder, step, change, why_anew(config, before, step) or (None if step else lost)))
    return max(found, key=lambda one: (one.anew is None, one.step), default=None)


def take_over(shorter: Shorter, scratch: Path) -> None:
    """Make what a shorter stage has left the scratch folder of a longer one."""
    assert shorter.folder is not None
    for name in (TRAINED, "output"):
        shutil.rmtree(shorter.folder / name, ignore_errors=True)
    for name in (KEEP_STATE, IDENTITY):
        (shorter.folder / name).unlink(missing_ok=True)
    if not shorter.change:  # it was kept, and there may be no step left that would ask for that again
        (shorter.folder / KEEP_STATE).touch()
    durable.make_folder(scratch.parent)
    durable.move(shorter.folder, scratch)


def remember(scratch: Path, identity: Mapping[str, Any]) -> None:
    """Write down whose scratch folder this is."""
    durable.write_record(scratch / IDENTITY, {"identity": identity})


def keep(run: Path, stage: str, fingerprint: str) -> None:
    """Keep what a longer training needs of a stage's scratch folder, if it asks for that; one state a stage is kept."""
    scratch = artifacts.scratch(run, stage, fingerprint)
    if not (scratch / KEEP_STATE).exists():
        return
    for other in _folders(run / STATES, stage):
        shutil.rmtree(other)
    newest = next(iter(checkpoints.by_step(scratch / "checkpoints")), None)
    checkpoints.keep_only(scratch / "checkpoints", newest)
    for path in scratch.iterdir():
        if path.name not in ("checkpoints", BEST, EVENTS, SAMPLES, IDENTITY, ROLLBACKS):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    durable.make_folder(run / STATES)
    durable.move(scratch, run / STATES / scratch.name)


def state(run: Path, stage: str, fingerprint: str) -> Path:
    """Where what is kept of a published stage's scratch folder is, or would be."""
    return run / STATES / artifacts.scratch(run, stage, fingerprint).name


def _others(run: Path, stage: str) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """What stages of this name have left, with what their fingerprints were made from."""
    seen = set()
    for place in (run / "scratch", run / STATES):
        for folder in _folders(place, stage):
            with contextlib.suppress(FileNotFoundError, durable.DamageError):
                seen.add(folder.name)
                yield folder, durable.read_record(folder / IDENTITY)["identity"]
    for folder in (run / "stages" / stage).glob("[!.]*"):
        if f"{stage}-{folder.name}" not in seen:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, durable.DamageError):
                said = durable.read_record(folder / artifacts.MANIFEST, hash_required=False)
                if isinstance(said.get("identity"), dict):
                    yield None, said["identity"]


def _folders(place: Path, stage: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(stage)}-[0-9a-f]{{{artifacts.SHORT}}}")
    return [path for path in sorted(place.glob(f"{stage}-*")) if pattern.fullmatch(path.name)]


def _newest(folder: Path) -> int:
    """The step of the newest complete checkpoint in a scratch folder; 0 if there is none."""
    found = (path for path in checkpoints.by_step(folder / "checkpoints") if (path / MARK).exists())
    return next(map(checkpoints.step_of, found), 0)


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As a record has it."""
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _of_any_length(identity: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(identity.get("config", {}))
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name not in LENGTH}
    return {**identity, "config": {**config, "trainer": trainer}}
