"""Runs a recipe: every stale stage in its own process, in order, resuming what was interrupted.

The runner only starts processes, watches them and publishes what they leave. It holds no model and imports no torch,
so a finished recipe is recognised as such in well under a second. Ctrl-C, a kill or a power cut loses at most the
work since a stage's last checkpoint; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from pipeline import artifacts, durable, graph, kept, longer, needs, ranks, recording
from pipeline.artifacts import Artifact
from pipeline.cluster.hosts import ClusterError
from pipeline.cluster.slots import ClusterSlots
from pipeline.early import Early, Waiting
from pipeline.forkserver import ForkServer
from pipeline.gpus import Gpu
from pipeline.graph import Node, State
from pipeline.inputs import Inputs
from pipeline.lease import Lease
from pipeline.locks import LockError, await_ghosts, run_lock
from pipeline.observer import Failure, Observer
from pipeline.placement import Placed
from pipeline.process import EVENTS, LOGS, StageProcess
from pipeline.recipe import Recipe
from pipeline.slots import Slots
from pipeline.source import brief
from pipeline.starting import job_of, start, start_early
from pipeline.store import StoreError, Uploads, fetch
from pipeline.tracking.mirrors import Mirrors
from pipeline.worker import OUTCOME, Job

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SETTLED_SECONDS = 30.0
"""A stage that has logged nothing is over its start after this."""
GRACE_SECONDS = 10.0
"""How long a stage may take to stop after Ctrl-C before it is killed."""


class RunError(RuntimeError):
    """The run cannot start: its folder is in use, or cannot be written."""


class StageError(RuntimeError):
    """A stage's process ended without a result. The message holds the end of its log, and where the rest is."""


def run_folder(recipe: Recipe, runs: Path) -> Path:
    """The folder of a recipe's run.

    Raises:
        RunError: a file is where a folder would be, or its path is too long.
    """
    folder = runs / recipe.name
    try:
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    except OSError as error:
        raise RunError(f"{brief(str(folder))} cannot be a folder: {error.strerror}") from error
    if there is not None and not there.is_dir():
        raise RunError(f"{there} is a file, and runs want a folder")
    return folder


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is up to date.

    Attributes:
        artifacts: the artifact of every stage.
        ran: the stages that had to run for it.
    """

    artifacts: Mapping[str, Artifact]
    ran: tuple[str, ...]


def execute(
    recipe: Recipe,
    run: Path,
    observer: Observer,
    jobs: int | None = None,
    cluster: str | None = None,
    store: str | None = None,
) -> Finished:
    """Bring a run up to date.

    Args:
        recipe: a checked recipe.
        run: the run's folder; made if it is not there.
        observer: told what happens.
        jobs: how many stages may run at once; the recipe's own number if not given.
        cluster: address of a Ray cluster whose hosts the stages run on, or `auto`; they run on this host if not given.
        store: where copies of artifacts and checkpoints lie, and are taken from; see `pipeline.store`.

    Raises:
        RunError: the run is in use, its folder, store or cluster cannot be used, or a stage needs what is not here.
        StageError: a stage failed; stages that ran beside it were still finished and published.
        KeyboardInterrupt: interrupted; all stages were stopped, and the same command resumes.
    """
    run = run if cluster is None else run.resolve()  # current folders differ between hosts
    with _working_on(run) as lease:
        recipe = graph.pinned(recipe)
        nodes = graph.build(recipe)
        copies = None if store is None else fetch(store, run, nodes)
        steps = graph.plan(nodes, run)
        on_cluster = cluster and ClusterSlots(nodes, recipe, run, observer, cluster)
        slots = on_cluster or Slots(nodes, recipe.base, observer)
        recording.record(recipe, nodes, run, slots.wanted)
        observer.planned(steps)
        states = {step.node.name: step.state for step in steps}
        done = {
            name: artifact
            for name, node in nodes.items()
            if (artifact := artifacts.find(run, name, node.fingerprint)) is not None
        }
        for name, artifact in done.items():
            artifacts.clean(run, name, artifact)
        stale = tuple(name for name in nodes if name not in done)
        waiting = [name for name in recipe.stages if name in stale]
        if unmet := needs.unmet(recipe, waiting, run=True, here=cluster is None):
            raise RunError("\n".join(("nothing was started:", *unmet)))
        copying = Uploads.of(copies, run, done)
        with slots.connected(waiting), Mirrors.of(recipe, run, observer) as mirrors, copying as uploads:
            scheduler = _Scheduler(recipe, run, nodes, states, observer, done, slots, mirrors, lease, uploads)
            scheduler.run(jobs or recipe.jobs)
        return Finished({name: done[name] for name in nodes}, stale)


class _Scheduler:
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
        lease: Lease,
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
        self.ready: list[str] = []

    def run(self, jobs: int) -> None:
        order: TopologicalSorter[str] = TopologicalSorter({name: node.after for name, node in self.nodes.items()})
        order.prepare()
        rank = {name: position for position, name in enumerate(self.recipe.stages)}
        ready = self.ready
        try:
            while True:
                ready += order.get_ready()
                for name in [name for name in ready if name in self.done]:
                    ready.remove(name)
                    order.done(name)
                if not (order.is_active() or self.publishing) or (self.failures and not self.running):
                    break
                ready.sort(key=rank.__getitem__)
                while len(self.running) < jobs and not self.failures and (node := self._placed(ready)) is not None:
                    ready.remove(node.name)
                    self._begin(node)
                self._prepare_next()
                for name in self._poll(bool(ready)):
                    order.done(name)
            self._take_published(wait=True)
        finally:
            self._stop()  # after an interruption; otherwise nothing runs any more
            self.early.close()
            self.forks.close()
            self.slots.close()
            self.hashing.shutdown()  # what is finished is published all the same
        if self.failures:
            raise StageError("\n".join(self.failures))

    def _placed(self, ready: Sequence[str]) -> Node | None:
        """The first stage whose GPUs are free now; a stage without GPUs waits for nobody."""
        return next((node for name in ready if self.slots.take(node := self.nodes[name])), None)

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
        scratch = artifacts.scratch(self.run_path, node.name, node.fingerprint)
        self._take_over(node, scratch)
        durable.make_folder(scratch)
        await_ghosts(scratch, node.name)
        longer.remember(scratch, node.identity)
        shutil.rmtree(scratch / "output", ignore_errors=True)
        (scratch / "output").mkdir(parents=True)
        (scratch / OUTCOME).unlink(missing_ok=True)
        ranks.clear(scratch)
        attempt = count_attempt(scratch / "attempts")
        durable.whole_lines(scratch / EVENTS)
        awaited = list(filter(self.publishing.__contains__, node.inputs))

        def job(placed: Placed | None) -> Job:
            return job_of(node, self.recipe, self._inputs(node), awaited, placed, self.lease.path)

        if isinstance(self.slots, ClusterSlots):
            return self.slots.start(node, scratch, job, attempt)
        lease, placed = self.slots.of(node)
        return start(node, scratch, job(placed), self.recipe.base, attempt, lease, placed, self.early, self.forks)

    def _take_over(self, node: Node, scratch: Path) -> None:
        """Have a longer training go on from what a shorter one has left, if it may."""
        shorter = None if scratch.exists() else longer.find(self.run_path, node.name, node.config, node.identity)
        if shorter is not None and shorter.anew is None and shorter.folder is not None:
            await_ghosts(shorter.folder, node.name)
            longer.take_over(shorter, scratch)

    def _inputs(self, node: Node) -> dict[str, Path]:
        return {name: self._target(self.nodes[name]).resolve() for name in node.inputs}

    def _start_early(self, node: Node, which: Sequence[Gpu], placed: Placed | None, folder: Path) -> Waiting:
        job = job_of(node, self.recipe, self._inputs(node), list(node.inputs), placed, self.lease.path)
        scratch = artifacts.scratch(self.run_path, node.name, node.fingerprint)
        return start_early(node, job, self.recipe.base, scratch, which, placed, folder)

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
                self.publishing[process.node.name] = self.hashing.submit(self._publish, process)
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
            self.ready.append(node.name)
        else:
            self.running.append(self._start(node))

    def _publish(self, process: StageProcess) -> Artifact:
        self.lease.check()
        node, finished = process.node, time.time()
        outcome = json.loads((process.scratch / OUTCOME).read_text(encoding="utf-8"))
        output = process.scratch / "output"
        for path in (process.scratch / EVENTS, *process.scratch.glob(LOGS)):
            if path.exists():
                shutil.copy2(path, output / path.name)
        kept.publish(process.scratch, self.run_path)
        artifact = artifacts.publish(
            output, self._target(node), recording.manifest(process, outcome, finished), self.lease.check
        )
        longer.keep(self.run_path, node.name, node.fingerprint)
        shutil.rmtree(process.scratch, ignore_errors=True)  # what is left, `artifacts.clean` removes
        return artifact

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


def count_attempt(counter: Path) -> int:
    """One more than the attempts that a stage's scratch folder counts."""
    text = counter.read_text(encoding="utf-8", errors="replace") if counter.exists() else "0"
    if not text.isdecimal():
        log.warning("%s is empty or broken: attempts are counted from 1 again", counter)
    attempt = 1 + (int(text) if text.isdecimal() else 0)
    durable.write(counter, str(attempt))
    return attempt


@contextlib.contextmanager
def _working_on(run: Path) -> Iterator[Lease]:
    """Hold the run; a full disk, or another fault of it, is one line, and finished stages are kept.

    Raises:
        RunError: another process works on the run or has taken it over, or its folder cannot be read or written.
    """
    try:
        with run_lock(run) as lease:
            yield lease
    except (LockError, ClusterError, StoreError) as error:
        raise RunError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename or run}: {error.strerror}"
        raise RunError(f"{where}. Finished stages are kept: correct this, and the same command goes on") from error
