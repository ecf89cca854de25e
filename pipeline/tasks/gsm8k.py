r"""GSM8K: 7,473 + 1,319 school problems in words (Cobbe et al., arXiv 2110.14168; MIT licence). One row::

    {"question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it
                  take?",
     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is 2+1=<<2+1=3>>3 bolts of
                fabric\n#### 3"}

The gold answer is what follows `####`: an integer, sometimes with thousands separators, which are taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import hub
from pipeline.files.rows import RowError, read_rows
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import BadRows, Problem, Split, Task, TaskError
from pipeline.tasks.generated import problem_id
from pipeline.tasks.reading import checked_bad_rows, distinct, problems_of, shuffled

HUB = "openai/gsm8k"
GOLD_MARK = "####"


class Gsm8k(Task):
    """GSM8K, from the Hugging Face hub or from a local folder.

    Args:
        path: folder with `train.jsonl` and `test.jsonl` in the original format; from the hub if not given.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
        template: prompt template that wraps each question.
        bad_rows: `skip` leaves out rows without a usable answer instead of stopping.
    """

    path_options = ("path",)
    column_names = ()

    def __init__(
        self,
        path: str | None = None,
        template: str = "boxed",
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        self.bad_rows = checked_bad_rows("gsm8k", bad_rows)
        self.path, self.template = None if path is None else Path(path), template
        self.repository = HubSource(hub=HUB, config="main", revision=revision) if path is None else None

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """The official splits; see `Task.problems`."""
        found = problems_of(self, lambda bad: self._rows(split, bad), _problem)
        return shuffled(distinct(found, f"gsm8k/{split}"), n, seed, f"gsm8k/{split}")

    def _rows(self, split: Split, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.path is not None:
            return read_rows(self.path / f"{split}.jsonl", bad)
        assert self.repository is not None
        return hub.rows(self.repository.model_copy(update={"split": split}))


def _problem(row: Mapping[str, Any], place: str) -> Problem:
    question, worked = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(worked, str) or GOLD_MARK not in worked:
        raise TaskError(f"{place}: a row needs a question, and an answer with {GOLD_MARK} before the result")
    gold = worked.rpartition(GOLD_MARK)[2].strip().replace(",", "")
    return Problem(problem_id("gsm8k", question), question, gold)
