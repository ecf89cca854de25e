"""The picture of the README: the recipe's stages with what they solve in nano, and accuracy while R1-Zero trains.

    python -m benchmarks.figures --write docs/images      # stages-light.svg, stages-dark.svg

Everything in it is read from committed results: `nano-r1.json` (two CPU cores) and `gsm8k-r1-zero.json`
(one H200). The SVG is plain text without scripts or fonts of its own, and always the same for the same results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.nano import CHAINS, LISTS

RESULTS = Path(__file__).resolve().parent / "results"
NANO, REAL = "nano-r1.json", "gsm8k-r1-zero.json"
ACCURACY = "rewards/accuracy/score"
WIDTH, HEIGHT = 960, 372  # pixels
BOX, HIGH, GAP, TOP = 116, 102, 21, 56  # a stage's width and height, the space between two, and where they begin
STAGES = (
    ("base", "Base model", "pre-training"),
    ("zero", "R1-Zero", "RL alone"),
    ("dev1", "Cold start", "SFT from the base"),
    ("dev2", "Reasoning RL", "one language"),
    ("dev3", "Second SFT", "from the base"),
    ("r1", "R1", "RL, all scenarios"),
    ("student", "Student", "distilled from R1"),
)
"""Stage of `nano/r1`, what the paper calls it, what it is."""


class Colours(NamedTuple):
    """What a picture is painted with; the background is left to the page."""

    text: str
    faint: str
    box: str
    line: str
    curve: str


THEMES: Mapping[str, Colours] = {
    "light": Colours("#1f2328", "#59636e", "#eef1f6", "#8c959f", "#3f51b5"),
    "dark": Colours("#e6edf3", "#9198a1", "#262c36", "#6e7681", "#8c9eff"),
}


def picture(colours: Colours) -> str:
    """The whole SVG."""
    nano, real = _runs(NANO), _runs(REAL)
    style = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style} role="img">',
        "<title>The stages of the recipe, and accuracy while R1-Zero trains</title>",
        *_stages(nano, colours),
        *_curves(
            (0, 190),
            f"R1-Zero on two CPU cores (nano, {len(nano)} seeds)",
            [run["curves"]["zero"][ACCURACY] for run in nano],
            1.0,
            colours,
        ),
        *_curves(
            (WIDTH // 2 + 10, 190),
            "R1-Zero on one H200 (GSM8K, Qwen2.5-Coder-0.5B)",
            [run["curves"]["zero"][ACCURACY] for run in real],
            0.5,
            colours,
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _runs(name: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((RESULTS / name).read_text(encoding="utf-8"))["runs"]
    return runs


def _text(x: float, y: float, told: str, size: int, colour: str, anchor: str = "middle", weight: str = "normal") -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{escape(told)}</text>"


def _stages(runs: Sequence[Mapping[str, Any]], colours: Colours) -> Iterator[str]:
    """A box a stage, with the share of held-out chains and lists that its model solves, as the mean over the seeds."""
    yield _text(0, 16, "The DeepSeek-R1 recipe, stage by stage", 16, colours.text, "start", "bold")
    told = (
        f"nano/r1 on two CPU cores: held-out chains solved, and lists, which need no thought; mean of {len(runs)} seeds"
    )
    yield _text(0, 38, told, 13, colours.faint, "start")
    for number, (stage, name, what) in enumerate(STAGES):
        left = number * (BOX + GAP)
        chains, lists = (fmean(run["table"][stage][task]["pass@1"] for run in runs) for task in (CHAINS, LISTS))
        yield f'<rect x="{left}" y="{TOP}" width="{BOX}" height="{HIGH}" rx="8" fill="{colours.box}"/>'
        yield _text(left + BOX / 2, TOP + 24, name, 14, colours.text, weight="bold")
        yield _text(left + BOX / 2, TOP + 43, what, 12, colours.faint)
        yield _text(left + BOX / 2, TOP + 72, f"{chains:.0%}", 20, colours.curve, weight="bold")
        yield _text(left + BOX / 2, TOP + 91, f"lists {lists:.0%}", 12, colours.faint)
        if number:
            start, middle = left - GAP + 3, TOP + HIGH // 2
            drawn = f"M{start} {middle}h{GAP - 7}m-5 -4l5 4l-5 4"
            yield f'<path d="{drawn}" fill="none" stroke="{colours.line}" stroke-width="1.5"/>'


def _curves(
    at: tuple[float, float], title: str, curves: Sequence[Sequence[float]], top: float, colours: Colours
) -> Iterator[str]:
    """Accuracy of the rollouts of each step, from 0 to `top`, in a panel whose upper left corner is `at`."""
    left, upper = at
    x0, y0, wide, high = left + 40, upper + 24, WIDTH / 2 - 60, 122
    yield _text(left, upper, title, 13, colours.text, "start", "bold")
    for share in (0.0, top / 2, top):
        y = y0 + high * (1 - share / top)
        yield f'<path d="M{x0:g} {y:g}h{wide:g}" stroke="{colours.line}" stroke-width="0.5" opacity="0.6"/>'
        yield _text(x0 - 6, y + 4, f"{share:.0%}", 11, colours.faint, "end")
    steps = max(map(len, curves))
    for curve in curves:
        points = " ".join(
            f"{x0 + wide * number / (steps - 1):.1f},{y0 + high * (1 - value / top):.1f}"
            for number, value in enumerate(curve)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colours.curve}" stroke-width="1.8" opacity="0.85"/>'
    yield _text(x0, y0 + high + 18, "1", 11, colours.faint)
    yield _text(x0 + wide, y0 + high + 18, f"step {steps}", 11, colours.faint, "end")
    yield _text(x0 + wide / 2, y0 + high + 18, "accuracy of the rollouts", 11, colours.faint)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=Path("docs/images"), metavar="FOLDER")
    folder = parser.parse_args().write
    folder.mkdir(parents=True, exist_ok=True)
    for theme, colours in THEMES.items():
        (folder / f"stages-{theme}.svg").write_text(picture(colours), encoding="utf-8")


if __name__ == "__main__":
    main()
