"""Short GRPO runs with an engine in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig

from pipeline.schema.efficiency import STOCK, LengthChange, PoolSpec
from pipeline.training import adapters
from pipeline.training.grpo.engines import EngineSampler
from pipeline.training.grpo.judging import Samples
from pipeline.training.grpo.trainer import GrpoTrainer
from tests.training.replay import prepared, whole

STEPS, GROUP, PROMPTS = 5, 4, 2
PROBLEMS = [{"prompt": f"User: {a} + {b} =\nAssistant:\n"} for a, b in [(1, 2), (3, 1), (0, 0), (4, 4), (2, 2), (1, 0)]]
"""Three batches an epoch, so that the steps reach into the second."""


def varied(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """A reward that differs within groups."""
    return [float(len(set(ids)) % 5) for ids in completion_ids]


class Run:
    """A trained trainer.

    Attributes:
        weights: of the policy after the last step.
        logs: what each step logged.
    """

    def __init__(
        self,
        model: Path,
        output: Path,
        engine: Any,
        resume: Path | None = None,
        temperature: float = 1.3,
        max_staleness: int = 0,
        spare: float = 0.0,
        length_schedule: Sequence[LengthChange] = (),
        dynamic_sampling_rounds: int = 0,
        pool: PoolSpec | None = None,
        problems: Sequence[dict[str, str]] = PROBLEMS,
        reward: Any = varied,
        adapter: dict[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        made: Callable[[Any], None] = lambda trainer: None,
        **fields: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "output_dir": str(output),
            "num_generations": GROUP,
            "per_device_train_batch_size": GROUP * PROMPTS,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 24,
            "learning_rate": 5e-3,
            "max_steps": STEPS,
            "save_steps": 100,
            "logging_steps": 1,
            "beta": 0.0,
            "temperature": temperature,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "disable_tqdm": True,
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 2.0,
        }
        args = GRPOConfig(**{**settings, **fields})
        self.trainer = adapters.carry(
            GrpoTrainer,
            prepared(model, adapter),
            model=str(model),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_list(list(problems)),
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            samples=Samples(output / "samples.jsonl", 1, 0),
            efficiency=STOCK.model_copy(update={"dynamic_sampling_rounds": dynamic_sampling_rounds}),
            sampler=lambda trainer: EngineSampler(trainer, engine, max_staleness, spare),
            length_schedule=length_schedule,
            pool_spec=pool,
            callbacks=list(callbacks),
        )
        made(self.trainer)
        self.trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        self.weights = {name: whole(tensor).clone() for name, tensor in self.trainer.model.state_dict().items()}
        self.logs = [entry for entry in self.trainer.state.log_history if "loss" in entry]

    def logged(self, metric: str) -> list[float]:
        return [entry[metric] for entry in self.logs]

    def equals(self, other: Run) -> bool:
        return all(torch.equal(tensor, other.weights[name]) for name, tensor in self.weights.items())
