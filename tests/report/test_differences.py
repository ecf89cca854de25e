"""Differences between scores against published intervals and against what repeated sampling shows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.differences import Difference, difference, outcomes
from pipeline.report.run_data import read_run
from pipeline.report.scores import Score
from pipeline.sampling.scores import interval
from tests.report import nano_run


def score(means: list[float], samples: int = 1) -> Score:
    low, high = interval(means, samples)
    return Score(len(means), samples, {"pass@1": sum(means) / len(means)}, low, high, "", {})


def named(means: list[float]) -> dict[tuple[str, str, str], float]:
    return {(str(at), "", ""): mean for at, mean in enumerate(means)}


def test_unpaired_interval_is_the_published_one() -> None:
    """Newcombe 1998, table II, example (a), method 10: 56/70 against 48/80 is 0.20 with 0.0524 to 0.3339."""
    found = difference(score([1.0] * 56 + [0.0] * 14), score([1.0] * 48 + [0.0] * 32), {}, {})
    assert found is not None and not found.paired
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_paired_interval_holds_the_truth_as_often_as_it_says(shared: float) -> None:
    """Two models whose answers to a problem are right together as often as `shared`; the truth is 0.15."""
    noise, held, narrower, runs, n = random.Random(5), 0, 0, 400, 150
    for _ in range(runs):
        new, old = [], []
        for _ in range(n):
            luck = noise.random()
            new.append(float(luck < 0.7))
            old.append(float((luck if noise.random() < shared else noise.random()) < 0.55))
        paired = difference(score(new), score(old), named(new), named(old))
        apart = difference(score(new), score(old), {}, {})
        assert paired is not None and apart is not None and paired.paired
        held += paired.low <= 0.15 <= paired.high
        narrower += paired.high - paired.low < apart.high - apart.low
    assert 0.92 <= held / runs <= 0.98
    assert narrower / runs > (0.99 if shared else 0.2)


def test_extremes_have_intervals_and_nothing_is_certain() -> None:
    none, every = [0.0] * 200, [1.0] * 200
    lost = difference(score(none), score(every), named(none), named(every))
    assert lost is not None and lost.value == -1.0 and lost.low == -1.0 and -0.98 < lost.high < -0.95
    same = difference(score(none), score(none), named(none), named(none))
    assert same is not None and same.value == 0.0 and -0.03 < same.low < 0 < same.high < 0.03 and not same.clear()


def test_pairs_need_the_very_same_problems() -> None:
    means = [1.0, 0.0] * 20
    for other in (named(means[:-2]), {(a, "another question", c): v for (a, _, c), v in named(means).items()}, {}):
        found = difference(score(means), score(means), named(means), other)
        assert found is not None and not found.paired
    assert difference(score(means), Score(5, 1, {"pass@1": 1.0}, None, None, "", {}), {}, {}) is None


def test_the_largest_of_many_must_be_clearer() -> None:
    found = Difference(-0.05, -0.095, -0.005, True, 100)
    assert found.clear() and not found.clear(20) and Difference(-0.2, -0.25, -0.15, True, 100).clear(20)


def test_chance_is_that_of_the_commonest_gold(tmp_path: Path) -> None:
    def rows(grader_compares: bool) -> list[dict[str, Any]]:
        golds = ["4"] * 12 + ["7"] * 10 + ["9"] * 18
        return [
            {
                "task": "t", "id": str(at), "question": f"q{at}", "answer": gold, "completion": gold, "model": "base",
                "status": "correct", "score": 1.0, "extracted": gold if grader_compares else f"{gold} + 0",
            }
            for at, gold in enumerate(golds)
        ]  # fmt: skip

    stages = {"base": {"kind": "import_model", "model": "m"}, "score": {"kind": "evaluate", "model": "@base"}}
    for compares, expected in ((True, 0.45), (False, None)):
        run = nano_run.build(tmp_path / str(compares), stages, samples={"score": rows(compares)})
        assert outcomes(read_run(run)).chance("t") == expected
        assert outcomes(read_run(run)).chance("another") is None
