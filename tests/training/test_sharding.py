"""FSDP2's types: what layers compute in, and what comes out; what it computes wrongly is refused."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from pipeline.schema.efficiency import Efficiency
from pipeline.training import setup
from pipeline.training.parallel.sharding import exact_policy, refuse_sharded_head
from tests.stages.driving import context_of
from tests.training.replay import trainer_of


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
    refused(folder, ids)
    torch.distributed.destroy_process_group()


def refused(folder: Path, ids: torch.Tensor) -> None:
    """A head that is a unit of its own: it is gathered in its own forward alone, and not where its weight is read."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    refuse_sharded_head(model)
    for unit in [*model.model.layers, model.lm_head, model]:
        fully_shard(unit)
    with pytest.raises(RuntimeError, match="has not gathered the weight of the language model's head"):
        model(input_ids=ids, use_cache=False)


def test_layers_are_computed_again_in_the_type_of_the_first_time(models: Path, free_port: int) -> None:
    """FSDP casts a layer's input in its forward pass, and not where gradient checkpointing repeats that."""
    torch.multiprocessing.spawn(repeated, (free_port, models / "dense"), nprocs=1)


def test_passes_that_contradict_each_other_are_not_trained_on(models: Path, tmp_path: Path) -> None:
    """Weights that are others in passes with gradient than in those without, as after a gather that went wrong."""
    trainer = trainer_of(models / "dense", tmp_path, Efficiency(tokens_per_pass=60), ["what is 2", "hello"] * 4)
    trainer.unconfirmed = True  # as under FSDP2, where the tests of two ranks train with it
    trainer.model.model.norm.register_forward_hook(
        lambda module, given, output: 3 * output if torch.is_grad_enabled() else output
    )
    with pytest.raises(RuntimeError, match="nats from those of a pass without gradient"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_precision_of_a_launcher_goes_past_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would compute in it, and accelerate round outputs and gradients to it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = {"kind": "sft", "model": "m", "data": ["rows.jsonl"], "trainer": {"bf16": False}}
    args = setup.arguments(SFTConfig, context_of(tmp_path, "one", config, {}), {}, {})
    assert args.mixed_precision == "no" and not args.bf16
