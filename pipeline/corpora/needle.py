"""Long documents that ask about facts in themselves: what a model learns to look back with.

One document, with `length: 24, facts: 3, asked: 2`::

    User: bada=0 dew fern moss reed dew fern moss baki=4 reed dew bano=3 fern moss baki bada ? Assistant:
    <answer> baki=4 bada=0 </answer>

Every document is exactly `length` tokens long with a tokenizer of whole words, its end-of-sequence token included, so
that rows of that length hold one document each and no question is cut off from its facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.data.corpus import Corpus, CorpusError
from pipeline.tasks.needle import fault, haystack

FRAME_TOKENS = 6
"""Tokens beside the text, the names and the facts: `User: … ? Assistant: <answer> … </answer>`, end of sequence."""


class NeedleCorpus(Corpus):
    """Texts with facts, each followed by a question about some of them; see the task `needle`.

    Args:
        length: tokens of a document.
        facts: facts in its text.
        asked: how many of them are asked for.
    """

    def __init__(self, length: int = 64, facts: int = 4, asked: int = 1) -> None:
        self.words, self.facts, self.asked = length - FRAME_TOKENS - 2 * asked, facts, asked
        if (wrong := fault(self.words, facts, asked)) is not None:
            raise CorpusError(f"needle: {wrong} in a length of {length}")

    def documents(self, n: int, seed: int) -> Iterator[str]:
        """See `Corpus.documents`."""
        random = Random(f"needle corpus {seed}")
        for _ in range(n):
            hay = haystack(random, self.words, self.facts)
            names = random.sample([*hay.facts], self.asked)
            answer = " ".join(hay.facts[name] for name in names)
            yield f"User: {hay.text} {' '.join(names)} ? Assistant: <answer> {answer} </answer>"
