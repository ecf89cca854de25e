"""Watching a job from outside of its jail: its time, and the memory of all its processes together."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

from rewards.sandbox.inside.jail import Limits

WATCH_S = 0.01
"""Seconds between two looks."""
PATIENCE = 4
"""A job on a busy machine gets the time back for which it had no core, up to this many times its wall time, unless
its processes together used their time up: what a program is worth must not depend on what else runs."""

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


def watch(pids: list[int], limits: Limits, guarded: bool, control: socket.socket) -> tuple[str, int]:
    """Wait until the first process ends by itself, or all have to be ended.

    Args:
        pids: first processes of the job's members.
        limits: what the job may use, from now on.
        guarded: whether this is a sandbox's own process namespace, where all others belong to the job.
        control: the host's socket; during a job it has nothing to say but that it is gone.

    Returns:
        Why (`exited`, `wall`, `memory` or `abandoned`), and the most memory seen, in KiB.
    """
    deadline, peak_kb = time.monotonic() + limits.wall_s, 0
    process = os.pidfd_open(pids[0])
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                left += _starved_s(pids, limits.wall_s)
            if left <= 0:
                return "wall", peak_kb
            ready = poll.poll(max(1, min(left, WATCH_S) * 1000))
            if any(descriptor == process for descriptor, _ in ready):
                return "exited", peak_kb
            if ready:
                return "abandoned", peak_kb
            if guarded:
                peak_kb = max(peak_kb, _resident_kb())
                if peak_kb > limits.memory_mb * 1024:
                    return "memory", peak_kb
    finally:
        os.close(process)


def _starved_s(pids: list[int], wall_s: float) -> float:
    """Seconds that a job was ready to run while others had the cores; 0 where the kernel does not count them."""
    try:
        times = {int(pid): _schedule_s(pid) for pid in _others()}
        waited = sum(times[pid][1] for pid in pids if pid in times)
    except (OSError, ValueError):
        return 0.0
    used = sum(ran for ran, _ in times.values())
    return min(waited, PATIENCE * wall_s) if used < wall_s else 0.0


def _schedule_s(pid: str) -> tuple[float, float]:
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def _resident_kb() -> int:
    """Memory of a job in KiB: of every process what it holds beyond the zygote, whose pages all of them share."""
    total, own = 0, _private_pages("self")
    for pid in _others():
        with suppress(OSError):  # it may have ended since
            total += max(0, _private_pages(pid) - own) * _PAGE_KB
    return total


def _private_pages(pid: str) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  # a hundred times a second
        _, resident, shared, *_ = file.read().split()
    return int(resident) - int(shared)


def _others() -> list[str]:
    """All processes in this namespace but this one."""
    own = str(os.getpid())
    return [entry for entry in os.listdir("/proc") if entry.isdigit() and entry != own]  # noqa: PTH208
