"""What ends a completion beside the model's own end-of-sequence tokens: the recipe's `rollout.stop`.

Texts and token ids; either stays in the completion, as the last thing that the model wrote, since what was sampled is
what is trained on. A text that is one special token of the vocabulary stands for its id: special tokens are not part of
the text that is searched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.rollout.base import RolloutError

log = logging.getLogger(__name__)

MANY_CUT_OFF = 0.5
"""Share of the first completions above which being cut off is worth a warning."""
SLACK = 32
"""Tokens beside those of the longest text in which it is looked for: as many as speculation may add at once."""


@dataclass(frozen=True)
class Stops:
    """What to stop at.

    Attributes:
        tokenizer: decodes what was sampled.
        ids: token ids.
        texts: texts.
    """

    tokenizer: Any
    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, stop: Sequence[str | int]) -> Stops:
        """What a recipe means with this vocabulary.

        Raises:
            RolloutError: there is no such token id.
        """
        special = {} if tokenizer is None else tokenizer.get_added_vocab()
        ids = [special.get(one) if isinstance(one, str) else one for one in stop]
        if wrong := [one for one in stop if isinstance(one, int) and tokenizer is not None and one >= len(tokenizer)]:
            raise RolloutError(f"stop: {wrong[0]} is not a token id; the vocabulary has {len(tokenizer)} tokens")
        texts = [one for one, found in zip(stop, ids, strict=True) if found is None and isinstance(one, str)]
        return cls(tokenizer, tuple(one for one in ids if one is not None), tuple(texts))

    def __bool__(self) -> bool:
        return bool(self.ids or self.texts)

    @property
    def asked(self) -> tuple[str | int, ...]:
        """The same in a recipe's words."""
        return *self.texts, *self.ids

    def length(self, ids: Sequence[int]) -> int | None:
        """How many of these tokens there are up to and with the first stop; `None` if there is none."""
        first = next((at + 1 for at, token in enumerate(ids) if token in self.ids), None)
        ids = ids[:first]
        if not self.texts or not self._found(ids):
            return first
        low, high = 0, len(ids)  # text only grows with the tokens: found in ids[:high], and not in ids[:low]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._found(ids[:middle]) else (middle, high)
        return high

    def cut(self, ids: Sequence[int]) -> list[int]:
        """These tokens up to and with the first stop."""
        return list(ids[: self.length(ids)])

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a completion that ends with these tokens has come to a stop, just now or a few tokens ago."""
        return bool(ids) and (ids[-1] in self.ids or (bool(self.texts) and self._found(ids[-self.reach :])))

    @property
    def reach(self) -> int:
        """The last so many tokens are all that `ended` looks at."""
        return SLACK + max((len(text.encode()) for text in self.texts), default=0)

    def _found(self, ids: Sequence[int]) -> bool:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return any(stop in text for stop in self.texts)


class FirstLook:
    """Says of the first completions how many were cut off: a model that cannot end its turns is seen at once.

    Args:
        end: the token that ends a turn, as text.
    """

    def __init__(self, end: str) -> None:
        self.end, self.looked = end, False

    def look(self, share: float, count: int, max_tokens: int) -> None:
        """Take the share of `count` completions that reached `max_tokens`; only the first call says anything."""
        if self.looked:
            return
        self.looked = True
        told = f"{share:.0%} of the first {count} completions were cut off at {max_tokens} tokens"
        if share <= MANY_CUT_OFF:
            log.info("%s", told)
            return
        log.warning(
            "%s. Either they need more (rollout.max_tokens), or the model does not end its turns: in this chat template"
            " it may never have learnt to say %r (zero2r1 doctor --model tells). Then take the template that it was"
            " taught with, or say in rollout.stop what else ends a completion",
            told,
            self.end,
        )
