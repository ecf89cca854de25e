"""What an optimizer step of GRPO was made of, for a stage that watches its health.

See `pipeline.training.health.evidence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipeline.training.grpo import objective
from pipeline.training.grpo.batch import Batch
from pipeline.training.grpo.judging import Judge
from pipeline.training.grpo.logprobs import Logprobs
from pipeline.training.grpo.sampling import Problem, Sampled

TOTAL = "reward"
"""The first of the scores: the sum that advantages are made of."""
PROBLEMS = 20_000
"""Problems that are remembered: those of several generation batches."""
SHOWN = ("task", "id", "question", "answer")
"""What of a problem is written down."""


@dataclass(slots=True)
class Micro:
    """A micro-batch, and what its passes gave: (B, C) log-probabilities and entropies, NaN where no token counted."""

    batch: Batch
    trainer_BC: Tensor
    entropy_BC: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, on the CPU."""
        known = {field.name: getattr(self.batch, field.name) for field in fields(Batch)}
        known |= {"trainer_BC": self.trainer_BC, "entropy_BC": self.entropy_BC, "tokens": torch.tensor(known["tokens"])}
        return {name: value.detach().cpu().contiguous() for name, value in known.items() if isinstance(value, Tensor)}


class StepRecord:
    """Holds the micro-batches of the present step, if anybody wants them.

    Args:
        trainer: a `GrpoTrainer`.

    Attributes:
        wanted: whether somebody does.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.wanted = trainer, False
        self.micro: list[Micro] = []
        self._problems: dict[tuple[int, ...], Problem] = {}

    @property
    def names(self) -> list[str]:
        """Of the scores of a row."""
        (reward,) = self.trainer.reward_funcs
        return [TOTAL, *([part.label for part in reward.parts] if isinstance(reward, Judge) else [])]

    def scores(self, sampled: Sampled, rewards_BF: Tensor, weights_F: Tensor) -> Tensor:
        """(b, F) the reward of each rollout of this process, and the scores of its parts; remembers the problems.

        Args:
            sampled: rollouts of this process, which have been judged.
            rewards_BF: rewards of all processes.
            weights_F: their weights.
        """
        trainer = self.trainer
        total_B = objective.total(rewards_BF, weights_F).view(trainer.accelerator.num_processes, -1)
        columns = [total_B[trainer.accelerator.process_index].tolist()]
        (reward,) = trainer.reward_funcs
        if isinstance(reward, Judge):
            for part in reward.parts:
                scores = [None if v is None else v.score for v in reward.last[part.label]]
                columns.append([math.nan if score is None else score for score in scores])
        if self.wanted:
            self._problems |= {tuple(ids): p for ids, p in zip(sampled.prompt_ids, sampled.problems, strict=True)}
            for ids in list(self._problems)[:-PROBLEMS]:
                del self._problems[ids]
        return torch.tensor(columns, dtype=torch.float32, device=rewards_BF.device).T.contiguous()

    def begin(self, batch: Batch) -> Batch:
        """A micro-batch is trained on; its rows have numbers from here on."""
        if not self.wanted:
            return batch
        batch = batch.knowing(at_B=torch.arange(len(batch), device=batch.mask_BC.device))
        unknown_BC = torch.full(batch.mask_BC.shape, math.nan, device=batch.mask_BC.device)
        self.micro.append(Micro(batch, unknown_BC, unknown_BC.clone()))
        return batch

    def take(self, part: Batch, scores: Logprobs) -> None:
        """A pass has been made for some rows of it."""
        if not self.wanted or part.at_B is None:
            return
        micro, counts_BC = self.micro[-1], part.mask_BC.bool()
        for held_BC, found_BC in ((micro.trainer_BC, scores.logprobs_BC), (micro.entropy_BC, scores.entropy_BC)):
            if found_BC is not None:
                held_BC[part.at_B] = found_BC.detach().float().where(counts_BC, held_BC[part.at_B])

    def clear(self) -> None:
        """A new step begins."""
        self.micro = []

    def tensors(self) -> dict[str, Tensor]:
        """All of the step, on the CPU; `0/mask_BC` is of the first micro-batch."""
        return {f"{at}/{name}": value for at, micro in enumerate(self.micro) for name, value in micro.tensors().items()}

    def settings(self) -> dict[str, Any]:
        """How it was sampled and trained on."""
        trainer, args = self.trainer, self.trainer.args
        sampled = {name: getattr(trainer, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        sampled |= {"max_tokens": trainer.max_completion_length, "engine": type(trainer.sampler).__name__}
        asked = ("loss_type", "beta", "epsilon", "num_generations", "max_grad_norm", "scale_rewards", "num_iterations")
        return {
            "rewards": self.names,
            "sampling": sampled,
            "corrected": trainer.objective.corrected,
            "accumulated": args.gradient_accumulation_steps,
            **{name: getattr(args, name) for name in asked},
        }

    def rows(self, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The rows of a step's tensors for people: texts, ends, rewards and advantages."""
        found = []
        for at in range(sum(name.endswith("/mask_BC") for name in tensors)):
            held = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{at}/")}
            found += [self._row(held, row) | {"micro_batch": at, "row": row} for row in range(len(held["mask_BC"]))]
        return found

    def _row(self, held: dict[str, Tensor], row: int) -> dict[str, Any]:
        prompt = held["prompt_ids_BP"][row][held["prompt_mask_BP"][row].bool()].tolist()
        completion = completion_ids(held, row, self.trainer._tokenizer.pad_token_id)
        problem, decode = self._problems.get(tuple(prompt), {}), self.trainer._tokenizer.decode
        scores = held["rewards_BF"][row].tolist() if "rewards_BF" in held else []
        return {
            **{name: problem.get(name) for name in SHOWN},
            "columns": {name: value for name, value in problem.items() if name not in (*SHOWN, "prompt")},
            "prompt": decode(prompt),
            "completion": decode(completion),
            "text": decode(completion, skip_special_tokens=True),
            "tokens": len(completion),
            "finish": "stop" if self.trainer.stopped(completion) else "length",
            "rewards": {n: None if math.isnan(s) else s for n, s in zip(self.names, scores, strict=False)},
            "advantage": held["advantages_B"][row].item(),
        }


def completion_ids(held: dict[str, Tensor], row: int, padding: int) -> list[int]:
    """The tokens of a completion, also of one that does not count: those that are cut off end in no padding."""
    ids: list[int] = held["completion_ids_BC"][row].tolist()
    counted = int(held["mask_BC"][row].sum())
    if counted:
        return ids[:counted]
    while ids and ids[-1] == padding:
        ids.pop()
    return ids
