"""Who may work on a run: one runner, and no process of an earlier attempt.

Both are locks of the kernel (`flock`), which end with the processes that hold them. Whoever has to wait says for whom
and how long, and gives up after a while.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline import durable

log = logging.getLogger(__name__)

RUN_LOCK = ".lock"
"""In the run's folder; holds the runner's process id."""
STAGE_LOCK = "lock"
"""In a stage's scratch folder; every process of the stage holds it."""
GHOST_SECONDS = 60.0
"""How long to wait for the processes of an earlier attempt. The kernel ends them with their runner, so what is left
after a minute hangs in the kernel (a dead network disk, a lost GPU) and will not end by itself."""
FIRST_SECONDS, TELL_SECONDS = 1.0, 5.0
"""Before the first line about a wait, and between two of them."""
POLL_SECONDS = 0.05


class LockError(RuntimeError):
    """Somebody else works here; the message says who."""


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run while working on it; the folder is made if it is not there.

    Raises:
        LockError: another process works on it, or the folder cannot be written.
    """
    try:
        durable.make_folder(run)
        handle = (run / RUN_LOCK).open("a+")
    except OSError as error:
        raise LockError(f"{run} cannot be written: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise LockError(f"another process ({handle.read().strip() or 'unknown'}) works on {run}") from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield


@contextlib.contextmanager
def stage_lock(scratch: Path) -> Iterator[None]:
    """Held by each process of a stage for as long as it lives."""
    with (scratch / STAGE_LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def await_ghosts(scratch: Path, stage: str, limit: float = GHOST_SECONDS) -> None:
    """Wait until no process of an earlier attempt of a stage is alive, and say so while it takes time.

    Raises:
        LockError: one is still there after `limit` seconds; names it.
    """
    path = scratch / STAGE_LOCK
    with path.open("a") as handle:
        started, tell_at = time.monotonic(), min(FIRST_SECONDS, limit)
        while not _taken(handle):
            waited = time.monotonic() - started
            if waited >= limit:
                raise LockError(
                    f"stage {stage!r} cannot start: {named_holders(path)} of an earlier attempt is still there after"
                    f" {limit:g} s. End it (kill -9); if it cannot be ended, restart the machine. Then run again: the"
                    " stage goes on from its last checkpoint"
                )
            if waited >= tell_at:
                told = "stage %r waits for %s of an earlier attempt to end, since %.0f s and for at most %g s"
                log.warning(told, stage, named_holders(path), waited, limit)
                tell_at = waited + TELL_SECONDS
            time.sleep(POLL_SECONDS)


def _taken(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holders(path: Path) -> dict[int, str]:
    """The other processes that have a file open: id -> command. Only those that this user may look at."""
    wanted, found = path.stat(), dict[int, str]()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    opened = descriptor.stat()
                    if (opened.st_dev, opened.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def named_holders(path: Path) -> str:
    """The other processes that have a file open, in words."""
    processes = holders(path)
    if not processes:
        return "a process that cannot be seen from here"
    return "process " + ", ".join(f"{number} ({name})" for number, name in sorted(processes.items()))
