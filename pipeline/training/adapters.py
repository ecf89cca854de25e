"""Adapters in TRL's trainers, the one place that knows how: what carries them, and what is published.

    adapter = adapters.prepare(config, path, CAUSAL)      # before anything heavy: targets that match nothing end here
    args = setup.arguments(…)                             # ten times the learning rate, a frozen base in bfloat16
    trainer = adapters.carry(SftTrainer, adapter, args=args, …)     # its weights in float32

PEFT makes and applies them. What it does not do as it should is put right: it renames the targets of some mixtures of
experts to where older versions of transformers had them, and it only merges in place, which alters the base (see
`pipeline.rollout.merging` and `pipeline.rollout.adapted`).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from model.modeling import is_ours
from pipeline.context import StageContext
from pipeline.files.adapter_folders import BASE, CONFIG
from pipeline.rollout.adapted import base_of
from pipeline.rollout.merging import as_given, write
from pipeline.rollout.weights import official_weights
from pipeline.schema import adapter_layers
from pipeline.schema.adapter import (
    ALL,
    HEAD,
    NOT_QUANTISED,
    RATE_FACTOR,
    AdaptedConfig,
    AdapterSpec,
    matches_nothing,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

ADAPTER = "adapter"
"""Folder of an artifact, beside `model`."""
CAUSAL, REWARD = "CAUSAL_LM", "SEQ_CLS"
"""What PEFT calls language models, and those with a head that scores."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An adapter whose targets were found in the model.

    Attributes:
        spec: the recipe's.
        lora: PEFT's `LoraConfig`.
    """

    spec: AdapterSpec
    lora: Any


def prepare(config: AdaptedConfig, path: str, task: str) -> Prepared | None:
    """Find what carries adapters in a model, of which no weight is read; `None` if the stage trains all weights.

    Args:
        config: the stage's.
        path: folder or hub id of the model.
        task: `CAUSAL` or `REWARD`.

    Raises:
        ValueError: targets match nothing, or what cannot carry an adapter.
    """
    spec = config.adapter
    if spec is None:
        return None
    from peft import LoraConfig

    found = targets(spec, skeleton(path, task))
    if spec.quantize != "none" and task == CAUSAL and is_ours(path):
        raise ValueError(f"adapter.quantize: {path} {NOT_QUANTISED}")
    log.info("adapters on %d linear layers and %d stacks of experts", len(found.linear), len(found.stacks))
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    lora = LoraConfig(
        r=spec.rank or config.adapter_rank,
        lora_alpha=alpha,
        lora_dropout=spec.dropout,
        task_type=task,
        modules_to_save=["score"] if task == REWARD else None,
        **{**spec.options, **found.fields},
    )
    return Prepared(spec, lora)


# ------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True, slots=True)
class Targets:
    """What carries adapters.

    Attributes:
        linear: names of linear layers.
        stacks: names of parameters that hold the matrices of all experts of a layer.
        fields: what `LoraConfig` calls them.
    """

    linear: list[str]
    stacks: list[str]
    fields: Mapping[str, Any]


def skeleton(path: str, task: str) -> Any:
    """A model without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from model.modeling import model_class

    with torch.device("meta"):
        if task == CAUSAL and is_ours(path):
            kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
            ours = model_class(kind)
            return ours(ours.config_class.from_pretrained(path))
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return (AutoModelForCausalLM if task == CAUSAL else AutoModelForSequenceClassification).from_config(config)


def targets(spec: AdapterSpec, model: Any) -> Targets:
    """What a recipe's targets are in a model.

    Raises:
        ValueError: a target matches nothing, or the head.
    """
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "score")
    outside = _outside(model)
    linear = [name for name, module in model.named_modules() if _is_linear(module) and not outside.match(name)]
    stacks = [name for name, weight in model.named_parameters() if _is_stack(name, weight) and not outside.match(name)]
    body = [name for name in linear if name != head]
    if spec.targets == ALL:
        lasts = sorted({name.rpartition(".")[2] for name in body})
        return _chosen(spec, body, stacks, body, stacks, {"target_modules": lasts}, outside)
    if isinstance(spec.targets, str):
        try:
            pattern = re.compile(spec.targets)
        except re.error as error:
            raise ValueError(f"adapter.targets: {spec.targets!r} is not a regular expression: {error}") from error
        matched = [name for name in linear if pattern.fullmatch(name)]
        in_stacks = [name for name in stacks if pattern.fullmatch(name)]
        fields: dict[str, Any] = {"target_modules": spec.targets if matched else []}
    else:
        layers = {target: [name for name in linear if _ends_with(name, target)] for target in spec.targets}
        experts = {target: [name for name in stacks if "." in target and _ends_with(name, target)] for target in layers}
        for target in layers:
            if not layers[target] and not experts[target]:
                raise ValueError(f"adapter.targets: {target!r} {matches_nothing(target, [*body, *stacks])}")
        matched, in_stacks = (list(chain(*found.values())) for found in (layers, experts))
        fields = {"target_modules": [target for target, names in layers.items() if names]}
    if head in matched:
        raise ValueError(f"adapter.targets: {head}, {HEAD}")
    if not matched and not in_stacks:
        raise ValueError(
            f"adapter.targets: {spec.targets!r} {matches_nothing(str(spec.targets), [*body, *stacks], pattern=True)}"
        )
    return _chosen(spec, body, stacks, matched, in_stacks, fields, outside)


def _chosen(
    spec: AdapterSpec,
    body: list[str],
    stacks: list[str],
    matched: list[str],
    in_stacks: list[str],
    fields: dict[str, Any],
    outside: re.Pattern[str],
) -> Targets:
    """What the other fields that name layers leave of the layers and stacks that the targets match."""
    for loc, message in adapter_layers.faults(spec, [*body, *stacks], stacks):
        raise ValueError(f"adapter.{'.'.join(map(str, loc))}: {message}")
    matched, in_stacks = (adapter_layers.narrowed(spec, names) for names in (matched, in_stacks))
    return Targets(
        matched,
        in_stacks,
        {
            **(fields if matched else {"target_modules": []}),
            **({"target_parameters": sorted(in_stacks)} if in_stacks else {}),
            **_without(spec, outside),
        },
    )


def _without(spec: AdapterSpec, outside: re.Pattern[str]) -> dict[str, Any]:
    """The field `exclude_modules`: the recipe's, and what lies outside of the decoder."""
    excluded = spec.options.get("exclude_modules")
    if outside.pattern == _NOTHING:
        return {"exclude_modules": excluded} if excluded else {}
    if isinstance(excluded, list):
        excluded = rf"(.*\.)?({'|'.join(map(re.escape, excluded))})"
    return {"exclude_modules": f"({excluded})|({outside.pattern})" if excluded else outside.pattern}


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _is_stack(name: str, weight: Any) -> bool:
    """Whether a parameter holds the matrices of all experts of a layer."""
    return weight.dim() == 3 and ".experts." in name


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


_NOTHING = r"(?!)"


def _outside(model: Any) -> re.Pattern[str]:
    """Names of blocks of multi-token prediction, which lie behind the decoder's layers and stay as they are."""
    config = model.config.get_text_config()
    if not getattr(config, "num_nextn_predict_layers", 0) or not hasattr(model, "speculation"):
        return re.compile(_NOTHING)
    depth = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    return re.compile(rf"model\.layers\.({'|'.join(map(str, depth))})\..*")


# ------------------------------------------------------------------------------------------- the trainer's arguments


def defaults(config: Any, config_class: type[Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A stage kind's defaults for its trainer, with the learning rate of adapters if it trains one.

    Args:
        config: the stage's.
        config_class: TRL's config class, whose own default counts where the stage kind has none.
        ours: the stage kind's defaults.
    """
    if getattr(config, "adapter", None) is None:
        return dict(ours)
    rate = ours.get("learning_rate", config_class.__dataclass_fields__["learning_rate"].default)
    return {**ours, "learning_rate": RATE_FACTOR * rate}


def load_frozen(args: Any) -> None:
    """Let a trainer load its model in the type that it computes in: a base that is not trained needs no float32."""
    computed = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    args.model_init_kwargs = {"dtype": computed, **(args.model_init_kwargs or {})}


def quantisation(spec: AdapterSpec, args: Any) -> Any:
    """How bitsandbytes holds the base; NF4 with its scales quantised again, as QLoRA has it (arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if spec.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    computed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )


# ------------------------------------------------------------------------------------------------------------ the model


def quantizes(adapter: Prepared | None) -> bool:
    """Whether the base of an adapter is quantised."""
    return adapter is not None and adapter.spec.quantize != "none"


def carry(kind: Callable[..., T], adapter: Prepared | None, *, args: Any, **given: Any) -> T:
    """Make a TRL trainer whose model carries an adapter, if there is one.

    Args:
        kind: the trainer's class.
        adapter: from `prepare`.
        args: the trainer's.
        given: what else it is given.
    """
    if adapter is None:
        return kind(args=args, **given)
    more = {"quantization_config": quantisation(adapter.spec, args)} if quantizes(adapter) else {}
    with as_given():
        trainer = kind(args=args, peft_config=adapter.lora, **given, **more)
    _settle(trainer)
    return trainer


def _settle(trainer: Any) -> None:
    """Hold the weights of an adapter in float32, and have merged copies go to vLLM.

    On a quantised base, TRL casts adapters to bfloat16, in which three quarters of their weights never move at a
    learning rate of 1e-5. And TRL's ways to vLLM merge in place.
    """
    from pipeline.training.lora_linear import lighten

    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lighten(trainer.model)
    if (generation := getattr(trainer, "vllm_generation", None)) is not None:
        generation._iter_named_params = lambda: official_weights(trainer.accelerator.unwrap_model(trainer.model))
    if trainer.accelerator.is_main_process:
        trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
        log.info("%d weights of adapters are trained; the base stays as it is", trained)


def warn_of_shards(accelerator: Any) -> None:
    """Say, where GRPO trains an adapter under FSDP2 on GPUs, that its gradients have been wrong there."""
    if accelerator.is_fsdp2 and accelerator.device.type != "cpu":
        log.warning(
            "GRPO trains an adapter under FSDP2 on GPUs: there some of its gradients were up to 9 % off those of DDP"
            " (two H200s, torch 2.11). The cause is found and mended, but not measured on GPUs yet. Measured is"
            " launch: {accelerate: ddp}"
        )


def trained_by(trainer: Any) -> bool:
    """Whether a trainer's model carries an adapter."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return base_of(policy) is not policy


# ----------------------------------------------------------------------------------------------------------- publishing


def save(trainer: Any, folder: Path, dtype: torch.dtype, context: StageContext[Any]) -> None:
    """Save base and adapter merged as `model/`, and the adapter alone as `adapter/`; every rank must call it.

    Args:
        trainer: one whose model carries an adapter.
        folder: where both go.
        dtype: what merged weights are rounded to, once.
        context: the stage, whose `model` the adapter belongs to.
    """
    policy, main = trainer.accelerator.unwrap_model(trainer.model), trainer.is_world_process_zero()
    write(policy, folder / "model", dtype, trainer.processing_class, main)
    trainer.save_model(str(folder / ADAPTER))
    if main:
        _tidy(folder / ADAPTER, context)
    trainer.accelerator.wait_for_everyone()


def _tidy(folder: Path, context: StageContext[Any]) -> None:
    """Leave PEFT's files and the tokenizer, and name the base as whoever gets them can find it."""
    for name in ("training_args.bin", "README.md"):  # a pickle that names local paths, and an empty model card
        (folder / name).unlink(missing_ok=True)
    path = folder / CONFIG
    said = json.loads(path.read_text(encoding="utf-8"))
    said[BASE] = _base_name(context)
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _base_name(context: StageContext[Any]) -> str:
    """The stage's `model`: a hub id, a path, or for `@stage` the way from one artifact of the run to the other."""
    name: str = context.config.model
    if not name.startswith("@"):
        return context.model_path(name)
    artifact = context.inputs[name[1:]]  # runs/r/stages/<stage>/<fingerprint>, as this stage's will be
    return os.path.join("..", "..", "..", *artifact.parts[-2:], "model")  # noqa: PTH118 - joins what is relative
