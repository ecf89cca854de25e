"""How many tokens each model of a recipe reads, as far as that is known before anything runs.

A stage's model comes from a folder, a preset or an earlier stage; a hub id is looked at when the stage runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import presets
from pipeline.schema.pieces import Fault, RolloutSpec, StageConfig
from rewards.registry import located

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def faults(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """Completions of a stage that could be longer than the context of its model, which has to hold the prompt, too."""
    rollout = getattr(config, "rollout", None)
    if not isinstance(rollout, RolloutSpec) or "max_tokens" not in rollout.model_fields_set:
        return
    given = rollout.engine_options.get("max_model_len")
    for name in [getattr(config, "model", None), *getattr(config, "models", ())]:
        context = given if isinstance(given, int) else _context(recipe, name, set())
        if context is not None and rollout.max_tokens >= context:
            told = f"is {rollout.max_tokens}, and {name} reads {context} tokens, those of the prompt included: lower it"
            yield ("rollout", "max_tokens"), told
            return


def _context(recipe: Recipe, name: Any, seen: set[str]) -> int | None:
    """Tokens that a model reads: a reference to a stage, or a folder; `None` if that is not known yet."""
    if not isinstance(name, str) or name in seen:
        return None
    if not name.startswith("@"):
        return _read(located(name, recipe.base) / "config.json")
    stage = recipe.stages.get(name[1:])
    if stage is None:
        return None
    if stage.kind == "extend_context":
        return int(getattr(stage, "context"))  # noqa: B009 - of a class that is not imported here
    model: Any = getattr(stage, "model", None)
    if stage.kind == "pretrain":
        return presets.load(model).max_position_embeddings
    return _context(recipe, model, {*seen, name})


def _read(path: Path) -> int | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no folder of a model: told elsewhere, or when it is loaded
        return None
    stretched = config.get("rope_parameters") or config.get("rope_scaling") or {}
    longest = config.get("max_position_embeddings")
    return longest if isinstance(longest, int) and "factor" not in stretched else None
