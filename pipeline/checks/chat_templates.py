"""A chat template that a recipe gives to a model: whether it is Jinja, and asks for nothing that it will not get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.prompts.templates import TemplateError, check_jinja
from pipeline.schema.pieces import Fault, PromptedConfig, StageConfig
from pipeline.stages.import_model import ImportModelConfig


def faults(stages: Mapping[str, StageConfig], config: StageConfig, base: Path) -> Iterator[Fault]:
    """What is wrong with the Jinja file of a stage; one that is not there is told elsewhere.

    Args:
        stages: all of the recipe, whose `chat_template_kwargs` may be meant for it.
        config: the stage.
        base: the recipe's folder.
    """
    if not isinstance(config, ImportModelConfig):
        return
    if (file := config.own_template(base)) is not None and file.exists():
        prompted = [stage for stage in stages.values() if isinstance(stage, PromptedConfig)]
        try:
            check_jinja(file, {name for stage in prompted for name in stage.template_kwargs or ()})
        except TemplateError as error:
            yield ("chat_template",), str(error)
