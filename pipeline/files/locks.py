"""Who may work on a run: one runner, and no process of an earlier attempt.

Among processes of one host both are locks of the kernel (`flock`), which end with the processes that hold them. Other
hosts on a shared file system may not see these: between hosts a lease decides (`pipeline.files.lease`), and the
processes of an earlier attempt end themselves once theirs is gone. Whoever has to wait says for whom and how long, and
gives up after a while.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from pipeline.files import durable, lease
from pipeline.files.lease import BEAT_SECONDS, SILENT_SECONDS, Host, Lease, Seen
from pipeline.files.lease_folder import Folder

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


LockError = lease.LockError
"""Somebody else works here; the message says who."""

_NO_FLOCK = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})


@contextlib.contextmanager
def run_lock(
    run: Path, host: Host | None = None, silent: float = SILENT_SECONDS, every: float = BEAT_SECONDS
) -> Iterator[Lease]:
    """Hold a run while working on it; the folder is made if it is not there.

    Args:
        run: its folder.
        host: which this is, if not the one that the kernel says.
        silent: seconds without a sign of life before the lease of another host is broken.
        every: seconds between two signs of life.

    Raises:
        LockError: another process works on it, or the folder cannot be written.
    """
    host = host or lease.this_host()
    try:
        durable.make_folder(run)
        handle = (run / RUN_LOCK).open("a+")
    except OSError as error:
        raise LockError(f"{run} cannot be written: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(handle)
        alone = _flock(handle, fcntl.LOCK_EX)
        place = Folder(run)
        before = lease.newest(place)
        elsewhere = before is not None and not before.over and before.host.boot != host.boot
        if alone is False and not elsewhere:
            handle.seek(0)
            raise LockError(f"another process ({handle.read().strip() or 'unknown'}) works on {run}")
        broken = before is not None and not before.over and (elsewhere or alone is None)
        if before is not None and broken:
            lease.await_silence(before, place, silent)
        held = stack.enter_context(lease.held(place, before, host, every))
        if before is not None and before.host.boot != host.boot:
            _forget(run, before, broken, every)
        if alone is False:
            handle = stack.enter_context(_another(run / RUN_LOCK))
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield held


def _forget(run: Path, before: Seen, broken: bool, every: float) -> None:
    """Leave what another host has held behind: its stages end themselves, and its locks may outlive it on a server."""
    if broken:
        log.warning("waiting %g s for what is left of this run's stages on host %s to end", 2 * every, before.host.name)
        time.sleep(2 * every)
    for path in run.glob(f"scratch/*/{STAGE_LOCK}"):
        path.unlink(missing_ok=True)


def _another(path: Path) -> TextIOWrapper:
    """A locked file in place of one whose lock another host has left on the server."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    handle = beside.open("a+")
    _flock(handle, fcntl.LOCK_EX)
    beside.replace(path)
    return handle


def _flock(handle: IO[str], how: int) -> bool | None:
    """Lock a file without waiting: whether it worked, or `None` where the file system has no such locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return None
    return True


@contextlib.contextmanager
def stage_lock(scratch: Path) -> Iterator[None]:
    """Held by each process of a stage for as long as it lives."""
    with (scratch / STAGE_LOCK).open("a+") as handle:  # NFS wants a file that is read for a shared lock
        if _flock(handle, fcntl.LOCK_SH) is None:
            log.warning("%s has no locks (flock): a process of an earlier attempt would not be noticed", scratch)
        yield


def await_ghosts(scratch: Path, stage: str, limit: float = GHOST_SECONDS) -> None:
    """Wait until no process of an earlier attempt of a stage is alive, and say so while it takes time.

    Raises:
        LockError: one is still there after `limit` seconds; names it.
    """
    path = scratch / STAGE_LOCK
    with path.open("a+") as handle:
        started, tell_at = time.monotonic(), min(FIRST_SECONDS, limit)
        while _flock(handle, fcntl.LOCK_EX) is False:
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
