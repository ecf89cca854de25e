"""The reward `accuracy`: every problem is judged by its own task's grader.

In a recipe::

    tasks: [gsm8k/train, countdown/train]
    rewards: [{use: accuracy}, {use: think_format, weight: 0.1, gate: accuracy}]

`accuracy` is then `math` for the rows of GSM8K and `countdown` for the others; the column `task` tells which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.context import StageContext
from pipeline.schema.pieces import RewardSpec
from pipeline.schema.task import TaskSpec
from pipeline.tasks.base import Task, TaskError
from pipeline.tasks.resolve import ROW_KEYS, STAGE_KEYS, Resolved, resolve
from pipeline.tasks.rows import RowsTask
from rewards import Batch, Composite, Item, Part, RewardFunction, Verdict
from rewards.composite import matches
from rewards.registry import find

ACCURACY = "accuracy"
HANDED_OVER = (*(key for key in ROW_KEYS if key != "prompt"), *STAGE_KEYS)
"""Columns that every row has when a reward is asked; prompts are arguments of their own."""


class Accuracy:
    """Judge each completion by the grader of the task that its row belongs to.

    Args:
        graders: task name -> `{use, options}` of the reward that grades it.
        base: folder against which graders given as `file.py:name` are read.
    """

    def __init__(self, graders: Mapping[str, Mapping[str, Any]], base: str | None = None) -> None:
        folder = None if base is None else Path(base)
        self._graders = {
            task: RewardFunction(grader["use"], grader.get("options"), folder, in_trainer=False)
            for task, grader in graders.items()
        }
        for grader in self._graders.values():
            grader.prepare()

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item. Raises ValueError for a row without a known `task`."""
        rows_by_task: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            task = item.columns.get("task")
            if task not in self._graders:
                raise ValueError(f"no grader for task {task!r}; there are: {', '.join(sorted(self._graders))}")
            rows_by_task.setdefault(task, []).append(row)
        verdicts: dict[int, Verdict] = {}
        for task, rows in rows_by_task.items():
            batch = Batch.of([_alone(items[row]) for row in rows])
            verdicts |= zip(rows, self._graders[task].verdicts(batch), strict=True)
        return [verdicts[row] for row in range(len(items))]

    def close(self) -> None:
        """Stop the graders' processes."""
        for grader in self._graders.values():
            grader.close()


def _alone(item: Item) -> Item:
    """An item whose only gold stands for itself: lists are there for other rows of the batch."""
    return replace(item, answer=item.answer[0]) if isinstance(item.answer, list) and len(item.answer) == 1 else item


def accuracy_options(tasks: Sequence[Resolved], base: Path | None = None) -> dict[str, Any]:
    """Arguments of `Accuracy` for these tasks.

    Raises:
        TaskError: two tasks of one name are graded differently.
    """
    graders: dict[str, dict[str, Any]] = {}
    for entry in tasks:
        grader = {"use": entry.task.grader, "options": dict(entry.task.grader_options)}
        if graders.setdefault(entry.name, grader) != grader:
            raise TaskError(
                f"two entries called {entry.name!r} are graded differently; define them under `tasks:` with two names"
            )
    return {"graders": graders, "base": None if base is None else str(base)}


def reward_part(spec: RewardSpec, accuracy: Mapping[str, Any]) -> Part:
    """One reward of a recipe as a part of a composite; `accuracy` are the arguments that `use: accuracy` stands for."""
    is_accuracy = spec.use == ACCURACY
    return Part(
        use=f"{Accuracy.__module__}:{Accuracy.__name__}" if is_accuracy else spec.use,
        weight=spec.weight,
        gate=spec.gate,
        clip=None if spec.clip is None else (spec.clip[0], spec.clip[1]),
        where=spec.where,
        options={**accuracy, **spec.options} if is_accuracy else spec.options,
        name=spec.name or (ACCURACY if is_accuracy else None),
    )


def same_answers(task: Task, base: Path | None = None) -> Callable[[Verdict, Verdict], bool | None] | None:
    """What makes two answers to a task's problems one, as its grader has it; `None` if that says nothing about it."""
    found: Callable[[Verdict, Verdict], bool | None] | None = getattr(find(task.grader, base).target, "same", None)
    return found


def column_fault(
    use: str, columns: Sequence[str], where: Mapping[str, Any], tasks: Sequence[tuple[str, Task]]
) -> str | None:
    """Why a reward cannot be asked about these tasks: it wants a column that one of them does not hand over.

    Args:
        use: what the recipe calls the reward.
        columns: what it wants (`rewards.registry.Found.columns`).
        where: its route.
        tasks: the stage's tasks, by name; those whose columns are not known before they are made are believed.
    """
    lacking = {
        name: [column for column in columns if column not in (*HANDED_OVER, *task.column_names)]
        for name, task in tasks
        if task.column_names is not None and matches(name, where.get("task", name))
    }
    for name, task in tasks:
        if missing := lacking.get(name, []):
            listed = ", ".join(missing)
            has = ", ".join((*HANDED_OVER, *(task.column_names or ())))
            others = sorted(other for other, _ in tasks if not lacking.get(other, []))
            if isinstance(task, RowsTask):
                fix = f"add to the task's options: columns: [{listed}]"
            elif others:
                fix = f"add to the reward: where: {{task: [{', '.join(others)}]}}"
            else:
                fix = f"write {listed}=None among its parameters, or take another task"
            return f"reward {use!r} needs {listed}, which the task {name!r} does not hand over (it has: {has}); {fix}"
    return None


def check_columns(specs: Sequence[RewardSpec], rows: Sequence[Mapping[str, Any]], base: Path | None = None) -> None:
    """Make sure that the rows have what the rewards need; for tasks whose columns only their problems tell.

    Raises:
        TaskError: a reward needs a column that no row has to which it applies.
    """
    for spec in specs:
        if spec.use == ACCURACY:
            continue
        mine = [row for row in rows if all(matches(row.get(column), value) for column, value in spec.where.items())]
        for column in find(spec.use, base).columns if mine else ():
            if column not in STAGE_KEYS and all(row.get(column) is None for row in mine):
                has = ", ".join(name for name in mine[0] if mine[0][name] is not None and name != "prompt")
                raise TaskError(
                    f"reward {spec.use!r} needs {column}, which no problem has (they have: {has}); let the task put it"
                    f" into the problems' columns, or write {column}=None among the reward's parameters"
                )


def composite(rewards: Sequence[RewardSpec], tasks: Sequence[TaskSpec], context: StageContext[Any]) -> Composite:
    """The rewards of a stage as one TRL reward function.

    Raises:
        TaskError: a task does not exist, or two of one name are graded differently.
        RewardError: a reward or option does not exist, or a gate names no earlier reward.
    """
    accuracy = accuracy_options([resolve(spec, context.tasks, context.base) for spec in tasks], context.base)
    specs = [spec.model_copy(update={"options": context.resolved(spec.options)}) for spec in rewards]
    return Composite([reward_part(spec, accuracy) for spec in specs], context.base)
