"""What tasks share whose problems are rows that somebody else wrote: which fields are question, answer and columns.

With this row and `{question: problem, answer: reward_model.ground_truth, columns: [level]}`::

    {"problem": "What is 2 + 3?", "reward_model": {"ground_truth": 5, "style": "rule"}, "level": 1}

one gets the question "What is 2 + 3?", the answer "5", and the columns {"level": 1}. A question may also be a chat:
what its user says. An answer is a text, a number, or a list of answers of which any is right; graders other than `math`
and `exact` get lists and mappings as JSON.
"""

from __future__ import annotations

import json
import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from pipeline.files.columns import FieldError, lookup, passes
from pipeline.files.rows import RowError
from pipeline.tasks.base import BadRows, Problem, Split, Task, TaskError
from pipeline.tasks.generated import TEST_SHARE, problem_id, split_of
from pipeline.tasks.reading import checked_bad_rows, problems_of, shuffled

log = logging.getLogger(__name__)

ANSWERS = ("math", "exact")
"""Graders whose gold is a text, or a list of texts."""


class RowsTask(Task):
    """Problems from rows.

    Attributes:
        name: prefix of the problems' ids.
        wanted: which rows are problems of the task, by their fields (see `pipeline.files.columns`).

    Args:
        test_share: share of the rows that are test problems, chosen by a stable hash of the question.
        question, answer: names of the fields, with dots for fields within fields.
        answer_after: the gold answer is what follows the last occurrence of this text.
        columns: further fields to hand to rewards; a mapping renames them (column -> field).
        grader, grader_options: the reward that grades.
        template: prompt template that wraps each question.
        bad_rows: `error` stops at rows without a question or a usable answer, and counts them; `skip` leaves them out.
    """

    name = "rows"
    wanted: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
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
        if not 0 <= test_share <= 1:
            raise TaskError(f"{self.name}: test_share is from 0 to 1, not {test_share}")
        self.test_share = test_share
        self.question, self.answer, self.answer_after = question, answer, answer_after
        if isinstance(columns, str):
            raise TaskError(f"{self.name}: columns is a list of fields, or a mapping: write [{columns}]")
        self.columns = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        self.bad_rows = checked_bad_rows(self.name, bad_rows)
        self.grader, self.grader_options, self.template = grader, dict(grader_options or {}), template

    @property
    def column_names(self) -> Sequence[str]:  # type: ignore[override]
        """See `Task`."""
        return tuple(self.columns)

    @abstractmethod
    def part(self, split: Split) -> tuple[Any, bool]:
        """Where the rows of a split lie, and whether all of them belong to it.

        Raises:
            TaskError: there are none.
        """

    @abstractmethod
    def rows(self, where: Any, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows that lie there, with their places; see `pipeline.tasks.reading`."""

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Problems of one split; a question that comes twice counts once. See `Task.problems`."""
        where, all_of_it = self.part(split)
        first: dict[str, tuple[str, Problem]] = {}

        def once(row: Mapping[str, Any], place: str) -> Problem | None:
            if (problem := self._problem(row, place)) is None:
                return None
            if self.bad_rows == "skip" and self.gold_fault(problem) is not None:
                return problem  # which is left out, and stands in the way of no other
            before, earlier = first.setdefault(problem.question, (place, problem))
            if earlier.answer != problem.answer:
                raise TaskError(
                    f"{place}: the question of {before} with another answer, {problem.answer!r} instead of"
                    f" {earlier.answer!r}: only one can be right, so take the other out"
                )
            if earlier != problem:
                log.warning("%s: the question and the answer of %s with other columns: those count", place, before)
            return problem if earlier is problem else None

        found = problems_of(self, lambda bad: self.rows(where, bad), once)
        if not all_of_it:
            found = [problem for problem in found if split_of(problem.question, self.test_share) == split]
        return shuffled(found, n, seed, f"{where}, split {split}")

    def _problem(self, row: Mapping[str, Any], place: str) -> Problem | None:
        try:
            if self.wanted and not passes(row, self.wanted):
                return None
            wording, answer = lookup(row, self.question), lookup(row, self.answer)
            columns = {column: lookup(row, field) for column, field in self.columns.items()}
        except FieldError as error:
            raise TaskError(f"{place}: {error}") from error
        question = asked(wording)
        if question is None or not question.strip():
            raise TaskError(f"{place}: {self.question} is a text, not {wording!r}")
        return Problem(problem_id(self.name, question), question, self._gold(answer, place), columns)

    def _gold(self, value: Any, place: str) -> str | tuple[str, ...]:
        if isinstance(value, list) and value and self.grader in ANSWERS:
            golds = tuple(dict.fromkeys(self._text(one, place) for one in value))
            return golds[0] if len(golds) == 1 else golds
        if isinstance(value, list | dict) and value and self.grader not in ANSWERS:
            return json.dumps(value, ensure_ascii=False)
        return self._text(value, place)

    def _text(self, value: Any, place: str) -> str:
        if isinstance(value, Decimal):  # of a Parquet column with a fixed number of digits
            value = format(value, "f")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            hint = (
                f"; name a field within it, such as {self.answer}.{next(iter(value), '')}"
                if isinstance(value, dict)
                else ""
            )
            raise TaskError(f"{place}: {self.answer} is a text or a number, not {value!r}{hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise TaskError(f"{place}: {self.answer} is {value}, as tables have it where a value is missing")
        text = str(value)
        if self.answer_after is not None:
            _, found, text = text.rpartition(self.answer_after)
            if not found:
                raise TaskError(f"{place}: {self.answer} does not contain {self.answer_after!r}")
        if not text.strip():
            raise TaskError(f"{place}: the answer is empty")
        return text.strip()


def asked(question: Any) -> str | None:
    """A question as a text: it is one, or a chat of which the user says all but the system prompt."""
    if isinstance(question, str):
        return question
    if not isinstance(question, list):
        return None
    said = [turn for turn in question if isinstance(turn, Mapping) and turn.get("role") != "system"]
    if len(said) != 1 or said[0].get("role") != "user" or not isinstance(said[0].get("content"), str):
        return None
    return str(said[0]["content"])
