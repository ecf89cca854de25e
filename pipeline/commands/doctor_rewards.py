"""Reward functions of one's own, asked about gold answers before a model is trained with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.doctor import Finding, Level

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.schema.pieces import RewardSpec
    from rewards import Item

TRIED_PROBLEMS = 8
"""Gold answers of each task that reward functions are asked about."""


def own_rewards(checked: Recipe) -> Iterator[Finding]:
    """Ask every reward function that is not ours about a few gold answers, once a stage."""
    from pipeline.checks import needs
    from pipeline.tasks.base import TaskError
    from pipeline.tasks.grading import ACCURACY
    from pipeline.tasks.resolve import resolve
    from rewards.registry import RewardError, find

    definitions = {name: definition.model_dump() for name, definition in checked.tasks.items()}
    for stage, config in checked.stages.items():
        specs: list[RewardSpec] = [*getattr(config, "rewards", ()), *getattr(config, "require", ())]
        own = [spec for spec in specs if spec.use != ACCURACY and not find(spec.use, checked.base).is_verifier]
        items = []
        try:
            for task in getattr(config, "tasks", ()) if own else ():
                resolved = resolve(task, definitions, checked.base)
                problems = resolved.task.problems(task.split, task.problems, checked.seed)[:TRIED_PROBLEMS]
                items += [resolved.item(problem) for problem in problems]
        except TaskError:  # told where the task's golds are looked at
            continue
        for spec in own:
            subject = f"{stage}: {spec.label}"
            if (why := needs.hides_a_package(spec.use)) is not None:
                yield Finding(Level.WARNING, subject, why)
            try:
                yield _scores_golds(subject, spec, items, checked.base)
            except RewardError as error:
                yield Finding(Level.ERROR, subject, str(error))


def _scores_golds(subject: str, spec: RewardSpec, items: Sequence[Item], base: Path) -> Finding:
    from rewards import Batch, RewardFunction
    from rewards.composite import matches
    from rewards.registry import TRAINER_ARGUMENTS, find, never_returns, required

    found = find(spec.use, base)
    if never_returns(found.target):
        return Finding(Level.ERROR, subject, "returns nothing, so no row will have a score: a `return` is missing")
    if given := [name for name in required(found.target) if name in (*TRAINER_ARGUMENTS, "completion_ids")]:
        return Finding(Level.OK, subject, f"not tried: it needs {', '.join(given)}, which only a trainer has")
    mine = [item for item in items if all(matches(item.columns.get(name), value) for name, value in spec.where.items())]
    function = RewardFunction(spec.use, spec.options, base, in_trainer=False)
    try:
        scores = [verdict.score for verdict in function.verdicts(Batch.of(mine))]
    finally:
        function.close()
    if mine and all(score is None for score in scores):
        message = f"gives no score to any of {len(mine)} gold answers, so it teaches nothing: is a `return` missing?"
        return Finding(Level.ERROR, subject, message)
    known = [score for score in scores if score is not None]
    said = f"scores {len(known)} of {len(mine)} gold answers"
    return Finding(Level.OK, subject, f"{said}, from {min(known):g} to {max(known):g}" if known else said)
