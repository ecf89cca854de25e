"""Adapters: low-rank updates (LoRA) that are trained in place of a model's weights, which stay as they are.

    zero: {kind: grpo, model: "@base", tasks: [gsm8k/train], adapter: {}}           # every default
    sft:  {kind: sft, model: "@base", data: [chats.jsonl], adapter: {rank: 64, alpha: 32, quantize: 4bit}}

Fields that are not named here are those of PEFT's `LoraConfig`, by their own names. The defaults are those of "LoRA
Without Regret" (Schulman and Thinking Machines Lab, 2025): adapters on all linear layers, scaled by alpha = 32, with
ten times the learning rate of full training. Imported with the stages' configs, so nothing heavy is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from pipeline.schema import trainer_fields
from pipeline.schema.pieces import Fault, TrainingConfig
from pipeline.schema.strict import Strict
from rewards.registry import nearest

LORA_CONFIG = "peft.tuners.lora.config:LoraConfig"
ALL = "all-linear"
RATE_FACTOR = 10
"""The learning rate of adapters over that of full training, whatever their rank ("LoRA Without Regret")."""
FINETUNE_RANK, POLICY_RANK = 64, 32
"""A reward says one bit or so about a completion, and an adapter of rank 1 has room for that; examples say more."""

_REWRITES = "the base would be rewritten, and no longer be the reference that the adapter is a difference to"
_MERGED = "what is published is an ordinary model, and that has no place for it"
_OURS: Mapping[str, str] = {
    "r": "set `rank`",
    "lora_alpha": "set `alpha`",
    "lora_dropout": "set `dropout`",
    "target_modules": "set `targets`",
    "task_type": "the stage says it",
    "inference_mode": "the stage trains the adapter",
    "peft_type": "adapters are LoRA",
    "peft_version": "it is the installed one",
    "base_model_name_or_path": "it is the stage's `model`",
    "revision": "the stage's `model` says it",
    "auto_mapping": "the stage's `model` says it",
    "bias": "biases would be written into the base, which is the reference of the KL divergence and stays as it is",
    "lora_bias": _MERGED,
    "trainable_token_indices": "whole rows of the embedding are not an adapter: train the model in full",
    "target_parameters": "set `targets`: a stack of experts is named by its last two parts, such as experts.down_proj",
    "modules_to_save": "modules that are trained in full are not an adapter: leave `adapter` out (a reward head is"
    " trained in any case)",
    "layer_replication": _MERGED,
    "fan_in_fan_out": "it follows from the layers",
    "loftq_config": _REWRITES,
    "corda_config": _REWRITES,
    "lora_ga_config": _REWRITES,
    "eva_config": "it needs activations of the data before training",
    "megatron_config": "models are transformers'",
    "megatron_core": "models are transformers'",
    "alora_invocation_tokens": _MERGED,
    "arrow_config": _MERGED,
    "use_bdlora": "it is for adapters that are sharded in an engine",
    "use_qalora": _MERGED,
    "qalora_group_size": _MERGED,
    "velora_config": "it compresses activations, and gradients are then no longer exact",
    "monteclora_config": "it samples weights, and rollouts are not of the weights that are trained",
    "kasa_config": _REWRITES,
    "runtime_config": "it is for inference",
    "ensure_weight_tying": "embeddings carry no adapter",
    "load_in_4bit": "set `quantize: 4bit`",
    "load_in_8bit": "set `quantize: 8bit`",
}
"""Fields that a recipe may not set, of `LoraConfig` or looked for here -> the reason, or what to set instead."""
SHOWN = 12
"""Names of layers that an error lists."""
INITS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` under which an adapter is a difference to the base as it is."""


LOOKED_FOR = "adapters (LoRA, QLoRA) are the key `adapter`: write adapter: {rank: 32}, or {quantize: 4bit} for QLoRA"
HEAD = "the head, carries no adapter, since losses read its weight: name others"
NOT_QUANTISED = "is a DeepSeek-V3 or V2, whose experts are stacks that bitsandbytes leaves as they are: set it to none"
NO_ADAPTER = "has no adapter beside its model: name a stage that trained one (adapter: {}), or leave `format` out"
NO_DEEPSPEED = "DeepSpeed casts adapters to the type of the base, in which most of their updates are rounded away"


class AdapterSpec(Strict):
    """An adapter that a stage trains in place of the model's weights; other fields go to PEFT's `LoraConfig`.

    The stage publishes `model/`, base and adapter merged into an ordinary model, and beside it `adapter/`, the adapter
    alone in PEFT's format. The learning rate is ten times that of full training where `trainer` does not give one.

    Attributes:
        rank: of the updates. If not given, 32 in `grpo`, since a reward carries about one bit a completion, and 64
            elsewhere, since examples carry more.
        alpha: updates are scaled by alpha / rank, so that the best learning rate hardly depends on the rank.
        dropout: share of an adapter's inputs that are dropped in training. A `grpo` stage takes 0 alone: rollouts are
            sampled without dropout, so ratios would be noise.
        targets: what carries adapters: `all-linear` (all linear layers but the head; a DeepSeek-V3's attention, dense
            and shared experts as linear layers and its routed experts as whole stacks), a list of the last parts of
            names, such as [q_proj, v_proj] and, for stacks, experts.down_proj, or a regular expression for whole names.
        quantize: what the base is held in while it trains: `4bit` (NF4, its scales quantised again), `8bit`
            (LLM.int8()), or `none`. Needs a GPU and bitsandbytes (the extra `qlora`). Adapters stay in float32.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
    former: ClassVar[Mapping[str, str]] = {}

    rank: int | None = None
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | list[str] = ALL
    quantize: Literal["none", "8bit", "4bit"] = "none"

    @field_validator("rank")
    @classmethod
    def _adapts(cls, rank: int | None) -> int | None:
        if rank is not None and rank < 1:
            raise ValueError(f"an adapter of rank {rank} changes nothing: set 1 or more, or leave `adapter` out")
        return rank

    @field_validator("targets", mode="before")
    @classmethod
    def _named(cls, targets: Any) -> Any:
        if isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(one, str) for one in targets)):
            return targets
        raise ValueError(
            f"needs {ALL}, a list of names such as [q_proj, v_proj], or a pattern as text, not {targets!r}"
        )

    @field_validator("targets")
    @classmethod
    def _some(cls, targets: str | list[str]) -> str | list[str]:
        if not targets:
            raise ValueError(f"no layer would carry an adapter: name some, or leave `targets` out, which is {ALL}")
        return targets

    @property
    def options(self) -> dict[str, Any]:
        """Fields of `LoraConfig` by their own names."""
        return dict(self.model_extra or {})

    def faults(self) -> Iterator[Fault]:
        """What is wrong with `targets`, and with the fields that go to `LoraConfig`, which is read and not imported."""
        if isinstance(self.targets, str) and (told := _no_pattern(self.targets)):
            yield ("targets",), told
        if not self.options:
            return
        known = trainer_fields.fields(LORA_CONFIG)
        for name, value in self.options.items():
            if name in _OURS:
                yield (name,), f"cannot be set here: {_OURS[name]}"
            elif name not in known:
                usable = [*type(self).model_fields, *(field for field in known if field not in _OURS)]
                yield (name,), f"neither `adapter` nor PEFT's LoraConfig has a field {name!r}{nearest(name, usable)}"
            elif (
                fault := trainer_fields.mismatch(known[name], value) or _CHECKED.get(name, _no_fault)(value)
            ) is not None:
                yield (name,), fault
            elif name == "init_lora_weights" and value not in INITS:
                yield (name,), f"{value!r}: {_REWRITES}. Known: {', '.join(map(str, INITS))}"
        for name in ("rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform"):
            if self.options.get(name) in ({}, [], ""):
                yield (name,), "is empty, and has no effect: leave it out"
        if self.options.get("layers_pattern") and self.options.get("layers_to_transform") is None:
            yield ("layers_pattern",), "says where layers_to_transform finds its numbers: set that, or leave this out"
        if self.options.get("init_lora_weights") == "orthogonal":
            yield from self._odd()

    def _odd(self) -> Iterator[Fault]:
        """Ranks of which PEFT's orthogonal matrices have no half."""
        pattern = self.options.get("rank_pattern")
        ranks: dict[tuple[str, ...], Any] = {("rank",): self.rank}
        if isinstance(pattern, Mapping):
            ranks |= {("rank_pattern", str(key)): rank for key, rank in pattern.items()}
        for loc, rank in ranks.items():
            if isinstance(rank, int) and rank % 2:
                yield loc, f"init_lora_weights: orthogonal needs an even rank, not {rank}: set {rank + 1}"


def _no_pattern(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{pattern!r} is not a regular expression: {error}"
    return None


def _no_fault(value: Any) -> None:
    return None


def _wrong_pattern(value: Any, least: float, what: str) -> str | None:
    """What is wrong with numbers by the names of layers; they are above `least`."""
    if not isinstance(value, Mapping):
        return f"needs names of layers with numbers, such as {{q_proj: 8}}, not {value!r}"
    for key, number in value.items():
        if fault := _no_pattern(str(key)):
            return fault
        if isinstance(number, bool) or not isinstance(number, int | float) or not least < number < math.inf:
            return f"{key}: {what}, not {number!r}"
    return None


def _wrong_names(value: Any) -> str | None:
    if isinstance(value, str):
        return _no_pattern(value)
    whole = isinstance(value, list) and all(isinstance(one, str) and one for one in value)
    return None if value is None or whole else f"needs names of layers, or a regular expression, not {value!r}"


def _wrong_numbers(value: Any) -> str | None:
    numbers = value if isinstance(value, list) else [value]
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers)
    return None if value is None or whole else f"needs numbers of layers, counted from 0, not {value!r}"


def _wrong_ranks(value: Any) -> str | None:
    fractional = isinstance(value, Mapping) and any(isinstance(number, float) for number in value.values())
    return "ranks are whole numbers" if fractional else _wrong_pattern(value, 0, "a rank is 1 or more")


_CHECKED: Mapping[str, Callable[[Any], str | None]] = {
    "rank_pattern": _wrong_ranks,
    "alpha_pattern": lambda value: _wrong_pattern(value, 0, "an alpha is above 0"),
    "exclude_modules": _wrong_names,
    "layers_pattern": _wrong_names,
    "layers_to_transform": _wrong_numbers,
}
"""Fields of `LoraConfig` whose type alone does not say what they take -> what is wrong with a value."""


def matches_nothing(target: str, layers: Iterable[str], field: str = "targets", pattern: bool = False) -> str:
    """What is wrong with a target that matches no layer of a model with these names.

    Args:
        target: what the recipe names.
        layers: names of the layers.
        field: where it names it.
        pattern: whether it is a regular expression for whole names.
    """
    parts = [name.split(".") for name in layers]
    known = list(dict.fromkeys(".".join(part[-2:]) if "experts" in part[-2:-1] else part[-1] for part in parts))
    listed = ", ".join(known[:SHOWN]) + (", …" if len(known) > SHOWN else "")
    said = f"matches no layer of the model{nearest(target, known)}. It has: {listed}"
    if pattern and (names := [name.strip() for name in target.split(",")]) and all(name in known for name in names):
        return f"is taken for a regular expression for whole names, and matches none: write [{', '.join(names)}]"
    if field != "targets":
        return said
    if target.lower().replace("_", "-") == ALL:
        return f"matches no layer of the model: write `targets: {ALL}`, or leave it out, which is the same"
    return f"{said}; or leave `targets` out for all"


class AdaptedConfig(TrainingConfig):
    """What stages share that train an existing model, in full or an adapter of it.

    Attributes:
        adapter: train an adapter in place of the weights; `{}` takes the defaults. Without it, all weights are trained.
    """

    adapter_rank: ClassVar[int] = FINETUNE_RANK
    """Rank of adapters if the recipe gives none."""
    former: ClassVar[Mapping[str, str]] = dict.fromkeys(("lora", "peft", "qlora"), LOOKED_FOR)
    trains_sampler: ClassVar[bool] = False
    """Whether its loss compares what is trained with what has sampled."""

    adapter: AdapterSpec | None = None

    def faults(self, base: Path) -> Iterator[Fault]:
        """Fields of the adapter, and of the stage beside it, that do not go together."""
        yield from super().faults(base)
        if self.adapter is None:
            return
        yield from ((("adapter", *loc), message) for loc, message in self.adapter.faults())
        for loc, message in self.beside_adapter():
            yield loc, f"{message}; or leave `adapter` out"

    def beside_adapter(self) -> Iterator[Fault]:
        """What of the stage's other fields an adapter cannot have beside it."""
        if self.trains_sampler and self.adapter is not None:
            yield from _beside_rollouts(self.adapter, self.trainer)
        if getattr(self, "mtp", None) is not None:
            yield ("mtp",), "prediction blocks are trained in full, and a base under an adapter stays as it is: drop it"
        if getattr(self, "precision", "trainer") == "fp8":
            yield (
                ("precision",),
                "weights that are not trained need no FP8 training: set adapter.quantize to save memory",
            )
        routing = getattr(self, "routing", None)
        if routing is not None and routing.bias_update_speed:
            yield ("routing", "bias_update_speed"), "it would write into the base, which stays as it is: set it to 0"
        options = self.trainer.get("model_init_kwargs")
        if isinstance(options, Mapping) and "quantization_config" in options:
            yield ("trainer", "model_init_kwargs", "quantization_config"), "set adapter.quantize"
        if self.trainer.get("deepspeed"):
            yield ("trainer", "deepspeed"), f"{NO_DEEPSPEED}: use launch: {{accelerate: ddp}} or fsdp2-1node"


def _beside_rollouts(adapter: AdapterSpec, trainer: Mapping[str, Any]) -> Iterator[Fault]:
    """What would part a policy with an adapter from its rollouts, or from its reference."""
    if adapter.dropout:
        why = "rollouts are sampled without dropout, and trained on with it their ratios would be noise: set it to 0"
        yield ("adapter", "dropout"), why
    if adapter.options.get("init_lora_weights") is False:
        yield ("adapter", "init_lora_weights"), "the policy would not start from its reference, the base: leave it out"
    if trainer.get("sync_ref_model"):
        yield (
            ("trainer", "sync_ref_model"),
            "the reference of an adapter is its base, which stays as it is: leave it out",
        )
