"""Figures as inline SVG whose colours and fonts are the page's own, so that they follow its light or dark scheme.

Matplotlib draws with stand-in colours; each is then replaced by a CSS variable. Figures are drawn about as wide as
they are shown, so that their text has the size of the page's small print.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

UNITS_PER_INCH = 72  # of the SVG backend
SMALL = 10.5  # units; text of ticks and labels
MOST_POINTS = 400  # drawn of one line; longer series are averaged in bins
SMOOTHING_SHARE, SMOOTHING_LEAST = 12, 5  # the running mean spans a twelfth of a series, and at least 5 points
FEWEST_TO_SMOOTH = 12  # points; shorter series are drawn as they are
LONGEST_LABEL = 20  # characters
RELAXATIONS = 30  # passes that push touching labels apart
LABEL_HEIGHT = 13.0  # units, between the labels of two lines

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0a0a{index:02x}" for index in range(1, 7))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", SURFACE: "--surface"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES, 1)
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zero2r1",
    "text.parse_math": False,
    "font.size": SMALL,
    "font.sans-serif": ["DejaVu Sans"],
    "path.simplify_threshold": 0.3,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Line:
    """One series of a panel: points (x, y), a label that stands at its end, and an index into the palette.

    With an interval (low, high) for each point, the points are drawn as they are, the interval behind them.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """A drawn figure: its title, the inline SVG, and a note that stands below it."""

    title: str
    svg: str
    note: str = ""


def line_panel(
    title: str,
    lines: Sequence[Line],
    identity: str,
    share: bool = False,
    size: tuple[float, float] = (290, 190),
) -> Panel:
    """Raw values faint, a running mean strong, each line labelled at its end.

    Args:
        title: what is drawn.
        lines: one or more series.
        identity: unique on the page; prefix of all ids in the SVG.
        share: values are shares, shown in percent.
        size: width and height in CSS pixels at full size.
    """

    lines = [replace(line, label=_fitting(line.label)) for line in lines]

    def draw(axes: Any) -> None:
        ends = []
        for line in lines:
            scale, colour = 100 if share else 1, SERIES[line.colour % len(SERIES)]
            if line.low:
                low, high = (np.asarray(bound, float) * scale for bound in (line.low, line.high))
                axes.fill_between(line.x, low, high, color=colour, alpha=0.16, linewidth=0)
                axes.plot(line.x, np.asarray(line.y, float) * scale, color=colour, linewidth=1.9, marker="o", ms=2.6)
                ends.append((line.label, colour, line.y[-1] * scale))
                continue
            x, y = _binned(np.asarray(line.x, float), np.asarray(line.y, float) * scale)
            smooth = _running_mean(y)
            if len(x) >= FEWEST_TO_SMOOTH:
                axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.32)
            axes.plot(x, smooth, color=colour, linewidth=1.9)
            ends.append((line.label, colour, smooth[-1]))
        axes.margins(x=0.01, y=0.08)
        if share:
            axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 102))
        _scale(axes, "y", " %" if share else "", grid=True)
        _scale(axes, "x", "", grid=False)
        axes.annotate("step", (1, 0), (0, -22), "axes fraction", "offset points", color=MUTED, ha="right", va="top")
        if len(lines) > 1:
            _label_ends(axes, ends)

    widest = max(len(line.label) for line in lines) if len(lines) > 1 else 0
    last = ", ".join(f"{line.label} ends at {line.y[-1]:.4g}" for line in lines)
    return Panel(title, draw_svg(draw, identity, size, right=14 + 6.3 * widest, label=f"{title}: {last}"))


def interval_panel(
    title: str, rows: Sequence[tuple[str, float, float | None, float | None]], identity: str, share: bool
) -> Panel:
    """A dot a row, with its interval as a whisker and the value in figures; rows are (label, value, low, high)."""
    scale = 100 if share else 1
    rows = [(_fitting(label), value, low, high) for label, value, low, high in rows]

    def draw(axes: Any) -> None:
        top = scale * max(high if high is not None else value for _, value, _, high in rows)
        for place, (label, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([scale * low, scale * high], [place, place], color=SERIES[0], linewidth=5, alpha=0.3)
            axes.plot([scale * value], [place], "o", color=SERIES[0], markersize=6)
            text = f"{scale * value:.1f} %" if share else f"{value:,.1f}"
            end = scale * (high if high is not None else value)
            axes.text(end + 0.03 * top, place, text, color=INK, va="center")
            axes.text(-0.02, place, label, color=INK, ha="right", va="center", transform=axes.get_yaxis_transform())
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.19 * top or 1)
        _scale(axes, "x", " %" if share else "", grid=True, most=100 if share else math.inf)

    widest = max(len(label) for label, *_ in rows)
    words = ", ".join(f"{label} {scale * value:.1f}" for label, value, *_ in rows)
    height = 44 + 25 * len(rows)
    return Panel(title, draw_svg(draw, identity, (440, height), left=14 + 6.6 * widest, label=f"{title}: {words}"))


def draw_svg(
    draw: Callable[[Any], None],
    identity: str,
    size: tuple[float, float],
    left: float = 44,
    right: float = 14,
    label: str = "",
) -> str:
    """Let `draw` fill one pair of axes, and return it as SVG for the page; margins in CSS pixels."""
    width, height = size
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        bottom = 34
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + 10) / height))
        axes.set_axis_off()
        axes.plot([0, 1], [0, 0], color=MUTED, linewidth=1, transform=axes.transAxes, clip_on=False)
        draw(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return _for_page(sink.getvalue(), identity, label, width, height)


def _fitting(label: str) -> str:
    """A label that leaves the panel its room."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _for_page(svg: str, identity: str, label: str, width: float, height: float) -> str:
    """Cut out what only a file of its own needs, make ids unique, and hand colours and fonts over to the page."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{identity}-", body).replace("xlink:href", "href")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), re.sub(r">\s+<", "><", body))
    box = f"0 0 {width:g} {height:g}"
    return f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(label, quote=True)}">{body}'


def _scale(axes: Any, which: str, unit: str, grid: bool, most: float = math.inf) -> None:
    """Ticks at round values. Drawn here, because matplotlib's own tick objects take most of its time."""
    along_x = which == "x"
    low, high = sorted(axes.get_xlim() if along_x else axes.get_ylim())
    values = [
        value
        for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low <= value <= min(high, most)
    ]
    digits = max((len(f"{value:.6g}".partition(".")[2]) for value in values if "e" not in f"{value:.6g}"), default=0)
    for value in values:
        plain = value == 0 or 1e-4 <= abs(value) < 1e6
        text = (f"{value:,.{digits}f}" if plain else f"{value:.1e}").replace("-", "−") + unit
        place, shift = ((value, 0), (0, -6)) if along_x else ((0, value), (-6, 0))
        across = axes.get_xaxis_transform() if along_x else axes.get_yaxis_transform()
        align = {"ha": "center", "va": "top"} if along_x else {"ha": "right", "va": "center"}
        axes.annotate(text, place, shift, across, "offset points", color=MUTED, annotation_clip=False, **align)
    if grid:
        draw = axes.vlines if along_x else axes.hlines
        draw(values, 0, 1, color=GRID, linewidth=0.8, zorder=0, transform=across)


def _label_ends(axes: Any, ends: Sequence[tuple[str, str, float]]) -> None:
    """Write each label right of the panel at its line's height, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    wanted = sorted(((value - low) / ((high - low) or 1), label, colour) for label, colour, value in ends)
    gap = LABEL_HEIGHT / (axes.get_position().height * axes.figure.get_figheight() * UNITS_PER_INCH)
    heights = [height for height, _, _ in wanted]
    for _ in range(RELAXATIONS):
        for index in range(1, len(heights)):
            overlap = gap - (heights[index] - heights[index - 1])
            if overlap > 0:
                heights[index - 1] -= overlap / 2
                heights[index] += overlap / 2
    for height, (_, label, colour) in zip(heights, wanted, strict=True):
        axes.text(1.015, height, label, color=colour, va="center", transform=axes.transAxes, fontsize=SMALL)


def _binned(x: Any, y: Any) -> tuple[Any, Any]:
    if len(x) <= MOST_POINTS:
        return x, y
    parts = zip(np.array_split(x, MOST_POINTS), np.array_split(y, MOST_POINTS), strict=True)
    means = [(part_x.mean(), part_y.mean()) for part_x, part_y in parts]
    return np.array([m[0] for m in means]), np.array([m[1] for m in means])


def _running_mean(y: Any) -> Any:
    """Centred running mean; towards the ends, where the window is cut, a line through what is left of it."""
    if len(y) < FEWEST_TO_SMOOTH:
        return y
    half = max(SMOOTHING_LEAST, len(y) // SMOOTHING_SHARE) // 2
    smooth = np.convolve(y, np.full(2 * half + 1, 1 / (2 * half + 1)), "same")
    for index in (*range(half), *range(len(y) - half, len(y))):
        start, stop = max(0, index - half), min(len(y), index + half + 1)
        smooth[index] = np.polyval(np.polyfit(np.arange(start, stop), y[start:stop], 1), index)
    return smooth
