"""Several engines that share the prompts, each in a process of its own; on several GPUs, or together on one.

    pool = EnginePool(RolloutSpec(process=ProcessSpec(devices=["1", "1"])), "path/to/model", seed=0)

It is used as one `ProcessEngine` is. Each has its own copy of the weights and its own cache, and `gpu_memory` is the
share of each. Engines of one GPU take turns on it, and start one after another, since each measures the memory that is
free.

Which engine samples a prompt, and with what seed, follows from the prompt's place, the lengths that are expected, and
the number of engines, so the same request gives the same answer again. Another number of engines gives another one, as
likely.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from itertools import count
from multiprocessing.connection import wait
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.rollout.base import Deferred, Progress, Rollout, RolloutError, Sampling, derived_seed
from pipeline.rollout.process import POLL_SECONDS, ProcessEngine, added
from pipeline.rollout.shared import FileLock, PushedWeights
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec

if TYPE_CHECKING:
    import torch

    from model.speculative import Speculation


DONE = object()
"""What a wait that is over yields."""


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
                spec.on(device),
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
        self._tickets = count()
        self._asked: dict[int, list[tuple[ProcessEngine, int, list[int]]]] = {}

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
    def idle_seconds(self) -> float:
        """How long an engine has waited for something to do so far, on average."""
        return fmean(engine.idle_seconds for engine in self._engines)

    @property
    def busy(self) -> bool:
        """Whether something was submitted and not yet collected."""
        return bool(self._asked)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """See `ProcessEngine.push`. They are copied once for all."""
        for engine in self._engines:
            engine.has_loaded()
        self._weights.push(weights, version)
        for engine in self._engines:
            engine.fetch()

    def submit(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, expected: Sequence[float] | None = None
    ) -> int:
        """See `Deferred`."""
        ticket = next(self._tickets)
        asked = self._asked[ticket] = []
        for number, share in enumerate(shared(len(prompts), len(self._engines), expected)):
            enough = sampling.enough and math.ceil(sampling.enough * len(share) / max(1, len(prompts)))
            theirs = replace(sampling, seed=seed_of(sampling.seed, number), enough=enough)
            engine = self._engines[number]
            asked.append((engine, engine.submit([prompts[at] for at in share], theirs), share))
        return ticket

    def collect(self, ticket: int, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: an engine refuses the request, or was lost too often.
        """
        asked = self._asked.pop(ticket, None)
        if asked is None:
            raise RolloutError("nothing was submitted")

        def told() -> list[int]:
            return [sum(counts) for counts in zip(*(engine.progress for engine, *_ in asked), strict=True)]

        groups: list[list[Rollout]] = [[]] * sum(len(share) for *_, share in asked)
        refused: list[RolloutError] = []
        waiting = [(engine.awaited(theirs, pause=0.0), engine, theirs, share) for engine, theirs, share in asked]
        before = told()
        while waiting:  # for all of them: one that is lost is started again at once
            for one in list(waiting):
                steps, engine, theirs, share = one
                try:
                    if next(steps, DONE) is not DONE:
                        continue
                    for at, group in zip(share, engine.collect(theirs), strict=True):
                        groups[at] = group
                except RolloutError as error:  # the others are heard all the same, and are idle then
                    refused.append(error)
                waiting.remove(one)
            if progress is not None and (now := told()) != before:
                progress(*now)
                before = now
            if waiting:
                wait([engine.pipe for _, engine, *_ in waiting], POLL_SECONDS)
        if refused:
            raise refused[0]
        return groups

    def is_ready(self, ticket: int) -> bool:
        """Whether what was submitted can be collected without waiting."""
        return all(engine.is_ready(theirs) for engine, theirs, _ in self._asked[ticket])

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


def shared(prompts: int, engines: int, expected: Sequence[float] | None = None) -> list[list[int]]:
    """Which prompts each engine samples, in ascending order; engines that get none come last, and are left out.

    Args:
        prompts: how many there are; where there is none, the first engine is asked for none.
        engines: how many there are.
        expected: tokens that each is expected to take. The longest come first, each to the engine that has least to do;
            without them, prompts go round.
    """
    if expected is None:
        return [list(range(number, prompts, engines)) for number in range(min(engines, max(1, prompts)))]
    shares: list[list[int]] = [[] for _ in range(engines)]
    held = [(0.0, 0, number) for number in range(engines)]
    for at in sorted(range(prompts), key=lambda at: -expected[at]):
        tokens, taken, number = heapq.heappop(held)
        shares[number].append(at)
        heapq.heappush(held, (tokens + expected[at], taken + 1, number))
    return [sorted(share) for share in shares if share] or [[]]


def seed_of(seed: int, engine: int) -> int:
    """The seed of one engine; the first has the one that is given, as if it were alone."""
    return derived_seed(seed, "engine", engine) if engine else seed
