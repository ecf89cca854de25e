"""GRPO on recorded rollouts: trainers that differ in one thing only, and what each of their optimizer steps did."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo_replay import Elsewhere, Replayed
from pipeline.schema.efficiency import Efficiency
from pipeline.stages.registry import config_class
from pipeline.training import adapters, models
from pipeline.training.grpo import reference
from pipeline.training.grpo.judging import Samples
from pipeline.training.grpo.sampling import TrlSampler
from pipeline.training.grpo.schedule import merged
from pipeline.training.grpo.trainer import GrpoTrainer
from pipeline.training.parallel.sharding import launched

GROUP, BATCH = 4, 8
LONGEST = 24
"""Tokens of the longest completion; those that long are truncated."""


@dataclass
class History:
    """What a run did.

    Attributes:
        gradients: one flat vector an optimizer step.
        logs: the logged metrics, one mapping an optimizer step.
        start: the weights before the first step, one flat vector.
    """

    gradients: list[torch.Tensor] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    start: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def losses(self) -> list[float]:
        """The loss of each step as it was logged, unrounded."""
        return [entry["loss"] for entry in self.logs if "loss" in entry]


def whole(tensor: Any) -> torch.Tensor:
    """A weight or its gradient on the CPU, gathered from its shards; collective."""
    gathered: torch.Tensor = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
    return gathered


class _Recorder(TrainerCallback):
    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.history.start = torch.cat([whole(weight.detach()).flatten() for weight in model.parameters()]).clone()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        grads = [whole(p.grad).flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]
        self.history.gradients.append(torch.cat(grads).clone())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.history.logs.append(dict(logs))


def rollouts(vocabulary: int, end: int, seed: int = 0, scored: bool = False) -> Callable[..., dict[str, Any]]:
    """A rollout function as TRL takes it: completions of very uneven length, the same ones in every run.

    Args:
        vocabulary: number of tokens to draw from.
        end: the token that ends a completion; the longest completions lack it.
        scored: whether the sampler gives log-probabilities, as vLLM does, one of them missing now and then.
    """
    rng = random.Random(seed)

    def sample(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids, _, _ = trainer._tokenize_prompts(list(prompts))
        completions = []
        for _ in prompts:
            length = min(LONGEST, 1 + int(rng.expovariate(1 / 7)))
            ids = [rng.randrange(4, vocabulary) for _ in range(length)]
            completions.append(ids if length == LONGEST else [*ids[:-1], end])
        logprobs = None
        if scored:
            logprobs = [[None if rng.random() < 0.02 else -3 + rng.random() for _ in ids] for ids in completions]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": logprobs}

    return sample


def graded(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward that differs within most groups."""
    return [float(sum(ids) % 3) for ids in completion_ids]


def half_dead(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward without variance in every second group."""
    return [float(sum(ids) % 3) if row // GROUP % 2 else 1.0 for row, ids in enumerate(completion_ids)]


def trainer_of(
    model: Path,
    output: Path,
    efficiency: Efficiency | None,
    prompts: Sequence[Any],
    reward: Any = graded,
    vllm: bool = False,
    length_schedule: Sequence[Any] = (),
    replayed: bool = True,
    rollout_seed: int = 0,
    merge: bool = False,
    adapter: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """A trainer on recorded rollouts; without `efficiency` it is TRL's own.

    Args:
        vllm: treat the rollouts as vLLM's: their log-probabilities are corrected for.
        replayed: whether rollouts are recorded ones; the model's own, sampled with transformers, otherwise.
        merge: whether the micro-batches of a step are made one.
        adapter: a recipe's `adapter`; for TRL's own trainer, PEFT's config of all linear layers with these settings.
    """
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "num_generations": GROUP,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 2,
        "max_completion_length": LONGEST,
        "optim": "sgd",  # Adam divides by the size of a gradient, and so makes rounding errors as large as the rest
        "learning_rate": 0.05,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "beta": 0.0,
        "seed": 3,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        "save_steps": 2,
        "shuffle_dataset": False,  # TRL's order and ours are drawn differently
        **fields,
    }
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    args = GRPOConfig(**settings)
    if merge:
        args = GRPOConfig(**{**settings, **merged(args, router_loss=False)})
    arguments: dict[str, Any] = {
        "model": str(model),
        "reward_funcs": reward,
        "args": args,
        "train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        "processing_class": tokenizer,
    }
    recorded = rollouts(len(tokenizer), tokenizer.eos_token_id, rollout_seed, vllm)
    if efficiency is None:
        if adapter is not None:
            arguments["peft_config"] = lora(adapter)
        trainer = GRPOTrainer(**arguments, rollout_func=recorded if replayed else None)
        if vllm:
            trainer.use_vllm, trainer._last_loaded_step = True, 0
            trainer.vllm_generation = Elsewhere()
        return trainer
    with reference.loaded_as_policy(args):
        if launched():
            arguments["model"] = models.policy(str(model), args)
        return adapters.carry(
            GrpoTrainer,
            prepared(model, adapter),
            **arguments,
            samples=Samples(output / "samples.jsonl", 1, 0),
            efficiency=efficiency,
            length_schedule=length_schedule,
            sampler=(lambda trainer: Replayed(trainer, recorded, vllm)) if replayed else TrlSampler,
        )


def lora(adapter: dict[str, Any]) -> Any:
    """PEFT's own config of an adapter on all linear layers."""
    from peft import LoraConfig

    names = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    given = {names.get(name, name): value for name, value in adapter.items()}
    return LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **given)


def prepared(model: Path, adapter: dict[str, Any] | None, kind: str = "grpo", task: str = adapters.CAUSAL) -> Any:
    """An adapter as a stage prepares it."""
    needs = {"grpo": {"tasks": ["gsm8k"]}}.get(kind, {"data": ["rows.jsonl"]})
    config = config_class(kind).model_validate({"kind": kind, "model": str(model), "adapter": adapter, **needs})
    return adapters.prepare(config, str(model), task)


def history_of(trainer: Any) -> History:
    """Train, and tell what happened."""
    history = History()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Recorder(history))
    trainer.train()
    return history


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two vectors are apart, relative to the first."""
    return float((one - other).norm() / one.norm())
