"""Problems from data files, with a mapping of their fields. With this line in `problems.jsonl`::

    {"problem": "What is 2 + 3?", "solution": "2 and 3 are 5.\\n#### 5", "level": 1}

and `{use: jsonl, path: problems.jsonl, question: problem, answer: solution, answer_after: "####"}` one gets

    question  "What is 2 + 3?"
    answer    "5"
    columns   {"level": 1}          (only with `columns: [level]`)

Files may also be Parquet, CSV, JSON or compressed, and several (`data/*.parquet`, a folder); see
`pipeline.files.formats`. The test problems lie in a file of their own (`test_path`), or are a share of the file, chosen
by a stable hash of the question, so that the two never share a problem. A question that stands there twice counts once;
with two answers it is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import formats
from pipeline.files.rows import RowError
from pipeline.tasks.base import BadRows, Split, TaskError
from pipeline.tasks.generated import TEST_SHARE
from pipeline.tasks.rows import RowsTask


class Jsonl(RowsTask):
    """Problems of data files.

    Args:
        path: a file, several (`data/*.parquet`) or a folder; must be given.
        test_path: file with the test problems; a share of `path` if not given.
        test_share: share of `path` that is held out where there is no `test_path`.
        question, answer: names of the fields, with dots for fields within fields.
        answer_after: the gold answer is what follows the last occurrence of this text.
        columns: further fields to hand to rewards; a mapping renames them (column -> field).
        grader, grader_options: the reward that grades.
        template: prompt template that wraps each question.
        bad_rows: `error` stops at rows without a question or a usable answer, and counts them; `skip` leaves them out.
    """

    name = "jsonl"
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
            raise TaskError("jsonl: needs the option path, a data file")
        super().__init__(
            test_share, question, answer, answer_after, columns, grader, grader_options, template, bad_rows
        )
        self.path, self.test_path = Path(path), None if test_path is None else Path(test_path)

    def part(self, split: Split) -> tuple[Path, bool]:
        """See `RowsTask.part`."""
        if self.test_path is None:
            return self.path, False
        return (self.test_path if split == "test" else self.path), True

    def rows(self, where: Path, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """See `RowsTask.rows`."""
        return formats.read(where, bad)
