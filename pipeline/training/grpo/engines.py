"""Rollouts from engines in processes of their own, one generation batch ahead of training if so wished.

On-policy, a generation batch is sampled with the weights that then train on it, and one of the two always waits:

    sample 0 (w0) | train 0 | sample 1 (w1) | train 1 | sample 2 (w2) | ...

One step off (`rollout.overlap`), the next batch is sampled while the present one is trained on, so its weights are one
batch old. The importance weights of the policy against the sampler correct for that:

    sample 0 (w0) | train 0       | train 1       | train 2 ...
                  | sample 1 (w0) | sample 2 (w1) | ...

What is sampled depends on the seed, the number of the batch and the weights alone. A checkpoint holds the batch that
was sampled ahead, so a resumed run goes on as if it had not been stopped.

With several processes of the trainer, the first one holds the engines. It asks for the whole generation batch and hands
each process its share; weights are gathered by all, tensor by tensor, and no process holds the whole model for it.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.rollout.base import Finish, Rollout, RolloutError, complete, derived_seed
from pipeline.rollout.weights import official_weights
from pipeline.training.grpo.sampling import Problem, Sampled, Sampler, check_trainer, wants_logprobs

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
        groups: the rollouts of each row, once they are there; only in the process that holds the engines.
    """

    number: int
    rows: list[int]
    sampled_at: int
    groups: Groups | None = None


class EngineSampler(Sampler):
    """Samples with an engine, or several, that the trainer's first process holds.

    Args:
        trainer: a `GrpoTrainer`.
        engine: gives log-probabilities at the temperature of sampling; `None` in the other processes.
        overlap: whether the next generation batch is sampled while the present one is trained on.
        spare: prompts that are sampled on top, as a share of a batch. Once a batch of groups is complete, the others
            are given up: the long ones.

    Raises:
        ValueError: sampling is asked for what the engine cannot do.
    """

    def __init__(self, trainer: Any, engine: Any, overlap: bool = False, spare: float = 0.0) -> None:
        super().__init__(trainer)
        check_trainer(trainer)
        self.engine, self.overlap, self.spare = engine, overlap, spare
        self.scored = wants_logprobs(trainer.args)
        self.ahead: Ahead | None = None
        self._others, self._weights_of, self._dtype = 0, -1, ""
        self._drafted: Any = None

    def batch(self, number: int, problems: list[Problem]) -> Sampled:
        """Rollouts of a generation batch, sampled now or ahead; begins with the next batch if that is wished.

        Where groups were given up, the batch has other problems than asked for.

        Raises:
            RolloutError: the engine was lost too often, or gave up on groups that are needed.
        """
        trainer, started = self.trainer, time.perf_counter()
        ahead = self.ahead if self.ahead is not None and self.ahead.number == number else self._begin(number)
        groups = self._finish(ahead)
        waited = time.perf_counter() - started
        self._others, self.ahead = 0, None
        if self.overlap and number + 1 < trainer.order.number_at(trainer.state.max_steps):
            self.ahead = self._begin(number + 1)  # before anything else: until then the engine waits
        chosen = self._handed_out(lambda: _complete(ahead, groups, trainer.order.groups))
        self._log(ahead, groups, waited)
        every = [(row, rollout) for row, group in chosen for rollout in group]
        mine = every[trainer.accelerator.process_index * len(problems) :][: len(problems)]
        held = {row: trainer.train_dataset[row] for row, _ in mine}
        own: list[Problem] = [held[row] for row, _ in mine]
        return Sampled.of(own, self.prompts(own), [rollout for _, rollout in mine], self.scored)

    def extra(self, problems: list[Problem]) -> Sampled:
        """Rollouts of further problems, with the weights of the moment and at once."""
        trainer, n, prompts = self.trainer, self.trainer.num_generations, self.prompts(problems)
        if self.ahead is not None:
            self._finish(self.ahead)
        self._push()
        seed = derived_seed(trainer.args.seed, "others", trainer.batch_number, self._others)
        self._others += 1
        asked = gather_object(prompts)[::n]
        groups: Groups = self._handed_out(lambda: self.engine.generate(asked, self.sampling(seed, n)))
        every = [rollout for group in groups for rollout in group]
        mine = every[trainer.accelerator.process_index * len(problems) :][: len(problems)]
        return Sampled.of(problems, prompts, mine, self.scored)

    def save(self, folder: Path) -> None:
        """Keep what is sampled ahead; waits for it."""
        if self.ahead is not None and self.engine is not None:
            groups = [[_stored(rollout) for rollout in group] for group in self._finish(self.ahead)]
            stored = {"number": self.ahead.number, "rows": self.ahead.rows, "sampled_at": self.ahead.sampled_at}
            (folder / SAMPLED_AHEAD).write_text(json.dumps({**stored, "groups": groups}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up what was sampled ahead of a checkpoint."""
        path = folder / SAMPLED_AHEAD
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.ahead = Ahead(**{**stored, "groups": [[_rollout(one) for one in group] for group in stored["groups"]]})

    def close(self) -> None:
        """End the engines' processes."""
        if self.engine is not None:
            self.engine.close()

    def _begin(self, number: int) -> Ahead:
        """Ask the engine for a generation batch, with the present weights. Collective."""
        trainer = self.trainer
        rows, seed = trainer.order.rows(number), derived_seed(trainer.args.seed, "rollouts", number)
        wanted = len(rows)
        if self.spare:
            others = sorted(set(range(len(trainer.train_dataset))) - set(rows))
            rows += random.Random(seed).sample(others, min(len(others), math.ceil(self.spare * wanted)))
        self._push()
        if self.engine is not None:
            longest = trainer.length_at(trainer.order.step_at(number))
            sampling = self.sampling(seed, trainer.num_generations, longest, wanted if self.spare else None)
            self.engine.submit(self.prompts([trainer.train_dataset[row] for row in rows]), sampling)
        return Ahead(number, rows, trainer.state.global_step)

    def _finish(self, ahead: Ahead) -> Groups:
        """The rollouts of a batch; none in processes without an engine."""
        if ahead.groups is None and self.engine is not None:
            ahead.groups = self.engine.collect()
        return ahead.groups or []

    def _push(self) -> None:
        """Have the engine sample with the weights of the moment. Collective where they are sharded."""
        trainer = self.trainer
        if self._weights_of == trainer.state.global_step:
            return
        self._dtype = self._dtype or self._handed_out(lambda: self.engine.dtype)
        weights = official_weights(trainer.accelerator.unwrap_model(trainer.model), getattr(torch, self._dtype))
        if self.engine is not None:
            self.engine.push(weights)
        elif trainer.is_fsdp_enabled:
            for _ in weights:  # this process's part of each tensor is asked for
                pass
        self._weights_of = trainer.state.global_step

    def _handed_out(self, make: Callable[[], Any]) -> Any:
        """What the process with the engine makes, in every process; an error there is one everywhere."""
        if self.trainer.accelerator.num_processes == 1:
            return make()
        box: list[Any] = [None]
        if self.engine is not None:
            try:
                box = [("made", make())]
            except (RolloutError, ValueError) as error:
                box = [("failed", str(error))]
        broadcast_object_list(box, from_process=0)
        how, what = box[0]
        if how == "failed":
            raise RolloutError(what)
        return what

    def _log(self, ahead: Ahead, groups: Groups, waited: float) -> None:
        if self.engine is None:
            return
        metrics = self.trainer._metrics["train"]
        metrics["rollout/staleness"].append(float(self.trainer.state.global_step - ahead.sampled_at))
        metrics["rollout/wait_seconds"].append(waited)
        metrics["rollout/engine_restarts"].append(float(self.engine.restarts))
        told = self.engine.speculation
        if told is not None and (new := told - (self._drafted or type(told)())).rounds:
            metrics["speculation/acceptance"].append(new.acceptance)
            metrics["speculation/tokens_per_pass"].append(new.tokens_per_pass)
            self._drafted = told
        if self.spare:
            given_up = [rollout for group in groups if not complete(group) for rollout in group]
            tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
            lost = sum(len(rollout.token_ids) for rollout in given_up)
            metrics["rollout/groups_given_up"].append(sum(not complete(group) for group in groups) / len(groups))
            metrics["rollout/tokens_given_up"].append(lost / max(1, tokens))


def _complete(ahead: Ahead, groups: Groups, wanted: int) -> list[tuple[int, list[Rollout]]]:
    """The first complete groups of a batch, each with the row of its problem."""
    chosen = [(row, group) for row, group in zip(ahead.rows, groups, strict=True) if complete(group)][:wanted]
    if len(chosen) < wanted:
        raise RolloutError(f"the engine gave up on {wanted - len(chosen)} of the {wanted} groups of a batch")
    return chosen


def _stored(rollout: Rollout) -> list[Any]:
    return [rollout.text, rollout.token_ids, rollout.finish, rollout.logprobs]


def _rollout(stored: Sequence[Any]) -> Rollout:
    text, token_ids, finish, logprobs = stored
    return Rollout(text, tuple(token_ids), Finish(finish), None if logprobs is None else tuple(logprobs))
