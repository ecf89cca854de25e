"""How the process of a stage is started: directly, by a fork, or by `accelerate launch`, with the GPUs that it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline import gpus
from pipeline.checks.launch import accelerate_config, settings
from pipeline.cluster.hosts import same
from pipeline.files import compiled, durable
from pipeline.gpus import Gpu, Lease
from pipeline.placement import Placed
from pipeline.recipe import Recipe
from pipeline.runner.early import Early, Waiting
from pipeline.runner.forkserver import Forked, ForkServer
from pipeline.runner.graph import Node, files_of
from pipeline.runner.process import EVENTS, LOG, LOGS, StageProcess, allocator
from pipeline.runner.worker import Job
from pipeline.schema import environment
from pipeline.schema.launch import VISIBLE

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # a `rewards.py` in the current folder must not stand in for our package
}
_RANK = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""What a launcher, or vLLM in a notebook, may have left in our environment: a stage is not one of its ranks."""
JOB = "job.json"
PLACED = "gpus.json"
"""In a stage's scratch folder: the GPUs that it has."""


def start(
    node: Node,
    scratch: Path,
    job: Job,
    base: Path,
    attempt: int,
    lease: Lease | None,
    placed: Placed | None,
    early: Early,
    forks: ForkServer,
) -> StageProcess:
    """Start the process of a stage, or let the one go on that was started early.

    Args:
        node: the stage.
        scratch: its scratch folder.
        job: what it does; see `job_of`.
        base: the recipe's folder.
        attempt: 1 for its first process.
        lease: the GPUs that it has; `None` where it wants none.
        placed: which of its processes see which; `None` on a host without GPUs.
        early: what has been started early.
        forks: forks processes where there are no GPUs.
    """
    which = () if lease is None else lease.gpus
    names = tuple(gpu.name for gpu in which)
    seen, secrets = prepare(node, scratch, job, names)
    variables, log = variables_of(node, job, which, placed), scratch / LOG
    popen: subprocess.Popen[bytes] | Forked | None = early.take(node, names)
    if popen is None and node.config.launch.accelerate is None:
        popen = forks.fork([str(scratch / JOB), str(os.getpid())], variables, log)
    if popen is None:
        popen = _spawn(command(node, base, scratch / JOB, placed), variables, log)
    return StageProcess(node, scratch, popen, time.time(), attempt, seen, secrets, names)


def start_early(
    node: Node, job: Job, base: Path, scratch: Path, which: Sequence[Gpu], placed: Placed | None, folder: Path
) -> Waiting:
    """Start the process of a stage before its turn; see `pipeline.runner.early`.

    Args:
        node, job, base, placed: see `start`.
        scratch: the scratch folder that it will have.
        which: the GPUs that it will have.
        folder: of the process, until its turn.
    """
    durable.write(folder / JOB, json.dumps(environment.names_only(asdict(job))))
    go = folder / "go"
    words = command(node, base, scratch / JOB, placed, [str(folder / JOB), str(go)])
    popen = _spawn(words, variables_of(node, job, which, placed), folder / LOG)
    return Waiting(node.name, node.fingerprint, tuple(gpu.name for gpu in which), popen, go)


def job_of(
    node: Node,
    recipe: Recipe,
    inputs: Mapping[str, Path],
    awaited: Sequence[str],
    placed: Placed | None,
    lease: Path,
) -> Job:
    """What a stage's process is to do.

    Args:
        node: the stage.
        recipe: the recipe that it belongs to.
        inputs: stage -> folder of its artifact.
        awaited: those of them that are not published yet.
        placed: which of its processes see which GPUs.
        lease: the file of the runner's lease.
    """
    config = node.config if placed is None else placed.config(node.config)
    return Job(
        stage=node.name,
        config=config.model_dump(mode="json", by_alias=True),
        inputs={name: str(folder) for name, folder in inputs.items()},
        awaited=list(awaited),
        base=str(recipe.base),
        tasks={name: definition.model_dump(mode="json") for name, definition in recipe.tasks.items()},
        seed=node.config.seed or 0,
        evaluated=[spec.model_dump(mode="json", by_alias=True) for spec in recipe.evaluated],
        lease=str(lease.resolve()),
        alike=_alike(node, recipe),
    )


def _alike(node: Node, recipe: Recipe) -> dict[str, str]:
    """See `Job.alike`."""
    name = node.config.launch.accelerate
    file = None if name is None else accelerate_config(name, recipe.base)
    if file is None or settings(file).get("num_machines", 1) == 1:
        return {}
    return same(path.absolute() for path in (recipe.path, *files_of(recipe, node.config)))


def prepare(node: Node, scratch: Path, job: Job, names: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Write down what a stage's process is to do, and where.

    Args:
        node, scratch, job: see `start`.
        names: of the GPUs that it has.

    Returns:
        Bytes of its events that are there already, and the secrets that must stand in none of its files.
    """
    durable.write(scratch / JOB, json.dumps(environment.names_only(asdict(job))))
    secrets = environment.secrets(node.config, os.environ)
    for path in (scratch / EVENTS, *scratch.glob(LOGS)):  # of an attempt whose runner was killed
        environment.scrub(path, secrets)
    (scratch / PLACED).write_text(json.dumps(names), encoding="utf-8")
    events = scratch / EVENTS
    return events.stat().st_size if events.exists() else 0, secrets


def variables_of(node: Node, job: Job, which: Sequence[Gpu], placed: Placed | None) -> dict[str, str]:
    """The environment of a stage's process."""
    inherited = {name: value for name, value in os.environ.items() if name not in _RANK}
    if placed is not None:
        inherited |= allocator(node.config, inherited)
        inherited[VISIBLE] = ",".join(placed.own)
    inherited[gpus.HELD] = os.pathsep.join(str(gpus.lock_path(gpu)) for gpu in which)
    env = {**inherited, **_ENVIRONMENT, **node.config.launch.env}
    return {**env, **compiled.variables(env), **environment.handed_on(asdict(job))}


def _spawn(words: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def command(node: Node, base: Path, job: Path, placed: Placed | None = None, early: Sequence[str] = ()) -> list[str]:
    """The command of a stage's process.

    Args:
        node: the stage.
        base: the recipe's folder.
        job: its job file.
        placed: how many processes a launcher starts; as its config says if not given.
        early: what a process gets besides that is to wait for its turn; see `pipeline.runner.worker`.
    """
    runner = str(os.getpid())
    worker = ["-m", "pipeline.runner.worker", str(job), runner, *early]
    if node.config.launch.accelerate is None:
        return [sys.executable, *worker]
    config = accelerate_config(node.config.launch.accelerate, base)
    launcher = [sys.executable, "-m", "pipeline.runner.launcher", str(job.parent), "--config_file", str(config)]
    launcher += [] if placed is None or placed.ranks is None else ["--num_processes", str(placed.ranks)]
    return [sys.executable, "-m", "rewards.parent", runner, *launcher, *worker]
