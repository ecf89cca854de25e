"""What it costs to learn from older rollouts: GRPO at several values of `rollout.max_staleness`, equal rollouts, seeds.

    python -m benchmarks.staleness --model models/qwen2.5-coder-0.5b --problems data/gsm8k --trainer 0 --engine 1 \\
        --out benchmarks/results/staleness-h200.json
    python -m benchmarks.staleness --smoke --model path/to/tiny --problems path/to/gsm8k       # on a CPU, a few steps

The settings are those of `benchmarks.grpo`, with the engine in a process of its own. Reported for each staleness: the
accuracy of each step's rollouts for each seed, its mean over the last steps and seeds with the deviation between seeds,
how old tokens were, the effective sample size, and samples a second. Results are added to those that the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import children
from benchmarks.grpo import in_child, stage, versions
from pipeline.schema.launch import VISIBLE

LAST = 5
"""Steps at the end whose accuracy is averaged: a step's 512 rollouts of 64 problems vary by some points."""


def config_of(staleness: int, options: argparse.Namespace) -> dict[str, Any]:
    """The config of the stage at a staleness."""
    config = stage(options)
    rollout = {
        **config["rollout"],
        "max_staleness": staleness,
        "process": {"devices": [options.engine] if options.engine is not None else []},
        "engine_options": options.engine_options,
    }
    return {**config, "rollout": rollout}


def summary(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By staleness, over seeds: accuracy in the end, and speed."""
    told = {}
    for staleness, seeds in runs.items():
        whole = [run for run in seeds.values() if "failed" not in run]
        ends = [fmean(run["accuracy"][-LAST:]) for run in whole]
        if ends:
            told[staleness] = {
                "accuracy": round(fmean(ends), 4),
                "between_seeds": round(stdev(ends), 4) if len(ends) > 1 else None,
                "samples_per_s": round(fmean(run["samples_per_s"] for run in whole), 1),
                "seeds": len(whole),
            }
    return told


def main() -> None:
    """Parse the command line, run, print, and write the result after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl; from the hub if not given")
    parser.add_argument("--staleness", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trainer", type=children.gpu, help="the trainer's GPU")
    parser.add_argument("--engine", help="the engine's GPU; the trainer's if not given")
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--gpu-memory", type=float, default=0.5)
    parser.add_argument("--tokens-per-pass", type=int, default=12288)
    parser.add_argument("--engine-options", type=json.loads, default={"max_num_seqs": 512}, help="vLLM's, as JSON")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.beta, options.dynamic_sampling_rounds, options.long = 0.0, 0, False
    if options.smoke:
        options.steps, options.seeds, options.engine_options = 4, options.seeds[:1], {}
    if options.trainer is not None:
        os.environ[VISIBLE] = options.trainer
    kept: Sequence[str] = ("model", "problems", "steps", "learning_rate", "tokens_per_pass", "engine_options")
    settings = {name: getattr(options, name) for name in kept}
    result: dict[str, Any] = {"settings": settings, "versions": versions(), "runs": {}, "commands": []}
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if (before["settings"], before["versions"]) != (settings, result["versions"]):
            sys.exit(f"{options.out} is of other settings or versions: write to another file")
        result = before
    result["commands"].append(shlex.join(["python", "-m", "benchmarks.staleness", *sys.argv[1:]]))
    failed = []
    for seed in options.seeds:
        for staleness in options.staleness:
            found = in_child("ours", config_of(staleness, options), seed)
            result["runs"].setdefault(str(staleness), {})[str(seed)] = found
            failed += [f"staleness {staleness}, seed {seed}"] if "failed" in found else []
            result["summary"] = summary(result["runs"])
            print("seed", seed, json.dumps(result["summary"]), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
