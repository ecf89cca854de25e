"""Where a step's rollouts come from: the trained model itself, or vLLM in this process.

A sampler gives the rollouts of this process's problems. Engines in processes of their own are in `engines`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pipeline.rollout import open_updatable
from pipeline.rollout.base import Rollout, Sampling, derived_seed
from pipeline.rollout.weights import official_weights
from pipeline.schema.pieces import RolloutSpec
from pipeline.training import stopping
from pipeline.training.held_out import live
from pipeline.training.held_out.live import Groups, Prompts
from rewards.verdict import TRUNCATED

log = logging.getLogger(__name__)

Problem = Mapping[str, Any]
"""A row of the training set; it stands in a batch once for each of its rollouts."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rollouts of this process, one entry each.

    Attributes:
        problems: rows of the training set.
        prompt_ids: their prompts.
        completion_ids: what was sampled, with the end-of-sequence token if there was one.
        logprobs: of the sampled tokens, at the temperature of sampling, NaN where unknown; if the sampler gives them.
    """

    problems: list[Problem]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None

    def ending(self, stopped: Callable[[Sequence[int]], bool]) -> Sampled:
        """The same, with problems that tell rewards whether their completion was cut off."""
        told: list[Problem] = [
            {**problem, TRUNCATED: not stopped(ids)}
            for problem, ids in zip(self.problems, self.completion_ids, strict=True)
        ]
        return replace(self, problems=told)

    @classmethod
    def of(
        cls, problems: list[Problem], prompts: list[list[int]], rollouts: Sequence[Rollout], scored: bool
    ) -> Sampled:
        """What an engine of ours sampled."""
        logprobs = [list(rollout.logprobs or ()) for rollout in rollouts] if scored else None
        return cls(problems, prompts, [list(rollout.token_ids) for rollout in rollouts], logprobs)


class Sampler(ABC):
    """Samples for a trainer.

    Args:
        trainer: a `GrpoTrainer`.

    Attributes:
        scored: whether rollouts come with log-probabilities.
        max_staleness: generation batches that sampling may be ahead of training.
    """

    scored: bool = False
    max_staleness: int = 0

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def batch(self, number: int, problems: list[Problem]) -> Sampled:
        """Rollouts for a generation batch. Collective.

        Args:
            number: of the batch, from the start of training.
            problems: this process's share of it.
        """
        return self.extra(problems)

    @abstractmethod
    def extra(self, problems: list[Problem]) -> Sampled:
        """Rollouts of problems that no plan knows of. Collective."""

    def held_out(self, prompts: Prompts, sampling: Sampling, batch_size: int) -> Groups:
        """Rollouts of prompts that are not trained on, with the weights of the moment. Collective.

        Training goes on as if nothing had been asked.

        Args:
            prompts: token ids, the same in every process.
            sampling: how.
            batch_size: sequences at a time, where no engine decides about it.

        Returns:
            A group a prompt, all of them in every process.
        """
        return live.generate(self.trainer, prompts, sampling, batch_size)

    def save(self, folder: Path) -> None:  # noqa: B027 - most samplers have nothing to keep
        """Keep what a checkpoint needs."""

    def load(self, folder: Path) -> None:  # noqa: B027
        """Take up what a checkpoint holds."""

    def ready(self) -> None:  # noqa: B027
        """Wait until engines have started."""

    def close(self) -> None:  # noqa: B027
        """Free engines."""

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of prompts; those next to each other that are equal are tokenised once."""
        groups = [(prompt, len(list(group))) for prompt, group in groupby(problem["prompt"] for problem in problems)]
        tokenised, *_ = self.trainer._tokenize_prompts([prompt for prompt, _ in groups])
        return [list(ids) for ids, (_, count) in zip(tokenised, groups, strict=True) for _ in range(count)]

    def sampling(self, seed: int, n: int, max_tokens: int | None = None, enough: int | None = None) -> Sampling:
        """How the trainer wants an engine of ours to sample."""
        asked = self.trainer
        return Sampling(
            n=n,
            max_tokens=max_tokens or asked.max_completion_length,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p or 0.0,
            seed=seed,
            enough=enough,
            stop=asked.stops.asked,
        )


class TrlSampler(Sampler):
    """TRL's own way: the trained model's `generate`."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        stopping.prepare(trainer, trainer.stops)

    def extra(self, problems: list[Problem]) -> Sampled:
        """See `Sampler`."""
        trainer, prompts, longest = self.trainer, self.prompts(problems), self.trainer.max_completion_length
        trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = longest
        with stopping.until(trainer.accelerator.unwrap_model(trainer.model), trainer.stops):
            completion_ids, _ = trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)
        return Sampled(problems, prompts, [trainer.stops.cut(ids) for ids in completion_ids], None)


class VllmSampler(Sampler):
    """vLLM in this process, beside the trainer; with several processes each has an engine for its own problems.

    Args:
        trainer: a `GrpoTrainer`.
        spec: the recipe's `rollout`.
        path: folder or hub id of the policy.
    """

    def __init__(self, trainer: Any, spec: RolloutSpec, path: str) -> None:
        super().__init__(trainer)
        args, accelerator = trainer.args, trainer.accelerator
        check_trainer(trainer)
        self.scored = wants_logprobs(args)
        self.sleeps, self._drawn, self._weights_of = args.vllm_enable_sleep_mode, 0, -1
        options: dict[str, Any] = {
            "dtype": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            "max_num_seqs": args.per_device_train_batch_size * args.steps_per_generation,
            "max_num_batched_tokens": 4096,  # vLLM sets memory aside for activations of so many tokens
            "enable_sleep_mode": self.sleeps,
            "model_impl": args.vllm_model_impl,
        }
        if args.vllm_max_model_length is not None:
            options["max_model_len"] = args.vllm_max_model_length
        if accelerator.num_processes > 1:  # the trainer's process group is vLLM's, which finds its GPU by it
            options["distributed_executor_backend"] = "external_launcher"
        given = {**options, **spec.engine_options}
        self.engine: Any = open_updatable(
            spec.model_copy(update={"engine": "vllm", "process": None, "engine_options": given}),
            path,
            derived_seed(args.seed, "engine", accelerator.process_index),
            logprobs=self.scored,
            for_trainer=True,
        )
        self._sleep()
        accelerator.wait_for_everyone()

    def batch(self, number: int, problems: list[Problem]) -> Sampled:
        """See `Sampler`."""
        self._drawn = 0
        return self._sample(problems, "rollouts", number)

    def extra(self, problems: list[Problem]) -> Sampled:
        """See `Sampler`."""
        self._drawn += 1
        return self._sample(problems, "others", self.trainer.batch_number, self._drawn)

    def held_out(self, prompts: Prompts, sampling: Sampling, batch_size: int) -> Groups:
        """See `Sampler`."""
        with self.trainer.clock.part("sync"):
            self._wake()
        groups = live.shared(self.trainer.accelerator, prompts, sampling, self.engine.generate)
        self._sleep()
        self._weights_of = -1  # loading weights forgets cached prefixes, too
        return groups

    def _sample(self, problems: list[Problem], *parts: object) -> Sampled:
        trainer, n = self.trainer, self.trainer.num_generations
        prompts = self.prompts(problems)
        with trainer.clock.part("sync"):
            self._wake()
        seed = derived_seed(trainer.args.seed, *parts, trainer.accelerator.process_index)
        groups = [(tuple(prompt), len(list(group))) for prompt, group in groupby(prompts)]
        if all(count % n == 0 for _, count in groups):
            asked, sampling = prompts[::n], self.sampling(seed, n)
        else:  # a group that lies in two processes
            asked, sampling = prompts, self.sampling(seed, 1)
        rollouts = [rollout for group in self.engine.generate(asked, sampling) for rollout in group]
        self._sleep()
        return Sampled.of(problems, prompts, rollouts, self.scored)

    def _wake(self) -> None:
        """Have the engine awake, with the policy's weights. Collective."""
        trainer = self.trainer
        stale = self._weights_of != trainer.state.global_step
        if self.sleeps:
            torch.cuda.empty_cache()
            self.engine.llm.wake_up(tags=["weights"])
        if stale or self.sleeps:  # a sleeping engine has thrown its weights away
            # Whole parameters are cast while they are copied; shards before they are gathered: half as much is sent.
            dtype = getattr(torch, self.engine.dtype) if trainer.is_fsdp_enabled else None
            self.engine.load_weights(official_weights(trainer.accelerator.unwrap_model(trainer.model), dtype))
            self._weights_of = trainer.state.global_step
        if self.sleeps:
            self.engine.llm.wake_up(tags=["kv_cache"])

    def _sleep(self) -> None:
        if self.sleeps:
            self.engine.llm.sleep(level=2)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()


def wants_logprobs(args: Any) -> bool:
    """Whether something needs the engine's log-probabilities of sampled tokens; without them an engine is faster."""
    return bool(args.vllm_importance_sampling_correction or args.off_policy_mask_threshold is not None)


def check_trainer(trainer: Any) -> None:
    """Refuse what engines of ours do not do.

    Raises:
        ValueError: names the field of the trainer, and what to do.
    """
    args = trainer.args
    without = {
        "repetition_penalty": args.repetition_penalty != 1.0,
        "generation_kwargs": bool(args.generation_kwargs),
        "vllm_structured_outputs_regex": args.vllm_structured_outputs_regex is not None,
    }
    for name, given in without.items():
        if given:
            raise ValueError(
                f"trainer.{name} has no effect on an engine: leave it out, or use rollout.engine: transformers"
            )
    if args.vllm_tensor_parallel_size != 1:
        raise ValueError("trainer.vllm_tensor_parallel_size: an engine beside the trainer is on one GPU; set it to 1")
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    zero3 = trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    if zero3 or (plugin is not None and plugin.fsdp_version == 1):
        raise ValueError(
            "weights that DeepSpeed's stage 3 or FSDP1 has sharded reach no engine: use FSDP2 (fsdp2-1node)"
        )
