"""A step whose loss, gradient or weights are not finite ends the stage, or is left out; none of it is published."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from model.balance import routers
from pipeline.context import StageContext
from pipeline.schema.efficiency import STOCK
from pipeline.stages.registry import run_function
from pipeline.training import fit
from pipeline.training.health.finite import NonFiniteError, Watch
from tests.stages.driving import CORPUS, TINY, context_of
from tests.training.replay import trainer_of

STAGE = {
    "kind": "pretrain",
    "model": TINY,
    "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
    "corpus": {"use": "corpus.py:Sums", "documents": 200},
    "length": 32,
    "trainer": {
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "lr_scheduler_kwargs": {},
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
}


def stage(folder: Path, name: str, **fields: Any) -> StageContext:
    (folder / "corpus.py").write_text(CORPUS)
    return context_of(folder, name, {**STAGE, **fields}, {})


def poison(monkeypatch: pytest.MonkeyPatch, where: str, step: int, value: float) -> None:
    """Spoil the second micro-batch of a step: its loss, one number of its gradient, or a weight after the step."""
    whole = fit._train

    def spoilt(trainer: Any, context: StageContext) -> Any:
        compute, calls = trainer.compute_loss, []

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            loss = compute(*args, **kwargs)
            if len(calls) != 2 * step:
                return loss
            weight = trainer.model.get_input_embeddings().weight
            if where == "weight":
                with torch.no_grad():
                    weight[3, 3] = value
            if where == "gradient":
                weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), value))
            return loss * value if where == "loss" else loss

        trainer.compute_loss = compute_loss
        return whole(trainer, context)

    monkeypatch.setattr(fit, "_train", spoilt)


def events(context: StageContext) -> Iterator[dict[str, Any]]:
    return map(json.loads, context.events.read_text().splitlines())


def test_a_model_that_is_damaged_stops_the_stage_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, whole = stage(tmp_path, "one"), fit._train

    def damaged(trainer: Any, context: StageContext) -> Any:
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight[3, 3] = math.nan
        return whole(trainer, context)

    monkeypatch.setattr(fit, "_train", damaged)
    with pytest.raises(NonFiniteError, match=r"not finite before step 1 of 4: \S*embed_tokens\.weight\. The files"):
        run_function("pretrain")(context)
    assert not context.events.exists() or not any("loss" in line for line in events(context))
    assert not (context.output / "model").exists()


def test_a_routing_bias_that_is_damaged_stops_the_stage_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that is saved with the weights: experts are chosen by it."""
    context, whole = stage(tmp_path, "one"), fit._train

    def damaged(trainer: Any, context: StageContext) -> Any:
        next(iter(routers(trainer.model).values())).e_score_correction_bias[1] = math.nan
        return whole(trainer, context)

    monkeypatch.setattr(fit, "_train", damaged)
    with pytest.raises(NonFiniteError, match=r"before step 1 of 4: \S*e_score_correction_bias\. The files"):
        run_function("pretrain")(context)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_would_hardly_move_stop_the_stage_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """However they came to be of that type."""
    context, whole = stage(tmp_path, "one"), fit._train

    def halved(trainer: Any, context: StageContext) -> Any:
        trainer.model.to(dtype)
        return whole(trainer, context)

    monkeypatch.setattr(fit, "_train", halved)
    with pytest.raises(ValueError, match=rf"embed_tokens\.weight: weights that are trained in {str(dtype)[6:]} hardly"):
        run_function("pretrain")(context)


class Damage(TrainerCallback):
    """One number of the embedding is NaN after the first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            model.get_input_embeddings().weight.data[3, 3] = math.nan


def test_nothing_is_sampled_with_weights_that_are_not_finite(models: Path, tmp_path: Path) -> None:
    """torch would fail in the middle of it, and on a GPU take the process along; engines would write anything."""
    prompts = ["what is 2", "hello", "you are kind", "what four you are"] * 2
    trainer = trainer_of(models / "dense", tmp_path, STOCK, prompts, replayed=False, num_iterations=1)
    for callback in (Watch(trainer, "stop", tmp_path), Damage()):
        trainer.add_callback(callback)
    with pytest.raises(NonFiniteError, match=r"not finite after step 1 of 2: model\.embed_tokens\.weight\. A lower"):
        trainer.train()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    context = stage(tmp_path, "one")
    poison(monkeypatch, "loss", 3, value)
    with pytest.raises(NonFiniteError, match=rf"step 3 of 4: the loss is not finite: {value} in micro-batch 2 of 2"):
        run_function("pretrain")(context)
    assert not (context.output / "model").exists()
    (kept,) = context.scratch.glob("non-finite-step-3-rank-0.pt")
    batches = torch.load(kept, weights_only=False)
    assert len(batches) == 2 and batches[1]["input_ids"].numel() == 64


def test_the_batch_of_the_rank_that_saw_it_is_kept_before_any_rank_ends(tmp_path: Path) -> None:
    """This is the first of two ranks, whose losses are finite; the other one's second loss is not."""
    others, waited = [torch.tensor([0]), torch.tensor([2, 0])], list[bool]()
    own, told = (tmp_path / f"non-finite-step-3-rank-{number}.pt" for number in range(2))
    accelerator = SimpleNamespace(device="cpu", process_index=0, gather=lambda mine: torch.cat([mine, others.pop()]))
    accelerator.wait_for_everyone = lambda: waited.append(own.exists())
    trainer = SimpleNamespace(is_deepspeed_enabled=False, accelerator=accelerator, model=torch.nn.Linear(2, 2))
    watch = Watch(trainer, "stop", tmp_path)
    watch.losses, watch.batches = [torch.tensor(0.5), torch.tensor(0.7)], [{"input_ids": torch.arange(3)}]
    with pytest.raises(NonFiniteError) as raised:
        watch.on_pre_optimizer_step(SimpleNamespace(fp16=False), SimpleNamespace(global_step=2, max_steps=4), None)
    assert "step 3 of 4: the loss is not finite on rank 1: micro-batch 2 of 2; all weights still are" in str(
        raised.value
    )
    assert f"The batch is kept in {told}." in str(raised.value)
    assert waited == [True]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    context = stage(tmp_path, "one", trainer={**STAGE["trainer"], "max_grad_norm": clip})
    poison(monkeypatch, "gradient", 2, math.nan)
    with pytest.raises(NonFiniteError, match=r"step 2 of 4: gradients are not finite \(their norm is nan\); all"):
        run_function("pretrain")(context)
    assert not (context.output / "model").exists()


@pytest.mark.parametrize(("step", "told"), [(2, "not finite after step 2 of 4"), (4, "not finite after step 4 of 4")])
def test_a_weight_that_is_not_finite_is_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, told: str
) -> None:
    """Neither in a checkpoint nor as a model: an interrupted stage would go on from it."""
    context = stage(tmp_path, "one", non_finite="skip")
    poison(monkeypatch, "weight", step, math.inf)
    with pytest.raises(NonFiniteError, match=f"{told}: model.embed_tokens.weight"):
        run_function("pretrain")(context)
    assert not (context.output / "model").exists()
    assert not (context.checkpoints / f"checkpoint-{step}").exists()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_is_skipped_where_the_stage_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The optimizer does nothing in it: neither weights nor moments move, and later losses are told as they are."""
    context = stage(tmp_path, "one", non_finite="skip", dtype="float32")
    before = dataclasses.replace(
        stage(tmp_path, "two", non_finite="skip", trainer={**STAGE["trainer"], "max_steps": 3}), seed=context.seed
    )
    with monkeypatch.context() as spoilt:
        poison(spoilt, where, 4, math.nan)
        metrics = run_function("pretrain")(context).metrics
    run_function("pretrain")(before)
    assert metrics["steps_skipped"] == 1 and metrics["steps"] == 4
    told = list(events(context))
    assert [event["non_finite/skipped"] for event in told] == [0, 0, 0, 1]
    assert all(isinstance(event["loss"], float) for event in told)
    assert told[3]["grad_norm"] == "nan"
    weights = load_file(context.output / "model" / "model.safetensors")
    others = load_file(before.output / "model" / "model.safetensors")
    for name, weight in weights.items():
        if "e_score_correction_bias" not in name:
            assert torch.equal(weight, others[name]), name


def test_a_model_that_has_learnt_from_no_step_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = stage(tmp_path, "one", non_finite="skip", trainer={**STAGE["trainer"], "max_steps": 1})
    poison(monkeypatch, "loss", 1, math.nan)
    with pytest.raises(
        NonFiniteError, match="nothing was learnt: no step had a finite loss and finite gradients, so all 1 were"
    ):
        run_function("pretrain")(context)
    assert not (context.output / "model").exists()


def test_events_show_what_is_not_finite(tmp_path: Path) -> None:
    context = stage(tmp_path, "one")
    context.log(1, 4, loss=math.nan, grad_norm=math.inf, entropy=-math.inf, accuracy=0.5)
    (event,) = events(context)
    assert [event[name] for name in ("loss", "grad_norm", "entropy", "accuracy")] == ["nan", "inf", "-inf", 0.5]
