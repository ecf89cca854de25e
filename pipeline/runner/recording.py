"""What is written down of a run and of a finished stage: its record for `status` and `report`, and its manifest."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline import artifacts
from pipeline.cluster import attempt
from pipeline.placement import Wanted
from pipeline.recipe import Recipe
from pipeline.runner.graph import Node
from pipeline.runner.process import StageProcess
from pipeline.schema import environment


def record(recipe: Recipe, nodes: Mapping[str, Node], run: Path, wanted: Mapping[str, Wanted]) -> None:
    """Write down what this run is.

    Args:
        recipe: the recipe.
        nodes: its stages.
        run: the run's folder.
        wanted: the GPUs that each stage wants; empty where there are none.
    """
    stages = [
        {
            "name": name,
            "kind": nodes[name].config.kind,
            "fingerprint": nodes[name].fingerprint,
            "inputs": list(nodes[name].inputs),
            "after": [other for other in nodes[name].after if other not in nodes[name].inputs],
            **({"gpus": str(wanted[name])} if name in wanted else {}),
        }
        for name in sorted(nodes, key=list(recipe.stages).index)
    ]
    record = {
        "name": recipe.name,
        "description": recipe.description,
        "recipe": str(recipe.path),
        "command": list(map(environment.shown, sys.argv)),
        "started": _iso(time.time()),
        "stages": stages,
    }
    data = yaml.safe_dump(environment.names_only(recipe.data), sort_keys=False, allow_unicode=True)
    artifacts.write_run_record(run, record, data)


def manifest(process: StageProcess, outcome: Mapping[str, Any], finished: float) -> dict[str, Any]:
    """The manifest of a stage that has ended, but for its files.

    Args:
        process: the stage's process.
        outcome: what it left (`pipeline.runner.worker`).
        finished: when, in seconds since the epoch.
    """
    node = process.node
    return {
        "stage": node.name,
        "kind": node.config.kind,
        "version": type(node.config).version,
        "fingerprint": node.fingerprint,
        "config": environment.recorded(node.config),
        "identity": node.identity,
        "inputs": dict(node.inputs),
        "metrics": outcome["metrics"],
        "seed": node.config.seed,
        "started": _iso(process.started),
        "finished": _iso(finished),
        "seconds": round(finished - process.started, 3),
        "work_seconds": outcome.get("work"),
        "memory": outcome.get("memory", {}),
        "resumed": process.attempt - 1,
        "device": outcome["device"],
        "packages": outcome["packages"],
        "git": _git_revision(),
        **({"gpus": list(process.gpus)} if process.gpus else {}),
        **(
            {"hosts": list(attempt.read(process.scratch)["hosts"])}
            if isinstance(process.popen, attempt.Attempt)
            else {}
        ),
    }


def _git_revision() -> str | None:
    """Revision of the checkout that this package runs from; `None` for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
