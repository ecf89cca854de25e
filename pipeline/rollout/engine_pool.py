"""Several engines that share the prompts, each in a process of its own; on several GPUs, or together on one.

    pool = EnginePool(RolloutSpec(process=ProcessSpec(devices=["1", "1"])), "path/to/model", seed=0)

It is used as one `ProcessEngine` is. Each has its own copy of the weights and its own cache, and `gpu_memory` is the
share of each. Engines of one GPU take turns on it, and start one after another, since each measures the memory that is
free.

Which engine samples a prompt, and with what seed, follows from the prompt's place and the number of engines, so the
same request gives the same answer again. Another number of engines gives another one, as likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from pipeline.rollout.base import Progress, Rollout, RolloutError, Sampling, derived_seed
from pipeline.rollout.process import Deferred, ProcessEngine, added
from pipeline.rollout.shared import FileLock, PushedWeights
from pipeline.schema.pieces import ProcessSpec, RolloutSpec

if TYPE_CHECKING:
    import torch

    from model.speculative import Speculation


class EnginePool(Deferred):
    """Engines in processes of their own behind the interface of one; see `pipeline.rollout.process.ProcessEngine`.

    Args:
        spec: what to open; `process.devices` has the GPUs of each engine.
        path, seed, logprobs, for_trainer: as those of `ProcessEngine`.
    """

    def __init__(
        self, spec: RolloutSpec, path: str, seed: int = 0, logprobs: bool = False, for_trainer: bool = False
    ) -> None:
        settings = spec.process or ProcessSpec()
        self._weights = PushedWeights()
        self._locks = {device: FileLock() for device in settings.devices}
        self._engines = [
            ProcessEngine(
                spec.model_copy(update={"process": settings.on(device)}),
                path,
                seed_of(seed, number),
                logprobs,
                for_trainer,
                self._weights,
                self._locks[device],
            )
            for number, device in enumerate(settings.devices)
        ]
        self._closed = False

    @property
    def dtype(self) -> str:
        """Type of the engines' weights; waits until all have started.

        Raises:
            RolloutError: one does not start.
        """
        types = {engine.dtype for engine in self._engines}
        return types.pop()

    @property
    def restarts(self) -> int:
        """How often an engine was lost and started again so far."""
        return sum(engine.restarts for engine in self._engines)

    @property
    def speculation(self) -> Speculation | None:
        """What drafting brought in all requests so far."""
        return reduce(added, (engine.speculation for engine in self._engines))

    @property
    def busy(self) -> bool:
        """Whether something was submitted and not yet collected."""
        return any(engine.busy for engine in self._engines)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Sample with these weights from the next request on. They are copied, once for all, before this returns."""
        if self.busy:
            raise RolloutError("the engines are still at work on the last request: collect it first")
        self._weights.push(weights)

    def submit(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Ask for rollouts without waiting for them; one request at a time."""
        if self.busy:
            raise RolloutError("the engines are still at work on the last request: collect it first")
        for number, engine in enumerate(self._engines[: max(1, len(prompts))]):
            share = prompts[number :: len(self._engines)]
            enough = sampling.enough and math.ceil(sampling.enough * len(share) / max(1, len(prompts)))
            engine.submit(share, replace(sampling, seed=seed_of(sampling.seed, number), enough=enough))

    def collect(self, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: an engine refuses the request, or was lost too often.
        """
        if not self.busy:
            raise RolloutError("nothing was submitted")
        asked = [engine for engine in self._engines if engine.busy]  # the first ones

        def told(*_: int) -> None:
            assert progress is not None
            finished, totals = zip(*(engine.progress for engine in asked), strict=True)
            progress(sum(finished), sum(totals))

        shares, refused = [], []
        for engine in asked:
            try:
                shares.append(engine.collect(progress and told))
            except RolloutError as error:  # the others are heard all the same, and are idle then
                refused.append(error)
        if refused:
            raise refused[0]
        groups: list[list[Rollout]] = [[]] * sum(map(len, shares))
        for number, share in enumerate(shares):
            groups[number :: len(self._engines)] = share
        return groups

    def close(self) -> None:
        """End the processes; what is in flight is given up."""
        if self._closed:
            return
        self._closed = True
        with ThreadPoolExecutor(len(self._engines)) as pool:  # each may wait for its process to end
            list(pool.map(ProcessEngine.close, self._engines))
        self._weights.close()
        for lock in self._locks.values():
            lock.close()


def seed_of(seed: int, engine: int) -> int:
    """The seed of one engine; the first has the one that is given, as if it were alone."""
    return derived_seed(seed, "engine", engine) if engine else seed
