"""The shortened nano chain: from nothing to its report, asked for again, and killed in the middle of every stage kind.

All in one file, because the tests share a chain and test workers are given whole files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli import app
from pipeline.files.locks import STAGE_LOCK
from pipeline.recipe import load
from pipeline.stages.registry import KINDS
from tests.house.test_walk import PAGES
from tests.house.walking import BLOCK, commands

if TYPE_CHECKING:
    from tests.chain.conftest import Chain
    from tests.conftest import Timed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

AGAIN_SECONDS = 2.0
RUN = re.compile(r"runs/nano-r1(-zero)?(@|$)")


def manifests(chain: Chain) -> dict[str, dict[str, Any]]:
    found = artifacts.current(chain.path)
    assert None not in found.values()
    return {name: dict(artifact.manifest) for name, artifact in found.items() if artifact is not None}


def test_every_stage_of_the_paper_publishes(uninterrupted: Chain) -> None:
    published = manifests(uninterrupted)
    assert {"base", "zero", "cold_start", "dev1", "dev2", "dev3", "r1", "student", "score"} <= published.keys()
    kinds = {manifest["kind"] for manifest in published.values()}
    assert kinds == set(KINDS), "a new stage kind belongs into the shortened chain, see conftest.py"
    for name, manifest in published.items():
        artifact = artifacts.find(uninterrupted.path, name, manifest["fingerprint"])
        assert artifact is not None
        assert artifacts.verify(artifact) == []
        assert manifest["resumed"] == 0
        assert manifest["seconds"] > 0
        assert manifest["packages"]["torch"]
        assert manifest["memory"]["host"] > 1e8
    assert not list((uninterrupted.path / "scratch").iterdir())


def test_the_second_fine_tuning_starts_from_the_base(uninterrupted: Chain) -> None:
    """R1's own order: SFT 2 takes what RL 1 wrote, but not its weights."""
    published = manifests(uninterrupted)
    assert published["dev3"]["config"]["model"] == "@base"
    assert set(published["dev3"]["inputs"]) >= {"base", "reasoning"}
    assert published["student"]["inputs"].keys() >= {"student_base", "lessons"}


def test_training_changed_every_model(uninterrupted: Chain) -> None:
    published = manifests(uninterrupted)
    weights = {
        name: manifest["files"]["model/model.safetensors"]["sha256"]
        for name, manifest in published.items()
        if manifest["kind"] in ("pretrain", "extend_context", "sft", "grpo", "distill")
    }
    assert len(weights) >= 8
    assert len(set(weights.values())) == len(weights), weights


def test_the_report_holds_the_numbers(uninterrupted: Chain) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "report", str(uninterrupted.path), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(told["stages"]) == set(manifests(uninterrupted))
    for stage in told["stages"].values():
        assert {"kind", "metrics", "seconds"} <= stage.keys()
    models = [reference[1:] for reference in load("nano/r1").stages["score"].models]
    assert set(told["table"]) == set(models)
    for by_task in told["table"].values():
        assert set(by_task) == {"chain/test", "requests/test"}
        for score in by_task.values():
            assert score["n"] > 0
            assert 0 <= score["low"] <= score["pass@1"] <= score["high"] <= 1
    page = (uninterrupted.path / "report.html").read_text(encoding="utf-8")
    assert "nano-r1" in page
    assert "<svg" in page


def documented() -> list[list[str]]:
    """Arguments of the commands of the README and the docs about a run of nano's chain, or of its first stages."""
    blocks = [
        block for page in PAGES for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "sh"
    ]
    told = [shlex.split(command, comments=True) for block in blocks for command in commands(block)]
    found = [words[1:] for words in told if words[:1] == ["zero2r1"] and any(RUN.match(word) for word in words)]
    return [words for number, words in enumerate(found) if words not in found[:number]]


def test_every_documented_command_about_the_run_does_what_it_says(
    uninterrupted: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("nano-r1", "nano-r1-zero"):
        (tmp_path / "runs" / name).symlink_to(uninterrupted.path)
    monkeypatch.chdir(tmp_path)
    told = documented()
    assert {words[0] for words in told} >= {"status", "report", "generate", "eval", "export"}
    for words in told:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
        if words[0] == "export":
            assert (tmp_path / words[-1] / "model.safetensors").is_file()


def test_a_finished_run_is_recognised_at_once_and_without_torch(
    uninterrupted: Chain, timed: Callable[..., Timed]
) -> None:
    stages = uninterrupted.path / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    told = timed(*uninterrupted.command(), limit=AGAIN_SECONDS)
    assert "stages are fresh" in told.output
    assert told.seconds <= AGAIN_SECONDS
    assert before == {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    log = timed(sys.executable, "-X", "importtime", *uninterrupted.command()).errors
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines()}
    assert "pipeline" in imported
    assert not imported & {"torch", "transformers", "trl", "datasets", "accelerate", "matplotlib"}


def test_the_exported_model_is_a_folder_that_transformers_loads(uninterrupted: Chain) -> None:
    """And it is the model that was trained: same weights, and a card that says where it comes from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = artifacts.current(uninterrupted.path)
    exported, trained = found["out"], found["r1"]
    assert exported is not None
    assert trained is not None
    (card,) = Path(exported.path).rglob("README.md")
    lineage = card.read_text(encoding="utf-8")
    assert all(f"| {stage} |" in lineage for stage in ("base", "zero", "cold_start", "dev3", "r1", "brought"))
    one = AutoModelForCausalLM.from_pretrained(card.parent)
    other = AutoModelForCausalLM.from_pretrained(trained.path / "model")
    assert AutoTokenizer.from_pretrained(card.parent).eos_token_id == one.generation_config.eos_token_id
    for (name, weight), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(weight, expected), name


# kill -9 in the middle of every kind of stage; the same command ends in what an untouched run ends in, bit by bit.

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
    "wide": ("extend_context", trained(3), "stage"),
    "out": ("export", started, "runner"),
    "rates": ("pass_rate", sampled, "runner"),
    "labels": ("step_labels", sampled, "stage"),
    "search": ("tree_search", sampled, "runner"),
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
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [str(file.readlink()) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if str(scratch / STAGE_LOCK) in opened:
            found.append(int(process.name))
    return found


def kill_in_the_middle(chain: Chain, stage: str) -> None:
    """Start the run, wait until the stage is in its middle, kill; nothing of it may go on.

    All stand still while the victim is chosen. A stage that has ended by then was too quick: it begins anew.
    """
    _, middle, victim = VICTIMS[stage]
    for _ in range(10):
        runner, scratch = start_until(chain, stage, middle)
        os.kill(runner.pid, signal.SIGSTOP)
        victims = processes(scratch)
        for process in victims:
            os.kill(process, signal.SIGSTOP)
        published = list((chain.path / "stages").glob(f"{stage}/*"))
        for process in [runner.pid] if victim == "runner" or published or not victims else victims:
            os.kill(process, signal.SIGKILL)
        for process in [runner.pid, *victims]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        _, errors = runner.communicate(timeout=SECONDS)
        deadline = time.monotonic() + SECONDS
        while processes(scratch):
            assert time.monotonic() < deadline, f"{stage} outlives its runner"
            time.sleep(0.1)
        if victims and not published:
            break
        shutil.rmtree(chain.path / "stages" / stage, ignore_errors=True)
    else:
        pytest.fail(f"{stage} is never at work for long enough to be killed")
    assert runner.returncode == (-signal.SIGKILL if victim == "runner" else 1)
    if victim == "stage":
        assert f"stage {stage!r} was killed by SIGKILL" in errors
    assert not list((chain.path / "stages").glob(f"{stage}/*")), "an unfinished stage was published"


def start_until(chain: Chain, stage: str, middle: Callable[[Path], bool]) -> tuple[subprocess.Popen[str], Path]:
    """Start the run and wait until a stage is in its middle. Returns the runner and the stage's scratch folder."""
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
            return runner, scratch
        assert runner.poll() is None, f"the run ended before {stage} was in its middle: {runner.communicate()[1]}"
        assert time.monotonic() < deadline, f"{stage} never came to its middle"
        time.sleep(0.01)


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
        if kind in ("pretrain", "extend_context", "grpo", "sft", "reward_model", "distill"):
            steps = [event["step"] for event in events(artifact.path) if "loss" in event]
            assert steps.count(min(steps)) == 1, f"{stage} began again instead of going on: {steps}"
    assert outcome(chain) == outcome(uninterrupted)
