"""Shapes of V3 models, against the published numbers, and shapes that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import V3Config, factory, presets

NANO = presets.load("nano").model_dump()


PUBLISHED = {
    "v3-671b": (129_280, 671, 37.0, 38.0),  # DeepSeek-V3 (arXiv 2412.19437), abstract: 671B, 37B active
    "v3-16b": (163_840, 16, 2.8, 3.1),  # Moonlight (arXiv 2502.16982), abstract: 16B, 3B active
    "v2-236b": (102_400, 236, 21.0, 22.0),  # DeepSeek-V2 (arXiv 2405.04434), abstract: 236B, 21B active
    "v2-lite": (102_400, 16, 2.4, 2.7),  # appendix B: 15.7B, 2.4B active without the embedding
}
"""Preset -> vocabulary, billions of parameters, and the range that the active ones lie in."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_size(name: str) -> None:
    vocabulary, total, low, high = PUBLISHED[name]
    size = factory.count(presets.load(name), vocabulary)
    assert round(size.total / 1e9) == total
    assert low < size.active / 1e9 < high


def test_prediction_blocks_are_counted_apart() -> None:
    """DeepSeek-V3's block has 14B, of which 1.9B are copies of embedding and head (the hub's README, section 2)."""
    size = factory.count(presets.load("v3-671b"), 129_280)
    assert round((size.mtp + 2 * 129_280 * 7168) / 1e9, 1) == 13.5
    assert factory.count(presets.load("nano"), 80).mtp == 0


def test_the_small_model_has_a_hundred_million_active_parameters_that_vllm_can_serve() -> None:
    shape = presets.load("small")
    assert round(factory.count(shape, 100).active / 1e6) == 101
    assert presets.check_vllm(shape) is None
    assert "kv_lora_rank=512, and this model has" in str(presets.check_vllm(presets.load("nano")))
    assert "VLLM_MLA_DISABLE=1" in str(presets.check_vllm(presets.load({"preset": "small", "v_head_dim": 64})))


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_possible(name: str) -> None:
    assert presets.load(name).num_hidden_layers > 0


def test_the_student_is_less_than_a_third_of_the_base() -> None:
    base, student = (factory.count(presets.load(name), 80).total for name in ("nano", "nano-student"))
    assert student * 3 <= base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_rope_head_dim": 15}, "must be even"),
        ({"n_group": 3}, "does not divide"),
        ({"n_group": 8, "topk_group": 8}, "two best experts"),
        ({"n_group": 2, "topk_group": 3}, "exceeds n_group"),
        ({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "exceeds the 2 experts"),
        ({"num_experts_per_tok": 9}, "exceeds the 8 experts"),
        ({"first_k_dense_replace": 3}, "exceeds num_hidden_layers"),
        ({"scoring_func": "softmax"}, "no gate has noaux_tc with softmax"),
        ({"topk_method": "greedy"}, "no gate has greedy with sigmoid"),
        ({"topk_method": "greedy", "scoring_func": "softmax", "n_group": 2}, "greedy knows no groups"),
        ({"rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 64}}, "exceeds what YaRN reaches: 128"),
        ({"preset": "nanno"}, "no model preset"),
        ({"hidden_sise": 3}, "hidden_sise"),
        ({"hidden_size": 0}, "greater than 0"),
        ({"hidden_size": "128"}, "valid integer"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        presets.load({**NANO, **change})


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no model preset 'nan'.*nano"):
        presets.load("nan")


def test_the_saved_config_can_be_served_and_read_back(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = factory.build(presets.load("nano"), vocab_size=40, eos_token_id=1, pad_token_id=0, seed=3)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["topk_method"], saved["scoring_func"]) == ("noaux_tc", "sigmoid")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "DeepseekV3ForCausalLM"
    same = factory.build(presets.load("nano"), vocab_size=40, eos_token_id=1, pad_token_id=0, seed=3)
    for (name, weight), other in zip(again.named_parameters(), same.parameters(), strict=True):
        assert weight.equal(other), name


def test_changes_of_a_preset_are_checked_and_reach_all_that_hangs_on_them() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    config = V3Config.preset("nano", vocab_size=96, num_attention_heads=8, rope_theta=5e5, rope_scaling=scaling)
    assert (config.vocab_size, config.num_key_value_heads) == (96, 8)
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("yarn", 4.0)
    greedy = {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False}
    assert V3Config.preset("nano", **greedy).model_type == "deepseek_v2"
    for field, wrong in (("num_experts_per_tok", 99), ("n_group", 3), ("qk_rope_head_dim", 7)):
        with pytest.raises(ValueError, match=field):
            V3Config.preset("nano", **{field: wrong})


def test_gates_of_v2_leave_weights_as_they_are() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        presets.load({"preset": "nano", "topk_method": "greedy", "scoring_func": "softmax"})
