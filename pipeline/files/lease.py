"""Who may work on a run, whatever host it is on: a numbered lease with a heartbeat, in the run's folder or in a store.

A lock of the kernel (`flock`) may end at the host: NFS mounted with `local_lock`, Lustre without `flock` and most FUSE
file systems keep it to themselves. A lease needs only what every shared file system has, and most object stores, that
of several who give a file one name, one succeeds.

    .lease/000007     {"host": "n3", "boot": "0f7c…", "pid": 4711, "token": "9b1e…", "since": "2026-11-30 22:15 UTC"}
                      beat 000000000042

Leases are numbered, and the highest one counts. Its owner writes a new beat every few seconds. Whoever wants the run
from another host reads the beats for a while. Clocks are not compared: a lease is broken after a number of looks that
have found the same beat. Its successor takes the next number, which only one can, and then removes the old file. That
is the sign for the earlier owner, if it still lives: before it publishes, and every few seconds, it reads its own file
(which asks the server, on NFS), and works no more once that is gone. Its stages look as well, and end themselves.

Where the files lie is a `Place`: a folder (`pipeline.files.lease_folder`) or a store (`pipeline.runner.store_lease`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

FOLDER = ".lease"
"""Under the run's name, wherever that is."""
BEAT_SECONDS = 5.0
"""Between two beats of an owner, and between two looks of its stages."""
SILENT_SECONDS = 60.0
"""How long another host watches a lease before it breaks it: twelve beats, and a minute in which a server may hang."""
LOOKS_A_BEAT = 5
HOST = "ZERO2R1_HOST"
"""Stands for the kernel's boot id where hosts share one, as machines restored from one snapshot do."""
BEAT = b"beat %012d\n"

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_OVER = b"over".ljust(17) + b"\n"  # as long as a beat: it is written over one


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
        number: later leases have higher ones.
        host: its owner's.
        pid: its owner's process on that host.
        token: no other lease has it.
        beat: the line that changes while its owner lives.
        since: when it was taken, by its owner's clock; empty if that is not known.
        folder: which folder on its host the owner works in, if it said so; see `pipeline.runner.store_lease`.
    """

    number: int
    host: Host
    pid: int
    token: str
    beat: bytes
    since: str = ""
    folder: str = ""

    @classmethod
    def parsed(cls, number: int, head: bytes, beat: bytes) -> Seen:
        """From its file. One that is empty, of a host that crashed, belongs to nobody known."""
        try:
            said = json.loads(head)
            host, since, folder = Host(said["host"], said["boot"]), str(said.get("since", "")), said.get("folder", "")
            return cls(number, host, int(said["pid"]), said["token"], beat, since, folder)
        except (ValueError, KeyError, TypeError):
            return cls(number, Host("unknown", ""), 0, "", head + beat)

    @property
    def over(self) -> bool:
        """Whether its owner has given it back."""
        return self.beat == _OVER

    @property
    def owner(self) -> str:
        """For people."""
        return f"process {self.pid} on host {self.host.name}"


class Place(Protocol):
    """Where the leases of a run lie. All but `str` and `path` ask the file system, and raise OSError if it fails."""

    def __str__(self) -> str:
        """What the leases are of, for people."""

    def path(self, number: int) -> Path:
        """A lease's file, or its name in a store."""

    def numbers(self) -> list[int]:
        """Those that are there, in order; more than one only while, or because, an owner was interrupted."""

    def read(self, number: int) -> Seen | None:
        """A lease; `None` if it is no longer there."""

    def create(self, number: int, head: bytes) -> None:
        """Make a lease that nobody else has made, all of it at once. Raises FileExistsError if somebody has."""

    def write(self, number: int, beat: bytes) -> None:
        """Write a beat over the one before; a lease that is gone does not come back by it."""

    def remove(self, number: int) -> None:
        """Delete a lease, if it is there."""

    def clear(self, number: int) -> None:
        """Delete what is left of leases before this one, the lowest first."""


def newest(place: Place) -> Seen | None:
    """The lease that counts."""
    while found := place.numbers():
        if (seen := place.read(found[-1])) is not None:
            return seen
    return None


def works(seen: Seen, place: Place) -> LockError:
    """Says that the owner of a lease lives, and what to do."""
    since = f" since {seen.since} by its clock" if seen.since else ""
    return LockError(
        f"another process (pid {seen.pid} on host {seen.host.name}) works on {place}{since}. Wait until it has ended,"
        f" or end it there (kill {seen.pid}): the same command then goes on from where it was"
    )


def await_silence(seen: Seen, place: Place, seconds: float = SILENT_SECONDS) -> None:
    """Watch a lease until it may be broken.

    Looks are counted, not seconds: while this process, or the file server, stands still, nothing is seen, and an owner
    that the same server holds up has time to beat again.

    Raises:
        LockError: its owner lives, or somebody else was faster.
    """
    pause = min(BEAT_SECONDS, seconds) / LOOKS_A_BEAT
    told = "%s was last worked on by %s: waiting for a sign of life, for about %g s"
    log.warning(told, place, seen.owner, seconds)
    for _ in range(round(seconds / pause)):
        time.sleep(pause)
        now = place.read(seen.number)
        if now is None:
            raise _begun(place, seen.number + 1)
        if now.over:
            return
        if now.beat != seen.beat:
            raise works(seen, place)
    log.warning("no sign of life from %s: this one takes over", seen.owner)


def _begun(place: Place, number: int) -> LockError:
    seen = place.read(number)
    whom = "" if seen is None else f" (pid {seen.pid} on host {seen.host.name})"
    return LockError(f"another process{whom} has just begun to work on {place}")


class Lease:
    """The right to work on a run. Beats in a thread of its own until it is given back or lost.

    Args:
        place: where it lies; `take` has made it there.
        number: its own.
        token: of the owner.
        every: seconds between two beats.
    """

    def __init__(self, place: Place, number: int, token: str, every: float = BEAT_SECONDS) -> None:
        self.place, self.number, self.token, self.every = place, number, token, every
        self._ended, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """Its file."""
        return self.place.path(self.number)

    def check(self) -> None:
        """Ask the file system whether this is still the lease that counts.

        Raises:
            LockError: it is not: another host has taken over.
        """
        own = self.place.read(self.number)
        if own is not None and own.token == self.token and self.place.numbers()[-1:] == [self.number]:
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
                self.place.write(self.number, _OVER)

    def _error(self) -> LockError:
        whom, end = "another host", "Nothing more is published from here"
        with contextlib.suppress(OSError):  # that it is lost is known, if not to whom
            if (seen := newest(self.place)) is None:
                what = f"{self.path}, by which hosts know that {self.place} is worked on, was deleted"
                return LockError(f"{what}. {end}; the same command goes on from where it was")
            whom = seen.owner
        return LockError(
            f"{whom} has taken over {self.place}, as this process gave no sign of life for a minute (it was stopped, or"
            f" its disk or network was). {end}"
        )

    def _beat(self) -> None:
        number = 0
        while not self._ended.wait(self.every):
            number += 1
            try:
                with contextlib.suppress(FileNotFoundError):  # gone: the check says so
                    self.place.write(self.number, BEAT % number)
                self.check()
            except LockError as error:
                log.error("%s", error)
                return
            except OSError as error:
                log.warning("%s: no sign of life could be left there (%s)", self.path, error.strerror)


def take(place: Place, before: Seen | None, host: Host, every: float = BEAT_SECONDS, folder: str = "") -> Lease:
    """Take the lease after another one.

    Args:
        place: where leases of the run lie.
        before: the newest one, over or broken; `None` if there was none.
        host: of this process.
        every: seconds between two beats.
        folder: which folder of the host it works in; see `Seen`.

    Raises:
        LockError: somebody else was faster.
    """
    token, number = uuid.uuid4().hex, 1 if before is None else before.number + 1
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    head = {"host": host.name, "boot": host.boot, "pid": os.getpid(), "token": token, "since": since, "folder": folder}
    try:
        place.create(number, json.dumps(head).encode())
        there = place.numbers()
    except (FileExistsError, FileNotFoundError):
        there = []
    # That of `before` shows that no later one has been removed. Listings may be old on NFS, what is opened is not.
    if there[-1:] != [number] or (before is not None and place.read(before.number) is None):
        if (own := place.read(number)) is not None and own.token == token:
            place.remove(number)  # its number was used up meanwhile
        raise _begun(place, number)
    place.clear(number)
    return Lease(place, number, token, every)


@contextlib.contextmanager
def held(
    place: Place, before: Seen | None, host: Host, every: float = BEAT_SECONDS, folder: str = ""
) -> Iterator[Lease]:
    """A lease for as long as this lasts; see `take`."""
    lease = take(place, before, host, every, folder)
    try:
        yield lease
    finally:
        lease.close()
