"""The page about 671B: its numbers are its command's, its simulation is 1F1B, and published totals enter none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import pages, v3_671b
from pipeline.cost.published import Number

PAGE = Path(__file__).parents[2] / "docs" / "results" / "v3-671b.md"


def test_the_page_has_the_tables_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert pages.placed(page, v3_671b.PAGE, v3_671b.markdown()) == page, (
        "run: python -m benchmarks.v3_671b --write docs/results/v3-671b.md"
    )


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 5), (2, 1), (4, 3), (4, 9), (16, 120)])
def test_the_simulated_pipeline_takes_what_1f1b_takes(stages: int, micro_batches: int) -> None:
    """(m + p - 1)(F + B): Narayanan et al., arXiv 2104.04473, section 2.2."""
    took = v3_671b.one_forward_one_backward(stages, micro_batches, 1.0, 2.0)
    assert took == pytest.approx(3.0 * (micro_batches + stages - 1))


def test_no_stage_does_two_things_at_once_and_none_too_early() -> None:
    """A slow network would show: with 3 stages and 2 micro-batches, every start can be written down by hand."""
    assert v3_671b.one_forward_one_backward(3, 2, 1.0, 1.0) == 8.0
    assert v3_671b.one_forward_one_backward(2, 2, 1.0, 3.0) == 12.0


def test_published_totals_enter_nothing_that_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(*row[:3], "") for row in v3_671b.pretraining()]
    monkeypatch.setattr(v3_671b, "STEP", Number(1.0, "", ""))
    monkeypatch.setattr(v3_671b, "BUBBLE", Number(1.0, "", ""))
    assert [(*row[:3], "") for row in v3_671b.pretraining()] == before


def test_an_engine_holds_what_a_count_by_hand_says() -> None:
    """61 layers with 70,272 bytes a token of latents in BF16; 58 layers of 256 experts of three matrices in FP8."""
    parts = v3_671b.engine_memory(16, "H800")
    experts = 58 * 256 * 3 * 7168 * 2048
    assert parts["experts"] == pytest.approx(experts * (1 + 4 / 128**2) / 16)
    assert sum(parts.values()) == pytest.approx(0.9 * 85e9)
    (row,) = (row for row in v3_671b.engines() if row[0] == "16 H800")
    assert row[-1] == f"{16 * parts['cache'] / 70_272 / 1e6:.1f}M"


def test_a_layer_takes_what_the_trace_says_until_traffic_is_longer() -> None:
    one = v3_671b.layer()
    assert 4 * one.seconds == pytest.approx(0.129)
    assert min(dataclasses.astuple(one)) > 0
    slow = dataclasses.replace(one, traffic=1.0)
    assert slow.seconds == 1.0


def test_every_assumption_has_a_source() -> None:
    rows = list(v3_671b.assumptions())
    assert all(all(row) and len(row) == 3 for row in rows)
    assert len({row[1] for row in rows}) == len(rows)
    text = PAGE.read_text(encoding="utf-8")
    for number, what, source in rows:
        assert f"| {number} | {what} | {source} |" in text
