"""Processes that end with the one that started them, by the kernel's own means.

A process that watches its parent needs its interpreter's lock for that, and a C extension may hold it for hours; one
that was stopped (SIGSTOP) watches nothing at all. Linux kills a process itself when its parent ends, in whatever way.
That reaches one process. What else belongs to its process group is ended by a guard, a small process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_WORD = signal.SIGTERM
"""What the kernel sends to a guard; the guard waits for it."""


def end_with_parent(parent: int, word: signal.Signals = signal.SIGKILL) -> bool:
    """Have the kernel send a signal to this process when the process that started it ends.

    Args:
        parent: the process that started this one: it may have ended before the kernel is asked.
        word: the signal.

    Returns:
        Whether the parent is still there. Elsewhere than on Linux this is all that it does.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, word) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def guard_group(folder: Path | None = None) -> None:
    """Have this process group ended when this process, which leads it, ends. Call it before there are threads.

    The guard stands outside of the group, so it neither hears Ctrl-C nor is stopped with it.

    Args:
        folder: what the group keeps files in that nobody needs after it; it is deleted then.
    """
    leader = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {_WORD})
    if os.fork() == 0:
        try:
            _guard(leader, folder)
        finally:
            os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {_WORD})


def kill_group(leader: int, word: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group, if it is still there: to the process that leads it, and all it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, word)


def end_group(leader: int, word: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group that is trusted; SIGKILL to all of it but Python's resource trackers.

    A tracker ends when those that it works for have ended, and takes away the shared memory that they had no time to.
    """
    if word is not signal.SIGKILL:
        kill_group(leader, word)
        return
    killed: set[int] = set()
    while left := {pid for pid in _members(leader) if not _is_tracker(pid)} - killed:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= left  # and what they have started meanwhile comes next


def _members(leader: int) -> set[int]:
    """The processes of a group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == leader:
                found.add(int(stat.parent.name))
    return found


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def ending(code: int) -> str:
    """How a process with this exit code ended, in words that go on after "it"."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _guard(leader: int, folder: Path | None) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    alive = end_with_parent(leader, _WORD)
    while alive:
        signal.sigwait({_WORD})
        alive = os.getppid() == leader
    end_group(leader)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """`python -m rewards.parent PARENT COMMAND…`: become a command that ends with its parent, and its group with it."""
    parent, *command = sys.argv[1:]
    if not end_with_parent(int(parent)):
        sys.exit(f"{command[0]}: the process {parent} that started it is gone")
    guard_group()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
