"""What a task is: problems, a prompt, and a grader; training, sampling and evaluation share it.

A task is one module beside this one, or `file.py:Class` in a recipe. It yields problems and names the reward that
grades them; how a problem becomes a chat is the template's business (`pipeline.prompts.templates`).
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

import rewards
from pipeline.files import formats
from pipeline.schema.hub import HubSource
from rewards.golds import COMPARING, stands_for_nothing
from rewards.math.verifier import payable
from rewards.registry import RewardError, check_options, check_types, find, located, nearest

Split = Literal["train", "test"]
BadRows = Literal["error", "skip"]
"""What a task does with rows that hold no problem; see `pipeline.tasks.reading`."""

BUILTIN: Mapping[str, str] = {
    "aime": "pipeline.tasks.math:Aime",
    "arithmetic": "pipeline.tasks.arithmetic:Arithmetic",
    "big_math": "pipeline.tasks.presets:BigMath",
    "chain": "pipeline.tasks.chain:Chain",
    "countdown": "pipeline.tasks.countdown:Countdown",
    "dapo": "pipeline.tasks.presets:Dapo",
    "deepmath": "pipeline.tasks.presets:DeepMath",
    "gsm8k": "pipeline.tasks.gsm8k:Gsm8k",
    "hmmt": "pipeline.tasks.math:Hmmt",
    "hub": "pipeline.tasks.hub:Hub",
    "humaneval": "pipeline.tasks.code:HumanEval",
    "jsonl": "pipeline.tasks.jsonl:Jsonl",
    "livecodebench": "pipeline.tasks.code:LiveCodeBench",
    "math": "pipeline.tasks.math:Math",
    "math500": "pipeline.tasks.math:Math500",
    "mbpp": "pipeline.tasks.code:Mbpp",
    "needle": "pipeline.tasks.needle:Needle",
    "numina_math": "pipeline.tasks.presets:NuminaMath",
    "openr1_math": "pipeline.tasks.presets:OpenR1Math",
    "reasoning_gym": "pipeline.tasks.reasoning_gym:ReasoningGym",
    "requests": "pipeline.tasks.requests:Requests",
}
"""Built-in tasks: name -> module:class."""


class TaskError(ValueError):
    """A task that does not exist, an option it does not have, or data that it cannot read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        id: stable across runs; the same problem has the same id.
        question: what the user asks, as plain text.
        answer: the gold answer, in the form that the task's grader reads; several if any of them is right.
        columns: further data that rewards may want (`language`, `target`, …); JSON values only.
    """

    id: str
    question: str
    answer: str | tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """Base of all tasks. Constructor arguments are the options that a recipe may set; all have defaults.

    Attributes:
        grader: name of the reward that grades it (`rewards.load` resolves it).
        grader_options: arguments of that reward.
        template: name of the prompt template that suits it.
        path_options: options that name files or folders; relative ones are read against the recipe's folder.
        column_names: names of all columns that its problems may have; `None` if that is known only once they are made.
        generated: whether its problems are made and not read: no other data holds its test problems.
        around: texts that it puts around every question; they tell nothing of what is asked, so questions of two data
            sets are not alike because of them.
        bad_rows: what happens to rows that hold no problem, of tasks that read files.
        repository: the data set on the hub that its problems come from; `None` if they come from elsewhere. Such a
            task has the option `revision`.
        left_out: the rows that the last call of `problems` left out, with reasons.
    """

    grader: str = "math"
    grader_options: Mapping[str, Any] = {}
    template: str = "plain"
    path_options: ClassVar[tuple[str, ...]] = ()
    column_names: Sequence[str] | None = None
    generated: ClassVar[bool] = False
    around: Sequence[str] = ()
    bad_rows: BadRows = "error"
    repository: HubSource | None = None
    left_out: Sequence[str] = ()

    @abstractmethod
    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `n` problems of a split in the order that the seed gives; all (or a default number) for `None`.

        Train and test never share a problem, whatever the seed.

        Raises:
            TaskError: the data cannot be read, or holds fewer than `n` problems.
        """

    def gold_completion(self, problem: Problem) -> str:
        """A completion that the grader must accept: what `validate` feeds to it."""
        answer = problem.answer if isinstance(problem.answer, str) else problem.answer[0]
        return f"<answer>{answer}</answer>" if self.grader == "exact" else rf"\boxed{{{answer}}}"

    def validate(self, problems: Sequence[Problem]) -> list[tuple[Problem, rewards.Verdict]]:
        """The problems whose own gold answer the grader refuses, or that no answer could match: nobody could ever be
        rewarded for them."""
        items = [
            rewards.Item(self.gold_completion(p), p.answer, p.question, None, {**p.columns, "answer": p.answer})
            for p in problems
        ]
        verdicts = rewards.verify(self.grader, items, **self.grader_options)
        judged = [(p, self._doubted(p, verdict)) for p, verdict in zip(problems, verdicts, strict=True)]
        return [(problem, verdict) for problem, verdict in judged if verdict.status is not rewards.Status.CORRECT]

    def _doubted(self, problem: Problem, verdict: rewards.Verdict) -> rewards.Verdict:
        """A gold that only equals itself, such as `N/A`, is none, also for graders that compare texts."""
        fault = self.gold_fault(problem)
        return verdict if fault is None else rewards.Verdict.of(rewards.Status.BAD_GOLD, detail=fault)

    def gold_fault(self, problem: Problem) -> str | None:
        """Why nobody could be paid for a gold answer, as far as a look at it alone can tell."""
        if self.grader == "math":
            return payable(problem.answer)[1] or None
        answers = [problem.answer] if isinstance(problem.answer, str) else problem.answer
        faults = map(stands_for_nothing, answers if self.grader in COMPARING else ())
        return next(filter(None, faults), None)


def check(use: str, options: Mapping[str, Any], base: Path | None = None) -> type[Task]:
    """Find a task's class and make sure that it has these options.

    Args:
        use: a built-in name, `package.module:Class`, or `file.py:Class`.
        options: constructor arguments.
        base: folder against which a relative file path is read.

    Raises:
        TaskError: unknown task or option, in which case the message names the nearest one; or a file that is not there.
    """
    where = BUILTIN.get(use)
    if where is not None:
        module, _, name = where.partition(":")
        found = getattr(importlib.import_module(module), name)
    elif ":" in use:
        try:
            found = find(use, base).target
        except RewardError as error:
            raise TaskError(str(error)) from error
    else:
        raise TaskError(f"there is no task {use!r}{nearest(use, BUILTIN)}. Known: {', '.join(sorted(BUILTIN))}")
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise TaskError(f"{use!r} is not a subclass of pipeline.tasks.base.Task")
    try:
        check_options(f"task {use!r}", found, options)
    except RewardError as error:
        raise TaskError(str(error)) from error
    for name in found.path_options:
        if isinstance(options.get(name), str) and not formats.matching(path := located(options[name], base).absolute()):
            raise TaskError(f"task {use!r}: {formats.absent(path)}")
    return found


def load(use: str, options: Mapping[str, Any] | None = None, base: Path | None = None) -> Task:
    """Build a task; see `check` for the arguments and errors."""
    found, given = check(use, options or {}, base), dict(options or {})
    for name in found.path_options:
        if isinstance(given.get(name), str):
            given[name] = str(located(given[name], base).resolve())
    try:
        task = found(**given)
    except TaskError:
        raise
    except ValidationError as error:  # of a piece of a recipe that the task makes of its options
        _check_types(use, found, options or {})
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        said = wrong["ctx"]["error"] if wrong["type"] == "value_error" else f"{place}: {wrong['msg']}"
        raise TaskError(f"task {use!r}: {said}") from error
    except (TypeError, AttributeError, ValueError):
        _check_types(use, found, options or {})
        raise
    _check_types(use, found, options or {})  # what the class does not look at before it reads its data
    return task


def _check_types(use: str, found: type[Task], options: Mapping[str, Any]) -> None:
    try:
        check_types(f"task {use!r}", found, options)
    except RewardError as error:
        raise TaskError(str(error)) from error
