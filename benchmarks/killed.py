"""Run a recipe, kill its runner in the middle of a training stage, give the same command again, and say what it cost.

    python -m benchmarks.killed v3-small/r1 --runs runs --at dev2:20 --out benchmarks/results/v3-small-r1-killed.json

The runner gets SIGKILL when the stage has logged so many steps; nobody else is told. What is written down: how long the
processes of its stages lived on, which stages were finished before and whether one of them was made again, and from
which step the stage went on. Interrupted after that, this command goes on, too, and kills nothing more. A run that is
beyond that step without having been killed is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.files import durable
from pipeline.recipe import RecipeError, load
from pipeline.runner.process import EVENTS
from pipeline.schema.pieces import TrainingConfig
from rewards.registry import nearest

LOOK_SECONDS = 0.2
GONE_SECONDS = 60.0
"""The longest wait for the processes of a killed runner's stages."""


def steps(lines: list[str]) -> list[int]:
    """The training steps that lines of events tell of; the last line may be half written."""
    found: list[int] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("step") and "loss" in event:
            found.append(int(event["step"]))
    return found


def events(run: Path, stage: str) -> list[str]:
    """The events of a stage, finished or not."""
    found = [*run.glob(f"scratch/{stage}-*/{EVENTS}"), *run.glob(f"stages/{stage}/*/{EVENTS}")]
    return found[0].read_text(encoding="utf-8").splitlines() if found else []


def finished(run: Path) -> dict[str, str]:
    """The stages that are finished -> when that was."""
    if not (run / artifacts.RUN_RECORD).is_file():
        return {}
    return {name: str(one.manifest["finished"]) for name, one in artifacts.current(run).items() if one is not None}


def processes(runner: int) -> int:
    """How many processes there are whose command says that they belong to this runner."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        count += str(runner) in words and any(word.startswith("pipeline.") for word in words)
    return count


def killed(command: list[str], run: Path, stage: str, step: int) -> dict[str, Any]:
    """Start the command, kill it at that step, wait until nothing of it is left, and return what was found.

    Raises:
        SystemExit: it ended by itself before.
    """
    began = time.monotonic()
    runner = subprocess.Popen(command)
    while max(steps(events(run, stage)), default=0) < step:
        if runner.poll() is not None:
            sys.exit(f"the run ended with {runner.returncode} before step {step} of {stage}: nothing was killed")
        time.sleep(LOOK_SECONDS)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    at = time.monotonic()
    while (left := processes(runner.pid)) and time.monotonic() - at < GONE_SECONDS:
        time.sleep(LOOK_SECONDS)
    gone = time.monotonic() - at
    lines = events(run, stage)
    return {
        "killed": {"stage": stage, "steps_logged": max(steps(lines)), "seconds": round(at - began, 1)},
        "processes": {"gone_after_s": round(gone, 1), "left": left},
        "finished_before": finished(run),
        "lines_of_events": len(lines),
    }


def main() -> None:
    """Parse the command line, run, kill, run again, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--at", required=True, help="STAGE:STEP, after which the runner is killed")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the recipe: KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    stage, _, step = options.at.partition(":")
    try:
        recipe = load(options.recipe, options.overrides)
    except RecipeError as error:
        parser.error(str(error))
    if stage not in recipe.stages:
        parser.error(f"--at is STAGE:STEP, and {options.recipe} has no stage {stage!r}{nearest(stage, recipe.stages)}")
    if not step.isdecimal():
        parser.error(f"--at is STAGE:STEP, such as {stage}:20, and {step!r} is not a number of steps")
    if not isinstance(recipe.stages[stage], TrainingConfig):
        parser.error(f"--at: {stage} is a stage of kind {recipe.stages[stage].kind}, which has no steps")
    run = Path(options.runs) / recipe.name
    command = [sys.executable, "-m", "pipeline", "run", options.recipe, "--runs", options.runs, *options.overrides]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if not told:
        if max(steps(events(run, stage)), default=0) >= int(step):
            parser.error(f"{stage} has logged step {step} already: choose another stage, or delete {run}")
        told = {"command": shlex.join(["zero2r1", *command[3:]]), **killed(command, run, stage, int(step))}
        durable.write(options.out, json.dumps(told, indent=1) + "\n")
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    finished_now, repeated = finished(run), steps(events(run, stage)[told["lines_of_events"] :])
    told |= {
        "again": {"exit": code, "seconds": round(time.monotonic() - began, 1)},
        "went_on_with_step": min(repeated, default=None),
        "made_again": sorted(name for name, when in told["finished_before"].items() if finished_now.get(name) != when),
    }
    durable.write(options.out, json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))
    sys.exit(code)


if __name__ == "__main__":
    main()
