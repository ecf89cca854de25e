"""How the process of a stage is started: directly, or by `accelerate launch`, with the GPUs that it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline import compiled, durable, gpus
from pipeline.gpus import Lease
from pipeline.graph import Node
from pipeline.launch_checks import accelerate_config
from pipeline.placement import Placed
from pipeline.process import EVENTS, LOG, StageProcess, allocator
from pipeline.recipe import Recipe
from pipeline.schema import environment
from pipeline.schema.pieces import VISIBLE
from pipeline.worker import Job

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # a `rewards.py` in the current folder must not stand in for our package
}
_RANK = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""What a launcher, or vLLM in a notebook, may have left in our environment: a stage is none of its ranks."""
PLACED = "gpus.json"
"""In a stage's scratch folder: the GPUs that it has."""


def start(
    node: Node,
    scratch: Path,
    recipe: Recipe,
    inputs: Mapping[str, Path],
    awaited: Sequence[str],
    attempt: int,
    lease: Lease | None,
    placed: Placed | None,
) -> StageProcess:
    """Start the process of a stage.

    Args:
        node: the stage.
        scratch: its scratch folder.
        recipe: the recipe that it belongs to.
        inputs: stage -> folder of its artifact.
        awaited: those of them that are still being published.
        attempt: 1 for its first process.
        lease: the GPUs that it has; `None` where it wants none.
        placed: which of its processes see which; `None` on a host without GPUs.
    """
    config = node.config if placed is None else placed.config(node.config)
    job = Job(
        stage=node.name,
        config=config.model_dump(mode="json", by_alias=True),
        inputs={name: str(folder) for name, folder in inputs.items()},
        awaited=list(awaited),
        base=str(recipe.base),
        tasks={name: definition.model_dump(mode="json") for name, definition in recipe.tasks.items()},
        seed=node.config.seed or 0,
        evaluated=[spec.model_dump(mode="json", by_alias=True) for spec in recipe.evaluated],
    )
    whole = asdict(job)
    durable.write(scratch / "job.json", json.dumps(environment.names_only(whole)))
    inherited = {name: value for name, value in os.environ.items() if name not in _RANK}
    inherited |= allocator(node.config, inherited)
    secrets = environment.secrets(node.config, os.environ)
    for name in (EVENTS, LOG):  # of an attempt whose runner was killed
        environment.scrub(scratch / name, secrets)
    events = scratch / EVENTS
    seen = events.stat().st_size if events.exists() else 0
    names = () if lease is None else tuple(gpu.name for gpu in lease.gpus)
    if placed is not None:
        inherited[VISIBLE] = ",".join(placed.own)
    inherited[gpus.HELD] = "" if lease is None else os.pathsep.join(map(str, lease.paths))
    (scratch / PLACED).write_text(json.dumps(names), encoding="utf-8")
    env = {**inherited, **_ENVIRONMENT, **node.config.launch.env}
    with (scratch / LOG).open("ab") as sink:
        popen = subprocess.Popen(
            command(node, recipe.base, scratch / "job.json", None if placed is None else placed.ranks),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**env, **compiled.variables(env), **environment.handed_on(whole)},
            start_new_session=True,
        )
    return StageProcess(node, scratch, popen, time.time(), attempt, seen, secrets, names)


def command(node: Node, base: Path, job: Path, ranks: int | None = None) -> list[str]:
    """The command of a stage's process.

    Args:
        node: the stage.
        base: the recipe's folder.
        job: its job file.
        ranks: how many processes the launcher starts on this host; as its config says if not given.
    """
    runner = str(os.getpid())
    worker = ["-m", "pipeline.worker", str(job), runner]
    if node.config.launch.accelerate is None:
        return [sys.executable, *worker]
    config = accelerate_config(node.config.launch.accelerate, base)
    launcher = [sys.executable, "-m", "pipeline.launcher", str(job.parent), "--config_file", str(config)]
    launcher += [] if ranks is None else ["--num_processes", str(ranks)]
    return [sys.executable, "-m", "rewards.parent", runner, *launcher, *worker]
