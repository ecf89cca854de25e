"""The estimate of activations, against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from pipeline.training.grpo.activation_memory import activation_bytes, keeps_activations

QWEN_05B = LlamaConfig(hidden_size=896, intermediate_size=4864, num_hidden_layers=24)
"""Llama's class with the widths of Qwen2.5-0.5B."""
H200 = 141 * 10**9


@pytest.mark.parametrize(("hidden", "intermediate"), [(128, 512), (256, 704)])
def test_the_estimate_is_near_what_is_kept(hidden: int, intermediate: int) -> None:
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 3}
    config = LlamaConfig(vocab_size=8, num_attention_heads=4, num_key_value_heads=2, **shape)
    model, tokens = LlamaForCausalLM(config), 200
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    copies = {weight.shape for weight in matrices} | {weight.T.shape for weight in matrices}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in copies:  # autocast keeps weights in bfloat16, too
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    assert 0.7 < activation_bytes(config, tokens) / sum(kept.values()) < 1.5


def test_only_the_experts_that_a_token_is_sent_to_count() -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    few, many = (Qwen3MoeConfig(num_experts_per_tok=n, num_experts=64, **shape) for n in (8, 16))
    an_expert = 8 * 32 + 2 * 2 * 64  # gate, its activation, up, their product; a row as it goes in, and as it comes out
    assert activation_bytes(many, 10) - activation_bytes(few, 10) == 10 * 2 * 8 * an_expert


def test_a_model_of_another_architecture_counts_as_a_llama_of_its_widths() -> None:
    widths = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 8}
    other = Gemma2Config(num_attention_heads=4, num_key_value_heads=2, head_dim=16, **widths)
    alike = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **widths)
    assert activation_bytes(other, 10) == activation_bytes(alike, 10) > 0


def test_a_small_model_keeps_them_and_long_chains_do_not() -> None:
    assert keeps_activations(QWEN_05B, 8192, H200)
    assert not keeps_activations(QWEN_05B, 32768, H200)
    assert not keeps_activations(QWEN_05B, 8192, 24 * 10**9)
