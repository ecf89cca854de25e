"""The table of `zero2r1 why`, for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.why.finding import Finding, Line

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "loss": "loss",
    "grad_norm": "gradient",
    "mismatch": "mismatch",
    "effective_samples": "effective",
    "dead_groups": "dead groups",
    "reward": "reward",
    "accuracy": "accuracy",
    "reward_gap": "gap",
    "entropy": "entropy",
    "entropy_after": "entropy after",
    "grad_norm_after": "gradient after",
    "kl": "KL",
    "kl_after": "KL after",
    "loss_after": "loss after",
    "moved_after": "moved",
}
"""Column -> its title; `after` is after the update."""
ALWAYS = ("grad_norm", "entropy_after", "dead_groups")


def table(finding: Finding) -> Table:
    """One line a change; a number that crosses its limit is marked."""
    from rich.table import Table

    symptom = finding.symptom
    told = Table(box=None, pad_edge=False)
    told.add_column("changed")
    judged = () if symptom is None else (symptom.column,)
    columns = [name for name in TITLES if name in (*judged, *ALWAYS)]
    columns = [name for name in columns if any(_known(line, name) for line in finding.lines)]
    for name in columns:
        told.add_column(TITLES[name], justify="right")
    told.add_column("symptom")
    for line in finding.lines:
        shown = None if symptom is None else symptom.shown_by(line.numbers)
        said = "" if shown is None or symptom is None else "yes" if shown else "gone"
        told.add_row(line.what, *(_number(line, name) for name in columns), said)
    return told


def heading(finding: Finding) -> list[str]:
    """What was looked into."""
    record, case = finding.case.record, finding.case
    lines = [f"{case.run}@{case.stage}, alarm after step {record['step']}: {record['alarms'][0]['reason']}"]
    more = [alarm["alarm"] for alarm in record["alarms"][1:]]
    if more:
        lines.append(f"with it: {', '.join(more)}")
    lines.append(f"replayed: the batch of step {finding.step}, on {case.on}")
    if case.others:
        lines.append(f"other alarms: after steps {', '.join(map(str, case.others))} (--step)")
    return lines


def _known(line: Line, name: str) -> bool:
    return name in line.numbers and not math.isnan(line.numbers[name])


def _number(line: Line, name: str) -> str:
    return f"{line.numbers[name]:.3g}" if _known(line, name) else ""
