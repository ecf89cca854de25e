"""The chain of `recipes/r1/qwen-1.5b.yaml` on models and data that lie in folders, and what it came to.

    python -m benchmarks.r1_qwen --base models/qwen2.5-coder-1.5b --small models/qwen2.5-coder-0.5b --data data
    python -m benchmarks.r1_qwen … --seeds 0 1 --one-gpu
    python -m benchmarks.r1_qwen … --cut --runs cut               # every stage with two to four steps, to see it work

`data` holds `gsm8k/` and `math/` (folders with `train.jsonl`, of GSM8K also `test.jsonl`), `math500.jsonl`,
`mbpp.jsonl` and `general.jsonl` (rows with `instruction` and `response`). Without a folder, models or data come from
the hub. Each seed has a run of its own, in `runs/SEED`. The same command goes on with a run that was interrupted; what
is finished by then is written in any case, as `benchmarks.chain` does it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.chain import RESULTS, keep

RECIPE, RUN = "r1/qwen-1.5b", "r1-qwen-1.5b"
ONE_GPU: Mapping[str, Any] = {
    "defaults.grpo.launch.gpus": 1,
    "defaults.grpo.rollout.process": None,
    "defaults.grpo.rollout.max_staleness": 0,
    "defaults.grpo.rollout.gpu_memory": 0.3,
    "defaults.rejection_sample.launch.gpus": 1,
}
"""What the recipe's own comment says for one GPU."""

CUT_NAME = f"{RUN}-cut"
"""The name of a run whose scores mean nothing."""


def cut(problems: int, steps: int = 2, tuned: int = 4) -> dict[str, Any]:
    """Settings with which every stage has little to do.

    Args:
        problems: of each task, for rejection sampling.
        steps: of reinforcement learning.
        tuned: of fine-tuning.
    """
    sampled = [{"use": "gsm8k", "problems": problems}, {"use": "math", "problems": problems}, "code"]
    return {
        "name": CUT_NAME,
        **{f"stages.{stage}.trainer.max_steps": steps for stage in ("zero", "dev2", "r1", "student_rl")},
        **{f"stages.{stage}.trainer.max_steps": tuned for stage in ("dev1", "dev3", "student", "helpful")},
        **{f"stages.{stage}.trainer.warmup_steps": 1 for stage in ("dev1", "dev3", "student")},
        **{f"stages.{stage}.tasks": sampled for stage in ("cold_start", "reasoning", "lessons")},
        "defaults.evaluate.samples": 2,
        "defaults.evaluate.problems": 50,
    }


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def local(data: Path) -> dict[str, Any]:
    """Settings that have the recipe read its data from a folder."""
    general = {"path": str(data / "general.jsonl"), "question": "instruction", "answer": "response", "grader": "exact"}
    return {
        "tasks.gsm8k.options.path": str(data / "gsm8k"),
        "tasks.math.options.path": str(data / "math"),
        "tasks.math500.options.path": str(data / "math500.jsonl"),
        "tasks.code.options.path": str(data / "mbpp.jsonl"),
        "tasks.general": {"use": "jsonl", "template": "plain", "options": {**general, "test_share": 0.0}},
    }


def run(values: Mapping[str, Any], runs: Path, further: list[str]) -> int:
    """Run the recipe; returns the exit code."""
    command = [sys.executable, "-m", "pipeline", *words(values, runs, further)]
    return subprocess.run(command, check=False).returncode


def words(values: Mapping[str, Any], runs: Path, further: list[str]) -> list[str]:
    """The words of the command behind `zero2r1`."""
    return ["run", RECIPE, *overrides(values), *further, "--runs", str(runs)]


def main() -> None:
    """Parse the command line, run each seed, and write what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder of the 1.5B; from the hub if not given")
    parser.add_argument("--small", help="folder of the 0.5B; from the hub if not given")
    parser.add_argument("--data", type=Path, help="folder of the data; from the hub if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--one-gpu", action="store_true", help="one stage after another on one GPU")
    parser.add_argument("--cut", action="store_true", help="little to do for every stage; nothing is published")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of published results")
    parser.add_argument("--show", action="store_true", help="print the commands of `zero2r1`, and do nothing")
    parser.add_argument("overrides", nargs="*", help="further ones, such as stages.zero.trainer.max_steps=20")
    options = parser.parse_args()
    models = {"base": options.base, "student_base": options.small}
    values: dict[str, Any] = {
        **{f"stages.{stage}.model": str(Path(model).resolve()) for stage, model in models.items() if model},
        **(local(options.data.resolve()) if options.data else {}),
        **(ONE_GPU if options.one_gpu else {}),
        **(cut(problems=200) if options.cut else {}),
    }
    codes = []
    for seed in options.seeds:
        runs = options.runs / str(seed)
        if options.show:
            codes.append(0)
            print(shlex.join(["zero2r1", *words({"seed": seed, **values}, runs, options.overrides)]))
            continue
        codes.append(run({"seed": seed, **values}, runs, options.overrides))
        if not options.cut and (runs / RUN / "stages").is_dir():
            print(keep(runs / RUN, options.results))
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
