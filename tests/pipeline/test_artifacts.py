"""Artifacts are whole or not there at all, whatever happens while they are published or afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline import artifacts

FINGERPRINT = "0123456789abcdef" * 4
FILES = {"model/model.safetensors": b"\x00\x01weights" * 1000, "data.jsonl": b'{"text": "a"}\n', "empty": b""}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def publish(run: Path, stage: str = "base", **manifest: str) -> artifacts.Artifact:
    source = run / "scratch" / "output"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    target = artifacts.folder(run, stage, FINGERPRINT)
    return artifacts.publish(source, target, {"fingerprint": FINGERPRINT, "finished": "1", **manifest})


def test_what_is_published_is_found_with_the_hashes_of_its_files(run: Path) -> None:
    made = publish(run, kind="pretrain")
    found = artifacts.find(run, "base", FINGERPRINT)
    assert found is not None
    assert found == made
    assert found.manifest["kind"] == "pretrain"
    assert found.manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in FILES.items()
    }
    assert artifacts.verify(found) == []
    assert not (run / "scratch" / "output").exists()


@pytest.mark.parametrize(
    ("umask", "files", "folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750)]
)
def test_what_is_published_can_be_read_by_whom_the_umask_lets(run: Path, umask: int, files: int, folders: int) -> None:
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        model = run / "scratch" / "output" / "model"
        model.mkdir(parents=True)
        save_file({"a": torch.zeros(1)}, model / "more.safetensors")  # says 0600
        Path(tempfile.mkdtemp(dir=model)).joinpath("inner").touch()  # a folder that says 0700
        tool = model / "tool"
        tool.touch(mode=0o700)
        os.link(model / "more.safetensors", run / "a second name")
        path = publish(run).path
    finally:
        os.umask(before)
    modes = {p.relative_to(path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*")}
    assert modes.pop("model/tool") == files | 0o100
    assert {modes[name] for name in modes if (path / name).is_dir()} == {folders}
    assert {modes[name] for name in modes if (path / name).is_file()} == {files}


def test_another_fingerprint_is_another_artifact(run: Path) -> None:
    publish(run)
    assert artifacts.find(run, "base", FINGERPRINT[::-1]) is None
    same_folder = FINGERPRINT[: artifacts.SHORT] + "f" * (64 - artifacts.SHORT)
    assert artifacts.find(run, "base", same_folder) is None


BREAKAGES = {
    "manifest gone": lambda path: (path / "manifest.json").unlink(),
    "manifest cut": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text()[:-40]),
    "manifest empty": lambda path: (path / "manifest.json").write_text(""),
    "manifest is a list": lambda path: (path / "manifest.json").write_text("[]"),
    "manifest without files": lambda path: (path / "manifest.json").write_text(
        json.dumps({"fingerprint": FINGERPRINT})
    ),
    "files are a list": lambda path: (path / "manifest.json").write_text('{"files": ["data.jsonl"]}'),
    "manifest is no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "file gone": lambda path: (path / "data.jsonl").unlink(),
    "file cut": lambda path: (path / "model/model.safetensors").write_bytes(b"\x00"),
    "file grown": lambda path: (path / "empty").write_text("no more"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_artifact_is_not_taken_and_can_be_replaced(
    breakage: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BREAKAGES[breakage](publish(run).path)
    assert artifacts.find(run, "base", FINGERPRINT) is None
    assert artifacts.latest(run, "base") is None
    assert "will run again" in caplog.text
    publish(run)
    assert artifacts.find(run, "base", FINGERPRINT) is not None


def test_a_flipped_bit_is_seen_by_the_hash(run: Path) -> None:
    made = publish(run)
    path = made.path / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[4321] ^= 1
    path.write_bytes(data)
    assert artifacts.verify(made) == ["model/model.safetensors"]


def test_the_latest_is_the_one_finished_last(run: Path) -> None:
    for number, moment in enumerate(("2026-03-01", "2026-05-01", "2026-04-01")):
        source = run / "scratch" / str(number)
        source.mkdir(parents=True)
        fingerprint = f"{number:064d}"[::-1]
        artifacts.publish(
            source, artifacts.folder(run, "base", fingerprint), {"fingerprint": fingerprint, "finished": moment}
        )
    latest = artifacts.latest(run, "base")
    assert latest is not None
    assert latest.manifest["finished"] == "2026-05-01"


PUBLISHER = f"""
import sys
from pathlib import Path
from pipeline import artifacts

run, number = Path(sys.argv[1]), int(sys.argv[2])
source = run / "scratch" / str(number)
source.mkdir(parents=True)
for name in range(200):
    (source / f"{{name}}.bin").write_bytes(bytes([name]) * 50_000)
print("ready", flush=True)
artifacts.publish(source, artifacts.folder(run, "base", "{FINGERPRINT}"), {{"fingerprint": "{FINGERPRINT}"}})
print("published", flush=True)
"""


def test_kill_9_leaves_all_or_nothing(run: Path) -> None:
    """A publisher is killed a little later each time; what is then visible is whole, and the next is not in its way."""
    target = artifacts.folder(run, "base", FINGERPRINT)
    whole = []
    for attempt in range(12):
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-c", PUBLISHER, str(run), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == "ready\n"
            time.sleep(attempt * 0.005)
            publisher.send_signal(signal.SIGKILL)
        if target.exists():
            found = artifacts.find(run, "base", FINGERPRINT)
            assert found is not None
            assert len(found.manifest["files"]) == 200
            assert artifacts.verify(found) == []
        whole.append(target.exists())
    done = subprocess.run([sys.executable, "-c", PUBLISHER, str(run), "99"], capture_output=True, text=True, check=True)
    assert "published" in done.stdout
    assert artifacts.find(run, "base", FINGERPRINT) is not None
    assert not all(whole), "no publisher was killed in time: the test proves nothing"
