"""Whether models take the arguments that a stage's trainer loads them with, as far as their kind is known before a run.

A model's kind stands in its `config.json`: in a folder, in the copy of a model of the hub that is on this machine, or
in what an earlier stage starts from. That of a model that is not here yet is read before the first stage runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from model import presets
from pipeline.context import exists
from pipeline.conversion import folder
from pipeline.files import hub
from pipeline.files.adapter_folders import base_folder, is_adapter
from pipeline.schema import model_fields
from pipeline.schema.pieces import Fault, StageConfig
from rewards.registry import located, nearest

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

FIELDS: Mapping[str, str] = {"model_init_kwargs": "model", "teacher_model_init_kwargs": "teacher"}
"""Field of a trainer -> the field of the stage that names the model which is loaded with it."""

OURS = {True: "deepseek_v3", False: "deepseek_v2"}
"""Kind of a model that is pre-trained, by whether its gate is V3's."""


def faults(recipe: Recipe, config: StageConfig, ask: bool = False) -> Iterator[Fault]:
    """Arguments that a stage's models do not take.

    Args:
        recipe: the recipe.
        config: one of its stages.
        ask: whether the hub is asked for the config of a model that is not here.
    """
    trainer: Mapping[str, Any] = getattr(config, "trainer", {})
    for field, model in FIELDS.items():
        given = trainer.get(field)
        if not isinstance(given, Mapping) or not given or field in config.reserved:
            continue
        said = _said(recipe, getattr(config, model, None), None, ask, set())
        kind = said.get("model_type")
        if not isinstance(kind, str) or (known := model_fields.arguments(kind)) is None:
            continue
        takes = known | said.keys()
        for name in (name for name in given if name not in takes):
            told = f"a model of the kind {kind} is loaded with no argument {name!r}{nearest(str(name), takes)}"
            yield ("trainer", field, str(name)), told


def _said(recipe: Recipe, name: Any, revision: str | None, ask: bool, seen: set[str]) -> Mapping[str, Any]:
    """The config of a model: a reference to a stage, a folder, or one of the hub; empty if it is not known yet."""
    if not isinstance(name, str) or name in seen:
        return {}
    if name.startswith("@"):
        stage = recipe.stages.get(name[1:])
        model: Any = getattr(stage, "model", None)
        if stage is not None and stage.kind == "pretrain":
            shape = presets.load(model)
            return {**dict(shape), "model_type": OURS[shape.topk_method == presets.V3_METHOD]}
        return _said(recipe, model, getattr(stage, "revision", None), ask, {*seen, name})
    local = located(name, recipe.base)
    if not exists(local):
        copy = hub.config_file(name, revision, ask)
        return {} if copy is None else folder.config(copy.parent)
    under = base_folder(local) if is_adapter(local) else local
    return {} if under is None else folder.config(under)
