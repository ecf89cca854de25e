"""The next stage's process loads its libraries while the stage before it still works; real stages, real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load
from pipeline.runner import early, runner, scheduler
from pipeline.runner.early import Early
from tests.pipeline.test_runner import SECONDS, alive, until
from tests.stages.test_publishing import Told

RECIPE = """
name: warm
warm: {warm}
stages:
  one: {{kind: import_model, model: {model}, after: [first]}}
  first: {{kind: import_model, model: {model}}}
  two: {{kind: import_model, model: "@one"}}
"""
SLOW = """
import sys
from pathlib import Path
from pipeline.runner import runner, scheduler
from pipeline.recipe import load
from tests.stages.test_publishing import Told

scheduler.SETTLED_SECONDS = 0.0
runner.execute(load(sys.argv[1]), Path(sys.argv[2]), Told())
"""


def waiting(run: Path) -> list[int]:
    """Processes that wait for their turn in a run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if f"{run}/{early.FOLDER}/" in words and alive(int(process.name)):
            found.append(int(process.name))
    return found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """Stages whose turn came, and whether a process waited for it."""
    seen: list[tuple[str, bool]] = []
    whole = Early.take

    def take(self: Early, node: Any, gpus: Any) -> Any:
        found = whole(self, node, gpus)
        seen.append((node.name, found is not None))
        return found

    monkeypatch.setattr(Early, "take", take)
    monkeypatch.setattr(scheduler, "SETTLED_SECONDS", 0.0)
    yield seen


@pytest.mark.parametrize("warm", [True, False])
def test_a_stage_goes_on_in_the_process_that_waited(
    warm: bool, calculator: Path, tmp_path: Path, taken: list[tuple[str, bool]]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=calculator, warm=str(warm).lower()))
    run, told = tmp_path / "run", Told()
    finished = runner.execute(load(tmp_path / "recipe.yaml"), run, told)
    assert taken == [("first", False), ("one", warm), ("two", warm)]
    assert [name for what, name in told.heard if what == "finished"] == ["first", "one", "two"]
    for artifact in finished.artifacts.values():
        assert (artifact.path / "model" / "model.safetensors").is_file()
        assert artifact.manifest["resumed"] == 0
        assert "Traceback" not in (artifact.path / "log.txt").read_text()
    assert not (run / early.FOLDER).exists() and not waiting(run)


def test_a_process_that_waits_ends_with_a_runner_that_is_killed(calculator: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=calculator, warm="true"))
    command = [sys.executable, "-c", SLOW, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        until(lambda: bool(waiting(tmp_path / "run")), "a process that waits")
        assert not list((tmp_path / "run" / "scratch").glob("one-*"))  # nothing of the stage's begins before its turn
        process.kill()
        process.wait(SECONDS)
    until(lambda: not waiting(tmp_path / "run"), "its end")


def test_short_memory_starts_nothing(calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert early.available_bytes() > 2**20
    monkeypatch.setattr(early, "available_bytes", lambda: 4 * early.PROCESS_BYTES - 1)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=calculator, warm="true"))
    node: Any = type("Node", (), {"name": "two", "config": load(tmp_path / "recipe.yaml").stages["two"]})
    made = Early(tmp_path, lambda *_: pytest.fail("memory is short"), wanted=True)
    made.consider(node, (), None)
    assert made.waiting is None
