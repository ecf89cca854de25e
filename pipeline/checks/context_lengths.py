"""How many tokens each model of a recipe reads, as far as that is known before anything runs.

A stage's model comes from a folder, a preset or an earlier stage; a hub id is looked at when the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import presets
from pipeline.conversion import folder
from pipeline.schema.pieces import Fault, RolloutSpec, StageConfig
from rewards.registry import located

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def faults(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """Completions of a stage that could be longer than the context of its model, which has to hold the prompt, too."""
    rollout, watch = getattr(config, "rollout", None), getattr(config, "watch", None)
    given = rollout.engine_options.get("max_model_len") if isinstance(rollout, RolloutSpec) else None
    asked: dict[str, Any] = {
        name: piece for name, piece in (("rollout", rollout), ("watch", watch)) if _says_how_long(piece)
    }
    models = [(name, _context(recipe, name, set())) for name in getattr(config, "models", ())]
    for name, context in [(getattr(config, "model", None), _of_stage(recipe, config, set())), *models]:
        reads = given if isinstance(given, int) else context
        long = [place for place, piece in asked.items() if reads is not None and piece.max_tokens >= reads]
        for place in long:
            who = name if isinstance(name, str) else "the model"
            told = f"is {asked[place].max_tokens}, and {who} reads {reads} tokens, those of the prompt included"
            yield (place, "max_tokens"), f"{told}: lower it"
        if long:
            return


def _says_how_long(piece: Any) -> bool:
    return piece is not None and "max_tokens" in piece.model_fields_set and piece.max_tokens is not None


def _of_stage(recipe: Recipe, config: StageConfig, seen: set[str]) -> int | None:
    """Tokens that the model of a stage reads, as the stage leaves it."""
    model: Any = getattr(config, "model", None)
    if config.kind == "extend_context":
        return int(getattr(config, "context"))  # noqa: B009 - of a class that is not imported here
    if config.kind == "pretrain":
        return presets.load(model).max_position_embeddings
    return _context(recipe, model, seen)


def _context(recipe: Recipe, name: Any, seen: set[str]) -> int | None:
    """Tokens that a model reads: a reference to a stage, or a folder; `None` if that is not known yet."""
    if not isinstance(name, str) or name in seen:
        return None
    if not name.startswith("@"):
        return _read(located(name, recipe.base))
    stage = recipe.stages.get(name[1:])
    return None if stage is None else _of_stage(recipe, stage, {*seen, name})


def _read(model: Path) -> int | None:
    config = folder.config(model)
    stretched = config.get("rope_parameters") or config.get("rope_scaling") or {}
    longest = config.get("max_position_embeddings")
    return longest if isinstance(longest, int) and "factor" not in stretched else None
