"""The pool of problems: against a plain simulation of its rule, whoever asks early, and after a resumption."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from pipeline.rollout.process import ProcessEngine
from pipeline.schema.efficiency import PoolSpec
from pipeline.schema.pieces import RolloutSpec
from pipeline.stages.registry import config_class
from pipeline.training.grpo.pool import FILE, Outcome, PooledOrder, learn
from pipeline.training.grpo.problem_order import ProblemOrder
from tests.training.engine_runs import GROUP, Run

PLAIN = ProblemOrder(problems=40, groups=4, group=4, uses=1, accumulated=1, seed=3)


def pooled(lag: int = 0, plain: ProblemOrder = PLAIN, **rests: float) -> PooledOrder:
    return PooledOrder.following(plain, PoolSpec(**rests), lag - 2)


def outcome(row: int) -> Outcome:
    """Every fourth problem is solved, every fourth hopeless."""
    return (Outcome.SOLVED, Outcome.LIVE, Outcome.FAILED, Outcome.LIVE)[row % 4]


def drawn(order: PooledOrder, batches: int) -> list[list[int]]:
    found = []
    for number in range(batches):
        found.append(order.rows(number))
        order.learn(number, {row: outcome(row) for row in found[-1]})
    return found


def test_the_first_epoch_is_that_without_a_pool() -> None:
    assert [sorted(rows) for rows in drawn(pooled(), 5)] == [sorted(PLAIN.rows(number)) for number in range(5)]


def test_problems_that_teach_nothing_come_up_less_often() -> None:
    epochs = 30
    counts = Counter(row for rows in drawn(pooled(solved=4, failed=2), 10 * epochs) for row in rows)
    seen = {kind: [counts[row] for row in range(40) if outcome(row) is kind] for kind in Outcome}
    mean = {kind: sum(of) / len(of) for kind, of in seen.items()}
    assert min(seen[Outcome.SOLVED]) >= 2, "nothing is forgotten"
    assert mean[Outcome.LIVE] / mean[Outcome.FAILED] == pytest.approx(2, rel=0.15)
    assert mean[Outcome.LIVE] / mean[Outcome.SOLVED] > 8, "4, 8, 12 and 16 times"
    assert sum(counts.values()) == 4 * 10 * epochs


def test_a_solved_problem_that_is_solved_no_more_is_drawn_as_others_are() -> None:
    order = pooled(solved=3)
    for number in range(400):
        rows = order.rows(number)
        order.learn(number, dict.fromkeys(rows, Outcome.SOLVED if number < 100 else Outcome.LIVE))
    late = Counter(row for number in range(300, 400) for row in order.rows(number))
    assert min(late.values()) >= 6 and len(late) == 40, "ten times each, on average"
    assert order.shares() == {"solved": 0.0, "failed": 0.0}


@pytest.mark.parametrize(
    "rows",
    [
        [("a", str(n)) for n in range(20)] * 2,  # a weight of 2
        [(task, str(n)) for task in "ab" for n in range(20)],  # two tasks that count their problems alike
    ],
)
def test_rows_that_share_an_id_have_outcomes_of_their_own(rows: list[tuple[str, str]]) -> None:
    """The rollouts of a batch say which problems they are of; a row that did not come up learns nothing."""
    order = pooled(2)
    dataset = Dataset.from_list([{"task": task, "id": identity} for task, identity in rows])
    trainer = SimpleNamespace(order=order, train_dataset=dataset, _metrics={"train": defaultdict(list)})
    for number in range(30):
        trainer.batch_number, planned = number, order.rows(number)
        problems = [dataset[row] for row in planned for _ in range(order.group)]
        failed = torch.tensor([row % 2 == 1 for row in planned])
        learn(trainer, problems, ~failed & False, failed)
        assert order.account.outcomes[number].keys() == set(planned)
    if len(set(rows)) == len(rows):
        assert order.account.last[21][0] is Outcome.FAILED and order.account.last[20][0] is Outcome.LIVE


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_batch_is_the_same_whoever_asks_early(ahead: int) -> None:
    late, early = pooled(lag=ahead + 2), pooled(lag=ahead + 2)
    expected = drawn(late, 100)
    for number in range(100):
        assert early.rows(number + ahead + 1)  # before this one is judged
        early.learn(number, {row: outcome(row) for row in early.rows(number)})
    assert [early.rows(number) for number in range(100)] == expected
    with pytest.raises(RuntimeError, match="batch 103 is planned before the outcomes of batch 101 are known"):
        pooled_far = pooled(lag=2)
        drawn(pooled_far, 101)
        pooled_far.rows(103)


def test_what_was_planned_follows_from_a_checkpoint(tmp_path: Path) -> None:
    untouched, killed = pooled(), pooled()
    expected = drawn(untouched, 80)
    drawn(killed, 50)
    killed.save(tmp_path)
    resumed = pooled()
    resumed.load(tmp_path)
    assert [resumed.rows(number) for number in range(50)] == expected[:50], "which a data loader skips"
    for number in range(50, 80):
        assert resumed.rows(number) == expected[number]
        resumed.learn(number, {row: outcome(row) for row in expected[number]})


def test_it_holds_against_a_plain_simulation() -> None:
    """The rule again, with a sorted list in place of a heap, and all in one loop."""
    rng = random.Random(5)
    order = pooled(solved=2, failed=3)
    epoch = 10.0
    due = {row: at / 4 for at, row in enumerate(row for number in range(10) for row in PLAIN.rows(number))}
    last: dict[int, tuple[Outcome, int]] = {}
    history: list[dict[int, Outcome]] = []
    taken: dict[int, float] = {}

    def jitter(row: int, number: int) -> float:
        return random.Random(f"3 {row} {number}").uniform(0.5, 1.5)

    for number in range(60):
        if number >= 2:
            for row, became in history[number - 2].items():
                before, times = last.get(row, (became, 0))
                last[row] = became, (times + 1 if before is became else 1)
                rest = {Outcome.SOLVED: 2.0 * min(4, last[row][1]), Outcome.FAILED: 3.0}.get(became)
                if rest is not None:
                    due[row] = max(due[row], taken[row] + epoch * rest * jitter(row, number - 2))
        expected = sorted(range(40), key=lambda row: (due[row], row))[:4]
        for row in expected:
            taken[row] = due[row]
            due[row] += epoch * jitter(row, number)
        assert order.rows(number) == expected
        history.append({row: rng.choice(list(Outcome)) for row in expected})
        order.learn(number, history[-1])


def test_a_recipe_may_not_have_workers_ask_too_early() -> None:
    config = {"kind": "grpo", "model": "m", "tasks": ["chain"], "pool": {"solved": 4}}
    assert config_class("grpo").model_validate(config).pool.failed == 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"pool: set trainer.dataloader_num_workers to 0"):
        config_class("grpo").model_validate({**config, "trainer": {"dataloader_num_workers": 2}})


@pytest.fixture(scope="module")
def engine(calculator: Path) -> Iterator[ProcessEngine]:
    made = ProcessEngine(RolloutSpec(engine="transformers"), str(calculator), logprobs=True, for_trainer=True)
    yield made
    made.close()


def third_is_solved(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Every rollout of a sum of zero is right, and of a sum with four wrong; others differ."""
    return [
        1.0 if "0 + 0" in prompt else 0.0 if "4" in prompt else float(len(set(ids)) % 5)
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


SUMS = [(1, 2), (3, 1), (0, 0), (4, 4), (2, 2), (1, 0)]
PROBLEMS = [{"prompt": f"User: {a} + {b} =\nAssistant:\n", "id": f"{a}+{b}"} for a, b in SUMS]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_resumed_run_ends_in_the_same_weights(
    ahead: int, calculator: Path, engine: ProcessEngine, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"pool": PoolSpec(solved=4, failed=3), "problems": PROBLEMS, "reward": third_is_solved}
    given |= {"max_staleness": ahead, "max_steps": 8, "save_steps": 5}
    untouched = Run(calculator, tmp_path / "untouched", engine, **given)
    checkpoint = tmp_path / "untouched" / "checkpoint-5"
    assert (checkpoint / FILE).exists()
    resumed = Run(calculator, tmp_path / "resumed", engine, resume=checkpoint, **given)
    assert resumed.equals(untouched)
    orders = [[run.trainer.order.rows(number) for number in range(8)] for run in (untouched, resumed)]
    assert orders[0] == orders[1]
    assert untouched.logged("pool/solved")[-1] > 0
    counts = Counter(row for rows in orders[0] for row in rows)
    assert counts[2] < max(counts.values()), "the solved sum rests"
    assert sum(counts.values()) == 8 * 8 // GROUP
