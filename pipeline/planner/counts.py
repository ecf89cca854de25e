"""How many problems and rows a recipe names, and how long they are, as far as that is known without the network."""

from __future__ import annotations

import importlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.data import mixture
from pipeline.data.mixture import DataSource
from pipeline.data.shapes import PAIR
from pipeline.files import formats
from pipeline.files.columns import FieldError, lookup, passes
from pipeline.files.rows import COMPRESSED, RowError, open_bytes
from pipeline.recipe import Recipe
from pipeline.schema.task import TaskSpec
from pipeline.tasks.base import BUILTIN, TaskError
from pipeline.tasks.resolve import merged, passing, resolve
from rewards.registry import located

PUBLISHED: Mapping[tuple[str, str], int] = {
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    ("math", "train"): 12_000,
    ("math", "test"): 500,
    ("math500", "test"): 500,
    ("aime", "test"): 30,
    ("mbpp", "train"): 374,
    ("mbpp", "test"): 500,
    ("humaneval", "test"): 164,
    ("livecodebench", "test"): 880,
}
"""(task, split) -> problems on the hub, as the data sets' cards have it."""
HARNESS = {"gpqa_diamond_cot_zeroshot": 198, "gpqa_main_cot_zeroshot": 448, "ifeval": 541, "mmlu_pro": 12032}
"""Questions of tasks of lm-evaluation-harness, from the cards of their data sets."""
UNKNOWN_PROBLEMS = 1000
"""Problems of a task whose number is not known."""
UNKNOWN_ROWS = 1000
"""Rows of data whose number is not known."""
BYTES_A_TOKEN = 4.0
"""Of English text, with vocabularies of 100,000 tokens and more."""
SAMPLED_ROWS = 100
"""Of a Parquet file, the rows whose length stands for all."""
READ_BYTES = 256 * 2**20
"""Of a larger file, rows are counted by the length of its first ones."""
LOOKED_AT = 5000
"""Rows of a file that are read for their lengths, and for whether they pass a filter: a quarter of a second."""
TASK_BYTES = 32 * 2**20
"""Files of a task up to this are read, and its problems counted as a stage counts them."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number, and where it is from; `assumed` where nothing says it."""

    number: int
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """The rows of data files, and bytes of one on average."""

    rows: int
    row_bytes: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What rows of a source are like.

    Attributes:
        passing: share that passes the filter.
        row_bytes: of what is learnt of one, on average.
        longest_bytes: of the longest.
        looked_at: rows that were read.
    """

    passing: float
    row_bytes: float
    longest_bytes: int
    looked_at: int


def sample(source: DataSource, base: Path) -> Sample | None:
    """What the first rows of local files are like; `None` if they cannot be read, or none passes the filter."""
    sizes, read = [], 0
    try:
        for row in islice(mixture.raw(source.source, lambda name: located(name, base)), LOOKED_AT):
            read += 1
            if not source.filter or passes(row, source.filter):
                chosen = {name: lookup(row, there) for name, there in source.columns.items()} or row
                sizes.append(_learnt_bytes(chosen))
    except (mixture.DataError, FieldError, OSError):
        return None
    return Sample(len(sizes) / read, fmean(sizes), max(sizes), read) if sizes else None


def _learnt_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of a row; of a pair, those of its longer conversation."""
    sizes = {name: len(json.dumps(value, default=str)) for name, value in row.items()}
    both = [sizes[name] for name in PAIR if name in sizes]
    return sum(sizes.values()) - (min(both) if len(both) == len(PAIR) else 0)


@lru_cache(maxsize=64)
def lines(path: Path) -> File | None:
    """The rows of a file, or of all that a pattern or a folder stands for; `None` if they cannot be read."""
    found = [file for each in formats.matching(path) for file in _each(each)]
    whole = len(found) == 1
    read = [_rows(file) for file in found if whole or formats.kind(file) in formats.SUFFIXES]
    known = [file for file in read if file is not None]
    rows = sum(file.rows for file in known)
    if not rows or len(known) < len(read):
        return None
    return File(rows, sum(file.rows * file.row_bytes for file in known) / rows)


def _each(path: Path) -> list[Path]:
    """A file, or those of a folder."""
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


def _rows(path: Path) -> File | None:
    """The rows of one file; of a Parquet file as its end says, of a list in JSON by its items, of a text by lines."""
    if formats.kind(path) == ".parquet":
        return _of_parquet(path)
    if formats.kind(path) == ".json" and path.stat().st_size <= TASK_BYTES:
        return _of_json(path)
    try:
        with open_bytes(path) as file:
            head = file.read(READ_BYTES)
        size = path.stat().st_size
    except (OSError, EOFError, LZMAError, zlib.error):
        return None
    if path.suffix.lower() in COMPRESSED:
        size = len(head)
    rows = max(1, head.count(b"\n") + (not head.endswith(b"\n")) - (formats.kind(path) in formats.TABLES))
    average = len(head) / rows
    return File(max(1, round(size / average)) if average else 0, average) if size else None


def _of_json(path: Path) -> File | None:
    try:
        rows = sum(1 for _ in formats.read(path))
    except RowError:
        return None
    return File(rows, path.stat().st_size / rows) if rows else None


def _of_parquet(path: Path) -> File | None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = int(parquet.read_metadata(path).num_rows)
        first = [len(json.dumps(row, default=str)) for _, row in islice(formats.read(path), SAMPLED_ROWS)]
    except (OSError, RowError, pa.ArrowException, UnicodeDecodeError):
        return None
    return File(rows, fmean(first)) if first else None


def of_harness(name: str) -> Count:
    """Questions of a task of lm-evaluation-harness."""
    if name in HARNESS:
        return Count(HARNESS[name], f"{name}: its data set's card")
    return Count(
        UNKNOWN_PROBLEMS, f"assumed: {name} of the harness does not say how many questions it has", assumed=True
    )


def problems(spec: TaskSpec, recipe: Recipe) -> Count:
    """Problems that a stage takes of a task."""
    if spec.problems is not None:
        return Count(spec.problems, f"{spec.label}: problems")
    definitions = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    if spec.filter is None:
        return _there(spec, definitions, recipe)
    whole = _there(spec, definitions, recipe)
    if spec.filter.source is None and (number := _in_files(spec, definitions, recipe)) is not None:
        return Count(number, f"{spec.label}: those of its files that pass its filter")
    return Count(whole.number, f"assumed: all pass the filter {spec.filter.wanted} ({whole.source})", assumed=True)


def _in_files(spec: TaskSpec, definitions: Mapping[str, Mapping[str, Any]], recipe: Recipe) -> int | None:
    """Problems of a task in small local files, as a stage takes them; `None` if they are elsewhere, or are faulty."""
    _, options, _ = merged(spec, definitions)
    paths = [located(str(options[name]), recipe.base) for name in ("path", "test_path") if options.get(name)]
    files = [file for path in paths for file in formats.matching(path)]
    if not files or sum(each.stat().st_size for file in files for each in _each(file)) > TASK_BYTES:
        return None
    try:
        resolved = resolve(spec, definitions, recipe.base)
        found = resolved.task.problems(spec.split, None, recipe.seed)
        local = spec.filter is not None and spec.filter.source is None
        return len(passing(resolved, [resolved.row(problem) for problem in found]) if local else found)
    except (TaskError, RowError):
        return None


def _there(spec: TaskSpec, definitions: Mapping[str, Mapping[str, Any]], recipe: Recipe) -> Count:
    """Problems of a task, whatever its filter."""
    plain = spec.model_copy(update={"filter": None})
    if (number := _in_files(plain, definitions, recipe)) is not None:
        return Count(number, f"{spec.label}: problems of its files")
    use, options, _ = merged(spec, definitions)
    if (path := options.get("path")) is not None and isinstance(path, str):
        local = located(path, recipe.base)
        file = local / f"{spec.split}.jsonl" if local.is_dir() else local
        if (read := lines(file)) is not None:
            return Count(read.rows, f"{spec.label}: lines of {file.name}")
    if (use, spec.split) in PUBLISHED:
        return Count(PUBLISHED[use, spec.split], f"{spec.label}: its data set's card")
    if use in BUILTIN:
        module: Any = importlib.import_module(BUILTIN[use].partition(":")[0])
        default = getattr(module, "DEFAULT_PROBLEMS", {}).get(spec.split)
        if default is not None:
            return Count(int(default), f"{spec.label}: as many as it draws by default")
    return Count(UNKNOWN_PROBLEMS, f"assumed: {spec.label} does not say how many problems it has", assumed=True)


def drawn(spec: TaskSpec, recipe: Recipe) -> Count:
    """Problems of a task that come up in an epoch, by its weight."""
    found = problems(spec, recipe)
    if spec.weight == 1:
        return found
    return Count(round(found.number * spec.weight), f"{found.source}, weight {spec.weight:g}", found.assumed)
