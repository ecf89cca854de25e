"""The local sandbox: as many workers as there are cores, each with a zygote; and the proof that it isolates."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
from collections.abc import Mapping
from queue import LifoQueue
from typing import Any, Protocol

from rewards.sandbox.bubblewrap import SandboxError
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.probe import prove
from rewards.sandbox.worker import Ending, Outcome, Worker, WorkerDiedError

log = logging.getLogger(__name__)

Payload = Mapping[str, Any]


class Sandbox(Protocol):
    """Runs jobs (see `rewards.sandbox.inside.play`), from any number of threads at once.

    Attributes:
        workers: how many jobs run at one time; more threads than that wait.
    """

    workers: int

    def run(self, payload: Payload, solution: Payload | None = None) -> Outcome:
        """Run a job. With `solution`, the payload is a test suite that questions it. Never raises for what ran."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class LocalSandbox:
    """Jobs on this machine: in a zygote's namespaces, else in a bubblewrap each, else (only if asked) unprotected.

    Args:
        limits: what a job may use.
        workers: jobs at one time; the cores of this process if not given.
        unsafe_local: run model code as bare child processes of yours. For machines that hold nothing of value.
        nested: `False` forgoes zygotes and starts a bubblewrap for every job.

    Raises:
        SandboxError: the sandbox does not start or does not isolate; the message says what to install or allow.
    """

    def __init__(
        self, limits: Limits | None = None, workers: int | None = None, unsafe_local: bool = False, nested: bool = True
    ) -> None:
        self.limits = limits or Limits()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._guarded, self._nested = not unsafe_local, nested and not unsafe_local
        if unsafe_local:
            log.warning("model code runs unprotected on this machine (unsafe_local)")
        else:
            self._nested = self._prove(nested)
        self._idle: LifoQueue[Worker] = LifoQueue()
        for _ in range(self.workers):
            self._idle.put(self._worker())

    def run(self, payload: Payload, solution: Payload | None = None) -> Outcome:
        """Run a job; see `Sandbox.run`."""
        worker = self._idle.get()
        try:
            return _attempt(worker, [payload] if solution is None else [payload, solution])
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all zygotes; a later job starts them again."""
        for _ in range(self.workers):
            worker = self._idle.get()
            worker.close()
            self._idle.put(worker)

    @property
    def kind(self) -> str:
        """How jobs are isolated: `zygote`, `one-shot` or `unsafe`."""
        return "zygote" if self._nested else "one-shot" if self._guarded else "unsafe"

    def _worker(self) -> Worker:
        return Worker(self.limits, self._nested, self._guarded)

    def _prove(self, nested: bool) -> bool:
        """Whether nested namespaces isolate; if they cannot be had, one-shot bubblewrap must."""
        failure: SandboxError | None = None
        for attempt in (True, False) if nested else (False,):
            worker = Worker(self.limits, attempt)
            try:
                prove(lambda payload: _attempt(worker, [payload]), self.limits)  # noqa: B023  # called at once
            except SandboxError as error:
                failure = failure or error
            else:
                if nested and not attempt:
                    log.warning("no nested namespaces here (%s): a slower sandbox, one bubblewrap a job", failure)
                return attempt
            finally:
                worker.close()
        raise failure or SandboxError("no sandbox")


def _attempt(worker: Worker, payloads: list[Payload]) -> Outcome:
    """Run a job, once more if its worker dies; a job that kills two workers that are sound otherwise is to blame."""
    for last in (False, True):
        nonce = secrets.token_hex(16)
        try:
            end, stdout, results = worker.run([_pack(payload, nonce) for payload in payloads])
        except WorkerDiedError as error:
            log.warning("a sandbox died: %s", error)
            if last:
                return _blame(worker, str(error))
        except SandboxError as error:
            return Outcome(Ending.BROKEN, detail=str(error))
        else:
            return _outcome(end, stdout, [read_records(lines, nonce) for lines in results])
    raise AssertionError


def _pack(payload: Payload, nonce: str) -> bytes:
    return json.dumps({**payload, "nonce": nonce}).encode()


def _outcome(end: Mapping[str, Any], stdout: bytes, members: list[list[dict[str, Any]] | None]) -> Outcome:
    ending, code, ms = Ending(end["reason"]), int(end["codes"][0]), float(end["ms"])
    for number, (records, own) in enumerate(zip(members, end["codes"], strict=True)):
        # The line that says it is ready comes before any code of a model, and cannot be taken back. Whoever is
        # questioned may be ended before that, by a test suite that needed no answer.
        if records == [] and not (number > 0 and own == -signal.SIGKILL):
            why = os.strerror(own) if own > 0 else f"{ending}, signal {-own}"
            return Outcome(Ending.BROKEN, own, ms=ms, detail=f"a job could not be set up: {why}")
    records = members[0]
    sound = records is not None and records[0] == {"ready": True}
    return Outcome(ending, code, stdout, records[1:] if records and sound else None, ms)


def read_records(results: bytes, nonce: str) -> list[dict[str, Any]] | None:
    """The lines of a result channel; `None` if any of them was not written by the runner, as the nonce shows."""
    if not results:
        return []
    if not results.endswith(b"\n"):
        return None
    records = []
    for line in results[:-1].split(b"\n"):
        mark, _, text = line.partition(b" ")
        if not secrets.compare_digest(mark, nonce.encode()):
            return None
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if type(record) is not dict:
            return None
        records.append(record)
    return records


def _blame(worker: Worker, detail: str) -> Outcome:
    probe: Payload = {"kind": "calls", "code": "def f(): return 1", "setup": "", "calls": ["f()"], "stop": True}
    nonce = secrets.token_hex(16)
    try:
        _, _, results = worker.run([_pack(probe, nonce)])
    except (WorkerDiedError, SandboxError) as error:
        return Outcome(Ending.BROKEN, detail=str(error))
    sound = read_records(results[0], nonce) == [{"ready": True}, {"value": 1}]
    return Outcome(Ending.LETHAL if sound else Ending.BROKEN, detail=detail)
