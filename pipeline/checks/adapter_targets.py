"""Whether the targets of adapters are layers of the models that carry them, as far as that is known before a run.

A stage's model comes from a folder, a preset or an earlier stage; a hub id is looked at when the stage begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import presets
from pipeline.conversion.importing import headers
from pipeline.files.adapter_folders import base_folder, is_adapter
from pipeline.schema import adapter_layers
from pipeline.schema.adapter import ALL, HEAD, NO_ADAPTER, NOT_QUANTISED, AdapterSpec, matches_nothing
from pipeline.schema.pieces import Fault, StageConfig
from rewards.registry import located

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_EXPERT = re.compile(r"\.experts\.\d+\.(gate|up)_proj$|\.experts\.\d+\.")
_HEAD = "lm_head"
_LATENT = "kv_a_proj_with_mqa"
"""A layer that only a DeepSeek-V2 or V3 has."""


def faults(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """Fields of a stage's adapter that its model has no layer for."""
    adapter = getattr(config, "adapter", None)
    if not isinstance(adapter, AdapterSpec) or next(adapter.faults(), None) is not None:
        return
    if (layers := _layers(recipe, getattr(config, "model", None), set())) is None:
        return
    wrong = list(_targets(adapter, layers))
    if not wrong:
        ours = any(name.endswith(_LATENT) for name in layers)
        stacks = [name for name in layers if ours and adapter_layers.is_stack(name)]
        wrong += adapter_layers.faults(adapter, layers, stacks)
        if ours and adapter.quantize != "none" and config.kind != "reward_model":
            wrong.append((("quantize",), f"the model {NOT_QUANTISED}"))
    yield from ((("adapter", *loc), message) for loc, message in wrong)


def exported(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """An adapter that is to be exported of a model that was not made with one."""
    if config.kind != "export" or getattr(config, "format", "") != "adapter":
        return
    model = str(getattr(config, "model", ""))
    if model.startswith("@"):
        stage = recipe.stages.get(model[1:])
        lacks = stage is not None and getattr(stage, "adapter", None) is None
    else:
        folder = located(model, recipe.base)
        lacks = not any(is_adapter(each) for each in (folder, folder.with_name("adapter")))
    if lacks:
        yield ("format",), f"{model} {NO_ADAPTER}"


def _targets(adapter: AdapterSpec, layers: list[str]) -> Iterator[Fault]:
    """Targets that are no layer, or the head."""
    pattern = isinstance(adapter.targets, str)
    for target in [] if adapter.targets == ALL else [str(adapter.targets)] if pattern else adapter.targets:
        if _matches(target, _HEAD, pattern):
            yield ("targets",), f"{_HEAD}, {HEAD}"
        elif not any(_matches(target, name, pattern) for name in layers):
            yield ("targets",), f"{target!r} {matches_nothing(target, layers, pattern=pattern)}"


def _matches(target: str, name: str, pattern: bool) -> bool:
    if not pattern:
        return name == target or name.endswith(f".{target}")
    return re.fullmatch(target, name) is not None


def _layers(recipe: Recipe, name: Any, seen: set[str]) -> list[str] | None:
    """Names of a model's matrices, stacks of experts as one; `None` if they are not known yet."""
    if not isinstance(name, str) or name in seen:
        return None
    if not name.startswith("@"):
        return _of_folder(located(name, recipe.base))
    stage = recipe.stages.get(name[1:])
    model: Any = getattr(stage, "model", None)
    if stage is not None and stage.kind == "pretrain":
        return _of_preset(model)
    return _layers(recipe, model, {*seen, name})


def _of_folder(folder: Path) -> list[str] | None:
    folder = (base_folder(folder) or folder) if is_adapter(folder) else folder
    try:
        matrices = [name for name, entry in headers(folder) if len(entry["shape"]) > 1 and "embed" not in name]
    except (OSError, ValueError, KeyError, TypeError):  # a damaged file: told when it is read
        return None
    stacked = (
        _EXPERT.sub(lambda found: ".experts." + ("gate_up_proj" if found[1] else ""), name)
        for name in (matrix.removesuffix(".weight") for matrix in matrices)
    )
    return [name for name in dict.fromkeys(stacked) if not name.endswith((".gate", _HEAD))] or None


def _of_preset(model: Any) -> list[str]:
    """A DeepSeek-V3's, which is what is pre-trained."""
    config = presets.load(model)
    queries = ["q_proj"] if config.q_lora_rank is None else ["q_a_proj", "q_b_proj"]
    attention = [*queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    mlp = ["gate_proj", "up_proj", "down_proj"]
    names: list[str] = []
    for layer in range(config.num_hidden_layers):
        fed = (
            mlp
            if layer < config.first_k_dense_replace
            else [*(f"shared_experts.{part}" for part in mlp), "experts.gate_up_proj", "experts.down_proj"]
        )
        names += [f"model.layers.{layer}.self_attn.{part}" for part in attention]
        names += [f"model.layers.{layer}.mlp.{part}" for part in fed]
    return names
