"""Several rewards as one: weights, gates, clipping, and routing by a data column.

The composite is the only reward function the trainer sees. TRL sums its reward columns with `nansum`, so a `None`
beside other scores silently becomes 0; here the policy is explicit: a row that any of its parts could not judge for
reasons the model did not cause (bad gold, broken sandbox) is `None` as a whole, and a part that merely does not apply
to a row adds nothing.

Example::

    Composite([
        Part("math", weight=1.0, where={"domain": "math"}),
        Part("think_format", weight=0.1, gate="math"),
    ])
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.function import Batch, RewardFunction, given, guard_infra, report
from rewards.registry import RewardError
from rewards.scores import NO_RETURN, NOT_MINE, ScoreError
from rewards.verdict import BLAMELESS, Verdict

log = logging.getLogger(__name__)

PATIENCE = 8
"""Batches without a single score after which there is taken to be nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Part:
    """One reward within a composite.

    Attributes:
        use: name, `module:attribute` or `file.py:attribute` of the reward.
        weight: what its score is multiplied with.
        gate: name of an earlier part; this part counts only in rows where that one scored 1 or more.
        clip: bounds (low, high) put on the score before weighting.
        where: column -> value (or list of values); the part applies only to rows that match all of them.
        options: constructor arguments of the reward.
        name: name of its metrics and for gates; `use` if not given.
    """

    use: str
    weight: float = 1.0
    gate: str | None = None
    clip: tuple[float, float] | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    @property
    def label(self) -> str:
        """Name of its metrics, and the name that gates refer to."""
        return self.name or self.use.rpartition(":")[2]


def matches(value: Any, wanted: Any) -> bool:
    """Whether a row whose column has this value goes to a part whose `where` wants that, or one of those."""
    return bool(value in wanted if isinstance(wanted, list | tuple | set) else value == wanted)


class Composite:
    """A weighted sum of rewards that behaves as one TRL reward function. Picklable.

    Args:
        parts: the rewards, in order; a gate refers to an earlier part.
        base: folder of the recipe, for rewards given as relative file paths.
        max_infra: largest share of a batch that may fail for reasons the model did not cause.

    Raises:
        RewardError: an unknown reward or option, two parts of one name, or a gate that names no earlier part.
    """

    __name__ = "reward"

    def __init__(self, parts: Sequence[Part], base: Path | None = None, max_infra: float = 0.25) -> None:
        if not parts:
            raise RewardError("a composite needs at least one reward")
        seen: set[str] = set()
        for part in parts:
            if part.gate is not None and part.gate not in seen:
                raise RewardError(
                    f"reward {part.label!r} is gated by {part.gate!r}, which is not an earlier reward"
                    f" ({', '.join(sorted(seen)) or 'there is none before it'})"
                )
            if part.label in seen:
                raise RewardError(f"two rewards are called {part.label!r}; give one of them a name")
            if part.clip is not None and part.clip[0] > part.clip[1]:
                raise RewardError(f"reward {part.label!r}: clip has to be (low, high), low first, not {part.clip}")
            seen.add(part.label)
        self.parts, self.max_infra = tuple(parts), max_infra
        self._unscored: int | None = 0  # batches without a score so far; None once there was one
        self._functions = [RewardFunction(p.use, p.options, base, max_infra) for p in parts]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: Any = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        """Score a batch; see `RewardFunction`. Logs mean, statuses and extracted answers of every part."""
        batch = Batch(prompts, completions, completion_ids, columns, given(trainer_state, log_extra, log_metric))
        by_part = self.verdicts(batch)
        for part in self.parts:
            judged = [v for v in by_part[part.label] if v is not None]
            report(part.label, judged, None, log_metric)
            guard_infra(part.label, judged, self.max_infra)
            scores = [v.score for v in judged if v.score is not None]
            if log_metric is not None and scores:
                log_metric(f"rewards/{part.label}/score", sum(scores) / len(scores))
            if log_extra is not None:
                log_extra(part.label, [None if v is None else v.score for v in by_part[part.label]])
        totals = [self._total({name: rows[row] for name, rows in by_part.items()}) for row in range(len(batch))]
        self._check_taught(totals, by_part)
        return totals

    def _check_taught(self, totals: Sequence[float | None], by_part: Mapping[str, list[Verdict | None]]) -> None:
        """Stop where there is nothing to learn from, and say which parts have said nothing.

        Raises:
            ScoreError: no row of the first batches has a score. One batch is enough where a function returned `None`
                for all of it. Verifiers do so for single rows: where their golds are bad, they have more, and what
                the model wrote (too few words to tell its language) stops nothing.
        """
        if not totals or self._unscored is None:
            return
        self._unscored = None if any(total is not None for total in totals) else self._unscored + 1
        silent = {
            part.label: len(judged)
            for part, function in zip(self.parts, self._functions, strict=True)
            if function.is_plain and (judged := [v for v in by_part[part.label] if v]) and not any(map(_scored, judged))
        }
        if self._unscored is None:
            for name, rows in silent.items():
                log.warning("reward %r gave no score to any of the first %d rows: is a `return` missing?", name, rows)
        elif silent or (self._unscored >= PATIENCE and all(map(_blameless, zip(*by_part.values(), strict=True)))):
            raise ScoreError(
                f"not one row of the first {'batch' if self._unscored == 1 else f'{PATIENCE} batches'} has a reward, so"
                f" nothing would be learnt: {'; '.join(_tally(name, rows) for name, rows in by_part.items())}"
            )

    def verdicts(self, batch: Batch) -> dict[str, list[Verdict | None]]:
        """Every part's verdict on every row it applies to (`None` elsewhere), by the part's label."""
        result: dict[str, list[Verdict | None]] = {}
        for part, function in zip(self.parts, self._functions, strict=True):
            rows = [row for row in range(len(batch)) if self._applies(part, batch, row, result)]
            column: list[Verdict | None] = [None] * len(batch)
            for row, verdict in zip(rows, function.verdicts(batch.select(rows)), strict=True):
                column[row] = verdict
            result[part.label] = column
        return result

    def prepare(self) -> None:
        """Build the verifiers of all parts; see `RewardFunction.prepare`."""
        for function in self._functions:
            function.prepare()

    def close(self) -> None:
        """Stop the processes of all parts."""
        for function in self._functions:
            function.close()

    @staticmethod
    def _applies(part: Part, batch: Batch, row: int, earlier: Mapping[str, list[Verdict | None]]) -> bool:
        for column, wanted in part.where.items():
            if column not in batch.columns:
                raise ValueError(f"reward {part.label!r} is routed by column {column!r}, which the data lacks")
            if not matches(batch.columns[column][row], wanted):
                return False
        if part.gate is None:
            return True
        gate = earlier[part.gate][row]
        return gate is not None and gate.score is not None and gate.score >= 1.0

    def _total(self, row: Mapping[str, Verdict | None]) -> float | None:
        judged = {name: verdict for name, verdict in row.items() if verdict is not None}
        if any(verdict.status in BLAMELESS for verdict in judged.values()):
            return None
        total, counted = 0.0, False
        for part in self.parts:
            verdict = judged.get(part.label)
            if verdict is None or verdict.score is None:
                continue
            low, high = part.clip or (float("-inf"), float("inf"))
            total, counted = total + part.weight * min(max(verdict.score, low), high), True
        return total if counted else None


def _blameless(row: Sequence[Verdict | None]) -> bool:
    """Whether a row has no score for a reason that the model did not cause."""
    return any(verdict is not None and verdict.status in BLAMELESS for verdict in row)


def _scored(verdict: Verdict) -> bool:
    return verdict.score is not None


def _tally(name: str, verdicts: Sequence[Verdict | None]) -> str:
    """What a part said of a batch without scores: how often, with the commonest reason."""
    judged = [verdict for verdict in verdicts if verdict is not None]
    if not judged:
        return f"{name} applies to no row"
    (reason, count), *_ = Counter(verdict.detail or verdict.status.value for verdict in judged).most_common()
    return f"{name}: {NO_RETURN if reason == NOT_MINE else reason} ({count} of {len(judged)} rows)"
