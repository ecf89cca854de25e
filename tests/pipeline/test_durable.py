"""What is written is whole or not there, and whatever differs from its record is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files import durable

FILES = {"model.safetensors": bytes(range(256)) * 40, "deep/er/state.pt": b"state" * 100, "empty": b""}


def sealed(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    durable.seal(folder, "mark", step=7)
    return folder


def flip(path: Path, rng: random.Random) -> None:
    """One bit is another."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zeros(path: Path, rng: random.Random) -> None:
    """A run of zeros where data was: what a file system gives for blocks that never reached the disk."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data if data != path.read_bytes() else b"\1" + data[1:])


def cut(path: Path, rng: random.Random) -> None:
    """The end is missing."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def grow(path: Path, rng: random.Random) -> None:
    """Something stands behind the end."""
    path.write_bytes(path.read_bytes() + rng.randbytes(1 + rng.randrange(9)))


DAMAGES = (flip, zeros, cut, grow)
Damage = Callable[[Path, random.Random], None]


def test_a_record_comes_back_and_carries_the_hash_of_all_that_stands_before_it(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "text": "ä\ud800".encode("utf-8", "replace").decode(), "nested": {"sha256": "x"}}
    durable.write_record(tmp_path / "r.json", content)
    assert durable.read_record(tmp_path / "r.json") == content
    raw = json.loads((tmp_path / "r.json").read_text())
    body = (tmp_path / "r.json").read_text().partition(f',\n "sha256": "{raw["sha256"]}"')[0] + "\n}"
    assert raw["sha256"] == hashlib.sha256(body.encode()).hexdigest()


def test_no_bit_of_a_record_flips_unseen(tmp_path: Path) -> None:
    """All of them, those of the hash and of its own name included; the line's end alone means nothing."""
    path = tmp_path / "r.json"
    durable.write_record(path, {"steps": 3, "files": {"a": {"bytes": 12}}})
    whole = path.read_bytes()
    for position in range(len(whole) - 1):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(durable.DamageError, match=r"r\.json is (empty or broken|not what was written)"):
                durable.read_record(path, hash_required=False)


@pytest.mark.parametrize("text", ["", "\0" * 300, "[]", "{", '{"a": 1}', '"text"', "\ud800"], ids=ascii)
def test_what_is_no_record(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text, errors="surrogatepass")
    with pytest.raises(durable.DamageError, match=r"r\.json is empty or broken"):
        durable.read_record(tmp_path / "r.json")


def test_a_record_of_an_earlier_version_is_taken_where_it_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": 1}')
    assert durable.read_record(tmp_path / "r.json", hash_required=False) == {"a": 1}


def test_a_sealed_folder_is_as_it_was(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "checkpoint")
    assert durable.damage_of(folder, "mark") == {}
    assert durable.read_record(folder / "mark")["step"] == 7
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))  # a copy made without its times
    assert durable.damage_of(folder, "mark") == {}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "deep/er/state.pt", "mark"])
def test_every_damage_is_named(name: str, damage: Damage, tmp_path: Path) -> None:
    rng = random.Random(f"{name} {damage.__name__}")
    for number in range(20):
        folder = sealed(tmp_path / str(number))
        before = (folder / name).stat()
        damage(folder / name, rng)
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that rots keeps the times
        assert list(durable.damage_of(folder, "mark")) == [name]


@pytest.mark.parametrize("name", [*FILES, "mark"])
def test_a_file_that_is_gone_is_named(name: str, tmp_path: Path) -> None:
    folder = sealed(tmp_path / "c")
    (folder / name).unlink()
    assert durable.damage_of(folder, "mark") == {name: "is missing"}


def test_faults_fit_into_a_line(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "c")
    (folder / "empty").write_bytes(b"12")
    shutil.rmtree(folder / "deep")
    (folder / "model.safetensors").write_bytes(b"")
    told = durable.describe(durable.damage_of(folder, "mark"), most=2)
    assert told == "deep/er/state.pt is missing, empty has 2 bytes instead of 0, and 1 more"


def test_a_single_file_and_its_seal(tmp_path: Path) -> None:
    path = tmp_path / "00000.jsonl"
    assert durable.file_damage(path) == "00000.jsonl.seal is missing"
    with durable.writing(path) as sink:
        sink.write("{}\n")
    durable.seal_file(path)
    assert durable.file_damage(path) is None
    path.write_text("[]\n")
    assert durable.file_damage(path) == "00000.jsonl has other content than was written"


def test_what_fails_while_it_is_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    durable.write(path, "old")
    with pytest.raises(ValueError, match="row 7"), durable.writing(path) as sink:
        sink.write("new")
        raise ValueError("row 7")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"rows.jsonl": "old"}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"a": ', b'{"a": 1}\n'),
        (b'{"a": 1}\n\0\0\0\0', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b"\0\0', b'{"a": 1}\n'),
        (b"\0" * 40, b""),
        (b"", b""),
    ],
)
def test_a_line_that_was_being_written_is_cut_off(written: bytes, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(written)
    assert durable.whole_lines(path) == len(written) - len(kept)
    assert path.read_bytes() == kept
    assert durable.whole_lines(tmp_path / "never") == 0


def test_names_are_never_too_long_and_stay_apart(tmp_path: Path) -> None:
    names = [durable.file_name(f"/models/{'x' * length}/{end}") for length in (3, 300) for end in "ab"]
    assert len(set(names)) == 4
    for name in names:
        (tmp_path / f"{name}.jsonl.part").touch()


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("the archive could not be written") from error
    except RuntimeError as error:
        assert durable.disk_full(error)
    assert durable.disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not durable.disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def test_errors_that_led_to_each_other_are_looked_at_once() -> None:
    first, second = ValueError("a row"), RuntimeError("a worker")
    first.__cause__, second.__context__ = second, first  # as errors that come back from another process may have it
    assert durable.causes(first) == [first, second]
    assert not durable.disk_full(first)
    second.__cause__ = full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert durable.causes(first) == [first, second, full]
    assert durable.disk_full(first)


def test_a_folder_is_moved_across_file_systems(tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        source = sealed(Path(other) / "output")
        durable.move(source, tmp_path / "artifact")
        assert not source.exists()
    assert durable.damage_of(tmp_path / "artifact", "mark") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
