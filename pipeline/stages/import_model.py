"""Bring a model into the run: a hub id, a local folder, a GGUF file, or a checkpoint of torchtitan's.

    base: {kind: import_model, model: Qwen/Qwen2.5-0.5B, revision: main, chat_template: r1_zero}

FP8 checkpoints in DeepSeek-V3's format become BF16, file by file. A model is data: none of its own code is run, no
pickle is read that could run any, and no link that leaves its folder is followed. The published folder is complete
(weights as safetensors, config, tokenizer), and its tokenizer ends a sequence with what its chat template ends a turn
with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import field_validator

from pipeline.context import Outputs, StageContext, exists
from pipeline.conversion.folder import ModelFolderError, check_format
from pipeline.prompts.templates import chat_template
from pipeline.schema.pieces import Dtype, Fault, InputFile, ModelRef, Product, StageConfig
from rewards.registry import located

JINJA = (".jinja", ".j2")


class ImportModelConfig(StageConfig):
    """Config of an `import_model` stage.

    Attributes:
        model: a hub id, a local folder, or a GGUF file.
        format: `torchtitan` reads a folder with a distributed checkpoint of torchtitan's DeepSeek-V3, and the model's
            config and tokenizer.
        revision: branch, tag or commit on the hub.
        dtype: what the weights are converted to; left as they are (GGUF, FP8: bfloat16) if not given.
        chat_template: replaces the model's own: a name (see `pipeline.prompts.templates`), or a Jinja file.
    """

    product: ClassVar[Product] = Product.MODEL

    kind: Literal["import_model"] = "import_model"
    model: ModelRef
    format: Literal["huggingface", "torchtitan"] = "huggingface"
    revision: str | None = None
    dtype: Dtype | None = None
    chat_template: Annotated[str, InputFile(required=False)] | None = None

    @field_validator("chat_template")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and not name.endswith(JINJA):
            chat_template(name)
        return name

    def faults(self, base: Path) -> Iterator[Fault]:
        """A folder of another format; what is wrong with a chat template is told elsewhere."""
        folder = located(self.model, base)
        if not self.model.startswith("@") and exists(folder) and folder.is_dir():
            try:
                check_format(folder, self.format == "torchtitan")
            except ModelFolderError as error:
                yield ("format",), str(error)

    def own_template(self, base: Path) -> Path | None:
        """The Jinja file, if the chat template is not given by name."""
        name = self.chat_template
        return located(name, base) if name is not None and name.endswith(JINJA) else None


def run(context: StageContext[ImportModelConfig]) -> Outputs:
    """Copy or convert the model, set its chat template, and make its parts agree."""
    from pipeline.training import setup

    setup.prepare()
    from pipeline.conversion import importing

    config = context.config
    source, target = context.model_path(config.model), context.output / "model"
    if source.endswith(".gguf"):
        importing.from_gguf(source, target, config.dtype or "bfloat16")
    elif config.format == "torchtitan":
        importing.from_torchtitan(source, target, config.dtype)
    elif importing.is_fp8(source, config.revision):
        importing.from_fp8(source, target, config.dtype or "bfloat16", config.revision)
    elif config.dtype is not None:
        importing.converted(source, target, config.dtype, config.revision)
    else:
        importing.copied(source, target, config.revision)
    return Outputs(importing.settle(target, config.own_template(context.base) or config.chat_template))
