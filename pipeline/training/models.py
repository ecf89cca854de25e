"""The models that trainers are given: DeepSeek-V3 as our own class, everything else as TRL loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.modeling import is_ours, load
from pipeline.training.expert_parallel import division, expert_ranks
from pipeline.training.sharding import launched


def policy(path: str, args: Any) -> Any:
    """What to give to a TRL trainer as `model`.

    Args:
        path: a folder, or a hub id.
        args: the trainer's arguments; their `model_init_kwargs` are used here, and taken out.

    Returns:
        A DeepSeek-V3 or V2 model as an instance of our class, in float32 unless asked otherwise (as TRL does it), its
        experts divided among the processes if the accelerate config says so; the path itself for all other models.

    Raises:
        ValueError: experts are to be divided, and the model is no DeepSeek-V3 or V2.
    """
    keep_on_own_device(args)
    if not is_ours(path):
        if expert_ranks() > 1:
            raise ValueError(f"{path}: experts are divided among processes for DeepSeek-V3 and V2 models alone")
        return path
    options = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
    # What is left is for GRPO's reference; TRL would warn of anything more that it is ignored.
    args.model_init_kwargs = {"device_map": None} if launched() and hasattr(args, "sync_ref_model") else None
    return load(path, **options, **division())


def keep_on_own_device(args: Any) -> None:
    """Let TRL load every model of a rank, which it gets as a path, for the device of that rank alone.

    Left alone, it spreads a model over all GPUs (`device_map="auto"`), unless ranks train by DDP or DeepSpeed: under
    FSDP, layers of one rank then lie on another rank's GPU.
    """
    if launched():
        for name in {"model_init_kwargs", "teacher_model_init_kwargs"} & vars(args).keys():
            setattr(args, name, {**(getattr(args, name) or {}), "device_map": None})


def divided(model: Any, scratch: Path) -> Any:
    """A new model with its experts divided among the processes, if the accelerate config says so.

    Args:
        model: the same on every rank.
        scratch: a folder that all ranks see.
    """
    if expert_ranks() == 1:
        return model
    from accelerate import PartialState

    ranks = PartialState()
    if ranks.is_main_process:
        model.save_pretrained(scratch)
    ranks.wait_for_everyone()
    return load(str(scratch), dtype=model.dtype, **division())
