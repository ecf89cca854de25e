"""Stages that train the blocks of multi-token prediction: schedule, scale, resumption, and reinforcement learning."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.speculative import Speculation
from pipeline.schema.mtp import DraftSpec, MtpSpec
from pipeline.schema.pieces import SpeculativeSpec
from pipeline.stages.registry import run_function
from pipeline.training import varlen
from pipeline.training.metrics import Metrics
from pipeline.training.trainers.mtp import BlockTraining
from tests.model.test_mtp import DOCUMENTS, counted, expected, make
from tests.stages.driving import CORPUS, TINY, context_of

TASK = """
from pipeline.tasks.base import Problem, Task

class Sums(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(5) for b in range(5)]

def shape(completion):
    return len(set(completion.split())) / 10
"""
PRETRAIN: dict[str, Any] = {
    "kind": "pretrain",
    "model": {**TINY, "num_nextn_predict_layers": 2},
    "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
    "corpus": {"use": "corpus.py:Sums", "documents": 400},
    "length": 32,
    "trainer": {"max_steps": 40, "learning_rate": 5e-3, "warmup_steps": 0, "logging_steps": 10, "save_steps": 20},
}


def logged(folder: Path, name: str, metric: str) -> list[float]:
    lines = (folder / f"{name}-scratch" / "events.jsonl").read_text().splitlines()
    return [event[metric] for event in map(json.loads, lines) if metric in event]


def run(folder: Path, name: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run a stage on `@base` and read what it publishes."""
    context = context_of(folder, name, config, {"base": folder / "base"})
    run_function(config["kind"])(context)
    return load_file(context.output / "model" / "model.safetensors")


def of_blocks(name: str) -> bool:
    return name.startswith(("model.layers.2.", "model.layers.3."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with two trained blocks, a task and rows."""
    folder = tmp_path_factory.mktemp("mtp-stages")
    (folder / "corpus.py").write_text(CORPUS)
    (folder / "sums.py").write_text(TASK)
    rows = [
        {"prompt": f"User: {a} + {b} = Assistant:", "completion": f" <answer> {a + b} </answer>"}
        for a in range(5)
        for b in range(5)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(folder, "base", PRETRAIN)
    return folder


def test_the_weight_falls_once() -> None:
    spec = MtpSpec(weight=0.3, final_weight=0.1, switch_at=0.5)
    assert [spec.weight_at(step, 4) for step in range(4)] == [0.3, 0.3, 0.1, 0.1]
    assert not MtpSpec().detach and DraftSpec().detach


def test_blocks_learn_and_would_be_accepted_more_often(folder: Path) -> None:
    for depth in (1, 2):
        losses, accepted = (logged(folder, "base", f"mtp/{what}_{depth}") for what in ("loss", "acceptance"))
        assert losses[-1] < 0.6 * losses[0] and accepted[-1] > accepted[0] + 0.2
    assert logged(folder, "base", "mtp/weight") == pytest.approx([0.3, 0.3, 0.26, 0.1])  # switched after step 28


def test_a_resumed_run_ends_in_the_same_weights(folder: Path) -> None:
    scratch = folder / "again-scratch" / "checkpoints"
    shutil.copytree(folder / "base-scratch" / "checkpoints" / "checkpoint-20", scratch / "checkpoint-20")
    again, whole = run(folder, "again", PRETRAIN), load_file(folder / "base" / "model" / "model.safetensors")
    assert logged(folder, "again", "mtp/weight") == logged(folder, "base", "mtp/weight"), "journals go on as well"
    assert again.keys() == whole.keys()
    for name, weight in whole.items():
        assert weight.equal(again[name]), name


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "base" / "model" / "model.safetensors")


def sft(**fields: Any) -> dict[str, Any]:
    trainer = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, **fields.pop("trainer", {})}
    return {"kind": "sft", "model": "@base", "data": ["rows.jsonl"], "trainer": trainer, **fields}


def test_without_mtp_blocks_stay_as_they_are_and_are_saved(folder: Path, base: dict[str, torch.Tensor]) -> None:
    trained = run(folder, "plain", sft(trainer={"logging_steps": 1}))
    assert trained.keys() == base.keys()
    for name, weight in base.items():
        assert weight.equal(trained[name]) == (of_blocks(name) or "correction_bias" in name), name
    assert all(0 <= value <= 1 for value in logged(folder, "plain", "routing/max_violation"))
    assert not logged(folder, "plain", "routing/max_violation/2"), "no token reaches a block that is not trained"


def test_mtp_on_a_model_without_blocks_is_refused(folder: Path) -> None:
    context = context_of(folder, "none", {**PRETRAIN, "model": TINY, "trainer": {"max_steps": 1}}, {})
    run_function("pretrain")(context)
    (folder / "bare").mkdir()
    config = sft(mtp={}, model=str(context.output / "model"))
    with pytest.raises(ValueError, match="num_nextn_predict_layers"):
        run_function("sft")(context_of(folder, "refused", config, {}))


def test_packed_rollouts_teach_what_padded_ones_do() -> None:
    """As GRPO's packed passes call the model: sequences told apart by their boundaries, labels a step ahead."""
    model, ids = make(2), [token for document in DOCUMENTS for token in document]
    alone = expected(model, DOCUMENTS, DOCUMENTS)
    assert varlen.install(model)
    firsts = torch.tensor([at == 0 for document in DOCUMENTS for at in range(len(document))])
    labels = torch.tensor(ids).masked_fill(firsts, -100)
    found = counted(
        model,
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([[at for document in DOCUMENTS for at in range(len(document))]]),
        shift_labels=torch.nn.functional.pad(labels[1:], (0, 1), value=-100)[None],
        **varlen.boundaries([len(document) for document in DOCUMENTS], torch.device("cpu")),
    )
    assert found == pytest.approx(alone, rel=1e-5)


def test_blocks_follow_the_policy_and_leave_it_alone(folder: Path, base: dict[str, torch.Tensor]) -> None:
    """GRPO with and without `mtp`: the same policy to the bit; rollouts drafted by the blocks; a synced reference."""
    grpo = {
        "kind": "grpo",
        "model": "@base",
        "tasks": ["sums.py:Sums"],
        "rewards": ["sums.py:shape"],
        "rollout": {"max_tokens": 8},
        "efficiency": {"merge_micro_batches": False},  # as beside `mtp`: another order of sums rounds otherwise
        "samples": 0,
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "max_steps": 2,
            "beta": 0.1,
            "ref_model_sync_steps": 1,
        },
    }
    plain, followed = run(folder, "policy", grpo), run(folder, "followed", {**grpo, "mtp": {}})
    for name, weight in plain.items():
        assert weight.equal(followed[name]) != of_blocks(name) or "correction_bias" in name, name
    drafted = {**grpo, "mtp": {}, "rollout": {"max_tokens": 8, "speculative": {"tokens": 3}}}
    run(folder, "drafted", drafted)
    shares = logged(folder, "drafted", "speculation/acceptance")
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    assert all(tokens > 1 for tokens in logged(folder, "drafted", "speculation/tokens_per_pass"))


def test_how_drafts_were_accepted_is_told_of_all_processes() -> None:
    """The other process drafts nothing here: its rollouts ended with their first token."""
    others = iter([torch.zeros(2, 2), torch.tensor([[5.0, 20.0], [15.0, 10.0]])])
    accelerator: Any = SimpleNamespace(device="cpu", gather=lambda mine: torch.cat([mine, next(others).view(1, -1)]))
    args = SimpleNamespace(generation_kwargs={"use_mtp": True}, fp16=False)
    model, metrics = make(1), Metrics()
    model.speculation = Speculation()
    training = BlockTraining(SimpleNamespace(model=model, args=args, metrics=metrics), None)
    for found in ((math.nan, math.nan), (0.25, 1.5)):
        with training.trained(torch.zeros(1, 1), 1):
            pass
        logged = dict(zip(("speculation/acceptance", "speculation/tokens_per_pass"), found, strict=True))
        assert metrics.read(accelerator) == pytest.approx(logged, nan_ok=True)


def test_a_draft_model_needs_a_number() -> None:
    with pytest.raises(ValueError, match="needs `tokens`"):
        SpeculativeSpec(draft="small")
