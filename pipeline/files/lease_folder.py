"""Leases in a folder, which hosts may share: the run's own, or that of its copies on a file system.

.lease/000007     {"host": "n3", …}
                  beat 000000000042
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import durable
from pipeline.files.lease import BEAT, BEAT_SECONDS, FOLDER, Seen

log = logging.getLogger(__name__)

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True)
class Folder:
    """A place of leases (`pipeline.files.lease.Place`).

    Attributes:
        run: the folder of a run.
        name: what is worked on, for people; the folder if not given.
    """

    run: Path
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.run)

    def path(self, number: int) -> Path:
        return self.run / FOLDER / f"{number:06d}"

    def numbers(self) -> list[int]:
        try:
            return sorted(int(path.name) for path in (self.run / FOLDER).iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def read(self, number: int) -> Seen | None:
        if (data := _content(self.path(number))) is None:
            return None
        head, _, beat = data.partition(b"\n")
        return Seen.parsed(number, head, beat)

    def create(self, number: int, head: bytes) -> None:
        """In one step where the file system has links."""
        path = self.path(number)
        durable.make_folder(path.parent)
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        content = head + b"\n" + BEAT % 0
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

    def write(self, number: int, beat: bytes) -> None:
        path = self.path(number)
        handle = os.open(path, os.O_RDWR)
        try:
            head, end, _ = os.pread(handle, 4096, 0).partition(b"\n")
            if not end:
                raise FileNotFoundError(errno.ENOENT, "no lease is in it any more", str(path))
            os.pwrite(handle, beat, len(head) + 1)
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, number: int) -> None:
        self.path(number).unlink(missing_ok=True)

    def clear(self, number: int) -> None:
        for earlier in self.numbers():
            if earlier < number:
                self.remove(earlier)
        for part in (self.run / FOLDER).glob(".*.part"):
            part.unlink(missing_ok=True)
        durable.sync(self.run / FOLDER)


def _content(path: Path) -> bytes | None:
    """A file's; `None` if it is no longer there."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


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
                if _content(path) is None:
                    log.error("another host has taken over this run; stopping (it goes on from the last checkpoint)")
                    os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lease", daemon=True).start()
