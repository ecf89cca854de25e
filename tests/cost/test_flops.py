"""Operations of a forward pass against torch's own counter, and against what others published of the same models."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.cost import flops, models
from pipeline.cost.config import from_config

LENGTH = 37


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        (
            "deepseek_v3",
            {
                "num_key_value_heads": 4,
                "kv_lora_rank": 48,
                "q_lora_rank": 40,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 24,
                "n_routed_experts": 4,
                "n_shared_experts": 2,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
                "moe_intermediate_size": 32,
                "first_k_dense_replace": 1,
            },
        ),
    ],
)
def test_a_forward_pass_is_what_torch_counts(kind: str, more: dict[str, Any]) -> None:
    """torch counts the whole square of scores, of which a causal model needs the half."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, **{"num_key_value_heads": 2, "vocab_size": 211, **more})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(LENGTH)[None])
    shape = from_config(config.to_dict())
    ours = flops.forward(shape, LENGTH)
    whole_square = 2 * shape.layers * shape.attention.score_width * LENGTH**2
    rotary = 2 * LENGTH * _rotary(config)  # angles are a matrix product in transformers
    assert ours.total - ours.scores + whole_square + rotary == counter.get_total_flops()
    assert ours.scores == whole_square * (LENGTH + 1) / (2 * LENGTH)


def _rotary(config: Any) -> int:
    width = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None)
    return (width or config.hidden_size // config.num_attention_heads) // 2


def test_deepseek_v3_by_part() -> None:
    """By hand from the widths; the sums are DeepSeek's own 250 GF a token (arXiv 2505.09343, Table 2)."""
    shape = models.preset("v3-671b")
    found = flops.a_token(shape, 4096, mtp=True)
    giga = {part.name: getattr(found, part.name) / 1e9 for part in fields(found)}
    assert giga["attention"] == pytest.approx(2 * 61 * 0.1871, rel=1e-3)
    assert giga["scores"] == pytest.approx(2 * 61 * 128 * (192 + 128) * 4097 / 2 / 1e9)
    assert giga["dense"] == pytest.approx(2 * 3 * 3 * 7168 * 18_432 / 1e9)
    assert giga["routed"] == pytest.approx(2 * 58 * 8 * 3 * 7168 * 2048 / 1e9)
    assert giga["shared"] == pytest.approx(giga["routed"] / 8)
    assert giga["router"] == pytest.approx(2 * 58 * 256 * 7168 / 1e9)
    assert giga["head"] == pytest.approx(2 * 7168 * 129_280 / 1e9)
    assert 3 * flops.a_token(shape, 4096).total / 1e9 == pytest.approx(250, rel=0.003)
    assert 3 * found.total == pytest.approx(338e12 / 1297, rel=1e-3)  # NVIDIA's rate, in TFLOPS and in tokens
    assert found.low_precision / found.total == pytest.approx(0.835, abs=0.001)


@pytest.mark.parametrize(
    ("name", "giga"),
    [("deepseek-ai/DeepSeek-V2", 155), ("meta-llama/Llama-3.1-405B", 2448)],  # arXiv 2505.09343, Table 2
)
def test_other_models_take_what_deepseek_says(name: str, giga: float) -> None:
    shape = models.known(name)
    assert shape is not None
    assert 3 * flops.a_token(shape, 4096).total / 1e9 == pytest.approx(giga, rel=0.012)


def test_a_cache_saves_what_stands_before() -> None:
    shape = models.preset("small", 100)
    whole, prompt = flops.forward(shape, 90), flops.forward(shape, 60)
    rest = flops.forward(shape, 30, before=60)
    assert (prompt + rest).total == pytest.approx(whole.total)


def test_a_step_is_generation_scoring_and_training() -> None:
    shape = models.preset("small", 100)
    step = flops.grpo_step(shape, prompt=20, completion=50, rollouts=8, passes_without_gradient=1)
    one = flops.forward(shape, 70, scored=50).total
    assert step["training"] == pytest.approx(flops.training(shape, [70] * 8, [50] * 8).total)
    assert step["scoring"] == pytest.approx(8 * one)
    wanted = flops.forward(shape, 20, scored=1).total + flops.forward(shape, 50, before=20).total
    assert step["generation"] == pytest.approx(8 * wanted)
