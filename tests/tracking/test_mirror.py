"""What trackers have of a run, read back with the library's own reader: every step once, whatever happened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.schema.pieces import StageConfig
from pipeline.schema.track import TRACKERS, Track
from pipeline.tracking.mirror import FINAL, FOLDER, Progress, mirror

KEY = "a-key-that-must-stand-nowhere"
RECIPE = f"""name: small
stages:
  zero: {{kind: grpo, launch: {{env: {{OTHER: (not recorded)}}}}}}
  score: {{kind: evaluate, note: {KEY}}}
"""
Read = Callable[[Path], dict[str, dict[int, list[float]]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of two stages that have not begun."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "small"
    durable.make_folder(folder / FOLDER)
    record(folder, "a" * 64)
    return folder


def record(run: Path, fingerprint: str) -> None:
    stages = [
        {"name": "zero", "kind": "grpo", "fingerprint": fingerprint, "inputs": []},
        {"name": "score", "kind": "evaluate", "fingerprint": "b" * 64, "inputs": ["zero"]},
    ]
    artifacts.write_run_record(run, {"name": "small", "command": ["zero2r1", "run"], "stages": stages}, RECIPE)


def stage(run: Path, name: str = "zero", fingerprint: str = "a" * 64) -> StageContext[Any]:
    scratch = artifacts.scratch(run, name, fingerprint)
    scratch.mkdir(parents=True, exist_ok=True)
    return StageContext(
        name, StageConfig(kind="grpo"), {}, scratch / "output", scratch, run, 0, scratch / "events.jsonl"
    )


def publish(context: StageContext[Any], run: Path, fingerprint: str, metrics: dict[str, Any]) -> None:
    context.output.mkdir(exist_ok=True)
    (context.output / "events.jsonl").write_bytes(context.events.read_bytes() if context.events.exists() else b"")
    target = artifacts.folder(run, context.name, fingerprint)
    artifacts.publish(context.output, target, {"fingerprint": fingerprint, "metrics": metrics})


def pass_on(run: Path, tracker: str, *moments: Callable[[], object]) -> None:
    """Mirror a run, in which something happens between two looks at it."""
    left: Iterator[Callable[[], object]] = iter(moments)

    def ended() -> bool:
        if (moment := next(left, None)) is None:
            return True
        moment()
        return False

    mirror(run, Track(use=tracker), {KEY: "WANDB_API_KEY"}, ended)


def tensorboard(run: Path) -> dict[str, dict[int, list[float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / FOLDER / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    (recipe,) = {event.tensor_proto.string_val[0].decode() for event in found.Tensors("recipe")}
    assert "kind: grpo" in recipe and KEY not in recipe
    assert b"the loss is rising" in {event.tensor_proto.string_val[0] for event in found.Tensors("zero/notes")}
    scalars: dict[str, dict[int, list[float]]] = {}
    for tag in found.Tags()["scalars"]:
        for event in found.Scalars(tag):
            scalars.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return scalars


def mlflow(run: Path) -> dict[str, dict[int, list[float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run / FOLDER / "mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("zero2r1").experiment_id])
    assert found.info.run_name == "small" and found.data.params["stages.zero.kind"] == "grpo"
    assert {"version.torch", "version.trl"} <= found.data.tags.keys()
    lineage = json.loads(Path(client.download_artifacts(found.info.run_id, "lineage.json")).read_text())
    assert lineage["score"]["inputs"] == ["zero"]
    scalars: dict[str, dict[int, list[float]]] = {}
    for name in found.data.metrics:
        for entry in client.get_metric_history(found.info.run_id, name):
            scalars.setdefault(name.replace("_at_", "@"), {}).setdefault(entry.step, []).append(entry.value)
    return scalars


def wandb(run: Path) -> dict[str, dict[int, list[float]]]:
    from wandb.proto import wandb_internal_pb2

    scalars: dict[str, dict[int, list[float]]] = {}
    runs = set()
    for file in sorted((run / FOLDER / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            said = wandb_internal_pb2.Record.FromString(data)
            if said.HasField("run"):
                runs.add((said.run.run_id, said.run.display_name, said.run.project))
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in said.history.item}
            for name, value in items.items():
                if name[0] != "_" and not name.endswith("/step"):
                    step = next(int(n) for key, n in items.items() if key.endswith("/step"))
                    scalars.setdefault(name, {}).setdefault(step, []).append(float(json.loads(value)))
    ((_, name, project),) = runs
    assert (name, project) == ("small", "zero2r1")
    return scalars


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, which wandb's files have: blocks of 32 KiB, behind a header of 7 bytes.

    Each chunk has a checksum (4 bytes), a length (2) and a kind (1): whole, first, middle or last.
    """
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def trackio(run: Path) -> dict[str, dict[int, list[float]]]:
    from trackio.sqlite_storage import SQLiteStorage

    key = Progress(run / FOLDER / "trackio.json").key
    scalars: dict[str, dict[int, list[float]]] = {}
    for row in SQLiteStorage.get_logs("zero2r1", f"small-{key[:6]}"):
        for name, value in row.items():
            if "/" in name:
                scalars.setdefault(name, {}).setdefault(int(row["step"]), []).append(float(value))
    return scalars


def keep_trackio_here(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio's files in the folder of the run, and not in the home."""
    if name == "trackio":
        import trackio.sqlite_storage as storage
        import trackio.utils as utils

        for module in (storage, utils):
            monkeypatch.setattr(module, "TRACKIO_DIR", run / FOLDER / "trackio")


READERS: dict[str, Read] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb, "trackio": trackio}


@pytest.fixture(params=TRACKERS)
def name(request: pytest.FixtureRequest, run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of each tracker that is installed."""
    pytest.importorskip(request.param)
    keep_trackio_here(request.param, run, monkeypatch)
    return str(request.param)


def test_every_step_is_there_once_after_a_kill_and_a_run_that_went_on(name: str, run: Path) -> None:
    context = stage(run)

    def step(number: int, total: int = 6) -> None:
        context.log(number, total, loss=1.0 / number, **{"rewards/accuracy": number / 10})

    def cut() -> None:  # a kill in the middle of a line
        with context.events.open("a") as sink:
            sink.write('{"step": 5, "total": 6, "lo')

    pass_on(run, name, lambda: (step(1), step(2)), lambda: (step(3), context.note("the loss is rising")), cut)
    durable.whole_lines(context.events)  # as the runner does before a stage goes on, here from step 1
    pass_on(
        run,
        name,
        lambda: (step(2), step(3), step(4)),
        lambda: (context.log(5, 6, loss=math.inf), step(6)),
        lambda: publish(context, run, "a" * 64, {"loss": 0.2, "scores": {"m": {"t": {"pass@1": 0.5, "n": 4}}}}),
        lambda: publish(stage(run, "score", "b" * 64), run, "b" * 64, {"seconds": 2, "note": "no number"}),
    )
    pass_on(run, name)
    found = READERS[name](run)
    assert {step: len(values) for step, values in found["zero/loss"].items()} == dict.fromkeys(range(1, 7), 1)
    assert found["zero/loss"][5] == [math.inf] and found["zero/loss"][2] == [0.5]
    assert list(found["zero/rewards/accuracy"]) == [1, 2, 3, 4, 6]
    assert found[f"zero/{FINAL}/scores/m/t/pass@1"] == {6: [0.5]}
    assert list(found) == [*dict.fromkeys(found)] and found[f"score/{FINAL}/seconds"] == {0: [2.0]}
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_steps_that_a_rollback_gave_up_are_a_series_of_their_own(name: str, run: Path) -> None:
    """The stage goes back from step 4 to 2, and from 4 to 2 again, with a kill and a new mirror between."""
    context = stage(run)

    def steps(branch: float, *numbers: int) -> None:
        for number in numbers:
            context.log(number, 6, loss=branch + number)

    def alarm(rollback: int) -> None:
        for more in ("the loss is too high", "so is the gradient"):
            context.log(4, 6, note=more, alarm="loss", rollback_to=2, rollback=rollback)

    pass_on(
        run, name, lambda: (context.note("the loss is rising"), steps(0, 1, 2, 3, 4), alarm(1)), lambda: steps(0.25, 3)
    )
    pass_on(run, name, lambda: steps(0.25, 3, 4), lambda: (alarm(2), steps(0.5, 3, 4)))
    metrics = {"loss": 0.125, "rollbacks": 2}
    pass_on(run, name, lambda: steps(0.5, 5, 6), lambda: publish(context, run, "a" * 64, metrics))
    found = READERS[name](run)
    for series, branch, numbers in (
        ("", 0, (1, 2, 3, 4)),
        ("-rollback-1", 0.25, (3, 4)),
        ("-rollback-2", 0.5, (3, 4, 5, 6)),
    ):
        assert found[f"zero{series}/loss"] == {number: [branch + number] for number in numbers}
    assert found[f"zero/{FINAL}/loss"] == {6: [0.125]} and f"zero-rollback-2/{FINAL}/loss" not in found


def test_a_stage_that_runs_anew_with_other_settings_has_its_own_name(run: Path) -> None:
    pytest.importorskip("tensorboard")
    context = stage(run)
    pass_on(run, "tensorboard", lambda: context.log(1, 2, loss=1.0), lambda: context.note("the loss is rising"))
    record(run, "c" * 64)
    other = stage(run, fingerprint="c" * 64)
    pass_on(run, "tensorboard", lambda: other.log(1, 2, loss=3.0))
    found = tensorboard(run)
    assert found["zero/loss"] == {1: [1.0]} and found["zero-cccccc/loss"] == {1: [3.0]}


def test_words_beside_numbers_tell_them_apart(run: Path) -> None:
    pytest.importorskip("tensorboard")
    context = stage(run)
    context.note("the loss is rising")
    context.log(3, task="gsm8k/test", accuracy=0.25)
    context.log(3, task="countdown", accuracy=0.5)
    pass_on(run, "tensorboard")
    found = tensorboard(run)
    assert found["zero/gsm8k/test/accuracy"] == {3: [0.25]} and found["zero/countdown/accuracy"] == {3: [0.5]}


def test_a_damaged_record_of_what_a_tracker_has_had_is_named(run: Path) -> None:
    (run / FOLDER / "tensorboard.json").write_text("{")
    with pytest.raises(durable.DamageError, match=r"tensorboard\.json is empty or broken"):
        pass_on(run, "tensorboard")
