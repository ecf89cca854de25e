"""A planted collapse with two ranks: they decide alike, keep whole batches and go back together; `why` replays it.

What one process does with an alarm is in `test_collapse`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.records import kept
from pipeline.stages.registry import run_function
from pipeline.training import checkpoints
from pipeline.training.health import thresholds
from pipeline.training.health.alarm import RollbackError
from tests.training.ranks import RANK_SECONDS, RANKS, join, started
from tests.training.test_collapse import Planted, explained, notes, planted

__all__ = ["planted"]
pytestmark = pytest.mark.timeout(RANK_SECONDS + 300)  # whichever test comes first waits for the ranks

STEPS, ROWS = 6, 32
HEALTH = {"on_alarm": "rollback", "rollback_lr": 0.001, "patience": 2, "entropy_rise": 2.0, "rollbacks": 1}
RATE = 0.05
"""At the end of a warm-up over 20 steps: the policy falls apart after a few."""


def told(number: int, context: StageContext[Any], port: int, sharded: bool) -> None:
    """One of two ranks: it goes back, and then to the end. The second would decide otherwise, if it were asked."""
    join(number, port, sharded)
    if number:
        thresholds.Alarms.look = lambda self, metrics: []  # type: ignore[method-assign]
        gone = kept.rollbacks
        kept.rollbacks = lambda scratch: [*gone(scratch), *gone(scratch)]  # what it may see, if the first is faster
    said = ""
    try:
        run_function("grpo")(context)
    except RollbackError as error:
        said = str(error)
    newest = max(map(checkpoints.step_of, checkpoints.by_step(context.checkpoints)))
    (context.base / f"said-{number}.json").write_text(json.dumps({"said": said, "newest": newest}))
    torch.distributed.barrier()
    if number:
        kept.rollbacks = gone
    run_function("grpo")(context)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=["DDP", "FSDP2"])
def fallen(request: pytest.FixtureRequest, planted: Planted) -> StageContext[Any]:
    """A stage of two ranks that fell apart, went back, and came to its end."""
    trainer = {"max_steps": STEPS, "save_steps": 1, "learning_rate": RATE, "beta": 0.001, "bf16": False}
    trainer |= {"num_generations": 4, "per_device_train_batch_size": ROWS // RANKS, "gradient_accumulation_steps": 1}
    trainer |= {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}
    context = planted(request.param, HEALTH, trainer=trainer, launch={"accelerate": "ddp"})
    started(told, context, get_free_port(), request.param == "FSDP2")
    return context


def test_ranks_keep_a_whole_batch_and_go_back_together(fallen: StageContext[Any]) -> None:
    said = [json.loads((fallen.base / f"said-{number}.json").read_text()) for number in range(RANKS)]
    assert said[0] == said[1] and "Rollback 1 of 1: back to the checkpoint after step" in said[0]["said"]
    (back,) = kept.rollbacks(fallen.scratch)
    assert back["done"] and 0 < back["to"] < back["began"] <= back["step"]
    steps = [event["step"] for event in map(json.loads, fallen.events.read_text().splitlines()) if "loss" in event]
    assert steps == [*range(1, back["step"] + 1), *range(back["to"] + 1, STEPS + 1)]
    told = [(note["alarm"], note["then"], note["step"]) for note in notes(fallen)]
    assert len(told) == len(set(told)), "once, and not by every rank"
    assert {then for _, then, _ in told} == {"rollback"} and "entropy_rise" in {alarm for alarm, _, _ in told}

    (folder,) = (fallen.scratch / kept.KEPT).glob("step-*")
    assert durable.damage_of(folder, kept.RECORD) == {}
    record = durable.read_record(folder / kept.RECORD)
    assert record["ranks"] == RANKS and record["checkpoint"] == back["to"]
    names = {f"batch-{step}.rank-{number}" for step in record["batches"] for number in range(RANKS)}
    assert {path.stem for path in folder.glob("*.safetensors")} == names == {p.stem for p in folder.glob("*.jsonl")}
    for step in record["batches"]:
        files = [folder / f"batch-{step}.rank-{number}" for number in range(RANKS)]
        rows = [[json.loads(line) for line in Path(f"{file}.jsonl").read_text().splitlines()] for file in files]
        assert [len(of) for of in rows] == [ROWS // RANKS] * RANKS
        assert len({row["id"] for of in rows for row in of}) == ROWS // 4, "each rank has groups of its own"
        logged = next(line for line in record["history"] if line["step"] == step)
        rewards = [row["rewards"]["reward"] for of in rows for row in of]
        assert sum(rewards) / ROWS == pytest.approx(logged["reward"], abs=1e-4)
        held = [load_file(f"{file}.safetensors") for file in files]
        lengths = [int(mask) for of in held for mask in of["0/mask_BC"].sum(1)]
        assert sum(lengths) / ROWS == pytest.approx(logged["completions/mean_length"], abs=1e-4)


def test_one_process_replays_what_two_ranks_did(fallen: StageContext[Any]) -> None:
    """The numbers of the pass are those that both ranks logged together, and the learning rate is what is named."""
    (folder,) = (fallen.scratch / kept.KEPT).glob("step-*")
    record = durable.read_record(folder / kept.RECORD)
    checkpoint = fallen.scratch / kept.KEPT / f"checkpoint-{record['checkpoint']}"
    assert (checkpoint / ("optimizer.bin" if "FSDP2" in fallen.name else "optimizer.pt")).is_file()
    found = explained(fallen)
    assert found["cause"] == "learning rate", found["conclusion"]
    as_it_was = found["changes"][0]["numbers"]
    assert found["replayed_step"] == record["checkpoint"] + 1
    logged = next(line for line in record["history"] if line["step"] == found["replayed_step"])
    for name in ("loss", "entropy", "grad_norm"):
        assert as_it_was[name] == pytest.approx(logged[name], rel=1e-3, abs=1e-4), name
    after = next(line for line in record["history"] if line["step"] == found["replayed_step"] + 1)
    assert as_it_was["entropy_after"] == pytest.approx(after["entropy"], rel=0.5), "of another batch"
