"""Who may work on a run whose copies lie in a store: hosts that have folders of their own agree there.

The rules are those of the folder's lease (`pipeline.files.lease`). A store on a file system has the very same files. In
a bucket nothing can be written over in part, so a beat is an object of its own, and the object that says whose the
lease is, once deleted, cannot come back by a late beat:

    NAME/.lease/000007         {"host": "n3", …}     created exclusively: of several, one succeeds
    NAME/.lease/000007.beat    beat 000000000042     written anew every few seconds

Not every store creates exclusively: file systems that look first and write then do not, nor do servers that ignore the
condition (`If-None-Match: *`). It is tried before it is relied on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import lease
from pipeline.files.lease import BEAT_SECONDS, FOLDER, SILENT_SECONDS, Host, Lease, Place, Seen
from pipeline.files.lease_folder import Folder
from pipeline.runner.store import Store, of_files, told

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Objects:
    """A place of leases (`pipeline.files.lease.Place`) in a store that is no file system of this host.

    Attributes:
        store: of the run.
    """

    store: Store

    def __str__(self) -> str:
        return _named(self.store)

    def path(self, number: int) -> Path:
        return Path(self._key(number))

    def numbers(self) -> list[int]:
        return sorted(int(name) for name in self._names() if name.isdecimal())

    def read(self, number: int) -> Seen | None:
        beat = self._content(f"{self._key(number)}.beat") or b""  # first: a lease loses its own object before its beat
        head = self._content(self._key(number))
        return None if head is None else Seen.parsed(number, head, beat)

    def create(self, number: int, head: bytes) -> None:
        key = self._key(number)
        self.store.make_folder_of(key)
        with self._asking():
            try:
                self.store.files.pipe_file(key, head, mode="create")
            except FileExistsError:
                if self._content(key) != head:  # else: it was done, and asked again as the answer was lost
                    raise

    def write(self, number: int, beat: bytes) -> None:
        with self._asking():
            self.store.files.pipe_file(f"{self._key(number)}.beat", beat)

    def remove(self, number: int) -> None:
        self._delete(f"{number:06d}", f"{number:06d}.beat")

    def clear(self, number: int) -> None:
        before = (
            name for name in sorted(self._names()) if (its := name.partition(".")[0]).isdecimal() and int(its) < number
        )
        self._delete(*before)

    def exclusive(self) -> bool:
        """Whether of several who create one object, one succeeds."""
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        files = self.store.files
        if not isinstance(files, AsyncFileSystem) and type(files).pipe_file is AbstractFileSystem.pipe_file:
            return False  # it asks whether there is one, and writes then
        name = f".{uuid.uuid4().hex}"
        key = f"{self._folder}/{name}"
        self.store.make_folder_of(key)
        try:
            with self._asking():
                files.pipe_file(key, b"first", mode="create")
                files.pipe_file(key, b"second", mode="create")
        except FileExistsError:
            return self._content(key) == b"first"
        except (OSError, TypeError):  # the argument, or the condition that is sent for it, is unknown
            return False
        finally:
            self._delete(name)
        return False

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Have all errors of a store's file system be OSErrors that say something."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if not of_files(error):
                raise
            raise OSError(errno.EIO, self.store.said(error)) from error

    @property
    def _folder(self) -> str:
        return f"{self.store.root}/{FOLDER}"

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}"

    def _names(self) -> list[str]:
        with self._asking():
            self.store.files.invalidate_cache()
            try:
                return [str(path).rpartition("/")[2] for path in self.store.files.ls(self._folder, detail=False)]
            except FileNotFoundError:
                return []

    def _content(self, key: str) -> bytes | None:
        with self._asking():
            try:
                return bytes(self.store.files.cat_file(key))
            except FileNotFoundError:
                return None

    def _delete(self, *names: str) -> None:
        for name in names:
            with self._asking(), contextlib.suppress(FileNotFoundError):
                self.store.files.rm_file(f"{self._folder}/{name}")


@dataclass(frozen=True)
class Both:
    """The leases of a run's folder and of its store, as one: both are needed.

    Attributes:
        folder: of the folder; the run's stages watch it.
        store: of the store.
    """

    folder: Lease
    store: Lease

    @property
    def path(self) -> Path:
        """The file of the folder's lease."""
        return self.folder.path

    def check(self) -> None:
        """As `Lease.check`. Raises LockError."""
        self.folder.check()
        self.store.look()
        with contextlib.suppress(OSError):  # a store that does not answer has told nobody else either
            self.store.check()

    def look(self) -> None:
        """As `Lease.look`. Raises LockError."""
        self.folder.look()
        self.store.look()


@contextlib.contextmanager
def held(
    store: Store,
    folder: Lease,
    host: Host | None = None,
    silent: float = SILENT_SECONDS,
    every: float = BEAT_SECONDS,
) -> Iterator[Lease | Both]:
    """Hold a run in its store, too, for as long as this lasts; nothing is written there without.

    A lease of an earlier command in this very folder of this host is broken at once: who holds the folder knows that it
    is over.

    Args:
        store: it can be written.
        folder: the lease of the run's folder, which is held.
        host: which this is, if not the one that the kernel says.
        silent: seconds without a sign of life before the lease of another one is broken.
        every: seconds between two signs of life.

    Yields:
        What is held; of the folder alone where the store cannot decide between hosts, after a warning.

    Raises:
        LockError: another process works on the run.
        StoreError: the store cannot be read or written.
    """
    with told(store, "written"):
        place = _place(store)
        if place is not None:
            store.lease = _taken(place, store.run, host or lease.this_host(), silent, every)
    if store.lease is None:
        line = (
            "--store %s: its file system, %s, gives no exclusive creation, so nothing keeps a second host from working"
            " on this run at the same time. Give the command on one host at a time"
        )
        log.warning(line, store.url, type(store.files).__name__)
        yield folder
        return
    try:
        yield Both(folder, store.lease)
    finally:
        store.lease.close()


def _taken(place: Place, run: Path, host: Host, silent: float, every: float) -> Lease:
    stat = run.stat()
    here = f"{stat.st_dev}:{stat.st_ino}"
    before = lease.newest(place)
    if before is not None and not before.over and (before.host, before.folder) != (host, here):
        lease.await_silence(before, place, silent)
    return lease.take(place, before, host, every, here)


def _place(store: Store) -> Place | None:
    """Where leases lie in a store; `None` if it cannot decide between hosts."""
    if getattr(store.files, "local_file", False):
        return Folder(Path(store.root), _named(store))
    objects = Objects(store)
    return objects if objects.exclusive() else None


def _named(store: Store) -> str:
    return f"{store.run.name} in {store.url}"
