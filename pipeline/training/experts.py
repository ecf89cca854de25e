"""Balanced experts in any trainer: a callback that moves the selection biases and logs how even the load is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from model.balance import configure, max_violation, routers, update_bias
from model.balance_loss import Balance, BalanceLoss
from pipeline.schema.routing import Routing

METRIC = "routing/max_violation"
"""Mean over the layers; those of single layers have the layer's number behind it."""


def balance(trainer: Any, routing: Routing) -> None:
    """Balance the experts of a trainer's model as the stage says; a model without our gates is left alone."""
    if routers(trainer.model):
        trainer.expert_balance = ExpertBalance(trainer, routing)
        trainer.add_callback(trainer.expert_balance)


def balances_batches(trainer: Any) -> bool:
    """Whether a loss balances the experts over a micro-batch as a whole, which then is no sum over its rows."""
    return _loss(trainer) is BalanceLoss.SWITCH


def balances_sequences(trainer: Any) -> bool:
    """Whether a loss balances the experts over each sequence."""
    return _loss(trainer) is BalanceLoss.SEQUENCE


def _loss(trainer: Any) -> BalanceLoss:
    found = getattr(trainer, "expert_balance", None)
    return BalanceLoss.NONE if found is None else found.balance.loss


def share(trainer: Any, of_step: float) -> None:
    """Let the balance loss of the next forward pass, and of its backward pass, count for a share of an optimizer step.

    Where nobody says so, micro-batches count alike.
    """
    if (found := getattr(trainer, "expert_balance", None)) is not None:
        found.balance.scale = of_step


class ExpertBalance(TrainerCallback):  # type: ignore[misc]
    """Moves the biases before each optimizer step, by the load of all its micro-batches on all ranks.

    Args:
        trainer: one of TRL's; its metrics are added to, and read by it.
        routing: what the stage says.
    """

    def __init__(self, trainer: Any, routing: Routing) -> None:
        self.trainer, self.routing = trainer, routing
        self.balance = Balance(BalanceLoss(routing.balance), routing.balance_alpha)
        configure(trainer.model, self.balance)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.balance.scale = 1 / self.trainer.current_gradient_accumulation_steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counted_LE = update_bias(self.trainer.model, self.routing.bias_update_speed)
        # Blocks of multi-token prediction that are not trained along see no tokens, and have no load to tell.
        violations = {layer: max_violation(load_E) for layer, load_E in counted_LE.items() if load_E.any()}
        if not violations:
            return
        violations_L = torch.stack(list(violations.values()))
        metrics = self.trainer._metrics["train"]
        metrics[METRIC].append(float(violations_L.mean()))
        for layer, violation in zip(violations, violations_L.tolist(), strict=True):
            metrics[f"{METRIC}/{layer}"].append(violation)
