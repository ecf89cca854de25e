"""Isolated jobs a second: zygotes, a bubblewrap for every job, and a bare process for every job.

    python -m benchmarks.sandbox [--rounds 7] [--out benchmarks/results/sandbox.json]

Every job defines the same small function and calls it three times, as an MBPP row does. The ways take turns, so that
whatever else the machine does hits all of them; the figures are medians over rounds. `bubblewrap a job` is what one
would write without zygotes: the same bubblewrap command line with Python and the program behind it, and neither
system-call filter, nor limits, nor watchdog. `process a job` isolates nothing. Processor time a job depends less on how
busy the machine is: two idle cores do 2000 / `cpu_ms_per_job` jobs a second at most.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rewards.sandbox import Limits, LocalSandbox
from rewards.sandbox.bubblewrap import bubblewrapped

SOLUTION = """
def min_cost(cost, m, n):
    total = [[0] * (n + 1) for _ in range(m + 1)]
    for i in range(m + 1):
        for j in range(n + 1):
            before = [total[a][b] for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
            total[i][j] = cost[i][j] + min(before, default=0)
    return total[m][n]
"""
CALLS = [f"min_cost([[{k}, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2)" for k in range(3)]
VALUES = [7, 8, 9]
PRINTING = SOLUTION + "\nprint([" + ", ".join(CALLS) + "])"
ROUND_S = 2.0  # seconds of a round and way


def sandboxed(sandbox: LocalSandbox) -> Callable[[], bool]:
    """A job in our sandbox."""
    payload = {"kind": "calls", "code": SOLUTION, "setup": "", "calls": CALLS, "stop": True}
    return lambda: sandbox.run(payload).records == [{"value": value} for value in VALUES]


def spawned(command: list[str]) -> Callable[[], bool]:
    """A job in a process of its own, which prints its results."""

    def run() -> bool:
        done = subprocess.run(command, capture_output=True, env={}, cwd="/", check=False)
        return done.stdout.decode().strip() == str(VALUES)

    return run


def rate(job: Callable[[], bool], workers: int) -> float:
    """Jobs a second, all of which must have given the right results."""
    started = time.perf_counter()

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < started + ROUND_S:
            if not job():
                raise SystemExit("a job did not give the right results")
            done += 1
        return done

    with ThreadPoolExecutor(workers) as threads:
        done = sum(threads.map(work, range(workers)))
    return done / (time.perf_counter() - started)


def cpu_ms(job: Callable[[], bool], jobs: int, end: Callable[[], None] = lambda: None) -> float:
    """Milliseconds of processor time a job, in all its processes and in this one, starting and ending included."""
    before = _cpu_s()
    for _ in range(jobs):
        job()
    end()
    return (_cpu_s() - before) / jobs * 1000


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    zygotes = LocalSandbox(workers=arguments.workers)
    one_shot = LocalSandbox(workers=arguments.workers, nested=False)
    ways = {
        "zygote": sandboxed(zygotes),
        "one-shot fallback": sandboxed(one_shot),
        "bubblewrap a job": spawned(bubblewrapped(Limits(), ["-c", PRINTING])),
        "process a job": spawned([sys.executable, "-I", "-S", "-c", PRINTING]),
    }
    for job in ways.values():
        job()
    rounds = [{name: rate(job, arguments.workers) for name, job in ways.items()} for _ in range(arguments.rounds)]
    zygotes.close()
    one_shot.close()
    alone = LocalSandbox(workers=1)
    cpu = {"zygote": cpu_ms(sandboxed(alone), 200, alone.close)}
    cpu |= {name: cpu_ms(job, 20) for name, job in ways.items() if name != "zygote"}
    median = {name: statistics.median(r[name] for r in rounds) for name in ways}
    ratios = {name: statistics.median(r["zygote"] / r[name] for r in rounds) for name in ways if name != "zygote"}
    result = {
        "command": " ".join(["python -m benchmarks.sandbox", f"--rounds {arguments.rounds}"]),
        "jobs_per_s": {name: round(value, 1) for name, value in median.items()},
        "zygote_times_faster_than": {name: round(value, 1) for name, value in ratios.items()},
        "cpu_ms_per_job": {name: round(value, 1) for name, value in cpu.items()},
        "workers": arguments.workers,
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "bubblewrap": subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.strip(),
        "as_root": os.geteuid() == 0,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
