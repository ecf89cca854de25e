"""Ranks that part ways: whatever becomes of one, the stage ends soon, and says which rank it was and why.

Real runs of two processes on CPUs, through `accelerate launch`. What happens to the second rank, in the middle of
training, while the first waits for its gradients, is up to the corpus.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.recipe import load
from pipeline.runner import graph, ranks
from pipeline.runner.launcher import first
from pipeline.runner.process import StageProcess
from pipeline.runner.ranks import Failure
from tests.stages.driving import TINY

CORPUS = """
import os
import signal
import time

import torch
from pipeline.data.corpus import Corpus
from transformers import Trainer

def fault():
    WHAT

step = Trainer.training_step
calls = []

def training_step(*args, **kwargs):
    calls.append(1)
    if os.environ.get("RANK") == "1" and len(calls) == 2:
        fault()
    return step(*args, **kwargs)

Trainer.training_step = training_step
torch.set_num_threads(1)

class Sums(Corpus):
    def documents(self, n, seed):
        return [f"{number % 5} + 1 = {number % 5 + 1}" for number in range(n)]
"""
ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "mixed_precision": "no",
    "num_processes": 2,
    "num_machines": 1,
    "machine_rank": 0,
    "main_process_port": 0,
}
STALL = 12
SECONDS = 280


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def run(folder: Path, fault: str) -> tuple[str, float]:
    """The run's complaint, and the seconds that it took."""
    (folder / "corpus.py").write_text(CORPUS.replace("WHAT", fault))
    (folder / "two.yaml").write_text(yaml.safe_dump(ACCELERATE))
    stage = {
        "kind": "pretrain",
        "model": TINY,
        "vocabulary": {"kind": "words"},
        "corpus": {"use": "corpus.py:Sums", "documents": 60},
        "length": 16,
        "launch": {"accelerate": "two.yaml", "stall": STALL},
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 2, "save_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "parted", "stages": {"base": stage}}))
    command = [sys.executable, "-m", "pipeline.cli", "run", "recipe.yaml"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, env={**os.environ})
    assert done.returncode == 1, done.stdout + done.stderr
    assert not list(folder.glob("runs/parted/stages/*"))
    return done.stderr, time.monotonic() - started


@pytest.mark.slow
def test_the_error_of_the_rank_that_raised_it_is_shown(tmp_path: Path) -> None:
    """The first rank then fails as well, as it has lost its partner; the launcher's table says nothing of either."""
    errors, _ = run(tmp_path, "raise RuntimeError('the second rank has had enough')")
    assert re.search(r"stage 'base' failed on rank 1 \(\S.*\); the end of its error", errors)
    assert errors.rstrip().splitlines()[-1] == "  | RuntimeError: the second rank has had enough"
    assert "Root Cause" not in errors


@pytest.mark.slow
def test_a_rank_that_was_killed_is_named(tmp_path: Path) -> None:
    errors, _ = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "stage 'base' failed: rank 1 was killed by SIGKILL (out of memory?); the end of" in errors
    assert "Root Cause" not in errors


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_are_ended(tmp_path: Path) -> None:
    """The same holds for one that leaves early without an error: the launcher waits for the other."""
    errors, _ = run(tmp_path, "time.sleep(10_000)")
    assert f"none has moved for {STALL} s; rank 0 stands at " in errors
    assert "; rank 1 stands at " in errors


@dataclass
class Ended:
    """What torch says of a rank that has failed."""

    exitcode: int
    timestamp: int = 100


@pytest.mark.parametrize(
    ("failures", "reported", "expected"),
    [
        pytest.param(
            {0: Ended(1), 1: Ended(1)},
            [Failure(1, 100.1, "its own"), Failure(0, 100.2, "connection closed by peer")],
            Failure(1, 100.1, "its own"),
            id="the-earliest-error",
        ),
        pytest.param(
            {0: Ended(1), 1: Ended(-9)},
            [Failure(0, 100.2, "connection closed by peer")],
            Failure(1, 100, signal="SIGKILL"),
            id="a-killed-rank-before-the-error-of-its-partner",
        ),
        pytest.param(
            {0: Ended(-6), 1: Ended(1)},
            [Failure(1, 100.1, "its own")],
            Failure(1, 100.1, "its own"),
            id="an-error-before-the-watchdog-of-its-partner",
        ),
        pytest.param({1: Ended(-6)}, [], Failure(1, 100, signal="SIGABRT"), id="the-watchdog-alone"),
        pytest.param({1: Ended(3)}, [], Failure(1, 100), id="without-a-word"),
        pytest.param(
            {0: Ended(1), 1: Ended(3)},
            [Failure(0, 99.9, "connection closed by peer")],
            Failure(1, 100),
            id="without-a-word-before-the-error-of-its-partner",
        ),
    ],
)
def test_the_first_failure_is_told_from_those_that_follow(
    failures: dict[int, Ended], reported: list[Failure], expected: Failure
) -> None:
    assert first(failures, reported) == expected


LEAVER = """
import os, sys
from pathlib import Path
from pipeline.runner import ranks

ranks.Stand(Path(sys.argv[1]), 1)._look(None)
if sys.argv[2] == "done":
    ranks.done(Path(sys.argv[1]), 1)
if sys.argv[2] == "raises":
    os.environ["RANK"] = "1"
    ranks.report(Path(sys.argv[1]), RuntimeError("its own error"))
os._exit(0)
"""


@pytest.mark.parametrize(
    ("does", "code", "words"),
    [
        (
            "leaves",
            1,
            "stage 'base' failed: rank 1 ended its own process in the midst of its work, as os._exit(0) does",
        ),
        (
            "leaves",
            0,
            "stage 'base' failed: rank 1 ended its own process in the midst of its work, as os._exit(0) does",
        ),
        ("done", 1, "stage 'base' failed on rank 0 (ConnectionError: closed by peer)"),
        ("done", 0, "stage 'base' ended without a result: it ended its own process in the midst of its work"),
        ("raises", 1, "stage 'base' failed on rank 1 (RuntimeError: its own error)"),
    ],
)
def test_a_rank_that_leaves_without_an_error_is_named_before_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, code: int, words: str
) -> None:
    subprocess.run([sys.executable, "-c", LEAVER, str(tmp_path), does], check=True)
    if code:
        monkeypatch.setenv("RANK", "0")
        ranks.report(tmp_path, ConnectionError("closed by peer"))
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n"
        "  base: {kind: sft, model: some/model, data: [{from: {hub: a/b}}], launch: {accelerate: ddp}}\n"
    )
    with subprocess.Popen(["true"]) as popen:
        process = StageProcess(graph.build(load(tmp_path / "r.yaml"))["base"], tmp_path, popen, time.time(), 1)
    message = process.failure(code)
    assert message.startswith(words)
    assert ("closed by peer" in message) == (code == 1 and does != "raises")


def test_where_a_rank_was_last_seen_that_has_left_is_told(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVER, str(tmp_path), "leaves"], check=True)
    assert ranks.left(tmp_path) == [1]
    ranks.Stand(tmp_path, 0)._look(None)
    assert ranks.left(tmp_path) == [1], "this process is alive"


LOOKER = """
import sys, time
from pathlib import Path
from pipeline.runner.ranks import Stand

Stand(Path(sys.argv[1]), 3).start()
deadline = time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline:
    time.sleep(0.01 if sys.argv[3] == "works" else 1000)
    sum(range(300_000))
"""


@pytest.mark.parametrize(("does", "moves"), [("works", True), ("hangs", False)])
def test_a_loop_that_mostly_waits_moves_and_a_wait_does_not(tmp_path: Path, does: str, moves: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", LOOKER, str(tmp_path), "60", does])
    try:
        until(lambda: 3 in ranks.stands(tmp_path), "the child to start")
        time.sleep(2)  # it has begun to wait
        before = ranks.stands(tmp_path)[3][0]
        if moves:
            until(lambda: ranks.stands(tmp_path)[3][0] > before, "the child to be seen at work")
        else:
            time.sleep(6)
            assert ranks.stands(tmp_path)[3][0] == before
    finally:
        child.kill()
        child.wait()
