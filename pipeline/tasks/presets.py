"""Data sets of mathematics that everyone trains on, each as it lies on the hub. None of them has test problems.

    task          data set                          question, answer         columns to filter by
    dapo          open-r1/DAPO-Math-17k-Processed   prompt, solution         data_source
    deepmath      zwhe99/DeepMath-103K              question, final_answer   difficulty, topic
    big_math      SynthLabsAI/Big-Math-RL-Verified  problem, answer          source, domain, llama8b_solve_rate
    openr1_math   open-r1/OpenR1-Math-220k          problem, answer          source, problem_type
    numina_math   AI-MO/NuminaMath-1.5              problem, answer          source, problem_type

A tenth can be held out with `test_share: 0.1`. `filter: {difficulty: [5, 8]}` takes some of the problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from pipeline.files import formats, hub
from pipeline.files.rows import RowError
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import BadRows, Split, TaskError
from pipeline.tasks.rows import RowsTask


class Preset(RowsTask):
    """What these tasks share.

    Args:
        path: files of the same shape instead of the hub (see `pipeline.files.formats`).
        revision: a commit, branch or tag of the data set; the newest commit if not given.
        config: which of its configurations.
        test_share: share of the problems that are held out for tests.
        template: prompt template that wraps each question.
        grader_options: options of the reward `math`.
        bad_rows: `error` stops at rows without a usable answer; `skip` leaves them out.
    """

    path_options = ("path",)
    source: ClassVar[HubSource]
    fields: ClassVar[tuple[str, str]]
    """Of the question, and of the answer."""
    more: ClassVar[Sequence[str]] = ()
    """Fields that become columns."""

    def __init__(
        self,
        path: str | None = None,
        revision: str | None = None,
        config: str | None = None,
        test_share: float = 0.0,
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
    ) -> None:
        question, answer = self.fields
        super().__init__(test_share, question, answer, None, self.more, "math", grader_options, template, bad_rows)
        self.path = None if path is None else Path(path)
        given = {name: value for name, value in (("revision", revision), ("config", config)) if value is not None}
        self.repository = None if path is not None else self.source.model_copy(update=given)

    def part(self, split: Split) -> tuple[Path | HubSource, bool]:
        """See `RowsTask.part`."""
        if split == "test" and not self.test_share:
            raise TaskError(f"{self.name} has problems to train on; hold some out with test_share")
        return self.path or self.repository or self.source, False

    def rows(self, where: Path | HubSource, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """See `RowsTask.rows`."""
        return hub.rows(where) if isinstance(where, HubSource) else formats.read(where, bad)


class Dapo(Preset):
    """DAPO-Math-17k: 17,398 problems with whole numbers for answers, without duplicates and the instruction that the
    original puts around each (Yu et al., arXiv 2503.14476; Apache 2.0). `config: en` or `cn` takes one language.

    See `Preset` for the options.
    """

    name = "dapo"
    source = HubSource(hub="open-r1/DAPO-Math-17k-Processed", config="all")
    fields = ("prompt", "solution")
    more = ("data_source",)


class DeepMath(Preset):
    """DeepMath-103K: hard problems with a difficulty of up to 10 each (He et al., arXiv 2504.11456; MIT licence).

    See `Preset` for the options.
    """

    name = "deepmath"
    source = HubSource(hub="zwhe99/DeepMath-103K")
    fields = ("question", "final_answer")
    more = ("difficulty", "topic")


class BigMath(Preset):
    """Big-Math: 250,000 problems, each with the rate at which Llama 3.1 8B solves it (Albalak et al., arXiv 2502.17387;
    Apache 2.0). It is gated: its terms have to be accepted on its page.

    See `Preset` for the options.
    """

    name = "big_math"
    source = HubSource(hub="SynthLabsAI/Big-Math-RL-Verified")
    fields = ("problem", "answer")
    more = ("source", "domain", "llama8b_solve_rate")


class OpenR1Math(Preset):
    """OpenR1-Math-220k: problems of NuminaMath 1.5 that R1 has solved (Apache 2.0); proofs are left out, which nothing
    grades. R1's solutions are its rows' `messages`: `data: [{from: {hub: openr1_math}}]`.

    See `Preset` for the options; rows without a usable answer are left out and counted unless `bad_rows` is `error`.
    """

    name = "openr1_math"
    source = HubSource(hub="open-r1/OpenR1-Math-220k", config="default")
    fields = ("problem", "answer")
    more = ("source", "problem_type")
    wanted = MappingProxyType({"question_type": ("math-word-problem", "MCQ")})

    def __init__(
        self,
        path: str | None = None,
        revision: str | None = None,
        config: str | None = None,
        test_share: float = 0.0,
        template: str = "boxed",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "skip",
    ) -> None:
        super().__init__(path, revision, config, test_share, template, grader_options, bad_rows)


class NuminaMath(OpenR1Math):
    """NuminaMath 1.5: 900,000 problems of competitions (Li et al.; Apache 2.0). Only those are taken whose problem and
    solution were found valid, and that ask for an answer.

    See `OpenR1Math` for the options.
    """

    name = "numina_math"
    source = HubSource(hub="AI-MO/NuminaMath-1.5")
    wanted = MappingProxyType({**OpenR1Math.wanted, "problem_is_valid": "Yes", "solution_is_valid": "Yes"})
