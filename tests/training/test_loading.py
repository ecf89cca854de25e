"""Under FSDP2 one rank reads a model and hands it out: what every rank then holds, and what that takes of a host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig

from pipeline.rollout.adapted import base_of
from pipeline.schema.efficiency import STOCK
from pipeline.training import adapters
from pipeline.training import models as policies
from pipeline.training.grpo import reference
from pipeline.training.grpo.judging import Samples
from pipeline.training.grpo.sampling import TrlSampler
from pipeline.training.grpo.trainer import GrpoTrainer
from tests.training.ranks import RANK_SECONDS, RANKS, join, started
from tests.training.replay import graded, prepared

LARGE = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 11,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
"""200 million weights: 763 MiB in float32."""


class PreparedError(Exception):
    """The trainer has its weights, and would begin."""


class Leave(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise PreparedError


def ready(model: Path, output: Path, adapter: dict[str, Any] | None = None) -> GrpoTrainer:
    """A trainer of a policy and its reference, as the `grpo` stage makes it, right before its first step."""
    args = GRPOConfig(
        output_dir=str(output),
        num_generations=2,
        per_device_train_batch_size=2,
        max_steps=1,
        save_strategy="no",
        report_to="none",
        beta=0.1,
        bf16=False,
        use_cpu=True,
    )
    with reference.loaded_as_policy(args):
        trainer = adapters.carry(
            GrpoTrainer,
            prepared(model, adapter),
            model=policies.policy(str(model), args),
            reward_funcs=graded,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": "what is 2"}] * 8),
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            samples=Samples(output / "samples.jsonl", 1, 0),
            efficiency=STOCK,
            sampler=TrlSampler,
            callbacks=[Leave()],
        )
    with pytest.raises(PreparedError):
        trainer.train()
    return trainer


def peak_mib() -> int:
    """The most memory that this process has held at a time, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def check_equal(model: Any, path: Path, besides: str = "nothing") -> None:
    """Every weight and buffer of a sharded model is, to the bit, what the folder has; `besides` are those of others."""
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held = {name.replace(".base_layer", ""): tensor for name, tensor in held.items() if besides not in name}
    assert held.keys() == tensors.keys()
    for name, tensor in held.items():
        found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(found, tensors[name]), name
        assert tensor.requires_grad == (tensors[name].requires_grad and besides == "nothing"), name
    assert all(isinstance(weight, DTensor) for weight in model.parameters())


def check_adapter(model: Any, path: Path) -> None:
    """The base is what the folder has, and the adapter begins as PEFT made it on the rank that read the base."""
    fresh = {name: tensor.full_tensor() for name, tensor in model.named_parameters() if ".lora_" in name}
    assert fresh
    for name, tensor in fresh.items():
        assert tensor.any() == (".lora_A." in name), name
    check_equal(base_of(model), path, ".lora_")


def rank(number: int, port: int, folder: Path, sizes: list[Path]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # host memory is what counts, also where there are GPUs
    join(number, port, sharded=True)
    before = peak_mib()
    for model in sizes:
        trainer = ready(model, folder)
        if model is sizes[0]:
            torch.save(peak_mib() - before, folder / f"{number}.pt")
        check_equal(trainer.model, model)
        check_equal(trainer.ref_model, model)
    check_adapter(ready(sizes[-1], folder, {"rank": 2}).model, sizes[-1])
    torch.distributed.destroy_process_group()


@pytest.fixture
def biased(models: Path, tmp_path: Path) -> Path:
    """A DeepSeek-V3 whose experts have been balanced for a while."""
    model = AutoModelForCausalLM.from_pretrained(models / "v3")
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert biases
    for bias in biases:
        bias.copy_(torch.randn(bias.shape))
    model.save_pretrained(tmp_path / "biased")
    AutoTokenizer.from_pretrained(models / "v3").save_pretrained(tmp_path / "biased")
    return tmp_path / "biased"


@pytest.mark.slow
@pytest.mark.timeout(RANK_SECONDS + 60)
def test_one_rank_reads_and_all_hold_the_same(models: Path, tmp_path: Path, free_port: int, biased: Path) -> None:
    """Tied weights, routing biases and rotary tables too; the other rank never has a whole model, the first has two.

    When every rank read its own, each took 1,925 MiB here: two whole models, and a file on its way to float32.
    """
    tokenizer = AutoTokenizer.from_pretrained(models / "dense")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    large = tmp_path / "large"
    Qwen2ForCausalLM(Qwen2Config(**LARGE, **ends)).to(torch.bfloat16).save_pretrained(large)
    tokenizer.save_pretrained(large)
    started(rank, free_port, tmp_path, [large, biased])
    whole, libraries = 763, 150
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(RANKS))
    assert second < 1.3 * whole + libraries, "two halves, and what is on its way"
    assert first < 3 * whole + libraries
