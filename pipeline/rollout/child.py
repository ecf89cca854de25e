"""The process of an engine; `pipeline.rollout.process` starts it and is the other side of every word here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pipeline.rollout import open_updatable, preload
from pipeline.rollout.base import RolloutError
from pipeline.rollout.process import Job, Opening
from pipeline.rollout.shared import FileLock, Heartbeat, SharedValue, WeightFile
from rewards.parent import end_with_parent

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Open an engine, and answer requests until the other side hangs up.

    What the engine refuses is told in words. Any other exception ends the process, with its traceback in the log: an
    engine that has failed in an unknown way is not asked again.
    """
    parent, *descriptors = map(int, sys.argv[2:])
    if not end_with_parent(parent):
        sys.exit(1)
    heartbeat = Heartbeat(descriptors[3])
    heartbeat.tick()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    pipe = Connection(descriptors[0])
    request, answer = SharedValue(descriptors[1]), SharedValue(descriptors[2])
    files = (WeightFile(descriptors[5]), WeightFile(descriptors[6]))
    opening: Opening = pipe.recv()
    preload(opening.spec)
    try:
        with FileLock(descriptors[4]).held():
            engine = open_updatable(opening.spec, opening.path, opening.seed, opening.logprobs, opening.for_trainer)
    except RolloutError as error:
        pipe.send(("refused", str(error)))
        return
    engine.tick = heartbeat.tick
    pipe.send(("ready", engine.dtype))
    version = 0

    def weights_of(job: Job) -> Iterator[tuple[str, torch.Tensor]]:
        assert job.weights is not None
        for weight in files[job.weights.version % 2].read(job.weights.places):
            heartbeat.tick()
            yield weight

    while _called(pipe):
        job: Job = request.get()
        try:
            if job.weights is not None and job.weights.version != version:
                engine.load_weights(weights_of(job))
                version = job.weights.version
            answer.put(engine.generate(job.prompts, job.sampling, heartbeat.progress))
        except (RolloutError, ValueError) as error:
            pipe.send(("refused", str(error)))
            continue
        pipe.send(("done", getattr(engine, "speculation", None)))
    engine.close()


def _called(pipe: Connection) -> bool:
    """Wait for the next request; false when there will be none."""
    try:
        pipe.recv()
    except (EOFError, ConnectionResetError):
        return False
    return True
