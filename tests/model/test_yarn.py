"""YaRN: configs against the paper's definitions, the published config, and transformers' own initialisation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, DeepseekV2Config, GPT2Config, LlamaConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model import V3Config, yarn
from model.attention import V3Attention

FACTOR = 40


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "max_position_embeddings": 4096,
}
"""What positions do not depend on. Heads are the published ones: 64 rotary dimensions of 192."""


def published() -> V3Config:
    return V3Config(**SMALL)


def twice(config: Any) -> tuple[Any, Any]:
    first = yarn.extended(config, 32_768, FACTOR)
    return first, yarn.extended(first, 131_072, FACTOR)


def test_both_stages_have_the_published_parameters() -> None:
    """`rope_scaling` of the published DeepSeek-V3 config; the same in both stages (arXiv 2412.19437, section 4.3)."""
    before = published()
    for config, context in zip(twice(before), (32_768, 131_072), strict=True):
        assert config.max_position_embeddings == context
        assert config.rope_parameters == {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        }
    assert before.max_position_embeddings == 4096, "the config that was given is left alone"
    assert before.rope_parameters["rope_type"] == "default"


def test_frequencies_are_kept_ramped_and_slowed_as_the_paper_defines() -> None:
    """By turns within the original context: above 32 they keep, below 1 they slow down by s (arXiv 2309.00071, 3.2)."""
    rotary = DeepseekV3RotaryEmbedding(twice(published())[1])
    plain = 1 / 10_000 ** (torch.arange(0, 64, 2) / 64)
    turns, slowed = 4096 * plain / (2 * math.pi), plain / rotary.inv_freq
    assert rotary.attention_scaling == 1.0
    torch.testing.assert_close(slowed[turns > 32], torch.ones(int((turns > 32).sum())))
    torch.testing.assert_close(slowed[turns < 1], torch.full((int((turns < 1).sum()),), 40.0))
    between = rotary.inv_freq[(turns < 32) & (turns > 1)] / plain[(turns < 32) & (turns > 1)]
    assert len(between) > 5
    assert (between.diff() < 0).all()
    steps = between.diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-4, rtol=0)  # a straight ramp


@pytest.mark.parametrize(
    ("kind", "attention", "sharpness"),
    [(V3Config, V3Attention, 0.1), (DeepseekV2Config, DeepseekV2Attention, 0.0707)],
)
def test_latent_attention_is_sharpened_in_the_softmax(kind: Any, attention: Any, sharpness: float) -> None:
    """√t = 0.1 ln s + 1 in V3; 0.0707 ln s + 1 in V2 (arXiv 2405.04434, section 3.1.4)."""
    config = yarn.extended(kind(**SMALL), 32_768, FACTOR)
    assert attention(config, 0).scaling == pytest.approx(192**-0.5 * (sharpness * math.log(40) + 1) ** 2)


def test_other_models_are_sharpened_through_cosine_and_sine() -> None:
    config = yarn.extended(LlamaConfig(max_position_embeddings=2048), 8192)
    assert config.rope_parameters["factor"] == 4.0
    assert LlamaRotaryEmbedding(config).attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_the_saved_config_is_read_back_by_transformers(tmp_path: Path) -> None:
    longest = twice(published())[1]
    longest.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert (again.rope_parameters, again.max_position_embeddings) == (longest.rope_parameters, 131_072)


@pytest.mark.parametrize(
    ("config", "context", "factor", "message"),
    [
        (V3Config(), 4096, None, "reads 4096 tokens already"),
        (V3Config(), 32_768, 4, "factor 4 reaches 16384 tokens"),
        (twice(published())[0], 131_072, 8, r"factor 8 reaches 32768 tokens \(original context 4096\)"),
        (GPT2Config(), 4096, None, "gpt2 has no rotary positions"),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            8192,
            None,
            "scaled already: linear",
        ),
    ],
)
def test_nonsense_is_refused(config: Any, context: int, factor: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        yarn.extended(config, context, factor)
