"""The page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files import durable
from pipeline.report import curves, frame, page, store
from pipeline.report.comparison import Comparison, Row, compare
from pipeline.report.differences import Difference
from pipeline.report.resources import uses
from pipeline.report.run_data import Store
from pipeline.report.scores import Score
from pipeline.report.text import interval, percent, points
from pipeline.report.timeline import busy_seconds


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, which compares runs with the first of them, and their samples beside it; returns its path.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a run is given twice.
    """
    found = compare(runs)
    durable.make_folder(out)
    samples, files = store.write(list(zip(found.labels, found.runs, strict=True)), out)
    return page.publish(build_comparison(found, samples), out, files)


def build_comparison(found: Comparison, samples: Store) -> str:
    """The whole page as HTML."""
    named = list(zip(found.labels, found.runs, strict=True))
    return frame.render(
        "compare.html",
        store=samples,
        labels=found.labels,
        words=found.words(),
        rows=found.rows,
        by_task=_by_task(found.rows),
        settings=found.settings,
        surroundings=found.surroundings,
        curves=curves.compared(named),
        took=[(label, uses(run)) for label, run in named],
        facts=[(label, run, busy_seconds(run)) for label, run in named],
        score=_score,
        change=_change,
    )


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def _score(score: Score | None) -> tuple[str, str]:
    """A score in percent, and its interval."""
    value = None if score is None else score.values.get("pass@1")
    if score is None or value is None:
        return "", (score.withheld if score else "")
    known = score.low is not None and score.high is not None
    return percent(value), interval(score.low or 0.0, score.high or 0.0) if known else ""


def _change(change: Difference | None) -> dict[str, str]:
    """A difference in points, its interval, and what kind it is."""
    if change is None:
        return {"text": "", "interval": "", "class": "", "how": ""}
    kind = "" if not change.clear() else "more" if change.value > 0 else "less"
    how = f"{'paired over the same' if change.paired else 'unpaired,'} {change.problems:,} problems"
    between = f"{points(change.low)} to {points(change.high)}"
    return {"text": points(change.value), "interval": between, "class": kind, "how": how}
