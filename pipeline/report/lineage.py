"""The graph of a run's stages as inline SVG: who comes from whom, with sizes, times and scores.

Layers by longest path, crossings reduced by barycentres, long edges led around the boxes through place-holders: the
usual recipe for layered drawings (Sugiyama, Tagawa, Toda 1981). It is drawn once from left to right for wide windows
and once from top to bottom for narrow ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from pipeline.report.run_data import Run, Stage, State, parameters
from pipeline.report.scores import Table
from pipeline.report.text import amount, clean, finite, percent

BOX_WIDTH, BOX_HEIGHT = 112, 60  # CSS pixels
NAME_FITS, KIND_FITS, KIND_FITS_BESIDE_SCORE = 15, 17, 11  # characters in a box
GAP_ALONG = {"across": 18, "down": 34}  # between layers
GAP_BESIDE = 18  # between boxes of one layer
LANE = 14  # that a passing edge takes in a layer
MARGIN = 4
MOST_INPUTS_DRAWN = 2  # an evaluation of more stages gets no edges: the models carry their scores instead
SWEEPS = 8

Node = tuple[str, int]
"""A stage (name, -1), or the place-holder of an edge in some layer (edge, layer)."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies, in units along (layers) and beside (within a layer)."""

    layer: Mapping[str, int]
    beside: Mapping[Node, float]
    edges: list[tuple[str, str]]


def lineage(run: Run, table: Table) -> str:
    """Both drawings, as SVG elements of class `across` and `down`."""
    plan = layout(run)
    facts = {name: _facts(stage, table) for name, stage in run.stages.items()}
    return "".join(_draw(run, plan, facts, direction) for direction in ("across", "down"))


def layout(run: Run) -> Layout:
    """Layers by longest path, then an order within each layer, then places."""
    inputs = {name: [i for i in stage.inputs if i in run.stages and i != name] for name, stage in run.stages.items()}
    layer: dict[str, int] = {}
    for name in run.stages:  # each after its inputs
        layer[name] = max((layer[i] + 1 for i in inputs[name] if i in layer), default=0)
    gathers = {n for n, s in run.stages.items() if s.kind == "evaluate" and len(inputs[n]) > MOST_INPUTS_DRAWN}
    edges = [(i, n) for n in run.stages if n not in gathers for i in inputs[n] if layer[i] < layer[n]]
    rows: dict[int, list[Node]] = defaultdict(list)
    near: dict[Node, list[Node]] = defaultdict(list)
    for name in run.stages:
        rows[layer[name]].append((name, -1))
    for start, end in edges:
        path: list[Node] = [(start, -1), *_lane(start, end, layer), (end, -1)]
        for node in path[1:-1]:
            rows[node[1]].append(node)
        for one, other in pairwise(path):
            near[one].append(other)
            near[other].append(one)
    for name in gathers:
        near[name, -1] = [(i, -1) for i in inputs[name]]
    return Layout(layer, _place(rows, near), edges)


def _lane(start: str, end: str, layer: Mapping[str, int]) -> list[Node]:
    return [(f"{start}\0{end}", level) for level in range(layer[start] + 1, layer[end])]


def _place(rows: Mapping[int, list[Node]], near: Mapping[Node, list[Node]]) -> dict[Node, float]:
    """Let every node drift towards its neighbours, layer by layer, without overlaps."""
    at = {node: float(index) for row in rows.values() for index, node in enumerate(row)}
    levels = sorted(rows)
    for sweep in range(SWEEPS):
        for level in levels if sweep % 2 == 0 else levels[::-1]:
            wish = {n: sum(at[m] for m in near[n]) / len(near[n]) if near[n] else at[n] for n in rows[level]}
            row = sorted(rows[level], key=wish.__getitem__)
            spread: list[float] = []
            for node, before in zip(row, [None, *row], strict=False):
                room = spread[-1] + (_room(node) + _room(before)) / 2 if before else wish[node]
                spread.append(max(wish[node], room) if before else room)
            shift = sum(wish[node] - place for node, place in zip(row, spread, strict=True)) / len(row)
            at.update({node: place + shift for node, place in zip(row, spread, strict=True)})
    lowest = min(at.values(), default=0.0)
    return {node: place - lowest for node, place in at.items()}


def _room(node: Node) -> float:
    """Room beside, in units of a box with its gap."""
    return 1.0 if node[1] < 0 else LANE / BOX_HEIGHT


def _draw(run: Run, plan: Layout, facts: Mapping[str, tuple[str, str]], direction: str) -> str:
    across = direction == "across"
    along_step = (BOX_WIDTH if across else BOX_HEIGHT) + GAP_ALONG[direction]
    beside_step = (BOX_HEIGHT if across else BOX_WIDTH) + GAP_BESIDE

    def centre(level: int, beside: float) -> tuple[float, float]:
        along, side = level * along_step, beside * beside_step
        x, y = (along, side) if across else (side, along)
        return x + BOX_WIDTH / 2 + MARGIN, y + BOX_HEIGHT / 2 + MARGIN

    half = (BOX_WIDTH if across else BOX_HEIGHT) / 2
    paths = []
    for start, end in plan.edges:
        (x0, y0), (x1, y1) = (centre(plan.layer[n], plan.beside[n, -1]) for n in (start, end))
        first, last = ((x0 + half, y0), (x1 - half, y1)) if across else ((x0, y0 + half), (x1, y1 - half))
        between = []
        for node in _lane(start, end, plan.layer):
            x, y = centre(node[1], plan.beside[node])
            between += [(x - half, y), (x + half, y)] if across else [(x, y - half), (x, y + half)]
        paths.append(_curve([first, *between, last], across, _title(f"{start} → {end}")))
    boxes = [_box(stage, *centre(plan.layer[n], plan.beside[n, -1]), *facts[n]) for n, stage in run.stages.items()]
    corners = [centre(plan.layer[n[0]] if n[1] < 0 else n[1], place) for n, place in plan.beside.items()]
    width = max((x for x, _ in corners), default=0) + BOX_WIDTH / 2 + MARGIN
    height = max((y for _, y in corners), default=0) + BOX_HEIGHT / 2 + MARGIN
    return (
        f'<svg class="lineage {direction}" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" '
        f'role="img" aria-label="Graph of the stages">{"".join(paths)}{"".join(boxes)}</svg>'
    )


def _curve(points: list[tuple[float, float]], across: bool, title: str) -> str:
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
        middle = f"{xm:.1f} {y0:.1f} {xm:.1f} {y1:.1f}" if across else f"{x0:.1f} {ym:.1f} {x1:.1f} {ym:.1f}"
        path += f"C{middle} {x1:.1f} {y1:.1f}"
    return f'<path class="edge" d="{path}">{title}</path>'


def _box(stage: Stage, x: float, y: float, fact: str, score: str) -> str:
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    kind = _fit(stage.kind.replace("_", " "), KIND_FITS_BESIDE_SCORE if score else KIND_FITS)
    lines = [f'<text class="name" x="10" y="19">{_fit(stage.name, NAME_FITS)}</text>']
    lines.append(f'<text x="10" y="35">{kind}</text>')
    lines.append(f'<text x="10" y="50">{escape(fact)}</text>')
    if score:
        lines.append(f'<text class="score" x="{BOX_WIDTH - 8}" y="35" text-anchor="end">{escape(score)}</text>')
    return (
        f'<g class="box kind-{kind_class(stage.kind)} {stage.state.value}" transform="translate({left:.1f} {top:.1f})">'
        f"{_title(f'{stage.name}: {stage.kind}, {stage.state.value}')}"
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"/><path class="stripe" d="M2 3v{BOX_HEIGHT - 6}"/>'
        f"{''.join(lines)}</g>"
    )


def kind_class(kind: str) -> str:
    """The CSS class suffix of a stage kind; kinds that nobody knows share one."""
    known = ("import_model", "pretrain", "sft", "grpo", "rejection_sample", "distill", "evaluate", "export")
    return kind.replace("_", "-") if kind in known else "other"


def _facts(stage: Stage, table: Table) -> tuple[str, str]:
    """The line of facts in a stage's box (parameters or rows, time), and its score."""
    if stage.state is not State.FINISHED:
        return stage.state.value, ""
    count, rows = parameters(stage), finite(stage.metrics.get("kept", stage.metrics.get("rows")))
    parts = [amount(count)] if count else [f"{amount(rows)} rows"] if rows is not None else []
    if stage.seconds is not None:
        parts.append(_short(stage.seconds))
    main = table.main()
    score = main.scores.get(stage.name) if main else None
    value = score.values.get("pass@1") if score else None
    return " · ".join(parts), "" if value is None else f"{percent(value, 0)} %"


def _short(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _fit(text: str, characters: int) -> str:
    shown = clean(text)
    return escape(shown if len(shown) <= characters else shown[: characters - 1] + "…")


def _title(text: str) -> str:
    return f"<title>{escape(clean(text))}</title>"
