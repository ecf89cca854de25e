"""Runs a recipe: every stale stage in its own process, in order, resuming what was interrupted.

The runner only starts processes, watches them and publishes what they leave. It holds no model and imports no torch,
so a finished recipe is recognised as such in well under a second. Ctrl-C, a kill or a power cut loses at most the
work since a stage's last checkpoint; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.checks import needs
from pipeline.cluster.hosts import ClusterError
from pipeline.cluster.slots import ClusterSlots
from pipeline.files.lease import Lease
from pipeline.files.locks import LockError, run_lock
from pipeline.files.source import brief
from pipeline.recipe import Recipe
from pipeline.runner import graph, recording, store_lease
from pipeline.runner.observer import Observer
from pipeline.runner.scheduler import Scheduler
from pipeline.runner.slots import Slots
from pipeline.runner.store import StoreError, Uploads, fetch, opened
from pipeline.tracking.mirrors import Mirrors


class RunError(RuntimeError):
    """The run cannot start: its folder is in use, or cannot be written."""


class StageError(RuntimeError):
    """A stage's process ended without a result. The message holds the end of its log, and where the rest is."""


def run_folder(recipe: Recipe, runs: Path) -> Path:
    """The folder of a recipe's run.

    Raises:
        RunError: a file, or a link that leads nowhere, is where a folder would be, or its path is too long.
    """
    folder = runs / recipe.name
    try:
        there = next((path for path in (folder, *folder.parents) if path.exists() or path.is_symlink()), None)
    except OSError as error:
        raise RunError(f"{brief(str(folder))} cannot be a folder: {error.strerror}") from error
    if there is not None and not there.exists():
        raise RunError(f"{there} is a link to {there.readlink()}, where nothing is: make that folder, or a right link")
    if there is not None and not there.is_dir():
        raise RunError(f"{there} is a file, and runs need a folder")
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
        store: where copies of artifacts and checkpoints lie, and are taken from; see `pipeline.runner.store`.

    Raises:
        RunError: the run is in use, its folder, store or cluster cannot be used, or a stage needs what is not here.
        StageError: a stage failed; stages that ran beside it were still finished and published.
        KeyboardInterrupt: interrupted; all stages were stopped, and the same command resumes.
    """
    run = run if cluster is None else run.resolve()  # current folders differ between hosts
    with _working_on(run) as lease, contextlib.ExitStack() as held:
        recipe = graph.pinned(recipe)
        nodes = graph.build(recipe)
        copies = None if store is None else opened(store, run)
        both = lease if copies is None else held.enter_context(store_lease.held(copies, lease))
        if copies is not None:
            fetch(copies, nodes)
        steps = graph.plan(nodes, run)
        slots = (
            Slots(nodes, recipe.base, observer)
            if cluster is None
            else ClusterSlots(nodes, recipe, run, observer, cluster)
        )
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
        unmet = needs.unmet(recipe, waiting, run=True, here=cluster is None) or needs.unfound_models(recipe, waiting)
        if unmet:
            raise RunError("\n".join(("nothing was started:", *unmet)))
        copying = Uploads.of(copies, run, done)
        with slots.connected(waiting), Mirrors.of(recipe, run, observer) as mirrors, copying as uploads:
            scheduler = Scheduler(recipe, run, nodes, states, observer, done, slots, mirrors, both, uploads)
            if failures := scheduler.run(jobs or recipe.jobs):
                raise StageError("\n".join(failures))
        return Finished({name: done[name] for name in nodes}, stale)


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
