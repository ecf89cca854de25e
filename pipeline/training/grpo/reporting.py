"""Metrics of rollouts before training on them: lengths, rewards, groups that teach nothing, and samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.records.dead_groups import EQUAL, FAILED
from pipeline.records.samples import Judgement, sample_row
from pipeline.training import stopping
from pipeline.training.grpo import objective, texts
from pipeline.training.grpo.sampling import Sampled
from pipeline.training.parallel.collectives import summed
from rewards.text import plain
from rewards.verdict import PREFILL


def log_rollouts(trainer: Any, sampled: Sampled, rewards_BF: Tensor, weights_F: Tensor) -> None:
    """Lengths and rewards of rollouts, over all processes, under TRL's names."""
    metrics = trainer._metrics["train"]
    known = sampled.logprobs or [[0.0]] * len(sampled.problems)
    lengths = [
        [len(p), len(c), trainer.stopped(c), sum(not math.isfinite(one) for one in scores)]
        for p, c, scores in zip(sampled.prompt_ids, sampled.completion_ids, known, strict=True)
    ]
    every = trainer.accelerator.gather(torch.tensor(lengths, device=trainer.accelerator.device))
    trainer.state.num_input_tokens_seen += int(every[:, :2].sum())
    metrics["num_tokens"] = [trainer.state.num_input_tokens_seen]
    stopping.log_lengths(trainer, every[:, 1], every[:, 2].bool())
    if sampled.logprobs is not None:
        unknown = float(every[:, 3].sum() / every[:, 1].sum())
        metrics["sampling/unknown_logprobs"].append(unknown)
        trainer.drift.look(unknown)
    for at, name in enumerate(trainer.reward_func_names):
        metrics[f"rewards/{name}/mean"].append(rewards_BF[:, at].nanmean().item())
        metrics[f"rewards/{name}/std"].append(objective.deviation(rewards_BF[:, at], 0).item())
    total_B = objective.total(rewards_BF, weights_F)
    metrics["reward"].append(total_B.nanmean().item())
    metrics["reward_std"].append(objective.deviation(total_B, 0).item())
    equal_G = objective.equal_groups(total_B[:, None], trainer.num_generations)
    metrics["frac_reward_zero_std"].append(equal_G.float().mean().item())  # TRL compares deviations with 0 instead
    for name in sorted(set(gather_object(list(trainer._pending_metrics)))):  # of rewards; all ranks in one order
        values = trainer._pending_metrics.get(name, [])
        total, count = summed(trainer.accelerator, sum(values), len(values))
        metrics[name].append(total / count)
    trainer._pending_metrics.clear()


def look_at(
    trainer: Any, sampled: Sampled, completions: list[Any], rewards_BF: Tensor, weights_F: Tensor
) -> tuple[Tensor, Tensor]:
    """Log how many groups teach nothing, and write a few completions where that is due.

    Returns:
        (G) which groups have an equal reward above zero, and (G) which have one of zero or less.
    """
    total_B = objective.total(rewards_BF, weights_F)
    same_G = objective.equal_groups(total_B[:, None], trainer.num_generations)
    best_G = total_B.nan_to_num(0.0).view(-1, trainer.num_generations).amax(dim=1)  # the first may have no score
    solved_G, failed_G = same_G & (best_G > 0), same_G & (best_G <= 0)
    shares = {FAILED: failed_G.float().mean().item(), EQUAL: solved_G.float().mean().item()}
    for name, share in shares.items():
        trainer._metrics["train"][name].append(share)
    trainer.group_watch.add(shares)
    texts.log_texts(trainer, sampled.problems, completions, sampled.completion_ids)
    if trainer.accelerator.is_main_process and trainer.samples.due(trainer.state.global_step):
        trainer.samples.add(_sample_rows(trainer, sampled, completions))
    return solved_G, failed_G


def _sample_rows(trainer: Any, sampled: Sampled, completions: list[Any]) -> list[dict[str, Any]]:
    """The first completions of this process; the verdict is that of the first reward."""
    (reward,) = trainer.reward_funcs
    verdicts, extras = reward.last[reward.parts[0].label], trainer._pending_extra_logs
    columns = [(part.label, reward.last[part.label]) for part in reward.parts]
    return [
        sample_row(
            problem,
            plain(completion),
            None if verdict is None else Judgement.of(verdict),
            len(sampled.completion_ids[at]),
            "stop" if trainer.stopped(sampled.completion_ids[at]) else "length",
            {label: said.score for label, column in columns if (said := column[at]) is not None},
            str(problem.get(PREFILL) or ""),
            step=trainer.state.global_step,
            **({"extra": {name: values[at] for name, values in extras.items()}} if extras else {}),
        )
        for at, (problem, completion, verdict) in enumerate(zip(sampled.problems, completions, verdicts, strict=True))
        if at < trainer.samples.count
    ]
