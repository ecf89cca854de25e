"""JSONL in and out: one JSON object a line, and errors that name file and line."""

from __future__ import annotations

import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.files import durable


class RowError(ValueError):
    """A row that cannot be read or lacks what is asked of it; the message begins with `file:line`."""


COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
"""Suffixes of compressed files, which are read as what they hold."""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, as what it holds if it is compressed.

    Raises:
        OSError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        import gzip

        return gzip.open(path)  # type: ignore[return-value]
    if suffix in (".xz", ".bz2"):
        import bz2

        return lzma.open(path) if suffix == ".xz" else bz2.open(path)
    if suffix == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")  # type: ignore[no-any-return]
    return path.open("rb")


def read_rows(path: Path, bad: list[RowError] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file, each with its place, such as `data.jsonl:17`; blank lines are skipped.

    Args:
        path: the file; compressed if its name says so (`.gz`, `.zst`, `.xz`, `.bz2`).
        bad: takes the errors of lines that are no rows, which are raised without it.

    Raises:
        RowError: the file does not exist, or a line is not a JSON object of text that can be written again.
    """
    try:
        with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as source:  # some editors put a mark before it
            for number, line in enumerate(source, start=1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    row = _object(line, place)
                except RowError as error:
                    if bad is None:
                        raise
                    bad.append(error)
                    continue
                yield place, row
    except UnicodeDecodeError as error:
        raise RowError(f"cannot read {path}: it is not UTF-8, so save it as UTF-8 ({error})") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise RowError(f"cannot read {path}: {error}") from error


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError(f"{place} is not JSON: {error}") from error
    except RecursionError as error:
        raise RowError(f"{place} is nested too deeply to be read") from error
    if "\\u" in line:  # the only way to half of a character: the file itself is UTF-8
        check_text(row, place)
    if not isinstance(row, dict):
        raise RowError(f"{place} is not a JSON object")
    return row


def check_text(row: Any, place: str) -> None:
    """Make sure that a row of JSON can be written again.

    Raises:
        RowError: a text of it holds half of a character; the message begins with the place.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RowError(f"{place} is not text: {half!a} is half of a character (a lone surrogate)") from error


def whole_row(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or `None` for a broken one: what was being written when a process ended."""
    try:
        found = json.loads(line.decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file at once: it appears whole and lasting under its name, or not at all."""
    with durable.writing(path) as sink:
        sink.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
