"""The rollout protocol: prompts as token ids in, completions with their token ids out; engines share it.

Text is never re-tokenised: what the engine sampled is what is trained on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from model.speculative import Speculation


class RolloutError(RuntimeError):
    """An engine that cannot be started as asked, or does not answer."""


class Finish(StrEnum):
    """Why a rollout ended."""

    STOP = "stop"
    """The model ended it, with an end-of-sequence token, or with what it was to stop at."""
    LENGTH = "length"
    """It reached the longest allowed length."""
    ABORT = "abort"
    """The engine gave up on it."""


def finish_reason(reason: str | None) -> Finish:
    """vLLM's word for why a completion ended; any word but `stop` and `length` is an abort."""
    return Finish(reason) if reason in ("stop", "length") else Finish.ABORT


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    Attributes:
        n: completions a prompt (the group).
        max_tokens: longest completion, in tokens.
        temperature: 0 is greedy.
        top_p, top_k, min_p: the usual truncations; 1, 0 and 0 switch them off.
        stop: texts and token ids that end a completion; see `pipeline.rollout.stops`.
        seed: makes the whole call reproducible on one engine and machine.
        enough: complete groups after which the others are given up; all are waited for if not given. What was given up
            ends with `Finish.ABORT`. Those are the long ones: whoever sets this favours short completions.
    """

    n: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    enough: int | None = None
    stop: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion.

    Attributes:
        text: decoded without special tokens; vLLM leaves it out where it samples for a trainer.
        token_ids: what was sampled, with the end-of-sequence token if there was one.
        finish: why it ended.
        logprobs: log-probability of each sampled token, if the engine gave them: under the model at temperature 1, or
            of the distribution that was sampled from, with its temperature and truncations, where the engine was opened
            with `for_trainer`. That is the distribution under the weights that sampled the token.
        versions: which weights sampled which tokens: (version, number of tokens) in the order of the tokens. The
            version is what `Updatable.load_weights` was told, 0 for the weights of the model's folder.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[float, ...] | None = None
    versions: tuple[tuple[int, int], ...] = ()


def spans(version: int, tokens: int, marks: Sequence[tuple[int, int]] = ()) -> tuple[tuple[int, int], ...]:
    """A rollout's `versions`.

    Args:
        version: of the weights that sampled its last token.
        tokens: in all.
        marks: (version, tokens so far) at each moment at which its weights were replaced; more tokens than it has where
            it had ended.
    """
    found: list[tuple[int, int]] = []
    before = 0
    for old, reached in (*marks, (version, tokens)):
        if (count := min(reached, tokens) - before) > 0:
            found.append((old, count))
            before += count
    return tuple(found)


def complete(group: Sequence[Rollout]) -> bool:
    """Whether every rollout of a group came to its end."""
    return all(rollout.finish is not Finish.ABORT for rollout in group)


Progress = Callable[[int, int], None]
"""Called with (sequences finished, sequences in all)."""
Tick = Callable[[], None]
"""Called at every step of an engine, which is one token of each running sequence: a sign of life."""


class Engine(Protocol):
    """Samples completions from one model."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """Sample `sampling.n` rollouts for every prompt (token ids); one group a prompt, in order."""
        ...

    @property
    def speculation(self) -> Speculation | None:
        """What drafting has brought so far; `None` where nothing was drafted."""
        ...

    def close(self) -> None:
        """Free the model and stop the engine's processes."""
        ...


class Updatable(ABC):
    """An engine that works step by step. Between two steps requests can be added, and its weights replaced.

    Attributes:
        dtype: type of its weights, such as `bfloat16`.
        tick: called at every step.
    """

    dtype: str
    tick: Tick = staticmethod(lambda: None)
    _asked: dict[int, Any]
    """What is not answered yet, by ticket."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._asked

    @property
    def speculation(self) -> Speculation | None:
        """See `Engine`."""
        return None

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """One group of `sampling.n` rollouts a prompt; see `Engine.generate`. For an engine with nothing else to do.

        Raises:
            RolloutError: the engine refuses the prompts, such as one beyond its context, or this way of sampling.
        """
        ticket = 0
        self.add(ticket, prompts, sampling, progress)
        try:
            while ticket not in (answers := self.step()):
                pass
        except BaseException:
            self.give_up()
            raise
        return answers[ticket]

    @abstractmethod
    def add(
        self, ticket: int, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> None:
        """Take a request, which later steps answer; see `Engine.generate`.

        Args:
            ticket: names the request.
            prompts, sampling, progress: as those of `generate`.
        """

    @abstractmethod
    def step(self) -> dict[int, list[list[Rollout]]]:
        """Go on sampling for a while. Returns the groups of each request that is answered now, by its ticket."""

    @abstractmethod
    def give_up(self) -> None:
        """Forget all requests."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Replace all weights, by name. What is being sampled keeps its tokens and goes on with the new weights.

        Args:
            weights: under the names of the published checkpoint.
            version: what `Rollout.versions` will call them.

        Raises:
            RolloutError: a weight is missing, or has no place in this model.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model and stop the engine's processes."""


class Deferred(ABC):
    """Sampling in two parts, between which something else can be done."""

    @abstractmethod
    def submit(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, expected: Sequence[float] | None = None
    ) -> int:
        """Ask for rollouts without waiting for them.

        Args:
            prompts, sampling: see `Engine.generate`.
            expected: tokens that a completion of each prompt is expected to have, by which several engines share them.

        Returns:
            A ticket, with which the answer is collected.
        """

    @abstractmethod
    def collect(self, ticket: int, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: an engine refuses the request, or was lost too often.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """Both; see `Engine.generate`."""
        return self.collect(self.submit(prompts, sampling), progress)


def derived_seed(seed: int, *parts: object) -> int:
    """A seed of 31 bits for one part of a job: the same parts give the same seed, others an unrelated one."""
    text = "\0".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
