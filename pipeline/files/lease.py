"""Who may work on a run, whatever host it is on: a numbered lease in the run's folder, with a heartbeat.

A lock of the kernel (`flock`) may end at the host: NFS mounted with `local_lock`, Lustre without `flock` and most FUSE
file systems keep it to themselves. A lease needs only what every shared file system has, that of several who give a
file one name, one succeeds (`link`, or an exclusive `open`).

    .lease/000007     {"host": "n3", "boot": "0f7c…", "pid": 4711, "token": "9b1e…"}
                      beat 000000000042

Leases are numbered, and the highest one counts. Its owner writes a new beat every few seconds. Whoever wants the run
from another host reads the beats for a while. Clocks are not compared: a lease is broken after a number of looks that
have found the same beat. Its successor takes the next number, which only one can, and then removes the old file. That
is the sign for the earlier owner, if it still lives: before it publishes, and every few seconds, it opens its own file
(which asks the server, on NFS), and works no more once that is gone. Its stages look as well, and end themselves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import durable

log = logging.getLogger(__name__)

FOLDER = ".lease"
"""In the run's folder."""
BEAT_SECONDS = 5.0
"""Between two beats of an owner, and between two looks of its stages."""
SILENT_SECONDS = 60.0
"""How long another host watches a lease before it breaks it: twelve beats, and a minute in which a server may hang."""
LOOKS_A_BEAT = 5
HOST = "ZERO2R1_HOST"
"""Stands for the kernel's boot id where hosts share one, as machines restored from one snapshot do."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_BEAT = b"beat %012d\n"
_OVER = b"over".ljust(17) + b"\n"  # as long as a beat: it is written over one
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class LockError(RuntimeError):
    """Somebody else works here; the message says who."""


@dataclass(frozen=True, slots=True)
class Host:
    """A running kernel.

    Attributes:
        name: its name, for people.
        boot: differs from host to host, and from one start of a host to the next.
    """

    name: str
    boot: str


def this_host() -> Host:
    """The host that this process is on."""
    boot = os.environ.get(HOST) or (_BOOT.read_text().strip() if _BOOT.exists() else f"{uuid.getnode():012x}")
    return Host(socket.gethostname(), boot)


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as it was read.

    Attributes:
        path: its file.
        host: its owner's.
        pid: its owner's process on that host.
        token: no other lease has it.
        beat: the line that changes while its owner lives.
    """

    path: Path
    host: Host
    pid: int
    token: str
    beat: bytes

    @property
    def number(self) -> int:
        """Later leases have higher ones."""
        return int(self.path.name)

    @property
    def over(self) -> bool:
        """Whether its owner has given it back."""
        return self.beat == _OVER


def numbers(folder: Path) -> list[int]:
    """The leases in a folder, in order; more than one only while, or because, an owner was interrupted."""
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []


def read(path: Path) -> Seen | None:
    """A lease; `None` if it is no longer there. One that is empty, of a host that crashed, belongs to nobody known."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    head, _, beat = data.partition(b"\n")
    try:
        said = json.loads(head)
        return Seen(path, Host(said["host"], said["boot"]), int(said["pid"]), said["token"], beat)
    except (ValueError, KeyError, TypeError):
        return Seen(path, Host("unknown", ""), 0, "", data)


def newest(run: Path) -> Seen | None:
    """The lease that counts."""
    folder = run / FOLDER
    while found := numbers(folder):
        if (seen := read(folder / f"{found[-1]:06d}")) is not None:
            return seen
    return None


def await_silence(seen: Seen, run: Path, seconds: float = SILENT_SECONDS) -> None:
    """Watch a lease until it may be broken.

    Looks are counted, not seconds: while this process, or the file server, stands still, nothing is seen, and an owner
    that the same server holds up has time to beat again.

    Raises:
        LockError: its owner lives, or somebody else was faster.
    """
    pause = min(BEAT_SECONDS, seconds) / LOOKS_A_BEAT
    told = "%s was last worked on by process %d on host %s: waiting for a sign of life, for about %g s"
    log.warning(told, run, seen.pid, seen.host.name, seconds)
    for _ in range(round(seconds / pause)):
        time.sleep(pause)
        now = read(seen.path)
        if now is None:
            raise LockError(f"another process has just begun to work on {run}")
        if now.over:
            return
        if now.beat != seen.beat:
            raise LockError(f"another process (pid {seen.pid} on host {seen.host.name}) works on {run}")
    log.warning("no sign of life from process %d on host %s: this one takes over", seen.pid, seen.host.name)


class Lease:
    """The right to work on a run. Beats in a thread of its own until it is given back or lost.

    Args:
        path: its file, which `take` has made.
        token: of the owner.
        every: seconds between two beats.
    """

    def __init__(self, path: Path, token: str, every: float = BEAT_SECONDS) -> None:
        self.path, self.token, self.every = path, token, every
        self._file = os.open(path, os.O_RDWR)
        self._place = os.pread(self._file, 4096, 0).index(b"\n") + 1
        self._ended, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Ask the file system whether this is still the lease that counts.

        Raises:
            LockError: it is not: another host has taken over.
        """
        own = read(self.path)
        if own is not None and own.token == self.token and numbers(self.path.parent)[-1:] == [int(self.path.name)]:
            return
        self._lost = True
        raise self._error()

    def look(self) -> None:
        """As `check`, by what the last beat has found, which costs nothing. Raises LockError."""
        if self._lost:
            raise self._error()

    def close(self) -> None:
        """Give it back: the next one need not wait."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the server is gone: the next one waits
            if not self._lost:
                self._write(_OVER)
        os.close(self._file)

    def _error(self) -> LockError:
        seen = newest(self.path.parent.parent)
        whom = "another host" if seen is None else f"process {seen.pid} on host {seen.host.name}"
        return LockError(
            f"{whom} has taken over {self.path.parent.parent}, as this process gave no sign of life for a minute"
            " (it was stopped, or its disk was). Nothing more is published from here"
        )

    def _beat(self) -> None:
        number = 0
        while not self._ended.wait(self.every):
            number += 1
            try:
                self._write(_BEAT % number)
                self.check()
            except LockError as error:
                log.error("%s", error)
                return
            except OSError as error:
                log.warning("%s: no sign of life could be left there (%s)", self.path, error.strerror)

    def _write(self, line: bytes) -> None:
        os.pwrite(self._file, line, self._place)
        os.fsync(self._file)


def take(run: Path, before: Seen | None, host: Host, every: float = BEAT_SECONDS) -> Lease:
    """Take the lease after another one.

    Args:
        run: the run's folder.
        before: the newest one, over or broken; `None` if there was none.
        host: of this process.
        every: seconds between two beats.

    Raises:
        LockError: somebody else was faster.
    """
    folder, token = run / FOLDER, uuid.uuid4().hex
    durable.make_folder(folder)
    number = 1 if before is None else before.number + 1
    path = folder / f"{number:06d}"
    head = json.dumps({**_named(host), "pid": os.getpid(), "token": token}).encode()
    try:
        _create(path, head + b"\n" + _BEAT % 0)
        there = numbers(folder)
    except (FileExistsError, FileNotFoundError):
        there = []
    # That of `before` shows that no later one has been removed. Listings may be old on NFS, what is opened is not.
    if there[-1:] != [number] or (before is not None and read(before.path) is None):
        if (own := read(path)) is not None and own.token == token:
            path.unlink()  # its number was used up meanwhile
        raise LockError(f"another process has just begun to work on {run}")
    for earlier in there[:-1]:  # the lowest first
        (folder / f"{earlier:06d}").unlink(missing_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    durable.sync(folder)
    return Lease(path, token, every)


def _named(host: Host) -> dict[str, str]:
    said = asdict(host)
    return {"host": said["name"], "boot": said["boot"]}


def _create(path: Path, content: bytes) -> None:
    """Make a file that nobody else has made, with all of its content at once where the file system has links.

    Raises:
        FileExistsError: somebody else has.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    _write_new(part, content)
    try:
        os.link(part, path)
    except FileExistsError:
        if part.stat().st_nlink != 2:  # 2: it was done, and NFS has lost the answer and asked again
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_new(path, content)
    finally:
        part.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def end_without(path: Path, every: float = BEAT_SECONDS) -> None:
    """End this process and its group once the lease that it works under is gone; watches from a thread."""

    def watch() -> None:
        while True:
            time.sleep(every)
            with contextlib.suppress(OSError):  # a server that does not answer has told nobody else either
                if read(path) is None:
                    log.error("another host has taken over this run; stopping (it goes on from the last checkpoint)")
                    os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lease", daemon=True).start()


@contextlib.contextmanager
def held(run: Path, before: Seen | None, host: Host, every: float = BEAT_SECONDS) -> Iterator[Lease]:
    """A lease for as long as this lasts; see `take`."""
    lease = take(run, before, host, every)
    try:
        yield lease
    finally:
        lease.close()
