"""Hosts with folders of their own and one store: one of them works on a run, whatever happens to the others."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import artifacts
from pipeline.artifacts import MANIFEST
from pipeline.files import durable, lease, locks
from pipeline.files.lease import Host, Lease, LockError
from pipeline.runner import store_lease
from pipeline.runner.store import Store, StoreError, Uploads, opened
from pipeline.runner.store_lease import Both, Objects
from pipeline.training.checkpoints import MARK
from tests.buckets import Disk
from tests.pipeline.talking import Talking, said, tell

NEVER, SOON = 3600.0, 0.5
"""Seconds: a test that waited for the first would not end; how long one that is gone is watched here."""
A, B = Host("a", "boot of a"), Host("b", "boot of b")
FINGERPRINT = "0123456789abcdef" * 4
GO_ON = threading.Event()
DRIVER = """
import sys, threading
from pathlib import Path
import fsspec
from pipeline.files import locks
from pipeline.files.lease import Host, Lease, LockError
from pipeline.runner import store_lease
from pipeline.runner.store import opened
from pipeline.training.checkpoints import MARK
from tests.buckets import Disk

fsspec.register_implementation("disk", Disk)
url, name, runs, silent = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
host = Host(name, "boot of " + name)
try:
    with locks.run_lock(runs / "r", host) as folder:
        store = opened(url, runs / "r")
        print("ready", flush=True)
        sys.stdin.readline()
        with store_lease.held(store, folder, host, silent, every=0.05) as held:
            print("owner", held.store.number, flush=True)
            for line in sys.stdin:
                print(store.push(Path(line.strip()), "manifest.json", threading.Event()), flush=True)
except LockError as error:
    print("refused", error, flush=True)
"""


class Drivers(Talking):
    """Starts processes that take a run in a store, each with a folder of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__()
        self.folder, self.url = folder, url

    def start(self, host: str, silent: float = NEVER, go: bool = True) -> subprocess.Popen[str]:
        process = self.open([sys.executable, "-c", DRIVER, self.url, host, str(self.folder / host), str(silent)])
        if go:
            tell(process, "go")
        return process


@pytest.fixture(params=["bucket", "folder"])
def drivers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Drivers]:
    made = Drivers(tmp_path / "hosts", f"{'disk://' if request.param == 'bucket' else ''}{tmp_path / 'store'}")
    yield made
    made.close()


@pytest.fixture(params=["memory", "disk", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    fsspec.register_implementation("disk", Disk, clobber=True)
    kinds = {"memory": f"memory://{uuid.uuid4().hex}/p", "disk": f"disk://{tmp_path}/s", "folder": f"{tmp_path}/s"}
    return kinds[request.param]


@dataclass(frozen=True)
class Work:
    """What a host has while it works on a run: the lease of its folder, the store, and what it holds in all."""

    folder: Lease
    store: Store
    held: Lease | Both


@contextlib.contextmanager
def working(url: str, runs: Path, host: Host, silent: float = NEVER, every: float = 0.05) -> Iterator[Work]:
    """A host that works on a run in a store, in a folder of its own."""
    with locks.run_lock(runs / "r", host) as folder:
        store = opened(url, runs / "r")
        with store_lease.held(store, folder, host, silent, every) as held:
            yield Work(folder, store, held)


def published(run: Path) -> artifacts.Artifact:
    source = run / "scratch" / "output"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    return artifacts.publish(source, artifacts.folder(run, "base", FINGERPRINT), {"fingerprint": FINGERPRINT})


def test_a_second_host_is_refused_and_told_who_works_since_when_and_what_to_do(url: str, tmp_path: Path) -> None:
    with working(url, tmp_path / "a", A) as first:
        with pytest.raises(LockError) as refused, working(url, tmp_path / "b", B):
            pass
        assert first.held is not first.folder
        first.held.check()
    line = str(refused.value)
    assert line.startswith(f"another process (pid {os.getpid()} on host a) works on r in {url} since 20")
    assert line.endswith(f"or end it there (kill {os.getpid()}): the same command then goes on from where it was")
    with working(url, tmp_path / "b", B) as second:
        second.held.check()  # at once: the first has given it back


def test_of_many_that_start_in_the_same_instant_one_works(drivers: Drivers) -> None:
    starting = [drivers.start(f"host{number}", go=False) for number in range(4)]
    assert [said(driver) for driver in starting] == ["ready"] * 4
    for driver in starting:
        tell(driver, "go")
    answers = sorted(said(driver) for driver in starting)
    assert answers[0] == "owner 1"
    assert all(answer.startswith("refused another process (pid ") for answer in answers[1:]), answers


def test_who_was_stopped_and_lost_its_lease_writes_nothing_more(drivers: Drivers, tmp_path: Path) -> None:
    first = drivers.start("a")
    assert [said(first), said(first)] == ["ready", "owner 1"]
    artifact = published(drivers.folder / "a" / "r").path
    first.send_signal(signal.SIGSTOP)
    second = drivers.start("b", SOON)
    assert [said(second), said(second)] == ["ready", "owner 2"]
    tell(first, str(artifact))
    first.send_signal(signal.SIGCONT)
    assert said(first).startswith(f"refused process {second.pid} on host b has taken over r in {drivers.url}")
    assert not list((tmp_path / "store").rglob(MANIFEST)), "the record that would have it count"
    tell(second, str(published(drivers.folder / "b" / "r").path))
    assert said(second) == "True"
    second.kill()
    second.wait()
    third = drivers.start("b", NEVER)
    assert [said(third), said(third)] == ["ready", "owner 3"], "the same folder of the same host need not wait"


def test_one_that_died_before_its_first_beat_is_watched_and_broken_whatever_its_clock_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://{uuid.uuid4().hex}/p"
    place = Objects(opened(url, tmp_path / "a" / "r"))
    place.create(1, b'{"host": "n3", "boot": "x", "pid": 47, "token": "t", "since": "2099-01-01 00:00 UTC"}')
    place.create(2, b"")  # of a host that crashed
    with working(url, tmp_path / "b", B, SOON) as second:
        assert place.numbers() == [3]
        second.held.check()
    assert f"r in {url} was last worked on by process 0 on host unknown" in caplog.text


def test_a_late_beat_brings_no_lease_back(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/p"
    with working(url, tmp_path / "a", A, every=NEVER) as first, working(url, tmp_path / "b", B, SOON) as second:
        place = Objects(first.store)
        place.write(1, lease.BEAT % 7)
        assert place.numbers() == [2] and place.read(1) is None
        with pytest.raises(LockError, match="host b has taken over"):
            first.held.check()
        with pytest.raises(LockError, match="host b has taken over"):
            first.held.look()
        second.held.check()
    with working(url, tmp_path / "a", A) as again:
        assert [path.rpartition("/")[2] for path in again.store.files.ls(f"{again.store.root}/.lease", detail=False)][
            :1
        ] == ["000003"], "what the late beat left is removed"


def test_copies_stop_when_the_lease_is_lost_and_nothing_of_them_counts(url: str, tmp_path: Path) -> None:
    with working(url, tmp_path / "a", A, every=NEVER) as first, working(url, tmp_path / "b", B, SOON) as second:
        artifact = published(tmp_path / "a" / "r")
        uploads = Uploads(first.store, tmp_path / "a" / "r")
        uploads.artifact("base", artifact)
        with pytest.raises(LockError, match="host b has taken over"):
            uploads.close(interrupted=False)
        assert not second.store.pull(artifacts.folder(tmp_path / "b" / "r", "base", FINGERPRINT), MANIFEST)
        scratch = artifacts.scratch(tmp_path / "b" / "r", "base", FINGERPRINT)
        (folder := scratch / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        durable.seal(folder, MARK)
        assert second.store.push(folder, MARK, GO_ON)
        with pytest.raises(LockError, match="host b has taken over"):
            first.store.forget(artifacts.scratch(tmp_path / "a" / "r", "base", FINGERPRINT))
        assert second.store.checkpoints(scratch) == [5]


def test_a_lease_that_a_rule_of_the_bucket_has_deleted_is_told_as_such(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/p"
    with working(url, tmp_path / "a", A, every=NEVER) as first:
        Objects(first.store).remove(1)
        with pytest.raises(LockError, match=r"/p/r/.lease/000001, by which hosts know .* was deleted"):
            first.held.check()


class Asking(MemoryFileSystem):  # type: ignore[misc]
    """Looks whether a file is there, and writes then, as fsspec's file systems over SFTP and others do."""

    protocol = "asking"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    pipe_file = fsspec.AbstractFileSystem.pipe_file


class Ignoring(MemoryFileSystem):  # type: ignore[misc]
    """Writes all the same, as servers do that do not know `If-None-Match`."""

    protocol = "ignoring"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)


class Unknowing(MemoryFileSystem):  # type: ignore[misc]
    """Of a version that has no such argument."""

    protocol = "unknowing"

    def pipe_file(self, path: str, value: bytes) -> None:
        super().pipe_file(path, value)


@pytest.mark.parametrize("kind", [Asking, Ignoring, Unknowing])
def test_a_store_that_cannot_decide_between_hosts_is_told(
    kind: type[MemoryFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    url = f"{kind.protocol}://{uuid.uuid4().hex}/p"
    with working(url, tmp_path / "a", A) as first:
        assert first.held is first.folder
        assert first.store.push(published(tmp_path / "a" / "r").path, MANIFEST, GO_ON)
    said = (
        f"--store {url}: its file system, {kind.__name__}, gives no exclusive creation, so nothing keeps a second host"
    )
    assert said in caplog.text and "Give the command on one host at a time" in caplog.text
    assert not [path for path in first.store.files.find(first.store.root) if "/.lease" in path], "the probe is removed"


class Losing(MemoryFileSystem):  # type: ignore[misc]
    """Does what it is asked, and loses the answer: its client asks again, and hears that the object is there."""

    protocol = "losing"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, mode=mode, **kwargs)
        if mode == "create" and path.endswith("000001"):
            raise FileExistsError(path)


def test_an_answer_that_is_lost_is_no_other_host(tmp_path: Path) -> None:
    fsspec.register_implementation("losing", Losing, clobber=True)
    with working(f"losing://{uuid.uuid4().hex}/p", tmp_path / "a", A) as first:
        first.held.check()


class Gone(MemoryFileSystem):  # type: ignore[misc]
    """Does not answer while it is gone; its errors are a cloud's, which are no OSErrors."""

    protocol = "gone"
    away = False
    error: ClassVar[type[Exception]] = type(
        "EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"}
    )

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        if Gone.away:
            raise self.error("Could not connect to the endpoint URL")
        return bytes(super().cat_file(path, **kwargs))


def test_a_store_that_is_out_of_reach_breaks_no_lease_and_stops_only_what_goes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("gone", Gone, clobber=True)
    url = f"gone://{uuid.uuid4().hex}/p"
    with working(url, tmp_path / "a", A, every=NEVER) as first:
        artifact = published(tmp_path / "a" / "r")
        other = Store(url, tmp_path / "b" / "r")
        monkeypatch.setattr(Gone, "away", True)
        first.held.check()  # a stage may begin here
        with pytest.raises(OSError, match="Could not connect") as failed:
            first.store.push(artifact.path, MANIFEST, GO_ON)  # Uploads tries it again
        assert failed.value.errno == errno.EIO
        with (
            locks.run_lock(tmp_path / "b" / "r", B) as folder,
            pytest.raises(StoreError, match=r"cannot be written .*Could not connect"),
            store_lease.held(other, folder, B, SOON),
        ):
            pass
        monkeypatch.setattr(Gone, "away", False)
        assert first.store.push(artifact.path, MANIFEST, GO_ON)
