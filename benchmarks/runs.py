"""Recipes that benchmarks run with `zero2r1 run`, as anybody would, in a folder of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.report.run_data import Stage, read_run


class RunFailedError(RuntimeError):
    """A run did not end well; says how its log ended."""


def finished(
    recipe: Mapping[str, Any], folder: Path, *words: str, environment: Mapping[str, str] | None = None
) -> dict[str, Stage]:
    """Run a recipe to its end. Returns its stages.

    Args:
        recipe: as its YAML file has it; its name is that of a run that is not there yet.
        folder: gets the recipe, the run and what it printed.
        words: further options of `zero2r1 run`.
        environment: of the run, if not this process's own.

    Raises:
        RunFailedError: it did not end well.
    """
    name = recipe["name"]
    path, log = folder / f"{name}.yaml", folder / f"{name}.log"
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--runs", str(folder / "runs"), "--json"]
    with log.open("wb") as sink:
        code = subprocess.run([*command, *words], stdout=sink, stderr=sink, env=environment, check=False).returncode
    if code:
        raise RunFailedError(f"{name}: exit code {code}: {log.read_text(errors='replace')[-2000:]}")
    return read_run(folder / "runs" / name).stages


def keep(out: Path | None, result: Mapping[str, Any]) -> None:
    """Write what there is of a result."""
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
