"""The models that trainers are given: DeepSeek-V3 as our own class, everything else as TRL loads it."""

from __future__ import annotations

from typing import Any

import torch

from model.modeling import is_ours, load


def policy(path: str, args: Any) -> Any:
    """What to give to a TRL trainer as `model`.

    Args:
        path: a folder, or a hub id.
        args: the trainer's arguments; their `model_init_kwargs` are used here, and taken out.

    Returns:
        A DeepSeek-V3 or V2 model as an instance of our class, in float32 unless asked otherwise (as TRL does it); the
        path itself for all other models.
    """
    if not is_ours(path):
        return path
    options = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None  # TRL would warn that they are ignored
    return load(path, **options)
