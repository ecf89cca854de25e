"""FSDP2's types: what layers compute in, and what comes out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from pipeline.training.sharding import exact_policy


def repeated(number: int, port: int, folder: Path) -> None:
    """A forward and a backward pass, layers computed twice, of a model whose layers are units of their own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=number, world_size=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = exact_policy(SimpleNamespace(bf16=True, fp16=False))
    for unit in [*model.model.layers, model]:
        fully_shard(unit, mp_policy=policy)
    ids = torch.arange(4, 14)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert all(gradient.full_tensor().isfinite().all() for gradient in gradients)
    torch.distributed.destroy_process_group()


def test_layers_are_computed_again_in_the_type_of_the_first_time(models: Path, free_port: int) -> None:
    """FSDP casts a layer's input in its forward pass, and not where gradient checkpointing repeats that."""
    torch.multiprocessing.spawn(repeated, (free_port, models / "dense"), nprocs=1)
