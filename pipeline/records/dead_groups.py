"""Dead groups: all rollouts of a prompt have the same reward, so that GRPO learns nothing from them.

The trainer logs two shares of a generation batch's groups. The alarms of `health`, the trainer's own warning, the
report and `zero2r1 doctor --run` read these, hold them against one threshold, and give one reason. What makes rewards
equal is decided in `pipeline.training.grpo.objective.equal_groups`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

FAILED, EQUAL = "groups/all_failed", "groups/all_equal_above_zero"
"""Metrics: shares of the groups in which every rollout failed, and in which all got the same reward above zero."""
CLEARLY = 2.0
"""One kind explains the dead groups if it is more than so many times as frequent as the other."""


class Cause(StrEnum):
    """What it means that many groups are dead, and what to look at."""

    HARD = (
        "problems are too hard, completions are cut off (rollout.max_tokens), or answers are not found (look at the"
        " samples)"
    )
    EASY = "the verifier pays everything, or problems are too easy"
    MIXED = "groups are too small (trainer.num_generations), or problems are either trivial or hopeless"


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the groups, from 0 to 1.

    Attributes:
        failed: every rollout got a reward of zero or less, the same.
        equal: every one got the same reward above zero.
    """

    failed: float
    equal: float

    @classmethod
    def of(cls, logged: Iterable[Mapping[str, Any]]) -> Shares | None:
        """The means over logged steps; `None` where none of them has both."""
        both = [(float(step[FAILED]), float(step[EQUAL])) for step in logged if FAILED in step and EQUAL in step]
        return cls(fmean(failed for failed, _ in both), fmean(equal for _, equal in both)) if both else None

    @property
    def dead(self) -> float:
        """The share of dead groups."""
        return self.failed + self.equal

    @property
    def cause(self) -> Cause:
        """What is to blame, by which kind there are more of."""
        if self.failed > CLEARLY * self.equal:
            return Cause.HARD
        return Cause.EASY if self.equal > CLEARLY * self.failed else Cause.MIXED

    def __str__(self) -> str:
        return f"{self.dead:.0%} of the groups teach nothing"
