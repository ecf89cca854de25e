"""The lines of `samples.jsonl`, which training, evaluation and rejection sampling write and the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards import Status, Verdict

SAMPLES = "samples.jsonl"
"""Name of the file in an artifact."""
UNJUDGED = "unjudged"
"""The status of a sample that the reward was not asked about, or could not judge."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one reward said of a sample; the lasting part of a `rewards.Verdict`."""

    status: str
    score: float | None
    extracted: str | None = None
    detail: str = ""

    @classmethod
    def of(cls, verdict: Verdict) -> Judgement:
        """Without time."""
        return cls(verdict.status.value, verdict.score, verdict.extracted, verdict.detail)

    def verdict(self) -> Verdict:
        """The verdict itself."""
        return Verdict(Status(self.status), self.score, self.extracted, detail=self.detail)

    @property
    def correct(self) -> bool:
        """Whether the reward found it right."""
        return self.status == Status.CORRECT.value


def sample_row(
    problem: Mapping[str, Any],
    completion: str,
    judgement: Judgement | None,
    tokens: int,
    finish: str,
    parts: Mapping[str, float | None],
    begun: str = "",
    **more: Any,
) -> dict[str, Any]:
    """A line: one completion with what one reward said of it, and what all of them gave.

    Args:
        problem: the prompt row (see `pipeline.tasks.resolve`).
        completion: what the model wrote, as text.
        judgement: what a reward said, if it was asked.
        tokens: sampled tokens.
        finish: why it ended: `stop` or `length`.
        parts: label of each reward that applies to the row -> its score before weights; `None` where it has none.
        begun: what the assistant was made to begin its turn with, such as `<think>`; left out if it is nothing.
        more: what else the writer knows, such as `step` or `model`.
    """
    return {
        **{name: problem[name] for name in ("task", "id", "question", "answer")},
        "completion": completion,
        "status": judgement.status if judgement else UNJUDGED,
        "score": judgement.score if judgement else None,
        "extracted": judgement.extracted if judgement else None,
        "tokens": tokens,
        "finish": finish,
        "rewards": dict(parts),
        **({"begun": begun} if begun else {}),
        **more,
    }
