"""Reads a run folder: what the recipe wanted, what each stage left behind, and what is still missing.

Nothing here assumes that the run went well. A stage may be unfinished, of a kind nobody knows, or have left broken
lines behind.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import artifacts
from pipeline.files import durable, source
from pipeline.files.rows import whole_row
from pipeline.report.text import finite
from pipeline.schema.environment import names_only
from pipeline.schema.health import Health

SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
log = logging.getLogger(__name__)

SHOWN = frozenset({"events.jsonl", "samples.jsonl"})
"""Files of a stage that the report shows parts of."""
LOG_TAIL = 40  # lines of an unfinished stage's log: enough for one traceback


class State(StrEnum):
    """How far a stage got."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    """It is running now, failed, or was interrupted."""
    WAITING = "waiting"
    """It has not begun."""


@dataclass(frozen=True, slots=True)
class Store:
    """Files of samples beside a report (`pipeline.report.store`).

    Attributes:
        index: name of the one that lists them; empty where there are no samples.
        count: samples.
    """

    index: str
    count: int


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        name, kind: as the recipe says.
        inputs: names of the stages whose products it uses.
        config: its resolved config; as the recipe says, where it has not begun.
        state: how far it got.
        folder: the artifact, or the scratch folder of an unfinished stage.
        manifest: the artifact's manifest; empty unless the stage is finished.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    config: Mapping[str, Any]
    state: State = State.WAITING
    folder: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the stage measured; empty unless it is finished."""
        return mapping(self.manifest.get("metrics"))

    @property
    def seconds(self) -> float | None:
        """Wall time that it took."""
        return finite(self.manifest.get("seconds"))

    @property
    def started(self) -> float | None:
        """When it began, in seconds since 1970."""
        return _epoch(self.manifest.get("started"))

    @property
    def finished(self) -> float | None:
        """When it ended, in seconds since 1970."""
        return _epoch(self.manifest.get("finished"))

    @property
    def parent(self) -> str | None:
        """The stage whose model this one goes on from, or evaluates."""
        ref = self.config.get("model")
        return ref[1:] if isinstance(ref, str) and ref.startswith("@") else None


@dataclass(frozen=True)
class Run:
    """A run, as its folder shows it.

    Attributes:
        path: the folder.
        name, description: the recipe's.
        stages: name -> stage, each after those that it uses, otherwise in the recipe's order.
        recipe: the recipe with overrides applied.
        record: what the runner wrote down about the run.
        samples: the files of all its samples beside its report, once they are written.
    """

    path: Path
    name: str
    description: str
    stages: Mapping[str, Stage]
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    samples: Store = Store("", 0)

    def root(self, name: str) -> str:
        """The first model of the line that a stage belongs to; the stage itself if it starts one."""
        seen = {name}
        while (parent := self.stages[name].parent) in self.stages and parent is not None and parent not in seen:
            seen.add(parent)
            name = parent
        return name


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        FileNotFoundError: the folder holds no run.
        RecordError: its record or its recipe is broken; see `artifacts.recipe_file`.
    """
    record = artifacts.record(path)
    file = artifacts.recipe_file(path)
    try:
        recipe = {} if file is None else names_only(mapping(source.read(file).data))
    except source.RecipeError as error:
        raise artifacts.RecordError(f"{error}: {artifacts.MEND_RECORD}") from error
    configs = mapping(recipe.get("stages"))
    stages = {entry["name"]: _stage(path, entry, mapping(configs.get(entry["name"]))) for entry in record["stages"]}
    return Run(path, record["name"], str(record.get("description") or ""), in_order(stages), recipe, record)


def in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Each stage after its inputs; among those that could come next, the recipe's order decides."""
    left, ordered = dict(stages), dict[str, Stage]()
    while left:
        ready = (name for name, stage in left.items() if not any(i in left and i != name for i in stage.inputs))
        name = next(ready, next(iter(left)))
        ordered[name] = left.pop(name)
    return ordered


def _stage(path: Path, entry: Mapping[str, Any], config: Mapping[str, Any]) -> Stage:
    name, kind, inputs = entry["name"], entry["kind"], tuple(entry["inputs"])
    artifact = artifacts.find(path, name, entry["fingerprint"])
    if artifact is not None:
        if faults := durable.damage(artifact.path, {f: e for f, e in artifact.manifest["files"].items() if f in SHOWN}):
            log.warning("%s: %s; it is shown as it is", artifact.path, durable.describe(faults))
        resolved = names_only(mapping(artifact.manifest.get("config")))
        return Stage(name, kind, inputs, resolved, State.FINISHED, artifact.path, artifact.manifest)
    scratch = artifacts.scratch(path, name, entry["fingerprint"])
    if not scratch.is_dir():
        return Stage(name, kind, inputs, config)
    job = scratch / "job.json"
    resolved = names_only(mapping(mapping(whole_row(job.read_bytes())).get("config"))) if job.is_file() else {}
    return Stage(name, kind, inputs, resolved or config, State.UNFINISHED, scratch)


def events(stage: Stage) -> list[dict[str, Any]]:
    """The progress lines of a stage, one a step (a resumed stage repeats some: the later line counts)."""
    by_step: dict[float, dict[str, Any]] = {}
    for line in rows(stage, "events.jsonl"):
        step = finite(line.get("step"))
        if step is not None and "note" not in line:
            by_step[step] = by_step.get(step, {}) | line
    return [by_step[step] for step in sorted(by_step)]


def notes(stage: Stage) -> list[str]:
    """What a stage has said while it ran, such as alarms; each once."""
    return list(dict.fromkeys(str(line["note"]) for line in rows(stage, "events.jsonl") if line.get("note")))


def rows(stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    """The objects in a stage's JSONL file; broken lines are passed over, a missing file has no rows."""
    for _, row in rows_with_offsets(stage, name):
        yield row


def rows_with_offsets(stage: Stage, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `rows`, each with its byte offset in the file, for `row_at`."""
    path = data_file(stage, name)
    if path is None:
        return
    with path.open("rb") as source:
        offset = 0
        for line in source:
            row = whole_row(line)
            if row is not None:
                yield offset, row
            offset += len(line)


def row_at(path: Path, offset: int) -> dict[str, Any]:
    """The object at a byte offset that `rows_with_offsets` gave."""
    with path.open("rb") as source:
        source.seek(offset)
        return whole_row(source.readline()) or {}


def data_file(stage: Stage, name: str) -> Path | None:
    """A file of the stage: published, or in the scratch folder of an unfinished one."""
    if stage.folder is None:
        return None
    return next((p for p in (stage.folder / name, stage.folder / "output" / name) if p.is_file()), None)


def log_tail(stage: Stage) -> str:
    """The last lines of the stage's log."""
    path = data_file(stage, "log.txt")
    if path is None:
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:])


def parameters(stage: Stage) -> int | None:
    """How many parameters the published model has: from the metrics, else from the headers of its weight files."""
    known = next((value for key in ("parameters", "params") if (value := finite(stage.metrics.get(key)))), None)
    if known is not None:
        return int(known)
    files = sorted((stage.folder / "model").glob("*.safetensors")) if stage.folder else []
    return sum(_parameters_in(path) for path in files) or None


def _parameters_in(path: Path) -> int:
    """The header of a safetensors file: 8 bytes of length, then JSON of name -> {dtype, shape, data_offsets}."""
    with path.open("rb") as source:
        head = source.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        header = whole_row(source.read(length)) if 0 < length <= SAFETENSORS_HEADER_LIMIT else None
    shapes = [mapping(entry).get("shape") for name, entry in (header or {}).items() if name != "__metadata__"]
    return sum(math.prod(int(edge) for edge in shape) for shape in shapes if isinstance(shape, list))


def health_of(stage: Stage) -> Health:
    """The thresholds of a stage's alarms; the usual ones where it has none."""
    try:
        return Health.model_validate(stage.config.get("health") or {})
    except ValidationError:  # of an older version, or a recipe that was never checked
        return Health()


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _epoch(value: object) -> float | None:
    """A time stamp in ISO format (UTC if it names no zone), as seconds since 1970."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
