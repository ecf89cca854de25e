"""An engine in a process of its own: on another GPU, beside the trainer, and replaceable when it dies.

    engine = ProcessEngine(RolloutSpec(process=ProcessSpec().on("1")), "path/to/model", seed=0)
    engine.push(weights)                  # for what is asked from now on
    engine.submit(prompts, sampling)      # returns at once
    groups = engine.collect()             # waits
    engine.close()

The engine is lost when its process ends (a crash, the kernel out of memory, `kill -9`) or takes no step for a while (a
kernel that hangs, a stopped process). Then it is started again with the last weights and asked the same once more; a
request carries its seed, so the answer is what it would have been. The process dies with the one that started it.

Only single words go over the pipe. Requests, answers and weights lie in shared memory, so that nobody ever waits for a
process that has stopped in the middle of a message. Several engines may share what is pushed: see `engine_pool`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import Progress, Rollout, RolloutError, Sampling
from pipeline.rollout.shared import FileLock, Heartbeat, PushedWeights, SharedValue, Snapshot
from pipeline.schema.environment import known
from pipeline.schema.pieces import ProcessSpec, RolloutSpec
from rewards.parent import ending, kill_group

if TYPE_CHECKING:
    import torch

    from model.speculative import Speculation

log = logging.getLogger(__name__)

START_SECONDS = 1800.0
"""Longest wait for an engine that starts: a large model is read from a slow disk, and vLLM compiles kernels for it."""
CLOSE_SECONDS = 10.0
"""Longest wait for an engine that is about to end, before it is killed."""
CLOSE_POLL_SECONDS = 0.02
"""Time between two looks at whether it has ended."""
POLL_SECONDS = 0.2
"""Time between two looks at the heartbeat while an answer is awaited."""
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pipeline.rollout.child import main; main()"


@dataclass(frozen=True, slots=True)
class Opening:
    """What the process opens; see `pipeline.rollout.open_engine`."""

    spec: RolloutSpec
    path: str
    seed: int
    logprobs: bool
    for_trainer: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A request: what `Engine.generate` takes, and the weights to sample with, if not those of the model's folder."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    weights: Snapshot | None


class _LostError(Exception):
    """The engine's process has ended or hangs; the message goes on after "it"."""


class Deferred(ABC):
    """Sampling in two parts, between which something else can be done."""

    @abstractmethod
    def submit(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Ask for rollouts without waiting for them; one request at a time."""

    @abstractmethod
    def collect(self, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: an engine refuses the request, or was lost too often.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """Both; see `Engine.generate`."""
        self.submit(prompts, sampling)
        return self.collect(progress)


class ProcessEngine(Deferred):
    """An engine in a process of its own; see `pipeline.rollout.base.Engine`. It starts at once, in the background.

    To be made in a thread that lives as long as the engine is wanted: the kernel ends the process with that thread.

    Args:
        spec: what to open; its `process` says how.
        path: folder or hub id.
        seed: seed of the engine.
        logprobs: whether rollouts carry the log-probabilities of their tokens.
        for_trainer: whether those are at the temperature of sampling.
        weights: the memory that weights are pushed into; of its own if not given.
        lock: held while the engine starts, which measures the memory that is free on its GPU.

    Attributes:
        spec: what is open.
        restarts: how often the engine was lost and started again so far.
        speculation: what drafting brought in the requests that were collected; `None` if nothing was drafted.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        path: str,
        seed: int = 0,
        logprobs: bool = False,
        for_trainer: bool = False,
        weights: PushedWeights | None = None,
        lock: FileLock | None = None,
    ) -> None:
        self.spec, self.settings = spec, spec.process or ProcessSpec()
        self.restarts = 0
        self._told: Speculation | None = None
        self._told_before: Speculation | None = None
        self._opening = Opening(spec.model_copy(update={"process": None}), path, seed, logprobs, for_trainer)
        self._request, self._answer, self._heartbeat = SharedValue(), SharedValue(), Heartbeat()
        self._weights, self._lock = weights or PushedWeights(), lock or FileLock()
        self._own = [self._request.close, self._answer.close, self._heartbeat.close]
        self._own += [] if weights else [self._weights.close]
        self._own += [] if lock else [self._lock.close]
        self._job: Job | None = None
        self._dtype: str | None = None
        self._closed = False
        self._start()

    @property
    def dtype(self) -> str:
        """Type of the engine's weights, such as `bfloat16`; waits until it has started.

        Raises:
            RolloutError: it does not start.
        """
        self._insist(self._be_ready)
        assert self._dtype is not None
        return self._dtype

    def push(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Sample with these weights from the next request on. They are copied before this returns."""
        self._must_be_idle()
        self._weights.push(weights)

    def submit(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Ask for rollouts without waiting for them; one request at a time."""
        self._must_be_idle()
        self._job = Job(prompts, sampling, self._weights.last)
        self._heartbeat.progress(0, len(prompts) * sampling.n)
        self._request.put(self._job)
        self._ask()

    def collect(self, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: the engine refuses the request, or was lost too often.
        """
        if not self.busy:
            raise RolloutError("nothing was submitted")
        try:
            self._insist(lambda: self._finish(progress))
        except RolloutError:
            self._job = None
            raise
        self._job = None
        groups: list[list[Rollout]] = self._answer.get()
        return groups

    @property
    def speculation(self) -> Speculation | None:
        """What drafting brought in all requests so far; each process of the engine counts anew."""
        return added(self._told_before, self._told)

    @property
    def progress(self) -> tuple[int, int]:
        """Sequences finished, and sequences in all, of what was submitted last."""
        return self._heartbeat.read()[1:]

    @property
    def busy(self) -> bool:
        """Whether something was submitted and not yet collected."""
        return self._job is not None

    def close(self) -> None:
        """End the process; what is in flight is given up."""
        if self._closed:
            return
        self._closed = True
        self._pipe.close()  # which tells an idle engine to end
        if not self.busy and self._dtype is not None:
            self._let_end()
        self._kill()
        self._job = None
        for close in self._own:
            close()

    def _must_be_idle(self) -> None:
        if self._closed:
            raise RolloutError("the engine is closed")
        if self.busy:
            raise RolloutError("the engine is still at work on the last request: collect it first")

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        self._dtype = None
        shared = (self._request, self._answer, self._heartbeat, self._lock, *self._weights.files)
        descriptors = [theirs.fileno(), *(each.fd for each in shared)]
        command = [sys.executable, "-c", _START, json.dumps(sys.path), str(os.getpid()), *map(str, descriptors)]
        self._process = subprocess.Popen(
            command,
            pass_fds=descriptors,
            env={**os.environ, **known(self.settings.env)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._tell(self._opening)

    def _tell(self, word: object) -> None:
        with contextlib.suppress(OSError):  # a process that has ended is noticed by whoever waits for its answer
            self._pipe.send(word)

    def _ask(self) -> None:
        self._tell("generate")

    def _insist(self, wait: Callable[[], object]) -> None:
        """Wait for something, and where the engine is lost meanwhile, start it again, a limited number of times."""
        for attempt in range(self.settings.restarts + 1):
            try:
                self._be_ready()
                wait()
                return
            except _LostError as lost:
                self._kill()
                if attempt == self.settings.restarts:
                    self._job = None
                    self.close()
                    raise RolloutError(
                        f"the engine's process was lost {attempt + 1} times in a row; in the end it {lost}. The log has"
                        " what it said"
                    ) from lost
                log.warning("the engine's process %s; it is started again, and what it was asked is redone", lost)
            self.restarts += 1
            self._told_before, self._told = self.speculation, None
            self._start()
            if self.busy:
                self._ask()

    def _be_ready(self) -> None:
        if self._dtype is None:
            self._dtype = str(self._hear("ready", START_SECONDS))

    def _finish(self, progress: Progress | None) -> None:
        self._told = self._hear("done", self.settings.deadline, progress)

    def _hear(self, wanted: str, seconds: float, progress: Progress | None = None) -> Any:
        """Wait for a word of the engine for as long as it shows signs of life; returns what comes with the word."""
        seen, since = self._heartbeat.read(), time.monotonic()
        while not self._pipe.poll(POLL_SECONDS):
            heartbeat = self._heartbeat.read()
            if heartbeat != seen:
                if progress is not None and heartbeat[1:] != seen[1:]:
                    progress(*heartbeat[1:])
                seen, since = heartbeat, time.monotonic()
            elif time.monotonic() - since > seconds:
                raise _LostError(f"took no step for {seconds:g} s")
            elif self._has_ended():
                break
        try:
            word, text = self._pipe.recv() if self._pipe.poll() else ("", "")
        except (EOFError, OSError):
            word = text = ""
        if word == "refused":
            raise RolloutError(text)
        if word != wanted:
            self._let_end()
            raise _LostError(f"said {word!r} instead of {wanted!r}" if word else ending(self._kill()))
        return text

    def _has_ended(self) -> bool:
        """Whether the process has ended; it stays a zombie, so that its number and its group's remain its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _let_end(self) -> None:
        """Give a process that is about to end the time to do so."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._process.returncode is None and not self._has_ended() and time.monotonic() < until:
            time.sleep(CLOSE_POLL_SECONDS)

    def _kill(self) -> int:
        """End the process, with the workers that it may have started; returns its exit code."""
        if self._process.returncode is None:
            kill_group(self._process.pid)
            self._process.wait()
        self._pipe.close()
        return self._process.returncode


def added(one: Speculation | None, other: Speculation | None) -> Speculation | None:
    """What drafting brought in both."""
    return other if one is None else one if other is None else one + other
