"""Answers of a model that is in the middle of its training, which goes on afterwards as if nothing had been asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy
import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig

from pipeline.rollout.adapted import base_of
from pipeline.rollout.base import Rollout, Sampling, derived_seed
from pipeline.rollout.transformers import TransformersEngine
from pipeline.training.parallel.expert_parallel import expert_ranks

Prompts = Sequence[Sequence[int]]
Groups = list[list[Rollout]]


@contextmanager
def untouched() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch as they were."""
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


def generate(trainer: Any, prompts: Prompts, sampling: Sampling, batch_size: int) -> Groups:
    """Rollouts by the `generate` of a trainer's own model, all of them in every process. Collective.

    Args:
        trainer: any of TRL's.
        prompts: token ids, the same in every process.
        sampling: how; the seed is mixed with the process's number where processes share the prompts.
        batch_size: sequences at a time.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    together = expert_ranks() > 1  # they compute one batch: all ask the same
    sharded = together or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    engine = _Borrowed.of(policy, trainer.processing_class, batch_size)
    engine.synced = sharded and trainer.accelerator.num_processes > 1
    with _answering(policy):
        if together:
            return engine.generate(prompts, sampling)
        return shared(trainer.accelerator, prompts, sampling, engine.generate)


def shared(
    accelerator: Any, prompts: Prompts, sampling: Sampling, generate: Callable[[Prompts, Sampling], Groups]
) -> Groups:
    """Have each process sample its share of the prompts, as many as every other one; all of them in each. Collective.

    Args:
        accelerator: knows the processes.
        prompts: token ids, the same in every process.
        sampling: how; the seed of a share is that of its process.
        generate: samples in this process.
    """
    ranks, mine = accelerator.num_processes, accelerator.process_index
    if ranks == 1:
        return generate(prompts, sampling)
    each = -(-len(prompts) // ranks)
    own = [prompts[at % len(prompts)] for at in range(mine, each * ranks, ranks)]
    every = gather_object(generate(own, replace(sampling, seed=derived_seed(sampling.seed, mine))))
    return [every[at % ranks * each + at // ranks] for at in range(len(prompts))]


class _Borrowed(TransformersEngine):
    """An engine around a model that belongs to a trainer."""

    no_gradient = torch.no_grad
    """What a layer keeps from inference mode, such as rotations, could not be trained with."""
    synced = False
    """Whether every process has to compute as many tokens as the others: each has a part of the weights."""

    def _config(self, sampling: Sampling) -> GenerationConfig:
        config = super()._config(sampling)
        config.use_cache = True  # trainers switch it off in the model's config
        return config

    def _more(self) -> dict[str, Any]:
        return {"synced_gpus": True} if self.synced else {}


@contextmanager
def _answering(policy: Any) -> Iterator[None]:
    """While a model answers, no layer is in training, and what its generation config says is nobody's default."""
    training = [module for module in policy.modules() if module.training]
    models = list(dict.fromkeys([policy, base_of(policy)]))
    configs = [model.generation_config for model in models]
    policy.eval()
    for model in models:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for model, config in zip(models, configs, strict=True):
            model.generation_config = config
        for module in training:
            module.training = True
