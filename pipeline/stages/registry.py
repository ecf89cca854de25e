"""The stage kinds. Each is one module beside this one, with a config class and `run(context) -> Outputs`.

`KINDS` is the whole registry. A stage kind imports no other: what two of them share has a room of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.context import Outputs, StageContext
from pipeline.conversion import finite
from pipeline.data.cleaning import publish_left_out
from pipeline.schema.pieces import StageConfig

KINDS: Mapping[str, str] = {
    "import_model": "pipeline.stages.import_model:ImportModelConfig",
    "pretrain": "pipeline.stages.pretrain:PretrainConfig",
    "extend_context": "pipeline.stages.extend_context:ExtendContextConfig",
    "sft": "pipeline.stages.sft:SftConfig",
    "grpo": "pipeline.stages.grpo:GrpoConfig",
    "pass_rate": "pipeline.stages.pass_rate:PassRateConfig",
    "rejection_sample": "pipeline.stages.rejection_sample:RejectionSampleConfig",
    "reward_model": "pipeline.stages.reward_model:RewardModelConfig",
    "distill": "pipeline.stages.distill:DistillConfig",
    "evaluate": "pipeline.stages.evaluate:EvaluateConfig",
    "export": "pipeline.stages.export:ExportConfig",
}
"""Stage kinds: name -> module:config class. The module also has `run`."""


def config_class(kind: str) -> type[StageConfig]:
    """The config class of a stage kind. Raises KeyError for an unknown kind."""
    module, _, name = KINDS[kind].partition(":")
    found: type[StageConfig] = getattr(importlib.import_module(module), name)
    return found


def run_function(kind: str) -> Callable[[StageContext[Any]], Outputs]:
    """The `run` of a stage kind, and after it a look at the model that it leaves: no stage publishes a broken one."""
    function: Callable[[StageContext[Any]], Outputs] = importlib.import_module(KINDS[kind].partition(":")[0]).run

    def checked(context: StageContext[Any]) -> Outputs:
        outputs = function(context)
        if os.environ.get("RANK", "0") == "0":
            publish_left_out(context)
            finite.check(context.output / "model")
        return outputs

    return checked
