"""The longest completion, as a function of the optimizer step.

R1-Zero sampled up to 32,768 tokens, and up to 65,536 from step 8,200 on. The length depends on the step alone, so that
a resumed run has that of an uninterrupted one. A generation batch has the length of the first step that trains on it,
also where it is sampled ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.schema.efficiency import LengthChange


class Lengths:
    """Mixin for `GRPOTrainer`: the recipe's `length_schedule`."""

    length_schedule: Sequence[LengthChange]
    args: Any
    model: Any
    state: Any
    use_vllm: bool
    max_completion_length: int
    generation_config: Any
    generation_kwargs: dict[str, Any]
    vllm_generation: Any
    _metrics: Any

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self.length_schedule:
            self._set_length(self.length_at(self.state.global_step))
            self._metrics["train" if self.model.training else "eval"]["max_tokens"].append(self.max_completion_length)
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc, no-any-return]

    def length_at(self, step: int) -> int:
        """The longest completion, in tokens, of a batch that is trained on after `step` optimizer steps."""
        changes = reversed(self.length_schedule)
        return next((c.max_tokens for c in changes if step >= c.step), self.args.max_completion_length)

    def _set_length(self, tokens: int) -> None:
        self.max_completion_length = tokens
        if self.use_vllm:
            self.vllm_generation.max_completion_length = tokens
        else:
            self.generation_config.max_new_tokens = self.generation_kwargs["max_new_tokens"] = tokens
