"""What a recipe says about the problems that a stage uses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from pipeline.schema.pieces import DataRef
from pipeline.schema.strict import Strict


class TaskFilter(Strict):
    """Which problems of a task are taken: `{level: [3, 5], source: aime}`, `{pass_rate: [0.1, 0.9], from: "@rates"}`.

    Every other key is a column of the problems, a field of the rows that they were read from, or a column of `from`.
    Two numbers are a range, both ends included; any other list holds the values that pass.

    Attributes:
        source: the stage of kind `pass_rate` whose columns are meant; `from` in a recipe. If a recipe has one such
            stage, `pass_rate` means its column.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    source: DataRef | None = Field(default=None, alias="from")

    @property
    def wanted(self) -> dict[str, Any]:
        """Column -> what it has to be."""
        return dict(self.model_extra or {})


class TaskSpec(Strict):
    """Problems that a stage uses: `gsm8k/train`, or `{use: gsm8k, split: train, problems: 2000}`.

    Options of a built-in task may stand beside `use`: `{use: hub, path: owner/name, question: problem}`.

    Attributes:
        use: a task that the recipe defines under `tasks:`, a built-in task, or `file.py:Class`.
        split: which part of the task.
        problems: how many problems; all (or the task's default number, if it is generated) if not given.
        weight: how often its problems are drawn, relative to the other tasks of the stage.
        template: prompt template (see `pipeline.prompts.templates`); the task's own if not given.
        options: arguments of the task, on top of those that the recipe's `tasks:` gives.
        name: what its problems are called in tables, metrics and the column `task`. If not given, `use`; the last part
            of its name for a data set on the hub.
        filter: which of its problems; all if not given.
        bad_rows: the task's option of that name, for tasks that read files: `skip` leaves out rows without a usable
            answer, and counts them, where `error` stops.
    """

    use: str
    split: Literal["train", "test"] = "train"
    problems: Annotated[int, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    template: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None
    filter: TaskFilter | None = None
    bad_rows: Literal["error", "skip"] | None = None

    @property
    def title(self) -> str:
        """What its problems are called: the value of the column `task`."""
        return self.name or self.use

    @property
    def label(self) -> str:
        """Name with the split, such as `gsm8k/test`."""
        return f"{self.title}/{self.split}"
