r"""Rewards of length, in tokens: Kimi's within a group, the cosine of Yeo et al., DAPO's soft overlong punishment.

All of them read `completion_ids`, which TRL passes; without them there is no length, which is an error.

    tokens          100    300    500          correct 300 of a group from 100 to 500 tokens long
    length         +0.5    0.0   -0.5          0.5 - (300 - 100) / (500 - 100)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.bounds import AtLeastOne, Finite, NotNegative, RewardName
from rewards.function import Batch, RewardFunction
from rewards.verdict import Item, Status, Verdict


class KimiLength:
    """Shorter answers of a group score more, and wrong ones never above 0 (Kimi k1.5, arXiv 2501.12599, section 2.3.3).

    With the shortest and longest of all rollouts of one prompt, λ = 0.5 − (tokens − shortest) / (longest − shortest);
    a correct rollout scores λ, any other min(0, λ). A group of equal lengths scores 0. The paper adds it only after
    a warm-up without it. A group that is split between processes is compared within each part.

    Args:
        correct: the reward that says which completions are correct.
        correct_options: options of the reward `correct`.
    """

    def __init__(self, correct: RewardName = "math", correct_options: Mapping[str, Any] | None = None) -> None:
        self._correct = RewardFunction(correct, correct_options, in_trainer=False)

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item: the status of the reward `correct`, the score of the length."""
        lengths = [token_count(item) for item in items]
        groups = defaultdict(list)
        for item, tokens in zip(items, lengths, strict=True):
            groups[item.prompt].append(tokens)
        scored = []
        verdicts = self._correct.verdicts(Batch.of(items))
        for item, tokens, verdict in zip(items, lengths, verdicts, strict=True):
            shortest, longest = min(groups[item.prompt]), max(groups[item.prompt])
            share = (tokens - shortest) / (longest - shortest) if longest > shortest else 0.5
            scored.append(_rescored(verdict, 0.5 - share, min(0.0, 0.5 - share)))
        return scored

    def prepare(self) -> None:
        """Prepare the reward `correct`."""
        self._correct.prepare()

    def close(self) -> None:
        """Stop the processes of the reward `correct`."""
        self._correct.close()


class CosineLength:
    """Correctness scaled by length along a cosine (Yeo et al., arXiv 2502.03373, appendix C.1).

    From a value at length 0 to another at `max_tokens`, apart for correct and wrong answers: short correct ones are
    best, and short wrong ones are worst, so that thinking on pays where the answer is not found yet. Beyond
    `max_tokens` the value stays where it is, or is `exceeded`. TRL's function of the same formula judges with a
    parser that can hang and takes no text prompts; this one judges with any reward.

    Args:
        max_tokens: length at which the schedule ends.
        right: scores of a correct answer at length 0 and at `max_tokens`.
        wrong: the same of a wrong answer.
        exceeded: score of what is `max_tokens` long or longer (the paper's penalty for running out of room).
        correct: the reward that says which completions are correct.
        correct_options: options of the reward `correct`.
    """

    def __init__(
        self,
        max_tokens: AtLeastOne,
        right: Sequence[Finite] = (1.0, 0.5),
        wrong: Sequence[Finite] = (-1.0, -0.5),
        exceeded: Finite | None = None,
        correct: RewardName = "math",
        correct_options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is at least 1, not {max_tokens}")
        if fault := self.unfit(right, wrong):
            raise ValueError(fault)
        self.max_tokens, self.right, self.wrong, self.exceeded = max_tokens, right, wrong, exceeded
        self._correct = RewardFunction(correct, correct_options, in_trainer=False)

    @staticmethod
    def unfit(right: Sequence[float], wrong: Sequence[float], **_: Any) -> str:
        """Why these options do not go together; empty if they do."""
        if len(right) == len(wrong) == 2:
            return ""
        return f"right and wrong are [at length 0, at max_tokens], not {right!r} and {wrong!r}"

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item: the status of the reward `correct`, the score of the schedule."""
        scored = []
        for item, verdict in zip(items, self._correct.verdicts(Batch.of(items)), strict=True):
            tokens = token_count(item)
            if self.exceeded is not None and tokens >= self.max_tokens:
                scored.append(_rescored(verdict, self.exceeded, self.exceeded))
            else:
                scored.append(_rescored(verdict, self._value(tokens, self.right), self._value(tokens, self.wrong)))
        return scored

    def _value(self, tokens: int, ends: Sequence[float]) -> float:
        start, end = ends
        # The cosine is periodic: unless clamped, it would climb again beyond max_tokens.
        return end + 0.5 * (start - end) * (1 + math.cos(min(tokens / self.max_tokens, 1.0) * math.pi))

    def prepare(self) -> None:
        """Prepare the reward `correct`."""
        self._correct.prepare()

    def close(self) -> None:
        """Stop the processes of the reward `correct`."""
        self._correct.close()


class SoftOverlong:
    """0 up to `max_tokens - soft_tokens`, then falling to -1 at `max_tokens` (DAPO, arXiv 2503.14476, equation 13).

    Args:
        max_tokens: tokens of the longest completion that is allowed.
        soft_tokens: width of the interval over which the punishment grows.
    """

    def __init__(self, max_tokens: AtLeastOne, soft_tokens: NotNegative) -> None:
        if fault := self.unfit(max_tokens, soft_tokens):
            raise ValueError(fault)
        from trl.rewards import get_soft_overlong_punishment

        self._punish = get_soft_overlong_punishment(max_tokens, soft_tokens)

    @staticmethod
    def unfit(max_tokens: int, soft_tokens: int) -> str:
        """Why these options do not go together; empty if they do."""
        if 0 <= soft_tokens <= max_tokens:
            return ""
        return f"soft_tokens is from 0 to max_tokens ({max_tokens}), not {soft_tokens}"

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item: correct where nothing is punished."""
        return penalties(self._punish(completion_ids=[token_ids(item) for item in items]))


def token_ids(item: Item) -> Sequence[int]:
    """The sampled token ids.

    Raises:
        ValueError: the caller did not pass them.
    """
    if item.completion_ids is None:
        raise ValueError("a reward of length or repetition counts tokens: it needs completion_ids")
    return item.completion_ids


def token_count(item: Item) -> int:
    """Length of the completion in tokens; raises ValueError as `token_ids` does."""
    return len(token_ids(item))


def penalties(scores: Sequence[float]) -> list[Verdict]:
    """Verdicts of a reward that can only take away: correct at 0."""
    return [Verdict(Status.CORRECT if score == 0 else Status.WRONG, score) for score in scores]


def _rescored(verdict: Verdict, right: float, wrong: float) -> Verdict:
    """The verdict with another score; what could not be judged stays without one."""
    if verdict.score is None:
        return verdict
    return replace(verdict, score=right if verdict.score >= 1 else wrong)
