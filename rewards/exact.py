"""The plainest grader: the answer's words are the gold answer's words.

    gold        "star bird fish"
    completion  "<think>backwards</think> <answer> star  bird fish </answer>"     correct
    completion  "star bird fish"                                                  correct, unless tags are asked for
    completion  "<answer> Star, bird, fish </answer>"                             wrong

The answer is what stands in the last `<answer>…</answer>` after the thought, else all that follows the thought. Only
the number of spaces between words is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.text import answer_tag, says_something
from rewards.verdict import Item, Status, Verdict


class Exact:
    """1 if the answer is the gold answer, word for word; else 0.

    Args:
        tagged: whether the answer must stand in `<answer>…</answer>`.
    """

    def __init__(self, tagged: bool = False) -> None:
        self.tagged = tagged

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item; a row without a gold answer is `bad_gold`."""
        return [self._judge(item) for item in items]

    @staticmethod
    def same(first: Verdict, second: Verdict) -> bool:
        """Whether two completions give one answer: word for word."""
        return first.extracted == second.extracted

    def _judge(self, item: Item) -> Verdict:
        given = item.answer if isinstance(item.answer, list | tuple) else [item.answer]
        golds = [gold for one in given if one is not None and says_something(gold := " ".join(str(one).split()))]
        if not golds:
            return Verdict.of(Status.BAD_GOLD, detail="there is no gold answer")
        _, rest = item.split()
        found = answer_tag(rest)
        if found is None and not self.tagged:
            found = rest
        answer = " ".join((found or "").split())
        if not answer:
            return Verdict.of(Status.NO_ANSWER, detail="there is no answer after the thought")
        return Verdict.of(Status.CORRECT if answer in golds else Status.WRONG, answer)
