"""A loss, gradient or weight that is not finite ends a stage, or costs a step, instead of destroying the model.

One NaN in a gradient makes every weight NaN at the next optimizer step, and a stock trainer goes on to the end. Here
each step is looked at before the optimizer is asked: all ranks tell each other what they saw and do the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from pipeline.schema.reserved import hardly_moves
from pipeline.training.parallel.sharding import local_part

log = logging.getLogger(__name__)

NonFinite = Literal["stop", "skip"]
SKIPPED = "non_finite/skipped"
"""Metric: share of the steps since the last line that were skipped."""
COMPARED = {"teacher_model": "teacher", "ref_model": "reference model"}
"""Attributes of trainers: models that a policy is compared with."""
NAMES_SHOWN = 3
HALF = (torch.bfloat16, torch.float16)


class NonFiniteError(ArithmeticError):
    """A loss, gradient or weight is NaN or infinite; the message has the step, the batch and what can be done."""


class DamagedError(NonFiniteError):
    """It is a weight that a stage starts or learns from: going back to a checkpoint would not help."""


class Watched:
    """Mixin for trainers: hands each micro-batch, and the norm of each step's gradients, to whoever watches."""

    watch: Watch | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if self.watch is not None:
            self.watch.batches.append(inputs)
            self.watch.losses.append(loss)
        return loss

    def check_weights(self) -> None:
        """Make sure that weights are finite before anything is sampled with them: torch fails in the middle of it."""
        if self.watch is not None:
            self.watch.check_weights()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        if self.watch is not None:
            self.watch.grad_norm = norm
        return norm


class Watch(TrainerCallback):  # type: ignore[misc]
    """Looks at each step of a trainer before the optimizer does, and at the weights before training and saving.

    Args:
        trainer: has the mixin `Watched`.
        then: `stop` with an error, or `skip` the step. Weights that are not finite always stop.
        folder: where the batch is kept that a stage stopped at.

    Attributes:
        batches: the inputs of the present step's micro-batches on this rank.
        losses: their losses.
        grad_norm: norm of the present step's gradients over all ranks, before clipping.

    Raises:
        ValueError: steps are to be skipped, and DeepSpeed trains, which takes them by itself.
    """

    def __init__(self, trainer: Any, then: NonFinite, folder: Path) -> None:
        if then == "skip" and trainer.is_deepspeed_enabled:
            raise ValueError("non_finite: skip: DeepSpeed takes its steps by itself; set non_finite: stop")
        self.trainer, self.then, self.folder = trainer, then, folder
        self.loss_before: torch.Tensor | None = None
        self._forget()
        trainer.watch = self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check_types()
        self.check_weights(begun=False)
        for name, role in COMPARED.items():
            if (model := getattr(self.trainer, name, None)) is not None:
                self._check_compared(model, role)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forget()
        self.loss_before = self.trainer._tr_loss.clone() if self.then == "skip" else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bad = [number for number, loss in enumerate(self.losses, 1) if not bool(loss.isfinite().all())]
        gradients = args.fp16 or self._gradients_are_finite()  # with float16, its scaler skips such steps
        losses_R, gradients_R = self._told(min(bad, default=0), not gradients)
        skip = False
        if any(losses_R) or any(gradients_R):
            reason = f"step {state.global_step + 1} of {state.max_steps}: {self._what(losses_R, gradients_R)}"
            (weights_R,) = self._told(len(self._weights()))
            skip = self.then == "skip" and not any(weights_R)
            if not skip:
                first = next(rank for rank, one in enumerate(zip(losses_R, gradients_R, strict=True)) if any(one))
                kept = self._keep(state.global_step + 1, first)
                raise NonFiniteError(f"{reason}; {self._others(weights_R)}. The batch is kept in {kept}. {_ADVICE}")
            log.warning("%s; the step is skipped", reason)
            self._skip()
        if self.then == "skip":
            self.trainer._metrics["train"][SKIPPED].append(float(skip))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forget()
        if control.should_save:
            self.check_weights()

    def check_weights(self, begun: bool = True) -> None:
        """Make sure that every weight of the model is finite. Collective.

        Args:
            begun: whether this process has trained them, unless no step was taken at all.

        Raises:
            NonFiniteError: one is not, on any rank; a `DamagedError` before the first step.
        """
        names, state = self._weights(), self.trainer.state
        (weights_R,) = self._told(len(names))
        if any(weights_R):
            step, trained = state.global_step, begun and state.global_step > 0
            when, why = (f"after step {step}", _ADVICE) if trained else (f"before step {step + 1}", _DAMAGED)
            error = NonFiniteError if trained else DamagedError
            raise error(f"not finite {when} of {state.max_steps}: {_where(names, weights_R)}. {why}")

    def _check_compared(self, model: Any, role: str) -> None:
        """Make sure that the weights of a model are finite which the policy is compared with. Collective.

        No loss would be: the first step would stop, with another reason, or all of them would be skipped.

        Raises:
            DamagedError: a weight is not, on any rank.
        """
        names = _not_finite(model)
        (weights_R,) = self._told(len(names))
        if any(weights_R):
            raise DamagedError(f"the {role} is not finite: {_where(names, weights_R)}. Its files are damaged")

    def _check_types(self) -> None:
        """Make sure that nothing is trained in two bytes a number, however the model came by it.

        Raises:
            ValueError: names a weight. DeepSpeed keeps others, in float32, of those that are seen here.
        """
        for name, weight in self.trainer.model.named_parameters():
            if weight.requires_grad and weight.dtype in HALF and not self.trainer.is_deepspeed_enabled:
                raise ValueError(f"{name}: {hardly_moves(str(weight.dtype).removeprefix('torch.'))}")

    def _told(self, *numbers: int) -> list[list[int]]:
        """What every rank says: for each number a list of them, by rank."""
        accelerator = self.trainer.accelerator
        told = accelerator.gather(torch.tensor(numbers, device=accelerator.device))
        return [list(of_ranks) for of_ranks in told.view(-1, len(numbers)).T.tolist()]

    def _gradients_are_finite(self) -> bool:
        norm = self.grad_norm
        if norm is not None and not bool(torch.as_tensor(local_part(norm)).isfinite().all()):
            return False
        weights = self.trainer.model.parameters()
        return _all_finite(local_part(weight.grad) for weight in weights if weight.grad is not None)

    def _weights(self) -> list[str]:
        return _not_finite(self.trainer.model)

    def _what(self, losses_R: list[int], gradients_R: list[int]) -> str:
        """What is not finite, on which ranks, and in which micro-batch of the first of them."""
        on = f" on rank {_numbers(losses_R if any(losses_R) else gradients_R)}" if len(losses_R) > 1 else ""
        if not any(losses_R):
            return f"gradients are not finite (their norm is {self.grad_norm}){on}"
        first = next(number for number in losses_R if number)
        here = self.losses[first - 1].item()
        value = "" if math.isfinite(here) else f"{here} in "
        return f"the loss is not finite{on}: {value}micro-batch {first} of {len(self.losses)}"

    def _others(self, weights_R: list[int]) -> str:
        """What else is known of it on this rank."""
        if any(weights_R):
            return f"weights were not finite before it, {_listed(self._weights()) or 'on rank ' + _numbers(weights_R)}"
        named = self.trainer.model.named_parameters()
        names = [name for name, w in named if w.grad is not None and not bool(local_part(w.grad).isfinite().all())]
        return "all weights still are" + (f", the gradients of {_listed(names)} are not" if names else "")

    def _skip(self) -> None:
        """Leave the optimizer nothing to do, and the logged loss as it was before this step."""
        for weight in self.trainer.model.parameters():
            weight.grad = None
        if self.loss_before is not None:
            self.trainer._tr_loss.copy_(self.loss_before)

    def _keep(self, step: int, first: int) -> Path:
        """Write down what each rank has seen; the file of the first one that saw it."""
        accelerator = self.trainer.accelerator
        own, told = (self.folder / f"non-finite-step-{step}-rank-{r}.pt" for r in (accelerator.process_index, first))
        torch.save(self.batches, own)
        accelerator.wait_for_everyone()  # the error of one rank ends the others
        return told

    def _forget(self) -> None:
        self.batches: list[Any] = []
        self.losses: list[torch.Tensor] = []
        self.grad_norm: Any = None


_DAMAGED = "The files of the model that the stage starts from are damaged"
_ADVICE = "A lower trainer.learning_rate or more trainer.warmup_steps may help; non_finite: skip leaves such steps out"


def _not_finite(model: torch.nn.Module) -> list[str]:
    """Names of this rank's weights that are not finite, and of buffers that are saved, such as routing biases."""
    passing = {each for name, module in model.named_modules() for each in _passing(name, module)}
    buffers = [(name, held) for name, held in model.named_buffers() if held.dim() and name not in passing]
    named = [(name, local_part(held)) for name, held in (*model.named_parameters(), *buffers)]
    named = [(name, held) for name, held in named if held.itemsize > 1]  # those of quantised models are only stored
    if _all_finite(held for _, held in named):
        return []
    return [name for name, held in named if not bool(held.isfinite().all())]


def _passing(name: str, module: torch.nn.Module) -> list[str]:
    """Names of a module's buffers that are not saved with it."""
    return [f"{name}.{buffer}" for buffer in module._non_persistent_buffers_set]


def _all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number in them is, with one pass over memory and one look at the result; integers always are."""
    kept = [tensor for tensor in tensors if tensor.numel() and tensor.is_floating_point()]
    return not kept or bool(torch.nn.utils.get_total_norm(kept).isfinite())


def _where(names: list[str], weights_R: list[int]) -> str:
    """Names of this rank's weights, or the ranks that have others."""
    return _listed(names) if names else f"weights of rank {_numbers(weights_R)}"


def _numbers(counts_R: list[int]) -> str:
    """The ranks that count anything."""
    return ", ".join(str(rank) for rank, count in enumerate(counts_R) if count)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
