"""The stage kinds. Each is one module beside this one, with a config class and `run(context) -> Outputs`.

`KINDS` is the whole registry. A stage kind imports no other: what two of them share has a room of its own.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import rollout as rollouts
from pipeline.context import Outputs, StageContext
from pipeline.data.cleaning import publish_left_out
from pipeline.files import finite
from pipeline.files.adapter_folders import is_adapter, merged_path
from pipeline.schema.pieces import Product, Ref, StageConfig
from pipeline.schema.walk import walk

AWAIT_SECONDS = 0.2

KINDS: Mapping[str, str] = {
    "import_model": "pipeline.stages.import_model:ImportModelConfig",
    "pretrain": "pipeline.stages.pretrain:PretrainConfig",
    "extend_context": "pipeline.stages.extend_context:ExtendContextConfig",
    "sft": "pipeline.stages.sft:SftConfig",
    "grpo": "pipeline.stages.grpo:GrpoConfig",
    "pass_rate": "pipeline.stages.pass_rate:PassRateConfig",
    "rejection_sample": "pipeline.stages.rejection_sample:RejectionSampleConfig",
    "reward_model": "pipeline.stages.reward_model:RewardModelConfig",
    "step_labels": "pipeline.stages.step_labels:StepLabelsConfig",
    "tree_search": "pipeline.stages.tree_search:TreeSearchConfig",
    "distill": "pipeline.stages.distill:DistillConfig",
    "evaluate": "pipeline.stages.evaluate:EvaluateConfig",
    "export": "pipeline.stages.export:ExportConfig",
}
"""Stage kinds: name -> module:config class. The module also has `run`."""


HEAVY: Mapping[str, str] = {
    "pretrain": "pipeline.training.trainers.sft",
    "extend_context": "pipeline.training.trainers.sft",
    "sft": "pipeline.training.trainers.sft",
    "distill": "pipeline.training.trainers.sft",
    "grpo": "pipeline.training.grpo.trainer",
    "reward_model": "pipeline.training.trainers.reward",
    "rejection_sample": "pipeline.sampling.sampler",
    "pass_rate": "pipeline.sampling.sampler",
    "evaluate": "pipeline.sampling.sampler",
    "step_labels": "pipeline.sampling.sampler",
    "tree_search": "pipeline.sampling.sampler",
}
"""Stage kind -> a module that imports most of the libraries that its `run` needs."""


def preload(config: StageConfig) -> None:
    """Import the libraries that a stage needs, which takes longest of all that does not need its inputs."""
    importlib.import_module("transformers.models.auto.tokenization_auto")
    if config.kind in HEAVY:
        importlib.import_module(HEAVY[config.kind])
    rollout = getattr(config, "rollout", None)
    if rollout is not None and not rollout.separate_process:
        rollouts.preload(rollout)


def config_class(kind: str) -> type[StageConfig]:
    """The config class of a stage kind. Raises KeyError for an unknown kind."""
    module, _, name = KINDS[kind].partition(":")
    found: type[StageConfig] = getattr(importlib.import_module(module), name)
    return found


def run_function(kind: str) -> Callable[[StageContext[Any]], Outputs]:
    """The `run` of a stage kind, which finds the model of every adapter that it starts from.

    After it comes a look at the model that it leaves: no stage publishes a broken one.
    """
    function: Callable[[StageContext[Any]], Outputs] = importlib.import_module(KINDS[kind].partition(":")[0]).run

    def checked(context: StageContext[Any]) -> Outputs:
        for folder in adapters_of(context):
            _merged(folder, merged_path(folder, context.scratch))
        outputs = function(context)
        if os.environ.get("RANK", "0") == "0":
            publish_left_out(context)
            finite.check(context.output / "model")
        return outputs

    return checked


def adapters_of(context: StageContext[Any]) -> list[Path]:
    """The folders among a stage's models that hold an adapter alone; `export` hands those on as they are."""
    if context.config.kind == "export" and context.config.format == "adapter":
        return []
    models = [leaf.value for leaf in walk(context.config) if (ref := leaf.marker(Ref)) and ref.product is Product.MODEL]
    folders = [context.model_folder(name) for name in models if isinstance(name, str)]
    return [folder for folder in dict.fromkeys(folders) if folder is not None and is_adapter(folder)]


def _merged(folder: Path, target: Path) -> None:
    """Merge an adapter's folder with its base, in one process; the others wait for it."""
    if os.environ.get("RANK", "0") == "0":
        from pipeline.rollout.merging import merge_folder

        target.parent.mkdir(parents=True, exist_ok=True)
        merge_folder(folder, target)
    while not target.exists():
        time.sleep(AWAIT_SECONDS)
