"""GRPO in two processes, DDP and FSDP2: losses and gradients are stock TRL's, metrics are everyone's, none hangs.

On a machine with two GPUs the ranks are on them; elsewhere they are CPU processes that talk through gloo.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from model.modeling import load
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.weights import official_weights
from pipeline.schema.efficiency import Efficiency, PoolSpec
from pipeline.schema.pieces import RolloutSpec
from tests.training import engine_runs
from tests.training.ranks import RANK_SECONDS, RANKS, join, on_gpus, started
from tests.training.replay import distance, graded, history_of, trainer_of

PATIENCE = 10.0
"""Seconds for which one process lets the other go first; it does where it can."""
PROMPTS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2
PACKED = Efficiency(tokens_per_pass=40, drop_dead_groups="auto", background_rewards=False)
"""Passes of one or two rows, so that the ranks need different numbers of them."""
KL = {"beta": 0.1, "num_iterations": 2, "learning_rate": 0.1, "max_steps": 4}
"""Two generation batches: the second one is scored by weights that have moved, in passes without gradient."""
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "grpo": ({"max_steps": 1}, False),
    "grpo-kl": ({**KL}, False),
    "grpo-vllm": ({"vllm": True, "max_steps": 1}, False),
    "dapo-dead-groups": ({"loss_type": "dapo", "max_steps": 1}, True),
    "dr_grpo-truncated": ({"loss_type": "dr_grpo", "mask_truncated_completions": True, "max_steps": 1}, False),
    "adapter": ({"adapter": {"rank": 4, "alpha": 32}, **KL}, False),
}
"""Fields, and whether one of four prompts teaches nothing: the first rank drops rows, and the other none."""
KINDS: dict[str, Efficiency | None] = {"stock": None, "ours": PACKED}
ON_GPUS = {
    "ours, padded": PACKED.model_copy(update={"packing": False}),
    "ours, scored before": PACKED.model_copy(update={"reuse_logprobs": False}),
}
"""Besides, where a GPU's kernels and streams are to be told apart from what we do; for one case."""


def kinds(case: str) -> dict[str, Efficiency | None]:
    """The trainers that run a case."""
    return KINDS | (ON_GPUS if case == "grpo-vllm" and on_gpus() else {})


def hopeless(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Always the same reward for two of the four prompts, and for the others one that varies."""
    dead = PROMPTS[:2]
    return [0.0 if p in dead else score for p, score in zip(prompts, graded(completion_ids), strict=True)]


def rank(number: int, port: int, model: Path, folder: Path, sharded: bool) -> None:
    """One of two processes: stock and our runs of every case on its share of the rollouts."""
    join(number, port, sharded)
    for case, (fields, dead) in CASES.items():
        for kind, switches in kinds(case).items():
            output = folder / f"{case}-{kind}-{number}"
            trainer = trainer_of(
                model,
                output,
                switches,
                PROMPTS,
                hopeless if dead else graded,
                rollout_seed=number,
                use_cpu=not on_gpus(),
                model_init_kwargs={"device_map": None, "dtype": "float32"},
                **fields,
            )
            history = history_of(trainer)
            assert not sharded or all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
            torch.save((history.gradients, history.logs, history.start), folder / f"{case}-{kind}-{number}.pt")
        if case == "grpo":
            sees_a_change(trainer)
    # The last one carries an adapter: merged and gathered by us, and alone by PEFT.
    merged = {name: weight.cpu() for name, weight in official_weights(trainer.accelerator.unwrap_model(trainer.model))}
    torch.save(merged, folder / f"merged-{number}.pt")
    trainer.save_model(str(folder / "adapter"))
    torch.distributed.destroy_process_group()


@torch.no_grad()
def sees_a_change(trainer: Any) -> None:
    """Weights of the head that change between two passes without gradient, and no backward pass before or after."""
    batch = trainer.micro_batches[0]
    counted_BC = batch.mask_BC.bool()
    head = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings().weight
    assert trainer.old_logprobs(batch)[counted_BC].std() > 0.01
    head.zero_()
    even = trainer.old_logprobs(batch)[counted_BC]
    assert torch.allclose(even, torch.full_like(even, -math.log(head.size(0)))), "the weights of before"


@dataclass(frozen=True)
class Ranks:
    """What the runs of two processes did.

    Attributes:
        folder: of what they wrote.
        found: by case, kind and process: gradients of the optimizer steps, logs, and weights before the first step.
    """

    folder: Path
    found: dict[tuple[str, str, int], tuple[list[torch.Tensor], list[dict[str, float]], torch.Tensor]]

    @classmethod
    def of(cls, model: Path, folder: Path, port: int, sharded: bool) -> Ranks:
        """Run them."""
        started(rank, port, model, folder, sharded)
        each = [(case, kind, number) for case in CASES for kind in kinds(case) for number in range(RANKS)]
        return cls(folder, {key: torch.load(folder / "{}-{}-{}.pt".format(*key)) for key in each})

    def apart(self, true: Ranks, stock: bool) -> dict[str, list[float]]:
        """How far the gradients of each step are from those of stock TRL in other runs, by case and trainer."""
        compared = [(case, kind) for case in CASES for kind in kinds(case) if (kind == "stock") is stock]
        pairs = {key: zip(true.found[key[0], "stock", 0][0], self.found[*key, 0][0], strict=True) for key in compared}
        return {": ".join(key): [distance(one, other) for one, other in steps] for key, steps in pairs.items()}


@pytest.fixture(scope="module")
def replicated(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """The runs under DDP."""
    return Ranks.of(models / "dense", tmp_path_factory.mktemp("ddp"), get_free_port(), sharded=False)


@pytest.fixture(scope="module")
def divided(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """The runs under FSDP2."""
    return Ranks.of(models / "dense", tmp_path_factory.mktemp("fsdp2"), get_free_port(), sharded=True)


@pytest.mark.timeout(4 * RANK_SECONDS + 60)
def test_stock_trl_is_the_same_under_fsdp2(replicated: Ranks, divided: Ranks) -> None:
    """What the next test compares with. If this one fails alone, then what TRL does under FSDP2 here is wrong."""
    apart = divided.apart(replicated, stock=True)
    assert all(step < 2e-6 for steps in apart.values() for step in steps), apart


@pytest.mark.timeout(4 * RANK_SECONDS + 60)
def test_every_rank_starts_from_the_same_weights(replicated: Ranks, divided: Ranks) -> None:
    """Those that the first rank has read and handed out, too."""
    for case, kind, number in divided.found:
        true = replicated.found[case, "stock", 0][2]
        assert all(torch.equal(ran.found[case, kind, number][2], true) for ran in (replicated, divided)), (case, kind)


@pytest.mark.timeout(4 * RANK_SECONDS + 60)
@pytest.mark.parametrize("launcher", ["replicated", "divided"], ids=["ddp", "fsdp2"])
def test_two_ranks_train_as_stock_trl_does(models: Path, launcher: str, request: pytest.FixtureRequest) -> None:
    """Rollouts differ between the ranks, and so do the passes they need and the rows they drop.

    Stock TRL under DDP is what both launchers are held against: nothing is sharded there.
    """
    true: Ranks = request.getfixturevalue("replicated")
    ran: Ranks = request.getfixturevalue(launcher)
    for case, kind, _ in ran.found:
        pairs = zip(ran.found[case, kind, 0][0], ran.found[case, kind, 1][0], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "gradients are exchanged"
    apart = ran.apart(true, stock=False)
    assert all(step < 2e-6 for steps in apart.values() for step in steps), apart

    for case, (_, dead) in CASES.items():
        theirs, mine = true.found[case, "stock", 0][1], ran.found[case, "ours", 0][1]
        for name in ("loss", "grad_norm", "reward", "completions/mean_length", "num_tokens"):
            assert [at[name] for at in mine if name in at] == pytest.approx(
                [at[name] for at in theirs if name in at], rel=1e-5, abs=1e-6
            )
        if case == "adapter":
            assert mine[-2]["kl"] > 0
        if dead:
            dropped = [at["groups/dropped_rows"] for at in mine if "groups/dropped_rows" in at]
            assert all(0.2 < share < 1 for share in dropped), "rows of every rank"

    merged, others = (torch.load(ran.folder / f"merged-{number}.pt") for number in range(RANKS))
    plain = PeftModel.from_pretrained(load(str(models / "dense")), ran.folder / "adapter").merge_and_unload()
    for name, weight in plain.named_parameters():
        assert torch.allclose(merged[name], weight, atol=1e-6), name
        assert torch.equal(merged[name], others[name])


class Late(TrainerCallback):
    """Has the other process come first to a checkpoint, whose folder nobody has made yet."""

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == args.save_steps:
            until = time.monotonic() + PATIENCE
            while not (Path(args.output_dir) / f"checkpoint-{args.save_steps}").exists() and time.monotonic() < until:
                time.sleep(0.01)


def engine_rank(number: int, port: int, model: Path, folder: Path, sharded: bool) -> None:
    """One of two trainers whose rollouts come from an engine that the first one holds: one batch ahead, the same again
    from a checkpoint, and two batches ahead."""
    join(number, port, sharded)
    spec = RolloutSpec(engine="transformers")
    engine = ProcessEngine(spec, str(model), logprobs=True, for_trainer=True) if number == 0 else None
    share = {"per_device_train_batch_size": engine_runs.GROUP * engine_runs.PROMPTS // RANKS, "save_steps": 3}
    run = engine_runs.Run(model, folder / "shared", engine, max_staleness=1, spare=0.5, **share)
    checkpoint = folder / "shared" / "checkpoint-3"
    ahead = {"resume": checkpoint, "max_staleness": 1, "spare": 0.5}
    resumed = engine_runs.Run(model, folder / "resumed", engine, **ahead, **share)
    torch.save((run.weights, run.logs, resumed.equals(run)), folder / f"{number}.pt")
    share |= {"problems": [{**row, "id": row["prompt"]} for row in engine_runs.PROBLEMS], "pool": PoolSpec()}
    share |= {"max_staleness": 2, "dynamic_sampling_rounds": 1, "callbacks": [Late()] if number == 0 else []}
    deep = engine_runs.Run(model, folder / "deep", engine, **share)
    assert deep.trainer.state.global_step == engine_runs.STEPS
    if not sharded:
        again = engine_runs.Run(model, folder / "again", engine, resume=folder / "deep" / "checkpoint-3", **share)
        assert again.trainer.state.global_step == engine_runs.STEPS
    if engine is not None:
        assert max(deep.logged("rollout/staleness_max")) <= 2
        engine.close()
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(2 * RANK_SECONDS + 60)
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_ranks_share_an_engine_as_one_process_uses_it(
    calculator: Path, tmp_path: Path, free_port: int, sharded: bool
) -> None:
    """The same rollouts, one batch ahead and with spare prompts, and so the same weights up to the order of sums."""
    started(engine_rank, free_port, calculator, tmp_path, sharded)
    engine = ProcessEngine(RolloutSpec(engine="transformers"), str(calculator), logprobs=True, for_trainer=True)
    try:
        alone = engine_runs.Run(calculator, tmp_path / "alone", engine, max_staleness=1, spare=0.5, save_steps=3)
    finally:
        engine.close()
    for number in range(RANKS):
        weights, logs, resumed = torch.load(tmp_path / f"{number}.pt")
        assert resumed, "to the bit, from a checkpoint with the batch that was sampled ahead"
        for name, weight in alone.weights.items():
            assert torch.allclose(weight, weights[name], rtol=1e-4, atol=1e-5), name
        assert [at["reward"] for at in logs] == pytest.approx(alone.logged("reward"))
        assert [at["num_tokens"] for at in logs] == alone.logged("num_tokens")
