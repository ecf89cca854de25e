"""GRPO on problems that are too hard or too easy for the model: as they come, drawn by an online pool, or filtered.

    python -m benchmarks.difficulty --model Qwen/Qwen2.5-Coder-0.5B-Instruct --problems path/to/gsm8k --gpus 0 0 \\
        --seeds 0 1 2 --out benchmarks/results/difficulty-h200.json
    python -m benchmarks.difficulty --smoke --model path/to/tiny --problems path/to/gsm8k        # on a CPU, two steps

`none` draws each problem once an epoch. `pool` lets a problem rest that every rollout of its group solved, or none
(`pool: {solved: 4, failed: 2}`). `filter` first measures the pass rate of every problem (a `pass_rate` stage, eight
samples a problem) and trains on those between 0.1 and 0.9. The ways share the model, the seeds, the first problems of
GSM8K's training split in a seed's order, and the number of rollouts: 64 problems x 8 rollouts a step. What `filter`
samples beforehand is told apart (`measured_rollouts`).

Each run is the `grpo` stage in a process of its own, with vLLM in the process. Held-out accuracy is what `watch` says:
GSM8K's test split, one greedy answer a problem, before, in between, and after the last step; the interval of one score
is over problems, that of a difference between two ways over seeds. `--gpus 0 0` runs two at a time on one GPU, whose
compute they share, so that seconds are compared only within one command.

The result is written after every run. The same command goes on from it: runs that it has are not repeated. A step of
the 0.5B takes 4 s on an H200 of its own (`results/grpo-h200.json`), so that a run of 60 steps with four looks at 1,319
problems is expected to take 320 s, and about 480 s beside another one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from threading import Lock
from typing import Any

from benchmarks import children, grpo
from benchmarks.children import Place, leave, side_by_side
from pipeline.files import durable
from pipeline.records.dead_groups import EQUAL, FAILED
from pipeline.runner.process import allocator
from pipeline.stages.registry import config_class, run_function

WAYS = ("none", "pool", "filter")
PASSING = [0.1, 0.9]
"""Pass rates that `filter` trains on."""
MEASURED = 8
"""Samples a problem that a pass rate is measured with, as many as a group has."""
CACHE_BYTES = 6 * 10**9
"""Of the engine's cache. A fixed size is not measured, which would go wrong beside another run on the same GPU."""
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds -> the two-sided 95 % quantile of Student's t with one degree of freedom less."""
WATCHED = "watch/gsm8k/test/"


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """GSM8K's training split."""
    (task,) = grpo.stage(options)["tasks"]
    return {**task, "template": options.template}


def stage(options: argparse.Namespace, way: str, rates: str | None = None) -> dict[str, Any]:
    """The `grpo` stage of a way; `rates` is what the pass rates were written to."""
    config = grpo.stage(options)
    task = task_of(options)
    held_out = {**task, "split": "test"}
    if way == "filter":
        task = {**task, "filter": {"pass_rate": PASSING, "from": rates}}
    else:
        task = {**task, "problems": options.train_problems}
    config["trainer"].pop("shuffle_dataset")
    rollout = config["rollout"] | ({} if options.smoke else {"engine_options": options.engine_options})
    return {
        **config,
        "tasks": [task],
        "rollout": rollout,
        "efficiency": {**config["efficiency"], "fused_kernels": options.fused_kernels},
        "pool": {} if way == "pool" else None,
        "watch": {
            "tasks": [held_out],
            "every": max(1, math.ceil(options.steps / options.looks)),
            "problems": options.test_problems,
            "temperature": 0.0,
        },
        "keep_state": False,
        "samples": 0,
    }


def rates_stage(options: argparse.Namespace) -> dict[str, Any]:
    """The stage that measures how hard the problems are."""
    return {
        "kind": "pass_rate",
        "model": options.model,
        "tasks": [{**task_of(options), "problems": options.train_problems}],
        "rollout": stage(options, "none")["rollout"],
        "samples": MEASURED,
        "save": 0,
    }


def run_stage(config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Run a stage as a recipe does. Returns what is told of it, and `data` if that is what it leaves."""
    from pipeline.training import setup

    setup.prepare()
    context = grpo.context_of(config, seed, folder)
    began = time.perf_counter()
    metrics = run_function(config["kind"])(context).metrics
    seconds = round(time.perf_counter() - began, 1)
    if config["kind"] == "pass_rate":
        told = {name: metrics[name] for name in ("problems", "pass_rate", "histogram")}
        data = (context.output / "data.jsonl").read_text(encoding="utf-8")
        return {**told, "measured_rollouts": metrics["samples"], "measuring_seconds": seconds, "data": data}
    lines = [json.loads(line) for line in context.events.read_text(encoding="utf-8").splitlines()]
    rollouts = config["trainer"]["per_device_train_batch_size"] * config["trainer"]["gradient_accumulation_steps"]
    return {"problems": metrics["problems"], **told_by(lines, rollouts), "seconds": seconds}


def told_by(lines: Sequence[Mapping[str, Any]], rollouts: int) -> dict[str, Any]:
    """What the events of a `grpo` stage say, with so many rollouts a step."""
    steps = [line for line in lines if FAILED in line]
    looks = [line for line in lines if WATCHED + "pass@1" in line]
    dead = [line[FAILED] + line[EQUAL] for line in steps]
    parts = [{name: value for name, value in line.items() if name.startswith("seconds/")} for line in steps]
    curve = [
        {"rollouts": look["step"] * rollouts, "accuracy": look[WATCHED + "pass@1"]}
        | {name: look[WATCHED + name] for name in ("low", "high", "n", "tokens", "truncated")}
        for look in looks
    ]
    return {
        "curve": [{name: round(value, 4) for name, value in look.items()} for look in curve],
        "rollouts": rollouts * len(steps),
        "live_rollouts": round(sum(rollouts * (1 - share) for share in dead)),
        "dead_share": round(fmean(dead), 4),
        "all_failed": [round(line[FAILED], 4) for line in steps],
        "all_solved": [round(line[EQUAL], 4) for line in steps],
        "reward": [round(line["reward"], 4) for line in steps],
        "seconds_a_step": round(median(sum(part.values()) - part["seconds/watching"] for part in parts), 3),
    }


def in_child(config: Mapping[str, Any], seed: int, place: Place) -> dict[str, Any]:
    """A stage in a process of its own; see `run_stage`."""
    job = {"config": config, "seed": seed, "cores": place.cores}
    env = place.env | allocator(config_class(config["kind"]).model_validate(config), os.environ)
    return children.in_child("benchmarks.difficulty", job, env)


def child(job: str) -> None:
    """What a child process does; see `in_child`."""
    task = json.loads(job)
    os.sched_setaffinity(0, task["cores"] or os.sched_getaffinity(0))
    folder = Path(task["folder"])
    leave(folder, run_stage(task["config"], task["seed"], folder / "work"))


def one(options: argparse.Namespace, way: str, seed: int, place: Place) -> dict[str, Any]:
    """A run: the training, and what is measured before it."""
    if way != "filter":
        return in_child(stage(options, way), seed, place)
    measured = in_child(rates_stage(options), seed, place)
    if "failed" in measured:
        return {"failed": f"pass_rate: {measured['failed']}"}
    with tempfile.TemporaryDirectory() as folder:
        rates = Path(folder) / "rates.jsonl"
        rates.write_text(measured.pop("data"), encoding="utf-8")
        found = in_child(stage(options, way, str(rates)), seed, place)
    return found if "failed" in found else {**found, "measured": measured}


def summary(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By way, over seeds: accuracy before and after, groups that taught nothing; and each way against `none`."""
    whole = {
        way: {seed: run for seed, run in found.items() if "failed" not in run} for way, found in sorted(runs.items())
    }
    told: dict[str, Any] = {
        way: {
            "accuracy_before": round(fmean(run["curve"][0]["accuracy"] for run in found.values()), 4),
            "accuracy": round(fmean(run["curve"][-1]["accuracy"] for run in found.values()), 4),
            "dead_share": round(fmean(run["dead_share"] for run in found.values()), 4),
            "seeds": len(found),
        }
        for way, found in whole.items()
        if found
    }
    for way in told.keys() - {"none"}:
        if whole[way].keys() & whole.get("none", {}).keys():
            told[way]["over_none"] = difference(whole[way], whole["none"])
    return told


def difference(runs: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The difference of accuracy at equal rollouts over the seeds that both have, with a 95 % interval (Student's t).

    The accuracy at the last look is compared, and the mean over all looks at trained weights.
    """
    told: dict[str, Any] = {}
    for name, first in (("at_the_end", -1), ("over_the_curve", 1)):
        pairs = []
        for seed in sorted(runs.keys() & others.keys()):
            curves = [of[seed]["curve"][first:] for of in (runs, others)]
            if [look["rollouts"] for look in curves[0]] != [look["rollouts"] for look in curves[1]]:
                raise ValueError(f"seed {seed}: the looks of two runs are at other numbers of rollouts")
            ours, theirs = (fmean(look["accuracy"] for look in curve) for curve in curves)
            pairs.append(ours - theirs)
        told[name] = {"seeds": [round(pair, 4) for pair in pairs], "mean": round(fmean(pairs), 4)}
        if len(pairs) in STUDENT_T:
            half = STUDENT_T[len(pairs)] * stdev(pairs) / math.sqrt(len(pairs))
            told[name]["interval"] = [round(fmean(pairs) - half, 4), round(fmean(pairs) + half, 4)]
    return told


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """The result so far: what `--out` holds, if it is of the same settings and versions.

    Raises:
        SystemExit: it is not.
    """
    settings = {
        "stages": {way: stage(options, way, "rates") for way in WAYS},
        "measured": {"passing": PASSING, "samples": MEASURED},
    }
    result: dict[str, Any] = {"settings": settings, "versions": grpo.versions(), "runs": {}, "commands": []}
    if options.out is not None and options.out.exists():
        before: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
        if (before["settings"], before["versions"]) != (settings, result["versions"]):
            sys.exit(f"{options.out} is of other settings or versions: write to another file")
        return before
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All runs that the result does not have yet; it is written after each."""
    result, writing = begun(options), Lock()
    result["commands"].append(shlex.join(["python", "-m", "benchmarks.difficulty", *sys.argv[1:]]))

    def run(job: tuple[str, int], place: Place) -> dict[str, Any]:
        way, seed = job
        found = one(options, way, seed, place)
        with writing:
            result["runs"].setdefault(way, {})[str(seed)] = found
            result["summary"] = summary(result["runs"])
            print(way, "seed", seed, json.dumps(result["summary"]), flush=True)
            if options.out is not None:
                durable.write(options.out, json.dumps(result, indent=1) + "\n")
        return found

    there = {way: {seed for seed, of in runs.items() if "failed" not in of} for way, runs in result["runs"].items()}
    jobs = [(way, seed) for seed in options.seeds for way in options.ways if str(seed) not in there.get(way, set())]
    side_by_side(jobs, options.gpus, run)
    return result


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl and test.jsonl; from the hub if not given")
    parser.add_argument("--template", default="boxed", help="prompt template")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["none", "pool"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--train-problems", type=int, default=512, help="an epoch is an eighth of this many steps")
    parser.add_argument("--test-problems", type=int, default=1319)
    parser.add_argument("--looks", type=int, default=3, help="at held-out problems, after the first step")
    parser.add_argument(
        "--gpus", nargs="+", type=children.gpu, default=[], help="a run on each; name one twice for two"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--gpu-memory", type=float, default=0.1, help="that has to be free for each engine")
    parser.add_argument("--tokens-per-pass", type=int, default=12288)
    parser.add_argument("--fused-kernels", action="store_true")
    parser.add_argument(
        "--engine-options",
        type=json.loads,
        default={"enable_prefix_caching": False, "kv_cache_memory_bytes": CACHE_BYTES},
        help="vLLM's, as JSON",
    )
    parser.add_argument("--smoke", action="store_true")
    options = children.options(parser, child)
    options.beta, options.dynamic_sampling_rounds, options.long = 0.0, 0, False
    if options.smoke:
        options.steps, options.looks, options.test_problems, options.train_problems = 2, 1, 4, 16
        options.seeds = options.seeds[:1]
    result = measure(options)
    failed = [
        f"{way}, seed {seed}" for way, of in result["runs"].items() for seed, run in of.items() if "failed" in run
    ]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
