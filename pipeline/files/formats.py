"""Rows of data files in any of the usual formats, one after another, each with the place where it stands.

    chats.jsonl  chats.jsonl.gz  chats.jsonl.zst  chats.json  table.csv  table.tsv  part.parquet  part.arrow
    data/*.parquet                                    every file that fits, in the order of their names
    data/                                             the split `train` of a folder, as `datasets` finds it, or what
                                                      `Dataset.save_to_disk` wrote

Files are read as they are needed: memory holds some rows, whatever the file's size. The exception is a `.json` file
that is one list. Cells of a CSV file are texts; semicolons or tabs divide them where its first line has no comma.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files.rows import COMPRESSED, RowError, check_text, open_bytes, read_rows

LINES = (".jsonl", ".ndjson")
TABLES: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*LINES, ".json", *TABLES, ".parquet", ".arrow")
SAVED = ("state.json", "dataset_dict.json")
"""What `datasets` writes into a folder with a data set, or with several splits of one."""
BATCH_ROWS = 1000
"""Rows of a Parquet file in memory at a time."""
BLOCK_BYTES = 32 * 2**20
"""Bytes of a CSV file in memory at a time; a row is no longer than that."""
HEADER_BYTES = 64 * 2**10
"""Longest first line of a CSV file that is looked at to see what divides its columns."""
_GLOB = frozenset("*?[")

Rows = Iterator[tuple[str, dict[str, Any]]]


def matching(path: Path) -> list[Path]:
    """What a path of a recipe stands for: the file or folder of that name, or all files that a pattern fits."""
    try:
        if path.is_file() or path.is_dir():
            return [path]
    except (OSError, ValueError):  # too long for a name, a zero byte
        return []
    fixed = next((at for at, part in enumerate(path.parts) if _GLOB & set(part)), None)
    if fixed is None:
        return []
    pattern = str(Path(*path.parts[fixed:]))
    return sorted(found for found in Path(*path.parts[:fixed]).glob(pattern) if found.is_file())


def absent(path: Path) -> str:
    """Why a path stands for nothing that could be read, where `matching` finds nothing."""
    with contextlib.suppress(OSError, ValueError):  # too long for a name, a zero byte
        if path.exists():
            return f"{path} is a pipe or a device, which can be read once at most: write what it gives into a file"
    return f"there is no file or folder {path}"


def kind(path: Path) -> str:
    """The suffix that says what is in a file, without that of its compression."""
    suffixes = path.suffixes
    return (suffixes[-2] if suffixes and suffixes[-1] in COMPRESSED and len(suffixes) > 1 else path.suffix).lower()


def read(path: Path, bad: list[RowError] | None = None, split: str = "train") -> Rows:
    """The rows of a file, of all files that a pattern fits, or of a folder.

    Args:
        path: see the top of this module.
        bad: takes the errors of lines that are no rows, which are raised without it.
        split: of a folder, which part.

    Raises:
        RowError: there is no such file, it cannot be read, or a row is none; the message names the file and the row.
    """
    found = matching(path)
    if not found:
        raise RowError(absent(path))
    for file in found:
        if file.is_dir():
            yield from _folder(file, split, bad)
        else:
            yield from _file(file, bad)


def _file(path: Path, bad: list[RowError] | None) -> Rows:
    found = kind(path)
    if found in TABLES:
        return _table(path)
    if found == ".parquet":
        return _parquet(path)
    if found == ".json" and not _has_lines(path):
        return _json(path)
    if found == ".arrow":
        return _arrow(path)
    if found not in (*LINES, ".json") and not _has_lines(path):
        raise RowError(f"{path} is in none of the formats that are read: {', '.join(SUFFIXES)}, also compressed")
    return read_rows(path, bad)


def _has_lines(path: Path) -> bool:
    """Whether a file holds one JSON object a line; an empty one does."""
    try:
        with open_bytes(path) as source:
            first = next((line for line in source if line.strip()), b"{}")
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (OSError, EOFError):
        return True  # told by whoever reads it
    except (ValueError, RecursionError):
        return False


def _json(path: Path) -> Rows:
    """A list of objects, or an object whose only list of objects it is."""
    try:
        with open_bytes(path) as source:
            text = source.read()
        data = json.loads(text)
    except (OSError, EOFError, ValueError) as error:
        raise RowError(f"cannot read {path}: {error}") from error
    except RecursionError as error:
        raise RowError(f"{path} is nested too deeply to be read") from error
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        data = lists[0] if len(lists) == 1 else [data]
    if not isinstance(data, list):
        raise RowError(f"{path} holds neither a list of objects nor an object a line")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, dict):
            raise RowError(f"{path}, row {number}: is not a JSON object")
        if b"\\u" in text:
            check_text(row, f"{path}, row {number}")
        yield f"{path}, row {number}", row


def _delimiter(header: bytes, path: Path) -> str:
    """What divides the columns of a table, by its first line: spreadsheets of many countries write semicolons."""
    usual, text = TABLES[kind(path)], header.decode("utf-8", "replace")

    def divides(sign: str) -> bool:
        """Whether it stands outside of quotes."""
        return any(len(names) > 1 for names in csv.reader([text], delimiter=sign))

    return next((sign for sign in (usual, ",", ";", "\t") if divides(sign)), usual)


def _table(path: Path) -> Rows:
    import pyarrow as pa
    from pyarrow import csv as tables

    read = tables.ReadOptions(block_size=BLOCK_BYTES)
    try:
        with open_bytes(path) as source:
            header = source.read(HEADER_BYTES).partition(b"\n")[0]
        if header.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise RowError(f"{path} is encoded in UTF-16: save it as UTF-8")
        parse = tables.ParseOptions(delimiter=_delimiter(header, path), newlines_in_values=True)
        with open_bytes(path) as source:
            names = tables.open_csv(source, read, parse).schema.names
        if len(set(names)) < len(names):
            raise RowError(f"{path}: two columns have the same name: {', '.join(names)}")
        texts = tables.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with open_bytes(path) as source:
            yield from _numbered(path, tables.open_csv(source, read, parse, texts))
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        raise RowError(f"cannot read {path}: {_line(error)}") from error


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(path, file.iter_batches(BATCH_ROWS))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # names of columns in another encoding
        raise RowError(f"cannot read {path}: {_line(error)}") from error


def _arrow(path: Path) -> Rows:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            yield from _numbered(path, pa.ipc.open_stream(source))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise RowError(f"cannot read {path}: {_line(error)}") from error


def _numbered(path: Path, batches: Iterable[Any]) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            number += 1
            yield f"{path}, row {number}", row


def _folder(folder: Path, split: str, bad: list[RowError] | None) -> Rows:
    if any((folder / name).is_file() for name in SAVED):
        yield from _saved(folder, split)
        return
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        splits = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except (EmptyDatasetError, OSError) as error:
        raise RowError(f"{folder} holds no data files") from error
    if split not in splits:
        raise RowError(f"{folder} has no split {split!r}; it has: {', '.join(map(str, splits))}")
    files = [path for path in sorted(map(Path, splits[split])) if kind(path) in SUFFIXES]
    if not files:
        raise RowError(f"{folder} holds no data files ({', '.join(SUFFIXES)})")
    for file in files:
        yield from _file(file, bad)


def _saved(folder: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise RowError(f"cannot read {folder}: {_line(error)}") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise RowError(f"{folder} has no split {split!r}; it has: {', '.join(saved)}")
        saved = saved[split]
    for number, row in enumerate(saved, start=1):
        yield f"{folder}, row {number}", row


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
