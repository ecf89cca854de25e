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
_TICKS = os.sysconf("SC_CLK_TCK")
_USER_TIME, _SYSTEM_TIME = 11, 12
"""Places in /proc/PID/stat behind the name; they count all threads of a process, those that ended too."""
_FIRST_PID = 300
"""Where numbers of processes start again after the largest (RESERVED_PIDS in kernel/pid.c)."""


def watch(pids: list[int], limits: Limits, guarded: bool, control: socket.socket) -> tuple[str, int]:
    """Wait until the first process ends by itself, or all have to be ended.

    Args:
        pids: first processes of the job's members, started one after the other.
        limits: what the job may use, from now on.
        guarded: whether this is a sandbox's own process namespace, where all others belong to the job.
        control: the host's socket; during a job it has nothing to say but that it is gone.

    Returns:
        Why (`exited`, `wall`, `memory` or `abandoned`), and the most memory seen, in KiB.
    """
    deadline, usage, members = time.monotonic() + limits.wall_s, Usage(pids), {str(pid) for pid in pids}
    process = os.pidfd_open(pids[0])
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 and guarded:
                left += usage.starved_s(limits.wall_s)
            if left <= 0:
                return "wall", usage.peak_kb
            ready = poll.poll(max(1, min(left, WATCH_S) * 1000))
            if any(descriptor == process for descriptor, _ in ready):
                return "exited", usage.peak_kb
            if ready:
                return "abandoned", usage.peak_kb
            if guarded:
                usage.look(members)
                if usage.peak_kb > limits.memory_mb * 1024:
                    return "memory", usage.peak_kb
    finally:
        os.close(process)


class Usage:
    """What a job used, with all processes that it ever started.

    Attributes:
        peak_kb: the most memory of all its processes together, in KiB, beyond the zygote's, whose pages all share.
    """

    def __init__(self, pids: list[int]) -> None:
        self.peak_kb, self._pids, self._seen_s = 0, pids, dict[str, float]()

    def look(self, members: set[str]) -> None:
        """Take note of memory, and of the time of processes that may soon be gone."""
        total, own = 0, _private_pages("self")
        for pid in _others():
            with suppress(OSError):  # it may have ended since
                total += max(0, _private_pages(pid) - own) * _PAGE_KB
                if pid not in members:
                    self._seen_s[pid] = _used_s(pid)
        self.peak_kb = max(self.peak_kb, total)

    def starved_s(self, wall_s: float) -> float:
        """Seconds that a job was ready to run while others had the cores; 0 where the kernel does not count them."""
        try:
            waited = sum(_waited_s(f"{pid}/task/{task}") for pid in map(str, self._pids) for task in _tasks(pid))
            used = self._used_s()
        except (OSError, ValueError):
            return 0.0
        return min(waited, PATIENCE * wall_s) if used < wall_s else 0.0

    def _used_s(self) -> float:
        """Processor time of all processes, living and dead.

        Nobody tells the time of a child that ended between two looks (its parent need not wait for it), but every
        process and thread takes a number: those that are missing count as if each had run from look to look.
        """
        alive, tasks = _others(), 0
        for pid in alive:
            self._seen_s[pid] = _used_s(pid)
            tasks += len(_tasks(pid))
        started = _newest_pid() - self._pids[0] + 1
        if started <= 0:
            started += int(Path("/proc/sys/kernel/pid_max").read_text()) - _FIRST_PID
        return sum(self._seen_s.values()) + WATCH_S * max(0, started - tasks)


def _used_s(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / _TICKS


def _waited_s(task: str) -> float:
    return int(Path(f"/proc/{task}/schedstat").read_text().split()[1]) / 1e9


def _newest_pid() -> int:
    """Number of the process or thread that was started last in this namespace, or in one below it."""
    return int(Path("/proc/loadavg").read_text().split()[-1])


def _tasks(pid: str) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208


def _private_pages(pid: str) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  # a hundred times a second
        _, resident, shared, *_ = file.read().split()
    return int(resident) - int(shared)


def _others() -> list[str]:
    """All processes in this namespace but this one."""
    own = str(os.getpid())
    return [entry for entry in os.listdir("/proc") if entry.isdigit() and entry != own]  # noqa: PTH208
