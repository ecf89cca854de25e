"""A folder to hand out: weights, tokenizer, and a model card that says how the model came to be and what it can do.

    release:
      kind: export
      model: "@student"
      scores: ["@score"]
      name: r1-distill-nano
      license: apache-2.0
      dtype: bfloat16

The card lists every stage that led to the model with its fingerprint and config, and the scores of the named
evaluations with problems, samples and intervals. With `publish: {hub: someone/r1-distill-nano}` the folder is uploaded
to the Hugging Face hub, private unless the recipe says otherwise; nothing is without.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.files.adapter_folders import BASE, CONFIG, is_adapter
from pipeline.schema.adapter import NO_ADAPTER
from pipeline.schema.hub import Publish
from pipeline.schema.pieces import Dtype, ModelRef, Product, Ref, StageConfig

ScoreRef = Annotated[str, Ref(Product.METRICS)]
"""`@stage` of an evaluation."""


class ExportConfig(StageConfig):
    """Config of an `export` stage.

    Attributes:
        model: what to export.
        scores: evaluations of which the card shows the model's own results; a model given by its folder in a run brings
            those of the run.
        name: the model's name on the card; that of the stage that made it if not given.
        description: a paragraph for the card.
        license: identifier of the license, such as `apache-2.0`; that of the base model binds you too.
        base_model: hub id of the model that training started from; found in the lineage if not given. An adapter's
            config names it as its base.
        dtype: what the weights are converted to; left as they are if not given.
        precision: `fp8` writes matrices in FP8 with a scale for every block of 128 x 128, as DeepSeek-V3 is published.
        format: `torchtitan` writes a distributed checkpoint under torchtitan's names, to train on with it, and no card;
            `adapter` the adapter that the stage of `model` trained, in PEFT's format, in place of the merged model.
        shard_size: largest file of weights, such as `2GB`; the files are left as they are if not given.
        publish: where on the hub the folder is published once it is whole; nowhere if not given.
    """

    product: ClassVar[Product] = Product.MODEL

    kind: Literal["export"] = "export"
    model: ModelRef
    scores: list[ScoreRef] = Field(default_factory=list)
    name: str | None = None
    description: str = ""
    license: str | None = None
    base_model: str | None = None
    dtype: Dtype | None = None
    precision: Literal["fp8"] | None = None
    format: Literal["huggingface", "torchtitan", "adapter"] = "huggingface"
    shard_size: Annotated[str, Field(pattern=r"^\d+(MB|GB)$")] | None = None
    publish: Publish | None = None

    @model_validator(mode="after")
    def _one_conversion(self) -> ExportConfig:
        given = {"dtype": self.dtype, "shard_size": self.shard_size}
        if self.precision is not None and any(given.values()):
            raise ValueError("precision: fp8 decides about dtype, and keeps the division into files: give it alone")
        if self.format == "torchtitan" and (self.precision is not None or any(given.values())):
            raise ValueError("format: torchtitan keeps weights as they are: give no precision, dtype or shard_size")
        if self.format == "adapter" and (self.precision is not None or any(given.values())):
            raise ValueError("format: adapter keeps weights as they are: give no precision, dtype or shard_size")
        if self.format == "torchtitan" and self.publish is not None:
            raise ValueError("format: torchtitan has no card, and is nothing that the hub reads: leave publish out")
        return self


def run(context: StageContext[ExportConfig]) -> Outputs:
    """Copy or convert the model, and write its card."""
    from pipeline.conversion import cards, importing, publishing
    from pipeline.files import finite
    from pipeline.training import setup

    setup.prepare()
    from transformers import AutoTokenizer

    from pipeline.prompts.rendering import carried_along

    config = context.config
    target = context.output / "model"
    source = context.model_path(config.model) if config.format != "adapter" else str(_adapter(context))
    if config.format == "torchtitan":
        finite.check(Path(source))  # what is written cannot be looked at tensor by tensor
        importing.to_torchtitan(source, target)
        parameters, precision = importing.weights(Path(source))
        return Outputs({"parameters": parameters, "dtype": precision})
    if config.format == "adapter":
        shutil.copytree(source, target)
        if config.base_model is not None:
            _name_base(target / CONFIG, config.base_model)
    elif config.precision == "fp8":
        importing.to_fp8(source, target)
    elif config.dtype is not None or config.shard_size is not None:
        importing.converted(source, target, config.dtype or "auto", shard=config.shard_size or importing.SHARD)
    else:
        importing.copied(source, target, None)
    parameters, precision = importing.weights(target)
    folder = context.model_folder(config.model)
    artifact, label = (folder or Path(source)).parent, cards.model_name(folder, config.model)
    chain = cards.lineage([artifact])
    base = config.base_model or cards.hub_base(chain)
    evaluations = [cards.manifest(context.inputs[ref.removeprefix("@")]) for ref in config.scores]
    for evaluation in evaluations:
        if label not in evaluation["metrics"]["scores"]:
            context.note(f"scores: {evaluation['stage']} has not scored {label}, so the card shows nothing of it")
    if not config.model.startswith("@"):
        evaluations += cards.evaluations(artifact)
    card = cards.Card(
        name=config.name or label,
        label=label,
        description=config.description,
        license=config.license,
        base_model=base,
        parameters=parameters,
        precision=precision,
        stages=chain,
        evaluations=evaluations,
        prompting=carried_along(AutoTokenizer.from_pretrained(target, trust_remote_code=False)),
    )
    (target / "README.md").write_text(card.text(), encoding="utf-8")
    told: dict[str, Any] = {"parameters": parameters, "dtype": precision}
    told["lineage"] = [stage["stage"] for stage in chain]
    if config.publish is not None:
        finite.check(target)
        told["published"] = publishing.publish(target, config.publish, f"{card.name}, made with zero2r1")
    return Outputs(told)


def _adapter(context: StageContext[ExportConfig]) -> Path:
    """The folder of the adapter that belongs to the stage's `model`.

    Raises:
        ValueError: there is none.
    """
    folder = context.model_folder(context.config.model)
    beside = None if folder is None else folder if is_adapter(folder) else folder.with_name("adapter")
    if beside is None or not is_adapter(beside):
        raise ValueError(f"format: adapter: {context.config.model} {NO_ADAPTER}")
    return beside


def _name_base(path: Path, name: str) -> None:
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, BASE: name}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
