"""A kept batch on the checkpoint before it, with the stage's own trainer: what each change makes of its numbers.

The trainer is built as the stage builds it, but for what samples and judges. A pass is the stage's own: loss, gradients
and metrics come from `GrpoTrainer.compute_loss`, and an update is a step of the stage's optimizer, with its state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

from pipeline.context import StageContext
from pipeline.stages import grpo
from pipeline.training import adapters, models, setup
from pipeline.training.grpo import logprobs, objective
from pipeline.training.grpo.judging import Samples
from pipeline.training.grpo.sampling import TrlSampler
from pipeline.training.grpo.trainer import GrpoTrainer
from pipeline.why.batches import Kept
from pipeline.why.case import GATHERED, OPTIMIZER, Case

MOST_UPDATES = 4
"""Optimizer steps that a batch is trained on, at most, where the symptom began later than that after the checkpoint."""
FLOAT8 = "float8"
PRECISIONS = ("float32", "bfloat16", "float16", FLOAT8)
"""What an engine may compute in; float8 is of the weights alone."""

Numbers = dict[str, float]
"""What a pass, or an update, was like: the columns of the table; NaN where the batch cannot tell."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a batch is replayed.

    Attributes:
        rate: what the learning rate is multiplied with.
        clip: what the bound on the gradient's norm is multiplied with.
        corrected: whether importance weights of the engine count; as in the stage if not given.
    """

    rate: float = 1.0
    clip: float = 1.0
    corrected: bool | None = None


def _unpaid(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


class Replay:
    """The trainer of a stage, on a checkpoint.

    Args:
        case: what is looked into.
        context: what the stage ran with.
    """

    def __init__(self, case: Case, context: StageContext[Any]) -> None:
        self.case, self.record, self.context = case, case.record, context
        self.trainer = _trainer(context, self.record)
        if case.checkpoint is not None:
            self.trainer._load_from_checkpoint(str(case.checkpoint))
        self.model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.objective = self.trainer.objective

    @property
    def device(self) -> Any:
        """What is computed on."""
        return self.trainer.accelerator.device

    def restore(self) -> None:
        """The checkpoint's weights again, and its optimizer."""
        self.model.load_state_dict(self.weights)
        self.trainer.optimizer = None
        self.trainer.create_optimizer()
        if (checkpoint := self.case.checkpoint) is None:
            return
        if (checkpoint / OPTIMIZER).is_file():
            saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
            self.trainer.optimizer.load_state_dict(saved)
        else:  # by the names of the weights
            saved = torch.load(checkpoint / GATHERED, map_location="cpu", weights_only=True)
            set_optimizer_state_dict(self.model, self.trainer.optimizer, saved)

    def rate(self, step: int) -> float:
        """The learning rate of a step, as it was logged; that of the optimizer where it was not."""
        lines = [line for line in self.record["history"] if line["step"] == step and "learning_rate" in line]
        return float(lines[0]["learning_rate"] if lines else self.record["learning_rate"])

    def numbers(self, kept: Kept, setting: Setting) -> Numbers:
        """A forward and a backward pass: loss, norm of the gradients and the metrics of the pass."""
        trainer = self.trainer
        corrected = self.record["corrected"] if setting.corrected is None else setting.corrected
        trainer.objective = replace(self.objective, corrected=corrected)
        trainer.current_gradient_accumulation_steps = len(kept.micro) // self.record["ranks"]
        trainer.model.train()
        trainer.model.zero_grad()
        loss = 0.0
        for batch in kept.micro:
            with trainer.compute_loss_context_manager():
                part = trainer.compute_loss(trainer.model, batch)
            trainer.accelerator.backward(part)
            loss += part.item() / self.record["ranks"]
        gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
        for gradient in gradients:
            gradient.div_(self.record["ranks"])
        found = trainer.metrics.read(trainer.accelerator)
        return {
            "loss": loss,
            "grad_norm": torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0,
            "entropy": found.get("entropy", math.nan),
            "kl": found.get("kl", math.nan),
            "mismatch": found.get("sampling/sampling_logp_difference/mean", math.nan),
            "effective_samples": found.get("sampling/effective_sample_size", math.nan),
        }

    def updated(self, kept: Kept, setting: Setting, updates: int) -> Numbers:
        """What so many updates on a batch make of the policy, measured on the same batch; the weights come back."""
        trainer = self.trainer
        self.restore()
        before = [self.logprobs(batch) for batch in kept.micro]
        group_rates = [group["lr"] for group in trainer.optimizer.param_groups]
        factor = setting.rate * self.rate(kept.step) / group_rates[0]
        for group, rate in zip(trainer.optimizer.param_groups, group_rates, strict=True):
            group["lr"] = rate * factor
        for _ in range(updates):
            norm = self.numbers(kept, setting)["grad_norm"]
            bound = trainer.args.max_grad_norm * setting.clip if trainer.args.max_grad_norm else math.inf
            if setting.clip != 1.0:
                bound = min(bound, norm * setting.clip)
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), bound)
            trainer.optimizer.step()
        fresh = [batch.knowing(old_BC=None, sampler_BC=None) for batch in kept.micro]  # of the policy as it is now
        found = self.numbers(kept.having(fresh), setting)
        moved = [
            (objective.divergence(self.logprobs(batch), old_BC) * batch.mask_BC).sum().item()
            for batch, old_BC in zip(kept.micro, before, strict=True)
        ]
        found["moved"] = sum(moved) / max(1.0, sum(float(batch.mask_BC.sum()) for batch in kept.micro))
        self.restore()
        return {f"{name}_after": value for name, value in found.items()}

    def logprobs(self, batch: Any) -> Tensor:
        """(B, C) log-probabilities of the policy as it is now, 0 where no token counts."""
        with self.trainer.compute_loss_context_manager():
            found_BC = logprobs.without_gradient(self.trainer, self.trainer.model, batch)
        return found_BC.float().masked_fill(batch.mask_BC == 0, 0.0)

    def as_reference(self, kept: Kept) -> Kept:
        """The batch with the checkpoint as its reference, where it has one."""
        known = [b if b.reference_BC is None else b.knowing(reference_BC=self.logprobs(b)) for b in kept.micro]
        return kept.having(known)

    @contextmanager
    def computing_in(self, precision: str) -> Iterator[None]:
        """The model in another precision, for passes without gradient: one of `PRECISIONS`."""
        accelerator = self.trainer.accelerator
        before, dtypes = accelerator.native_amp, {name: weight.dtype for name, weight in self.model.named_parameters()}
        try:
            if precision == FLOAT8:
                _round(self.model)
            else:
                accelerator.native_amp = False
                self.model.to(getattr(torch, precision))
            yield
        finally:
            for name, weight in self.model.named_parameters():
                weight.data = weight.data.to(dtypes[name])
            self.model.load_state_dict(self.weights)
            accelerator.native_amp = before

    def rounded(self, kept: Kept, precision: str) -> Numbers:
        """The checkpoint's log-probabilities in a precision.

        Returns:
            `mismatch`: how far they lie from the engine's, in nats a token; `rounding`: from the trainer's own.
        """
        known = [(batch, batch.sampler_BC) for batch in kept.micro if batch.sampler_BC is not None]
        own = [self.logprobs(batch) for batch, _ in known]
        with self.computing_in(precision):
            found = [self.logprobs(batch) for batch, _ in known]
        gaps, roundings = list[Tensor](), list[Tensor]()
        for (batch, engine_BC), own_BC, found_BC in zip(known, own, found, strict=True):
            known_BC = batch.mask_BC.bool() & ~engine_BC.isnan()
            gaps.append((found_BC - engine_BC)[known_BC].abs())
            roundings.append((found_BC - own_BC)[known_BC].abs())
        return {"mismatch": torch.cat(gaps).mean().item(), "rounding": torch.cat(roundings).mean().item()}


@torch.no_grad()
def _round(model: torch.nn.Module) -> None:
    """Round the matrices of a model to float8 (E4M3), each scaled to the type's range."""
    for weight in model.parameters():
        if weight.dim() > 1:
            scale = weight.abs().max().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
            weight.copy_((weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale)


def _trainer(context: StageContext[Any], record: Any) -> Any:
    """The stage's trainer, with nothing to sample from; the reference is what the batch knows of it."""
    from datasets import Dataset

    config = context.config
    model = context.model_path(config.model)
    args = grpo.arguments(context)
    beta, args.beta, args.sync_ref_model = args.beta, 0.0, False
    rows = [{"prompt": "replayed"}] * max(1, args.generation_batch_size)
    tokenizer = setup.load_tokenizer(model)
    adapter = adapters.prepare(config, model, adapters.CAUSAL)
    trainer = adapters.carry(
        GrpoTrainer,
        adapter,
        sampler=TrlSampler,
        model=models.policy(model, args, adapters.quantizes(adapter)),
        reward_funcs=_unpaid,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        samples=Samples(context.scratch / "samples.jsonl", 1, 0),
        efficiency=config.switches,
        mtp=config.mtp,
        stop=config.rollout.stop,
    )
    args.beta, trainer.max_completion_length = beta, record["sampling"]["max_tokens"]
    trainer.model.to(args.device)
    return trainer
