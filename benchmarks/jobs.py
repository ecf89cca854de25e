"""Everything that needs GPUs, side by side on those that there are, within a given time.

    python -m benchmarks.jobs --small models/qwen2.5-coder-0.5b --base models/qwen2.5-coder-1.5b \\
        --gsm8k data/gsm8k --data data --out results --seconds 1500
    python -m benchmarks.jobs --list                        # what there is, with the GPUs and seconds that it needs
    python -m benchmarks.jobs --only ranks 'scaling-*' …

`benchmarks/jobs.yaml` has the jobs, the most wanted first. Each gets GPUs of its own and an equal share of the
processor's cores. The next one starts as soon as enough GPUs are free; one that cannot end within `--seconds` is left
out, and one that needs several GPUs is not held up by those behind it. `OUT/jobs.json` says at any time what became of
each, `OUT/NAME.log` what it printed. The same command goes on: jobs that ended well are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.files import durable
from pipeline.schema.launch import VISIBLE

JOBS = Path(__file__).with_suffix(".yaml")
PATIENCE = 2.0
"""A job is ended after this many times its expected seconds."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A line of the file of jobs.

    Attributes:
        name: what its log is called.
        gpus: how many it needs.
        seconds: that it is expected to take.
        run: its command.
    """

    name: str
    gpus: int
    seconds: float
    run: str

    def command(self, places: Mapping[str, str]) -> list[str]:
        """The words of its command; Python and pytest are those that run this."""
        first, *rest = (word.format_map(places) for word in shlex.split(self.run))
        start = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}.get(first, [first])
        return [*start, *rest]


@dataclass(frozen=True)
class Running:
    """A job that has been started."""

    job: Job
    process: subprocess.Popen[bytes]
    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    started: float

    def ends(self) -> float:
        """When it is expected to have ended, if all goes well."""
        return max(self.started + self.job.seconds, time.monotonic())


def read(path: Path, only: Sequence[str] = ("*",)) -> list[Job]:
    """The jobs of a file whose names match one of the patterns."""
    found = [Job(name, **told) for name, told in yaml.safe_load(path.read_text(encoding="utf-8")).items()]
    return [job for job in found if any(fnmatch.fnmatch(job.name, pattern) for pattern in only)]


class Queue:
    """Jobs on the GPUs of this machine.

    Args:
        gpus: their ids.
        places: what stands in commands as `{name}`, such as `out`, the folder of logs.
        until: when all has to be over, by `time.monotonic`.
    """

    def __init__(self, gpus: Sequence[str], places: Mapping[str, str], until: float) -> None:
        self.places, self.until, self.out = places, until, Path(places["out"])
        self.free = list(gpus)
        self.total = len(self.free)
        self.cores = sorted(os.sched_getaffinity(0))
        self.running: list[Running] = []
        self.out.mkdir(parents=True, exist_ok=True)
        self.state_file = self.out / "jobs.json"
        self.state: dict[str, Any] = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}

    def work(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Run all that fit, and return what became of each."""
        waiting = [job for job in jobs if self.state.get(job.name, {}).get("exit") != 0]
        try:
            while waiting or self.running:
                for one in [one for one in self.running if self.over(one)]:
                    self.end(one)
                for job in [job for job in waiting if not self.fits(job)]:
                    waiting.remove(job)
                    self.tell(job, left_out=f"needs {job.gpus} GPUs and {job.seconds:.0f} s")
                if (chosen := self.next(waiting)) is not None:
                    waiting.remove(chosen)
                    self.start(chosen)
                    continue
                time.sleep(LOOK_SECONDS)
        finally:
            for one in list(self.running):
                self.end(one)
        return self.state

    def fits(self, job: Job) -> bool:
        """Whether there are enough GPUs and seconds for it, whatever runs now."""
        return job.gpus <= self.total and time.monotonic() + job.seconds <= self.until

    def next(self, waiting: Sequence[Job]) -> Job | None:
        """The first job that can start now, and does not hold up one before it that needs more GPUs than are free."""
        held_up = self.until
        for job in waiting:
            if job.gpus <= len(self.free) and time.monotonic() + job.seconds <= held_up:
                return job
            if job.gpus > len(self.free):
                held_up = min(held_up, self.enough(job.gpus))
        return None

    def enough(self, gpus: int) -> float:
        """When so many GPUs are expected to be free."""
        free = len(self.free)
        for one in sorted(self.running, key=Running.ends):
            if free >= gpus:
                break
            free += len(one.gpus)
            when = one.ends()
        return when

    def start(self, job: Job) -> None:
        """Start a job on the first GPUs that are free."""
        gpus, self.free = tuple(self.free[: job.gpus]), self.free[job.gpus :]
        share = max(len(self.cores) * max(job.gpus, 1) // max(self.total, 1), 1)
        cores, self.cores = tuple(self.cores[:share]), self.cores[share:]
        with (self.out / f"{job.name}.log").open("wb") as log:
            process = subprocess.Popen(
                job.command(self.places),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, VISIBLE: ",".join(gpus)},
                start_new_session=True,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )
        self.running.append(Running(job, process, gpus, cores, time.monotonic()))
        self.tell(job, gpus=list(gpus))

    def over(self, one: Running) -> bool:
        """Whether a job has ended, or has to."""
        limit = min(one.started + PATIENCE * one.job.seconds, self.until)
        return one.process.poll() is not None or time.monotonic() > limit

    def end(self, one: Running) -> None:
        """End a job with all that it has started, and give its GPUs back."""
        ended = one.process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        self.running.remove(one)
        self.free = sorted([*self.free, *one.gpus])
        self.cores = sorted([*self.cores, *one.cores])
        took = round(time.monotonic() - one.started, 1)
        self.tell(one.job, exit="was ended: it took too long" if ended is None else ended, took=took)

    def tell(self, job: Job, **what: Any) -> None:
        """Write down what became of a job."""
        self.state[job.name] = what
        durable.write(self.state_file, json.dumps(self.state, indent=1) + "\n")
        print(job.name, *(f"{name}={value}" for name, value in what.items()), flush=True)


def present() -> list[str]:
    """The ids of the GPUs that this process may use."""
    import torch

    visible = os.environ.get(VISIBLE)
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the jobs, and nothing else")
    parser.add_argument("--jobs", type=Path, default=JOBS, help="another file of jobs")
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--gpus", nargs="+", help="ids; all that there are if not given")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="that all may take together")
    parser.add_argument("--small", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="folder or hub id")
    parser.add_argument("--base", default="Qwen/Qwen2.5-Coder-1.5B-Instruct", help="folder or hub id")
    parser.add_argument("--gsm8k", default="data/gsm8k", help="folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--data", default="data", help="folder with the data of `benchmarks.r1_qwen`")
    parser.add_argument("--out", default="benchmarks/results", help="folder of results, logs, and jobs.json")
    options = parser.parse_args()
    jobs = read(options.jobs, options.only)
    if options.list:
        for job in jobs:
            print(f"{job.name:16} {job.gpus} GPUs {job.seconds:5.0f} s  {job.run}")
        return
    places = {name: getattr(options, name) for name in ("small", "base", "gsm8k", "data", "out")}
    until = time.monotonic() + options.seconds
    found = Queue(options.gpus if options.gpus is not None else present(), places, until).work(jobs)
    sys.exit(any(found[job.name].get("exit", 1) != 0 for job in jobs))


if __name__ == "__main__":
    main()
