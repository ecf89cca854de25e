"""While gigabytes are hashed, the stage that wants them starts; it reads nothing before they are published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.recipe import load
from pipeline.runner import runner
from pipeline.runner.graph import Node, State, Step

RECIPE = """
name: chained
stages:
  one: {{kind: import_model, model: {model}}}
  two: {{kind: import_model, model: "@one"}}
"""


class Told:
    """What an observer hears, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def planned(self, steps: Sequence[Step]) -> None:
        pass

    def started(self, node: Node, state: State) -> None:
        self.heard.append(("started", node.name))

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        pass

    def finished(self, node: Node, artifact: Artifact) -> None:
        self.heard.append(("finished", node.name))

    def restarted(self, node: Node, message: str) -> None:
        pass

    def failed(self, node: Node, message: str) -> None:
        self.heard.append(("failed", node.name))


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=base / "model"))
    return load(path)


def test_the_next_stage_starts_while_its_input_is_hashed(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing waits until the second stage has started, and some more, in which that one would fail if it read."""
    whole, told, second = artifacts.publish, Told(), threading.Event()

    def slow(source: Path, target: Path, manifest: Mapping[str, Any], allowed: Callable[[], None]) -> Artifact:
        if manifest["stage"] == "one":
            assert second.wait(200)
            time.sleep(5)
        return whole(source, target, manifest, allowed)

    monkeypatch.setattr(artifacts, "publish", slow)
    start = told.started

    def started(node: Node, state: State) -> None:
        start(node, state)
        if node.name == "two":
            second.set()

    told.started = started  # type: ignore[method-assign]
    finished = runner.execute(recipe, tmp_path / "run", told)
    assert told.heard == [("started", "one"), ("started", "two"), ("finished", "one"), ("finished", "two")]
    assert finished.artifacts["two"].manifest["inputs"].keys() == {"one"}
    assert (finished.artifacts["two"].path / "model" / "model.safetensors").is_file()


def test_what_cannot_be_published_stops_whoever_waits_for_it(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, second = Told(), threading.Event()

    def full(source: Path, target: Path, manifest: Mapping[str, Any], allowed: Callable[[], None]) -> Artifact:
        assert second.wait(200)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(artifacts, "publish", full)
    start = told.started

    def started(node: Node, state: State) -> None:
        start(node, state)
        if node.name == "two":
            second.set()

    told.started = started  # type: ignore[method-assign]
    with pytest.raises(runner.RunError, match="No space left on device"):
        runner.execute(recipe, tmp_path / "run", told)
    assert told.heard == [("started", "one"), ("started", "two")]
    assert not list((tmp_path / "run").glob("stages/*/*/manifest.json"))
