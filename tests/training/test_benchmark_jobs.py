"""The queue of benchmarks: GPUs are not shared, the most wanted come first, and nothing outlasts its time."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import children, jobs, killed
from tests.house.walking import module

LATE = 1e9


def write(path: Path, told: dict[str, dict[str, Any]]) -> list[jobs.Job]:
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return jobs.read(path)


def noting(folder: Path, until: str = "") -> str:
    """A command that leaves the GPUs it sees, and waits for a file."""
    code = (
        "import os, sys, time\n"
        "name, until = sys.argv[1:]\n"
        "open(name, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "while until and not os.path.exists(until): time.sleep(0.02)\n"
    )
    return f"python -c {shlex.quote(code)} {{out}}/NAME.gpus {shlex.quote(until and str(folder / until))}"


def named(told: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**job, "run": job["run"].replace("NAME", name)} for name, job in told.items()}


def test_jobs_have_gpus_of_their_own_and_run_once(tmp_path: Path) -> None:
    """`one` waits until the last job has begun, so that the three others had its neighbour one after another."""
    waits, quick = noting(tmp_path, "four.gpus"), noting(tmp_path)
    told = named({name: {"gpus": 1, "seconds": 50, "run": quick} for name in ("two", "three", "four")})
    listed = write(tmp_path / "jobs.yaml", {**named({"one": {"gpus": 1, "seconds": 200, "run": waits}}), **told})
    queue = jobs.Queue(["3", "5"], {"out": str(tmp_path)}, time.monotonic() + LATE)
    found = queue.work(listed)
    assert {name: (tmp_path / f"{name}.gpus").read_text() for name in found} == {
        "one": "3", "two": "5", "three": "5", "four": "5"
    }  # fmt: skip
    assert [found[name]["exit"] for name in found] == [0] * 4
    assert json.loads((tmp_path / "jobs.json").read_text()) == found
    (tmp_path / "two.gpus").unlink()
    assert jobs.Queue(["3", "5"], {"out": str(tmp_path)}, time.monotonic() + LATE).work(listed) == found
    assert not (tmp_path / "two.gpus").exists()


def test_what_needs_two_gpus_is_not_held_up_by_what_comes_later(tmp_path: Path) -> None:
    queue = jobs.Queue(["0", "1"], {"out": str(tmp_path)}, time.monotonic() + 1000)
    first, both, long, short, endless = (
        jobs.Job(name, gpus, seconds, "true")
        for name, gpus, seconds in [
            ("first", 1, 100), ("both", 2, 100), ("long", 1, 150), ("short", 1, 50), ("endless", 1, 2000)
        ]
    )  # fmt: skip
    assert queue.next([first, both]) is first
    queue.free = ["1"]
    queue.running = [jobs.Running(first, None, ("0",), (), time.monotonic())]  # type: ignore[arg-type]
    assert queue.next([both, long]) is None, "it would still run when both GPUs could be free"
    assert queue.next([both, long, short]) is short
    assert not queue.fits(endless)
    assert not queue.fits(jobs.Job("four", 4, 1, "true"))
    queue.running = []


def test_a_job_that_hangs_or_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    told = {
        "hangs": {"gpus": 1, "seconds": 0.5, "run": "python -c 'import time; time.sleep(1000)'"},
        "fails": {"gpus": 1, "seconds": 100, "run": "python -c 'raise SystemExit(3)'"},
        "large": {"gpus": 2, "seconds": 1, "run": "true"},
    }
    listed = write(tmp_path / "jobs.yaml", told)
    for _ in range(2):
        queue = jobs.Queue(["0"], {"out": str(tmp_path)}, time.monotonic() + LATE)
        found = queue.work(listed)
        assert (found["hangs"]["exit"], found["fails"]["exit"]) == ("was ended: it took too long", 3)
        assert found["large"] == {"left_out": "needs 2 GPUs and 1 s"}
        assert queue.free == ["0"]


@pytest.mark.parametrize("job", jobs.read(jobs.JOBS), ids=lambda job: job.name)
def test_every_job_can_be_started(job: jobs.Job, repository: Path, tmp_path: Path) -> None:
    places = {name: str(tmp_path) for name in ("small", "base", "gsm8k", "data", "out")}
    python, flag, name, *arguments = job.command(places)
    assert (python, flag) == (sys.executable, "-m")
    if name == "pytest":
        paths = [repository / word for word in arguments if word.startswith("tests/")]
        assert paths and all(path.exists() for path in paths)
    else:
        module(name, arguments)


def test_a_kill_comes_at_a_training_step_and_half_a_line_is_none() -> None:
    """Lines as a stage writes them: a note, two steps, and what the disk has of the third one."""
    lines = ['{"step": 0, "note": "8 rollouts"}', '{"step": 4, "loss": 0.0}', '{"step": 5, "loss": 1e-7}', '{"st']
    assert killed.steps(lines) == [4, 5]
    assert killed.steps([]) == []


@pytest.mark.parametrize(
    ("visible", "place", "expected"),
    [
        (None, "1", "1"),
        ("", "0", "0"),  # none is visible: the benchmark says so itself
        ("2,5", "0", "2"),
        ("2, 5", "1", "5"),
        ("2,5", "2", "2"),  # there is no third one: taken at its word
        ("GPU-a,GPU-b", "1", "GPU-b"),
        ("GPU-a", "GPU-c", "GPU-c"),
    ],
)
def test_a_benchmark_counts_the_gpus_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, place: str, expected: str
) -> None:
    """`--gpus 0 1` of a job that has the third and the sixth of a machine means these two."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert children.gpu(place) == expected
