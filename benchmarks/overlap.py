"""GRPO with its engine on a second GPU: ours on one GPU, on two in turns, and on two with one batch ahead.

    python -m benchmarks.overlap --model Qwen/Qwen2.5-Coder-0.5B-Instruct --problems path/to/gsm8k \\
        --out benchmarks/results/overlap-h200-x2.json
    python -m benchmarks.overlap --smoke --model path/to/tiny --problems path/to/gsm8k      # on a CPU, a few steps

The settings are those of `benchmarks.grpo`; each way runs in a process of its own with the same seed. *one* has vLLM on
the trainer's GPU (`--one-engines 2`: two engines in processes of their own, else one in the trainer's process), *turns*
has it in a process of its own on the second GPU, where it and the trainer wait for each other, and *ahead* is
`rollout.max_staleness: 1`. `--engines 2` has two engines on the second GPU. Reported beside what `benchmarks.grpo` has:
the rates of samples/s, and the speed of pushing weights into the memory that the processes share.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.grpo import in_child, of_ours, stage, versions

WAYS = ("one", "turns", "ahead")
PUSHES = 3
"""The first one has to get the memory, too."""


def ways(config: dict[str, Any], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is compared -> the config of the stage."""
    rollout: dict[str, Any] = {**config["rollout"], "engine_options": options.engine_options}
    if not options.smoke:
        rollout["gpu_memory"] = 0.8 / options.engines
    rollout["process"] = {"devices": ["" if options.smoke else "1"] * options.engines}
    asked = argparse.Namespace(**vars(options) | {"engines": options.one_engines, "one_micro_batch": True})
    one = of_ours(config, asked, "0")
    found = {
        "one": one,
        "turns": {**one, "rollout": rollout},
        "ahead": {**one, "rollout": {**rollout, "max_staleness": 1}},
    }
    return {name: found[name] for name in options.ways}


def added(result: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """A result with the ways that its file has already, so that they can be measured one at a time.

    Raises:
        SystemExit: what is there was measured with other settings, those of rollouts aside, or with other versions.
    """
    if path is None or not path.exists():
        return result
    before = json.loads(path.read_text(encoding="utf-8"))
    rest = [{**way, "rollout": None} for each in (before, result) for way in each["settings"].values()]
    if before["versions"] != result["versions"] or any(other != rest[0] for other in rest):
        sys.exit(f"{path} is of other settings or versions: measure all ways, or write to another file")
    merged = {name: before[name] | result[name] for name in ("runs", "settings")}
    return {**before, **result, **merged, "command": f"{before['command']} && {result['command']}"}


def push_gb_per_s(megabytes: int) -> float:
    """GB a second of writing weights for another process: the best of a few times."""
    import torch

    from pipeline.rollout.shared import WeightFile

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = [(str(index), torch.ones(2**20 // 2, dtype=torch.bfloat16, device=device)) for index in range(megabytes)]
    file, seconds = WeightFile(), []
    for _ in range(PUSHES):
        started = time.perf_counter()
        file.write(weights)
        seconds.append(time.perf_counter() - started)
    file.close()
    return round(megabytes * 2**20 / 1e9 / min(seconds), 2)


def main() -> None:
    """Parse the command line, run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl; from the hub if not given")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--gpu-memory", type=float, default=0.15, help="vLLM's share of the GPU that it shares")
    parser.add_argument("--tokens-per-pass", type=int, default=8192)
    parser.add_argument("--engines", type=int, default=1, help="on the second GPU")
    parser.add_argument("--one-engines", type=int, default=0, help="where there is one GPU")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="vLLM's, as JSON")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--add", action="store_true", help="to the ways that are in the file already")
    parser.add_argument("--fused-kernels", action="store_true", help="Liger's, for the trained model")
    parser.add_argument("--long", action="store_true", help="completions of up to 8,192 tokens")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--weights-mb", type=int, default=1000, help="size of the pushed weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.learning_rate, options.beta, options.dynamic_sampling_rounds = 5e-6, 0.0, 0
    if options.smoke:
        options.steps = 4
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # the trainer's; the engine's process has another
    config = stage(options)
    compared = ways(config, options)
    runs = {}
    for name, each in compared.items():
        runs[name] = run = in_child("ours", each, 0)
        print(name, json.dumps({key: value for key, value in run.items() if not isinstance(value, list)}), flush=True)
    result: dict[str, Any] = {"runs": runs, "settings": compared, "versions": versions()}
    result["command"] = shlex.join(["python", "-m", "benchmarks.overlap", *sys.argv[1:]])
    result["push_gb_per_s"] = push_gb_per_s(options.weights_mb)
    if options.add:
        result = added(result, options.out)
        runs = result["runs"]
    failed = [name for name, run in runs.items() if "failed" in run]
    if not failed and "one" in runs:
        result["speedup"] = {
            name: round(run["samples_per_s"] / runs["one"]["samples_per_s"], 2) for name, run in runs.items()
        }
    print({name: result.get(name) for name in ("speedup", "push_gb_per_s")})
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
