"""What a stage publishes of its trainer's model: weights of one type, as a Hugging Face folder or beside an adapter."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.context import StageContext
from pipeline.training import adapters
from pipeline.training.parallel.sharding import local_part


def save(trainer: Any, folder: Path, context: StageContext[Any]) -> None:
    """Save the model as `model/`, and what is trained of it as `adapter/` if that is one; every rank must call it.

    Args:
        trainer: the stage's.
        folder: where they go.
        context: the stage; its config is a `TrainingConfig`.
    """
    dtype = saved_dtype(context.config, trainer.args)
    if adapters.trained_by(trainer):
        adapters.save(trainer, folder, dtype, context)
    else:
        save_model(trainer, folder / "model", dtype)


def saved_dtype(config: Any, args: Any) -> torch.dtype:
    """What the weights are saved in: what the stage asks for, or what it computed in.

    Args:
        config: a `TrainingConfig`.
        args: the trainer's arguments.
    """
    if config.dtype is not None:
        return getattr(torch, config.dtype)  # type: ignore[no-any-return]
    return torch.bfloat16 if args.bf16 or args.fp16 else torch.float32


def save_model(trainer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Save weights, config, generation config and tokenizer as a Hugging Face folder; every rank must call it.

    Weights are rounded to `dtype` before ranks gather them. Buffers, such as the biases that balance experts, stay.
    """
    with _rounded(trainer.model, dtype):
        trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that names local paths
        config = folder / "config.json"
        said = json.loads(config.read_text(encoding="utf-8"))
        said["dtype"] = str(dtype).removeprefix("torch.")
        config.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()


@contextmanager
def _rounded(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a model's state dict have its weights in another type; those that are tied stay one tensor."""

    def cast(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        done: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for name, value in state.items():
            if name in weights and value.is_floating_point() and value.dtype != dtype:
                place = (local_part(value).data_ptr(), value.shape)
                done.setdefault(place, value.to(dtype))
                state[name] = done[place]

    handle = model.register_state_dict_post_hook(cast)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        handle.remove()


def link(source: str, target: str) -> None:
    """Give a file a second name; one that a restart's emptied output folder cannot take away."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
