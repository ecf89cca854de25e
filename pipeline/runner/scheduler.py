"""Starts the stages of a run as their inputs appear, watches them, and publishes them as they end."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.cluster.attempt import leave
from pipeline.cluster.slots import ClusterSlots
from pipeline.files.lease import Lease
from pipeline.gpus import Gpu
from pipeline.placement import Placed
from pipeline.recipe import Recipe
from pipeline.records import kept
from pipeline.runner import scratch
from pipeline.runner.early import Early, Waiting
from pipeline.runner.forkserver import ForkServer
from pipeline.runner.graph import Node, Order, State
from pipeline.runner.inputs import Inputs
from pipeline.runner.observer import PUBLISHING, Failure, Observer
from pipeline.runner.process import StageProcess
from pipeline.runner.slots import Slots
from pipeline.runner.starting import job_of, start, start_early
from pipeline.runner.store import Uploads
from pipeline.runner.store_lease import Both
from pipeline.runner.worker import OUTCOME, Job
from pipeline.tracking.mirrors import Mirrors

POLL_SECONDS = 0.1
SETTLED_SECONDS = 30.0
"""A stage that has logged nothing is over its start after this."""
GRACE_SECONDS = 10.0
"""How long a stage may take to stop after Ctrl-C before it is killed."""


class Scheduler:
    """Starts stages as their inputs appear, and publishes them as they end."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        nodes: Mapping[str, Node],
        states: Mapping[str, State],
        observer: Observer,
        done: dict[str, Artifact],
        slots: Slots | ClusterSlots,
        mirrors: Mirrors,
        lease: Lease | Both,
        uploads: Uploads | None,
    ) -> None:
        self.recipe, self.run_path, self.nodes, self.states = recipe, run, nodes, states
        self.observer, self.done, self.slots, self.mirrors = observer, done, slots, mirrors
        self.lease, self.uploads = lease, uploads
        self.running: list[StageProcess] = []
        self.restarts: Counter[str] = Counter()
        self.gone_back: Counter[str] = Counter()
        self.failures: list[str] = []
        self.inputs = Inputs()
        self.hashing = ThreadPoolExecutor()
        self.publishing: dict[str, Future[Artifact]] = {}
        self.early = Early(run, self._start_early, bool(slots.there) if recipe.warm is None else recipe.warm)
        self.forks = ForkServer(recipe.warm is None and not slots.wanted)
        self.order = Order(nodes, list(recipe.stages), done)

    def run(self, jobs: int) -> Sequence[str]:
        """Run what is not done, so many stages at once; returns why stages failed, after which none is started."""
        try:
            while (self.order.left() or self.publishing) and (self.running or not self.failures):
                while len(self.running) < jobs and not self.failures and (node := self._placed()) is not None:
                    self.order.ready.remove(node.name)
                    self._begin(node)
                if len(self.running) >= jobs or self.failures:
                    for name in self.order.ready:  # what they have asked a cluster for would stand idle
                        self.slots.release(name)
                self._prepare_next()
                self.order.finish(self._poll(bool(self.order.ready)))
            self._take_published(wait=True)
        finally:
            self._stop()  # after an interruption; otherwise nothing runs any more
            self.early.close()
            self.forks.close()
            self.slots.close()
            self.hashing.shutdown()  # what is finished is published all the same
        return self.failures

    def _placed(self) -> Node | None:
        """The first stage whose GPUs are free now; a stage without GPUs waits for nobody."""
        return next((node for name in self.order.ready if self.slots.take(node := self.nodes[name])), None)

    def _begin(self, node: Node) -> None:
        """Start a stage, unless one of its inputs is not what was published."""
        published = [name for name in node.inputs if name not in self.publishing]  # the others are hashed right now
        if (fault := self.inputs.fault(node.name, published, self.done)) is not None:
            self.failures.append(fault)
            self.slots.release(node.name)
            self.observer.failed(node, fault)
            return
        self.running.append(self._start(node))
        self.observer.started(node, self.states[node.name])
        self.slots.tell(node)

    def _start(self, node: Node) -> StageProcess:
        self.lease.check()
        if not isinstance(self.slots, ClusterSlots):  # a cluster's have waited for their hosts
            leave(artifacts.scratch(self.run_path, node.name, node.fingerprint))
        folder, attempt = scratch.prepare(self.run_path, node)
        awaited = list(filter(self.publishing.__contains__, node.inputs))

        def job(placed: Placed | None) -> Job:
            return job_of(node, self.recipe, self._inputs(node), awaited, placed, self.lease.path)

        if isinstance(self.slots, ClusterSlots):
            return self.slots.start(node, folder, job, attempt)
        lease, placed = self.slots.of(node)
        return start(node, folder, job(placed), self.recipe.base, attempt, lease, placed, self.early, self.forks)

    def _inputs(self, node: Node) -> dict[str, Path]:
        return {name: self._target(self.nodes[name]).resolve() for name in node.inputs}

    def _start_early(self, node: Node, which: Sequence[Gpu], placed: Placed | None, folder: Path) -> Waiting:
        job = job_of(node, self.recipe, self._inputs(node), list(node.inputs), placed, self.lease.path)
        its_own = artifacts.scratch(self.run_path, node.name, node.fingerprint)
        return start_early(node, job, self.recipe.base, its_own, which, placed, folder)

    def _prepare_next(self) -> None:
        """Have the process of the next stage started, once those that run have come to work themselves."""
        running = {process.node.name for process in self.running}
        settled = (process.read or time.time() - process.started > SETTLED_SECONDS for process in self.running)
        if not running or self.failures or not all(settled):
            return
        over = {*self.done, *self.publishing}
        for name in self.recipe.stages:
            node = self.nodes[name]
            if name in over | running or not set(node.after) & running or not set(node.after) <= over | running:
                continue
            if (foreseen := self.slots.foreseen(node, running & set(node.after))) is not None:
                self.early.consider(node, *foreseen)
            return

    def _poll(self, waiting: bool) -> list[str]:
        """Wait a moment if anything goes on, pass on events, and begin to publish what has ended; returns its names.

        Publishing hashes gigabytes: stages that want what is published start meanwhile, load their libraries, and wait
        for it.
        """
        ended: list[str] = []
        if self.running or self.publishing or waiting:
            time.sleep(POLL_SECONDS)
        self.lease.look()
        if self.uploads is not None:
            self.uploads.look()
        for process in list(self.running):
            code = process.ended()
            for event in process.events():
                self.observer.event(process.node, event)
            if code is None:
                continue
            self.running.remove(process)
            process.signal(signal.SIGKILL)  # whatever the stage has started and left behind
            process.scrub()
            self.lease.check()  # whoever has taken over has ended it, and what is there may be theirs
            if code == 0 and (process.scratch / OUTCOME).exists():
                shutil.rmtree(self._target(process.node), ignore_errors=True)  # a broken one is none to wait for
                self.slots.release(process.node.name)
                self.observer.event(process.node, {"step": 0, PUBLISHING: True})
                self.publishing[process.node.name] = self.hashing.submit(
                    scratch.publish, process, self.run_path, self.lease.check
                )
                ended.append(process.node.name)
            else:
                self._after_failure(process, process.failure(code))
        self._take_published()
        self.mirrors.look()
        return ended

    def _take_published(self, wait: bool = False) -> None:
        """Tell what has been published.

        Raises:
            OSError: something could not be, for lack of space, say.
        """
        for name, future in list(self.publishing.items()):
            if wait or future.done():
                self.done[name] = future.result()
                self.inputs.trust(self.done[name])
                del self.publishing[name]
                self.observer.finished(self.nodes[name], self.done[name])
                if self.uploads is not None:
                    self.uploads.artifact(name, self.done[name])

    def _target(self, node: Node) -> Path:
        """Where a stage's artifact is, or will be."""
        return artifacts.folder(self.run_path, node.name, node.fingerprint)

    def _after_failure(self, process: StageProcess, message: Failure) -> None:
        """Start the stage again if it goes back, or its `launch` says so, and nothing else has failed."""
        node = process.node
        if not self.failures and (times := kept.pending(process.scratch)) > self.gone_back[node.name]:
            self.gone_back[node.name] = times
            self.running.append(self._start(node))
            return
        if self.failures or self.restarts[node.name] >= node.config.launch.restarts:
            self.failures.append(message)
            self.slots.release(node.name)
            self.observer.failed(node, message)
            return
        self.restarts[node.name] += 1
        self.observer.restarted(node, message)
        if isinstance(self.slots, ClusterSlots):  # a host may be gone: it asks for others
            self.slots.release(node.name)
            self.order.again(node.name)
        else:
            self.running.append(self._start(node))

    def _stop(self) -> None:
        """Interrupt every stage, and kill what does not stop in time."""
        for process in self.running:
            process.signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            process.signal(signal.SIGKILL)
            process.popen.wait()
            process.scrub()
