"""The four trackers behind one small interface. Each continues its run where an earlier process has left it.

Nothing here catches an error of a tracker: the process ends with it, and the runner tells its last line.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.schema.track import PROJECT, Track

About = Mapping[str, Any]
"""What a run is: recipe, settings, lineage, versions. See `pipeline.tracking.mirror`."""

PARAM_CHARACTERS = 500
"""Longest value of a parameter that every MLflow store takes."""
_NOT_MLFLOW = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow's names must not have; `@` of `pass@1` is spelt out."""


class Tracker(Protocol):
    """One run of a tracker."""

    def log(self, stage: str, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Numbers of a stage at one of its steps.

        Args:
            stage: what the stage is called in this run.
            step: the stage's own.
            moment: when, in seconds since the epoch.
            values: name -> number; it may be infinite or not a number.
        """
        ...

    def note(self, stage: str, number: int, text: str) -> None:
        """Something that a stage has said: an alarm, or what was lost; `number` counts the stage's notes from 1."""
        ...

    def flush(self) -> None:
        """Have what was logged on its way to the disk or the server."""
        ...

    def close(self, finished: bool) -> None:
        """End it; `finished` says whether every stage of the recipe is."""
        ...


def open_tracker(spec: Track, folder: Path, name: str, key: str, about: About) -> Tracker:
    """Begin a run of a tracker, or go on with it.

    Args:
        spec: which.
        folder: for files of its own.
        name: what the run is called.
        key: 12 hexadecimal digits that are this run's for ever.
        about: what the run is.
    """
    kinds: dict[str, Callable[[Track, Path, str, str, About], Tracker]]
    kinds = {"wandb": Wandb, "trackio": Trackio, "tensorboard": TensorBoard, "mlflow": Mlflow}
    return kinds[spec.use](spec, folder, name, key, about)


class TensorBoard:
    """Event files in `track/tensorboard`, one for each time that the run was gone on with; TensorBoard joins them."""

    def __init__(self, spec: Track, folder: Path, name: str, key: str, about: About) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder / "tensorboard"))
        self._text("recipe", f"```yaml\n{about['recipe']}\n```")
        for part in ("lineage", "versions"):
            self._text(part, f"```json\n{json.dumps(about[part], indent=1)}\n```")

    def log(self, stage: str, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Scalars `stage/name`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=moment, step=step, summary=Summary(value=scalars)))

    def note(self, stage: str, number: int, text: str) -> None:
        """A text `stage/notes`."""
        self._text(f"{stage}/notes", text, number)

    def _text(self, tag: str, text: str, step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=tag, metadata=kind, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def flush(self) -> None:
        """Write to the disk."""
        self.writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; with `WANDB_MODE=offline` it lies in `track/wandb`, for `wandb sync`."""

    def __init__(self, spec: Track, folder: Path, name: str, key: str, about: About) -> None:
        import wandb

        self.run = wandb.init(
            project=spec.project or os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=key,
            resume="allow",
            dir=str(folder),
            config=dict(about),
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, x_disable_meta=True, x_disable_stats=True
            ),
        )
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Metrics `stage/name` over `stage/step`."""
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**{f"{stage}/{name}": value for name, value in values.items()}, f"{stage}/step": step})

    def note(self, stage: str, number: int, text: str) -> None:
        """An entry of the summary."""
        self.run.summary[f"{stage}/note-{number}"] = text

    def flush(self) -> None:
        """Nothing to do: another process has it already."""

    def close(self, finished: bool) -> None:
        """Upload what is left; a run that was interrupted is marked as failed until it goes on."""
        self.run.finish(exit_code=0 if finished else 1)


class Trackio:
    """A run of trackio: local, or in the space or on the server that the environment names."""

    def __init__(self, spec: Track, folder: Path, name: str, key: str, about: About) -> None:
        import trackio

        self.run = trackio.init(
            project=spec.project or PROJECT,
            name=f"{name}-{key[:6]}",
            config=dict(about),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, stage: str, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Metrics `stage/name` at the stage's step."""
        self.run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def note(self, stage: str, number: int, text: str) -> None:
        """An alert."""
        import trackio

        self.run.alert(f"{stage}: note {number}", text, level=trackio.AlertLevel.WARN, step=number)

    def flush(self) -> None:
        """Nothing to do: a thread of trackio's writes twice a second."""

    def close(self, finished: bool) -> None:
        """Write what is left."""
        self.run.finish()


class Mlflow:
    """A run of MLflow: at `MLFLOW_TRACKING_URI`, or in files in `track/mlflow`."""

    def __init__(self, spec: Track, folder: Path, name: str, key: str, about: About) -> None:
        if not (address := os.environ.get("MLFLOW_TRACKING_URI")):
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow 3 asks whoever wants files to say so
            address = (folder / "mlflow").absolute().as_uri()
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=address)
        wanted = spec.project or os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(wanted)
        experiment = self.client.create_experiment(wanted) if found is None else found.experiment_id
        known = self.client.search_runs([experiment], f"tags.`zero2r1.key` = '{key}'", max_results=1)
        if known:
            self.run = known[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            self.run = self.client.create_run(experiment, run_name=name, tags={"zero2r1.key": key}).info.run_id
            params = [Param(_mlflow(key), value[:PARAM_CHARACTERS]) for key, value in _flat(about["settings"])]
            for at in range(0, len(params), 100):  # the most of one request
                self.client.log_batch(self.run, params=params[at : at + 100])
        versions = [RunTag(f"version.{package}", version) for package, version in about["versions"].items()]
        self.client.log_batch(self.run, tags=versions)
        self.client.log_text(self.run, about["recipe"], "recipe.yaml")
        self.client.log_dict(self.run, about["lineage"], "lineage.json")

    def log(self, stage: str, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Metrics `stage/name`."""
        from mlflow.entities import Metric

        milliseconds = round(moment * 1000)
        metrics = [Metric(_mlflow(f"{stage}/{name}"), value, milliseconds, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def note(self, stage: str, number: int, text: str) -> None:
        """A text among the run's artifacts."""
        self.client.log_text(self.run, text, f"notes/{stage}-{number}.txt")

    def flush(self) -> None:
        """Nothing to do: each call has written."""

    def close(self, finished: bool) -> None:
        """Say whether the run is finished, or was interrupted."""
        self.client.set_terminated(self.run, status="FINISHED" if finished else "KILLED")


def _mlflow(name: str) -> str:
    """A name as MLflow allows it: `pass@1` is `pass_at_1`."""
    return _NOT_MLFLOW.sub("_", name.replace("@", "_at_"))


def _flat(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of some plain data: `stages.zero.trainer.learning_rate` -> text."""
    inner = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else None
    if inner is None:
        yield name, str(data)
        return
    for key, value in inner:
        yield from _flat(value, f"{name}.{key}" if name else str(key))
