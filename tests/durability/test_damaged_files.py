"""Twenty damaged files of each kind: what resumes from them ends equal, to the bit, and says what was damaged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.files import durable
from pipeline.runner.inputs import Inputs
from tests.durability.conftest import Bench
from tests.durability.driving import FINGERPRINT, STAGE, STAGES, child, log_of, outcome, run_through

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAMAGED = 20
"""Of each kind of file."""
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    """One bit is another, and the times are what they were: a disk that rots."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zeros(path: Path, rng: random.Random) -> None:
    """Nothing but zeros, at the full length: blocks that a file system gave and never wrote."""
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path, rng: random.Random) -> None:
    """The end is missing, or everything."""
    path.write_bytes(path.read_bytes()[: rng.choice([0, rng.randrange(path.stat().st_size)])])


def gone(path: Path, rng: random.Random) -> None:
    """It is not there."""
    path.unlink()


DAMAGES: tuple[Damage, ...] = (flip, zeros, cut, gone)
CHECKPOINT = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete")
KINDS = [
    *(("sft", f"checkpoints/checkpoint-6/{name}") for name in CHECKPOINT),
    *(
        ("grpo", f"checkpoints/checkpoint-4/{name}")
        for name in ("dynamic-sampling-0.pt", "samples.jsonl", "events.jsonl")
    ),
    ("sft", "examples/data-*.arrow"),
    ("sft", "examples/account.json"),
    ("grpo", "samples.jsonl"),
    ("evaluate", "samples/base/*/00003.jsonl"),
    ("evaluate", "samples/base/*/00003.jsonl.seal"),
]
REACHED = {
    "sft": "checkpoints/checkpoint-6/complete",
    "grpo": "checkpoints/checkpoint-4/complete",
    "evaluate": "samples/base/*/00005.jsonl.seal",
}
"""What a stage has written when it is interrupted."""


@pytest.fixture(scope="module")
def interrupted(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each stage, killed when it had much behind it and something before it."""
    folder, found = tmp_path_factory.mktemp("interrupted"), dict[str, Path]()
    for stage, sign in REACHED.items():
        for attempt in range(20):
            run = folder / f"{stage}-{attempt}"
            process = child(bench.shared, STAGES[stage], [run])
            while process.exitcode is None and not list(artifacts.scratch(run, STAGE, FINGERPRINT).glob(sign)):
                time.sleep(0.002)
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            if artifacts.find(run, STAGE, FINGERPRINT) is None:
                found[stage] = run
                break
    assert found.keys() == REACHED.keys()
    return found


@pytest.mark.parametrize(("stage", "name"), KINDS, ids=[f"{stage}-{Path(name).name}" for stage, name in KINDS])
def test_damaged_state(stage: str, name: str, bench: Bench, interrupted: dict[str, Path], tmp_path: Path) -> None:
    rng, runs = random.Random(f"{stage} {name}"), list[Path]()
    for number in range(DAMAGED):
        runs.append(tmp_path / str(number))
        shutil.copytree(interrupted[stage], runs[-1])
        (runs[-1] / "log.txt").unlink(missing_ok=True)
        (path,) = artifacts.scratch(runs[-1], STAGE, FINGERPRINT).glob(name)
        damage = DAMAGES[number % len(DAMAGES)]
        damage(path, rng)
    run_through(bench.shared, STAGES[stage], runs)
    for number, run in enumerate(runs):
        damage = DAMAGES[number % len(DAMAGES)].__name__
        assert outcome(run) == bench.untouched[stage], f"{damage}: {log_of(run)}"
        told = [line for line in log_of(run).splitlines() if "damaged" in line or "incomplete" in line]
        assert any(Path(path.name).name.partition("-0")[0].split(".")[0] in line for line in told), (
            f"{damage} was not told: {log_of(run)}"
        )


def test_without_one_good_checkpoint_a_stage_starts_from_its_beginning(
    bench: Bench, interrupted: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted["sft"], run)
    for checkpoint in (artifacts.scratch(run, STAGE, FINGERPRINT) / "checkpoints").glob("checkpoint-*"):
        flip(checkpoint / "optimizer.pt", random.Random(0))
    run_through(bench.shared, STAGES["sft"], [run])
    assert outcome(run) == bench.untouched["sft"]
    assert "no other is whole, so the stage starts from its beginning" in log_of(run)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json", "events.jsonl", artifacts.MANIFEST])
def test_damaged_artifacts_are_refused_by_name(
    name: str, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an input of a stage: an altered size is seen whenever an artifact is looked for, a content when it is used."""
    rng = random.Random(name)
    for number in range(DAMAGED):
        run = tmp_path / str(number)
        shutil.copytree(bench.shared / "whole" / "sft", run)
        path = artifacts.folder(run, STAGE, FINGERPRINT)
        DAMAGES[number % len(DAMAGES)](path / name, rng)
        caplog.clear()
        found = artifacts.find(run, STAGE, FINGERPRINT)
        if found is None:
            assert name in caplog.text or "manifest.json" in caplog.text
            assert "the stage will run again" in caplog.text
            continue
        told = Inputs().fault("next", [STAGE], {STAGE: found})
        assert told is not None and name in told and durable.describe(artifacts.damage(found)) in told
