"""Copies of a run's artifacts and checkpoints in a bucket, or wherever fsspec writes: `zero2r1 run --store s3://…`.

The run itself stays in its local folder. What is sealed there, an artifact or a complete checkpoint, is copied as it
appears, and a host that has neither takes it from the store when the same command is given there.

    NAME/stages/base/3f0c…@5e8d…/model/model.safetensors
    NAME/stages/base/3f0c…@5e8d…/manifest.json            last: without it, nothing of the folder counts

Behind `@` stands a hash of the record that seals the folder. So two hosts that made the same thing write to different
places, and never into each other's. What is taken is compared with its record before it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pipeline import artifacts
from pipeline.artifacts import MANIFEST, Artifact
from pipeline.files import durable
from pipeline.files.lease import Lease, LockError
from pipeline.runner.graph import Node
from pipeline.schema.environment import shown, shown_of
from pipeline.schema.reserved import KEEP_CHECKPOINTS
from pipeline.training.checkpoints import MARK, PREFIX, by_step, step_of

log = logging.getLogger(__name__)

DIGITS = 12
LOOK_SECONDS = 2.0
"""Between two looks for new checkpoints."""

PROBE = b"zero2r1 may write here\n"
SLASH_MISSING = re.compile(r"[a-z][a-z0-9+]+:(?!//|:)")
"""How an address begins that lacks a slash, and would be the name of a folder."""
WAITS = (5.0, 60.0)
"""Seconds before a copy that has failed is tried again, each time: networks and busy stores recover."""
CLOUDS = frozenset({"botocore", "aiohttp", "google", "gcsfs", "azure", "huggingface_hub", "paramiko"})
"""Packages behind fsspec's file systems whose errors (no credentials, say) are no `OSError`."""


class StoreError(RuntimeError):
    """The store cannot be opened, read or written; the message says which and why."""


class Store:
    """Where copies lie.

    Args:
        url: as fsspec has it: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///…`, or a folder.
        run: the run's folder, whose name its copies lie under.

    Raises:
        StoreError: no such kind of file system, or the package for it is not installed.
    """

    def __init__(self, url: str, run: Path) -> None:
        from fsspec.core import url_to_fs

        self.url, self._address = shown(url), url
        if not url or SLASH_MISSING.match(url):
            raise StoreError(f"--store {self.url!r} is no address such as s3://bucket/prefix, and no folder")
        try:
            self.files, root = url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:  # some connect at once
            raise StoreError(f"--store {self.url}: {shown_of(str(error), url)}") from error
        if not root:
            raise StoreError(f"--store {self.url} names no bucket")
        self.root, self.run = f"{str(root).rstrip('/')}/{run.name}", run
        self.lease: Lease | None = None
        """Of the run in this store, while this process works on it; see `pipeline.runner.store_lease`."""
        if getattr(self.files, "local_file", False) and Path(self.root).resolve().is_relative_to(run.resolve()):
            raise StoreError(f"--store {self.url} lies in the folder of the run, {run}: copies need another place")

    def said(self, error: BaseException) -> str:
        """What an error of the file system says, without passwords: some repeat the address, or a part of it."""
        text = str(error) or f"its file system, {type(self.files).__name__}, has no way to"
        return shown_of(text, self._address)

    def prove(self) -> None:
        """Write, read and delete something there, before hours of work rely on it. Raises OSError if that fails."""
        probe = f"{self.root}/.{uuid.uuid4().hex}"
        self.make_folder_of(probe)
        self.files.pipe_file(probe, PROBE)
        if self.files.cat_file(probe) != PROBE:
            raise OSError("what is read there is not what was written")
        self.files.rm_file(probe)

    def push(self, folder: Path, mark: str, stop: threading.Event) -> bool:
        """Copy a sealed folder of the run, its mark last; whether it is there now.

        Args:
            folder: an artifact or a checkpoint; of one that is deleted meanwhile, what is copied does not count.
            mark: the record that seals it.
            stop: no further file is begun once it is set.

        Raises:
            OSError: the store cannot be written.
            LockError: another host has taken over.
        """
        try:
            data = (folder / mark).read_bytes()
            names = [*durable.read_record(folder / mark)["files"], mark]
        except FileNotFoundError:
            return False
        target = f"{self._at(folder)}@{hashlib.sha256(data).hexdigest()[:DIGITS]}"
        self.files.invalidate_cache()
        if self.files.exists(f"{target}/{mark}") and self.files.cat_file(f"{target}/{mark}") == data:
            return True
        for name in names:
            if stop.is_set() or not (folder / name).is_file():
                return False
            self._may_write(ask=name == mark)
            self.make_folder_of(f"{target}/{name}")
            self.files.put_file(str(folder / name), f"{target}/{name}")
        return True

    def pull(self, folder: Path, mark: str) -> bool:
        """Take a folder from the store, if it is there and whole; it appears at once."""
        for place in self._marked(f"{self._at(folder)}@", mark):
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            durable.make_folder(part)
            try:
                self.files.get_file(f"{place}/{mark}", str(part / mark))
                for name in _inside(part / mark):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    self.files.get_file(f"{place}/{name}", str(part / name))
                faults = durable.damage_of(part, mark)
            except (FileNotFoundError, durable.DamageError) as error:
                faults = {"": str(error)}
            if not faults:
                durable.listing(part)
                shutil.rmtree(folder, ignore_errors=True)
                durable.move(part, folder)
                return True
            shutil.rmtree(part)
            log.warning("%s in %s is not whole (%s): it is not taken", place, self.url, durable.describe(faults))
        return False

    def checkpoints(self, scratch: Path) -> list[int]:
        """The steps of a stage's checkpoints in the store, the newest first."""
        places = self._marked(f"{self._at(scratch)}/checkpoints/{PREFIX}", MARK)
        steps = {place.rsplit("/", 1)[-1].removeprefix(PREFIX).partition("@")[0] for place in places}
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def rotate(self, scratch: Path) -> None:
        """Delete all but the newest checkpoints of a stage, each one's mark first."""
        for step in self.checkpoints(scratch)[KEEP_CHECKPOINTS:]:
            self._remove(f"{self._at(scratch)}/checkpoints/{PREFIX}{step}@", MARK)

    def forget(self, scratch: Path) -> None:
        """Delete the checkpoints of a stage that is published."""
        self._remove(f"{self._at(scratch)}/checkpoints/{PREFIX}", MARK)

    def _may_write(self, ask: bool) -> None:
        """Raise LockError if another host has taken over: as far as is known, or after asking the store."""
        if self.lease is not None:
            self.lease.look()
            if ask:
                self.lease.check()

    def make_folder_of(self, path: str) -> None:
        """Make the folder of a file. Object stores have buckets instead, which nobody makes by a slip of the pen."""
        if path.startswith("/"):
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _remove(self, beginning: str, mark: str) -> None:
        for place in self._marked(beginning, mark):
            self._may_write(ask=True)
            self.files.rm_file(f"{place}/{mark}")
            folders = place.startswith("/")  # see `make_folder_of`
            inside = self.files.find(place, withdirs=folders, detail=True)
            for path in sorted({place, *inside} if folders else inside, reverse=True):
                if inside.get(path, {"type": "directory"})["type"] == "file":
                    self.files.rm_file(path)
                else:
                    self.files.rmdir(path)

    def _marked(self, beginning: str, mark: str) -> list[str]:
        """The folders that have a mark and an address that begins so; it may have a pattern's signs in it."""
        parent = beginning.rpartition("/")[0]
        self.files.invalidate_cache()
        try:
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self.files.ls(parent, detail=False)]
        except FileNotFoundError:
            return []
        places = sorted(place for name in names if (place := f"{parent}/{name}").startswith(beginning))
        return [place for place in places if self.files.exists(f"{place}/{mark}")]

    def _at(self, folder: Path) -> str:
        return f"{self.root}/{folder.relative_to(self.run).as_posix()}"


def _inside(record: Path) -> list[str]:
    """The files that a record names.

    Raises:
        DamageError: one of them lies outside of its folder, which nothing that we wrote says.
    """
    names = list(durable.read_record(record)["files"])
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise durable.DamageError(record, f"names {name!r}, which is outside of its folder")
    return names


def of_files(error: Exception) -> bool:
    """Whether an error is one of a file system, and none of ours."""
    return isinstance(error, (OSError, NotImplementedError)) or type(error).__module__.partition(".")[0] in CLOUDS


@contextlib.contextmanager
def told(store: Store, what: str) -> Iterator[None]:
    """Say which store an error of a file system comes from, and what cannot be done there."""
    try:
        yield
    except Exception as error:
        if not of_files(error) or (what == "read" and durable.disk_full(error)):  # the disk here is
            raise
        raise StoreError(f"--store {store.url} cannot be {what} ({store.said(error)})") from error


def opened(url: str, run: Path) -> Store:
    """A store that can be written.

    Raises:
        StoreError: there is no such store, or it cannot.
    """
    store = Store(url, run)
    with told(store, "written"):
        store.prove()
    return store


def fetch(store: Store, nodes: Mapping[str, Node]) -> None:
    """Take what a run has not and its store has: artifacts of its stages, or the newest checkpoint of each.

    Raises:
        StoreError: the store cannot be read.
    """
    run = store.run
    with told(store, "read"):
        for name, node in nodes.items():
            target = artifacts.folder(run, name, node.fingerprint)
            if artifacts.find(run, name, node.fingerprint) is not None:
                continue
            if store.pull(target, MANIFEST):
                log.warning("%s is taken from %s", target, store.url)
                continue
            scratch = artifacts.scratch(run, name, node.fingerprint)
            here = [step_of(path) for path in by_step(scratch / "checkpoints") if (path / MARK).exists()]
            for step in store.checkpoints(scratch):
                folder = scratch / "checkpoints" / f"{PREFIX}{step}"
                if step <= max(here, default=-1):
                    break
                if store.pull(folder, MARK):
                    log.warning("%s is taken from %s", folder, store.url)
                    break


class Uploads:
    """Copies what is sealed while a run goes on, one after another, beside it.

    Args:
        store: where to.
        run: the run's folder.
        waits: seconds before each further try of a copy that has failed.
    """

    def __init__(self, store: Store, run: Path, waits: Sequence[float] = WAITS) -> None:
        self.store, self.run, self.waits = store, run, waits
        self._pool, self._stop = ThreadPoolExecutor(1, "upload"), threading.Event()
        self._asked: dict[Path, Future[None]] = {}
        self._looked = 0.0

    def artifact(self, stage: str, artifact: Artifact) -> None:
        """Copy the artifact of a stage; then its checkpoints go. One that is there already costs a question."""
        scratch = artifacts.scratch(self.run, stage, str(artifact.manifest["fingerprint"]))
        self._asked[artifact.path] = self._pool.submit(self._artifact, artifact.path, scratch)

    def look(self) -> None:
        """Copy checkpoints that have become complete."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for mark in sorted(self.run.glob(f"scratch/*/checkpoints/{PREFIX}*/{MARK}")):
            before = self._asked.get(mark.parent)
            if before is None or (before.done() and before.exception() is not None):
                self._asked[mark.parent] = self._pool.submit(self._checkpoint, mark.parent)

    def close(self, interrupted: bool) -> None:
        """Wait until all is copied, or, after an interruption, until the file that is being copied is.

        Raises:
            StoreError: an artifact could not be.
            LockError: another host has taken over.
        """
        if interrupted:
            self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=interrupted)
        for path, asked in self._asked.items():
            if asked.cancelled() or (error := asked.exception()) is None:
                continue
            if isinstance(error, LockError):
                raise error
            line = f"{path} could not be copied to {self.store.url} ({self.store.said(error)})"
            if path.name.startswith(PREFIX):
                log.warning("%s: another host would go on from an earlier checkpoint", line)
            elif not interrupted:
                raise StoreError(f"{line}. It is kept here, and the same command copies it") from error

    @classmethod
    @contextlib.contextmanager
    def of(cls, store: Store | None, run: Path, done: Mapping[str, Artifact]) -> Iterator[Uploads | None]:
        """Those of a run for as long as it is worked on, beginning with what is finished; `None` without a store."""
        if store is None:
            yield None
            return
        uploads, interrupted = cls(store, run), False
        for name, artifact in done.items():
            uploads.artifact(name, artifact)
        try:
            yield uploads
        except (KeyboardInterrupt, LockError):
            interrupted = True
            raise
        finally:
            uploads.close(interrupted)

    def _artifact(self, path: Path, scratch: Path) -> None:
        if self._push(path, MANIFEST):
            self.store.forget(scratch)

    def _checkpoint(self, path: Path) -> None:
        if self._push(path, MARK):
            self.store.rotate(path.parents[1])

    def _push(self, path: Path, mark: str) -> bool:
        """See `Store.push`; tried several times."""
        for wait in self.waits:
            try:
                return self.store.push(path, mark, self._stop)
            except Exception as error:
                if not of_files(error):
                    raise
                why = self.store.said(error)
                log.warning("%s could not be copied to %s (%s): again in %g s", path, self.store.url, why, wait)
                self._stop.wait(wait)
        return self.store.push(path, mark, self._stop)
