"""Copies of a run: whole or not there, whatever interrupts them, and enough for another host to go on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from pipeline import artifacts
from pipeline.artifacts import MANIFEST
from pipeline.files import durable
from pipeline.runner.store import Store, StoreError, Uploads, fetch, opened
from pipeline.schema.environment import shown, shown_of
from pipeline.training.checkpoints import MARK
from tests.stages.driving import CORPUS, PRETRAIN, start

FINGERPRINT = "0123456789abcdef" * 4
FILES = {"model/model.safetensors": b"\x00\x01weights" * 1000, "data [1]*.jsonl": b'{"text": "a"}\n', "empty": b""}
GO_ON = threading.Event()


@pytest.fixture(params=["memory", "file", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    unique = uuid.uuid4().hex
    name = "s [1]*?"  # what patterns are made of
    kinds = {"memory": f"memory://{unique}/{name}", "file": f"file://{tmp_path}/{name}", "folder": f"{tmp_path}/{name}"}
    return kinds[request.param]


def published(run: Path, files: dict[str, bytes] = FILES) -> artifacts.Artifact:
    source = run / "scratch" / "output"
    write(source, files)
    target = artifacts.folder(run, "base", FINGERPRINT)
    return artifacts.publish(source, target, {"fingerprint": FINGERPRINT, "finished": "1"})


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def checkpoint(run: Path, step: int) -> Path:
    folder = artifacts.scratch(run, "base", FINGERPRINT) / "checkpoints" / f"checkpoint-{step}"
    write(folder, {"model.safetensors": str(step).encode(), "events.jsonl": b"{}\n"})
    durable.seal(folder, MARK)
    return folder


def test_what_one_host_publishes_another_one_takes(url: str, tmp_path: Path) -> None:
    a, b = (tmp_path / host / "r" for host in "ab")
    artifact = published(a)
    assert not Store(url, b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST), "nothing is there yet"
    for _ in range(2):
        assert Store(url, a).push(artifact.path, MANIFEST, GO_ON)
    assert Store(url, b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST)
    found = artifacts.find(b, "base", FINGERPRINT)
    assert found is not None and found.manifest == artifact.manifest
    assert artifacts.verify(found) == []
    assert {name: (found.path / name).read_bytes() for name in FILES} == FILES
    assert not list(found.path.parent.glob(".*"))


class Failing(MemoryFileSystem):  # type: ignore[misc]
    """In memory; writes so many files more, and then none: the network is gone."""

    protocol = "failing"
    left = 0

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        if Failing.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        Failing.left -= 1
        super().put_file(*args, **kwargs)


@pytest.fixture
def failing() -> Iterator[str]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    yield f"failing://{uuid.uuid4().hex}/p"
    Failing.left = 0


def test_an_upload_that_breaks_off_does_not_count_and_is_taken_up_again(failing: str, tmp_path: Path) -> None:
    artifact, there = published(tmp_path / "a" / "r"), artifacts.folder(tmp_path / "b" / "r", "base", FINGERPRINT)
    store, other = Store(failing, tmp_path / "a" / "r"), Store(failing, tmp_path / "b" / "r")
    for number in range(len(FILES) + 1):
        Failing.left = number
        with pytest.raises(OSError, match="Input/output"):
            store.push(artifact.path, MANIFEST, GO_ON)
        assert not other.pull(there, MANIFEST)
        assert not there.exists()
    stopped = threading.Event()
    stopped.set()
    assert not store.push(artifact.path, MANIFEST, stopped)
    Failing.left = len(FILES) + 1
    assert store.push(artifact.path, MANIFEST, GO_ON)
    assert other.pull(there, MANIFEST)


def test_kill_9_while_copying_leaves_all_or_nothing(tmp_path: Path) -> None:
    a, b = tmp_path / "a" / "r", tmp_path / "b" / "r"
    artifact = published(a, {f"{number}.bin": bytes([number]) * 50_000 for number in range(200)})
    script = (
        "import sys, threading; from pathlib import Path; from pipeline.runner.store import Store\n"
        "store = Store(sys.argv[1], Path(sys.argv[2])); print('ready', flush=True)\n"
        "store.push(Path(sys.argv[3]), 'manifest.json', threading.Event())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s"), str(a), str(artifact.path)]
    for attempt in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(attempt * 0.005)
            process.send_signal(signal.SIGKILL)
        there = artifacts.folder(b, "base", FINGERPRINT)
        if Store(str(tmp_path / "s"), b).pull(there, MANIFEST):
            found = artifacts.find(b, "base", FINGERPRINT)
            assert found is not None and artifacts.verify(found) == []
        assert there.exists() == ((there / MANIFEST).exists())
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert Store(str(tmp_path / "s"), b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST)


def test_a_copy_that_is_not_what_was_written_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, there = tmp_path / "a" / "r", tmp_path / "b" / "r", tmp_path / "s"
    assert Store(str(there), a).push(published(a).path, MANIFEST, GO_ON)
    (weights,) = there.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert not Store(str(there), b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST)
    assert "is not whole (model/model.safetensors has other content than was written): it is not taken" in caplog.text
    weights.unlink()
    assert not Store(str(there), b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST)
    assert not list((b / "stages" / "base").iterdir())


@pytest.mark.parametrize("name", ["../../../../outside", "/etc/outside", "model/../../../outside"])
def test_a_record_that_names_files_elsewhere_takes_nothing(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = (tmp_path / host / "r" for host in "ab")
    artifact = published(a)
    record = {**artifact.manifest, "files": {**artifact.manifest["files"], name: {"sha256": "0" * 64, "bytes": 1}}}
    durable.write_record(artifact.path / MANIFEST, record)
    hostile = tmp_path / "s" / "r" / f"{artifact.path.relative_to(a).as_posix()}@abc"
    shutil.copytree(artifact.path, hostile)
    source = Path(f"{hostile}/{name}")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"!")
    before = sorted(tmp_path.rglob("*"))
    assert not Store(str(tmp_path / "s"), b).pull(artifacts.folder(b, "base", FINGERPRINT), MANIFEST)
    assert f"names {name!r}, which is outside of its folder" in caplog.text
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()] == []


def test_two_hosts_that_make_the_same_do_not_mix(url: str, tmp_path: Path) -> None:
    contents = []
    for host in "ab":
        files = {"model/model.safetensors": host.encode() * 5, "data.jsonl": host.encode()}
        contents.append(files)
        assert Store(url, tmp_path / host / "r").push(published(tmp_path / host / "r", files).path, MANIFEST, GO_ON)
    taken = artifacts.folder(tmp_path / "c" / "r", "base", FINGERPRINT)
    assert Store(url, tmp_path / "c" / "r").pull(taken, MANIFEST)
    assert {name: (taken / name).read_bytes() for name in contents[0]} in contents


def test_complete_checkpoints_are_copied_and_go_when_the_stage_is_published(url: str, tmp_path: Path) -> None:
    run = tmp_path / "a" / "r"
    scratch, store = artifacts.scratch(run, "base", FINGERPRINT), Store(url, run)
    (checkpoint(run, 40) / MARK).unlink()
    for step in (5, 10, 100):
        checkpoint(run, step)
    uploads = Uploads(store, run)
    uploads.look()
    uploads.close(interrupted=False)
    assert store.checkpoints(scratch) == [100, 10], "the newest two, and none that is incomplete"
    uploads = Uploads(store, run)
    uploads.artifact("base", published(run))
    uploads.close(interrupted=False)
    assert store.checkpoints(scratch) == []


def test_what_cannot_be_copied_is_told(failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "a" / "r"
    uploads = Uploads(Store(failing, run), run, waits=(0.0, 0.0))
    checkpoint(run, 5)
    uploads.look()
    uploads.artifact("base", artifact := published(run))
    with pytest.raises(StoreError) as told:
        uploads.close(interrupted=False)
    assert str(told.value).startswith(
        f"{artifact.path} could not be copied to {failing} ([Errno 5] Input/output error)"
    )
    assert "It is kept here, and the same command copies it" in str(told.value)
    assert "checkpoint-5 could not be copied" in caplog.text


class Busy(MemoryFileSystem):  # type: ignore[misc]
    """In memory; every second file is refused once."""

    protocol = "busy"
    refused: ClassVar[set[str]] = set()

    def put_file(self, local: str, there: str, **kwargs: Any) -> None:
        if len(self.refused) % 2 == 0 and there not in self.refused:
            self.refused.add(there)
            raise OSError(errno.EBUSY, "Please reduce your request rate")
        super().put_file(local, there, **kwargs)


def test_a_copy_that_fails_is_tried_again_in_the_same_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fsspec.register_implementation("busy", Busy, clobber=True)
    run, url = tmp_path / "a" / "r", f"busy://{uuid.uuid4().hex}/p"
    uploads = Uploads(Store(url, run), run, waits=(0.0, 0.0))
    uploads.artifact("base", artifact := published(run))
    uploads.close(interrupted=False)
    assert Store(url, tmp_path / "b" / "r").pull(tmp_path / "b" / "r" / artifact.path.relative_to(run), MANIFEST)
    assert "Please reduce your request rate): again in 0 s" in caplog.text


def test_a_mark_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    """A file system that shows a file before it is whole: the host was lost while it wrote the last one."""
    a, there = tmp_path / "a" / "r", artifacts.folder(tmp_path / "b" / "r", "base", FINGERPRINT)
    store, other = (Store(str(tmp_path / "s"), tmp_path / host / "r") for host in "ab")
    assert store.push(path := published(a).path, MANIFEST, GO_ON)
    (mark,) = (tmp_path / "s").rglob(MANIFEST)
    mark.write_bytes(mark.read_bytes()[:-20])
    assert not other.pull(there, MANIFEST)
    assert store.push(path, MANIFEST, GO_ON)
    assert other.pull(there, MANIFEST)


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """As object stores are: paths begin with a bucket, `makedirs` would make one, and some may only be read."""

    protocol = "bucket"
    root_marker = ""
    faults: ClassVar[dict[str, OSError]] = {
        "missing": FileNotFoundError("The specified bucket does not exist"),
        "denied": PermissionError("Access Denied"),
        "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    }
    made: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("bucket://").strip("/")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.made.append(path)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        raise self.faults[path.partition("/")[0]]


@pytest.mark.parametrize("bucket", Bucket.faults)
def test_a_store_that_cannot_be_written_is_told_before_anything_runs(bucket: str, tmp_path: Path) -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    with pytest.raises(StoreError) as told:
        opened(f"bucket://{bucket}/p", tmp_path / "r")
    assert str(told.value) == f"--store bucket://{bucket}/p cannot be written ({Bucket.faults[bucket]})"
    assert Bucket.made == [], "a bucket by another name is not made"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "--store '' is no address such as s3://bucket/prefix, and no folder"),
        ("s3:/bucket/p", "--store 's3:/bucket/p' is no address such as s3://bucket/prefix, and no folder"),
        ("memory://", "--store memory:// names no bucket"),
        ("{runs}", "--store {runs} lies in the folder of the run"),
        ("file://{runs}/r/copies", "--store file://{runs}/r/copies lies in the folder of the run"),
        ("http://127.0.0.1:{port}/x", "--store http://127.0.0.1:{port}/x cannot be written ("),
        ("ftp://me:geheim@127.0.0.1:{port}/x", "--store ftp://me:(not recorded)@127.0.0.1:{port}/x: [Errno 111]"),
        ("ftp://me:ge@heim@127.0.0.1:{port}/x", "--store ftp://me:(not recorded)@127.0.0.1:{port}/x: [Errno 111]"),
        ("nope://b/x?sig=geheim&v=1", "--store nope://b/x?sig=(not recorded)&v=1: Protocol not known: nope"),
        ("{runs}/a-file/x", "--store {runs}/a-file/x cannot be written ([Errno 20] Not a directory"),
    ],
)
def test_an_address_that_cannot_hold_copies_is_one_line(url: str, said: str, tmp_path: Path, free_port: int) -> None:
    (tmp_path / "a-file").touch()
    where = {"runs": str(tmp_path), "port": free_port}
    with pytest.raises(StoreError) as told:
        opened(url.format(**where), tmp_path / "r")
    assert str(told.value).startswith(said.format(**where))
    assert not (tmp_path / "r").exists()


class Full(MemoryFileSystem):  # type: ignore[misc]
    """The disk here is full, which what is taken is written to."""

    protocol = "full"

    def get_file(self, there: str, local: str, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), local)


def test_a_full_disk_here_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    fsspec.register_implementation("full", Full, clobber=True)
    url = f"full://{uuid.uuid4().hex}/p"
    assert Store(url, tmp_path / "a" / "r").push(published(tmp_path / "a" / "r").path, MANIFEST, GO_ON)
    nodes: dict[str, Any] = {"base": SimpleNamespace(fingerprint=FINGERPRINT)}
    with pytest.raises(OSError, match="No space left on device") as told:
        fetch(opened(url, tmp_path / "b" / "r"), nodes)
    assert str(tmp_path / "b" / "r") in str(told.value.filename)


def test_an_error_that_repeats_a_part_of_an_address_tells_no_secret() -> None:
    url = "s3://me:AKIA/geheim+x@bucket/p?X-Amz-Signature=0f0f0f0f&list-type=2"
    text = "403 for /bucket/p?X-Amz-Signature=0f0f0f0f&list-type=2, signed with AKIA/geheim+x"
    said = "403 for /bucket/p?X-Amz-Signature=(not recorded)&list-type=2, signed with (not recorded)"
    assert shown(url) == "s3://me:(not recorded)@bucket/p?X-Amz-Signature=(not recorded)&list-type=2"
    assert shown_of(text, url) == said
    cut = shown_of("Port could not be cast to integer value as 'wJalrXUt'", "ftp://me:wJalrXUt/x@host")
    assert cut == "Port could not be cast to integer value as '(not recorded)'"


STAGE = {
    **PRETRAIN,
    "trainer": {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "warmup_steps": 0},
}


def prepared(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.py").write_text(CORPUS)
    return folder


@pytest.mark.slow
def test_another_host_goes_on_from_a_copied_checkpoint_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    a, b, c, url = (prepared(tmp_path / "a"), prepared(tmp_path / "b"), prepared(tmp_path / "c"), str(tmp_path / "s"))
    assert start(a, "base", STAGE, die=("step", 5)) == -signal.SIGKILL
    uploaded = Store(url, a)
    for name in ("checkpoint-2", "checkpoint-4"):
        assert uploaded.push(a / "base-scratch" / "checkpoints" / name, MARK, GO_ON)
    store = Store(url, b.with_name("a"))  # the run has one name on every host
    store.run = b
    assert store.checkpoints(b / "base-scratch") == [4, 2]
    assert store.pull(b / "base-scratch" / "checkpoints" / "checkpoint-4", MARK)
    assert start(b, "base", STAGE) == 0
    assert start(c, "base", STAGE) == 0
    steps = [json.loads(line)["step"] for line in (b / "base-scratch" / "events.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6], "what was logged before came along"
    on, whole = (load_file(folder / "base" / "model" / "model.safetensors") for folder in (b, c))
    assert all(tensor.equal(whole[name]) for name, tensor in on.items())


def zero2r1(folder: Path, store: str) -> subprocess.CompletedProcess[str]:
    recipe = {"name": "r", "stages": {"base": STAGE}}
    (prepared(folder) / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [str(Path(sys.executable).parent / "zero2r1"), "run", "recipe.yaml", "--store", store]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_a_finished_run_is_taken_from_the_store_and_does_not_run_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = zero2r1(tmp_path / "a", str(store))
    assert done.returncode == 0, done.stderr
    assert len(list(store.glob("r/stages/base/*@*/manifest.json"))) == 1
    assert not list(store.glob("r/scratch/*/checkpoints/*/complete"))
    again = zero2r1(tmp_path / "b", str(store))
    assert again.returncode == 0 and f"is taken from {store}" in again.stderr
    first, second = ({path.name for path in (tmp_path / host).glob("runs/r/stages/base/*")} for host in "ab")
    assert first == second
    assert not list((tmp_path / "b").glob("runs/r/scratch/*"))


def test_errors_of_a_cloud_are_one_line_and_other_errors_stay_what_they_are(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})
    for error, told in ((missing("Unable to locate credentials"), StoreError), (ZeroDivisionError("a bug"), None)):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Failing, "ls", refuse)
        with pytest.raises(told or ZeroDivisionError, match="Unable to locate credentials" if told else "a bug"):
            fetch(opened(failing, tmp_path / "r"), {"base": SimpleNamespace(fingerprint=FINGERPRINT)})  # type: ignore[dict-item]


def test_a_store_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    done = zero2r1(tmp_path, "nope://x")
    assert done.returncode == 1
    assert done.stderr.strip() == "zero2r1: --store nope://x: Protocol not known: nope"
