"""Tiny models with which trainers are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXT = "User: Assistant: you are kind what is 2 + two four <think> </think> <answer> </answer> hello"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dense` (Llama, grouped queries), `v3` (latent attention, experts) and `routed` (Mixtral, which has
    a router loss), with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    from model import factory, presets
    from pipeline.data.vocabulary import VocabularySpec, build
    from pipeline.training import setup
    from tests.stages.driving import TINY

    setup.prepare()
    folder = tmp_path_factory.mktemp("replayed")
    tokenizer = build(VocabularySpec(kind="words", chat_template="r1_zero"), [TEXT])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, **shape, **heads, **ends)
        LlamaForCausalLM(config).save_pretrained(folder / "dense")
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "bos_token_id": None}
        routed = MixtralConfig(vocab_size=len(tokenizer), **experts, **shape, **heads, **ends)
        MixtralForCausalLM(routed).save_pretrained(folder / "routed")
    factory.build(presets.load(TINY), len(tokenizer), **ends, seed=1).save_pretrained(folder / "v3")
    for name in ("dense", "v3", "routed"):
        tokenizer.save_pretrained(folder / name)
    return folder
