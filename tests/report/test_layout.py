"""The graph of the stages and the time axis, checked as geometry."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.lineage import BOX_HEIGHT, BOX_WIDTH, layout, lineage
from pipeline.report.run_data import Run, Stage, in_order, read_run
from pipeline.report.scores import build_table
from pipeline.report.timeline import LONGEST_PAUSE, busy_seconds, timeline
from tests.report import nano_run


def boxes(svg: ElementTree.Element) -> dict[str, tuple[float, float]]:
    found = {}
    for group in svg.iter("g"):
        x, y = re.findall(r"[-\d.]+", group.attrib["transform"])
        found["".join(group.find("title").itertext()).split(":")[0]] = (float(x), float(y))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("direction", ["across", "down"])
def test_boxes_do_not_overlap_and_edges_run_forward(nano: Path, direction: str) -> None:
    run = read_run(nano)
    drawn = ElementTree.fromstring(f"<x>{lineage(run, build_table(run))}</x>")
    svg = next(svg for svg in drawn if direction in svg.attrib["class"])
    places = boxes(svg)
    assert set(places) == set(nano_run.STAGES)
    for name, (x, y) in places.items():
        for other, (x2, y2) in places.items():
            assert name == other or abs(x - x2) >= BOX_WIDTH or abs(y - y2) >= BOX_HEIGHT, (name, other)
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert all(0 <= x <= width - BOX_WIDTH and 0 <= y <= height - BOX_HEIGHT for x, y in places.values())
    for start, end in layout(run).edges:
        axis = 0 if direction == "across" else 1
        assert places[start][axis] < places[end][axis]


def test_layers_are_longest_paths_and_every_use_is_an_edge(nano: Path) -> None:
    plan = layout(read_run(nano))
    chain = ["base", "zero", "cold_data", "dev1", "dev2", "samples", "dev3", "r1", "score"]
    assert [plan.layer[name] for name in chain] == list(range(9))
    wanted = {(i, name) for name, c in nano_run.STAGES.items() if name != "score" for i in nano_run.inputs(c)}
    assert set(plan.edges) == wanted  # an evaluation of many models is drawn without edges


def test_small_evaluations_keep_their_edges(tmp_path: Path) -> None:
    stages = {"a": {"kind": "import_model", "model": "m"}, "s": {"kind": "evaluate", "model": "@a"}}
    assert layout(read_run(nano_run.build(tmp_path / "run", stages))).edges == [("a", "s")]


def test_wide_and_cyclic_graphs_are_laid_out() -> None:
    names = [f"s{i}" for i in range(40)]
    stages = {n: Stage(n, "sft", tuple(names[max(0, i - 3) : i : 2]), {}) for i, n in enumerate(names)}
    stages["s0"] = replace(stages["s0"], inputs=("s39",))  # cannot happen in a checked recipe; must not hang
    run = Run(Path(), "x", "", in_order(stages), {}, {})
    assert set(layout(run).layer) == set(names)


def spans(**at: tuple[float, float]) -> Run:
    def manifest(start: float, end: float) -> dict[str, Any]:
        stamps = [(nano_run.START + timedelta(seconds=s)).isoformat() for s in (start, end)]
        return {"started": stamps[0], "finished": stamps[1], "seconds": end - start}

    from pipeline.report.run_data import State

    stages = {n: Stage(n, "sft", (), {}, State.FINISHED, Path(), manifest(*s)) for n, s in at.items()}
    return Run(Path(), "x", "", stages, {}, {})


def test_stages_side_by_side_share_the_axis(nano: Path) -> None:
    run = read_run(nano)
    drawn = timeline(run)
    assert busy_seconds(run) == 581.0 and not drawn.pauses
    bars = {bar.stage: bar for bar in drawn.bars}
    for name, (start, end) in nano_run.SPANS.items():
        assert bars[name].left == pytest.approx(100 * start / 581)
        assert bars[name].width == pytest.approx(100 * (end - start) / 581)


def test_a_night_between_two_stages_is_squeezed_and_marked() -> None:
    night = 12 * 3600.0
    run = spans(a=(0, 100), b=(100 + night, 200 + night))
    drawn = timeline(run)
    assert busy_seconds(run) == 200.0
    (pause,) = drawn.pauses
    assert pause.label == "12 h 00 min" and pause.width == pytest.approx(100 * LONGEST_PAUSE / (1 + LONGEST_PAUSE))
    first, second = drawn.bars
    assert first.left == 0 and second.left + second.width == pytest.approx(100)
    assert first.width == pytest.approx(second.width)


def test_ticks_are_few_and_rising() -> None:
    for seconds in (0.4, 7, 59, 581, 3_700, 90_000, 3_000_000):
        ticks = timeline(spans(a=(0, seconds))).ticks
        places = [place for place, _ in ticks]
        assert len(ticks) <= 10 and places[0] == 0 and all(a < b <= 100 for a, b in pairwise(places))
