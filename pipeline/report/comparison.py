"""Several runs side by side: differing settings, differences of scores with intervals, curves over each other.

The first run is what the others are compared with. Scores are compared where a model of the same name was measured on
the same task; where the very same problems were measured, the interval is a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.report.differences import Difference, Outcomes, difference, outcomes
from pipeline.report.run_data import Run, mapping, read_run
from pipeline.report.scores import Group, Score, Table, build_table
from pipeline.report.text import clean, interval, percent

ABSENT = "–"


@dataclass(frozen=True)
class Row:
    """One model on one task in every run.

    Attributes:
        task, model: which.
        scores: of each run, if it has one.
        differences: of each run after the first, from the first.
        remark: how the sampling differed, if it did.
    """

    task: str
    model: str
    scores: list[Score | None]
    differences: list[Difference | None]
    remark: str


@dataclass(frozen=True)
class Setting:
    """A leaf of the recipes, or of where they ran, that is not the same in all runs; `None` where a run has none."""

    name: str
    values: list[str | None]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        labels: what the runs are called: their folders' names, with as much of the path as tells them apart.
        runs: the runs.
        rows: scores and their differences.
        settings: what differs in recipes.
        surroundings: what differs in machine, versions and revision.
    """

    labels: list[str]
    runs: list[Run]
    rows: list[Row]
    settings: list[Setting]
    surroundings: list[Setting]

    def words(self) -> list[str]:
        """What the differences say, a sentence for each run after the first."""
        return [self._words(at) for at in range(1, len(self.runs))]

    def _words(self, at: int) -> str:
        found = [(row, change) for row in self.rows if (change := row.differences[at - 1]) is not None]
        names = f"`{clean(self.labels[at])}`", f"`{clean(self.labels[0])}`"
        if not found:
            return f"{names[0]} and {names[1]} have no score in common."
        clear = [(row, change) for row, change in found if change.clear(len(found))]
        if not clear:
            return f"{names[0]} against {names[1]}: of {len(found)} scores, none differs by more than chance may."
        better = sum(change.value > 0 for _, change in clear)
        row, most = max(clear, key=lambda item: abs(item[1].value))
        low, high = sorted((abs(most.low), abs(most.high)))
        return (
            f"{names[0]} against {names[1]}: of {len(found)} scores, {better} clearly higher and {len(clear) - better}"
            f" clearly lower. The largest difference is {percent(abs(most.value))} points"
            f" {'more' if most.value > 0 else 'less'} for `{clean(row.model)}` on {clean(row.task)} (95 % interval"
            f" {interval(low, high)})."
        )

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "runs": {label: str(run.path) for label, run in zip(self.labels, self.runs, strict=True)},
            "differences": [
                {
                    "task": row.task,
                    "model": row.model,
                    "pass@1": [None if score is None else score.values.get("pass@1") for score in row.scores],
                    "difference": [None if change is None else asdict(change) for change in row.differences],
                    **({"remark": row.remark} if row.remark else {}),
                }
                for row in self.rows
            ],
            "settings": {setting.name: setting.values for setting in self.settings},
            "surroundings": {setting.name: setting.values for setting in self.surroundings},
        }


def compare(folders: Sequence[Path]) -> Comparison:
    """Read runs and compare them with the first.

    Raises:
        FileNotFoundError: a folder holds no run.
        RecordError: see `read_run`.
    """
    runs = [read_run(folder) for folder in folders]
    tables, found = [build_table(run) for run in runs], [outcomes(run) for run in runs]
    return Comparison(
        labels(folders),
        runs,
        list(_rows(tables, found)),
        differing([dict(leaves(run.recipe)) for run in runs]),
        differing([_surroundings(run) for run in runs]),
    )


def labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above them as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the same run is given twice")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a recipe as `stages.zero.trainer.max_steps`, `80`; a list of plain values is one leaf."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        for at, part in enumerate(value):
            yield from leaves(part, f"{name}.{at}")
    else:
        yield name, str(value)


def differing(settings: Sequence[Mapping[str, str]]) -> list[Setting]:
    """The names whose values are not the same everywhere, in the order in which they come."""
    names = dict.fromkeys(name for known in settings for name in known)
    found = [Setting(name, [known.get(name) for known in settings]) for name in names]
    return [setting for setting in found if len(set(setting.values)) > 1]


def _surroundings(run: Run) -> dict[str, str]:
    """Where and with what a run ran; several values where its stages differ."""
    seen: dict[str, list[str]] = {}
    for stage in run.stages.values():
        manifest = stage.manifest
        known = {
            "machine": manifest.get("device"),
            "revision": manifest.get("git"),
            **mapping(manifest.get("packages")),
        }
        for name, value in known.items():
            if value is not None and str(value) not in seen.setdefault(name, []):
                seen[name].append(str(value))
    return {name: ", ".join(values) for name, values in seen.items()}


def _rows(tables: Sequence[Table], found: Sequence[Outcomes]) -> Iterator[Row]:
    """A row for every model and task that the first run measured, and then for what only others have."""
    taken: set[tuple[int, int, str]] = set()
    for first, table in enumerate(tables):
        for group in table.groups:
            for model in (model for model in table.models if model in group.scores):
                if (first, id(group), model) in taken:
                    continue
                matched = [None if at < first else _match(group, model, other) for at, other in enumerate(tables)]
                matched[first] = group
                taken |= {(at, id(other), model) for at, other in enumerate(matched) if other is not None}
                yield _row(group, model, matched, found)


def _match(group: Group, model: str, table: Table) -> Group | None:
    """The scores of another run for the same task and model: sampled alike, or else otherwise."""
    there = [other for other in table.groups if other.task == group.task and model in other.scores]
    return next((other for other in there if not _sampled_otherwise(group, other)), there[0] if there else None)


def _sampled_otherwise(one: Group, other: Group) -> list[str]:
    names = dict.fromkeys((*one.sampling, *other.sampling))
    return [name for name in names if name != "seed" and one.sampling.get(name) != other.sampling.get(name)]


def _row(group: Group, model: str, matched: Sequence[Group | None], found: Sequence[Outcomes]) -> Row:
    scores = [None if other is None else other.scores[model] for other in matched]
    changes: list[Difference | None] = []
    for at in range(1, len(scores)):
        new, old = scores[at], scores[0]
        changes.append(
            None
            if new is None or old is None
            else difference(new, old, found[at].of(new, model, group.task), found[0].of(old, model, group.task))
        )
    ways = {
        name: [ABSENT if other is None else str(other.sampling.get(name, ABSENT)) for other in matched]
        for other in matched
        if other is not None
        for name in _sampled_otherwise(group, other)
    }
    remark = "; ".join(f"{name.replace('_', ' ')} {' / '.join(values)}" for name, values in ways.items())
    return Row(group.task, model, scores, changes, f"sampled differently: {remark}" if remark else "")
