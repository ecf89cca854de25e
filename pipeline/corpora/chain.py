"""Text about chains of small steps, from which a nano model learns the skill of stepping, but not yet the habit.

Four documents::

    Notes: 7 +3 *7 -2 *3 +1 -3 = Working: <think> seven zero zero eight four five two </think> <answer> 2 </answer>
    User: 7 +3 *7 -2 *3 +1 -3 = Assistant: <answer> 2 </answer>
    User: 7 +3 *7 -2 *3 +1 -3 = Assistant: <think> seven zero 零 八 four 五 two </think> <answer> 2 </answer>
    User: opposite hot big left = Assistant: <answer> cold small right </answer>

Notes stand outside any conversation: they are where working things out step by step is learnt. In conversations most
chains are answered at once, and so mostly wrongly; some are thought through, in either language or in both. So a model
that is made to think is right, and one that is merely asked seldom thinks: the gap that reinforcement learning closes.

A thought begins with the start digit as a word. Then every word of it lies at one distance from the step it comes from,
which a model of two layers learns in seconds; without that first word it did not learn to begin.

With `slips`, the text is careless: some results of a thought are random digits, and the rest goes on from them, down to
the answer. Here the third word should be zero::

    Notes: 7 +3 *7 -2 *3 +1 -3 = Working: <think> seven zero four two six seven four </think> <answer> 4 </answer>

The right digit stays the likeliest at every step, so a model learns to step, and to slip as often as its text does.
Then thinking alone does not make it right, and there is something left to learn after R1-Zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.data.corpus import Corpus, CorpusError
from pipeline.tasks.base import Problem, TaskError
from pipeline.tasks.chain import STEPS, Chain, results
from pipeline.tasks.requests import CHINESE, ENGLISH, Requests

LANGUAGES = ((ENGLISH,), (CHINESE,), (ENGLISH, CHINESE))
LANGUAGE_SHARES = (0.4, 0.25, 0.35)
"""Thoughts in English, in Chinese, and in both, drawn word by word."""


class ChainCorpus(Corpus):
    """Documents about training problems of the tasks `chain` and `requests`.

    Args:
        length: how many steps a chain has.
        steps: the steps that may occur, separated by spaces, as in the task `chain`.
        words: words a request is about.
        requests: which requests, as in the task `requests`.
        notes: share of the documents that are notes.
        general: share of the documents that are requests.
        thinking: share of the other conversations that are thought through.
        skimmed: share of those in which only every second result is written down.
        slips: share of the results in notes and thoughts that are random digits; the rest of the thought and its answer
            go on from them. Answers without a thought are right.
        bare: share of the conversations answered at once in which the answer has no tags.
    """

    def __init__(
        self,
        length: int = 6,
        steps: str = STEPS,
        words: int = 3,
        requests: str = "copy opposite",
        notes: float = 0.5,
        general: float = 0.2,
        thinking: float = 0.2,
        skimmed: float = 0.15,
        slips: float = 0.0,
        bare: float = 0.1,
    ) -> None:
        shares = {"notes": notes, "general": general, "thinking": thinking, "skimmed": skimmed, "slips": slips}
        for name, share in {**shares, "bare": bare}.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise CorpusError(f"{name} is a share, a number between 0 and 1, not {share!r}")
        if notes + general > 1:
            raise CorpusError("notes and general are more than all documents")
        try:
            self.chain, self.requests = Chain(length=length, steps=steps), Requests(words=words, kinds=requests)
        except TaskError as error:
            raise CorpusError(str(error)) from error
        self.notes, self.general, self.thinking = notes, general, thinking
        self.skimmed, self.slips, self.bare = skimmed, slips, bare

    def documents(self, n: int, seed: int) -> Iterator[str]:
        """See `Corpus.documents`. Held-out problems never occur."""
        random = Random(f"chain corpus {seed}")
        wanted = [random.random() < self.general for _ in range(n)]
        chains = iter(self.chain.problems("train", n - sum(wanted), seed))
        requests = self.requests.problems("train", None, seed)
        for general in wanted:
            if general:
                problem = random.choice(requests)
                yield f"User: {problem.question} Assistant: <answer> {problem.answer} </answer>"
            else:
                yield self._about(next(chains), random)

    def _about(self, problem: Problem, random: Random) -> str:
        if random.random() < self.notes / (1 - self.general):
            return f"Notes: {problem.question} Working: {self._thought(problem, random)}"
        asked = f"User: {problem.question} Assistant:"
        if random.random() < self.thinking:
            return f"{asked} {self._thought(problem, random, skimmed=random.random() < self.skimmed)}"
        tagged = f"<answer> {problem.answer} </answer>"
        return f"{asked} {problem.answer if random.random() < self.bare else tagged}"

    def _thought(self, problem: Problem, random: Random, skimmed: bool = False) -> str:
        """A thought and the answer that it comes to."""
        start, *steps = problem.question.removesuffix(" =").split()
        left = [int(start)]
        for step in steps:
            slipped = self.slips > 0 and random.random() < self.slips
            left.append(random.randrange(10) if slipped else results(f"{left[-1]} {step}")[-1])
        return f"<think> {_words(left[::2] if skimmed else left, random)} </think> <answer> {left[-1]} </answer>"


def _words(values: list[int], random: Random) -> str:
    (languages,) = random.choices(LANGUAGES, LANGUAGE_SHARES)
    return " ".join(random.choice(languages)[value] for value in values)
