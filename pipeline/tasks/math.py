r"""Competition mathematics: MATH, MATH-500, AIME and HMMT, graded by comparing final answers. One row of MATH::

    {"problem": "What is the degree of the polynomial $(4 +5x^3 +100 +2\\pi x^4 + \\sqrt{10}x^4 +9)$?",
     "level": "Level 3", "type": "Algebra",
     "solution": "This polynomial is not written in standard form. … the degree is $\\boxed{4}$."}

The gold answer is the field `answer` where a row has one, else what the solution puts into a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.files import formats, hub
from pipeline.files.rows import RowError
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import BadRows, Problem, Split, Task, TaskError
from pipeline.tasks.generated import problem_id
from pipeline.tasks.reading import checked_bad_rows, distinct, problems_of, shuffled
from rewards.math.extract import gold_text

LEVELS = range(1, 6)
_LEVEL = re.compile(r"(?:Level )?([1-5])(?:\.0)?")
_BOXED = re.compile(r"\\(?:boxed|fbox)\b")


class MathTask(Task):
    """What the data sets share: rows with `problem`, and `answer` or a `solution` with a box.

    Attributes:
        name: prefix of the problems' ids.
        hub: split -> data set on the Hugging Face hub; what is missing has no problems.
    """

    grader = "math"
    template = "boxed"
    path_options = ("path",)
    column_names = ("level", "subject")
    name: ClassVar[str]
    hub: Mapping[Split, HubSource]

    def __init__(
        self,
        path: str | None = None,
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        self.bad_rows = checked_bad_rows(self.name, bad_rows)
        self.path, self.template = None if path is None else Path(path), template
        self.grader_options = dict(grader_options or {})
        if path is None:
            self.repository = next(iter(self.hub.values())).model_copy(update={"revision": revision})

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """The official splits; a question that comes twice counts once. See `Task.problems`."""
        if split not in self.hub:
            raise TaskError(f"{self.name} has no {split} problems, only {' and '.join(self.hub)} ones")
        found = problems_of(
            self,
            lambda bad: self._rows(split, bad),
            lambda row, place: _problem(self.name, row, place) if self.wants(row) else None,
        )
        return shuffled(distinct(found, f"{self.name}/{split}"), n, seed, f"{self.name}/{split}")

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether a row belongs to the task."""
        return True

    def file(self, split: Split) -> Path | None:
        """The local files with the rows of a split; `None` to take them from the hub."""
        return self.path

    def _rows(self, split: Split, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        file = self.file(split)
        if file is not None:
            return formats.read(file, bad)
        assert self.repository is not None
        return hub.rows(self.hub[split].model_copy(update={"revision": self.repository.revision}))


class Math(MathTask):
    """MATH: 7,500 + 5,000 competition problems (Hendrycks et al., arXiv 2103.03874; MIT licence).

    Args:
        path: folder with `train.jsonl` and `test.jsonl` in the original format; from the hub if not given.
        levels: levels of difficulty to take, of 1 to 5; rows without a level count only if all are taken.
        template: prompt template that wraps each question.
        grader_options: options of the reward `math`.
        bad_rows: `skip` leaves out rows without a usable answer instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    name = "math"
    hub: Mapping[Split, HubSource] = {
        "train": HubSource(hub="DigitalLearningGmbH/MATH-lighteval", split="train"),
        "test": HubSource(hub="DigitalLearningGmbH/MATH-lighteval", split="test"),
    }

    def __init__(
        self,
        path: str | None = None,
        levels: Sequence[int] = tuple(LEVELS),
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        super().__init__(path, template, grader_options, bad_rows, revision)
        if not levels or any(level not in LEVELS for level in levels):
            raise TaskError(f"math: levels are from 1 to 5, not {list(levels)}")
        self.levels = frozenset(levels)

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's level is one of those asked for."""
        return self.levels == set(LEVELS) or _level(row) in self.levels

    def file(self, split: Split) -> Path | None:
        """`train.jsonl` or `test.jsonl` in the folder."""
        return None if self.path is None else self.path / f"{split}.jsonl"


class Math500(MathTask):
    """MATH-500: 500 problems of MATH's test split (Lightman et al., arXiv 2305.20050); only for tests.

    Args:
        path: JSONL file; from the hub if not given.
        template: prompt template that wraps each question.
        grader_options: options of the reward `math`.
        bad_rows: `skip` leaves out rows without a usable answer instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    name = "math500"
    hub: Mapping[Split, HubSource] = {"test": HubSource(hub="HuggingFaceH4/MATH-500", split="test")}


AIME_HUB: Mapping[int, HubSource] = {
    2026: HubSource(hub="MathArena/aime_2026", split="train"),
    2024: HubSource(hub="HuggingFaceH4/aime_2024", split="train"),
    2025: HubSource(hub="math-ai/aime25", split="test"),
}
"""Year -> the 30 problems of both contests on the hub."""


class Aime(MathTask):
    """AIME: 30 problems a year whose answers are whole numbers from 0 to 999; only for tests.

    Args:
        year: 2024, 2025 or 2026.
        path: JSONL file with `problem` and `answer`, of any year; from the hub if not given.
        template: prompt template that wraps each question.
        grader_options: options of the reward `math`.
        bad_rows: `skip` leaves out rows without a usable answer instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    name = "aime"

    def __init__(
        self,
        year: int = 2024,
        path: str | None = None,
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        *first, last = AIME_HUB
        if path is None and year not in AIME_HUB:
            raise TaskError(f"aime: year is {', '.join(map(str, first))} or {last}, not {year}; for others give a path")
        self.hub = {"test": AIME_HUB.get(year, AIME_HUB[2024])}
        super().__init__(path, template, grader_options, bad_rows, revision)


HMMT_HUB: Mapping[str, HubSource] = {
    contest: HubSource(hub=f"MathArena/hmmt_{contest}", split="train")
    for contest in ("feb_2025", "nov_2025", "feb_2026")
}
"""Contest -> its problems on the hub."""


class Hmmt(MathTask):
    """HMMT: 30 problems a contest, whose answers are expressions; only for tests.

    Args:
        contest: feb_2025, nov_2025 or feb_2026.
        path: files with `problem` and `answer`, of any contest; from the hub if not given.
        template: prompt template that wraps each question.
        grader_options: options of the reward `math`.
        bad_rows: `skip` leaves out rows without a usable answer instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    name = "hmmt"

    def __init__(
        self,
        contest: str = "feb_2025",
        path: str | None = None,
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        if path is None and contest not in HMMT_HUB:
            raise TaskError(f"hmmt: contest is {', '.join(HMMT_HUB)}, not {contest!r}; for others give a path")
        self.hub = {"test": HMMT_HUB.get(contest, HMMT_HUB["feb_2025"])}
        super().__init__(path, template, grader_options, bad_rows, revision)


def _problem(name: str, row: Mapping[str, Any], place: str) -> Problem:
    question, answer, solution = row.get("problem"), row.get("answer"), row.get("solution")
    if not isinstance(question, str) or not question.strip():
        raise TaskError(f"{place}: the field problem has to be a text, not {question!r}")
    if answer is None and isinstance(solution, str) and _BOXED.search(solution):
        answer = gold_text(solution)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise TaskError(f"{place}: a row needs an answer, or a solution with a box around it")
    subject = row.get("subject") or row.get("type") or row.get("problem_type")
    if isinstance(subject, list):  # MathArena's rows have several
        subject = ", ".join(map(str, subject)) or None
    columns = {key: value for key, value in (("level", _level(row)), ("subject", subject)) if value is not None}
    return Problem(problem_id(name, question), question, str(answer).strip(), columns)


def _level(row: Mapping[str, Any]) -> int | None:
    """`"Level 3"`, `3` and `3.0` are 3; anything else is none."""
    value = row.get("level", row.get("difficulty"))
    match = _LEVEL.fullmatch(str(value))
    return int(match[1]) if match else None
