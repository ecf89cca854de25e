"""Whole models against transformers' DeepseekV3 and DeepseekV2, and the official names in what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DeepseekV2ForCausalLM, DeepseekV3ForCausalLM

from model import V3ForCausalLM, factory, presets

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 64,
    "routed_scaling_factor": 2.5,
    "initializer_range": 0.3,
}
V2 = {"topk_method": "group_limited_greedy", "scoring_func": "softmax", "norm_topk_prob": False}
LITE = {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "n_group": 1, "topk_group": 1}
YARN = {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16}}
UNCOMPRESSED = {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
VOCABULARY = 50


def build(**changes: Any) -> Any:
    """A small model whose biases are not zero."""
    model = factory.build(presets.load({**SHAPE, **changes}), VOCABULARY, eos_token_id=1, pad_token_id=0, seed=1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.5)
    return model.eval()


def official_names(layers: int, dense: int, experts: int, biased: bool) -> set[str]:
    """The tensors of a published checkpoint, as its index lists them (queries compressed, no FP8 scales)."""
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    attention = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
    parts = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{name}" for name in attention)]
    for layer in range(layers):
        names |= {f"model.layers.{layer}.{part}.weight" for part in parts}
        mlp = f"model.layers.{layer}.mlp"
        blocks = [mlp] if layer < dense else [f"{mlp}.shared_experts", *(f"{mlp}.experts.{i}" for i in range(experts))]
        names |= {f"{block}.{which}_proj.weight" for block in blocks for which in ("gate", "up", "down")}
        if layer >= dense:
            names.add(f"{mlp}.gate.weight")
            names |= {f"{mlp}.gate.e_score_correction_bias"} if biased else set()
    return names


@pytest.mark.parametrize("changes", [{}, UNCOMPRESSED, YARN], ids=["grouped", "uncompressed", "yarn"])
def test_logits_and_gradients_are_those_of_deepseek_v3_in_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = build(**changes)
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is DeepseekV3ForCausalLM
    compare(ours, theirs)


@pytest.mark.parametrize("changes", [V2, LITE], ids=["v2", "v2-lite"])
def test_logits_and_gradients_with_v2_gates_are_those_of_deepseek_v2_in_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = build(**changes)
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is DeepseekV2ForCausalLM
    compare(ours, theirs)


def compare(ours: Any, theirs: Any) -> None:
    """Logits and gradients within 1e-5 of each other, relative to their size, also with padding on the left."""
    ids_BT = torch.randint(2, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :5] = 0
    labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
    for model in (ours.train(), theirs.train()):
        model.zero_grad()
        model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss.backward()
    found = ours(ids_BT, attention_mask=mask_BT).logits[mask_BT.bool()]
    expected = theirs(ids_BT, attention_mask=mask_BT).logits[mask_BT.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        atol = 1e-5 * max(1e-3, float(other.grad.abs().max()))
        torch.testing.assert_close(
            weight.grad, other.grad, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("changes", [{}, V2], ids=["v3", "v2"])
def test_what_is_saved_bears_the_official_names_and_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = build(**changes)
    ours.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == official_names(3, dense=1, experts=8, biased=not changes)
    again = type(ours).from_pretrained(tmp_path)
    for (name, tensor), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert tensor.equal(other), name


def test_a_checkpoint_of_transformers_class_loads_as_ours(tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(saved(tmp_path / "ours")).config)
    theirs.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    for name in ("topk_method", "scoring_func"):  # official configs have them, transformers' own do not
        config.pop(name, None)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    ours = V3ForCausalLM.from_pretrained(tmp_path / "theirs")
    assert (ours.config.topk_method, ours.config.scoring_func) == ("noaux_tc", "sigmoid")
    compare(ours, theirs)


def saved(folder: Path) -> Path:
    """A folder with a small model of ours."""
    build().save_pretrained(folder)
    return folder


def test_the_bias_stays_in_float32_wherever_the_model_goes(tmp_path: Path) -> None:
    model = build()
    before = model.model.layers[1].mlp.gate.e_score_correction_bias.clone()
    assert not before.to(torch.bfloat16).float().equal(before)
    steps = [model.to(torch.bfloat16), model.half(), model.bfloat16().float(), model.to("cpu", torch.bfloat16)]
    model.save_pretrained(tmp_path)
    steps += [V3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), V3ForCausalLM.from_pretrained(tmp_path)]
    for step in steps:
        bias = step.model.layers[1].mlp.gate.e_score_correction_bias
        assert bias.dtype == torch.float32
        assert bias.equal(before)
    assert model.model.layers[1].mlp.gate.weight.dtype == torch.bfloat16
