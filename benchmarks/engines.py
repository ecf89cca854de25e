"""Rejection sampling with one, two and four engines: samples a second, and what of a linear gain that is.

    python -m benchmarks.engines --gpus 4 --model models/qwen2.5-coder-0.5b --out benchmarks/results/engines-h200.json
    python -m benchmarks.engines --smoke --model path/to/tiny                                        # on a CPU

Each number of engines is a run of one `rejection_sample` stage with as many GPUs: ten thousand generated problems, 16
samples of each, which are judged. `samples_per_s` goes from the stage's first sign of progress to its last, so that
judging and writing count, and libraries and the start of engines do not; `with_start_s` is the whole stage. `linear`
is that speed over the speed of one engine and the number of engines. Numbers of engines that the file has already are
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grpo import versions
from benchmarks.jobs import present
from benchmarks.runs import finished, keep
from pipeline.report.run_data import Stage, rows
from pipeline.schema.launch import VISIBLE

COUNTS = (1, 2, 4)


def recipe(engines: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a number of engines."""
    rollout: dict[str, Any] = {"engine": "vllm", "max_tokens": options.max_tokens, "gpu_memory": 0.85}
    rollout["engine_options"] = {"max_num_seqs": 512}
    launch = {"gpus": engines}
    if options.smoke:  # a CPU has no GPUs to count engines by
        rollout = {"engine": "transformers", "max_tokens": 8, "process": {"devices": [""] * engines}}
        launch = {"gpus": 0}
    pick = {
        "kind": "rejection_sample",
        "model": str(Path(options.model).resolve()),
        "tasks": [{"use": "arithmetic", "problems": options.problems}],
        "samples": options.samples,
        "require": [{"use": "accuracy", "min": 0.0}],
        "decontaminate": [],
        "save": 0,
        "rollout": rollout,
        "launch": launch,
    }
    return {"name": f"engines-{engines}", "seed": 0, "stages": {"pick": pick}}


def speed(stage: Stage) -> dict[str, Any]:
    """How fast a finished stage sampled and judged."""
    lines = [line for line in rows(stage, "events.jsonl") if line.get("total")]
    first, last = lines[0], lines[-1]
    metrics = stage.manifest["metrics"]
    return {
        "samples_per_s": round((last["step"] - first["step"]) / (last["time"] - first["time"]), 3),
        "sampled": metrics["sampled"],
        "tokens": round(metrics["tokens"], 1),
        "sampling_s": stage.manifest["work_seconds"],
        "with_start_s": stage.manifest["seconds"],
    }


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What of a linear gain each number of engines brings."""
    if "1" not in runs:
        return {}
    alone = runs["1"]["samples_per_s"]
    return {"linear": {count: round(found["samples_per_s"] / alone / int(count), 3) for count, found in runs.items()}}


def main() -> None:
    """Parse the command line, run, print, and write the result after each number of engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--gpus", type=int, default=4, help="how many of those that are visible")
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="one and two engines of transformers on a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gpus = present()[: options.gpus]
    if options.smoke:
        options.problems, options.samples, gpus = 200, 8, ["", ""]
    result: dict[str, Any] = {"runs": {}, "settings": recipe(1, options), "versions": versions(), "commands": []}
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if any(before[name] != result[name] for name in ("settings", "versions")):
            sys.exit(f"{options.out} is of other settings or versions: write to another file")
        result = before
    result["commands"].append(shlex.join(["python", "-m", "benchmarks.engines", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            if count > len(gpus) or str(count) in result["runs"]:
                continue
            environment = os.environ if options.smoke else {**os.environ, VISIBLE: ",".join(gpus[:count])}
            stages = finished(recipe(count, options), Path(folder), environment=environment)
            found = result["runs"][str(count)] = speed(stages["pick"])
            print(count, json.dumps(found), flush=True)
            keep(options.out, result | summary(result["runs"]))
    print(json.dumps(summary(result["runs"])))


if __name__ == "__main__":
    main()
