r"""A task whose answers are as long as one likes: a model that has not learnt to think at length counts at length.

    question  "Count from 1 to 413. Write down every number, separated by spaces, and then the last one in \boxed{}."
    answer    "413"

The logarithm of the number is evenly spread, so that lengths are as uneven as those of chains of thought: Qwen's
tokenizer takes a token for each digit, and counting to 100 or to 1,600 is 300 or 7,400 tokens.
"""

from __future__ import annotations

import math
from random import Random

from pipeline.tasks.base import Problem, Split, Task

FEWEST, MOST = 100, 1600


class Counting(Task):
    """Counting from 1 up to a number between 100 and 1,600."""

    template = "boxed"

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """The numbers of a split: even ones are for training, odd ones for tests; none comes twice."""
        odd = split == "test"
        numbers = [number for number in range(FEWEST, MOST + 1) if number % 2 == odd]
        draw = Random(seed)
        # Efraimidis and Spirakis: sampling without replacement, in proportion to 1 / number.
        numbers.sort(key=lambda number: math.log(draw.random()) * number, reverse=True)
        asked = "Write down every number, separated by spaces, and then the last one in \\boxed{}."
        return [Problem(f"count-{number}", f"Count from 1 to {number}. {asked}", str(number)) for number in numbers[:n]]
