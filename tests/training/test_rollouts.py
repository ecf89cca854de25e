"""GRPO with its engine in a process of its own: one batch ahead, killed, resumed, and without the tail."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from pipeline.rollout.base import Deferred, Finish, Rollout, Sampling, complete
from pipeline.rollout.engine_pool import EnginePool
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.transformers import TransformersEngine
from pipeline.schema.efficiency import LengthChange
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec
from pipeline.stages import grpo
from pipeline.stages.registry import config_class
from pipeline.tasks.grading import composite
from pipeline.training.grpo.engines import SAMPLED_AHEAD, EngineSampler
from pipeline.training.grpo.judging import Judge
from pipeline.training.grpo.problem_order import ProblemOrder
from pipeline.training.held_out import live
from tests.stages.driving import context_of
from tests.training.engine_runs import GROUP, PROBLEMS, PROMPTS, STEPS, Run


@pytest.fixture(scope="module")
def engine(calculator: Path) -> Iterator[ProcessEngine]:
    made = ProcessEngine(RolloutSpec(engine="transformers"), str(calculator), logprobs=True, for_trainer=True)
    yield made
    made.close()


class Delayed(Deferred):
    """The stale schedule by hand: an engine in this process that samples with the weights before the last ones."""

    speculation, restarts, idle_seconds, dtype = None, 0, 0.0, "float32"

    def __init__(self, path: Path) -> None:
        self.inner = TransformersEngine(str(path), logprobs=True, tempered=True)
        self.pushed: list[tuple[dict[str, torch.Tensor], int]] = []

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.pushed.append(({name: tensor.clone() for name, tensor in weights}, version))

    def submit(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, expected: Sequence[float] | None = None
    ) -> int:
        weights, version = self.pushed[max(0, len(self.pushed) - 2)]
        self.inner.load_weights(weights.items(), version)
        self.groups = self.inner.generate(prompts, sampling)
        return 0

    def collect(self, ticket: int, progress: Any = None) -> list[list[Rollout]]:
        return self.groups


def after_steps(engine: ProcessEngine, steps: int) -> threading.Thread:
    """Kill the engine's process once it has taken so many more steps."""

    def kill() -> None:
        first = engine._heartbeat.read()[0]
        while engine._heartbeat.read()[0] < first + steps:
            time.sleep(0.001)
        os.kill(engine._process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


@pytest.fixture(scope="module")
def ahead(calculator: Path, engine: ProcessEngine, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One batch ahead, with spare prompts, and checkpoints."""
    folder = tmp_path_factory.mktemp("ahead")
    return Run(calculator, folder, engine, max_staleness=1, spare=0.5, save_steps=3)


def test_one_batch_ahead_is_training_on_rollouts_of_the_weights_before(
    calculator: Path, engine: ProcessEngine, tmp_path: Path
) -> None:
    ours = Run(calculator, tmp_path / "ours", engine, max_staleness=1)
    by_hand = Run(calculator, tmp_path / "by-hand", Delayed(calculator))
    on_policy = Run(calculator, tmp_path / "on-policy", engine)
    assert ours.equals(by_hand)
    assert not ours.equals(on_policy)
    assert ours.logged("rollout/staleness") == [0, 1, 1, 1, 1]
    assert on_policy.logged("rollout/staleness") == [0, 0, 0, 0, 0]
    correction = "sampling/importance_sampling_ratio/mean"
    assert all(abs(ratio - 1) < 1e-5 for ratio in on_policy.logged(correction)), "sampled and trained at 1.3"
    assert all(abs(ratio - 1) > 1e-4 for ratio in ours.logged(correction)[1:])
    assert not engine.busy, "nothing is sampled that nobody will train on"


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_held_out_problems_between_steps_change_nothing(
    calculator: Path, engine: ProcessEngine, tmp_path: Path, max_staleness: int
) -> None:
    """They are answered by the weights of the moment, also while batches of older weights wait."""
    plain = Run(calculator, tmp_path / "plain", engine, max_staleness=max_staleness)
    answers: dict[int, list[list[Rollout]]] = {}
    asked = Sampling(n=2, max_tokens=12, temperature=0.7, seed=5)

    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with live.untouched():
                torch.rand(3)
                prompts = run[0].sampler.prompts(PROBLEMS[:3])
                answers[state.global_step] = run[0].sampler.held_out(prompts, asked, 64)

    run: list[Any] = []
    asking = Run(
        calculator, tmp_path / "asking", engine, max_staleness=max_staleness, callbacks=[Asks()], made=run.append
    )
    assert asking.equals(plain)
    assert asking.logged("reward") == plain.logged("reward")
    assert asking.logged("rollout/staleness") == plain.logged("rollout/staleness")
    versions = {step: {rollout.versions[0][0] for group in told for rollout in group} for step, told in answers.items()}
    assert versions == {step: {step} for step in range(1, STEPS + 1)}


def test_without_learning_it_makes_no_difference_to_be_ahead_and_to_sample_more_meanwhile(
    calculator: Path, engine: ProcessEngine, tmp_path: Path
) -> None:
    lengths = [LengthChange(step=1, max_tokens=30), LengthChange(step=3, max_tokens=6)]
    still = {"learning_rate": 0.0, "max_steps": 4, "length_schedule": lengths}
    on_policy = Run(calculator, tmp_path / "on-policy", engine, **still)
    ours = Run(calculator, tmp_path / "ours", engine, max_staleness=1, **still)
    assert ours.logged("max_tokens") == [24, 30, 30, 6]
    assert ours.logged("completions/max_length")[-1] == 6
    for metric in (
        "reward",
        "completions/mean_length",
        "completions/max_length",
        "sampling/sampling_logp_difference/max",
    ):
        assert ours.logged(metric) == on_policy.logged(metric)
    assert ours.logged("rollout/staleness") == [0, 1, 1, 1]
    refilled = Run(calculator, tmp_path / "refilled", engine, max_staleness=1, dynamic_sampling_rounds=1, **still)
    assert refilled.logged("rollout/staleness") == [0, 1, 1, 1]


def test_a_resumed_run_takes_up_what_was_sampled_ahead(
    calculator: Path, engine: ProcessEngine, ahead: Run, tmp_path: Path
) -> None:
    checkpoint = Path(ahead.trainer.args.output_dir) / "checkpoint-3"
    assert (checkpoint / SAMPLED_AHEAD).exists()
    resumed = Run(calculator, tmp_path, engine, resume=checkpoint, max_staleness=1, spare=0.5, save_steps=3)
    assert resumed.equals(ahead)
    assert resumed.logged("rollout/staleness")[-2:] == [1, 1]


def test_a_run_that_is_resumed_by_more_processes_samples_anew(
    calculator: Path, engine: ProcessEngine, ahead: Run, tmp_path: Path
) -> None:
    """Their generation batches are larger than the one that was sampled ahead; here one process has all of it."""
    checkpoint = Path(ahead.trainer.args.output_dir) / "checkpoint-3"
    rows = {"per_device_train_batch_size": 2 * GROUP * PROMPTS}
    resumed = Run(calculator, tmp_path, engine, resume=checkpoint, max_staleness=1, spare=0.5, save_steps=3, **rows)
    assert resumed.logged("rollout/staleness")[-2:] == [0, 1]


def test_an_adapter_is_sampled_ahead_refilled_and_resumed(
    calculator: Path, engine: ProcessEngine, tmp_path: Path
) -> None:
    """The engine holds base and adapter merged; the policy agrees with what it sampled wherever it is not ahead."""
    settings: dict[str, Any] = {"adapter": {"rank": 4}, "save_steps": 3, "beta": 0.05, "learning_rate": 2e-2}
    on_policy = Run(calculator, tmp_path / "on-policy", engine, **settings)
    assert all(abs(ratio - 1) < 1e-5 for ratio in on_policy.logged("sampling/importance_sampling_ratio/mean"))
    assert on_policy.logged("kl")[-1] > 0
    whole = Run(calculator, tmp_path / "whole", engine, max_staleness=1, dynamic_sampling_rounds=1, **settings)
    assert not whole.equals(on_policy)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = Run(
        calculator, tmp_path / "r", engine, checkpoint, max_staleness=1, dynamic_sampling_rounds=1, **settings
    )
    assert resumed.equals(whole)


def test_an_engine_killed_while_it_samples_changes_nothing(
    calculator: Path, engine: ProcessEngine, ahead: Run, tmp_path: Path
) -> None:
    before, killer = engine.restarts, after_steps(engine, 40)  # which is in the second batch or the third
    disturbed = Run(calculator, tmp_path, engine, max_staleness=1, spare=0.5, save_steps=3)
    killer.join()
    assert engine.restarts == before + 1
    assert disturbed.equals(ahead)


def test_the_engine_has_its_next_request_before_the_trainer_goes_on_with_a_batch(
    calculator: Path, engine: ProcessEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And prompts are tokenised once for the request, and once for the batch; not once for each rollout."""
    tokenize, submit = GRPOTrainer._tokenize_prompts, ProcessEngine.submit
    seen: list[int | str] = []

    def tokenized(trainer: Any, prompts: list[Any]) -> Any:
        seen.append(len(prompts))
        return tokenize(trainer, prompts)

    def submitted(process: ProcessEngine, *args: Any) -> int:
        seen.append("submitted")
        return submit(process, *args)

    monkeypatch.setattr(GRPOTrainer, "_tokenize_prompts", tokenized)
    monkeypatch.setattr(ProcessEngine, "submit", submitted)
    Run(calculator, tmp_path, engine, max_staleness=1)
    request, batch = [PROMPTS, "submitted"], [PROMPTS]
    assert seen == request + (request + batch) * (STEPS - 1) + batch


class Slow(Delayed):
    """Samples when it is waited for, with the weights of that moment; what is looked at first is ready, and no other.

    Attributes:
        log: what happened, each with the version of the weights or the prompts.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: dict[int, tuple[Sequence[Sequence[int]], Sampling]] = {}
        self.log: list[tuple[str, Any]] = []
        self.looked = 0

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.inner.load_weights(weights, version)
        self.log.append(("push", version))

    def submit(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, expected: Sequence[float] | None = None
    ) -> int:
        self.log.append(("submit", prompts))
        self.asked[len(self.log)] = prompts, sampling
        return len(self.log)

    def collect(self, ticket: int, progress: Any = None) -> list[list[Rollout]]:
        prompts, sampling = self.asked.pop(ticket)
        self.log.append(("collect", prompts))
        return self.inner.generate(prompts, sampling)

    def is_ready(self, ticket: int) -> bool:
        self.looked += 1
        return self.looked == 1


def test_a_deeper_queue_asks_as_soon_as_it_may_trains_in_order_and_is_part_of_checkpoints(
    calculator: Path, tmp_path: Path
) -> None:
    slow = Slow(calculator)
    run = Run(calculator, tmp_path / "run", slow, max_staleness=2, save_steps=3)
    order, tokenize = run.trainer.order, run.trainer.sampler.prompts
    prompts = [tokenize([run.trainer.train_dataset[row] for row in order.rows(number)]) for number in range(STEPS)]
    submit = [("submit", each) for each in prompts]
    collect = [("collect", each) for each in prompts]
    assert slow.log == [
        *[("push", 0), *submit[:3], collect[0]],
        *[("push", 1), submit[3], collect[1]],
        *[("push", 2), submit[4], collect[2]],
        collect[3],  # for the checkpoint, which does not wait for batch 4
        ("push", 3),
        *[("push", 4), collect[4]],
    ]
    assert run.logged("rollout/staleness") == run.logged("rollout/staleness_max") == [0, 0, 0, 1, 0]
    again = Slow(calculator)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    resumed = Run(calculator, tmp_path / "resumed", again, resume=checkpoint, max_staleness=2, save_steps=3)
    assert again.log == [("push", 3), submit[4], ("push", 4), collect[4]]
    assert resumed.equals(run), "since this engine samples at the same moments"


def test_an_engine_that_never_waits_is_killed_and_nothing_is_lost(calculator: Path, tmp_path: Path) -> None:
    """One of two that share the prompts, while weights arrive in the middle of what they sample."""
    spec = RolloutSpec(engine="transformers", batch_size=3, process=ProcessSpec(devices=["", "-1"]))
    engine = EnginePool(spec, str(calculator), logprobs=True, for_trainer=True)
    killer = after_steps(engine._engines[1], 60)
    try:
        run = Run(calculator, tmp_path, engine, max_staleness=2)
    finally:
        engine.close()
        killer.join()
    assert engine.restarts == 1
    assert run.trainer.state.global_step == STEPS
    assert max(run.logged("rollout/staleness_max")) <= 2
    assert all(0 <= age <= 2 for age in run.logged("rollout/staleness"))
    assert all(0 < size <= 1 + 1e-6 for size in run.logged("sampling/effective_sample_size")), "a share of the tokens"
    assert run.logged("sampling/effective_sample_size")[0] == pytest.approx(1)
    assert len(run.logged("rollout/engine_idle_seconds")) == STEPS


def test_spare_prompts_take_the_places_of_those_given_up(ahead: Run) -> None:
    """Three prompts are sampled for two places."""
    assert all(share in (0.0, 1 / 3) for share in ahead.logged("rollout/groups_given_up"))
    assert 1 / 3 in ahead.logged("rollout/groups_given_up")
    assert all(0 <= share < 1 for share in ahead.logged("rollout/tokens_given_up"))


def test_the_tail_is_given_up_once_enough_groups_are_complete(calculator: Path) -> None:
    engine = TransformersEngine(str(calculator), logprobs=True)
    prompts = engine.tokenizer([row["prompt"] for row in PROBLEMS], add_special_tokens=False)["input_ids"]
    how: dict[str, Any] = {"n": 3, "max_tokens": 40, "temperature": 1.5, "seed": 4}
    every = engine.generate(prompts, Sampling(**how))
    longest = [max(len(rollout.token_ids) for rollout in group) for group in every]
    assert len(set(longest)) > 2
    some = engine.generate(prompts, Sampling(**how, enough=3))
    kept = [at for at, group in enumerate(some) if complete(group)]
    assert len(kept) >= 3
    assert max(longest[at] for at in kept) <= min(longest[at] for at in range(len(prompts)) if at not in kept)
    for whole, cut in zip(every, some, strict=True):
        for mine, theirs in zip(cut, whole, strict=True):
            assert mine.token_ids == theirs.token_ids[: len(mine.token_ids)]
            assert mine.logprobs == pytest.approx(theirs.logprobs[: len(mine.token_ids)], abs=1e-5)
            assert mine.finish is (theirs.finish if mine.token_ids == theirs.token_ids else Finish.ABORT)
    engine.batch_size = 3
    late = engine.generate(prompts, Sampling(**how, enough=2))
    assert [complete(group) for group in late].count(True) == 2
    assert all(len(group) == 3 for group in late), "groups that were never begun are there, too"


def test_whoever_samples_ahead_asks_for_the_order_that_the_trainer_draws_from(ahead: Run) -> None:
    trainer, order, seen = ahead.trainer, ahead.trainer.order, []
    for epoch in range(3):
        trainer.state.epoch = epoch
        rows = list(trainer._get_train_sampler())
        assert len(rows) == len(trainer._get_train_sampler())
        seen += [rows[at : at + GROUP * PROMPTS : GROUP] for at in range(0, len(rows), GROUP * PROMPTS)]
    assert [order.rows(number) for number in range(9)] == seen
    assert sorted(row for rows in seen[:3] for row in rows) == list(range(len(PROBLEMS)))
    assert seen[:3] != seen[3:6] != seen[6:]
    assert order.number_at(STEPS) == STEPS
    assert [order.step_at(number) for number in range(9)] == list(range(9)), "a batch a step, three batches an epoch"


def test_batches_and_steps_are_told_apart_where_a_batch_serves_half_a_step() -> None:
    order = ProblemOrder(problems=6, groups=2, group=4, uses=4, accumulated=8, seed=0)
    assert [order.step_at(number) for number in range(7)] == [0, 0, 1, 2, 2, 3, 4], (
        "the last step of an epoch is halved"
    )
    assert [order.number_at(step) for step in range(5)] == [0, 2, 3, 5, 6]


def test_a_stage_opens_what_its_recipe_says(calculator: Path, tmp_path: Path) -> None:
    config = {
        "kind": "grpo",
        "model": str(calculator),
        "tasks": [{"use": "arithmetic", "problems": 8}],
        "rollout": {"max_staleness": 1, "spare": 0.5, "process": {"env": {"OMP_NUM_THREADS": "1"}}, "max_tokens": 9},
        "trainer": {"num_generations": GROUP, "per_device_train_batch_size": GROUP},
    }
    context = context_of(tmp_path, "zero", config, {})
    trainer = grpo.build(context, Judge(composite(context.config.rewards, context.config.tasks, context).parts))
    try:
        sampler = trainer.sampler
        assert isinstance(sampler, EngineSampler)
        assert (sampler.max_staleness, sampler.spare) == (1, 0.5)
        assert sampler.engine.spec.engine == "transformers"
        assert sampler.engine.settings.env == {"OMP_NUM_THREADS": "1"}
        assert sampler.sampling(0, 4).max_tokens == 9
    finally:
        trainer.sampler.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"engine": "vllm_server", "spare": 0.5}}, "is not told to give completions up"),
        ({"rollout": {"spare": 1.5}}, "less than or equal to 1"),
        (
            {"rollout": {"max_staleness": 1}, "trainer": {"vllm_importance_sampling_correction": False}},
            "importance weights must stay on",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_class("grpo").model_validate({"kind": "grpo", "model": "m", "tasks": ["gsm8k"], **changes})
