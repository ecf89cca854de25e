"""An engine in a process of its own: on another GPU, beside the trainer, and replaceable when it dies.

    engine = ProcessEngine(RolloutSpec(process=ProcessSpec().on("1")), "path/to/model", seed=0)
    engine.push(weights)                           # returns once they are copied
    ticket = engine.submit(prompts, sampling)      # returns at once; there may be several
    groups = engine.collect(ticket)                # waits
    engine.close()

Weights that are pushed while the engine samples are taken between two of its steps: what it has written stays, and goes
on with the new weights. Who wants a request to be sampled with one version pushes while nothing is asked.

The engine is lost when its process ends (a crash, the kernel out of memory, `kill -9`) or takes no step for a while (a
kernel that hangs, a stopped process). Then it is started again with the last weights and asked once more for what it
has not answered. A request carries its seed, so the answer is what it would have been, if the request was the only one
and no weights were pushed meanwhile. The process dies with the one that started it.

Only short messages go over the pipe. Requests, answers and weights lie in shared memory, so that nobody ever waits for
a process that has stopped in the middle of a message. Several engines may share what is pushed: see `engine_pool`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing import Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import Deferred, Progress, Rollout, RolloutError, Sampling
from pipeline.rollout.shared import FileLock, Heartbeat, Job, Opening, PushedWeights, SharedValue
from pipeline.schema.environment import known
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec
from rewards.parent import end_group, ending

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


@dataclass(slots=True)
class _Request:
    """What was asked and not yet collected.

    Attributes:
        job: the request itself.
        shared: holds it until it is answered, and then the answer.
        answered: whether it was.
        refused: why it is not going to be.
    """

    job: Job
    shared: SharedValue
    answered: bool = False
    refused: str | None = None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.answered or self.refused is not None


class _LostError(Exception):
    """The engine's process has ended or hangs; the message goes on after "it"."""


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
        pipe: over which the engine speaks; another one once it was started again.
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
        self._heartbeat = Heartbeat()
        self._weights, self._lock = weights or PushedWeights(), lock or FileLock()
        self._own = [self._heartbeat.close]
        self._own += [] if weights else [self._weights.close]
        self._own += [] if lock else [self._lock.close]
        self._requests: dict[int, _Request] = {}
        self._tickets = count()
        self._dtype: str | None = None
        self._loaded = 0
        self._closed = self._was_ready = False
        self._failure = ""
        """What the process said of the exception that ends it."""
        self._start()

    @property
    def dtype(self) -> str:
        """Type of the engine's weights, such as `bfloat16`; waits until it has started.

        Raises:
            RolloutError: it does not start.
        """
        self._wait(lambda: True)
        assert self._dtype is not None
        return self._dtype

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Sample with these weights from the next step on. They are copied before this returns.

        Args:
            weights: under the names of the published checkpoint.
            version: what `Rollout.versions` will call them.
        """
        self.has_loaded()
        self._weights.push(weights, version)
        self.fetch()

    def has_loaded(self) -> None:
        """Wait until the engine has read the weights that were pushed last: others may be written over older ones."""
        self._must_be_open()
        if self._weights.last is not None:
            self._wait(lambda: self._loaded == self._weights.number)

    def fetch(self) -> None:
        """Have the engine read the weights that were pushed last."""
        self._tell(("weights", None))

    def submit(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, expected: Sequence[float] | None = None
    ) -> int:
        """See `Deferred`."""
        self._must_be_open()
        ticket = next(self._tickets)
        self._requests[ticket] = _Request(Job(prompts, sampling), SharedValue())
        self._heartbeat.progress(0, len(prompts) * sampling.n)
        self._ask(ticket)
        return ticket

    def collect(self, ticket: int, progress: Progress | None = None) -> list[list[Rollout]]:
        """Wait for what was submitted.

        Raises:
            RolloutError: the engine refuses the request, or was lost too often.
        """
        request, told = self._requests.get(ticket), self.progress
        if request is None:
            raise RolloutError("nothing was submitted")
        try:
            for _ in self.awaited(ticket):
                if progress is not None and self.progress != told:
                    told = self.progress
                    progress(*told)
            if request.refused is not None:
                raise RolloutError(request.refused)
            groups: list[list[Rollout]] = request.shared.get()
        finally:
            if self._requests.pop(ticket, None) is not None:
                request.shared.close()
        return groups

    def awaited(self, ticket: int, pause: float = POLL_SECONDS) -> Iterator[None]:
        """Wait until what was submitted can be collected, in steps, so that several engines can be waited for.

        Args:
            ticket: of what was submitted.
            pause: seconds of a step in which nothing is heard.

        Raises:
            RolloutError: the engine was lost too often.
        """
        request = self._requests[ticket]
        return self._waits(lambda: request.settled, pause)

    def is_ready(self, ticket: int) -> bool:
        """Whether what was submitted can be collected without waiting."""
        with contextlib.suppress(EOFError, OSError):  # a process that has ended is noticed by whoever waits for it
            while not self._requests[ticket].settled and self.pipe.poll():
                self._take(*self.pipe.recv())
        return self._requests[ticket].settled

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
        return bool(self._requests)

    @property
    def idle_seconds(self) -> float:
        """How long the engine has waited for something to do so far."""
        return self._heartbeat.idle_seconds

    def close(self) -> None:
        """End the process; what is in flight is given up."""
        if self._closed:
            return
        self._closed = True
        self.pipe.close()  # which tells an idle engine to end
        if not self.busy and self._dtype is not None:
            self._let_end()
        self._kill()
        for request in self._requests.values():
            request.shared.close()
        self._requests.clear()
        for close in self._own:
            close()

    def _must_be_open(self) -> None:
        if self._closed:
            raise RolloutError("the engine is closed")

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        self._dtype, self._loaded, self._failure = None, 0, ""
        shared = (self._heartbeat, self._lock, *self._weights.files, self._weights.told)
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
            self.pipe.send(word)

    def _ask(self, ticket: int) -> None:
        request = self._requests[ticket]
        request.shared.put(request.job)  # anew: there may be half of an answer
        self._tell(("generate", ticket))
        with contextlib.suppress(OSError):
            send_handle(self.pipe, request.shared.fd, self._process.pid)

    def _wait(self, until: Callable[[], bool]) -> None:
        for _ in self._waits(until):
            pass

    def _waits(self, until: Callable[[], bool], pause: float = POLL_SECONDS) -> Iterator[None]:
        """Wait for something, and where the engine is lost meanwhile, start it again, a limited number of times."""
        for attempt in range(self.settings.restarts + 1):
            try:
                yield from self._hears(lambda: self._dtype is not None, START_SECONDS, pause)
                yield from self._hears(until, self.settings.deadline, pause)
                return
            except _LostError as lost:
                self._kill()
                if attempt == self.settings.restarts:
                    self.close()
                    raise RolloutError(
                        f"the engine's process was lost {attempt + 1} times in a row; in the end it {lost}. The log has"
                        " what it said"
                    ) from lost
                log.warning("the engine's process %s; it is started again, and what it was asked is redone", lost)
            self.restarts += 1
            self._told_before, self._told = self.speculation, None
            self._start()
            if self._weights.last is not None:
                self.fetch()
            for ticket, request in self._requests.items():
                if not request.settled:
                    self._ask(ticket)

    def _hears(self, until: Callable[[], bool], seconds: float, pause: float) -> Iterator[None]:
        """Take the engine's words until something is the case, for as long as it shows signs of life."""
        seen, since = self._heartbeat.read(), time.monotonic()
        while not until():
            if self.pipe.poll(pause):
                self._listen()
                continue
            heartbeat = self._heartbeat.read()
            if heartbeat != seen:
                seen, since = heartbeat, time.monotonic()
            elif time.monotonic() - since > (limit := self.settings.deadline if self._is_stopped() else seconds):
                raise _LostError(f"took no step for {limit:g} s")
            elif self._has_ended() and not self.pipe.poll():
                raise self._lost()
            yield

    def _listen(self) -> None:
        """Take the next word, which is there, or the end of the process."""
        try:
            word, what = self.pipe.recv()
        except (EOFError, OSError):
            self._let_end()
            raise self._lost() from None
        self._take(word, what)

    def _lost(self) -> _LostError:
        """How the process, which has ended or is about to, ended."""
        how = ending(self._kill())
        return _LostError(f"{how} ({self._failure})" if self._failure else how)

    def _take(self, word: str, what: Any) -> None:
        if word == "ready":
            self._dtype, self._was_ready = what, True
        elif word == "failed":
            if not self._was_ready:  # and would fail the same way again
                raise RolloutError(f"the engine does not start: {what}. The log has its traceback")
            self._failure = what
        elif word == "loaded":
            self._loaded = what
        elif word == "done":
            ticket, self._told = what
            self._requests[ticket].answered = True
        else:
            ticket, why = what
            if ticket is None:
                raise RolloutError(why)
            self._requests[ticket].refused = why

    def _has_ended(self) -> bool:
        """Whether the process has ended; it stays a zombie, so that its number and its group's remain its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _is_stopped(self) -> bool:
        """Whether somebody has stopped the process (SIGSTOP), which may be starting."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] == "T"

    def _let_end(self) -> None:
        """Give a process that is about to end the time to do so."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._process.returncode is None and not self._has_ended() and time.monotonic() < until:
            time.sleep(CLOSE_POLL_SECONDS)

    def _kill(self) -> int:
        """End the process, with the workers that it may have started; returns its exit code."""
        if self._process.returncode is None:
            end_group(self._process.pid)
            self._process.wait()
        self.pipe.close()
        return self._process.returncode


def added(one: Speculation | None, other: Speculation | None) -> Speculation | None:
    """What drafting brought in both."""
    return other if one is None else one if other is None else one + other
