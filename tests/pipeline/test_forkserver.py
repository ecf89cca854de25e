"""Where there are no GPUs, processes of stages are forked from one that has loaded the libraries; real stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load
from pipeline.runner import runner
from pipeline.runner.forkserver import ForkServer
from tests.pipeline.test_runner import SECONDS, alive, until
from tests.stages.test_publishing import Told

RECIPE = """
name: forked
stages:
  one: {{kind: import_model, model: {model}}}
  two: {{kind: import_model, model: "@one"}}
  three: {{kind: import_model, model: "@two", launch: {{env: {{OMP_NUM_THREADS: "3"}}}}}}
"""
RUNNER = """
import os, sys, time
from pathlib import Path
from pipeline.runner.forkserver import ForkServer

server = ForkServer(True)
server.fork([sys.argv[1], str(os.getpid())], os.environ, Path(sys.argv[1]).with_name("log.txt"))
time.sleep(600)
"""


def job(folder: Path, **changes: Any) -> Path:
    """A stage that waits for its input for ever."""
    what: dict[str, Any] = {"stage": "s", "config": {"kind": "import_model", "model": "@other"}}
    what |= {"inputs": {"other": str(folder / "other")}, "awaited": ["other"], "base": str(folder)}
    path = folder / "job.json"
    path.write_text(json.dumps({**what, "tasks": {}, "seed": 0, **changes}))
    return path


def processes(runner_id: int) -> list[int]:
    """A runner's server, and what it has forked: stages, and the guard of each stage's process group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "pipeline.runner.forkserver" in words and str(runner_id) in words and alive(int(process.name)):
            found.append(int(process.name))
    return found


@pytest.fixture
def server() -> Iterator[ForkServer]:
    made = ForkServer(True)
    yield made
    made.close()
    assert not processes(os.getpid())


def test_a_forked_stage_leaves_what_one_with_a_start_of_its_own_leaves(
    calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third has another environment, which libraries read when they are loaded."""
    forked: list[bool] = []
    whole = ForkServer.fork

    def fork(self: ForkServer, *arguments: Any) -> Any:
        found = whole(self, *arguments)
        forked.append(found is not None)
        return found

    monkeypatch.setattr(ForkServer, "fork", fork)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=calculator))
    found = runner.execute(load(tmp_path / "recipe.yaml"), tmp_path / "run", Told()).artifacts
    assert forked == [True, True, False]
    assert not processes(os.getpid())
    one, two, three = (found[name] for name in ("one", "two", "three"))
    for artifact in (one, two):
        assert (artifact.path / "model/model.safetensors").read_bytes() == (
            three.path / "model/model.safetensors"
        ).read_bytes()
        assert artifact.manifest["packages"] == three.manifest["packages"]
        assert "Traceback" not in (artifact.path / "log.txt").read_text()


def test_how_a_forked_process_ends_is_known(server: ForkServer, tmp_path: Path) -> None:
    """One fails, one is killed, and one ends with the server; after that none is forked."""
    broken = tmp_path / "broken"
    broken.mkdir()
    log = tmp_path / "log.txt"
    me = str(os.getpid())
    failing = server.fork([str(job(broken, seeds=1)), me], os.environ, log)
    first, second = (server.fork([str(job(tmp_path)), me], os.environ, log) for _ in range(2))
    assert failing is not None and first is not None and second is not None
    assert failing.wait(SECONDS) == 1
    assert "unexpected keyword argument 'seeds'" in log.read_text()
    assert server._channel is not None
    asked = {"words": [str(job(tmp_path)), me], "environment": dict(os.environ), "log": str(log)}
    server._channel.send_bytes(json.dumps(asked).encode())  # as if Ctrl-C came while the runner waits for the answer
    assert server._channel.poll(SECONDS)
    assert first.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(0.1)
    os.killpg(first.pid, 9)
    assert first.wait(SECONDS) == -9
    assert second.poll() is None
    assert server._server is not None
    os.kill(server._server.pid, 9)
    assert second.wait(SECONDS) == -9
    until(lambda: not processes(os.getpid()), "the end of what the server had forked")
    assert server.fork([str(job(tmp_path)), me], os.environ, log) is None


def test_server_and_stages_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(job(tmp_path))]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        until(lambda: len(processes(process.pid)) > 1, "a forked stage")
        process.kill()
        process.wait(SECONDS)
    until(lambda: not processes(process.pid), "the end of all")
