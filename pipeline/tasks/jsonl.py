"""Problems from any JSONL file, with a mapping of its fields. With this line in `problems.jsonl`::

    {"problem": "What is 2 + 3?", "solution": "2 and 3 are 5.\\n#### 5", "level": 1}

and `{use: jsonl, options: {path: problems.jsonl, question: problem, answer: solution, answer_after: "####"}}` one gets

    question  "What is 2 + 3?"
    answer    "5"
    columns   {"level": 1}          (only with `columns: [level]`)

The test problems lie in a file of their own (`test_path`), or are a share of the file, chosen by a stable hash of the
question, so that the two never share a problem. A question that stands there twice counts once; with two answers it
is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from pipeline.rows import read_rows
from pipeline.tasks.base import BadRows, Problem, Split, Task, TaskError
from pipeline.tasks.generated import TEST_SHARE, problem_id, split_of
from pipeline.tasks.reading import checked_bad_rows, problems_of

log = logging.getLogger(__name__)


class Jsonl(Task):
    """Problems of a JSONL file.

    Args:
        path: the file; must be given.
        test_path: file with the test problems; a share of `path` if not given.
        test_share: that share.
        question, answer: names of the fields.
        answer_after: the gold answer is what follows the last occurrence of this text.
        columns: further fields to hand to rewards; a mapping renames them (column -> field).
        grader, grader_options: the reward that grades.
        template: prompt template.
        bad_rows: `error` stops at rows without a question or a usable answer, and counts them; `skip` leaves them out.
    """

    path_options = ("path", "test_path")

    def __init__(
        self,
        path: str = "",
        test_path: str | None = None,
        test_share: float = TEST_SHARE,
        question: str = "question",
        answer: str = "answer",
        answer_after: str | None = None,
        columns: Sequence[str] | Mapping[str, str] = (),
        grader: str = "math",
        grader_options: Mapping[str, Any] | None = None,
        template: str = "boxed",
        bad_rows: BadRows = "error",
    ) -> None:
        if not path:
            raise TaskError("jsonl: wants the option path, a JSONL file")
        if not 0 <= test_share < 1:
            raise TaskError(f"jsonl: test_share is from 0 to below 1, not {test_share}")
        self.path, self.test_path, self.test_share = (
            Path(path),
            None if test_path is None else Path(test_path),
            test_share,
        )
        self.question, self.answer, self.answer_after = question, answer, answer_after
        self.columns = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        self.column_names = tuple(self.columns)
        self.bad_rows = checked_bad_rows("jsonl", bad_rows)
        self.grader, self.grader_options, self.template = grader, dict(grader_options or {}), template

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Problems of one split; a question that comes twice counts once. See `Task.problems`."""
        if split == "test" and self.test_path is not None:
            found = self._read(self.test_path)
        else:
            found = self._read(self.path)
            if self.test_path is None:
                found = [p for p in found if split_of(p.question, self.test_share) == split]
        return shuffled(found, n, seed, f"{self.path.name}, split {split}")

    def _read(self, path: Path) -> list[Problem]:
        first: dict[str, tuple[str, Problem]] = {}

        def once(row: Mapping[str, Any], place: str) -> Problem | None:
            problem = self._problem(row, place)
            if self.bad_rows == "skip" and self.gold_fault(problem) is not None:
                return problem  # which is left out, and stands in the way of no other
            where, earlier = first.setdefault(problem.question, (place, problem))
            if earlier.answer != problem.answer:
                raise TaskError(
                    f"{place}: the question of {where} with another answer, {problem.answer!r} instead of"
                    f" {earlier.answer!r}: only one can be right, so take the other out"
                )
            if earlier != problem:
                log.warning("%s: the question and the answer of %s with other columns: those count", place, where)
            return problem if earlier is problem else None

        return problems_of(self, lambda bad: read_rows(path, bad), once)

    def _problem(self, row: Mapping[str, Any], place: str) -> Problem:
        wanted = {self.question, self.answer, *self.columns.values()}
        if missing := sorted(wanted - row.keys()):
            raise TaskError(f"{place}: there is no field {', '.join(missing)}; the row has: {', '.join(row)}")
        question = row[self.question]
        if not isinstance(question, str) or not question.strip():
            raise TaskError(f"{place}: {self.question} is a text, not {question!r}")
        columns = {column: row[field] for column, field in self.columns.items()}
        return Problem(problem_id("jsonl", question), question, self._gold(row[self.answer], place), columns)

    def _gold(self, value: Any, place: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TaskError(f"{place}: {self.answer} is a text or a number, not {value!r}")
        text = str(value)
        if self.answer_after is not None:
            _, found, text = text.rpartition(self.answer_after)
            if not found:
                raise TaskError(f"{place}: {self.answer} does not contain {self.answer_after!r}")
        if not text.strip():
            raise TaskError(f"{place}: the answer is empty")
        return text.strip()


def shuffled(problems: Sequence[Problem], n: int | None, seed: int, what: str) -> list[Problem]:
    """The first `n` problems in the order that the seed gives.

    Raises:
        TaskError: there are fewer.
    """
    if n is not None and len(problems) < n:
        raise TaskError(f"{what}: {n} problems are wanted, but there are only {len(problems)}")
    order = list(problems)
    Random(seed).shuffle(order)
    return order[:n]
