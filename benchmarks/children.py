"""Runs of a benchmark in processes of their own, side by side, each with a GPU or a share of one and of the cores."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

from pipeline.schema.launch import VISIBLE

Job = TypeVar("Job")
Found = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a run is: a GPU, and its share of the processor's cores; everywhere if nothing is given."""

    device: str | None = None
    cores: tuple[int, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """What its process is told."""
        return {} if self.device is None else {VISIBLE: self.device}


def gpu(place: str) -> str:
    """A GPU of the command line as `CUDA_VISIBLE_DEVICES` has it: numbers count those that this process may see.

    So a benchmark that was given some of a machine's GPUs, as `benchmarks.jobs` does, hands on these and no others.
    """
    seen = os.environ.get(VISIBLE, "").split(",")
    return seen[int(place)].strip() if place.isdecimal() and int(place) < len(seen) and seen[0] else place


def places(devices: Sequence[str]) -> list[Place]:
    """One for each GPU, and several where one is named several times; they share the cores evenly."""
    cores, count = sorted(os.sched_getaffinity(0)), len(devices)
    return [Place(device, tuple(cores[index::count])) for index, device in enumerate(devices)] or [Place()]


def side_by_side(jobs: Sequence[Job], devices: Sequence[str], run: Callable[[Job, Place], Found]) -> list[Found]:
    """What became of each job, in their order; as many run at a time as there are places."""
    free: Queue[Place] = Queue()
    for place in places(devices):
        free.put(place)

    def placed(job: Job) -> Found:
        place = free.get()
        try:
            return run(job, place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return list(pool.map(placed, jobs))


def options(parser: argparse.ArgumentParser, child: Callable[[str], None]) -> argparse.Namespace:
    """The options of a benchmark that runs itself in processes of its own; one of these does its job and ends here.

    Args:
        parser: to which `--out` and `--child` are added.
        child: does the job; see `in_child`.
    """
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.child:
        child(found.child)
        sys.exit()
    return found


def in_child(module: str, job: Mapping[str, Any], env: Mapping[str, str]) -> Found:
    """What `python -m MODULE --child JOB` leaves in `found.json`, or why there is nothing.

    Args:
        module: its `child` reads the job and calls `leave`.
        job: what to do, as JSON has it; the child also gets `folder`, a place to work in, which is then deleted.
        env: what its environment has beside this one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", module, "--child", json.dumps({**job, "folder": folder})]
        done = subprocess.run(command, check=False, env={**os.environ, **env})
        found = Path(folder) / "found.json"
        if done.returncode or not found.exists():
            return {"failed": f"exit code {done.returncode}"}
        result: Found = json.loads(found.read_text(encoding="utf-8"))
        return result


def leave(folder: Path, found: Mapping[str, Any]) -> None:
    """What a child found, for `in_child`."""
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
