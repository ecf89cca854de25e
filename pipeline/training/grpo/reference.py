"""The reference model of GRPO, kept in step with the policy by the names of its weights.

TRL goes through the weights of both models in their order, and stops where one has more. The policy may have more:
blocks of multi-token prediction, which the reference has no use for. And what is no parameter counts too: the biases
that balance a DeepSeek-V3's experts choose which of them are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from trl.trainer import grpo_trainer
from trl.trainer.callbacks import SyncRefModelCallback

from pipeline.training.models import placement
from pipeline.training.parallel.sharding import Weights, shard_layers

REFERENCE = "reference.pt"
"""File of a checkpoint."""


class SyncByName(SyncRefModelCallback):  # type: ignore[misc]
    """TRL's callback; its arguments are the same."""

    @staticmethod
    @torch.no_grad()
    def sync_target_model(model: Any, target_model: Any, alpha: float) -> None:
        """Move every weight of the reference a share `alpha` towards the policy's; buffers become the policy's."""
        weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        for name, weight in target_model.named_parameters():
            weight.data.mul_(1.0 - alpha).add_(weights[name].data, alpha=alpha)
        for name, buffer in target_model.named_buffers():
            buffer.data.copy_(buffers[name].data)


def sync_by_name(trainer: Any) -> None:
    """Replace TRL's callback in a trainer that syncs its reference."""
    if trainer.args.sync_ref_model:
        trainer.remove_callback(SyncRefModelCallback)
        trainer.add_callback(SyncByName(ref_model=trainer.ref_model, accelerator=trainer.accelerator))


def save_reference(trainer: Any, folder: Path) -> None:
    """Keep a synced reference beside a checkpoint. Collective: weights are gathered from the shards there are."""
    if trainer.args.sync_ref_model:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = dict(get_model_state_dict(trainer.ref_model, options=options))
        if trainer.args.should_save:
            torch.save(weights, folder / REFERENCE)


def load_reference(trainer: Any, folder: Path) -> None:
    """Take up the synced reference of a checkpoint.

    Raises:
        ValueError: the checkpoint lacks it.
    """
    if trainer.args.sync_ref_model:
        path = folder / REFERENCE
        if not path.is_file():
            raise ValueError(f"{folder} lacks the reference model that the policy was compared with")
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # ranks of a host share it
        set_model_state_dict(trainer.ref_model, weights, options=StateDictOptions(full_state_dict=True))


@contextmanager
def loaded_as_policy(args: Any) -> Iterator[None]:
    """While a `GRPOTrainer` is built, its reference is loaded as the policy is, and FSDP2 shards it layer by layer.

    TRL offers no way to either: it loads a reference by `model_init_kwargs`, which it warns of if the policy is loaded
    already, and makes it one unit, all of which every forward pass gathers at once.

    Args:
        args: the trainer's arguments, with the `model_init_kwargs` that the policy is loaded by.
    """
    options, on = dict(args.model_init_kwargs or {}), placement(args)
    load, shard = grpo_trainer.create_model_from_path, grpo_trainer.prepare_fsdp

    def by_layers(model: Any, accelerator: Any) -> Any:
        weights = Weights(model)
        shard_layers(model, accelerator)
        sharded = shard(model, accelerator)
        weights.hand_out(accelerator.device)
        return sharded

    def as_policy(path: str, **given: Any) -> Any:
        where = {} if "quantization_config" in given else on  # of a quantised policy, which has no other reference
        return load(path, **{**given, **options, **where})

    grpo_trainer.create_model_from_path = as_policy
    grpo_trainer.prepare_fsdp = by_layers
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path, grpo_trainer.prepare_fsdp = load, shard
