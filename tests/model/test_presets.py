"""Shapes of V3 models, against the published numbers, and shapes that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import presets

NANO = presets.load("nano").model_dump()


def test_the_full_model_has_the_published_size() -> None:
    """671B parameters, 37B active (DeepSeek-V3, arXiv 2412.19437, abstract); vocabulary of 129,280."""
    size = presets.count(presets.load("v3-671b"), vocab_size=129_280)
    assert round(size.total / 1e9) == 671
    assert 37.0 < size.active / 1e9 < 38.0


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_possible(name: str) -> None:
    assert presets.load(name).num_hidden_layers > 0


def test_the_student_is_less_than_a_third_of_the_base() -> None:
    base, student = (presets.count(presets.load(name), 80).total for name in ("nano", "nano-student"))
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

    model = presets.build(presets.load("nano"), vocab_size=40, eos_token_id=1, pad_token_id=0, seed=3)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["topk_method"], saved["scoring_func"]) == ("noaux_tc", "sigmoid")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "DeepseekV3ForCausalLM"
    same = presets.build(presets.load("nano"), vocab_size=40, eos_token_id=1, pad_token_id=0, seed=3)
    for (name, weight), other in zip(again.named_parameters(), same.parameters(), strict=True):
        assert weight.equal(other), name
