"""Countdown: reach a target with given numbers. One problem::

    question  "Using each of the numbers 3, 7, 25, 50 exactly once, and + - * / with parentheses, make 82."
    answer    "((50 - 25) * 3) + 7"
    columns   {"numbers": [3, 7, 25, 50], "target": 82}

Problems are built from a solution, so every one has one; there are usually many more, and the grader accepts them all.
The game comes from British television; as a test of search by language models from Stream of Search (Gandhi et al.,
arXiv 2404.03683), and TinyZero made it a first exercise for reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from pipeline.tasks.arithmetic import OPERATIONS
from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id
from rewards.countdown import MAX_NUMBERS

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 5000, "test": 500}


class Countdown(Task):
    """Generated countdown problems.

    Args:
        numbers: fewest and most numbers of a problem.
        largest: largest number that a problem may use.
        target: smallest and largest target.
        ops: operations of the solution that a problem is built from.
        wording: the question, with `{numbers}` and `{target}` in it.
    """

    grader = "countdown"
    generated = True
    column_names = ("numbers", "target")
    template = "r1_zero"

    def __init__(
        self,
        numbers: Sequence[int] = (3, 4),
        largest: int = 99,
        target: Sequence[int] = (10, 100),
        ops: str = "+-*/",
        wording: str = "Using each of the numbers {numbers} exactly once, and + - * / with parentheses, make {target}. "
        "Answer with the expression alone, such as (1 + 2) / 3.",
    ) -> None:
        if len(numbers) != 2 or not 2 <= numbers[0] <= numbers[1] <= MAX_NUMBERS:
            raise TaskError(
                f"countdown: numbers has to be [fewest, most], from 2 to {MAX_NUMBERS}, not {list(numbers)}"
            )
        if len(target) != 2 or not 0 <= target[0] <= target[1]:
            raise TaskError(f"countdown: target has to be [smallest, largest], not {list(target)}")
        if not 1 <= largest < 10**6:
            raise TaskError(f"countdown: largest is between 1 and 999999, not {largest}")
        if not ops or set(ops) - set("+-*/"):
            raise TaskError(f"countdown: ops is made of + - * /, not {ops!r}")
        if missing := [part for part in ("{numbers}", "{target}") if part not in wording]:
            raise TaskError(f"countdown: wording lacks {' and '.join(missing)}")
        self.numbers, self.largest, self.target, self.ops, self.wording = numbers, largest, target, ops, wording

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct problems; the same numbers in another order are the same problem. See `Task.problems`."""
        return draw(self._draw, split, n, DEFAULT_PROBLEMS[split], seed)

    def gold_completion(self, problem: Problem) -> str:
        """The solution that the problem was built from."""
        return f"<answer>{problem.answer}</answer>"

    def _draw(self, random: Random) -> tuple[str, Callable[[], Problem]] | None:
        numbers = [random.randint(1, self.largest) for _ in range(random.randint(self.numbers[0], self.numbers[1]))]
        value, solution = self._combine(random, numbers)
        if value is None or not self.target[0] <= value <= self.target[1]:
            return None
        key = f"{sorted(numbers)} -> {value}"
        return key, lambda: self._problem(key, numbers, value, solution)

    def _combine(self, random: Random, numbers: Sequence[int]) -> tuple[int | None, str]:
        """Combine two random parts until one is left: its value and expression; `None` where a division leaves a rest.

        Solutions keep to whole numbers, as in the game.
        """
        parts = [(number, str(number)) for number in numbers]
        while len(parts) > 1:
            (a, left), (b, right) = (parts.pop(random.randrange(len(parts))) for _ in range(2))
            op = random.choice(self.ops)
            if op == "/" and (b == 0 or a % b):
                return None, ""
            value = a // b if op == "/" else OPERATIONS[op](a, b)
            parts.append((value, f"({left} {op} {right})"))
        value, solution = parts[0]
        return value, solution[1:-1]

    def _problem(self, key: str, numbers: Sequence[int], target: int, solution: str) -> Problem:
        listed = ", ".join(map(str, numbers))
        question = self.wording.replace("{numbers}", listed).replace("{target}", str(target))
        columns = {"numbers": list(numbers), "target": target}
        return Problem(problem_id("countdown", key), question, solution, columns)
