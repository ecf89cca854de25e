"""The field `decontaminate` of training stages: tasks whose problems must not be learnt.

    zero: {kind: grpo, model: "@base", tasks: [math/train], decontaminate: [math500, aime]}

Training questions, rows and documents that ask what one of these tasks asks are left out, and counted as `contaminated`
among the stage's metrics; see `pipeline.data.filters.Contamination` for what counts as the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.context import StageContext
from pipeline.data.filters import Contamination
from pipeline.schema.pieces import TaskSpec
from pipeline.tasks.base import TaskError
from pipeline.tasks.resolve import problem_rows, prompt_rows, resolve


def contamination(specs: Sequence[TaskSpec], context: StageContext[Any]) -> Contamination:
    """What must not be learnt: the problems of these tasks; nothing if there are none."""
    tests = [resolve(spec, context.tasks, context.base) for spec in specs]
    return Contamination(row["question"] for test in tests for row in problem_rows(test, context.seed))


def clean_prompts(
    tasks: Sequence[TaskSpec], tests: Sequence[TaskSpec], context: StageContext[Any]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The prompt rows of a stage's tasks without those of its test tasks, and as a metric how many that were.

    Raises:
        TaskError: none is left; or see `prompt_rows`.
    """
    rows = prompt_rows(tasks, context)
    unclean = contamination(tests, context)
    clean = unclean.clean(rows, lambda row: str(row["question"]))
    if not clean:
        raise TaskError(f"decontaminate: all {len(rows)} problems of the stage are those of its test sets")
    return clean, contaminated(tests, unclean.left_out)


def contaminated(tests: Sequence[TaskSpec], left_out: int) -> dict[str, int]:
    """The metric of a stage that looks for contamination; none of one that does not."""
    return {"contaminated": left_out} if tests else {}
