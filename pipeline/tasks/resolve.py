"""From the words of a recipe to rows that a stage can use: `tasks: [gsm8k/train, {use: chain, problems: 500}]`.

A name means, in this order: what the recipe defines under `tasks:`, a built-in task, `file.py:Class`. A row is what
training, sampling and evaluation share::

    {"prompt": [{"role": "user", "content": "Compute 3 + 4 * 2."}], "answer": "11",
     "task": "arithmetic", "id": "arithmetic-7f3a…", "question": "Compute 3 + 4 * 2.", **columns}
"""

from __future__ import annotations

import inspect
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator

from pipeline.context import StageContext
from pipeline.files import formats
from pipeline.files.columns import FieldError, passes
from pipeline.files.rows import RowError
from pipeline.prompts.templates import PromptTemplate, TemplateError, prompt_template
from pipeline.schema.hub import HubSource
from pipeline.schema.task import TaskSpec
from pipeline.tasks.base import BUILTIN, Problem, Split, Task, TaskError, check, load
from pipeline.tasks.hub import part_of
from pipeline.tasks.rows import RowsTask
from rewards import Item
from rewards.registry import nearest
from rewards.text import plain
from rewards.verdict import PREFILL, TRUNCATED

logger = logging.getLogger(__name__)

HUB = "hub"
"""The task that reads any data set on the hub."""
_DATA_FILE = re.compile(r"(.+\.(?:jsonl?|csv|parquet))(?:/(?:train|test))?", re.IGNORECASE)
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
        return _named({"split": split, **with_options(value)})
    if not isinstance(value, str):
        return value
    if (found := _DATA_FILE.fullmatch(value)) is not None:
        raise ValueError(
            f"{found[1]} is a data file, and no task: the task jsonl reads it."
            f" In a recipe write `{{use: jsonl, options: {{path: {found[1]}}}}}`,"
            f" on the command line `jsonl -o path={found[1]}`"
        )
    use, slash, tail = value.rpartition("/")
    if slash and tail in SPLITS:
        return {"use": use, "split": tail}
    if slash and ":" not in value:
        raise ValueError(f"{tail!r} is not a split of a task{nearest(tail, SPLITS)}; write {use}/train or {use}/test")
    return {"use": value, "split": split}


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """A data set on the hub has its own name, and is of the part of a task that the name of its split says."""
    options = value.get("options")
    if value.get("use") != HUB or value.get("name") is not None or not isinstance(options, Mapping):
        return value
    named = options.get("split")
    whole = named is not None and options.get("test_split") is None and options.get("test_share") is None
    part = {"split": part_of(str(named))} if whole else {}
    return {**value, **part, "name": str(options.get("path", HUB)).rpartition("/")[2]}


def with_options(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task whose options may stand beside `use`.

    The split of a data set on the hub is an option, too.

    Raises:
        ValueError: a key is nearly an option.
    """
    given = dict(value)
    use, options = given.get("use"), given.get("options", {})
    if not isinstance(use, str) or use not in BUILTIN or not isinstance(options, Mapping):
        return given
    beside = [key for key in given if key not in TaskSpec.model_fields]
    if beside:
        known = inspect.signature(check(use, {})).parameters
        options = {**options, **{key: given.pop(key) for key in beside if key in known}}
        for key in given.keys() - TaskSpec.model_fields.keys():
            if (hint := nearest(key, known)) and not nearest(key, TaskSpec.model_fields):
                raise ValueError(f"task {use!r} has no option {key!r}{hint}")
    if use == HUB and "split" not in options:
        options = {**options, "split": given.pop("split", None)}
    return {**given, "options": options} if options else given


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
            "answer": problem.answer if isinstance(problem.answer, str) else list(problem.answer),
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
    if isinstance(task, RowsTask) and spec.filter is not None and spec.filter.source is None:
        task.columns |= {name: name for name in spec.filter.wanted if name not in task.columns}
    return Resolved(spec.title, spec, task, _template(template or task.template))


def repository(
    spec: TaskSpec, definitions: Mapping[str, Mapping[str, Any]], base: Path | None = None
) -> HubSource | None:
    """The data set on the hub that a task's problems come from; `None` if they come from elsewhere, or it is faulty."""
    return next((task.repository for _, task in built([spec], definitions, base)), None)


def built(
    specs: Sequence[TaskSpec], definitions: Mapping[str, Mapping[str, Any]], base: Path | None = None
) -> list[tuple[str, Task]]:
    """The tasks of a stage by name, without those that cannot be built; other checks report these."""
    found = []
    for spec in specs:
        try:
            found.append((spec.title, resolve(spec, definitions, base).task))
        except (ValueError, TypeError):
            continue
    return found


def prompt_rows(
    specs: Sequence[TaskSpec], context: StageContext[Any], keeps: Callable[[Mapping[str, Any]], bool] | None = None
) -> list[dict[str, Any]]:
    """The rows of all tasks, mixed in an order that the stage's seed gives.

    A weight says how often a problem comes up: with weight 2 each one is there twice, with 0.5 every other one is.
    All rows have the same keys; a column that a task lacks is `None`.

    Args:
        specs: the tasks.
        context: the stage.
        keeps: whether a row may be taken; all if not given.

    Raises:
        TaskError: see `resolve` and `Task.problems`.
    """
    rows: list[dict[str, Any]] = []
    for spec in specs:
        resolved = resolve(spec, context.tasks, context.base)
        own = problem_rows(resolved, context)
        if keeps is not None and not (own := [row for row in own if keeps(row)]):
            continue
        drawn = round(spec.weight * len(own))
        if not drawn:
            raise TaskError(f"{resolved.label} has {len(own)} problems, of which weight {spec.weight:g} leaves none")
        whole, part = divmod(drawn, len(own))
        rows += own * whole + own[:part]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    random.Random(context.seed).shuffle(rows)
    if any(isinstance(row["answer"], list) for row in rows):  # a column has one type
        rows = [{**row, "answer": _listed(row["answer"])} for row in rows]
    return [{key: row.get(key) for key in keys} for row in rows]


def once_each(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each problem of several tasks once, whatever their weights.

    Raises:
        TaskError: two problems of a task have the same id.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if found.setdefault((row["task"], row["id"]), row)["question"] != row["question"]:
            raise TaskError(f"task {row['task']}: two problems have the id {row['id']}, and would be taken for one")
    return list(found.values())


def _listed(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


def problem_rows(resolved: Resolved, context: StageContext[Any]) -> list[dict[str, Any]]:
    """The rows of one task that its filter lets pass, in the task's own order.

    Raises:
        TaskError: the task has no problems, or too few of them pass; or see `Task.problems`.
    """
    spec = resolved.spec
    wanted = spec.filter.wanted if spec.filter is not None else {}
    problems = resolved.task.problems(spec.split, None if wanted else spec.problems, context.seed)
    rows = [resolved.row(problem) for problem in problems]
    if not rows:
        raise TaskError(f"{resolved.label} has no problems")
    if not wanted:
        return rows
    return passing(resolved, rows, _measured(resolved, context))


def passing(
    resolved: Resolved, rows: Sequence[dict[str, Any]], measured: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The rows that a task's filter lets pass, as many as are wanted.

    Args:
        resolved: the task, which has a filter.
        rows: all of its rows.
        measured: further columns of rows, by their ids; a row that is not among them does not pass.

    Raises:
        TaskError: too few of them pass, or there is no such column.
    """
    spec = resolved.spec
    wanted = spec.filter.wanted if spec.filter is not None else {}
    try:
        passed = [row for row in rows if measured is None or row["id"] in measured]
        passed = [row for row in passed if passes({**row, **(measured or {}).get(row["id"], {})}, wanted)]
    except FieldError as error:
        raise TaskError(f"{resolved.label}: filter: {error}") from error
    logger.info("%s: %d of %d problems pass the filter %s", resolved.label, len(passed), len(rows), wanted)
    if len(passed) < (spec.problems or 1):
        some = f"fewer than the {spec.problems} that are wanted" if passed else "so none is left"
        raise TaskError(f"{resolved.label}: {len(passed)} of {len(rows)} problems pass the filter {wanted}, {some}")
    return passed[: spec.problems]


def _measured(resolved: Resolved, context: StageContext[Any]) -> dict[str, dict[str, Any]] | None:
    """What a `pass_rate` stage found out about each problem, by its id.

    Raises:
        TaskError: it was not asked about any of them.
    """
    if resolved.spec.filter is None or (source := resolved.spec.filter.source) is None:
        return None
    try:
        every = [row for _, row in formats.read(context.data_path(source))]
    except RowError as error:
        raise TaskError(str(error)) from error
    own = [row for row in every if row.get("task") == resolved.name]  # several tasks may count their problems alike
    found = {str(row.get("id")): row for row in own or every}
    columns = {name for row in found.values() for name in row if name not in ROW_KEYS}
    return {identity: {name: row[name] for name in columns if name in row} for identity, row in found.items()}


def _template(name: str) -> PromptTemplate:
    try:
        return prompt_template(name)
    except TemplateError as error:
        raise TaskError(str(error)) from error
