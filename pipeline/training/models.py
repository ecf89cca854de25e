"""The models that trainers are given: DeepSeek-V3 as our own class, everything else as TRL loads it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import create_model_from_path

from model.modeling import is_ours, load
from pipeline.training.parallel.expert_parallel import division, expert_ranks
from pipeline.training.parallel.sharding import keeps_masters, launched, reads_weights


def policy(path: str, args: Any, quantized: bool = False) -> Any:
    """What to give to a TRL trainer as `model`.

    Args:
        path: a folder, or a hub id.
        args: the trainer's arguments; if their `model_init_kwargs` are used here, they are taken out.
        quantized: whether TRL is to quantise it; every rank then reads it.

    Returns:
        A model in float32 unless asked otherwise, as TRL does it. DeepSeek-V3 and V2 are instances of our class, their
        experts divided among the processes if the accelerate config says so. The path itself where one process trains
        another model, or quantised weights are trained upon: TRL loads those.

    Raises:
        ValueError: experts are to be divided, and the model is no DeepSeek-V3 or V2.
    """
    ours = is_ours(path)
    if not ours and (quantized or not launched()):
        return loaded_by_trl(path, args, quantized)
    if not ours:
        _refuse_division(path)
    if hasattr(args, "teacher_model_init_kwargs"):  # each rank has its own, whole
        args.teacher_model_init_kwargs = {**(args.teacher_model_init_kwargs or {}), "device_map": None}
    options = {**(args.model_init_kwargs or {}), **placement(args)}
    args.model_init_kwargs = None  # TRL would warn that they are ignored
    if ours:
        return load(path, **{"dtype": torch.float32, **options}, **division())
    return create_model_from_path(path, **options)


def loaded_by_trl(path: str, args: Any, quantized: bool = False) -> str:
    """The path of a model, after the trainer's arguments have been told where TRL has to put it.

    For models of which a part starts at random, such as the head of a reward model: TRL seeds before it loads them, and
    an adapter that it makes next starts with other numbers where they were loaded before. Under DDP, TRL has every rank
    read the whole model into host memory.

    Raises:
        ValueError: experts are to be divided.
    """
    _refuse_division(path)
    if launched():
        where = {"device_map": None} if quantized else placement(args)
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), **where}
    return path


def _refuse_division(path: str) -> None:
    if expert_ranks() > 1:
        raise ValueError(f"{path}: experts are divided among processes for DeepSeek-V3 and V2 models alone")


def placement(args: Any) -> dict[str, Any]:
    """Where `from_pretrained` has to put a model that several processes train.

    TRL says `auto` under FSDP: it spreads each rank's model over all GPUs. And it says nothing of DDP, so that all
    ranks hold whole models in host memory at once.

    Args:
        args: a trainer's arguments.
    """
    if not launched():
        return {}
    if not reads_weights():
        return {"device_map": "meta"}
    moved_later = keeps_masters() or expert_ranks() > 1
    return {"device_map": None if moved_later else {"": str(args.device)}}


def fresh(build: Callable[[], Any]) -> Any:
    """A model with random weights; without any on a rank that is handed its weights later."""
    with nullcontext() if reads_weights() else torch.device("meta"):
        return build()


def expert_parallel(model: Any, scratch: Path) -> Any:
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
