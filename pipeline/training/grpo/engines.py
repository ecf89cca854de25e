"""Rollouts from engines in processes of their own, some generation batches ahead of training if so wished.

On-policy, a generation batch is sampled with the weights that then train on it, and one of the two always waits:

    sample 0 (w0) | train 0 | sample 1 (w1) | train 1 | sample 2 (w2) | ...

With `rollout.max_staleness: 1`, the next batch is sampled while the present one is trained on, so its weights are one
batch old. The importance weights of the policy against the sampler correct for that:

    sample 0 (w0) | train 0       | train 1       | train 2 ...
                  | sample 1 (w0) | sample 2 (w1) | ...

What is sampled then depends on the seed, the number of the batch and the weights alone, and a resumed run goes on, to
the bit, as if it had not been stopped.

With `max_staleness: k` of 2 or more, engines never wait for training. Batch n is asked for as soon as the weights of
batch n - k are there (AReaL's rule, arXiv 2505.24298, section 4.2), and engines take new weights in the middle of what
they sample: the long completions of a batch are finished beside the next batches, by newer weights, and each token's
log-probability is that of the weights that sampled it. Batches are trained on in their order, whichever is finished
first, so no problem is favoured for its short answers:

    train    0 1 2 3 4 ...          weights  w0 w1 w2 w3 w4 ...
    sample   0 1 2                  tokens of batch 4: of w2, w3 and w4
                 3
                   4 ...

A checkpoint holds the batches that are ready. Those of one batch ahead are waited for; of a deeper queue, what is still
being sampled is sampled anew by the resumed run.

With several processes of the trainer, the first one holds the engines. It asks for the whole generation batch and hands
each process its share; weights are gathered by all, tensor by tensor, and no process holds the whole model for it.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object

from pipeline.rollout.base import Finish, Rollout, RolloutError, Sampling, complete, derived_seed
from pipeline.rollout.weights import official_weights
from pipeline.training.grpo.sampling import Problem, Sampled, Sampler, check_trainer, wants_logprobs
from pipeline.training.held_out.live import Groups, Prompts
from pipeline.training.parallel.collectives import by_first

log = logging.getLogger(__name__)

SAMPLED_AHEAD = "rollouts.json"
"""File of a checkpoint."""
EXACT = 1
"""The largest `max_staleness` whose batches are each sampled with one version of the weights."""


@dataclass(slots=True)
class QueuedBatch:
    """A generation batch that is being sampled, or waits to be trained on.

    Attributes:
        number: of the batch, from the start of training.
        rows: rows of the dataset, those of the batch first, then those that may take their places.
        asked: whether its rollouts were asked for, or are there.
        groups: the rollouts of each row, once they are there; only in the process that holds the engines.
        ticket: with which they are collected; only there.
    """

    number: int
    rows: list[int]
    asked: bool = False
    groups: Groups | None = None
    ticket: int | None = None


class EngineSampler(Sampler):
    """Samples with an engine, or several, that the trainer's first process holds.

    Args:
        trainer: a `GrpoTrainer`.
        engine: gives log-probabilities at the temperature of sampling; `None` in the other processes.
        max_staleness: generation batches that sampling may be ahead of training.
        spare: prompts that are sampled on top, as a share of a batch. Once a batch of groups is complete, the others
            are given up: the long ones.

    Raises:
        ValueError: sampling is asked for what the engine cannot do.
    """

    def __init__(self, trainer: Any, engine: Any, max_staleness: int = 0, spare: float = 0.0) -> None:
        super().__init__(trainer)
        check_trainer(trainer)
        self.engine, self.max_staleness, self.spare = engine, max_staleness, spare
        self.scored = wants_logprobs(trainer.args)
        self.queue: deque[QueuedBatch] = deque()
        self.lengths: dict[int, float] = {}
        """Row of the dataset -> mean tokens of its latest completions."""
        self._others, self._weights_of, self._dtype = 0, -1, ""
        self._drafted: Any = None
        self._idle = 0.0

    def batch(self, number: int, problems: list[Problem]) -> Sampled:
        """Rollouts of a generation batch, sampled now or ahead; asks for those that may be sampled meanwhile.

        Where groups were given up, the batch has other problems than asked for.

        Raises:
            RolloutError: the engine was lost too often, or gave up on groups that are needed.
        """
        trainer, started = self.trainer, time.perf_counter()
        later = range(
            number + 1, min(number + 1 + self.max_staleness, trainer.order.number_at(trainer.state.max_steps))
        )
        self._admit([number, *(later if self.max_staleness > EXACT else ())])
        queued = self.queue.popleft()
        with trainer.clock.part("waiting" if self.max_staleness else "sampling"):
            groups = self._finish(queued)
        waited = time.perf_counter() - started
        self._others = 0
        if self.max_staleness == EXACT:
            self._admit(later)  # before anything else: until then the engine waits
        chosen = self._handed_out(lambda: _complete(queued, groups, trainer.order.groups))
        self._log(chosen, groups, waited)
        every = [(row, rollout) for row, group in chosen for rollout in group]
        mine = every[trainer.accelerator.process_index * len(problems) :][: len(problems)]
        held = {row: trainer.train_dataset[row] for row, _ in mine}
        own: list[Problem] = [held[row] for row, _ in mine]
        return Sampled.of(own, self.prompts(own), [rollout for _, rollout in mine], self.scored)

    def extra(self, problems: list[Problem]) -> Sampled:
        """Rollouts of further problems, with the weights of the moment: at once, or behind what is asked for."""
        trainer, n, prompts = self.trainer, self.trainer.num_generations, self.prompts(problems)
        self._catch_up()
        seed = derived_seed(trainer.args.seed, "others", trainer.batch_number, self._others)
        self._others += 1
        asked = gather_object(prompts)[::n]
        groups: Groups = self._handed_out(lambda: self.engine.generate(asked, self.sampling(seed, n)))
        every = [rollout for group in groups for rollout in group]
        mine = every[trainer.accelerator.process_index * len(problems) :][: len(problems)]
        return Sampled.of(problems, prompts, mine, self.scored)

    def held_out(self, prompts: Prompts, sampling: Sampling, batch_size: int) -> Groups:
        """See `Sampler`."""
        self._catch_up()
        groups: Groups = self._handed_out(lambda: self.engine.generate(prompts, sampling))
        self._weights_of = -1  # loading weights forgets cached prefixes, too
        return groups

    def _catch_up(self) -> None:
        """Have the engine sample with the weights of the moment, and what is to be of older weights finished."""
        if self.max_staleness <= EXACT:
            for queued in self.queue:
                self._finish(queued)
        self._push()

    def save(self, folder: Path) -> None:
        """Keep what is sampled ahead, and what is expected of prompts."""
        if self.engine is None:
            return
        queue = []
        for queued in self.queue:
            ready = self.max_staleness <= EXACT or queued.ticket is None or self.engine.is_ready(queued.ticket)
            groups = [[astuple(rollout) for rollout in group] for group in self._finish(queued)] if ready else None
            queue.append({"number": queued.number, "rows": queued.rows, "groups": groups})
        text = json.dumps({"queue": queue, "lengths": self.lengths, "groups": self.trainer.order.groups})
        (folder / SAMPLED_AHEAD).write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up what was sampled ahead of a checkpoint, unless other processes now make batches of another size."""
        path = folder / SAMPLED_AHEAD
        if not path.exists():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        self.lengths = {int(row): length for row, length in stored["lengths"].items()}
        if stored.get("groups") != self.trainer.order.groups:
            log.info("generation batches have another size than before: what was sampled ahead is sampled anew")
            return
        for one in stored["queue"]:
            groups = one["groups"]
            if groups is not None:
                groups = [[_restored(*rollout) for rollout in group] for group in groups]
            self.queue.append(QueuedBatch(one["number"], one["rows"], groups is not None, groups))

    def ready(self) -> None:
        """See `Sampler`."""
        if self.engine is not None:
            _ = self.engine.dtype

    def close(self) -> None:
        """End the engines' processes."""
        if self.engine is not None:
            self.engine.close()

    def _admit(self, numbers: Iterable[int]) -> None:
        """Have these batches in the queue, and asked for, with the weights of the moment. Collective."""
        known = {queued.number: queued for queued in self.queue}
        self.queue = deque(known.get(number) or QueuedBatch(number, self._rows(number)) for number in numbers)
        new = [queued for queued in self.queue if not queued.asked]
        if new or self.max_staleness > EXACT:
            self._push()
        for queued in new:
            queued.asked = True
            if self.engine is not None:
                queued.ticket = self._submit(queued)

    def _rows(self, number: int) -> list[int]:
        """The problems of a batch, and those that may take their places."""
        rows: list[int] = self.trainer.order.rows(number)
        if self.spare:
            others = sorted(set(range(len(self.trainer.train_dataset))) - set(rows))
            asked = random.Random(self._seed(number))
            rows += asked.sample(others, min(len(others), math.ceil(self.spare * len(rows))))
        return rows

    def _seed(self, number: int) -> int:
        return derived_seed(self.trainer.args.seed, "rollouts", number)

    def _submit(self, queued: QueuedBatch) -> int:
        """Ask the engine for a generation batch."""
        trainer = self.trainer
        longest = trainer.length_at(trainer.order.step_at(queued.number))
        enough = trainer.order.groups if self.spare else None
        sampling = self.sampling(self._seed(queued.number), trainer.num_generations, longest, enough)
        prompts = self.prompts([trainer.train_dataset[row] for row in queued.rows])
        usual = fmean(self.lengths.values()) if self.lengths else longest
        expected = [
            len(prompt) + self.lengths.get(row, usual) for row, prompt in zip(queued.rows, prompts, strict=True)
        ]
        ticket: int = self.engine.submit(prompts, sampling, expected)
        return ticket

    def _finish(self, queued: QueuedBatch) -> Groups:
        """The rollouts of a batch; none in processes without an engine."""
        if queued.groups is None and self.engine is not None:
            queued.groups, queued.ticket = self.engine.collect(queued.ticket), None
            whole = [(row, group) for row, group in zip(queued.rows, queued.groups, strict=True) if complete(group)]
            self.lengths |= {row: fmean(len(rollout.token_ids) for rollout in group) for row, group in whole}
        return queued.groups or []

    def _push(self) -> None:
        """Have the engine sample with the weights of the moment. Collective where they are sharded."""
        trainer = self.trainer
        if self._weights_of == trainer.state.global_step:
            return
        with trainer.clock.part("sync"):
            self._dtype = self._dtype or self._handed_out(lambda: self.engine.dtype)
            weights = official_weights(trainer.accelerator.unwrap_model(trainer.model), getattr(torch, self._dtype))
            if self.engine is not None:
                self.engine.push(weights, trainer.state.global_step)
            elif trainer.is_fsdp_enabled:
                for _ in weights:  # this process's part of each tensor is asked for
                    pass
        self._weights_of = trainer.state.global_step

    def _handed_out(self, make: Callable[[], Any]) -> Any:
        """What the process with the engine makes, in every process; an error there is one everywhere."""
        if self.trainer.accelerator.num_processes == 1:
            return make()

        def tried() -> tuple[Any, str | None]:
            try:
                return make(), None
            except (RolloutError, ValueError) as error:
                return None, str(error)

        made, fault = by_first(self.trainer.accelerator, tried)
        if fault is not None:
            raise RolloutError(fault)
        return made

    def _log(self, chosen: list[tuple[int, list[Rollout]]], groups: Groups, waited: float) -> None:
        if self.engine is None:
            return
        metrics = self.trainer._metrics["train"]
        ages = Counter[int]()
        for rollout in (rollout for _, group in chosen for rollout in group):
            for version, tokens in rollout.versions:
                ages[self.trainer.state.global_step - version] += tokens
        if ages:
            metrics["rollout/staleness"].append(sum(age * tokens for age, tokens in ages.items()) / ages.total())
            metrics["rollout/staleness_max"].append(float(max(ages)))
        idle, self._idle = self.engine.idle_seconds - self._idle, self.engine.idle_seconds
        metrics["rollout/wait_seconds"].append(waited)
        metrics["rollout/engine_idle_seconds"].append(idle)
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


def _complete(queued: QueuedBatch, groups: Groups, wanted: int) -> list[tuple[int, list[Rollout]]]:
    """The first complete groups of a batch, each with the row of its problem."""
    chosen = [(row, group) for row, group in zip(queued.rows, groups, strict=True) if complete(group)][:wanted]
    if len(chosen) < wanted:
        raise RolloutError(f"the engine gave up on {wanted - len(chosen)} of the {wanted} groups of a batch")
    return chosen


def _restored(text: str, ids: list[int], finish: str, logprobs: list[float] | None, versions: list[Any]) -> Rollout:
    """A rollout that was written as JSON, which has lists in place of tuples."""
    known = None if logprobs is None else tuple(logprobs)
    return Rollout(text, tuple(ids), Finish(finish), known, tuple(map(tuple, versions)))
