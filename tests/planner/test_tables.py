"""What measured runs took, held against their plans, and the tables of the docs that are made from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fits as small
from benchmarks import pages, planner

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_says_what_fits_as_it_is_planned_today() -> None:
    page = (ROOT / "docs" / "guides" / "memory.md").read_text("utf-8")
    begin, end = pages.markers(small.PAGE)
    table = page.partition(begin)[2].partition(end)[0]
    rows = {tuple(line.strip("| ").split(" | ")[:2]): line for line in table.splitlines() if "GB" in line}
    assert rows.keys() == {(model, way) for model in small.MODELS for way in small.WAYS}
    for model, way in (("1.5B", "LoRA"), ("7B", "QLoRA")):
        found = small.measured(ROOT / small.RESULTS).get(small.name(model, way, 1024))
        cell = small.cell(small.MODELS[model], way, 1024, found)
        assert cell in rows[model, way], "python -m benchmarks.fits --write it"


def test_measured_runs_are_planned_within_what_is_promised() -> None:
    """Peaks within 15 % and times within 30 %, but for misses that the page tells."""
    rows = [row for row in planner.table() if row.result not in planner.newer()]
    assert len(rows) > 25
    missed = {(row.result, row.run) for row in rows if abs(row.memory_error) > planner.MEMORY_BOUND}
    assert missed == {("grpo-h200-step", "ours"), ("grpo-h200-step", "stock")}
    late = {(row.result, row.run) for row in rows if abs(row.time_error or 0.0) > planner.TIME_BOUND}
    assert late == {("probe-h200", "before probe"), ("probe-h200", "after probe")}


def test_every_result_with_a_peak_on_a_gpu_is_in_the_table() -> None:
    with_peak = {
        file.stem
        for file in (ROOT / "benchmarks" / "results").glob("*h200*.json")
        if any(f'"{word}"' in file.read_text() for word in ("peak_gb", "peak_gib", "peak_mib"))
    }
    assert with_peak == {row.result for row in planner.table()}


def test_a_page_without_a_place_for_a_table_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("# A page\n", "<!-- benchmarks.fits -->\nthe end is missing\n"):
        page.write_text(text)
        with pytest.raises(ValueError, match=r"put <!-- benchmarks\.fits --> and <!-- /benchmarks\.fits --> where"):
            pages.tell("fits", "| a |", page)
        assert page.read_text() == text
    page.write_text("before\n<!-- benchmarks.fits -->\nold\n<!-- /benchmarks.fits -->\nbehind\n")
    pages.tell("fits", "| a |", page)
    assert page.read_text() == "before\n<!-- benchmarks.fits -->\n\n| a |\n\n<!-- /benchmarks.fits -->\nbehind\n"


def test_the_page_has_the_table_of_today() -> None:
    page = (ROOT / "docs" / "results" / "planning.md").read_text(encoding="utf-8")
    assert pages.placed(page, planner.PAGE, planner.markdown(planner.table())) == page, (
        "run: python -m benchmarks.planner --write docs/results/planning.md"
    )
