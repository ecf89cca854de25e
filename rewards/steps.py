"""Where an answer is cut into steps, for rewards that judge each of them.

    StepRule(end="\\n").cut(ids, decode)     # the token ids of each step

An answer that is a thought and what follows it has the lines of the thought as its steps, and all that follows as the
last one. R1's authors name this as the first difficulty of process rewards: what a step is has to be said, and in
general reasoning no rule says it well (arXiv 2501.12948, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.text import THINK_CLOSE

STEP_END, STEP_TOKENS = "\n", 128
"""A step is a line; what never ends a line is cut all the same, so that no step is without bounds."""


@dataclass(frozen=True, slots=True)
class StepRule:
    """How an answer is cut.

    Attributes:
        end: text at which a step ends; it belongs to the step. What is blank is no step, and belongs to the next one.
        tokens: most tokens of a step.

    Raises:
        ValueError: the text is empty, or a step would have no token.
    """

    end: str = STEP_END
    tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        if not self.end:
            raise ValueError("step_end is the text at which a step ends, and empty here")
        if self.tokens < 1:
            raise ValueError(f"step_tokens is 1 or more, not {self.tokens}")

    def cut(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[list[int]]:
        """The token ids of each step, which together are all of them.

        Args:
            ids: token ids of an answer, or of how it begins.
            decode: gives the text of token ids.
        """
        steps: list[list[int]] = []
        begun: list[int] = []
        for at, token in enumerate(ids):
            begun.append(token)
            text = decode(begun)
            if THINK_CLOSE in text:
                return [*steps, [*begun, *ids[at + 1 :]]]
            if text.strip() and (len(begun) >= self.tokens or self.end in text.lstrip()):
                steps.append(begun)
                begun = []
        if steps and not decode(begun).strip():
            return [*steps[:-1], [*steps[-1], *begun]]
        return [*steps, begun] if begun else steps
