"""Experts divided among processes, in transformers' trainer: what it lacks to save, resume and count such a run.

Each rank holds some of every layer's experts as its part of a `DTensor`, and everything else whole; all ranks see the
same batch. transformers' trainer (5.17) saves the model and the optimizer on one rank alone, which waits forever for
the others' parts. Here all ranks hand theirs over, so that a checkpoint is that of one process, and may be resumed by
any number of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def expert_ranks() -> int:
    """Among how many processes experts are divided: the tensor parallel size of the accelerate config; 1 for none."""
    return int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1"))


def division() -> dict[str, Any]:
    """What `from_pretrained` has to be told to divide the experts as the accelerate config says."""
    if expert_ranks() == 1:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=expert_ranks(), enable_expert_parallel=True)}


class ExpertParallel:
    """Mixin for trainers, to be named before TRL's; without divided experts it changes nothing."""

    args: Any
    model: Any
    optimizer: Any

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if expert_ranks() > 1:
            optimizer.register_state_dict_post_hook(_join)
            optimizer.register_load_state_dict_pre_hook(_divide)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if expert_ranks() > 1 and not self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir)  # writes nothing, hands over its experts

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if expert_ranks() > 1 and not self.args.should_save:
            self.optimizer.state_dict()  # the same for the optimizer's moments
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]


def _join(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _changed(state, lambda _, moment: moment.full_tensor() if isinstance(moment, DTensor) else moment)


def _divide(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return _changed(state, lambda index, moment: _like(weights[index], moment))


def _changed(state: dict[str, Any], change: Callable[[int, Any], Any]) -> dict[str, Any]:
    """An optimizer's state dict with other moments, given each by the number of its weight."""
    moments = {
        index: {name: change(index, moment) for name, moment in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": moments}


def _like(weight: Any, value: Any) -> Any:
    """A moment of the whole weight as this rank's part of it; step counts and undivided weights stay as they are."""
    if not isinstance(weight, DTensor) or getattr(value, "shape", None) != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
