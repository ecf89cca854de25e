"""The switches that make GRPO faster than stock TRL, and where each of them is exact.

    efficiency:
      packing: true            # rows without padding, so many tokens a forward pass
      tokens_per_pass: 8192
      merge_micro_batches: true  # all rows of a step fill these passes together
      drop_dead_groups: auto   # what teaches nothing is left out of the forward and backward passes
      dynamic_sampling_rounds: 0  # or replaced by groups that are sampled on top (DAPO)
      reuse_logprobs: true     # no pass of its own for log-probabilities that the training pass computes anyway
      background_rewards: true # rewards are judged while log-probabilities are computed
      fused_kernels: false     # norms, rotary positions and MLPs of the trained model are Liger's kernels

All of them off is TRL, up to rounding. Imported with the stages' configs, so nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.schema.strict import Strict


class PoolSpec(Strict):
    """Problems that teach nothing come up less often: `pool: {solved: 4, failed: 2}`.

    Attributes:
        solved: a problem whose rollouts were all right comes up again when the others have come up so many times; after
            a second time in a row twice as many, and four times as many at most.
        failed: the same for a problem whose rollouts all failed. It rests for a shorter time, since the policy may have
            learnt enough by then.
    """

    solved: Annotated[float, Field(ge=1)] = 4.0
    failed: Annotated[float, Field(ge=1)] = 2.0


class Efficiency(Strict):
    """How the work of a GRPO step is arranged.

    Attributes:
        packing: sequences lie one after another in rows without padding, each attending to itself only. Losses and
            gradients are TRL's, up to rounding.
        tokens_per_pass: with `packing`, the tokens of one forward and backward pass: this, and no longer
            `per_device_train_batch_size`, decides about the peak of memory. A longer sequence has a pass to itself.
            Where a pass's activations are estimated to fit a GPU easily, `gradient_checkpointing` is off by default.
        merge_micro_batches: with `packing`, the micro-batches of an optimizer step are one, as far as they are of one
            generation batch, so that their rows fill passes together. `per_device_train_batch_size` and
            `gradient_accumulation_steps` then only say how large a step is. Where the loss of a micro-batch divides by
            its own tokens (bnpo), or is computed over it as a whole (entropy bonus, router loss, `mtp`, `routing`,
            DeepSpeed), micro-batches stay as they are.
        drop_dead_groups: rows whose advantage is zero are left out of the training passes. Exact where nothing else
            gives them a gradient (beta 0, no entropy bonus); `auto` drops them there and nowhere else. The logged
            entropy and clip ratios are then those of the rows that are left.
        dynamic_sampling_rounds: how often more prompts are sampled, at most, to replace groups without variance by
            groups with some (DAPO, arXiv 2503.14476). 0: dead groups stay. It costs sampling and buys signal.
        dynamic_sampling_queue: groups with variance that were sampled beyond need and wait for a later batch, at most,
            per process. They keep the log-probabilities of the policy that sampled them.
        reuse_logprobs: where no optimizer step lies between sampling and training, the old log-probabilities are the
            new ones, and the importance weights against vLLM's are taken from them in the training pass. Exact where
            stock TRL's extra pass gives the same numbers twice, which it does up to rounding.
        background_rewards: rewards are judged in the background while log-probabilities are computed.
        fused_kernels: the trained model's RMSNorm, rotary positions and gated MLP, and those of the reference, are
            Liger's Triton kernels, which save time and memory and round differently. Needs a GPU, the package
            liger-kernel (the extra `kernels`), and an architecture that Liger knows; for DeepSeek-V3 it is refused.
    """

    former: ClassVar[Mapping[str, str]] = {
        "fold_old_logprobs": "is called reuse_logprobs now",
        "refill_rounds": "is called dynamic_sampling_rounds now",
        "refill_queue": "is called dynamic_sampling_queue now",
        "overlap_rewards": "is called background_rewards now",
        "plain_steps": "is called rollout.scheduler_fast_path now",
        "whole_groups": "is gone: vLLM in the trainer's process always samples a group as one request",
        "reload_weights": "is gone: vLLM in the trainer's process always reloads whole checkpoints",
    }

    packing: bool = True
    tokens_per_pass: Annotated[int, Field(gt=0)] = 8192
    merge_micro_batches: bool = True
    drop_dead_groups: bool | Literal["auto"] = "auto"
    dynamic_sampling_rounds: Annotated[int, Field(ge=0)] = 0
    dynamic_sampling_queue: Annotated[int, Field(ge=0)] = 64
    reuse_logprobs: bool = True
    background_rewards: bool = True
    fused_kernels: bool = False


STOCK = Efficiency(
    packing=False,
    merge_micro_batches=False,
    drop_dead_groups=False,
    reuse_logprobs=False,
    background_rewards=False,
)
"""Everything off: plain TRL."""

OUR_CLASSES = ("deepseek_v2", "deepseek_v3")
"""Model types that `model.modeling` computes. Liger lists them too, but its kernels are for transformers' classes."""


class LengthChange(Strict):
    """Completions may be longer, or must be shorter, from a step on. R1-Zero: 65,536 tokens from step 8,200.

    Attributes:
        step: the optimizer step from which on it holds.
        max_tokens: tokens of the longest completion from then on.
    """

    step: Annotated[int, Field(gt=0)]
    max_tokens: Annotated[int, Field(gt=0)]


def check_efficiency(efficiency: Efficiency, trainer: Mapping[str, Any], besides: str | None = None) -> None:
    """Refuse switches that would not be exact, or make no sense, with these GRPOConfig fields (our defaults included).

    Args:
        besides: what else gives rows without advantage a gradient, if anything does.

    Raises:
        ValueError: says which field is in the way.
    """
    if efficiency.drop_dead_groups is True and (why := besides or dead_rows_count(trainer)):
        raise ValueError(f"efficiency.drop_dead_groups would change the gradient: {why}")
    if efficiency.dynamic_sampling_rounds:
        if trainer.get("scale_rewards") in ("batch",):
            raise ValueError(
                "efficiency.dynamic_sampling_rounds: with scale_rewards=batch, advantages depend on replaced groups"
            )
        if _aggregation(trainer) != "sum_then_normalize":
            raise ValueError("efficiency.dynamic_sampling_rounds needs multi_objective_aggregation: sum_then_normalize")


def kernels_fault(folder: Path) -> str | None:
    """Why a model cannot have `fused_kernels`, as far as the config in its folder tells it already."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):  # no folder but a stage or a hub id: the stage itself will see
        return None
    return own_class(kind) if kind in OUR_CLASSES else None


def own_class(kind: str) -> str:
    """Why a model that is trained as our own class cannot have `fused_kernels`."""
    return f"efficiency.fused_kernels: {kind} models are trained as a class that Liger does not know; set it to false"


def drops(efficiency: Efficiency, trainer: Mapping[str, Any]) -> bool:
    """Whether rows without advantage are left out."""
    if efficiency.drop_dead_groups == "auto":
        return dead_rows_count(trainer) is None
    return efficiency.drop_dead_groups


def dead_rows_count(trainer: Mapping[str, Any]) -> str | None:
    """Why rows without advantage matter to the gradient anyway, if they do."""
    if trainer.get("beta"):
        return f"trainer.beta={trainer['beta']} pulls every row towards the reference; set it to 0"
    if trainer.get("entropy_coef") or trainer.get("use_adaptive_entropy"):
        return "the entropy bonus (trainer.entropy_coef, use_adaptive_entropy) acts on every row"
    if trainer.get("top_entropy_quantile", 1.0) < 1.0:
        return "trainer.top_entropy_quantile compares the tokens of all rows"
    if trainer.get("router_aux_loss_coef"):
        return "trainer.router_aux_loss_coef balances experts over all rows"
    if _aggregation(trainer) != "sum_then_normalize":
        return "trainer.multi_objective_aggregation=normalize_then_sum gives them an advantage"
    return None


def check_lengths(max_tokens: int, lengths: Iterable[LengthChange]) -> None:
    """Refuse a schedule whose steps do not rise, or that changes nothing.

    Raises:
        ValueError: names the step.
    """
    step = 0
    for change in lengths:
        if change.step <= step:
            raise ValueError(f"length_schedule: step {change.step} does not come after step {step}")
        if change.max_tokens == max_tokens:
            raise ValueError(f"length_schedule: at step {change.step} the length is {max_tokens} already")
        step, max_tokens = change.step, change.max_tokens


def _aggregation(trainer: Mapping[str, Any]) -> Any:
    return trainer.get("multi_objective_aggregation", "sum_then_normalize")


def check_pool(pool: PoolSpec | None, trainer: Mapping[str, Any]) -> None:
    """Refuse a pool whose problems would be asked for before the outcomes are known that decide on them.

    Raises:
        ValueError: the data loader has workers.
    """
    if pool is not None and trainer.get("dataloader_num_workers"):
        raise ValueError("pool: set trainer.dataloader_num_workers to 0: workers ask for problems too early")
