"""The format reward of R1-Zero and R1: did the model think first, and then answer?

Two shapes are known. R1's is a thought and a summary::

    <think>7 * 6 = 42, so half of it is 21.</think>
    The answer is \\boxed{21}.

R1-Zero's template also wraps the answer::

    <think>7 * 6 = 42, so half of it is 21.</think>
    <answer>21</answer>

Nothing may stand before, between or after the parts, each tag occurs exactly once, and no part is empty. The check
splits at literal tags and never backtracks, so it takes linear time on anything a model may write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rewards.bounds import Text
from rewards.text import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, says_something
from rewards.verdict import Item, Status, Verdict

END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")
"""What common tokenizers end a turn or pad with, as text: seen where a completion was decoded with special tokens."""


class ThinkFormat:
    """1 if the completion is a thought and then an answer, in exactly that shape; else 0 (R1, arXiv 2501.12948).

    A completion that was cut off has no shape: the stages of this house tell so in the column `truncated`.

    Args:
        answer_tag: ask for `<answer>…</answer>` around everything after the thought (R1-Zero's template).
        prefilled: whether the prompt already ends with `<think>`, so that completions begin inside the thought.
            `"auto"` looks at the end of each prompt, and at the column `prefill`, which the stages of this house fill
            in where a chat template adds the tag behind a list of messages.
        end_tokens: special tokens, as text, that may follow the answer.
    """

    def __init__(
        self,
        answer_tag: bool = False,
        prefilled: bool | Literal["auto"] = "auto",
        end_tokens: Sequence[Text] = END_TOKENS,
    ) -> None:
        if prefilled not in (True, False, "auto"):
            raise ValueError(f"prefilled is true, false or 'auto', not {prefilled!r}")
        self.answer_tag, self.prefilled = answer_tag, prefilled
        # Matched against reversed text, possessively: stripping from the end by `endswith` would be quadratic.
        self._ending = re.compile("(?:" + "|".join([r"\s", *(re.escape(token[::-1]) for token in end_tokens)]) + ")*+")

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge the shape of each completion; gold answers are not looked at."""
        return [self._judge(item) for item in items]

    def _judge(self, item: Item) -> Verdict:
        prefilled = item.opened if self.prefilled == "auto" else self.prefilled
        text = THINK_OPEN + item.completion if prefilled else item.completion
        fault = "it was cut off" if item.truncated else self._fault(self._without_ending(text).lstrip())
        return Verdict.of(Status.WRONG if fault else Status.CORRECT, detail=fault)

    def _without_ending(self, text: str) -> str:
        ending = self._ending.match(text[::-1])
        return text[: len(text) - ending.end()] if ending else text

    def _fault(self, text: str) -> str:
        """What is wrong with the shape, as a sentence; empty if nothing is."""
        tags = (THINK_OPEN, THINK_CLOSE, *((ANSWER_OPEN, ANSWER_CLOSE) if self.answer_tag else ()))
        for tag in tags:
            if (count := text.count(tag)) != 1:
                return f"{tag} occurs {count} times, not once"
        if not text.startswith(THINK_OPEN):
            return f"there is text before {THINK_OPEN}"
        thought, _, answer = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
        if self.answer_tag:
            answer = answer.lstrip()
            if not (answer.startswith(ANSWER_OPEN) and answer.endswith(ANSWER_CLOSE)):
                return f"after the thought there is something beside {ANSWER_OPEN}…{ANSWER_CLOSE}"
            answer = answer.removeprefix(ANSWER_OPEN).removesuffix(ANSWER_CLOSE)
        if not says_something(thought):
            return "the thought is empty"
        return "" if says_something(answer) else "the answer is empty"
