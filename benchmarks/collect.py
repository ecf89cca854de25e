"""Keep the numbers of finished runs as one small JSON file: scores, curves, seconds, versions, device, command.

python -m benchmarks.collect runs/nano-r1 --out benchmarks/results/nano-r1.json
python -m benchmarks.collect runs/0/nano-r1 runs/1/nano-r1 runs/2/nano-r1 --out benchmarks/results/nano-r1.json
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.report.run_data import Stage, events, read_run
from pipeline.report.summary import summarise

CURVES = (
    "reward",
    "completions/mean_length",
    "rewards/accuracy/score",
    "rewards/language/score",
    "rewards/process/score",
    "sampling/sampling_logp_difference/mean",
    "routing/max_violation",
)
"""Logged metrics of training stages that are kept, one value a logged step. The last two are the mismatch between the
log-probabilities of engine and trainer, and the load of the busiest expert beyond the mean load, as a share of that."""


def collect(run: Path) -> dict[str, Any]:
    """The numbers of one run."""
    record = json.loads((run / artifacts.RUN_RECORD).read_text(encoding="utf-8"))
    found = {name: artifact for name, artifact in artifacts.current(run).items() if artifact is not None}
    first = next(iter(found.values())).manifest
    summary = summarise(run)
    return {
        "recipe": record["name"],
        "command": shlex.join(["zero2r1", *record["command"][1:]]),
        "device": first["device"],
        "packages": first["packages"],
        "git": first["git"],
        "seed": first["seed"],
        "stages": {name: {k: stage[k] for k in ("kind", "seconds")} for name, stage in summary["stages"].items()},
        "table": summary["table"],
        "curves": {name: curves for name, stage in read_run(run).stages.items() if (curves := _curves(stage))},
    }


def fault(folder: Path) -> str:
    """Why nothing can be published of a folder; empty if it holds a run with a finished stage."""
    if not (folder / artifacts.RUN_RECORD).is_file():
        return f"{folder} holds no run: there is no {artifacts.RUN_RECORD} in it"
    try:
        found = artifacts.current(folder)
    except artifacts.RecordError as error:
        return str(error)
    return "" if any(found.values()) else f"{folder}: no stage of this run is finished"


def _curves(stage: Stage) -> dict[str, list[float]]:
    lines = events(stage)
    curves = {name: [round(line[name], 4) for line in lines if name in line] for name in CURVES}
    return {name: values for name, values in curves.items() if values}


def keep(numbers: Callable[[Path], dict[str, Any]], about: str | None) -> list[dict[str, Any]]:
    """Parse the command line, write the numbers of each run into one file, and return them.

    Args:
        numbers: those of one run, by its folder.
        about: what `--help` says.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if told := next(filter(None, map(fault, options.runs)), ""):
        parser.error(told)
    runs = [numbers(run) for run in options.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return runs


def main() -> None:
    """Parse the command line and write the file."""
    keep(collect, __doc__)


if __name__ == "__main__":
    main()
