"""What a verifier is asked about, and what it answers.

A *verifier* judges completions against gold answers. It returns one *verdict* for each: a status that says what
happened and a score that training may use. The policy that every verifier of this package follows:

* what the *model* caused (a wrong answer, no answer, a program that never ends, an attack) scores 0;
* what it did *not* cause (a gold answer that cannot be read, a sandbox that broke) scores `None`: the row is left
  out of training and counted, so that nobody is taught by an accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from rewards.text import THINK_OPEN, opens_thought, plain, split_thought

TRUNCATED = "truncated"
"""Column that says whether the completion was cut off at the longest allowed length."""
PREFILL = "prefill"
"""Column with what the assistant's turn was made to begin with, where the prompt does not show it."""


class Status(StrEnum):
    """Why a verdict is what it is."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """Nothing in the completion could be judged."""
    BAD_GOLD = "bad_gold"
    """The gold answer is missing or cannot be read: not the model's fault."""
    TIMEOUT = "timeout"
    """Judging (or running) what the model wrote passed the deadline."""
    REJECTED = "rejected"
    """A guard refused to look at it: several different answers, an exponent tower, a forbidden construct."""
    INFRA = "infra"
    """The judge itself failed: a broken sandbox, an endpoint that does not answer. Not the model's fault."""


BLAMELESS = frozenset({Status.BAD_GOLD, Status.INFRA})
"""Statuses that the model did not cause: the whole row is left out of training."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement.

    Attributes:
        status: what happened.
        score: in the verifier's own range, usually 0 to 1; `None` means "this row must not be scored".
        extracted: the part of the completion that was judged, as text, if any.
        ms: wall time spent on it, in milliseconds.
        detail: one sentence for people.
    """

    status: Status
    score: float | None
    extracted: str | None = None
    ms: float = 0.0
    detail: str = ""

    @classmethod
    def of(cls, status: Status, extracted: str | None = None, detail: str = "", ms: float = 0.0) -> Verdict:
        """A verdict whose score follows from its status: 1 for correct, `None` for blameless ones, else 0."""
        score = 1.0 if status is Status.CORRECT else None if status in BLAMELESS else 0.0
        return cls(status, score, extracted, ms, detail)

    @classmethod
    def graded(cls, score: float, extracted: str | None = None, detail: str = "", ms: float = 0.0) -> Verdict:
        """A verdict on a scale from 0 to 1: correct at 1, wrong below."""
        return cls(Status.CORRECT if score >= 1.0 else Status.WRONG, float(score), extracted, ms, detail)


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to judge.

    Attributes:
        completion: what the model wrote, as plain text.
        answer: the gold answer, in whatever form the verifier reads.
        prompt: the prompt as plain text; verifiers that compare within a group use it as the group's key.
        completion_ids: the sampled token ids, where the caller has them.
        columns: every other column of the data row.
        messages: the prompt as chat messages, where it is a chat.
    """

    completion: str
    answer: Any = None
    prompt: str = ""
    completion_ids: Sequence[int] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] | None = None

    @property
    def opened(self) -> bool:
        """Whether the completion begins inside a thought: the prompt ends with `<think>`, or the assistant's turn was
        made to begin with a thought by the column `prefill` or by a last message of its own."""
        begun = str(self.columns.get(PREFILL) or "")
        if self.messages and self.messages[-1].get("role") == "assistant":
            begun = plain(self.messages[-1]) + begun
        if THINK_OPEN in begun:
            return opens_thought(begun)
        return self.prompt.rstrip().endswith(THINK_OPEN)

    @property
    def truncated(self) -> bool:
        """Whether the completion was cut off, as far as the column `truncated` knows."""
        return bool(self.columns.get(TRUNCATED))

    def split(self) -> tuple[str | None, str]:
        """The completion as (thought, the rest); see `rewards.text.split_thought`."""
        return split_thought(self.completion, self.opened)


@runtime_checkable
class Verifier(Protocol):
    """Judges a batch of items. The whole batch is seen at once, so group-wise verifiers are ordinary ones."""

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """Return one verdict an item, in order; never raises for what a model wrote."""
        ...
