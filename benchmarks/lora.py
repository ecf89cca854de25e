"""GRPO of all weights, of an adapter (LoRA), and of an adapter on a base of 4 bits (QLoRA): accuracy, memory, speed.

    python -m benchmarks.lora --model Qwen/Qwen2.5-Coder-1.5B-Instruct --problems path/to/gsm8k --devices 0 1 2 \\
        --out benchmarks/results/lora-h200.json
    python -m benchmarks.lora --recipe lora/7b-24gb --limit-gb 24 --tokenizer path/to/qwen --random Qwen/Qwen2.5-7B \\
        --steps 10 --out benchmarks/results/7b-24gb-h200.json
    python -m benchmarks.lora --smoke --model path/to/tiny --problems path/to/gsm8k            # on a CPU, two steps

The first: the same problems in the same order, the same seeds; the learning rate of full training, and ten times that
for adapters, as the stage has it by default. vLLM is in the process and sleeps while the trainer works, with gradient
checkpointing, as the recipes of `recipes/lora` have it. Accuracy is that of the last policy on GSM8K's test problems,
greedy. The peak is what the device has in use, engine and context included. The result is written after each run, and
the same command goes on from it.

The second: the `zero` stage of a recipe, with the engine's share and torch's allocator held to a smaller card, on a 7B
of random weights: every rollout is as long as it may be, and every second one is paid.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import children
from benchmarks.children import Place, leave, places, side_by_side
from benchmarks.grpo import WARM_UP, context_of, versions
from benchmarks.grpo_clock import Clock, Memory, summarise, watch
from pipeline.cost import models
from pipeline.files import durable
from pipeline.recipe import load
from pipeline.runner.process import allocator
from pipeline.schema.adapter import RATE_FACTOR
from pipeline.stages.registry import config_class

ADAPTERS: Mapping[str, dict[str, Any] | None] = {"full": None, "lora": {}, "qlora": {"quantize": "4bit"}}
"""Kind of run -> the recipe's `adapter`."""
CARD_BYTES = 25.3e9
"""What torch sees of a card of 24 GB, whose share a recipe's `gpu_memory` is."""


def train(config: Mapping[str, Any], seed: int, folder: Path, problems: int, limit_gb: float | None) -> dict[str, Any]:
    """Train as the `grpo` stage does. Returns the run's numbers, and the accuracy of its last policy on test problems.

    Args:
        config: the stage's.
        seed: of the stage.
        folder: to work in.
        problems: of the test split that the last policy is asked; none if 0.
        limit_gb: what torch's allocator may take of the GPU.
    """
    from pipeline.training import setup

    setup.prepare()
    import torch

    from pipeline.stages import grpo
    from pipeline.tasks.grading import composite
    from pipeline.training.grpo.judging import Judge

    if limit_gb is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        engine = config["rollout"]["gpu_memory"] * total  # torch counts what sleeps there, too
        torch.cuda.set_per_process_memory_fraction((limit_gb * 1e9 + engine) / total)
    context = context_of(config, seed, folder)
    reward = Judge(composite(context.config.rewards, context.config.tasks, context).parts, context.base)
    reward.prepare()
    memory, clock = Memory(), Clock()
    memory.start()
    trainer = grpo.build(context, reward)
    logs = watch(trainer, clock)
    try:
        trainer.train()
        steps = len(clock.steps)
        rows = trainer.args.generation_batch_size
        found = summarise(clock, logs, rows, memory.stop(), min(WARM_UP, steps - 1))
        if problems:
            found["test_accuracy"] = accuracy(trainer, context, problems)
    finally:
        reward.close()
        trainer.sampler.close()
    found["trained"] = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return found


def accuracy(trainer: Any, context: Any, problems: int) -> float:
    """Share of test problems that the present policy solves, greedily."""
    from pipeline.rollout.base import Sampling
    from pipeline.tasks.resolve import prompt_rows
    from pipeline.training import setup
    from pipeline.training.generation import prompted
    from pipeline.training.grpo.sampling import Sampled, VllmSampler

    config, (task,) = context.config, context.config.tasks
    asked = task.model_copy(update={"split": "test", "problems": problems})
    renderer = setup.renderer(context.model_path(config.model), trainer.processing_class, config)

    class Anything:
        """A room that every prompt fits."""

        def fitting(self, tokenizer: Any, texts: list[str], rows: list[Any]) -> list[int]:
            return list(range(len(rows)))

    rows = prompted(prompt_rows([asked], context), renderer, Anything())  # type: ignore[arg-type]
    sampler = trainer.sampler
    prompts = sampler.prompts(rows)
    if isinstance(sampler, VllmSampler):
        sampler._wake()
        greedy = Sampling(max_tokens=config.rollout.max_tokens, temperature=0.0)
        rollouts = [group[0] for group in sampler.engine.generate(prompts, greedy)]
        sampled = Sampled.of(rows, prompts, rollouts, False).ending(trainer.stopped)
    else:  # on a CPU: sampled, as in training
        groups = trainer.num_generations
        repeated = [row for row in rows for _ in range(groups)]
        sampled = sampler.extra(repeated).ending(trainer.stopped)
    texts = trainer._decoded(sampled)
    told = [problem["prompt"] for problem in sampled.problems]
    rewards_BF = trainer._calculate_rewards(list(sampled.problems), told, texts, sampled.completion_ids)
    return float(rewards_BF[:, 0].nanmean())


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """The stage of the comparison, without its adapter."""
    trainer: dict[str, Any] = {
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 8,
        "beta": 0.0,
        "epsilon": 0.2,
        "max_steps": options.steps,
        "save_steps": options.steps + 1,
        "gradient_checkpointing": True,
        "vllm_enable_sleep_mode": True,
    }
    rollout: dict[str, Any] = {"engine": "vllm", "max_tokens": 400, "gpu_memory": options.gpu_memory}
    if options.smoke:
        trainer |= {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
        trainer.pop("vllm_enable_sleep_mode")
        rollout = {"engine": "transformers", "max_tokens": 16}
    given = {"path": options.problems} if options.problems else {}
    return {
        "kind": "grpo",
        "model": options.model,
        "tasks": [{"use": "gsm8k", "options": given, "template": "boxed"}],
        "rewards": ["accuracy"],
        "rollout": rollout,
        "efficiency": {"tokens_per_pass": options.tokens_per_pass},
        "trainer": trainer,
    }


def of_kind(config: Mapping[str, Any], kind: str, rate: float, factor: float = RATE_FACTOR) -> dict[str, Any]:
    """The stage of one kind of run.

    Args:
        config: `stage`.
        kind: one of `ADAPTERS`.
        rate: learning rate of full training.
        factor: an adapter's learning rate is so many times as high.
    """
    rate *= 1 if ADAPTERS[kind] is None else factor
    return {**config, "adapter": ADAPTERS[kind], "trainer": {**config["trainer"], "learning_rate": rate}}


def of_recipe(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """The `zero` stage of a recipe, on a model of random weights, held to a smaller card."""
    import torch

    given = load(options.recipe, options.override).stages["zero"].model_dump(mode="json", by_alias=True)
    given |= {"model": model, "after": [], "seed": None}
    given |= {"tasks": [{"use": "benchmarks/counting.py:Counting"}], "rewards": ["benchmarks/counting.py:every_second"]}
    given["trainer"] |= {"max_steps": options.steps, "save_steps": options.steps + 1}
    if options.smoke:
        given["adapter"]["quantize"] = "none"
        given["rollout"] |= {"engine": "transformers", "max_tokens": 16, "engine_options": {}}
        given["trainer"] |= {"num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        given["trainer"].pop("vllm_enable_sleep_mode")
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        given["rollout"]["gpu_memory"] = round(given["rollout"]["gpu_memory"] * CARD_BYTES / total, 4)
    return given


def random_model(like: str, tokenizer: str, folder: Path, small: bool) -> str:
    """A model with random weights, of the shape of one on the hub, or a small one like it. Returns its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    read = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    shape = models.config(like)
    if shape is None:
        raise ValueError(f"the shape of {like} is not known: one of {', '.join(models.names())}")
    if small:
        shape |= {"hidden_size": 4 * shape["num_attention_heads"], "intermediate_size": 64}
        shape |= {"num_hidden_layers": 2, "vocab_size": len(read)}
    ends = {"eos_token_id": read.eos_token_id, "pad_token_id": read.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.for_model(**shape, **ends)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if small else torch.bfloat16)
    model.save_pretrained(folder)
    read.save_pretrained(folder)
    return str(folder)


def made(like: str, tokenizer: str, folder: Path, small: bool) -> str:
    """`random_model` in a process of its own: one that has used a GPU keeps some of its memory as long as it lives."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(random_model, like, tokenizer, folder, small).result()


def in_child(config: Mapping[str, Any], options: argparse.Namespace, place: Place, problems: int) -> dict[str, Any]:
    """One run in a process of its own: what `train` returns, or why there is nothing."""
    job = {"config": config, "seed": options.seed, "problems": problems, "limit": options.limit_gb}
    env = place.env | allocator(config_class("grpo").model_validate(config), os.environ)
    return children.in_child("benchmarks.lora", job, env)


def child(job: str) -> None:
    """What a child process does; see `in_child`."""
    task = json.loads(job)
    folder = Path(task["folder"])
    leave(folder, train(task["config"], task["seed"], folder / "work", task["problems"], task["limit"]))


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Every kind that `options.out` does not have yet, as many at a time as there are GPUs; written after each."""
    config, problems = stage(options), 4 if options.smoke else options.test_problems
    runs: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        if earlier["settings"] != config:
            sys.exit(f"{options.out} has runs with other settings: name another file")
        runs = {kind: found for kind, found in earlier["runs"].items() if "failed" not in found}

    def run(kind: str, place: Place) -> dict[str, Any]:
        found = in_child(of_kind(config, kind, options.learning_rate, options.rate_factor), options, place, problems)
        told = {name: value for name, value in found.items() if not isinstance(value, list)}
        print(kind, json.dumps(told), flush=True)
        runs[kind] = found
        keep(joined(runs, config, options), options.out)
        return found

    side_by_side([kind for kind in options.kinds if kind not in runs], options.devices, run)
    return joined(runs, config, options)


def joined(runs: Mapping[str, Any], config: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The numbers of the runs beside each other."""
    whole = {kind: runs[kind] for kind in ADAPTERS if "failed" not in runs.get(kind, {"failed": "not run"})}
    return {
        "accuracy": {kind: found["test_accuracy"] for kind, found in whole.items()},
        "last_rollouts": {kind: round(fmean(found["accuracy"][-5:]), 4) for kind, found in whole.items()},
        "peak_gb": {kind: found["peak_gb"] for kind, found in whole.items()},
        "samples_per_second": {kind: found["samples_per_s"] for kind, found in whole.items()},
        "test_problems": 4 if options.smoke else options.test_problems,
        "runs": dict(runs),
        "settings": dict(config),
        "learning_rate": options.learning_rate,
        "rate_factor": options.rate_factor,
    }


def keep(result: dict[str, Any], out: Path | None) -> None:
    """Write a result down, with the versions and the command that made it."""
    result |= {"versions": versions(), "command": shlex.join(["python", "-m", "benchmarks.lora", *sys.argv[1:]])}
    if out is not None:
        durable.write(out, json.dumps(result, indent=1) + "\n")


def held(options: argparse.Namespace) -> dict[str, Any]:
    """A recipe's stage on a smaller card."""
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.random is not None:
            model = made(options.random, options.tokenizer or options.model, Path(folder) / "model", options.smoke)
        config = of_recipe(options, model)
        found = in_child(config, options, places(options.devices)[0], 0)
    numbers = {} if "failed" in found else {"peak_gb": found["peak_gb"], "seconds_a_step": found["seconds_a_step"]}
    return {
        **numbers,
        "limit_gb": options.limit_gb,
        "runs": {options.recipe: found},
        "settings": {**config, "model": "random"},
    }


def main() -> None:
    """Parse the command line, run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl and test.jsonl; from the hub if not given")
    parser.add_argument("--test-problems", type=int, default=1319)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--devices", nargs="+", type=children.gpu, default=[], help="GPUs, with a run at a time each")
    parser.add_argument("--learning-rate", type=float, default=2e-6, help="of full training")
    parser.add_argument("--rate-factor", type=float, default=RATE_FACTOR, help="an adapter's learning rate over that")
    parser.add_argument("--gpu-memory", type=float, default=0.06, help="vLLM's share of the GPU")
    parser.add_argument("--tokens-per-pass", type=int, default=8192)
    parser.add_argument("--recipe", help="hold the `zero` stage of this recipe to a smaller card, and nothing else")
    parser.add_argument(
        "--override", nargs="*", default=[], help="settings of that recipe, as `zero2r1 run` takes them"
    )
    parser.add_argument("--limit-gb", type=float, help="what torch's allocator may take")
    parser.add_argument("--random", help="model on the hub: one of its shape with random weights takes its place")
    parser.add_argument("--tokenizer", help="folder or hub id of that model's tokenizer")
    parser.add_argument("--smoke", action="store_true")
    options = children.options(parser, child)
    if options.smoke:
        options.steps = 2
        options.kinds = [kind for kind in options.kinds if kind != "qlora"]  # it needs a GPU
    result = held(options) if options.recipe else compared(options)
    keep(result, options.out)
    print({name: value for name, value in result.items() if name not in ("runs", "settings")})
    if any("failed" in run for run in result["runs"].values()):
        sys.exit("a run failed: see above")


if __name__ == "__main__":
    main()
