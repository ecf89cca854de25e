"""kill -9 in the middle of every kind of stage; the same command ends in what an untouched run ends in, bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline import artifacts
from pipeline.stages.base import KINDS

if TYPE_CHECKING:
    from tests.chain.conftest import Chain

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain"), pytest.mark.timeout(1500)]

SECONDS = 600.0
"""Longest wait for a stage to come to its middle."""


def trained(step: int) -> Callable[[Path], bool]:
    """A training stage has logged this step, and so has a checkpoint before it."""

    def reached(scratch: Path) -> bool:
        return any(event["step"] >= step for event in events(scratch))

    return reached


def sampled(scratch: Path) -> bool:
    """A sampling stage has finished a chunk, and not the last one."""
    return any(path.is_file() for path in (scratch / "samples").rglob("*.jsonl"))


def started(scratch: Path) -> bool:
    """A stage without steps is at work."""
    return bool(processes(scratch))


VICTIMS: dict[str, tuple[str, Callable[[Path], bool], str]] = {
    "base": ("pretrain", trained(100), "runner"),
    "zero": ("grpo", trained(3), "stage"),
    "cold_start": ("rejection_sample", sampled, "runner"),
    "dev1": ("sft", trained(3), "stage"),
    "judge": ("reward_model", trained(3), "runner"),
    "student": ("distill", trained(3), "runner"),
    "brought": ("import_model", started, "stage"),
    "out": ("export", started, "runner"),
    "score": ("evaluate", sampled, "stage"),
}
"""Stage -> its kind, when it is in its middle, and which process is killed."""


def events(scratch: Path) -> Iterator[dict[str, int]]:
    try:
        lines = (scratch / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # still being written
            continue


def processes(scratch: Path) -> list[int]:
    """The processes of the stage that works in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(scratch / "job.json") in arguments:
            found.append(int(entry.parent.name))
    return found


def kill_in_the_middle(chain: Chain, stage: str) -> None:
    """Start the run, wait until the stage is in its middle, kill; nothing of it may go on."""
    _, middle, victim = VICTIMS[stage]
    runner = subprocess.Popen(
        chain.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    while True:
        scratch = next((chain.path / "scratch").glob(f"{stage}-????????????"), None)
        if scratch is not None and middle(scratch):
            break
        assert runner.poll() is None, f"the run ended before {stage} was in its middle: {runner.communicate()[1]}"
        assert time.monotonic() < deadline, f"{stage} never came to its middle"
        time.sleep(0.01)
    if victim == "runner":
        runner.kill()
    for process in processes(scratch) if victim == "stage" else ():
        os.kill(process, signal.SIGKILL)
    _, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == (-signal.SIGKILL if victim == "runner" else 1)
    if victim == "stage":
        assert f"stage {stage!r} was killed by SIGKILL" in errors
    while processes(scratch):
        assert time.monotonic() < deadline, f"{stage} outlives its runner"
        time.sleep(0.1)
    assert not list((chain.path / "stages").glob(f"{stage}/*")), "an unfinished stage was published"


def outcome(chain: Chain) -> dict[str, dict[str, object]]:
    """What a run has come to: the hash of every file but logs, and the scores."""
    result: dict[str, dict[str, object]] = {}
    for name, artifact in artifacts.current(chain.path).items():
        assert artifact is not None, f"{name} is missing"
        assert artifacts.verify(artifact) == []
        files = {
            file: entry["sha256"]
            for file, entry in artifact.manifest["files"].items()
            if file.endswith((".safetensors", ".jsonl", "tokenizer.json")) and file != "events.jsonl"
        }
        result[name] = {**files, "scores": artifact.manifest["metrics"].get("scores")}
    return result


def test_killed_everywhere_equals_untouched(uninterrupted: Chain, tmp_path: Path) -> None:
    assert {kind for kind, _, _ in VICTIMS.values()} == set(KINDS), "a new stage kind has to be killed as well"
    chain = type(uninterrupted)(tmp_path)
    for stage in VICTIMS:
        kill_in_the_middle(chain, stage)
    chain.finish()

    found = artifacts.current(chain.path)
    for stage, (kind, _, _) in VICTIMS.items():
        artifact = found[stage]
        assert artifact is not None
        assert artifact.manifest["kind"] == kind
        assert artifact.manifest["resumed"] >= 1, f"{stage} was not resumed"
        if kind in ("pretrain", "grpo", "sft", "reward_model", "distill"):
            steps = [event["step"] for event in events(artifact.path) if "loss" in event]
            assert steps.count(min(steps)) == 1, f"{stage} began again instead of going on: {steps}"
    assert outcome(chain) == outcome(uninterrupted)
