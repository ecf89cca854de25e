"""The rows that a stage trains on: how many there are and how long, as far as local files and the recipe tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cost.bill import Assumption
from pipeline.cost.shape import Shape
from pipeline.data.mixture import DataSource
from pipeline.files.columns import passes
from pipeline.planner import counts
from pipeline.planner.work import Given
from pipeline.recipe import Recipe
from rewards.registry import located

LONGEST_PROMPT = 1.75
"""The longest prompt of a batch against the mean: of 64 problems of GSM8K, about 210 tokens against 120."""
UNKNOWN_LENGTH = 4096
"""Tokens of the longest row where neither the data nor `max_length` tells."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a source, tokens of one on average and at most, and how that is known."""

    rows: float
    tokens: float
    longest: int
    reason: str


def of_data(config: Any, shape: Shape, recipe: Recipe, given: Given) -> tuple[int, float, int, bool, list[Assumption]]:
    """Rows, tokens of one on average and at most, whether all are as long, and what was assumed."""
    if config.kind in ("pretrain", "extend_context"):
        length = int(config.length or config.context)
        documents, told = _documents(config.corpus, length, recipe)
        return documents, float(length), length, True, told
    limit = int(config.max_length or shape.context or 4096)
    total, tokens, longest, told = 0.0, 0.0, 1, []
    for source in config.data:
        found = _source(source, limit, config.max_length is None, recipe, given)
        taken = min(found.rows, source.take or found.rows) * source.weight
        total, tokens = total + taken, tokens + taken * min(found.tokens, limit)
        longest = max(longest, min(found.longest, limit))
        size = f"{taken:,.0f} x {min(found.tokens, limit):.0f} tokens, {min(found.longest, limit):,} at most"
        told.append(Assumption(f"rows of {source.source}", size, found.reason))
    if getattr(config, "packing", False):
        return max(1, math.ceil(tokens / limit)), float(limit), limit, True, told
    return max(1, round(total)), tokens / total, longest, False, told


def _documents(corpora: Sequence[Any], length: int, recipe: Recipe) -> tuple[int, list[Assumption]]:
    """Rows of so many tokens that a corpus fills."""
    rows = 0.0
    told = []
    for spec in corpora:
        if spec.use is not None:
            rows += spec.documents
            told.append(Assumption(f"corpus {spec.use}", f"{spec.documents:,} documents", "assumed: a row each"))
        elif (file := _file(spec.source, recipe)) is not None:
            rows += file.rows * file.row_bytes / counts.BYTES_A_TOKEN / length
            told.append(Assumption(f"corpus {spec.source}", f"{file.rows:,} rows", "4 bytes a token"))
        else:
            rows += counts.UNKNOWN_ROWS
            told.append(Assumption(f"corpus {spec.source}", f"{counts.UNKNOWN_ROWS:,} rows", "assumed: not read"))
    return max(1, math.ceil(rows)), told


def _source(source: DataSource, limit: int, open_ended: bool, recipe: Recipe, given: Given) -> _Rows:
    """The rows of a source; of one that is not read, `limit` tells how long they are unless it is `open_ended`."""
    uncounted = " (its filter is not counted)" if source.filter else ""
    if isinstance(source.source, str) and source.source.startswith("@"):
        config: Any = recipe.stages.get(source.source[1:])
        if config is not None and config.kind == "rejection_sample":
            sampling = given.sampling(source.source[1:], 1, 1, config.rollout.max_tokens)
            most = config.filters.max_tokens or math.inf
            before = given.earlier.get(source.source[1:])
            mean = before.kept_tokens if before is not None and before.kept_tokens else sampling.completion
            row = sampling.prompt + min(mean, sampling.longest, most)
            longest = round(LONGEST_PROMPT * sampling.prompt + min(sampling.longest, most))
            rows, kept = _kept(source, config, recipe, given)
            return _Rows(rows, row, longest, kept)
    elif (file := _file(source.source, recipe)) is not None:
        return _of_file(source, file, recipe)
    reason, longest = f"assumed: nothing says how many rows there are{uncounted}", limit
    if open_ended:
        reason, longest = f"{reason}, and neither data nor max_length how long", min(limit, UNKNOWN_LENGTH)
    return _Rows(counts.UNKNOWN_ROWS, longest / 2, longest, reason)


def _kept(source: DataSource, config: Any, recipe: Recipe, given: Given) -> tuple[float, str]:
    """The rows that rejection sampling publishes of the tasks that a filter wants, and how that is known."""
    of_task = {key: value for key, value in source.filter.items() if key == "task"}
    drawn = [(task.title, counts.drawn(task, recipe).number) for task in config.tasks]
    wanted = sum(number for title, number in drawn if passes({"task": title}, of_task))
    each, reason = _of_a_problem(str(source.source)[1:], config, given)
    found, whole = wanted * each, sum(number for _, number in drawn)
    if config.rows is not None and whole:
        found = min(found, config.rows * wanted / whole)
    uncounted = " (its filter is not counted)" if len(source.filter) > len(of_task) else ""
    return found, f"{reason}{uncounted}"


def _of_a_problem(stage: str, config: Any, given: Given) -> tuple[float, str]:
    """How many of its samples a problem keeps on average, and how that is known."""
    most, samples = min(config.keep, config.samples), config.samples
    before = given.earlier.get(stage)
    if before is not None and before.kept is not None:
        return min(before.kept, most), f"{before.source}: {before.kept:.3g} a problem were kept, of all its tasks"
    if (rate := given.pass_rate) is not None:
        # The mean of the smaller of `most` and how many of the samples pass, each by itself.
        shares = [math.comb(samples, n) * rate**n * (1 - rate) ** (samples - n) for n in range(samples + 1)]
        return sum(min(n, most) * share for n, share in enumerate(shares)), f"--pass-rate {rate:g}, up to {most} of it"
    return most, "assumed: every problem keeps as many as it may"


def _of_file(source: DataSource, file: counts.File, recipe: Recipe) -> _Rows:
    """The rows of local files that pass the source's filter."""
    if (seen := counts.sample(source, recipe.base)) is None:
        size = file.row_bytes / counts.BYTES_A_TOKEN
        return _Rows(file.rows, size, math.ceil(size), "lines of the file, 4 bytes a token")
    reason = "lines of the file, 4 bytes a token"
    if source.filter:
        reason += f"; of the first {seen.looked_at:,}, {seen.passing:.0%} pass the filter"
    longest = math.ceil(seen.longest_bytes / counts.BYTES_A_TOKEN)
    return _Rows(max(1, round(file.rows * seen.passing)), seen.row_bytes / counts.BYTES_A_TOKEN, longest, reason)


def _file(source: Any, recipe: Recipe) -> counts.File | None:
    """The rows of local files; `None` of a stage's, or of a data set on the hub, which a plan does not ask."""
    local = isinstance(source, str) and not source.startswith("@")
    return counts.lines(located(source, recipe.base)) if local else None
