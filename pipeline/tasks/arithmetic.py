r"""Generated arithmetic. One problem, with `terms: [3, 3], digits: 2`::

    question  "Compute 14 + 3 * 27."
    answer    "95"

and one with `order: left_to_right, modulo: 10`, where the answer cannot be guessed at a glance, because each operation
changes what the next one works on::

    question  "Compute strictly from left to right, keeping only the remainder modulo 10: 7 + 8 * 3 - 6"
    answer    "9"

Terms of several digits never begin with zero. Results may be negative unless a modulus is given.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from random import Random
from typing import Literal

from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id

Order = Literal["usual", "left_to_right"]

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 5000, "test": 500}


class Arithmetic(Task):
    """Sums, differences and products of generated numbers.

    Args:
        terms: fewest and most numbers in a problem.
        digits: most digits of a number.
        ops: operations, of `+ - *`; one that stands there twice comes up twice as often.
        order: `usual` (products first) or `left_to_right`.
        modulo: the answer is the remainder modulo this number (taken after every operation, which is the same).
        wording: the question, with `{expression}` in it; worded by `order` and `modulo` if not given.
    """

    template = "boxed"
    generated = True
    column_names = ()

    def __init__(
        self,
        terms: Sequence[int] = (2, 4),
        digits: int = 2,
        ops: str = "+-*",
        order: Order = "usual",
        modulo: int | None = None,
        wording: str | None = None,
    ) -> None:
        if len(terms) != 2 or not 1 <= terms[0] <= terms[1]:
            raise TaskError(f"arithmetic: terms has to be [fewest, most], such as [2, 4], not {list(terms)}")
        if digits < 1:
            raise TaskError(f"arithmetic: digits is 1 or more, not {digits}")
        if not ops or set(ops) - set(OPERATIONS):
            raise TaskError(f"arithmetic: ops is made of {' '.join(OPERATIONS)}, not {ops!r}")
        if order not in ("usual", "left_to_right"):
            raise TaskError(f"arithmetic: order is 'usual' or 'left_to_right', not {order!r}")
        if modulo is not None and modulo < 2:
            raise TaskError(f"arithmetic: modulo is 2 or more, not {modulo}")
        if wording is not None and "{expression}" not in wording:
            raise TaskError("arithmetic: wording must contain {expression}")
        self.terms, self.digits, self.ops, self.order, self.modulo = tuple(terms), digits, ops, order, modulo
        self.wording = wording or self._default_wording()

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct problems; see `Task.problems`."""
        return draw(self._draw, split, n, DEFAULT_PROBLEMS[split], seed)

    def _default_wording(self) -> str:
        rest = "" if self.modulo is None else f", keeping only the remainder modulo {self.modulo}"
        if self.order == "usual":
            return f"Compute {{expression}}{rest}."
        return f"Compute strictly from left to right{rest}: {{expression}}"

    def _draw(self, random: Random) -> tuple[str, Callable[[], Problem]]:
        count = random.randint(*self.terms)
        numbers = [self._number(random) for _ in range(count)]
        ops = [random.choice(self.ops) for _ in range(count - 1)]
        expression = " ".join([str(numbers[0]), *(f"{op} {x}" for op, x in zip(ops, numbers[1:], strict=True))])
        return expression, lambda: self._problem(expression, numbers, ops)

    def _number(self, random: Random) -> int:
        digits = random.randint(1, self.digits)
        return random.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)

    def _problem(self, expression: str, numbers: Sequence[int], ops: Sequence[str]) -> Problem:
        value = evaluate(numbers, ops, self.order)
        answer = value if self.modulo is None else value % self.modulo
        question = self.wording.replace("{expression}", expression)
        return Problem(problem_id("arithmetic", question), question, str(answer))


def evaluate(numbers: Sequence[int], ops: Sequence[str], order: Order) -> int:
    """The value of `numbers[0] ops[0] numbers[1] …`."""
    steps: Sequence[tuple[str, int]] = list(zip(ops, numbers[1:], strict=True))
    if order == "left_to_right":
        return reduce(lambda value, step: OPERATIONS[step[0]](value, step[1]), steps, numbers[0])
    summands = [numbers[0]]
    for op, number in steps:
        if op == "*":
            summands[-1] *= number
        else:
            summands.append(OPERATIONS[op](0, number))
    return sum(summands)
