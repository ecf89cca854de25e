"""Reading problems from rows that somebody else wrote: some of which hold none.

`bad_rows: error`, the default, counts the rows of a file that cannot be used and stops, with the first of them by file
and line; `bad_rows: skip` goes on without them, says how many there were, and keeps the reasons in `Task.left_out`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, get_args

from pipeline.files.rows import RowError
from pipeline.tasks.base import BadRows, Problem, Task, TaskError

log = logging.getLogger(__name__)

SHOWN = 3
"""Bad rows that a message names; the others are counted."""
Rows = Callable[[list[RowError]], Iterable[tuple[str, Mapping[str, Any]]]]
"""Gives rows with their places, and puts lines that are no rows at all into the list."""


def checked_bad_rows(name: str, value: BadRows) -> BadRows:
    """The option `bad_rows`, if it has a value that exists.

    Raises:
        TaskError: it has another.
    """
    if value not in get_args(BadRows):
        raise TaskError(f"{name}: bad_rows is {' or '.join(get_args(BadRows))}, not {value!r}")
    return value


def problems_of(task: Task, rows: Rows, make: Callable[[Mapping[str, Any], str], Problem | None]) -> list[Problem]:
    """The problems that rows hold.

    Args:
        task: whose option `bad_rows` says what to do with rows that hold none; its `left_out` is set.
        rows: the rows.
        make: makes a problem of a row and its place; `None` if the row is not asked for.

    Raises:
        TaskError: a row cannot be used, and `bad_rows` is `error`; or no row can.
    """
    found: list[Problem] = []
    bad: list[str] = []
    lines: list[RowError] = []
    skip = task.bad_rows == "skip"
    try:
        for place, row in rows(lines):
            bad += _taken(lines)
            try:
                problem = make(row, place)
            except TaskError as error:
                bad.append(str(error))
                continue
            if problem is None:
                continue
            if skip and (fault := task.gold_fault(problem)) is not None:
                bad.append(f"{place}: {fault}")
            else:
                found.append(problem)
    except RowError as error:
        raise TaskError(str(error)) from error
    bad += _taken(lines)
    if bad and not (skip and found):
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        fix = "none is left" if skip else "mend them, or leave them out with the task's option bad_rows: skip"
        raise TaskError(f"{'; '.join(bad[:SHOWN])}{more}. {_count(bad, found)} cannot be used: {fix}")
    if bad:
        log.warning("%s left out, such as %s", _count(bad, found), bad[0])
    task.left_out = tuple(bad)
    return found


def _taken(lines: list[RowError]) -> list[str]:
    taken = [str(line) for line in lines]
    lines.clear()
    return taken


def _count(bad: list[str], found: list[Problem]) -> str:
    return f"{len(bad)} of {len(bad) + len(found)} rows"


def distinct(problems: Sequence[Problem], where: str) -> list[Problem]:
    """Every question once. One that stands there with two answers is left out and told: only one can be right.

    Args:
        problems: in the order of their rows.
        where: what they are problems of, for the log.
    """
    answers: dict[str, set[str | tuple[str, ...]]] = {}
    for problem in problems:
        answers.setdefault(problem.question, set()).add(problem.answer)
    if torn := [question for question, golds in answers.items() if len(golds) > 1]:
        text = "%s: %d questions that stand there with several answers are left out, such as %r"
        log.warning(text, where, len(torn), torn[0])
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.question, problem)
    return [problem for question, problem in first.items() if len(answers[question]) == 1]


def shuffled(problems: Sequence[Problem], n: int | None, seed: int, what: str) -> list[Problem]:
    """The first `n` problems in the order that the seed gives.

    Raises:
        TaskError: there are fewer.
    """
    if n is not None and len(problems) < n:
        raise TaskError(f"{what}: {n} problems are wanted, but there are only {len(problems)}")
    order = list(problems)
    Random(seed).shuffle(order)
    return order[:n]
