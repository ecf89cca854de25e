"""How near a plan comes after `--probe`: this machine is measured, a GRPO step planned, and then run.

    python -m benchmarks.probe --model Qwen/Qwen2.5-Coder-0.5B-Instruct --problems path/to/gsm8k \\
        --out benchmarks/results/probe-h200.json
    python -m benchmarks.probe --smoke --model path/to/tiny --problems path/to/gsm8k     # on a CPU, two steps

The settings are those of `benchmarks.grpo`. How long completions turn out is put into the plan afterwards, since no
planner can know it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.grpo import in_child, of_ours, stage, versions
from pipeline.cost import memory, speed
from pipeline.cost.hardware import CPU, Cluster
from pipeline.cost.speed import Speed
from pipeline.planner import found, probe
from pipeline.planner.estimate import Estimate, estimate
from pipeline.planner.held import TRAINER
from pipeline.planner.stages import Reader
from pipeline.planner.work import Given
from pipeline.recipe import Recipe
from pipeline.stages.grpo import GrpoConfig

PROMPT = 120.0
"""Tokens of a problem of GSM8K with its template."""


def planned(config: dict[str, Any], completion: float, cluster: Cluster, rates: Speed) -> Estimate:
    """The stage, planned with these efficiencies."""
    given = Given(cluster.count, cluster.gpu.bytes, PROMPT, completion, processor=cluster.gpu.name == CPU)
    recipe = Recipe("probe", Path.cwd() / "recipe.yaml", {"zero": GrpoConfig.model_validate(config)})
    return estimate(Reader(recipe, given).work("zero"), cluster, rates)


def compared(told: Estimate, run: dict[str, Any]) -> dict[str, Any]:
    """A plan beside the run."""
    if told.work.unknown:
        sys.exit(told.work.unknown)
    step, peak = told.seconds["step"], memory.total(told.memory[TRAINER]) / 1e9
    return {
        "seconds_a_step": round(step, 3),
        "error": round(step / run["seconds_a_step"] - 1, 3),
        "parts": {part: round(seconds, 3) for part, seconds in told.seconds.items()},
        "peak_gb_planned": round(peak, 2),
    }


def main() -> None:
    """Measure, plan, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl; from the hub if not given")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    usual = {
        "learning_rate": 5e-6,
        "beta": 0.0,
        "gpu_memory": 0.1,
        "tokens_per_pass": 12_288,
        "dynamic_sampling_rounds": 0,
    }
    usual |= {"long": False, "engines": 0, "engine_options": {}, "fused_kernels": not options.smoke}
    settings = argparse.Namespace(**vars(options), **usual, one_micro_batch=True)
    settings.steps = 2 if options.smoke else options.steps
    config = of_ours(stage(settings), settings)
    cluster, rates, notes = probe.measured(None if options.smoke else found.gpus(), print)
    run = in_child("ours", config, 0)
    if "failed" in run:
        sys.exit(f"the run failed: {run['failed']}")
    completion = fmean(run["length"])
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.probe", *sys.argv[1:]]),
        "measured_speed": {
            "gpu": asdict(cluster.gpu),
            "rates": asdict(rates),
            "told": [asdict(note) for note in notes],
        },
        "run": run,
        "after_probe": compared(planned(config, completion, cluster, rates), run),
        "versions": versions(),
    }
    if not options.smoke and (here := found.gpus()) is not None:
        result["before_probe"] = compared(planned(config, completion, here.cluster(), speed.MEASURED), run)
    print(json.dumps({name: result[name] for name in ("after_probe", "before_probe") if name in result}, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
