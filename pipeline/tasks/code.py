r"""Programming problems, graded by running the program (`rewards.code`). One row of MBPP, and what becomes of it::

    {"task_id": 601, "text": "Write a function to find the longest chain which can be formed from the given set of
     pairs.", "code": "class Pair(object): …", "test_list": ["assert max_chain_length([Pair(5, 24), …], 4) == 3", …],
     "test_setup_code": "", "challenge_test_list": []}

    question  the text, and the first test, which tells names and arguments
    answer    {"tests": [all tests], "setup": ""}

Tests that the model has not seen are what the grade is worth: with all of them in the prompt, a table of their
answers passes.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import pickle
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import rewards
from pipeline.files import formats, hub
from pipeline.files.rows import RowError
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import BadRows, Problem, Split, Task, TaskError
from pipeline.tasks.generated import problem_id
from pipeline.tasks.reading import checked_bad_rows, problems_of, shuffled
from rewards.code import GoldError, read_gold

ASK = "\n\nWrite the whole program in Python, in one block that begins with ```python and ends with ```."
SHOWN = "\n\nIt must pass tests such as:\n"
RELEASES = range(1, 7)
"""LiveCodeBench's releases: each adds a file of problems to the earlier ones."""
MBPP_TEST = range(11, 511)
"""Row numbers of MBPP's official test split; all other rows are for training."""


class CodeTask(Task):
    """What programming tasks share: rows from a file or the hub, and a gold answer that is run.

    Args:
        path: JSONL file in the original format; from the hub if not given.
        template: prompt template that wraps each question.
        grader_options: options of the reward `code`, such as `timeout`.
        bad_rows: `skip` leaves out rows without usable tests instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    grader = "code"
    path_options = ("path",)
    column_names: Sequence[str] | None = ("reference",)
    around = (SHOWN, ASK)
    hub: HubSource
    """Where its rows lie on the Hugging Face hub."""

    def __init__(
        self,
        path: str | None = None,
        template: str = "plain",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        self.bad_rows = checked_bad_rows(type(self).__name__.lower(), bad_rows)
        self.repository = self.hub.model_copy(update={"revision": revision}) if path is None else None
        self.path, self.template = None if path is None else Path(path), template
        self.grader_options = dict(grader_options or {})

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """See `Task.problems`."""
        found = problems_of(self, self._rows, lambda row, place: self._problem(row, place, split))
        return shuffled(found, n, seed, f"{type(self).__name__.lower()}/{split}")

    @abstractmethod
    def split_of(self, row: Mapping[str, Any]) -> Split:
        """The split that a row belongs to."""

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Problem:
        """A row as a problem; its column `reference` holds a program that solves it, if there is one."""

    def gold_completion(self, problem: Problem) -> str:
        """The reference program, fenced."""
        return f"```python\n{problem.columns['reference']}\n```"

    def _problem(self, row: Mapping[str, Any], place: str, split: Split) -> Problem | None:
        try:
            if self.split_of(row) != split:
                return None
            problem = self.read(row)
            read_gold(str(problem.answer))
        except (KeyError, TypeError, ValueError, SyntaxError, zlib.error, pickle.UnpicklingError) as error:
            raise TaskError(f"{place}: {type(error).__name__}: {error}") from error
        return problem

    def _rows(self, bad: list[RowError]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.path is not None:
            return formats.read(self.path, bad)
        assert self.repository is not None
        return hub.rows(self.repository)


class Mbpp(CodeTask):
    """MBPP: 974 short functions with three or more asserts (Austin et al., arXiv 2108.07732; CC BY 4.0).

    Args:
        path: `mbpp.jsonl`; from the hub if not given.
        shown: how many of the tests the question shows. Published scores show all three.
        template: prompt template that wraps each question.
        grader_options: options of the reward `code`.
        bad_rows: `skip` leaves out rows without usable tests instead of stopping.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    hub = HubSource(hub="google-research-datasets/mbpp", config="full", split="train+test+validation+prompt")

    def __init__(
        self,
        path: str | None = None,
        shown: int = 1,
        template: str = "plain",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        revision: str | None = None,
    ) -> None:
        super().__init__(path, template, grader_options, bad_rows, revision)
        if shown < 1:
            raise TaskError("mbpp: shown is at least 1; without a test nobody knows the function's name")
        self.shown = shown

    def split_of(self, row: Mapping[str, Any]) -> Split:
        """The official test rows, and the rest."""
        return "test" if row["task_id"] in MBPP_TEST else "train"

    def read(self, row: Mapping[str, Any]) -> Problem:
        """See the top of this module."""
        tests = [*row["test_list"], *(row.get("challenge_test_list") or [])]
        shown = "\n".join(tests[: self.shown])
        question = f"{row['text'].strip()}{SHOWN}```python\n{shown}\n```{ASK}"
        gold = {"tests": tests, "setup": (row.get("test_setup_code") or "").replace("\r\n", "\n")}
        return Problem(
            f"mbpp-{row['task_id']}", question, json.dumps(gold), {"reference": row["code"].replace("\r\n", "\n")}
        )


class HumanEval(CodeTask):
    """HumanEval: 164 functions to complete, each with a test suite (Chen et al., arXiv 2107.03374; MIT licence).

    For evaluation only: it has no problems to train on.
    """

    hub = HubSource(hub="openai/openai_humaneval", split="test")

    def split_of(self, row: Mapping[str, Any]) -> Split:
        """All of it is for testing."""
        return "test"

    def read(self, row: Mapping[str, Any]) -> Problem:
        """The question is the function's head; what stands before it is given to program and tests alike."""
        prompt, entry = row["prompt"], row["entry_point"]
        given = ast.parse(prompt + "\n    pass")
        given.body = [node for node in given.body if not (isinstance(node, ast.FunctionDef) and node.name == entry)]
        gold = {"check": row["test"], "entry": entry, "given": ast.unparse(given)}
        question = f"Complete this function.\n\n```python\n{prompt.strip()}\n```{ASK}"
        name = row["task_id"].lower().replace("/", "-")
        return Problem(name, question, json.dumps(gold), {"reference": prompt + row["canonical_solution"]})


class LiveCodeBench(CodeTask):
    """LiveCodeBench: contest problems with their dates (Jain et al., arXiv 2403.07974).

    Problems are for training before a date, and for testing from then on: a model cannot have read what was not yet
    written. No reference programs come with them.

    Args:
        path: a JSONL file of `code_generation_lite`; from the hub if not given.
        test_from: date of the first test problem, as YYYY-MM-DD. R1 reports on those from 2024-08-01.
        template: prompt template that wraps each question.
        grader_options: options of the reward `code`.
        bad_rows: `skip` leaves out rows without usable tests instead of stopping.
        release: version of the set; the newest if not given. The first has 400 problems, the sixth 1,055.
        revision: a commit, branch or tag of the data set on the hub; the newest commit if not given.
    """

    hub = HubSource(hub="livecodebench/code_generation_lite", split="test", files=["test*.jsonl"])
    column_names = ()

    def __init__(
        self,
        path: str | None = None,
        test_from: str = "2024-08-01",
        template: str = "plain",
        grader_options: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
        release: int | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(path, template, grader_options, bad_rows, revision)
        if self.repository is not None and release is not None:
            if release not in RELEASES:
                raise TaskError(f"livecodebench: release is from 1 to {RELEASES[-1]}, not {release}")
            several = [f"test{number}.jsonl" for number in range(2, release + 1)]
            self.repository = self.repository.model_copy(update={"files": ["test.jsonl", *several]})
        self.test_from = test_from

    def split_of(self, row: Mapping[str, Any]) -> Split:
        """By the date of the contest."""
        return "test" if str(row["contest_date"]) >= self.test_from else "train"

    def read(self, row: Mapping[str, Any]) -> Problem:
        """Public and private cases together are the gold answer, as calls of a function or as input and output."""
        cases = [*json.loads(row["public_test_cases"]), *_private_cases(row["private_test_cases"])]
        gold: dict[str, Any]
        if cases and cases[0]["testtype"] == "functional":
            calls = [
                {
                    "args": [json.loads(line) for line in case["input"].split("\n")],
                    "expected": json.loads(case["output"]),
                }
                for case in cases
            ]
            gold = {"function": json.loads(row["metadata"])["func_name"], "calls": calls}
            how = f"\n\nStart from this:\n```python\n{row['starter_code'].strip()}\n```"
        else:
            gold = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
            how = "\n\nRead from standard input and write to standard output."
        question = row["question_content"].strip() + how + ASK
        return Problem(problem_id("livecodebench", row["question_id"]), question, json.dumps(gold))

    def validate(self, problems: Sequence[Problem]) -> list[tuple[Problem, rewards.Verdict]]:
        """Problems whose tests cannot be read; there is no reference to run."""
        refused = []
        for problem in problems:
            try:
                read_gold(str(problem.answer))
            except GoldError as error:
                refused.append((problem, rewards.Verdict.of(rewards.Status.BAD_GOLD, detail=str(error))))
        return refused


class _TextOnly(pickle.Unpickler):
    """Unpickles text, numbers and containers of them; nothing that would be called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"test cases are text, not {module}.{name}")


def _private_cases(packed: str) -> list[dict[str, Any]]:
    """Private test cases: JSON, or JSON that was pickled, compressed and encoded."""
    if packed.lstrip().startswith("["):
        text: Any = packed
    else:
        text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
    cases = json.loads(text)
    if not isinstance(cases, list):
        raise ValueError("private test cases are a list")
    return cases
