"""What a stage runs with, and what it leaves behind besides files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.files.adapter_folders import is_adapter, merged_path
from pipeline.schema.pieces import RolloutSpec, StageConfig
from pipeline.schema.task import TaskSpec
from rewards.registry import located

C = TypeVar("C", bound=StageConfig)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a stage leaves behind besides the files in `context.output`.

    Attributes:
        metrics: numbers (and short strings or nested mappings) for the manifest, the table and the report.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """How long a stage has done what it is for: trained and sampled, rather than started, loaded and saved.

    Attributes:
        seconds: so far.
    """

    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """So many more."""
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a stage's sampling this process does, where hosts of a cluster share it.

    Attributes:
        number: of this host, from 0; what the first one leaves is published.
        hosts: how many there are.
    """

    number: int = 0
    hosts: int = 1


@dataclass(frozen=True)
class StageContext(Generic[C]):
    """What a stage runs with.

    Attributes:
        name: the stage's name in the recipe.
        config: its config, resolved.
        inputs: stage name -> folder of the published artifact.
        output: folder to fill: `model/`, `data.jsonl`, or anything else. Empty when the stage starts, also on resume.
        scratch: folder that survives an interruption: checkpoints go here.
        base: folder of the recipe file, against which relative paths are read.
        seed: the seed to use.
        events: file that progress and metrics are appended to.
        tasks: the recipe's `tasks:` definitions, for resolving names.
        evaluated: the tasks that the recipe's `evaluate` stages score: what no stage is to learn.
        work: how long it has trained or sampled.
        share: which part of the sampling is this process's.
    """

    name: str
    config: C
    inputs: Mapping[str, Path]
    output: Path
    scratch: Path
    base: Path
    seed: int
    events: Path
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluated: Sequence[TaskSpec] = ()
    work: Work = field(default_factory=Work)
    share: Share = Share()

    def model_path(self, ref: str) -> str:
        """What to give to `from_pretrained`: the folder behind `@stage`, a local folder, or the hub id as it is.

        For a folder that holds an adapter alone it is that of base and adapter merged, which is there while a stage
        runs (see `pipeline.stages.registry`).
        """
        folder = self.model_folder(ref)
        if folder is None:
            return ref
        return str(merged_path(folder, self.scratch) if is_adapter(folder) else folder)

    def model_folder(self, ref: str) -> Path | None:
        """The folder behind `@stage` or a path, whatever it holds; `None` for a hub id."""
        if ref.startswith("@"):
            return self.inputs[ref[1:]] / "model"
        local = located(ref, self.base)
        return local.resolve() if local.exists() else None

    def rollout(self, spec: RolloutSpec) -> RolloutSpec:
        """The same with the path of the draft model, if there is one, in place of `@stage`."""
        if spec.speculative is None or spec.speculative.draft is None:
            return spec
        found = spec.speculative.model_copy(update={"draft": self.model_path(spec.speculative.draft)})
        return spec.model_copy(update={"speculative": found})

    def data_path(self, ref: str) -> Path:
        """The JSONL file behind `@stage` or a path."""
        if ref.startswith("@"):
            return self.inputs[ref[1:]] / "data.jsonl"
        return located(ref, self.base).resolve()

    def resolved(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options in which every `@stage` is the path of what that stage published, and every relative path absolute.

        A path is what has a slash and exists beside the recipe, and what is named as `file.py:object`.
        """
        return {name: self._resolved(value) for name, value in options.items()}

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.resolved(value)
        if isinstance(value, list):
            return [self._resolved(item) for item in value]
        if isinstance(value, str) and value.startswith("@"):
            folder = self.inputs[value[1:]]
            return str(folder / "model" if (folder / "model").is_dir() else folder / "data.jsonl")
        if isinstance(value, str) and "/" in value and exists(local := located(value, self.base)):
            return str(local.resolve())
        if isinstance(value, str) and ".py:" in value:
            file, _, name = value.rpartition(":")
            return f"{local.resolve()}:{name}" if exists(local := located(file, self.base)) else value
        return value

    @property
    def checkpoints(self) -> Path:
        """Folder for trainer checkpoints; what is in it when the stage starts is what it resumes from."""
        return self.scratch / "checkpoints"

    @property
    def examples(self) -> Path:
        """Folder for what is tokenised once and read by all processes and attempts."""
        return self.scratch / "examples"

    @property
    def unnamed_examples(self) -> Path:
        """File for these while they are made."""
        return self.scratch / "examples.arrow"

    def note(self, text: str) -> None:
        """Say something that whoever watches the run must see: what was lost, and what is done about it."""
        self.log(0, note=text)

    def log(self, step: int, total: int | None = None, **metrics: float | int | str) -> None:
        """Report progress and live metrics: one JSON line that the runner shows and the report plots.

        A number that is not finite, which JSON does not know, is written as the text `nan`, `inf` or `-inf`.
        """
        line = json.dumps({"step": step, "total": total, "time": round(time.time(), 3), **in_json(metrics)})
        with self.events.open("a", encoding="utf-8") as sink:
            sink.write(line + "\n")


def in_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with numbers that JSON does not know as the texts `nan`, `inf` and `-inf`."""
    return {n: str(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; not an error for text that could be no path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a zero byte
        return False
