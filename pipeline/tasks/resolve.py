"""From the words of a recipe to rows that a stage can use: `tasks: [gsm8k/train, {use: chain, problems: 500}]`.

A name means, in this order: what the recipe defines under `tasks:`, a built-in task, `file.py:Class`. A row is what
training, sampling and evaluation share::

    {"prompt": [{"role": "user", "content": "Compute 3 + 4 * 2."}], "answer": "11",
     "task": "arithmetic", "id": "arithmetic-7f3a…", "question": "Compute 3 + 4 * 2.", **columns}
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator

from pipeline.context import StageContext
from pipeline.schema.pieces import TaskSpec
from pipeline.tasks.base import BUILTIN, Problem, Split, Task, TaskError, load
from pipeline.templates import PromptTemplate, TemplateError, prompt_template
from rewards import Item
from rewards.registry import nearest
from rewards.text import plain
from rewards.verdict import PREFILL, TRUNCATED

SPLITS: tuple[str, ...] = get_args(Split)
ROW_KEYS = ("prompt", "answer", "task", "id", "question")
"""Keys that every prompt row has."""
STAGE_KEYS = (PREFILL, TRUNCATED)
"""Keys that stages put into rows for rewards."""
TRL_KEYS = (
    *("prompts", "completions", "completion", "completion_ids", "completions_ids", "image", "images"),
    *("trainer_state", "log_metric", "log_extra", "environments", "self"),
)
"""What TRL's trainer reads from a row, or what a reward is called with beside the columns."""


def parse(value: Any, split: Split = "train") -> Any:
    """`gsm8k/test` -> the fields of a `TaskSpec`; mappings only get the default split.

    Raises:
        ValueError: what follows the slash is no split, or the template does not exist.
    """
    if isinstance(value, Mapping):
        if isinstance(template := value.get("template"), str):
            prompt_template(template)
        return {"split": split, **value}
    if not isinstance(value, str):
        return value
    use, slash, tail = value.rpartition("/")
    if slash and tail in SPLITS:
        return {"use": use, "split": tail}
    if slash and ":" not in value:
        raise ValueError(f"{tail!r} is no split of a task{nearest(tail, SPLITS)}; write {use}/train or {use}/test")
    return {"use": value, "split": split}


def _parse_test(value: Any) -> Any:
    return parse(value, "test")


TaskField = Annotated[TaskSpec, BeforeValidator(parse)]
"""A `TaskSpec` in a recipe, also written `name` or `name/split`; the split is `train` where none is given."""
TestTaskField = Annotated[TaskSpec, BeforeValidator(_parse_test)]
"""The same for evaluation: the split is `test` where none is given."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A task, built.

    Attributes:
        name: what the recipe calls it: the value of the column `task`.
        spec: what the stage asked for.
        task: the task itself.
        template: its prompt template.
    """

    name: str
    spec: TaskSpec
    task: Task
    template: PromptTemplate

    @property
    def label(self) -> str:
        """Name with the split, such as `gsm8k/test`."""
        return self.spec.label

    def item(self, problem: Problem) -> Item:
        """Its gold answer, as a reward would be asked about it."""
        row = self.row(problem)
        columns = {key: value for key, value in row.items() if key != "prompt"}
        return Item(
            self.task.gold_completion(problem), problem.answer, plain(row["prompt"]), None, columns, row["prompt"]
        )

    def row(self, problem: Problem) -> dict[str, Any]:
        """The prompt row of one problem."""
        if clash := [name for name in problem.columns if name in (*ROW_KEYS, *STAGE_KEYS, *TRL_KEYS)]:
            raise TaskError(f"task {self.name!r}: problem {problem.id} has columns with reserved names: {clash}")
        return {
            "prompt": self.template(problem.question),
            "answer": problem.answer,
            "task": self.name,
            "id": problem.id,
            "question": problem.question,
            **problem.columns,
        }


def merged(spec: TaskSpec, definitions: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any], str | None]:
    """What a spec stands for once the recipe's `tasks:` are looked up: (use, options, template).

    Raises:
        TaskError: neither the recipe nor the house knows the name.
    """
    found = definitions.get(spec.use)
    if found is None:
        if ":" not in spec.use and spec.use not in BUILTIN:
            known = sorted({*definitions, *BUILTIN})
            raise TaskError(f"there is no task {spec.use!r}{nearest(spec.use, known)}. Known: {', '.join(known)}")
        return spec.use, {**spec.options, **_bad_rows(spec.bad_rows)}, spec.template
    bad_rows = _bad_rows(spec.bad_rows or found.get("bad_rows"))
    options = {**found.get("options", {}), **spec.options, **bad_rows}
    return found.get("use", spec.use), options, spec.template or found.get("template")


def _bad_rows(value: str | None) -> dict[str, str]:
    return {} if value is None else {"bad_rows": value}


def resolve(spec: TaskSpec, definitions: Mapping[str, Mapping[str, Any]], base: Path | None = None) -> Resolved:
    """Build the task that a spec names.

    Raises:
        TaskError: a task, option or template does not exist; the message names the nearest that does.
    """
    use, options, template = merged(spec, definitions)
    task = load(use, options, base)
    return Resolved(spec.use, spec, task, _template(template or task.template))


def built(
    specs: Sequence[TaskSpec], definitions: Mapping[str, Mapping[str, Any]], base: Path | None = None
) -> list[tuple[str, Task]]:
    """The tasks of a stage by name, without those that cannot be built; what is wrong with them is told elsewhere."""
    found = []
    for spec in specs:
        try:
            found.append((spec.use, resolve(spec, definitions, base).task))
        except (ValueError, TypeError):
            continue
    return found


def prompt_rows(specs: Sequence[TaskSpec], context: StageContext[Any]) -> list[dict[str, Any]]:
    """The rows of all tasks, mixed in an order that the stage's seed gives.

    A weight says how often a problem comes up: with weight 2 each one is there twice, with 0.5 every other one is.
    All rows have the same keys; a column that a task lacks is `None`.

    Raises:
        TaskError: see `resolve` and `Task.problems`.
    """
    rows: list[dict[str, Any]] = []
    for spec in specs:
        resolved = resolve(spec, context.tasks, context.base)
        own = problem_rows(resolved, context.seed)
        drawn = round(spec.weight * len(own))
        if not drawn:
            raise TaskError(f"{resolved.label} has {len(own)} problems, of which weight {spec.weight:g} leaves none")
        whole, part = divmod(drawn, len(own))
        rows += own * whole + own[:part]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    random.Random(context.seed).shuffle(rows)
    return [{key: row.get(key) for key in keys} for row in rows]


def problem_rows(resolved: Resolved, seed: int) -> list[dict[str, Any]]:
    """The rows of one task, in the task's own order.

    Raises:
        TaskError: the task has no problems, or see `Task.problems`.
    """
    spec = resolved.spec
    rows = [resolved.row(problem) for problem in resolved.task.problems(spec.split, spec.problems, seed)]
    if not rows:
        raise TaskError(f"{resolved.label} has no problems")
    return rows


def _template(name: str) -> PromptTemplate:
    try:
        return prompt_template(name)
    except TemplateError as error:
        raise TaskError(str(error)) from error
