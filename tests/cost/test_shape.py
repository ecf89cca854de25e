"""Parameters of decoders against transformers' own models and published sizes, and configs that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model import factory, presets
from pipeline.cost import models
from pipeline.cost.config import ShapeError, from_config

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "tie_word_embeddings": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "smollm3": {"tie_word_embeddings": True, "pad_token_id": 0},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 32},
}


def counted(config: Any) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_transformers_models(kind: str) -> None:
    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    assert from_config(config.to_dict()).parameters.total == counted(config)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-4B", "meta-llama/Llama-3.2-1B"]
)
def test_known_models_have_the_size_that_transformers_gives_them(name: str) -> None:
    shape = models.known(name)
    assert shape is not None
    short = name.removesuffix("-Instruct")
    config = {k: v for k, v in models._CONFIGS[short].items() if k != "model_type"}
    assert shape.parameters.total == counted(AutoConfig.for_model(shape.model_type, **config))


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # as their model cards have it
        ("Qwen/Qwen2.5-0.5B", 0.49),
        ("Qwen/Qwen2.5-1.5B", 1.54),
        ("Qwen/Qwen2.5-3B", 3.09),
        ("Qwen/Qwen2.5-7B", 7.62),
        ("Qwen/Qwen2.5-14B", 14.77),
        ("Qwen/Qwen2.5-32B", 32.76),
        ("Qwen/Qwen2.5-72B", 72.71),
        ("Qwen/Qwen3-8B", 8.19),
        ("Qwen/Qwen3-30B-A3B", 30.53),
        ("Qwen/Qwen3-235B-A22B", 235.09),
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("meta-llama/Llama-3.1-70B", 70.55),
        ("meta-llama/Llama-3.1-405B", 405.85),
        ("mistralai/Mistral-7B-v0.3", 7.25),
        ("deepseek-ai/deepseek-llm-67b-base", 67.42),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78),
        ("deepseek-ai/DeepSeek-R1", 671.03),
    ],
)
def test_known_models_have_their_published_size(name: str, billions: float) -> None:
    shape = models.known(name)
    assert shape is not None
    assert shape.parameters.total / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("name", ["v3-671b", "v3-16b", "v2-236b", "v2-lite"])
def test_a_preset_is_counted_as_its_model_is(name: str) -> None:
    """DeepSeek-V3's blocks of multi-token prediction included."""
    ours, vocabulary = models.preset(name), models._VOCABULARIES[name]
    made = factory.count(presets.load(name), vocabulary)
    assert (ours.parameters.total, ours.parameters.active) == (made.total, made.active)
    assert ours.parameters.mtp == made.mtp


@pytest.mark.parametrize("name", ["nano", "small"])
def test_presets_without_a_vocabulary_want_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} says nothing of its vocabulary"):
        models.preset(name)
    assert models.preset(name, 100).parameters.total == factory.count(presets.load(name), 100).total


def test_an_adapter_has_the_weights_that_peft_counts_for_7b() -> None:
    """Qwen2.5-7B, rank 32 on all linear layers: 80.7 million, counted by PEFT 0.21."""
    shape = models.known("Qwen/Qwen2.5-7B")
    assert shape is not None
    hidden, keys, wide = 3584, 512, 18_944
    by_hand = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + wide)
    assert shape.lora(32) == 28 * 32 * by_hand == 80_740_352
    assert shape.linear_weights == 28 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * wide)


def test_adapters_of_experts_can_be_left_out() -> None:
    shape = models.preset("small", 100)
    experts = shape.sparse_layers * 32 * 3 * 8 * (768 + 512)
    assert shape.lora(8) - shape.lora(8, experts=False) == experts


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mamba"}, "model_type mamba has no arithmetic here. Known: deepseek_v2"),
        ({"model_type": None}, "has no arithmetic"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
    ],
)
def test_a_config_without_sizes_says_which(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        from_config({**SMALL, "model_type": "llama", **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ShapeError, match="config of a llama model lacks vocab_size"):
        from_config({key: value for key, value in SMALL.items() if key != "vocab_size"} | {"model_type": "llama"})


def test_the_text_part_of_a_multimodal_model_counts() -> None:
    nested = {"model_type": "some_vl", "text_config": {**SMALL, "model_type": "qwen3", "head_dim": 16}}
    assert from_config(nested).parameters.total == from_config(nested["text_config"]).parameters.total  # type: ignore[arg-type]
