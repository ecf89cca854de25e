"""GRPO on one GPU: stock TRL and ours, one after the other, on the same problems in the same order.

    python -m benchmarks.grpo --model Qwen/Qwen2.5-Coder-0.5B-Instruct --problems path/to/gsm8k \\
        --out benchmarks/results/grpo-h200.json
    python -m benchmarks.grpo --long --model Qwen/Qwen2.5-1.5B-Instruct --steps 4 --out benchmarks/results/…
    python -m benchmarks.grpo --smoke --model path/to/tiny --problems path/to/gsm8k      # on a CPU, two steps

64 problems x 8 rollouts a step, 400 tokens at most, 64 x 8 accumulation, bf16, vLLM in the process; `--long`: 32 x 8
rollouts of up to 8,192 tokens that count (see `counting`), every second of them paid, with gradient checkpointing and a
learning rate of 0: whatever a policy learnt from that, the lengths of the two kinds' rollouts would part.
*Stock* is `trl.GRPOTrainer`; *ours* is the `grpo` stage's trainer with the default `efficiency`, but for what the
options say. Both get the same GRPOConfig, of whose micro-batches ours makes one, and the same model, reward and seed.
Each runs in a process of its own; the first steps, which warm up kernels and caches, are not counted. Reported:
samples/s, tokens/s, where a step's time goes, the peak of the device's memory, the accuracy of each step's rollouts,
and the engine's own speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

from benchmarks import children
from benchmarks.children import Place, leave, places, side_by_side
from benchmarks.grpo_clock import Clock, Memory, profile, summarise, watch
from pipeline.context import StageContext
from pipeline.runner.process import allocator
from pipeline.schema.launch import VISIBLE
from pipeline.stages.registry import config_class

WARM_UP = 2
"""Steps at the start that are not counted."""
WINDOW = 3
"""Steps over which accuracy is averaged before it is compared with the target."""
PACKAGES = ("torch", "transformers", "trl", "vllm", "accelerate", "liger-kernel")
KINDS = ("ours", "stock")
PROFILE = " profile"
"""Follows the kind of a run that is profiled."""


def context_of(config: Mapping[str, Any], seed: int, folder: Path) -> StageContext[Any]:
    """What a stage would run with."""
    scratch, output = folder / "scratch", folder / "output"
    scratch.mkdir(parents=True)
    output.mkdir()
    checked = config_class(config["kind"]).model_validate(config)
    return StageContext("benchmark", checked, {}, output, scratch, Path.cwd(), seed, scratch / "events.jsonl")


def train(kind: str, config: Mapping[str, Any], seed: int, folder: Path, profiled: bool = False) -> dict[str, Any]:
    """Train with `stock` TRL or with `ours`, and tell how it went, or where the time of the last step went."""
    from pipeline.training import setup

    setup.prepare()
    from datasets import Dataset
    from trl import GRPOTrainer

    from pipeline.schema.efficiency import STOCK
    from pipeline.stages import grpo
    from pipeline.tasks.grading import composite
    from pipeline.tasks.resolve import prompt_rows
    from pipeline.training import models
    from pipeline.training.grpo.judging import Judge

    context = context_of(config if kind == "ours" else {**config, "efficiency": STOCK.model_dump()}, seed, folder)
    reward = Judge(composite(context.config.rewards, context.config.tasks, context).parts, context.base)
    reward.prepare()
    memory = Memory()
    memory.start()
    if kind == "ours":
        trainer = grpo.build(context, reward)
    else:
        model, args = context.model_path(context.config.model), stock_arguments(context)
        trainer = GRPOTrainer(
            model=models.policy(model, args),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_list(prompt_rows(context.config.tasks, context)),
            processing_class=setup.load_tokenizer(model),
        )
    clock = Clock()
    logs = watch(trainer, clock)
    profiles = profile(trainer, context.config.trainer["max_steps"] - 1) if profiled else {}
    try:
        trainer.train()
    finally:
        reward.close()
        if kind == "ours":
            trainer.sampler.close()
    if profiled:
        return profiles
    steps = len(clock.steps)
    return summarise(clock, logs, trainer.args.generation_batch_size, memory.stop(), min(WARM_UP, steps - 1))


def stock_arguments(context: StageContext[Any]) -> Any:
    """TRL's GRPOConfig for the stage, with TRL's own engine."""
    from trl import GRPOConfig

    from pipeline.stages.grpo import trainer_defaults
    from pipeline.training import setup
    from pipeline.training.generation import generation_fields

    config = context.config
    return setup.arguments(GRPOConfig, context, trainer_defaults(config), generation_fields(config.rollout))


def engine(config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Tokens a second of the engine alone, without log-probabilities, on the prompts of the first steps."""
    from pipeline.rollout import open_engine, sampling
    from pipeline.tasks.resolve import prompt_rows
    from pipeline.training import setup

    context = context_of(config, seed, folder)
    checked, trainer = context.config, context.config.trainer
    model = context.model_path(checked.model)
    tokenizer = setup.load_tokenizer(model)
    group = trainer["num_generations"]
    count = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] // group
    rows = prompt_rows(checked.tasks, context)[: count * (WARM_UP + 1)]
    template = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    prompts = [tokenizer.apply_chat_template(row["prompt"], **template) for row in rows]
    opened = open_engine(checked.rollout, model, seed)
    try:
        speeds = []
        for start in range(0, len(prompts), count):
            began = time.perf_counter()
            groups = opened.generate(prompts[start : start + count], sampling(checked.rollout, group, seed + start))
            tokens = sum(len(rollout.token_ids) for found in groups for rollout in found)
            speeds.append(tokens / (time.perf_counter() - began))
    finally:
        opened.close()
    return {"tokens_per_s": round(max(speeds), 1)}


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """The stage's config, as a recipe would have it."""
    trainer: dict[str, Any] = {
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 8,
        "learning_rate": options.learning_rate,
        "beta": options.beta,
        "epsilon": 0.2,
        "max_steps": options.steps,
        "save_steps": options.steps + 1,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,  # the problems are shuffled already, the same way for both
    }
    rollout: dict[str, Any] = {"engine": "vllm", "max_tokens": 400, "gpu_memory": options.gpu_memory}
    if options.long:
        trainer |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 64, "gradient_checkpointing": True}
        trainer["learning_rate"] = 0.0
        rollout["max_tokens"] = 8192
    if options.smoke:
        trainer |= {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
        rollout = {"engine": "transformers", "max_tokens": 16}
    task: dict[str, Any] = {"use": "gsm8k", "options": {"path": options.problems} if options.problems else {}}
    task["template"], reward = "boxed", "accuracy"
    if options.long:
        task, reward = {"use": "benchmarks/counting.py:Counting"}, "benchmarks/counting.py:every_second"
    return {
        "kind": "grpo",
        "model": options.model,
        "tasks": [task],
        "rewards": [reward],
        "rollout": rollout,
        "efficiency": {
            "tokens_per_pass": options.tokens_per_pass,
            "dynamic_sampling_rounds": options.dynamic_sampling_rounds,
        },
        "trainer": trainer,
    }


def of_ours(config: Mapping[str, Any], options: argparse.Namespace, device: str | None = None) -> dict[str, Any]:
    """What only a recipe can set: engines, vLLM's own options, and switches of ours."""
    rollout = {**config["rollout"], "engine_options": options.engine_options}
    if options.engines:
        rollout["process"] = {"devices": [device or os.environ.get(VISIBLE, "0")] * options.engines}
        if "gpu_memory" in rollout:
            rollout["gpu_memory"] /= options.engines
    switches = {"fused_kernels": options.fused_kernels, "merge_micro_batches": options.one_micro_batch}
    return {**config, "rollout": rollout, "efficiency": {**config["efficiency"], **switches}}


def in_child(kind: str, config: Mapping[str, Any], seed: int, place: Place | None = None) -> dict[str, Any]:
    """One run in a process of its own: what `train` or `engine` returns, or why there is nothing."""
    place = place or Place()
    memory = {} if kind == "stock" else allocator(config_class("grpo").model_validate(config), os.environ)
    job = {"kind": kind, "config": config, "seed": seed, "cores": place.cores}
    return children.in_child("benchmarks.grpo", job, place.env | memory)


def child(job: str) -> None:
    """What a child process does; see `in_child`."""
    task = json.loads(job)
    os.sched_setaffinity(0, task["cores"] or os.sched_getaffinity(0))
    folder = Path(task["folder"])
    told = (task["config"], task["seed"], folder / "work")
    if task["kind"] == "engine":
        found = engine(*told)
    else:
        found = train(task["kind"].removesuffix(PROFILE), *told, profiled=task["kind"].endswith(PROFILE))
    leave(folder, found)


def all_runs(config: Mapping[str, Any], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every seed of both kinds, in the order of the seeds; as many at a time as there are GPUs."""
    done: list[dict[str, Any]] = []
    writing = Lock()

    def run(job: tuple[str, int], place: Place) -> dict[str, Any]:
        kind, seed = job
        found = in_child(kind, config if kind == "stock" else of_ours(config, options, place.device), seed, place)
        print(kind, "seed", seed, json.dumps({k: v for k, v in found.items() if not isinstance(v, list)}), flush=True)
        with writing:
            done.append({"kind": kind, "seed": seed, **found})
            if options.out is not None:  # should something stop the others, or the machine
                options.out.write_text(json.dumps({"so_far": done}, indent=1) + "\n", encoding="utf-8")
        return found

    jobs = [(kind, seed) for seed in options.seeds for kind in options.kinds]
    runs = side_by_side(jobs, options.devices, run)
    return {
        kind: [found for (each, _), found in zip(jobs, runs, strict=True) if each == kind]
        for kind in sorted(options.kinds, reverse=True)
    }


def reached(run: Mapping[str, Any], target: float) -> float | None:
    """Seconds until the accuracy of the last few steps reached a target; `None` if it never did."""
    for step in range(WINDOW, len(run["accuracy"]) + 1):
        if fmean(run["accuracy"][step - WINDOW : step]) >= target:
            return float(run["elapsed"][step - 1])
    return None


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]], target: float) -> dict[str, Any]:
    """Ours against stock, over all seeds."""
    speeds = {kind: fmean(run["samples_per_s"] for run in found) for kind, found in runs.items()}
    return {
        "speedup": round(speeds["ours"] / speeds["stock"], 2),
        "peak_gb": max(run["peak_gb"] for run in runs["ours"]),
        "stock_peak_gb": max(run["peak_gb"] for run in runs["stock"]),
        "target": target,
        "seconds_to_target": {kind: [reached(run, target) for run in found] for kind, found in runs.items()},
    }


def versions() -> dict[str, str]:
    """Of the packages that matter, and the device."""
    import torch

    found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def this() -> str:
    """The command that runs, as one would write it."""
    return shlex.join(["python", "-m", "benchmarks.grpo", *sys.argv[1:]])


def merged(results: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """Results of other seeds or kinds with the same settings as one; what only some have comes from the first of them.

    What only a recipe can set matters where ours was measured alone: a result of stock goes with any of ours.

    Raises:
        SystemExit: their settings or versions differ, or a command had not ended.
    """
    if any("runs" not in result for result in results):
        sys.exit("--merge: one of them is what was left of a command that did not end")
    ours = [result for result in results if result["runs"].get("ours")]
    of_stock = [{**result.get("stock_settings", {}), "efficiency": None} for result in results]  # stock has none
    for name, told in (
        ("settings", [result["settings"] for result in ours]),
        ("stock_settings", of_stock),
        ("versions", [result["versions"] for result in results]),
    ):
        if any(one != told[0] for one in told):
            sys.exit(f"--merge: not the same {name} in all of them")
    runs = {kind: [run for result in results for run in result["runs"].get(kind, ())] for kind in KINDS}
    rest = {name: value for result in reversed([*ours, *results]) for name, value in result.items()}
    return {
        **rest,
        **compare(runs, target),
        "runs": runs,
        "command": " && ".join([*(result["command"] for result in results), this()]),
    }


def tell(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print what a result comes to, and write it."""
    named = ("speedup", "peak_gb", "stock_peak_gb", "seconds_to_target", "engine")
    print({name: result[name] for name in named if name in result})
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl; from the hub if not given")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--devices", nargs="+", type=children.gpu, default=[], help="GPUs, with a run at a time each")
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--gpu-memory", type=float, default=0.15, help="vLLM's share of the GPU, for both")
    parser.add_argument("--tokens-per-pass", type=int, default=8192)
    parser.add_argument("--dynamic-sampling-rounds", type=int, default=0)
    parser.add_argument("--target", type=float, default=0.35, help="accuracy whose time is told")
    parser.add_argument("--one-micro-batch", action=argparse.BooleanOptionalAction, default=True, help="ours only")
    parser.add_argument("--engines", type=int, default=0, help="ours only: engines in processes of their own")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="ours only: vLLM's, as JSON")
    parser.add_argument("--fused-kernels", action="store_true", help="ours only: Liger's, for the trained model")
    parser.add_argument("--profile", action="store_true", help="and where the time of one step of ours goes")
    parser.add_argument("--raw-engine", action=argparse.BooleanOptionalAction, default=True, help="its speed alone")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--merge", nargs="+", type=Path, help="results of single seeds, or kinds, to put into one")
    options = children.options(parser, child)
    if options.merge:
        tell(merged([json.loads(path.read_text(encoding="utf-8")) for path in options.merge], options.target), options)
        return
    if options.smoke:
        options.steps = 2
    config = stage(options)
    ours = of_ours(config, options, *options.devices[:1])
    runs = all_runs(config, options)
    first = places(options.devices)[0]
    result: dict[str, Any] = {"runs": runs}
    if options.raw_engine:
        result["engine"] = in_child("engine", config, 0, first)
    if options.profile:
        few = {**ours, "trainer": {**ours["trainer"], "max_steps": WARM_UP + 1}}
        result["profile"] = in_child("ours" + PROFILE, few, 0, first)
    result |= {"settings": ours, "stock_settings": config, "versions": versions()}
    result["command"] = this()
    failed = any("failed" in run for found in runs.values() for run in found)
    if not failed and len(runs) == len(KINDS):
        result = {**compare(runs, options.target), **result}
    tell(result, options)
    if failed:
        sys.exit("a run failed: see above")


if __name__ == "__main__":
    main()
