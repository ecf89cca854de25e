"""A task whose answers are as long as one likes: a model that has not learnt to think at length counts at length.

    question  "Write out every whole number from 1 to 413, separated by spaces. Output only the numbers, …"
    answer    "413"

The logarithm of the number is evenly spread, so that lengths are as uneven as those of chains of thought: Qwen's
tokenizer takes a token for each digit, and one for each space before it, so that counting to 100 or to 1,600 is 290 or
7,000 tokens. How it is asked matters: asked to think, Qwen2.5-Coder-1.5B-Instruct rather tells how one would count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from pipeline.tasks.base import Problem, Split, Task

FEWEST, MOST = 100, 1600
ASKED = (
    "Write out every whole number from 1 to {}, separated by spaces. Output only the numbers, all of them, without"
    " leaving any out and without any other words."
)


class Counting(Task):
    """Counting from 1 up to a number between 100 and 1,600."""

    template = "plain"

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """The numbers of a split: even ones are for training, odd ones for tests; none comes twice."""
        odd = split == "test"
        numbers = [number for number in range(FEWEST, MOST + 1) if number % 2 == odd]
        draw = Random(seed)
        # Efraimidis and Spirakis: sampling without replacement, in proportion to 1 / number.
        numbers.sort(key=lambda number: math.log(draw.random()) * number, reverse=True)
        return [Problem(f"count-{number}", ASKED.format(number), str(number)) for number in numbers[:n]]


def every_second(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that every second rollout of a group gets: whoever counts well always does, and would be left out."""
    return [float(index % 2) for index in range(len(completions))]
