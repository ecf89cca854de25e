"""Facts in a long text, and a question about some of them: how far back can a model still find something?

One problem, with `words: 16, facts: 3, asked: 2`::

    question  "dew fern moss bada=5 reed baki=7 bano=8 dew fern moss reed dew fern moss reed dew baki bada ?"
    answer    "baki=7 bada=5"

The words between facts only go round. Nothing but the text itself gives the answer away: places and digits are drawn
anew for each problem, so guessing a fact is right one time in ten. `distance` asks only for facts that lie so many
words before the question, which tells a model that looks back from one that sees just what is near.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random

from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 1000, "test": 200}

NAMES = tuple(first + second for first in ("ba", "lo", "mu", "ri") for second in ("da", "ki", "no"))
DIGITS = tuple(str(digit) for digit in range(10))
FILLER = ("dew", "fern", "moss", "reed")


@dataclass(frozen=True, slots=True)
class Haystack:
    """A text with facts in it.

    Attributes:
        text: its words, between spaces.
        facts: name -> the fact, such as `bada=7`.
        distances: name -> how many words of the text come after the fact.
    """

    text: str
    facts: Mapping[str, str]
    distances: Mapping[str, int]


def haystack(random: Random, words: int, facts: int) -> Haystack:
    """A text of `words` words, of which `facts` are facts at random places."""
    told = {name: f"{name}={random.choice(DIGITS)}" for name in NAMES[:facts]}
    places = dict(zip(random.sample(range(words), facts), told, strict=True))
    filler = cycle(FILLER)
    text = [told[places[place]] if place in places else next(filler) for place in range(words)]
    return Haystack(" ".join(text), told, {name: words - 1 - place for place, name in places.items()})


def fault(words: int, facts: int, asked: int) -> str | None:
    """Why there is no such haystack and question, or `None`."""
    if not 1 <= asked <= facts <= min(len(NAMES), words):
        return f"needs 1 <= asked <= facts <= words, and {len(NAMES)} facts at most, not {asked}, {facts} and {words}"
    return None


class Needle(Task):
    """Generated texts with facts, and a question about some of them.

    Args:
        words: words of the text before the question.
        facts: facts in it; texts with as many facts have the same names.
        asked: how many of them are asked for; the answer names them all.
        distance: [fewest, most] words between a fact that is asked for and the question; any if not given.
    """

    grader = "exact"
    generated = True
    column_names = ("distance",)

    def __init__(self, words: int = 64, facts: int = 4, asked: int = 1, distance: Sequence[int] | None = None) -> None:
        if (wrong := fault(words, facts, asked)) is not None:
            raise TaskError(f"needle: {wrong}")
        fewest_most = (0, words) if distance is None else tuple(distance)
        if len(fewest_most) != 2 or not 0 <= fewest_most[0] <= min(fewest_most[1], words - asked):
            raise TaskError(f"needle: distance is [fewest, most] words, within {words - asked}, not {distance}")
        self.words, self.facts, self.asked = words, facts, asked
        self.distance = fewest_most[0], fewest_most[1]

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct problems; see `Task.problems`."""
        return draw(self._draw, split, n, DEFAULT_PROBLEMS[split], seed)

    def gold_completion(self, problem: Problem) -> str:
        """The answer in its tags."""
        return f"<answer> {problem.answer} </answer>"

    def _draw(self, random: Random) -> tuple[str, Callable[[], Problem]] | None:
        hay = haystack(random, self.words, self.facts)
        fewest, most = self.distance
        within = [name for name, distance in hay.distances.items() if fewest <= distance <= most]
        if len(within) < self.asked:
            return None
        names = random.sample(within, self.asked)
        question = f"{hay.text} {' '.join(names)} ?"
        answer = " ".join(hay.facts[name] for name in names)
        columns = {"distance": max(hay.distances[name] for name in names)}
        return question, lambda: Problem(problem_id("needle", question), question, answer, columns)
