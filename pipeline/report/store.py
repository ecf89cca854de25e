"""Every sample of one or several runs as script files beside the page, which its sample browser loads when needed.

Browsers let a page that was opened from a folder read no other file, but let it load scripts. So the samples lie in
scripts that hold nothing but JSON: an index, and the texts in parts of about a megabyte. Each file is named after its
content, so that an open page never gets the parts of another report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import durable
from pipeline.records.samples import SAMPLES
from pipeline.report.run_data import Run, Stage, Store, mapping, rows
from pipeline.report.samples import is_correct, model_of, thought_and_answer
from pipeline.report.text import clean, finite, shorten

FOLDER = "report-data"
"""Beside the page."""
PART = 1_000_000
"""Characters of texts in one file, about."""
TEXT_LIMIT = 8_000
"""Characters of a question, a thought or an answer that are kept."""
LABEL_LIMIT = 200
"""Characters of short fields."""


class _Words:
    """Texts that repeat, each kept once: text -> its number."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def number(self, text: Any) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    @property
    def all(self) -> list[Any]:
        return list(self.numbers)


class _Columns:
    """The index: one entry a sample in each column, and the texts of parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources, self.problems, self.statuses, self.ends = _Words(), _Words(), _Words(), _Words()
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("source", "step", "problem", "status", "good", "tokens", "end")
        }
        self.parts: list[str] = []
        self.starts: list[int] = []
        self._texts: list[list[Any]] = []
        self._size = 0

    def add(self, source: tuple[str, str, str], row: Mapping[str, Any]) -> None:
        tokens, step = finite(row.get("tokens")), finite(row.get("step"))
        problem = (
            _label(row.get("task")),
            _label(row.get("id")),
            _text(row.get("question")),
            _label(row.get("answer")),
        )
        values = {
            "source": self.sources.number(source),
            "step": None if step is None else int(step),
            "problem": self.problems.number(problem),
            "status": self.statuses.number(_label(row.get("reason") or row.get("status")).replace("_", " ")),
            "good": int(is_correct(row)),
            "tokens": None if tokens is None else int(tokens),
            "end": self.ends.number(_label(row.get("finish"))),
        }
        for name, value in values.items():
            self.columns[name].append(value)
        thought, answer = thought_and_answer(row)
        parts = {_label(name): finite(value) for name, value in mapping(row.get("rewards")).items()}
        language = row.get("language")
        thought = None if thought is None else _text(thought.strip("\n"))
        answer = _text(answer.strip("\n"))
        text = [
            thought,
            answer,
            _label(row.get("extracted")),
            parts,
            f"{language:.2f}" if isinstance(language, float) else _label(language),
        ]
        self._texts.append(text)
        self._size += len(thought or "") + len(answer) + LABEL_LIMIT
        if self._size >= PART:
            self.close_part()

    def close_part(self) -> None:
        """Write the texts that are waiting as a part of their own."""
        if self._texts:
            number = len(self.parts)
            self.starts.append(len(self.columns["source"]) - len(self._texts))
            self.parts.append(_write(self.folder, "texts", f"zero2r1.texts({number},{_json(self._texts)})"))
            self._texts, self._size = [], 0

    def close(self) -> Store:
        """Write what is left, and the index."""
        self.close_part()
        count = len(self.columns["source"])
        if not count:
            return Store("", 0)
        index = {
            "sources": self.sources.all,
            "problems": self.problems.all,
            "statuses": self.statuses.all,
            "ends": self.ends.all,
            "columns": self.columns,
            "parts": self.parts,
            "starts": self.starts,
        }
        return Store(_write(self.folder, "index", f"zero2r1.index({_json(index)})"), count)

    def files(self, store: Store) -> set[str]:
        """The names of all files that belong to the report."""
        return {store.index, *self.parts}


def write(runs: Sequence[tuple[str, Run]], folder: Path) -> tuple[Store, set[str]]:
    """Write the samples of runs, each with a label, which is empty for a run that stands alone.

    Returns:
        where they are, and the names of the files in `folder / FOLDER`.
    """
    columns = _Columns(folder / FOLDER)
    for label, run in runs:
        for source, row in _samples(label, run):
            columns.add(source, row)
    store = columns.close()
    return store, columns.files(store)


def tidy(folder: Path, wanted: set[str]) -> None:
    """Remove the files of earlier reports."""
    for path in (folder / FOLDER).glob("*.js"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _samples(label: str, run: Run) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """Each with its source: the run's label, the stage, and the model where the stage evaluates."""
    for stage in run.stages.values():
        for row in rows(stage, SAMPLES):
            yield (label, clean(stage.name), _label(_model(stage, row))), row


def _model(stage: Stage, row: Mapping[str, Any]) -> str:
    return model_of(stage, row) if stage.kind == "evaluate" else ""


def _write(folder: Path, what: str, script: str) -> str:
    name = f"{what}-{hashlib.sha256(script.encode()).hexdigest()[:16]}.js"
    durable.make_folder(folder)
    if not (folder / name).is_file():
        durable.write(folder / name, script)
    return name


def _json(value: Any) -> str:
    """As JSON that is JavaScript, too: of ASCII alone, so that no character ends a line or a string."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _text(value: object) -> str:
    return clean(shorten("" if value is None else str(value), TEXT_LIMIT))


def _label(value: object) -> str:
    text = clean("" if value is None else str(value))
    return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"
