"""Runs that are interrupted, killed, doubled or failing: real processes, real signals, through the command.

The stages are real as well, only short: an `evaluate` stage whose task writes down its process and waits for a sign.
It loads neither libraries nor its model, a folder of the right files without weights, which keeps these tests quick;
`tests/chain` kills stages that do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.runner import worker
from tests.hub import made_whole

RECIPE = """\
name: play
warm: false
stages:
  one: {kind: evaluate, model: no/model, tasks: [{use: "play.py:Play", options: {name: one}}]}
  two: {kind: evaluate, model: no/model, tasks: [{use: "play.py:Play", options: {name: two}}]}
  last: {kind: evaluate, model: no/model, after: [one], tasks: [{use: "play.py:Play", options: {name: last}}]}
"""
PLAY = """\
import ctypes
import signal
import os
import subprocess
import time
from pathlib import Path

from pipeline.tasks.base import Task, TaskError

HERE = Path(__file__).parent


class Play(Task):
    def __init__(self, name, stubborn=False, talkative=False, greedy=False):
        self.name, self.stubborn, self.talkative, self.greedy = name, stubborn, talkative, greedy

    def problems(self, split, n=None, seed=0):
        if self.stubborn:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.environ.keys() & {"RANK", "WORLD_SIZE", "MASTER_PORT"}:
            raise TaskError("a stage is no rank of something else")
        child = subprocess.Popen(["sleep", "600"])
        (HERE / "writing").write_text(f"{os.getpid()} {child.pid}")
        (HERE / "writing").rename(HERE / f"{self.name}.started")
        if self.greedy:
            ctypes.PyDLL(None).sleep(600)  # unlike CDLL, it keeps the interpreter's lock
        while not (HERE / f"{self.name}.go").exists():
            time.sleep(0.02)
            if self.talkative:
                print("still here")
        raise TaskError("the cupboard is bare")
"""
SECONDS = 200.0
"""Longest wait for anything, on a machine that is busy with other tests."""


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Runs:
    """Starts `zero2r1 run` in a folder, and ends whatever is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made_whole(folder / "no" / "model")
        self.started: list[subprocess.Popen[str]] = []
        self.seen: set[int] = set()

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).parent / "zero2r1"), "run", "recipe.yaml", *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": "0",
                "WORLD_SIZE": "1",
                "MASTER_PORT": "1",
                **variables,
            },  # what starts the runner
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal, wherever the tests run
        )
        self.started.append(process)
        return process

    def stage(self, name: str) -> tuple[int, int]:
        """Wait until a stage works; the ids of its process and of the child it has started."""
        sign = self.folder / f"{name}.started"
        until(sign.exists, f"stage {name}")
        stage, child = map(int, sign.read_text().split())
        sign.unlink()
        self.seen |= {stage, child}
        return stage, child

    def go(self, name: str) -> None:
        (self.folder / f"{name}.go").touch()

    def scratch(self, name: str) -> Path:
        (found,) = (self.folder / "runs/play/scratch").glob(f"{name}-*")
        return found

    def states(self) -> dict[str, str]:
        command = [str(Path(sys.executable).parent / "zero2r1"), "plan", "recipe.yaml", "--json"]
        done = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True)
        return {row["stage"]: row["state"] for row in json.loads(done.stdout)}

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        for process_id in self.seen:
            if alive(process_id):
                os.kill(process_id, signal.SIGKILL)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "play.py").write_text(PLAY)
    # Names of our own packages in the current folder: they must not get in the way.
    for name in ("rewards.py", "model.py", "pipeline.py"):
        (tmp_path / name).write_text("raise ImportError('this is not the package')\n")
    made = Runs(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_stops_its_stage_and_can_go_on(number: signal.Signals, runs: Runs) -> None:
    runner = runs.start()
    stage, child = runs.stage("one")
    os.killpg(runner.pid, number)
    _, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 130
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert not alive(stage)
    until(lambda: not alive(child), "the stage's child to end")
    assert runs.states() == {"one": "interrupted", "two": "new", "last": "new"}
    runs.start()
    assert runs.stage("one")[0] != stage
    counter = runs.scratch("one") / "attempts"
    assert counter.read_text() == "2"
    os.killpg(runs.started[-1].pid, signal.SIGKILL)
    counter.write_text("")  # a disk that was full
    runs.start()
    runs.stage("one")
    assert counter.read_text() == "1"


@pytest.mark.slow
def test_a_stage_that_ignores_the_interruption_is_killed(runs: Runs) -> None:
    recipe = RECIPE.replace("{name: one}", "{name: one, stubborn: true}")
    (runs.folder / "recipe.yaml").write_text(recipe)
    runner = runs.start()
    stage, child = runs.stage("one")
    os.killpg(runner.pid, signal.SIGINT)
    runner.communicate(timeout=SECONDS)
    assert runner.returncode == 130
    assert not alive(stage)
    until(lambda: not alive(child), "the stage's child to end")


def test_a_killed_runner_takes_its_stage_along(runs: Runs) -> None:
    """Nobody is left to write into the run, neither the stage nor what it has started."""
    runner = runs.start()
    stage, child = runs.stage("one")
    runner.kill()
    runner.wait()
    until(lambda: not alive(stage), "the orphaned stage to end")
    until(lambda: not alive(child), "the stage's child to end")
    assert runs.states()["one"] == "interrupted"


@pytest.mark.parametrize("ghost", ["stopped", "never lets go of the interpreter"])
def test_an_orphan_that_cannot_watch_its_runner_ends_with_it(ghost: str, runs: Runs) -> None:
    """By the kernel's means: a stopped process runs no code, and a C extension may hold the interpreter for hours."""
    if ghost != "stopped":
        recipe = RECIPE.replace("{name: one}", "{name: one, greedy: true}")
        (runs.folder / "recipe.yaml").write_text(recipe)
    runner = runs.start()
    stage, child = runs.stage("one")
    if ghost == "stopped":
        os.kill(stage, signal.SIGSTOP)
    runner.kill()
    runner.wait()
    until(lambda: not alive(stage) and not alive(child), "the orphaned stage and its child to end")
    runs.start()
    assert runs.stage("one")[0] != stage


def test_who_waits_for_a_process_of_an_earlier_attempt_says_so(runs: Runs) -> None:
    runner = runs.start()
    runs.stage("one")
    runner.kill()
    runner.wait()
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_SH); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}; input()", str(runs.scratch("one") / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as ghost:
        assert ghost.stdout is not None
        ghost.stdout.readline()
        again = runs.start()
        assert again.stderr is not None
        line = again.stderr.readline()
        assert line.startswith(f"stage 'one' waits for process {ghost.pid} (python")
        assert "of an earlier attempt to end, since 1 s and for at most 60 s" in line
        assert not (runs.folder / "one.started").exists()
        ghost.communicate("\n")
    runs.stage("one")


def test_a_killed_stage_is_a_failure_that_can_be_resumed(runs: Runs) -> None:
    runner = runs.start()
    stage, child = runs.stage("one")
    os.kill(stage, signal.SIGKILL)
    _, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1
    assert "stage 'one' was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    until(lambda: not alive(child), "the stage's child to end")
    assert runs.states() == {"one": "interrupted", "two": "new", "last": "new"}


def with_launch(launch: str, options: str = "") -> str:
    return RECIPE.replace("{name: one}}]", f"{{name: one{options}}}}}], launch: {launch}")


def test_a_killed_stage_is_started_again_as_often_as_it_may_be(runs: Runs) -> None:
    (runs.folder / "recipe.yaml").write_text(with_launch("{restarts: 2}"))
    runner = runs.start()
    before = 0
    for _ in range(3):
        stage, child = runs.stage("one")
        assert stage != before
        os.kill(stage, signal.SIGKILL)
        until(lambda child=child: not alive(child), "the stage's child to end")
        before = stage
    output, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1
    assert output.count("one: was killed by SIGKILL (out of memory?); it goes on from its last checkpoint") == 2
    assert errors.count("stage 'one' was killed by SIGKILL") == 1
    assert (runs.scratch("one") / "attempts").read_text() == "3"


def test_a_stage_that_hangs_is_killed_and_started_again(runs: Runs) -> None:
    silence = 20  # more than imports take on a busy machine
    (runs.folder / "recipe.yaml").write_text(with_launch(f"{{restarts: 1, silence: {silence}}}", ", talkative: true"))
    runner = runs.start()
    stage, child = runs.stage("one")
    time.sleep(silence + 1)
    assert alive(stage), "it says that it works"
    os.kill(stage, signal.SIGSTOP)
    again, _ = runs.stage("one")
    assert again != stage and not alive(stage) and not alive(child)
    os.kill(again, signal.SIGSTOP)
    output, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1
    assert "one: was killed after 20 s without a sign of life; it goes on" in output
    assert "stage 'one' was killed after 20 s without a sign of life; the end of" in errors


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(runs: Runs) -> None:
    runner = runs.start()
    _, child = runs.stage("one")
    runs.go("one")
    output, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1
    assert "one: failed" in output
    assert "stage 'one' ended with exit code 1" in errors
    assert "  | pipeline.tasks.base.TaskError: the cupboard is bare" in errors
    assert "Traceback" not in errors, "an error that is a message for people is shown as one"
    assert "Traceback" in (runs.scratch("one") / "log.txt").read_text()
    log = runs.scratch("one") / "log.txt"
    assert str(log.relative_to(runs.folder)) in errors
    assert "the cupboard is bare" in log.read_text()
    assert not (runs.folder / "last.started").exists()
    assert not (runs.folder / "two.started").exists()
    until(lambda: not alive(child), "the stage's child to end")


def test_two_runners_do_not_work_on_one_run(runs: Runs) -> None:
    first = runs.start()
    stage, _ = runs.stage("one")
    second = runs.start()
    _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert f"another process (pid {first.pid}) works on runs/play" in errors
    assert alive(stage)
    assert first.poll() is None
    other = runs.start("--runs", "elsewhere")
    assert runs.stage("one")[0] != stage
    assert other.poll() is None


def test_a_runner_on_another_host_waits_for_a_sign_of_life_and_is_refused(runs: Runs) -> None:
    first = runs.start(ZERO2R1_HOST="one")
    stage, _ = runs.stage("one")
    second = runs.start(ZERO2R1_HOST="another")
    _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert f"runs/play was last worked on by process {first.pid} on host {socket.gethostname()}" in errors
    assert f"another process (pid {first.pid} on host {socket.gethostname()}) works on runs/play" in errors
    assert alive(stage) and first.poll() is None


def test_a_runner_with_a_folder_of_its_own_and_the_same_store_is_refused(runs: Runs) -> None:
    first = runs.start("--store", "copies")
    until((runs.folder / "copies" / "play" / ".lease" / "000001").exists, "the lease in the store")
    second = runs.start("--store", "copies", "--runs", "elsewhere")
    _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    whom = f"another process (pid {first.pid} on host {socket.gethostname()}) works on play in copies since "
    assert whom in errors and f"or end it there (kill {first.pid})" in errors and "Traceback" not in errors
    assert not (runs.folder / "elsewhere" / "play" / "scratch").exists()
    assert first.poll() is None


@pytest.mark.slow
def test_another_host_goes_on_with_the_run_of_one_that_is_gone(runs: Runs) -> None:
    first = runs.start(ZERO2R1_HOST="one")
    stage, child = runs.stage("one")
    os.kill(first.pid, signal.SIGSTOP)  # the stage lives, and so does the runner, which gives no sign of it
    second = runs.start(ZERO2R1_HOST="another")
    until(lambda: not alive(stage) and not alive(child), "the stage on the other host to end itself", 4 * SECONDS)
    again, _ = runs.stage("one")
    os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=SECONDS)
    assert first.returncode == 1
    assert f"process {second.pid} on host {socket.gethostname()} has taken over runs/play" in errors
    assert "Traceback" not in errors
    assert alive(again) and second.poll() is None


def test_jobs_run_beside_each_other_and_a_failure_waits_for_the_others(runs: Runs) -> None:
    runner = runs.start("--jobs", "2")
    runs.stage("one")
    two, _ = runs.stage("two")
    runs.go("one")
    until(lambda: "the cupboard is bare" in (runs.scratch("one") / "log.txt").read_text(), "stage one to fail")
    time.sleep(1)
    assert runner.poll() is None
    assert alive(two)
    runs.go("two")
    _, errors = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1
    assert "stage 'one' ended" in errors
    assert "stage 'two' ended" in errors
    assert not (runs.folder / "last.started").exists()


def test_one_job_at_a_time_is_the_rule(runs: Runs) -> None:
    runs.start()
    runs.stage("one")
    time.sleep(1)
    assert not (runs.folder / "two.started").exists()


def test_json_is_one_object_a_line(runs: Runs) -> None:
    runner = runs.start("--json")
    runs.stage("one")
    runs.go("one")
    output, _ = runner.communicate(timeout=SECONDS)
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events] == ["planned", "started", "failed"]
    assert events[0]["stages"] == {"one": "new", "two": "new", "last": "new"}
    assert events[1] == {"event": "started", "stage": "one", "resumed": False}
    assert "the cupboard is bare" in events[2]["message"]


def test_code_that_leaves_by_sys_exit_is_an_error(tmp_path: Path) -> None:
    """With code 0 it would look like an end that went well, and one process of several would leave the others alone."""
    (tmp_path / "leaves.py").write_text(
        "import sys\nfrom pipeline.tasks.base import Task\n"
        "class Leaves(Task):\n    def problems(self, split, n=None, seed=0):\n        sys.exit(0)\n"
    )
    config = {"kind": "evaluate", "model": "no/model", "tasks": [{"use": "leaves.py:Leaves"}]}
    job = worker.Job(stage="base", config=config, inputs={}, base=str(tmp_path), tasks={}, seed=1)
    with pytest.raises(RuntimeError, match=r"left by sys\.exit\(0\)"):
        worker._run(job, tmp_path)


def test_a_worker_whose_own_runner_is_gone_does_nothing(tmp_path: Path) -> None:
    """It may be slow to start, and then finds the job of the next runner, who lives."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    config = {"kind": "import_model", "model": "none"}
    job = {"stage": "s", "config": config, "inputs": {}, "base": str(tmp_path), "tasks": {}, "seed": 0}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "pipeline.runner.worker", str(tmp_path / "job.json"), str(ended.pid)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "the runner is gone" in done.stderr
    assert not (tmp_path / "outcome.json").exists()
