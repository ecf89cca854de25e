"""Fine-tuning on packed rows: the losses and gradients of one example a row, and no mask of tokens x tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from pipeline.schema.routing import FinetuneRouting
from pipeline.training import models as policies
from pipeline.training import setup, varlen
from pipeline.training.trainers import sft

LENGTHS = [7, 3, 9, 2, 12, 5]
"""Tokens of each example; the first two of them are its prompt. One has nothing to learn."""
CONFIG = SimpleNamespace(precision="trainer", routing=FinetuneRouting(balance="none"))


def trainer_of(path: Path, folder: Path, packed: bool) -> Any:
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [(number * 5 + token * 3) % 15 + 2 for token in range(length)]
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    args = SFTConfig(
        output_dir=str(folder),
        packing=packed,
        max_length=16 if packed else None,
        per_device_train_batch_size=len(rows),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    return sft.build(
        CONFIG,
        model=policies.policy(str(path), args),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=setup.load_tokenizer(str(path)),
    )


def learnt(trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of everything."""
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(len(trainer.train_dataset))])
    trainer.model.train()
    targets = sum(length - 2 for length in LENGTHS)
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(targets))
    loss.backward()
    return loss.item(), {name: w.grad for name, w in trainer.model.named_parameters() if w.grad is not None}


def no_mask(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a mask of tokens x tokens was made")


@pytest.mark.parametrize("name", ["dense", "v3"])
def test_packed_rows_teach_what_one_example_a_row_does(
    models: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one example are padded on the right, which takes no mask either."""
    with monkeypatch.context() as stock:
        stock.setattr(varlen, "install", lambda model: False)
        expected, gradients = learnt(trainer_of(models / name, tmp_path / "stock", packed=False))
    monkeypatch.setattr(varlen, "sdpa_mask", no_mask)
    for packed in (True, False):
        trainer = trainer_of(models / name, tmp_path / str(packed), packed)
        assert trainer.model.config._attn_implementation == varlen.NAME
        loss, ours = learnt(trainer)
        assert loss == pytest.approx(expected, abs=2e-6)
        assert ours.keys() == gradients.keys()
        for weight, gradient in gradients.items():
            assert torch.allclose(ours[weight], gradient, rtol=1e-4, atol=2e-6), weight


@pytest.mark.parametrize(
    ("mask", "right"),
    [
        ([[1, 1, 0], [1, 1, 1]], True),
        ([[1, 0, 0], [1, 1, 0]], True),
        ([[0, 1, 1], [1, 1, 1]], False),
        ([[1, 0, 1], [1, 1, 1]], False),
        ([[0, 0, 0], [1, 1, 1]], False),
    ],
)
def test_only_padding_on_the_right_goes_without_a_mask(mask: list[list[int]], right: bool) -> None:
    assert varlen._padded_right(torch.tensor(mask)) == right


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_packed_rows_have_finite_gradients_on_a_gpu() -> None:
    """Random rows as full as fine-tuning makes them; see `benchmarks.packed_attention` for what other kernels do."""
    import argparse

    from benchmarks.packed_attention import trial

    asked = argparse.Namespace(device="cuda", dtype="bfloat16", tokens=8192)
    for number in range(20):
        found = trial(number, asked)["variable-length"]
        assert found["not_finite"] == 0 and found["relative_distance"] < 0.05, found
