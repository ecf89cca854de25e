"""The shape of a model by whatever a recipe calls it: a preset, a folder, a model on the hub. Nothing is loaded.

A model on the hub is looked up in `pipeline.cost.models`, then in the hub's cache on this machine. No network is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import presets
from pipeline.cost import models
from pipeline.cost.config import ShapeError, from_config
from pipeline.cost.shape import Shape
from rewards.registry import located, nearest


class UnknownModelError(ValueError):
    """The shape of a model cannot be told; says in one line why, and what to do."""


def named(name: str, base: Path | None = None, vocabulary: int | None = None) -> Shape:
    """The shape of a model.

    Args:
        name: a preset under configs/model/, a folder or its config.json, or a model on the hub.
        base: the folder that relative paths are read against.
        vocabulary: rows of a preset's embedding.

    Raises:
        UnknownModelError: there is no such model, or its config says too little.
    """
    if name in presets.names():
        return of_preset(name, vocabulary)
    path = located(name, base)
    for file in (path, path / "config.json"):
        if file.is_file():
            return _read(file)
    if path.is_dir():
        raise UnknownModelError(f"{path} has no config.json, so the model's sizes are not known")
    if (shape := models.known(name)) is not None:
        return shape
    if (kept := cached(name)) is not None:
        return _read(kept)
    hint = nearest(name, [*presets.names(), *models.names()])
    raise UnknownModelError(
        f"the sizes of {name!r} are not known: it is not a preset, not a folder, and not in the hub's cache{hint}; give"
        " a folder with its config.json"
    )


def of_preset(preset: str | Mapping[str, Any], vocabulary: int | None = None) -> Shape:
    """The shape of a preset, or of a mapping of its fields.

    Raises:
        UnknownModelError: its vocabulary is not known, or there is no such preset.
    """
    try:
        return models.preset(preset, vocabulary)
    except ValueError as error:
        raise UnknownModelError(f"{error}: give --vocabulary" if "vocabulary" in str(error) else str(error)) from None


def cached(name: str) -> Path | None:
    """The config of a model in the hub's cache, of whatever revision was used last."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = (hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json")
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _read(file: Path) -> Shape:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModelError(f"{file} is not a model's config: {error}") from None
    if not isinstance(config, dict):
        raise UnknownModelError(f"{file} is not a model's config: it holds no mapping")
    try:
        return from_config(config)
    except ShapeError as error:
        raise UnknownModelError(f"{file}: {error}") from None
