"""What runs in the process of an engine: it opens the engine, and answers what `pipeline.rollout.process` sends."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

from pipeline import gpus
from pipeline.rollout import open_updatable, preload
from pipeline.rollout.base import RolloutError, Updatable
from pipeline.rollout.shared import FileLock, Heartbeat, Job, Opening, Placed, SharedValue, Snapshot, WeightFile
from rewards.parent import end_with_parent, guard_group


def main() -> None:
    """Open an engine, and answer requests until the other side hangs up.

    A refusal of the engine is passed on as a message. Any other exception is, too, and ends the process, with its
    traceback in the log: an engine that has failed in an unknown way, or is out of memory, is not asked again.
    """
    parent, *descriptors = map(int, sys.argv[2:])
    if not end_with_parent(parent):
        sys.exit(1)
    sockets = Path(tempfile.mkdtemp(prefix="z"))  # a short name: those of sockets are limited
    guard_group(sockets)  # an engine may have processes of its own
    os.environ.setdefault("VLLM_RPC_BASE_PATH", str(sockets))  # by which they talk, and which vLLM leaves behind
    gpus.keep()
    heartbeat = Heartbeat(descriptors[1])
    heartbeat.tick()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    pipe = Connection(descriptors[0])
    files = (WeightFile(descriptors[3]), WeightFile(descriptors[4]))
    opening: Opening = pipe.recv()
    try:
        preload(opening.spec)
        with FileLock(descriptors[2]).held():
            engine = open_updatable(opening.spec, opening.path, opening.seed, opening.logprobs, opening.for_trainer)
        engine.tick = heartbeat.tick
        pipe.send(("ready", engine.dtype))
        served = Served(engine, pipe, heartbeat, files, SharedValue(descriptors[5]))
        while served.hears():
            served.step()
    except RolloutError as error:
        pipe.send(("refused", (None, str(error))))
        return
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        raise
    engine.close()


class Served:
    """An engine, step by step, with what comes through the pipe taken in between two steps.

    Args:
        engine: what samples.
        pipe: to the process that asks.
        heartbeat, files, told: shared with it; see `pipeline.rollout.shared.PushedWeights`.
    """

    def __init__(
        self,
        engine: Updatable,
        pipe: Connection,
        heartbeat: Heartbeat,
        files: tuple[WeightFile, WeightFile],
        told: SharedValue,
    ) -> None:
        self.engine, self.pipe, self.heartbeat, self.files, self.told = engine, pipe, heartbeat, files, told
        self._answers: dict[int, SharedValue] = {}
        self._fault: str | None = None
        """Why the engine has no whole weights, if it has none."""

    def hears(self) -> bool:
        """Take in what was sent; waits for it where there is nothing to do. False when nothing will come any more."""
        began = time.monotonic()
        waited = self.engine.idle
        while self.engine.idle or self.pipe.poll():
            try:
                word, what = self.pipe.recv()
                if waited:
                    self.heartbeat.idle(time.monotonic() - began)
                if word == "weights":
                    self._load()
                else:
                    self._take(what)
            except (EOFError, ConnectionResetError):
                return False
            began, waited = time.monotonic(), self.engine.idle
        return True

    def step(self) -> None:
        """A step of the engine. What it refuses then is every request that it has."""
        try:
            for ticket, groups in self.engine.step().items():
                answer = self._answers.pop(ticket)
                answer.put(groups)
                answer.close()
                self.pipe.send(("done", (ticket, self.engine.speculation)))
        except (RolloutError, ValueError) as error:
            self._refuse_all(str(error))

    def _take(self, ticket: int) -> None:
        answer = self._answers[ticket] = SharedValue(recv_handle(self.pipe))
        job: Job = answer.get()
        fault = self._fault
        if fault is None:
            try:
                self.engine.add(ticket, job.prompts, job.sampling, self.heartbeat.progress)
            except (RolloutError, ValueError) as error:
                fault = str(error)
        if fault is not None:
            self._refuse(ticket, fault)

    def _load(self) -> None:
        snapshot: Snapshot = self.told.get()
        try:
            weights = Placed(self.files[snapshot.number % 2], snapshot.places, self.heartbeat.tick)
            self.engine.load_weights(weights, snapshot.version)
            self._fault = None
        except (RolloutError, ValueError) as error:
            self._fault = str(error)
            self._refuse_all(self._fault)
        self.pipe.send(("loaded", snapshot.number))

    def _refuse(self, ticket: int, why: str) -> None:
        self._answers.pop(ticket).close()
        self.pipe.send(("refused", (ticket, why)))

    def _refuse_all(self, why: str) -> None:
        self.engine.give_up()
        for ticket in list(self._answers):
            self._refuse(ticket, why)
