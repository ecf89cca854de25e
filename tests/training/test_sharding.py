"""FSDP2's types: what layers compute in, and what comes out; what it computes wrongly is refused."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RewardConfig, SFTConfig

from pipeline.schema.efficiency import Efficiency
from pipeline.training import models as policies
from pipeline.training import setup
from pipeline.training.parallel.sharding import (
    _HeldAllGather,
    exact_policy,
    hold_frozen_units,
    refuse_sharded_head,
)
from pipeline.training.trainers.reward import RewardTrainer
from tests.stages.driving import context_of
from tests.training.ranks import join
from tests.training.replay import trainer_of


def rank(number: int, port: int, folder: Path, scratch: Path) -> None:
    """The only rank of a training that is sharded by FSDP2."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    join(number, port, sharded=True)
    os.environ["WORLD_SIZE"] = "1"
    rewarded(folder, scratch)
    repeated(folder)
    torch.distributed.destroy_process_group()


def rewarded(folder: Path, scratch: Path) -> None:
    """A reward model that computes in bfloat16: scores come out in float32, and their differences are not rounded."""
    config = {"kind": "reward_model", "model": str(folder), "data": ["rows.jsonl"], "trainer": {"bf16": True}}
    config["trainer"] |= {"max_steps": 1, "gradient_checkpointing": False, "per_device_train_batch_size": 4}
    args = setup.arguments(RewardConfig, context_of(scratch, "one", config, {}), {}, {"max_length": None})
    ids = [[4 + row, 5 + row, 6, 7, 8] for row in range(4)]
    pairs = [{"chosen_ids": row, "rejected_ids": row[::-1]} for row in ids]
    trainer = RewardTrainer(
        model=policies.loaded_by_trl(str(folder), args),
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    loss = torch.tensor(trainer.train().training_loss)
    assert trainer.accelerator.is_fsdp2
    assert loss != loss.bfloat16(), "the loss is a number of bfloat16"


def repeated(folder: Path) -> None:
    """A forward and a backward pass, layers computed twice, of a model whose layers are units of their own."""
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
    held(folder, ids)


def held(folder: Path, ids: torch.Tensor) -> None:
    """The frozen units alone gather by our way, and what they gather is right."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    true = model(input_ids=ids, use_cache=False).logits
    units = [model.model.embed_tokens, *model.model.layers, model]
    for unit in units:
        fully_shard(unit)
    hold_frozen_units(model)
    ways = [type(unit._get_fsdp_state()._fsdp_param_group._all_gather_comm).__name__ for unit in units]
    assert [way == "_HeldAllGather" for way in ways] == [True, True, *[False] * (len(units) - 2)]
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, true)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CPUs have no streams")
def test_memory_of_a_gather_that_nobody_waits_for_is_not_given_away(free_port: int) -> None:
    """Run on a GPU: `pytest -m gpu tests/training/test_sharding.py`. Torch's own way gives it away at once."""
    torch.multiprocessing.spawn(given_up, (free_port,), nprocs=1)


def given_up(number: int, port: int) -> None:
    """Gather behind a long kernel, forget what was gathered, and ask for memory of the same size."""
    torch.cuda.set_device(0)
    init = f"tcp://localhost:{port}"
    torch.distributed.init_process_group("nccl", init_method=init, rank=0, world_size=1)
    copies, gathers = torch.cuda.Stream(), torch.cuda.Stream()
    same = []
    for gather in (torch.distributed.all_gather_into_tensor, _HeldAllGather()):
        with torch.cuda.stream(copies):
            gathered, part = torch.empty(4096, device="cuda"), torch.ones(4096, device="cuda")
        gathers.wait_stream(copies)
        with torch.cuda.stream(gathers):
            torch.cuda._sleep(2_000_000_000)  # cycles: about a second
            gather(gathered, part, torch.distributed.group.WORLD, False)
        address, gathered = gathered.data_ptr(), None
        with torch.cuda.stream(copies):
            same.append(torch.empty(4096, device="cuda").data_ptr() == address)
        torch.cuda.synchronize()
    assert same == [True, False]
    torch.distributed.destroy_process_group()


def refused(folder: Path, ids: torch.Tensor) -> None:
    """A head that is a unit of its own: it is gathered in its own forward alone, and not where its weight is read."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    refuse_sharded_head(model)
    for unit in [*model.model.layers, model.lm_head, model]:
        fully_shard(unit)
    with pytest.raises(RuntimeError, match="has not gathered the weight of the language model's head"):
        model(input_ids=ids, use_cache=False)


def test_it_computes_in_bfloat16_and_gives_float32(models: Path, tmp_path: Path, free_port: int) -> None:
    """FSDP casts a layer's input in its forward pass, and not where gradient checkpointing repeats that."""
    torch.multiprocessing.spawn(rank, (free_port, models / "dense", tmp_path), nprocs=1)


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
