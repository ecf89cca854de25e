"""Writing that a power cut cannot undo, and knowing later that what is read is what was written.

A file that was closed is not yet on the disk. After a power cut it may be empty, cut, or full of zeros, while a younger
file, such as the mark that says "complete", is there. So everything that a later process believes is written in this
order: the files, the folders that name them, and then one small record with the size and the SHA-256 of each. A record
carries its own hash as well. Whoever reads compares sizes first, which costs nothing, and then contents, several
files at a time. Nothing is believed that does not fit its record, and every fault is named.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

FORMAT = 1
"""Stands in every record. One that has it must have a hash; records of earlier versions have neither."""
SEAL = ".seal"
"""Ends the name of the record of a single file."""
BLOCK_BYTES = 2**20
"""Read at a time: enough for SHA-256 to run at its full speed (1.7 GB/s a core)."""
HASHING_THREADS = 8
"""Files hashed at a time: a disk array reads faster than one core hashes."""
LONGEST_NAME = 200
"""Characters: file systems take 255, and suffixes are put behind."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_TRAILER = re.compile(r',\n "sha256": "([0-9a-f]{64})"\n\}\n?\Z')
T = TypeVar("T")
Item = TypeVar("Item")

Files = Mapping[str, Mapping[str, Any]]
"""Name relative to a folder -> `{"sha256": 64 hexadecimal digits, "bytes": size}`."""


class DamageError(ValueError):
    """A record that is not what was written.

    Args:
        path: the file.
        fault: what is wrong with it, as in "is empty".
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} {fault}")
        self.fault = fault


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each of them lasting."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextlib.contextmanager
def writing(path: Path, encoding: str | None = "utf-8") -> Iterator[IO[Any]]:
    """A file that appears whole and lasting under its name when the block ends, or, if that fails, not at all.

    Args:
        path: where; what is there is replaced.
        encoding: of text; `None` for bytes.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb" if encoding is None else "w", encoding=encoding) as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # what a full disk has room for again
        raise
    sync(path.parent)


def write(path: Path, text: str) -> None:
    """Write a text file; see `writing`."""
    with writing(path) as sink:
        sink.write(text)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that carries its own hash; see `writing`."""
    body = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False)
    write(path, f'{body[:-2]},\n "sha256": "{_digest(body)}"\n}}\n')


def read_record(path: Path, hash_required: bool = True) -> dict[str, Any]:
    """What `write_record` has written.

    Args:
        path: the file.
        hash_required: whether a record without a hash, as earlier versions wrote it, is refused.

    Raises:
        FileNotFoundError: there is no such file.
        DamageError: it is no such record, or another one than was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise DamageError(path, f"is empty or broken ({error})") from error
    if not isinstance(content, dict):
        raise DamageError(path, "is empty or broken (it is not a JSON object)")
    found = _TRAILER.search(text)
    if found is None and ("format" in content or "sha256" in content or hash_required):
        raise DamageError(path, "is empty or broken (its own hash is missing)")
    if found is not None and _digest(text[: found.start()] + "\n}") != found.group(1):
        raise DamageError(path, "is not what was written (its own hash differs)")
    return {name: value for name, value in content.items() if name not in ("format", "sha256")}


def listing(folder: Path, except_for: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Size and hash of every file in a folder. Files are made to last first, then the folders that name them."""
    inside = sorted(folder.rglob("*"))
    paths = [path for path in inside if path.is_file() and path.relative_to(folder).as_posix() not in except_for]
    hashes = _each(_synced_hash, paths)
    for path in reversed(inside):
        if path.is_dir():
            sync(path)
    sync(folder)
    return {
        path.relative_to(folder).as_posix(): {"sha256": digest, "bytes": path.stat().st_size}
        for path, digest in zip(paths, hashes, strict=True)
    }


def seal(folder: Path, mark: str, **content: Any) -> None:
    """Say that a folder is complete: its files, then its folders, then the mark, which lists them.

    Args:
        folder: all of whose files are written.
        mark: name of the record in it; `damage_of(folder, mark)` reads it.
        content: goes into the record, beside `files`.
    """
    (folder / mark).unlink(missing_ok=True)
    write_record(folder / mark, {**content, "files": listing(folder)})
    sync(folder.parent)


def damage_of(folder: Path, mark: str, contents: bool = True) -> dict[str, str]:
    """What is wrong with a sealed folder: file -> fault; see `damage`. Without a mark, the mark is missing."""
    try:
        return damage(folder, read_record(folder / mark)["files"], contents)
    except FileNotFoundError:
        return {mark: "is missing"}
    except DamageError as error:
        return {mark: error.fault}


def seal_file(path: Path) -> None:
    """Write the record of a single file beside it; the file was written by `writing`."""
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}}
    write_record(path.with_name(path.name + SEAL), {"files": files})


def file_damage(path: Path) -> str | None:
    """What is wrong with a file that `seal_file` has sealed, in words; `None` if it is as it was written."""
    found = damage_of(path.parent, path.name + SEAL)
    return None if not found else describe(found)


def damage(folder: Path, files: Files, contents: bool = True) -> dict[str, str]:
    """The files that are not as they were written: name -> fault, in words. Sizes are compared before contents.

    Args:
        folder: where they are.
        files: what they should be.
        contents: whether hashes are compared as well, which reads everything.
    """
    faults: dict[str, str] = {}
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            faults[name] = "is missing" if isinstance(error, FileNotFoundError) else f"is lost ({error.strerror})"
            continue
        if size != entry["bytes"]:
            faults[name] = f"has {size} bytes instead of {entry['bytes']}"
    if faults or not contents:
        return faults
    found = _each(_content_fault, [(folder / name, entry["sha256"]) for name, entry in files.items()])
    return {name: fault for name, fault in zip(files, found, strict=True) if fault is not None}


def describe(faults: Mapping[str, str], most: int = 3) -> str:
    """Faults in one line: `optimizer.pt is missing, rng_state.pth has 0 bytes instead of 13990`."""
    shown = ", ".join(f"{name} {fault}" for name, fault in list(faults.items())[:most])
    return shown if len(faults) <= most else f"{shown}, and {len(faults) - most} more"


def move(source: Path, target: Path) -> None:
    """Rename a folder to where nothing is; across file systems, copy it first, so that it still appears at once."""
    number = source.stat().st_ino
    try:
        source.rename(target)
    except FileNotFoundError:
        if not target.exists() or target.stat().st_ino != number:
            raise  # otherwise it was done, and NFS has lost the answer and asked again
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            shutil.copytree(source, beside)
            listing(beside)
            beside.rename(target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        shutil.rmtree(source)
    sync(target.parent)


def file_name(text: str) -> str:
    """A file's or folder's name for a text, such as a model's path: readable, and no longer than names may be."""
    name = quote(text, safe="")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 13]}-{_digest(text)[:12]}"


def whole_lines(path: Path) -> int:
    """Cut off what follows the last whole line of a JSONL file that was being appended to; returns the bytes lost.

    Without this, the next line would be glued to half of another one, or to the zeros of a power cut, and lost too.
    """
    if not path.is_file():
        return 0
    with path.open("r+b") as file:
        data = file.read()
        kept = data.rstrip(b"\0")
        kept = kept[: kept.rfind(b"\n") + 1]
        if len(kept) < len(data):
            file.truncate(len(kept))
            os.fsync(file.fileno())
    return len(data) - len(kept)


def disk_full(error: BaseException) -> bool:
    """Whether a full disk, or a quota, is behind an exception, or behind one that led to it."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return True
        said = "".join(traceback.format_exception_only(cause))  # also of one whose own words cannot be had
        if any(os.strerror(number) in said for number in DISK_FULL):  # safetensors, in words of Rust
            return True
    return False


def causes(error: BaseException) -> list[BaseException]:
    """An exception and those that led to it, each once: Python does not keep such a chain from being a circle."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def sha256(path: Path, stop: threading.Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal digits; incomplete if `stop` is set meanwhile."""
    digest, block = hashlib.sha256(), bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as source:
        while (stop is None or not stop.is_set()) and (count := source.readinto(block)):
            digest.update(view[:count])
    return digest.hexdigest()


def _each(function: Callable[[Item, threading.Event], T], items: Sequence[Item]) -> list[T]:
    """Call for each file, several at a time; Ctrl-C does not wait for a file of many gigabytes."""
    stop = threading.Event()
    with ThreadPoolExecutor(min(HASHING_THREADS, max(1, len(items)))) as pool:
        try:
            return list(pool.map(lambda item: function(item, stop), items))
        finally:
            stop.set()


def _synced_hash(path: Path, stop: threading.Event) -> str:
    sync(path)
    return sha256(path, stop)


def _content_fault(file: tuple[Path, str], stop: threading.Event) -> str | None:
    path, expected = file
    try:
        return None if sha256(path, stop) == expected else "has other content than was written"
    except OSError as error:  # a sector that cannot be read any more
        return f"cannot be read ({error.strerror})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
