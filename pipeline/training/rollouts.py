"""Rollouts of GRPO by an engine in a process of its own, one generation batch ahead of training if so wished.

On-policy, a generation batch is sampled with the weights that then train on it, and one of the two always waits:

    sample 0 (w0) | train 0 | sample 1 (w1) | train 1 | sample 2 (w2) | ...

One step off (`rollout.overlap`), the next batch is sampled while the present one is trained on, so its weights are one
batch old. TRL's importance weights, the trainer's probability of each token over the sampler's, correct for that:

    sample 0 (w0) | train 0       | train 1       | train 2 ...
                  | sample 1 (w0) | sample 2 (w1) | ...

The engine stands where TRL has its `VLLMGeneration`, so losses, importance weights and metrics are TRL's own. What
is sampled depends on the seed, the number of the batch and the weights alone. A checkpoint holds the batch sampled
ahead, so a resumed run goes on as if it had not been stopped.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.rollout.base import Finish, Rollout, RolloutError, Sampling, complete, derived_seed
from pipeline.rollout.fleet import Fleet
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.weights import official_weights

log = logging.getLogger(__name__)

SAMPLED_AHEAD = "rollouts.json"
"""File of a checkpoint."""
Groups = list[list[Rollout]]


@dataclass(slots=True)
class Ahead:
    """A generation batch that is being sampled, or waits to be trained on.

    Attributes:
        number: of the batch, from the start of training.
        rows: rows of the dataset, those of the batch first, then those that may take their places.
        sampled_at: optimizer steps of the weights that sample it.
        groups: the rollouts of each row, once they are there.
    """

    number: int
    rows: list[int]
    sampled_at: int
    groups: Groups | None = None


class Plan:
    """Which rows of the dataset each generation batch holds: the trainer's own sampler, run a second time.

    Args:
        trainer: a GRPO trainer of one process.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, args = trainer, trainer.args
        self.repeats = args.steps_per_generation * trainer.num_iterations
        self.epoch_batches = len(trainer._get_train_sampler()) // (args.generation_batch_size * self.repeats)
        self._epoch_steps = max(1, math.ceil(self.epoch_batches * self.repeats / args.gradient_accumulation_steps))
        self.end = self.number_at(trainer.state.max_steps)
        self._next = self.number_at(trainer.state.global_step)
        self._batches = self._from(self._next)
        self._known: dict[int, list[int]] = {}

    def number_at(self, step: int) -> int:
        """Number of the generation batch that training needs next after so many optimizer steps."""
        accumulation = self.trainer.args.gradient_accumulation_steps
        epoch, rest = divmod(step, self._epoch_steps)
        return int(epoch * self.epoch_batches + math.ceil(rest * accumulation / self.repeats))

    def step_at(self, number: int) -> int:
        """Optimizer steps after which training needs a generation batch."""
        accumulation = self.trainer.args.gradient_accumulation_steps
        epoch, rest = divmod(number, self.epoch_batches)
        return int(epoch * self._epoch_steps + rest * self.repeats // accumulation)

    def rows(self, number: int) -> list[int]:
        """Rows of a generation batch, each once. Only for the one asked for last, and later ones."""
        while self._next <= number:
            self._known = {at: rows for at, rows in self._known.items() if at >= number - 1}
            self._known[self._next] = next(self._batches)
            self._next += 1
        return self._known[number]

    def _from(self, number: int) -> Iterator[list[int]]:
        epoch, skipped = divmod(number, self.epoch_batches)
        size = self.trainer.args.generation_batch_size
        while True:
            sampler = self.trainer._get_train_sampler()
            sampler.epoch = lambda: epoch  # noqa: B023 - read before the next epoch begins
            indices = islice(iter(sampler), skipped * size * self.repeats, None)
            for _ in range(skipped, self.epoch_batches):
                yield list(islice(indices, size * self.repeats))[: size : self.trainer.num_generations]
            epoch, skipped = epoch + 1, 0


class Rollouts:
    """Samples for a trainer; stands where it has TRL's `VLLMGeneration`.

    Args:
        trainer: a GRPO trainer of one process.
        engine: gives log-probabilities at the temperature of sampling.
        overlap: whether the next generation batch is sampled while the present one is trained on.
        spare: prompts that are sampled on top, as a share of a batch. Once a batch of groups is complete, the
            others are given up: the long ones.

    Attributes:
        logprobs: of the tokens of what `generate` returned last, a list a completion. TRL would have a list a token.
    """

    def __init__(self, trainer: Any, engine: ProcessEngine | Fleet, overlap: bool, spare: float) -> None:
        self.trainer, self.engine, self.overlap, self.spare = trainer, engine, overlap, spare
        self.max_completion_length: int = trainer.max_completion_length
        self.ahead: Ahead | None = None
        self.logprobs: list[list[float]] = []
        self._plan: Plan | None = None
        self._batch = self._others = 0
        self._taken: tuple[list[list[int]], Groups] | None = None
        self._weights_of: int | None = None

    def sync_weights(self) -> None:
        """Nothing yet: the engine may be sampling. It gets new weights together with the next request."""

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[list[list[int]], list[list[int]], list[Any], None]:
        """What `VLLMGeneration.generate` returns: prompts and completions. Log-probabilities are in `logprobs`."""
        if images is not None:
            raise ValueError("images are not sampled in a process of their own: leave out rollout.process")
        taken, self._taken = self._taken, None
        wanted = prompts[::num_generations]
        groups = self._sample(wanted, num_generations) if taken is None else taken[1]
        if taken is not None and taken[0] != wanted:
            raise RuntimeError("the trainer's prompts are not those that were sampled for it")
        flat = [rollout for group in groups for rollout in group]
        self.logprobs = [list(rollout.logprobs or ()) for rollout in flat]
        return prompts, [list(rollout.token_ids) for rollout in flat], [], None

    def take(self, inputs: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Sample for a generation batch, or fetch what was sampled ahead, and begin with the next batch.

        Args:
            inputs: rows of the dataset, each as often as a group has rollouts.

        Returns:
            Such rows; others where groups were given up. `generate` then returns their rollouts.

        Raises:
            RolloutError: the engine was lost too often, or gave up on groups that are needed.
            RuntimeError: the trainer does not go through the dataset as planned.
        """
        if self._plan is None:
            self._plan = Plan(self.trainer)
            self._batch = self._plan.number_at(self.trainer.state.global_step)
        n, rows = self.trainer.num_generations, self._plan.rows(self._batch)
        if [self.trainer.train_dataset[row] for row in rows] != inputs[::n]:
            raise RuntimeError(f"generation batch {self._batch} does not hold the rows that were planned for it")
        started = time.perf_counter()
        ahead = self.ahead if self.ahead is not None and self.ahead.number == self._batch else self._begin(self._batch)
        groups = self._finish(ahead)
        self._log(ahead, groups, time.perf_counter() - started)
        self._batch, self._others, self.ahead = self._batch + 1, 0, None
        if self.overlap and self._batch < self._plan.end:
            self.ahead = self._begin(self._batch)  # before anything else: until then the engine waits
        chosen = [at for at, group in enumerate(groups) if complete(group)][: len(rows)]
        if len(chosen) < len(rows):
            raise RolloutError(f"the engine gave up on {len(rows) - len(chosen)} of the {len(rows)} groups of a batch")
        problems = [self.trainer.train_dataset[ahead.rows[at]] for at in chosen]
        self._taken = self._prompts([ahead.rows[at] for at in chosen]), [groups[at] for at in chosen]
        return [dict(problem) for problem in problems for _ in range(n)]

    def save(self, folder: Path) -> None:
        """Keep what is sampled ahead; waits for it."""
        if self.ahead is not None:
            groups = [[_stored(rollout) for rollout in group] for group in self._finish(self.ahead)]
            stored = {"number": self.ahead.number, "rows": self.ahead.rows, "sampled_at": self.ahead.sampled_at}
            (folder / SAMPLED_AHEAD).write_text(json.dumps({**stored, "groups": groups}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up what was sampled ahead of a checkpoint."""
        path = folder / SAMPLED_AHEAD
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.ahead = Ahead(**{**stored, "groups": [[_rollout(one) for one in group] for group in stored["groups"]]})

    def _begin(self, number: int) -> Ahead:
        """Ask the engine for a generation batch, with the present weights."""
        assert self._plan is not None
        rows = list(self._plan.rows(number))
        seed, wanted = derived_seed(self.trainer.args.seed, "rollouts", number), len(rows)
        if self.spare:
            others = sorted(set(range(len(self.trainer.train_dataset))) - set(rows))
            rows += random.Random(seed).sample(others, min(len(others), math.ceil(self.spare * wanted)))
        self._push()
        longest = self.trainer.length_at(self._plan.step_at(number))
        sampling = self._sampling(self.trainer.num_generations, longest, seed, wanted if self.spare else None)
        self.engine.submit(self._prompts(rows), sampling)
        return Ahead(number, rows, self.trainer.state.global_step)

    def _finish(self, ahead: Ahead) -> Groups:
        if ahead.groups is None:
            ahead.groups = self.engine.collect()
        return ahead.groups

    def _sample(self, prompts: Sequence[Sequence[int]], n: int) -> Groups:
        """Sample prompts of an evaluation or a refill, which are not planned, with the present weights and at once."""
        if self.ahead is not None:
            self._finish(self.ahead)
        self._push()
        seed = derived_seed(self.trainer.args.seed, "others", self._batch, self._others)
        self._others += 1
        return self.engine.generate(prompts, self._sampling(n, self.max_completion_length, seed, None))

    def _push(self) -> None:
        if self._weights_of == self.trainer.state.global_step:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.engine.push(official_weights(model, getattr(torch, self.engine.dtype)))
        self._weights_of = self.trainer.state.global_step

    def _prompts(self, rows: Sequence[int]) -> list[list[int]]:
        prompts: list[list[int]]
        prompts, *_ = self.trainer._tokenize_prompts([self.trainer.train_dataset[row]["prompt"] for row in rows])
        return prompts

    def _sampling(self, n: int, max_tokens: int, seed: int, enough: int | None) -> Sampling:
        asked = self.trainer
        return Sampling(
            n=n,
            max_tokens=max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p or 0.0,
            seed=seed,
            enough=enough,
        )

    def _log(self, ahead: Ahead, groups: Groups, waited: float) -> None:
        metrics = self.trainer._metrics["train"]
        metrics["rollout/staleness"].append(float(self.trainer.state.global_step - ahead.sampled_at))
        metrics["rollout/wait_seconds"].append(waited)
        metrics["rollout/engine_restarts"].append(float(self.engine.restarts))
        if self.spare:
            given_up = [rollout for group in groups if not complete(group) for rollout in group]
            tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
            lost = sum(len(rollout.token_ids) for rollout in given_up)
            metrics["rollout/groups_given_up"].append(sum(not complete(group) for group in groups) / len(groups))
            metrics["rollout/tokens_given_up"].append(lost / max(1, tokens))


class EngineRollouts:
    """Mixin for `GRPOTrainer`: it samples with an engine in a process of its own.

    Args:
        engine: samples; TRL's own way if not given. The other two are those of `Rollouts`.

    Raises:
        ValueError: there are several processes, or sampling is asked for what the engine cannot do.
    """

    rollouts: Rollouts | None = None
    sampling_extra: bool
    model: Any
    args: Any

    def __init__(
        self,
        *args: Any,
        engine: ProcessEngine | Fleet | None = None,
        overlap: bool = False,
        spare: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if engine is None:
            return
        trainer: Any = self
        if trainer.accelerator.num_processes > 1:
            raise ValueError("rollout.process is for training in one process; several share a vLLM server")
        if self.args.repetition_penalty != 1.0 or self.args.generation_kwargs:
            raise ValueError("rollout.process knows no trainer.repetition_penalty and no trainer.generation_kwargs")
        self.rollouts = Rollouts(self, engine, overlap, spare)
        # From here on the trainer does what it does with vLLM: it asks for tokens and for their log-probabilities.
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, self.rollouts, -1

    def close_engine(self) -> None:
        """End the engine's process, if there is one."""
        if self.rollouts is not None:
            self.rollouts.engine.close()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if self.rollouts is not None and self.model.training and not self.sampling_extra:
            inputs = self.rollouts.take(inputs)
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        return completion_ids, logprobs if self.rollouts is None else self.rollouts.logprobs

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.rollouts is not None:
            self.rollouts.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self.rollouts is not None and checkpoint is not None:
            self.rollouts.load(Path(checkpoint))


def _stored(rollout: Rollout) -> list[Any]:
    return [rollout.text, rollout.token_ids, rollout.finish, rollout.logprobs]


def _rollout(stored: list[Any]) -> Rollout:
    text, token_ids, finish, logprobs = stored
    return Rollout(text, tuple(token_ids), Finish(finish), None if logprobs is None else tuple(logprobs))
