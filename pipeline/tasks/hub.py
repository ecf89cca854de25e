"""Problems from any data set on the Hugging Face hub, with a mapping of its fields::

    tasks:
      - use: hub
        path: open-r1/DAPO-Math-17k-Processed
        config: en
        split: train
        question: prompt
        answer: reward_model.ground_truth
        columns: [data_source]
        filter: {ability: MATH}
        grader: math

A split that is named is taken whole: as problems to train on, or as test problems if its name begins with `test`,
`valid`, `dev` or `eval`. Without a split, a tenth of `train` is held out for tests, and the rest is to train on;
`test_split` and `test_share` change that. The run records the commit that it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.files import hub
from pipeline.files.rows import RowError
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import BadRows, Split, TaskError
from pipeline.tasks.generated import TEST_SHARE
from pipeline.tasks.rows import RowsTask

TRAIN = "train"
_TESTS = ("test", "valid", "dev", "eval")
"""How the names of splits with test problems begin."""


class Hub(RowsTask):
    """Problems of a data set on the hub.

    Args:
        path: its name there: owner/name; must be given.
        revision: a commit, branch or tag; the newest commit if not given.
        config: which of its configurations.
        split: which of its splits; taken whole, unless a part is held out for tests.
        test_split: the split with the test problems.
        test_share: share of `split` that is held out for tests; a tenth if neither `split` nor `test_split` is given.
        files: files of its repository, also with `*`, if `datasets` knows no splits of it.
        streaming: read over the network and keep no copy; see `HubSource`.
        question, answer: names of the fields, with dots for fields within fields.
        answer_after: the gold answer is what follows the last occurrence of this text.
        columns: further fields to hand to rewards; a mapping renames them (column -> field).
        grader, grader_options: the reward that grades.
        template: prompt template that wraps each question.
        bad_rows: `error` stops at rows without a question or a usable answer, and counts them; `skip` leaves them out.
    """

    name = "hub"

    def __init__(
        self,
        path: str = "",
        revision: str | None = None,
        config: str | None = None,
        split: str | None = None,
        test_split: str | None = None,
        test_share: float | None = None,
        files: Sequence[str] = (),
        streaming: bool | None = None,
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
            raise TaskError(
                "hub: needs the option path, the name of a data set, such as open-r1/DAPO-Math-17k-Processed"
            )
        if test_split is not None and test_share is not None:
            raise TaskError("hub: test_split and test_share both say where test problems are: leave one out")
        held_out = TEST_SHARE if split is None and test_split is None and test_share is None else test_share
        super().__init__(
            held_out or 0.0, question, answer, answer_after, columns, grader, grader_options, template, bad_rows
        )
        self.split, self.test_split, self.shares = split or TRAIN, test_split, held_out is not None
        self.repository = HubSource(
            hub=path,
            revision=revision,
            config=config,
            split=self.split,
            files=list(files),
            streaming=streaming,
        )

    def part(self, split: Split) -> tuple[HubSource, bool]:
        """See `RowsTask.part`."""
        assert self.repository is not None
        if self.shares:
            return self.repository, False
        if split == "test" and self.test_split is not None:
            return self.repository.model_copy(update={"split": self.test_split}), True
        if part_of(self.split) != split and self.test_split is None:
            raise TaskError(
                f"{self.repository.hub}: all of its split {self.split!r} are {part_of(self.split)} problems;"
                f" for {split} ones give the task test_split, or test_share"
            )
        return self.repository, True

    def rows(self, where: HubSource, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """See `RowsTask.rows`."""
        return hub.rows(where)


def part_of(split: str) -> Split:
    """Whether the problems of a split of this name are to train on, or to test with."""
    return "test" if split.lower().startswith(_TESTS) else "train"
