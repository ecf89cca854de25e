"""What a stage does not learn: the fields `decontaminate` and `dedup` of training stages.

    zero: {kind: grpo, model: "@base", tasks: [math/train], decontaminate: [math500, aime]}

Training questions, rows and documents that ask what one of these tasks asks are left out, and counted as `contaminated`
among the stage's metrics; see `pipeline.data.filters.Contamination` for what counts as the same. Without the field,
these are all tasks that the recipe's `evaluate` stages and the stage's own `watch` score, except those that the stage
itself is to learn, and tasks that generate their problems.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from pipeline.context import StageContext
from pipeline.data.cleaning import LEFT_OUT, Cleaner, Reason, Seen
from pipeline.data.filters import Contamination
from pipeline.schema.task import TaskSpec
from pipeline.tasks.base import TaskError
from pipeline.tasks.resolve import problem_rows, prompt_rows, resolve

logger = logging.getLogger(__name__)


def contamination(
    specs: Sequence[TaskSpec] | None, context: StageContext[Any], dedup: bool = False, learnt: Sequence[TaskSpec] = ()
) -> Cleaner:
    """What leaves out the problems of these tasks; see the top of this module.

    Args:
        specs: the field `decontaminate`.
        context: the stage.
        dedup: the field `dedup`.
        learnt: tasks that the stage learns.
    """
    own = {spec.label for spec in learnt}
    watch = getattr(context.config, "watch", None)
    watched = (
        [] if watch is None else [task.model_copy(update={"problems": None, "filter": None}) for task in watch.tasks]
    )
    held_out = {spec.label: spec for spec in [*watched, *context.evaluated]}.values() if specs is None else specs
    tests = [resolve(spec, context.tasks, context.base) for spec in held_out]
    if specs is None:
        tests = [test for test in tests if test.label not in own and not test.task.generated]
    questions = (row["question"] for test in tests for row in problem_rows(test, context))
    asked = Contamination(questions, wording=[text for test in tests for text in test.task.around])
    first = os.environ.get("RANK", "0") == "0"
    return Cleaner(asked, dedup, context.scratch / LEFT_OUT if first else None, [test.label for test in tests])


def clean_prompts(
    tasks: Sequence[TaskSpec], tests: Sequence[TaskSpec] | None, context: StageContext[Any], dedup: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The prompt rows of a stage's tasks without those of its test tasks, and as metrics how many that were.

    Raises:
        TaskError: none is left; or see `prompt_rows`.
    """
    cleaner = contamination(tests, context, dedup, tasks)
    seen = Seen()
    rows = prompt_rows(tasks, context, lambda row: cleaner.keeps(row["question"], row["id"], seen=seen))
    if not rows:
        raise TaskError(f"decontaminate: all {cleaner.left_out} problems of the stage are those of its test sets")
    return rows, left_out(cleaner)


def left_out(cleaner: Cleaner) -> dict[str, int]:
    """The metrics of a stage: rows that ask what a test set asks, if it has any, and rows that came before."""
    metrics = {"contaminated": cleaner.counts[Reason.CONTAMINATED]} if cleaner.sets else {}
    repeated = cleaner.counts[Reason.DUPLICATE]
    if repeated and not cleaner.dedup:
        logger.warning("%d rows are duplicates and are used again: dedup: true leaves them out", repeated)
    return {**metrics, "duplicates": repeated} if repeated or cleaner.dedup else metrics
