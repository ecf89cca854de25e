"""Bytes of training: what autograd keeps, counted by hooks on real layers, and arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model import factory, presets
from pipeline.cost import memory, models
from pipeline.cost.config import from_config
from pipeline.cost.memory import Setup

TOKENS = 128


def kept(model: Any) -> int:
    """Bytes of all that a forward pass keeps for the backward pass, weights aside; casts of weights count."""
    ours = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    ids_BT = torch.randint(2, 50, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model.model(input_ids=ids_BT)
    return sum(found.values())


def a_layer(make: Callable[[int], Any]) -> float:
    """Bytes a token that a layer keeps, without autocast's copies of its weights."""
    few, many = make(2), make(4)
    casts = sum(2 * w.numel() for w in many.model.layers[1].parameters() if w.dim() > 1)
    return (kept(many) - kept(few)) / 2 / TOKENS - casts / TOKENS


def test_a_dense_layer_keeps_what_is_counted() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}

    def make(layers: int) -> Any:
        config = AutoConfig.for_model("qwen2", **sizes, num_hidden_layers=layers, vocab_size=64)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    shape = from_config(make(2).config.to_dict())
    assert memory.layer_bytes(shape, sparse=False, stream=4, fused=False) == pytest.approx(a_layer(make), rel=0.01)


def test_a_latent_layer_keeps_what_is_counted() -> None:
    """With heads as wide for values as for keys, so that a CPU has a fast kernel for them, as GPUs have."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "v_head_dim": 192}

    def make(layers: int) -> Any:
        changes = {"num_hidden_layers": layers, "first_k_dense_replace": layers, "q_lora_rank": 128}
        return factory.build(presets.load({"preset": "small", **sizes, **changes}), 64, 1, 0, seed=0)

    shape = from_config(make(2).config.to_dict())
    assert memory.layer_bytes(shape, sparse=False, stream=4, fused=False) == pytest.approx(a_layer(make), rel=0.1)


def test_seven_billion_under_qlora_by_hand() -> None:
    """Qwen2.5-7B, NF4 with double quantisation, rank 32, float32 adapters and moments."""
    shape = models.known("Qwen/Qwen2.5-7B")
    assert shape is not None
    parts = memory.training(shape, Setup(8192, checkpointing=True, base="nf4", adapter_rank=32, measured=False))
    assert parts["weights"] / 1e9 == pytest.approx(3.37 + 2.18, abs=0.01)
    assert sum(parts[part] for part in ("adapter", "gradients", "optimizer")) == 16 * 80_740_352
    one_layer = memory.layer_bytes(shape, sparse=False, stream=2, fused=False)
    assert parts["activations"] == 8192 * (28 * 2 * 3584 + one_layer)
    assert one_layer == 8 * 3584 + 6 * 3584 + 2 * (2 * 3584 + 2 * 512) + 4 * 3584 + 8 * 18_944
    assert "reference" not in memory.training(shape, Setup(8192, adapter_rank=8, base="bfloat16", reference=True))
    small = memory.training(shape, Setup(8192, base="nf4", adapter_rank=32, optimizer="paged_adamw_8bit"))
    assert small["optimizer"] == 2 * 80_740_352


def test_whole_training_takes_sixteen_bytes_a_weight() -> None:
    shape = models.known("Qwen/Qwen2.5-1.5B")
    assert shape is not None
    parts = memory.training(shape, Setup(8192))
    assert sum(parts[part] for part in ("weights", "gradients", "optimizer")) == 16 * 1_543_714_304
    halved = memory.training(shape, Setup(8192, ranks=2, reference=True))
    assert halved["weights"] == halved["reference"] == 2 * 1_543_714_304
    assert "gradients" not in memory.training(shape, Setup(200_000, accumulates=False))


@pytest.mark.parametrize(
    ("name", "bytes_a_token"),
    [
        ("deepseek-ai/DeepSeek-V3", 70_272),  # arXiv 2505.09343, Table 1: 70.272 KB
        ("Qwen/Qwen2.5-72B", 327_680),  # the same table
        ("meta-llama/Llama-3.1-405B", 516_096),  # the same table
        ("Qwen/Qwen2.5-0.5B", 12_288),
    ],
)
def test_the_cache_of_a_token(name: str, bytes_a_token: int) -> None:
    shape = models.known(name)
    assert shape is not None
    assert memory.kv_cache_bytes(shape) == bytes_a_token


def test_an_engine_takes_its_share() -> None:
    shape = models.known("Qwen/Qwen2.5-0.5B")
    assert shape is not None
    parts = memory.engine(shape, 0.3, 80e9)
    assert parts["engine weights"] + parts["engine cache"] == pytest.approx(24e9)
