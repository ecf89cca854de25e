"""Chains of small steps, of which only the last digit is kept: a task in which thinking pays.

One problem::

    question  "7 +3 *7 -2 *3 +1 -3 ="
    answer    "2"                            (7, 0, 0, 8, 4, 5, 2)

Every step works on what the one before it left, so the result cannot be guessed at a glance, while each step alone is
easy: a model that writes the results down one by one is right, and one that answers at once is right one time in ten,
or little more often. Sums of as many digits do not have this property, because attention guesses the sum of a set at
once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

from pipeline.tasks.arithmetic import OPERATIONS
from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 5000, "test": 500}
STEPS = "+1 +2 +3 -1 -2 -3 *3 *7"
"""The steps of the nano recipes; each maps the ten digits one to one, so no result is more likely than another."""
_STEP = re.compile(r"([-+*])(\d{1,3})")


class Chain(Task):
    """Generated chains.

    Args:
        length: how many steps: a number, or [fewest, most].
        steps: the steps that may occur, separated by spaces.
        modulo: what is kept is the remainder modulo this number; the start is below it.
        wording: the question, with `{chain}` in it.
        language: value of the column `language`, for the reward of that name; no such column if not given.
    """

    grader = "exact"

    generated = True

    def __init__(
        self,
        length: int | Sequence[int] = 6,
        steps: str = STEPS,
        modulo: int = 10,
        wording: str = "{chain} =",
        language: str | None = None,
    ) -> None:
        fewest_most = (length, length) if isinstance(length, int) else tuple(length)
        if len(fewest_most) != 2 or not 1 <= fewest_most[0] <= fewest_most[1]:
            raise TaskError(f"chain: length is a number or [fewest, most], not {length}")
        if not isinstance(steps, str):
            raise TaskError(f"chain: steps are one text, such as '+1 -2 *3', not {steps!r}")
        if unknown := [step for step in steps.split() if _STEP.fullmatch(step) is None]:
            raise TaskError(f"chain: a step is such as +3, -1 or *7, not {unknown[0]!r}")
        if not steps.split():
            raise TaskError("chain: steps needs at least one step")
        if modulo < 2:
            raise TaskError(f"chain: modulo is 2 or more, not {modulo}")
        if "{chain}" not in wording:
            raise TaskError("chain: wording must contain {chain}")
        self.length, self.steps, self.modulo = (fewest_most[0], fewest_most[1]), steps.split(), modulo
        self.wording, self.language = wording, language
        self.column_names = () if language is None else ("language",)

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct problems; see `Task.problems`."""
        return draw(self._draw, split, n, DEFAULT_PROBLEMS[split], seed)

    def gold_completion(self, problem: Problem) -> str:
        """The answer in its tags."""
        return f"<answer> {problem.answer} </answer>"

    def _draw(self, random: Random) -> tuple[str, Callable[[], Problem]]:
        start = random.randrange(self.modulo)
        chain = [str(start), *random.choices(self.steps, k=random.randint(*self.length))]
        text = " ".join(chain)
        return text, lambda: self._problem(text)

    def _problem(self, text: str) -> Problem:
        columns = {} if self.language is None else {"language": self.language}
        question = self.wording.replace("{chain}", text)
        return Problem(problem_id("chain", text), question, str(results(text, self.modulo)[-1]), columns)


def results(chain: str, modulo: int = 10) -> list[int]:
    """The start and what every step of a chain leaves: `results("7 +3 *7")` is `[7, 0, 0]`.

    Raises:
        ValueError: the text is no chain.
    """
    start, *steps = chain.split()
    values = [int(start)]
    for step in steps:
        match = _STEP.fullmatch(step)
        if match is None:
            raise ValueError(f"{step!r} is not a step of a chain")
        values.append(OPERATIONS[match[1]](values[-1], int(match[2])) % modulo)
    return values
