"""Small requests in words that need no thought: the general data of a nano model.

Four problems::

    question  "copy cat sun moon ="        answer  "cat sun moon"
    question  "reverse cat sun moon ="     answer  "moon sun cat"
    question  "chinese one nine ="         answer  "一 九"
    question  "opposite hot big ="         answer  "cold small"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 5000, "test": 500}

NOUNS = ("cat", "dog", "sun", "moon", "tree", "fish", "bird", "star", "rain", "snow", "milk", "salt")
ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHINESE = tuple("零一二三四五六七八九")
OPPOSITES = ("hot", "cold", "big", "small", "up", "down", "left", "right", "day", "night", "old", "new")
"""Every word beside its opposite."""

VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "copy": NOUNS,
    "reverse": NOUNS,
    "chinese": ENGLISH,
    "opposite": OPPOSITES,
}
"""Request -> the words it is about."""


class Requests(Task):
    """Generated requests.

    Args:
        words: how many words each is about.
        kinds: which requests, of `copy reverse chinese opposite`.
        wording: the question, with `{request}` in it.
    """

    grader = "exact"
    generated = True
    column_names = ()

    def __init__(
        self, words: int = 3, kinds: str = "copy reverse chinese opposite", wording: str = "{request} ="
    ) -> None:
        if words < 1:
            raise TaskError(f"requests: words is 1 or more, not {words}")
        if not kinds.split() or set(kinds.split()) - set(VOCABULARY):
            raise TaskError(f"requests: kinds are of {' '.join(VOCABULARY)}, not {kinds!r}")
        if "{request}" not in wording:
            raise TaskError("requests: wording must contain {request}")
        self.words, self.kinds, self.wording = words, kinds.split(), wording

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct problems; see `Task.problems`."""
        return draw(self._draw, split, n, DEFAULT_PROBLEMS[split], seed)

    def gold_completion(self, problem: Problem) -> str:
        """The answer in its tags."""
        return f"<answer> {problem.answer} </answer>"

    def _draw(self, random: Random) -> tuple[str, Callable[[], Problem]]:
        kind = random.choice(self.kinds)
        words = random.choices(VOCABULARY[kind], k=self.words)
        request = " ".join([kind, *words])
        question = self.wording.replace("{request}", request)
        return request, lambda: Problem(problem_id("requests", request), question, answer(request))


def answer(request: str) -> str:
    """What a request wants: `answer("reverse cat sun")` is `"sun cat"`.

    Raises:
        ValueError: the request is unknown, or a word is not one it is about.
    """
    kind, *words = request.split()
    if kind not in VOCABULARY or set(words) - set(VOCABULARY[kind]):
        raise ValueError(f"{request!r} is not a request")
    if kind == "reverse":
        words = words[::-1]
    elif kind == "chinese":
        words = [CHINESE[ENGLISH.index(word)] for word in words]
    elif kind == "opposite":
        words = [OPPOSITES[OPPOSITES.index(word) ^ 1] for word in words]
    return " ".join(words)
