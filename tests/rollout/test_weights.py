"""The weights that an engine is given, against the files that transformers writes for the same model."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from model import V3Config, V3ForCausalLM
from pipeline.rollout.weights import official_weights

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
RANKS = 2


def v3() -> Any:
    """Two layers, one with experts, and a block that predicts a second token."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16}
    dims = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    torch.manual_seed(0)
    model = V3ForCausalLM(V3Config(vocab_size=48, num_nextn_predict_layers=1, **shape, **heads, **dims, **experts))
    model.get_buffer(BIAS).copy_(torch.tensor([0.001, -0.001, 1.001, 0.0]))
    return model


def llama(tied: bool) -> Any:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, **shape))


def saved(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("make", [v3, lambda: llama(True), lambda: llama(False)], ids=["v3", "tied", "untied"])
def test_names_and_values_are_those_of_a_checkpoint(make: Any, tmp_path: Path) -> None:
    model = make()
    assert same(dict(official_weights(model)), saved(model, tmp_path))


def test_parameters_are_cast_and_the_routing_bias_is_not(tmp_path: Path) -> None:
    model = v3()
    ours, theirs = dict(official_weights(model, torch.bfloat16)), saved(model, tmp_path)
    assert theirs[BIAS].dtype == torch.float32
    assert same(ours, {name: tensor if "bias" in name else tensor.bfloat16() for name, tensor in theirs.items()})
    assert not any(tensor.requires_grad for tensor in ours.values())


def test_activation_checkpointing_leaves_no_trace_in_names(tmp_path: Path) -> None:
    model = llama(False)
    expected = saved(model, tmp_path)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    assert any(isinstance(module, CheckpointWrapper) for module in model.modules())
    assert same(dict(official_weights(model)), expected)


def test_what_is_not_cast_is_not_copied() -> None:
    model = llama(False)
    held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert {tensor.untyped_storage().data_ptr() for _, tensor in official_weights(model)} == held


def sharded(rank: int, port: int, folder: Path) -> None:
    """One of two processes: shard the model, give out its weights, and keep them."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    model = v3()
    for layer in model.model.layers:
        fully_shard(layer, mesh=distributed.init_device_mesh("cpu", (RANKS,)))
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (RANKS,)))
    assert model.lm_head.weight.to_local().shape[0] == model.lm_head.weight.shape[0] // RANKS
    torch.save(dict(official_weights(model, torch.bfloat16)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_every_process_of_a_sharded_policy_gives_out_the_whole(tmp_path: Path, free_port: int) -> None:
    context = multiprocessing.get_context("fork")  # torch and transformers are imported already
    processes = [context.Process(target=sharded, args=(rank, free_port, tmp_path)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RANKS
    expected = dict(official_weights(v3(), torch.bfloat16))
    for rank in range(RANKS):
        assert same(torch.load(tmp_path / f"{rank}.pt"), expected)
