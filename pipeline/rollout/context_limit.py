"""Whether prompts and completions fit into a model's context; asked before anything is sampled.

Beyond it, positions mean nothing to the model, engines refuse the request or cut it short, and memory for attention
grows with the square of the length.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.prompts.templates import encode
from pipeline.rollout.base import RolloutError

log = logging.getLogger(__name__)

TOKENS_A_BYTE = 4
"""More tokens than a byte of text ever makes, with all that a tokenizer's normalisation may add."""
SHOWN = 60
"""Characters of a prompt's question in a message."""


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """What a model can read.

    Attributes:
        context: tokens that it reads; no limit is known for `None`.
        max_tokens: longest completion, in tokens.
        too_long: what to do with prompts beside which a completion would not fit.
    """

    context: int | None
    max_tokens: int
    too_long: Literal["error", "filter"] = "error"

    def check(self) -> None:
        """Make sure that there is room for a prompt at all.

        Raises:
            RolloutError: there is none.
        """
        if self.context is not None and self.max_tokens >= self.context:
            raise RolloutError(
                f"rollout.max_tokens is {self.max_tokens}, and the model's context has {self.context} tokens, those of"
                " the prompt included: lower it"
            )

    @staticmethod
    def left_out(prompts: int) -> dict[str, int]:
        """That many prompts, which did not fit, as a metric; nothing if there are none."""
        return {"too_long": prompts} if prompts else {}

    def fitting(self, tokenizer: Any, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Which prompts leave room for a completion.

        Args:
            tokenizer: the model's.
            texts: rendered prompts.
            rows: what they were made of, with `task`, `id` and `question`, which messages name.

        Returns:
            Their positions.

        Raises:
            RolloutError: there is no room for any, or for one where that shall be an error; names the first.
        """
        if self.context is None:
            return list(range(len(texts)))
        self.check()
        room = self.context - self.max_tokens
        long = [at for at, text in enumerate(texts) if len(text.encode()) * TOKENS_A_BYTE > room]
        lengths = dict(zip(long, map(len, encode(tokenizer, [texts[at] for at in long])), strict=True))
        beyond = [at for at in long if lengths[at] > room]
        if not beyond:
            return list(range(len(texts)))
        at = beyond[0]
        row = {name: str(rows[at].get(name, "?")) for name in ("task", "id", "question")}
        what = (
            f"{len(beyond)} of {len(texts)} prompts are too long for the model's context of {self.context} tokens with"
            f" rollout.max_tokens {self.max_tokens}. The first is row {at + 1}, problem {row['id']} of {row['task']}"
            f" ({row['question'][:SHOWN]!r}), with {lengths[at]} tokens"
        )
        if self.too_long == "error" or len(beyond) == len(texts):
            raise RolloutError(f"{what}. Lower rollout.max_tokens, or leave them out with rollout.too_long: filter")
        log.warning("%s. They are left out", what)
        return sorted(set(range(len(texts))) - set(beyond))


def context_of(path: str, engine_options: Mapping[str, Any] | None = None) -> int | None:
    """Tokens that a model reads, by its config, YaRN and its like counted; an engine's `max_model_len` goes before it.

    Args:
        path: folder or hub id.
        engine_options: those of a recipe's `rollout`.
    """
    from transformers import AutoConfig

    return context_of_config(AutoConfig.from_pretrained(path, trust_remote_code=False), engine_options)


def context_of_config(config: Any, engine_options: Mapping[str, Any] | None = None) -> int | None:
    """The same by a model's config."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    scaled = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if longest is not None and isinstance(scaled, Mapping):
        factor, original = scaled.get("factor"), scaled.get("original_max_position_embeddings")
        if isinstance(factor, int | float) and isinstance(original, int):
            longest = max(longest, int(factor * original))
    given = (engine_options or {}).get("max_model_len")
    return given if isinstance(given, int) else longest
