"""Speculative decoding in the rollout engines: what `rollout.speculative` means to each of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import RolloutError
from pipeline.schema.pieces import SpeculativeSpec

if TYPE_CHECKING:
    from model.speculative import Speculation

COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
"""vLLM's counters, in the order of `Speculation`'s fields, without what they begin with."""


def vllm_options(spec: SpeculativeSpec | None) -> dict[str, Any]:
    """Engine arguments that make vLLM speculate, and count.

    The blocks of multi-token prediction are vLLM's method `mtp`; it drafts as many tokens as there are blocks if no
    number is given, and goes through them again for more.
    """
    if spec is None:
        return {}
    config: dict[str, Any] = {"method": "mtp"} if spec.draft is None else {"method": "draft_model", "model": spec.draft}
    if spec.tokens is not None:
        config["num_speculative_tokens"] = spec.tokens
    return {"speculative_config": config, "disable_log_stats": False}


def counted_by_vllm(metrics: Iterable[Any]) -> Speculation:
    """What vLLM has counted (`LLM.get_metrics()`)."""
    from model.speculative import Speculation

    values = {metric.name: getattr(metric, "value", 0) for metric in metrics}
    return Speculation(*(int(values.get(f"vllm:spec_decode_{counter}", 0)) for counter in COUNTERS))


def check_blocks(model: Any, path: str) -> None:
    """Make sure that a model can draft for itself.

    Raises:
        RolloutError: it has no blocks of multi-token prediction.
    """
    from model.mtp import blocks

    if not blocks(model):
        raise RolloutError(
            f"rollout.speculative: {path} has no blocks of multi-token prediction: train some, or name a `draft`"
        )


def facts(told: Speculation | None) -> dict[str, float]:
    """What speculation brought, as metrics; nothing where there was none."""
    if told is None or not told.rounds:
        return {}
    return {"acceptance": round(told.acceptance, 4), "tokens_per_pass": round(told.tokens_per_pass, 3)}


class Assistant:
    """A smaller model that drafts, by transformers' own assisted decoding, for one sequence at a time.

    Args:
        main: the model that verifies.
        path: the one that drafts, of the same vocabulary.
        tokens: drafts a round.
    """

    def __init__(self, main: Any, path: str, tokens: int) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.model = (
            AutoModelForCausalLM.from_pretrained(path, dtype=main.dtype, trust_remote_code=False).to(main.device).eval()
        )
        if self.model.config.vocab_size != main.config.vocab_size:
            raise RolloutError(f"rollout.speculative.draft: {path} has another vocabulary")
        self.model.generation_config = GenerationConfig(
            num_assistant_tokens=tokens, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        self.passes = self.drafted = 0
        self.model.register_forward_hook(self._drafted)
        self.watch(main)

    def watch(self, main: Any) -> None:
        """Count the passes of this model, which verifies."""
        main.register_forward_hook(self._verified)

    def _verified(self, *_: Any) -> None:
        self.passes += 1

    def _drafted(self, *_: Any) -> None:
        self.drafted += 1

    def told(self, tokens: int) -> Speculation:
        """What it brought, where this many tokens were sampled; counted since the last call."""
        from model.speculative import Speculation

        told = Speculation(self.passes, self.drafted, max(tokens - self.passes, 0))
        self.passes = self.drafted = 0
        return told
