"""The runner's side: a tracker that fails is told once, stops nothing, and the others get everything."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.checks import needs
from pipeline.recipe import Recipe, RecipeError, load
from pipeline.runner import recording
from pipeline.runner.graph import build
from pipeline.tracking import mirrors
from pipeline.tracking.mirror import FOLDER
from pipeline.tracking.mirrors import Mirrors

STAGES = """name: small
stages:
  zero: {kind: import_model, model: some/model, launch: {env: {TOKEN: in-the-recipe}}}
"""
SECONDS = 60.0


class Told:
    """What an observer is told of the run as a whole."""

    def __init__(self) -> None:
        self.said_: list[str] = []

    def said(self, text: str) -> None:
        self.said_.append(text)


def written(folder: Path, track: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(f"{STAGES}track: {track}\n")
    return load(path)


def test_one_that_fails_is_told_once_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    recipe, run, told = written(tmp_path, "[wandb, tensorboard]"), tmp_path / "runs" / "small", Told()
    run.mkdir(parents=True)
    nodes = build(recipe)
    recording.record(recipe, nodes, run, {})
    scratch = artifacts.scratch(run, "zero", nodes["zero"].fingerprint)
    scratch.mkdir(parents=True)
    events = scratch / "events.jsonl"
    events.write_text("")
    followed = Mirrors(recipe, run, told)  # type: ignore[arg-type]
    deadline = time.monotonic() + SECONDS
    for step in range(1, 1000):
        with events.open("a") as sink:
            sink.write(json.dumps({"step": step, "total": None, "time": time.time(), "loss": 1 / step}) + "\n")
            sink.write(json.dumps({"step": step, "total": None, "time": 0, "note": "found in-the-recipe"}) + "\n")
        followed.look()
        if told.said_ and step > 3:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    monkeypatch.setattr(mirrors, "RETRY_SECONDS", 0.0)
    followed.look()  # it is tried again, in silence
    assert list(followed.running) == ["tensorboard", "wandb"]
    followed.close()
    (line,) = told.said_
    assert line.startswith("the tracker wandb ended with exit code 1 (") and "key" in line and "wandb.log" in line
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / FOLDER / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("zero/loss")] == list(range(1, step + 1))
    assert {event.tensor_proto.string_val[0] for event in found.Tensors("zero/notes")} == {b"found $TOKEN"}
    assert not [file for file in (run / FOLDER).rglob("*") if file.is_file() and b"in-the-rec" in file.read_bytes()]


FAULTS = {
    "unknown": (
        "[tensorbord]",
        "there is no tracker 'tensorbord' (did you mean 'tensorboard'?). Known: wandb, trackio",
    ),
    "twice": ("[wandb, {use: wandb, project: x}]", "wandb is given twice"),
    "a key in the recipe": ("[{use: wandb, api_key: x}]", "unknown key"),
    "no project": ("[{use: tensorboard, project: x}]", "tensorboard has no projects"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_wrong_tracker_is_told_with_its_line(what: str, tmp_path: Path) -> None:
    track, message = FAULTS[what]
    with pytest.raises(RecipeError, match=r"recipe\.yaml:4: track") as caught:
        written(tmp_path, track)
    assert message in str(caught.value)


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    recipe = written(tmp_path, "mlflow")
    assert [track.use for track in recipe.track] == ["mlflow"]
    (told,) = [line for line in needs.unmet(recipe, ["zero"]) if line.startswith("track")]
    assert told.startswith("track: needs the package mlflow, which is not installed here: pip install ")
    assert "mlflow-skinny" in told
    assert not [line for line in needs.unmet(recipe, []) if line.startswith("track")]
