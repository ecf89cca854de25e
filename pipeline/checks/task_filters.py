"""Filters of tasks by which no problem could pass: a column that nobody has measured, or a range that holds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.files.columns import is_range
from pipeline.schema.pieces import Fault, StageConfig
from pipeline.schema.task import TaskFilter, TaskSpec
from pipeline.schema.walk import walk
from pipeline.tasks.resolve import ROW_KEYS, merged, resolve
from pipeline.tasks.rows import RowsTask
from rewards.registry import nearest

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

RATE = "pass_rate"
"""A kind of stage, and the column that it measures."""


def faults(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """What is wrong with the filters of a stage's tasks."""
    definitions = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    for leaf in walk(config):
        if isinstance(leaf.value, TaskSpec) and leaf.value.filter is not None:
            found = [*_ranges(leaf.value.filter), *_columns(leaf.value, recipe, definitions)]
            yield from (((*leaf.loc, "filter", name), message) for name, message in found)


def _ranges(wanted: TaskFilter) -> Iterator[tuple[str, str]]:
    for name, value in wanted.wanted.items():
        if is_range(value) and value[0] > value[1]:
            yield name, f"{value} ends before it begins: write the lower number first"
        elif name == RATE and is_range(value) and not (value[0] <= 1 and value[1] >= 0):
            yield name, f"{value} holds no rate: rates are shares from 0 to 1"


def _columns(spec: TaskSpec, recipe: Recipe, definitions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns that the problems do not have; a task whose columns are known only with its rows is believed."""
    assert spec.filter is not None
    try:
        use, task = merged(spec, definitions)[0], resolve(spec, definitions, recipe.base).task
    except (ValueError, TypeError):  # told where tasks are checked
        return
    if (source := spec.filter.source) is not None:
        measuring = recipe.stages.get(source.removeprefix("@"))
        if measuring is None or measuring.kind != RATE:
            return
        measured = [merged(one, definitions)[0] for one in getattr(measuring, "tasks", ())]
        if use not in measured:
            yield "from", f"{source} measures {', '.join(measured)}, and not {use}: add it to that stage's tasks"
        return
    if task.column_names is None or isinstance(task, RowsTask):
        return
    known = [*task.column_names, *ROW_KEYS]
    for name in spec.filter.wanted:
        if name == RATE and name not in known:
            stages = [stage for stage, config in recipe.stages.items() if config.kind == RATE]
            fix = f"say whose, from: '@{stages[0]}'" if stages else "add a stage of kind pass_rate that samples it"
            yield name, f"nobody has measured it: {fix}"
        elif name not in known:
            yield name, f"problems of {use} have no such column{nearest(name, known)}. They have: {', '.join(known)}"
