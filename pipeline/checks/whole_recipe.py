"""What pydantic cannot see: references, files, tasks, rewards and trainer fields, checked across a whole recipe.

A config is walked field by field. Markers in the annotations (`Ref`, `InputFile`) and the types `TaskSpec` and
`RewardSpec` say what a value stands for, so that a new stage kind is checked without writing anything.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from pipeline import placement
from pipeline.checks import (
    adapter_targets,
    chat_templates,
    context_lengths,
    launch,
    model_arguments,
    refusals,
    task_filters,
)
from pipeline.context import exists
from pipeline.files import formats
from pipeline.files.adapter_folders import base_folder, is_adapter
from pipeline.files.source import Issue, Loc, Source
from pipeline.prompts.templates import TemplateError, prompt_template
from pipeline.rollout.base import RolloutError
from pipeline.rollout.vllm.options import check_options
from pipeline.schema import idle, trainer_fields
from pipeline.schema.pieces import (
    Fault,
    InputFile,
    Product,
    Ref,
    RewardSpec,
    RolloutSpec,
    StageConfig,
)
from pipeline.schema.reserved import FOLLOW_EVALUATIONS, NO_EVALUATION, TRAINER_FILES
from pipeline.schema.task import TaskSpec
from pipeline.schema.track import TRACKERS
from pipeline.schema.walk import Leaf, walk
from pipeline.tasks import base as tasks
from pipeline.tasks.grading import ACCURACY, column_fault
from pipeline.tasks.resolve import built, merged
from rewards import registry, unfit
from rewards.registry import located, nearest

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
"""The hub's names have 96 characters at most."""


def references(config: StageConfig) -> Iterator[tuple[Loc, str, Product | None]]:
    """Every `@stage` in a config: where, the stage's name, and the product that is wanted (`None`: any)."""
    seen: set[tuple[Loc, str]] = set()
    for leaf in walk(config):
        if isinstance(leaf.value, str) and leaf.value.startswith("@"):
            marker = leaf.marker(Ref)
            if marker is None and any(other.marker(Ref) for other in walk(config) if other.loc == leaf.loc):
                continue
            if (leaf.loc, leaf.value) not in seen:
                seen.add((leaf.loc, leaf.value))
                yield leaf.loc, leaf.value[1:], marker.product if marker else None


def input_files(config: BaseModel, base: Path) -> Iterator[tuple[Loc, Path]]:
    """Every file or folder outside the run that a config reads, existing or not."""
    for leaf in walk(config):
        if not isinstance(leaf.value, str) or leaf.value.startswith("@"):
            continue
        file, code, _ = leaf.value.rpartition(".py:")
        path = located(f"{file}.py" if code else leaf.value, base)
        marked = leaf.marker(InputFile)
        named = marked is not None and (marked.required or _looks_local(leaf.value) or exists(path))
        optional = _in_options(leaf.loc) and leaf.value.strip("~./") and exists(path) and formats.matching(path)
        if named or optional or (leaf.loc[0] == "trainer" and leaf.loc[1:] in [(name,) for name in TRAINER_FILES]):
            yield leaf.loc, path
            if named and exists(path) and is_adapter(path) and (under := base_folder(path)) is not None:
                yield leaf.loc, under


def _in_options(loc: Loc) -> bool:
    return any(part in ("options", "use", "model") for part in loc)


def _looks_local(text: str) -> bool:
    files = (".gguf", ".safetensors", ".jinja", ".j2")
    return text.startswith(("/", "./", "../", "~")) or text.endswith(files) or text.count("/") > 1


def keys_at(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that a config has at a place; empty where any key goes."""
    found = model_at(model, loc)
    return [] if found is None else [info.alias or name for name, info in found.model_fields.items()]


def model_at(model: Any, loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model that stands at a place of a config, if one does."""
    candidates: list[Any] = [model]
    for part in loc:
        following: list[Any] = []
        for candidate in candidates:
            for arm in _arms(candidate):
                if isinstance(arm, type) and issubclass(arm, BaseModel):
                    named = {info.alias or name: info for name, info in arm.model_fields.items()}
                    following.extend([named[str(part)].annotation] if part in named else [])
                elif isinstance(part, int) or get_origin(arm) is dict:
                    following.extend(get_args(arm)[-1:])
        candidates = following or candidates
    for candidate in candidates:
        for arm in _arms(candidate):
            if isinstance(arm, type) and issubclass(arm, BaseModel):
                return arm
    return None


def _arms(annotation: Any) -> Iterator[Any]:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def check(recipe: Recipe, text: Source, names: Sequence[str]) -> list[Issue]:
    """Every fault of a recipe's stages that their own types do not show.

    Args:
        recipe: the recipe; stages that failed their own check are missing from it.
        text: the source, for line numbers.
        names: the names of all stages, failed ones included.
    """
    definitions = list(_check_definitions(recipe))
    issues = [text.issue(loc, message) for loc, message in definitions]
    told = {message for _, message in definitions}
    for stage, config in recipe.stages.items():
        found = [
            *_check_references(recipe, stage, config, names),
            *_check_files(config, recipe.base, names),
            *refusals.models(config, recipe.base),
            *refusals.code(config),
            *refusals.secrets(config),
            *(fault for fault in _check_tasks(recipe, config) if fault[1] not in told),
            *_check_rewards(config, recipe),
            *_check_trainer(config, recipe.base),
            *idle.faults(config),
            *launch.faults(config, recipe.base),
            *placement.faults(config, recipe.base),
            *_check_engines(config),
            *_check_unread(stage, config, text),
            *context_lengths.faults(recipe, config),
            *chat_templates.faults(recipe.stages, config, recipe.base),
            *adapter_targets.faults(recipe, config),
            *model_arguments.faults(recipe, config),
            *adapter_targets.exported(recipe, config),
            *task_filters.faults(recipe, config),
            *config.faults(recipe.base),
        ]
        issues.extend(text.issue(("stages", stage, *loc), message) for loc, message in found)
    return issues + _check_cycles(recipe, text)


def notices(recipe: Recipe, text: Source) -> list[Issue]:
    """The recipe's own settings that have no effect with the engine that the command line has chosen instead."""
    return [
        text.issue(("stages", stage, *loc), message)
        for stage, config in recipe.stages.items()
        for loc, message in _check_unread(stage, config, text, noticed=True)
    ]


def _check_definitions(recipe: Recipe) -> Iterator[Fault]:
    for name, definition in recipe.tasks.items():
        for loc, message in (*refusals.code(definition), *refusals.secrets(definition)):
            yield ("tasks", name, *loc), message
        use, options, template = merged(TaskSpec(use=name), {name: definition.model_dump()})
        if (fault := _task_fault(use, options, template, recipe.base)) is not None:
            yield ("tasks", name), fault
    if isinstance(task := recipe.data.get("task"), str):
        try:
            merged(TaskSpec(use=task), _definitions(recipe))
        except tasks.TaskError as error:
            yield ("task",), str(error)


def _check_references(recipe: Recipe, stage: str, config: StageConfig, names: Sequence[str]) -> Iterator[Fault]:
    for loc, target, wanted in references(config):
        if target == stage:
            yield loc, f"the stage {stage!r} refers to itself"
        elif target not in names:
            yield loc, f"there is no stage {target!r}{nearest(target, names)}. Stages: {', '.join(names)}"
        elif target in recipe.stages and wanted is not None and recipe.stages[target].product is not wanted:
            given = recipe.stages[target]
            yield loc, f"a {wanted.value} is wanted, but {target!r} ({given.kind}) publishes {given.product.value}"
    for index, target in enumerate(config.after):
        if target not in names:
            yield ("after", index), f"there is no stage {target!r}{nearest(target, names)}"


def _check_files(config: StageConfig, base: Path, names: Sequence[str]) -> Iterator[Fault]:
    forgotten = {
        leaf.loc: f'{leaf.value!r} is a stage of this recipe: write "@{leaf.value}", with the quotes'
        for leaf in walk(config)
        if leaf.marker(Ref) and leaf.value in names and not formats.matching(located(leaf.value, base))
    }
    yield from forgotten.items()
    for loc, path in input_files(config, base):
        if loc not in forgotten and not formats.matching(path):
            yield loc, formats.absent(path)
    for leaf in walk(config):
        marked = leaf.marker(InputFile)  # a file that must be there has been told above
        if marked and not marked.required and isinstance(leaf.value, str) and not leaf.value.startswith("@"):
            local = _looks_local(leaf.value) or formats.matching(located(leaf.value, base))
            if not local and not _HUB_ID.fullmatch(leaf.value):
                yield leaf.loc, f"{leaf.value!r} is neither '@stage', a file, nor a hub id"


def _check_tasks(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    for leaf in walk(config):
        if not isinstance(leaf.value, TaskSpec):
            continue
        try:
            use, options, template = merged(leaf.value, _definitions(recipe))
        except tasks.TaskError as error:
            yield leaf.loc, str(error)
            continue
        if (fault := _task_fault(use, options, template, recipe.base)) is not None:
            yield leaf.loc, fault


def _definitions(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {name: definition.model_dump() for name, definition in recipe.tasks.items()}


def _task_fault(use: str, options: Mapping[str, Any], template: str | None, base: Path) -> str | None:
    """What is wrong with a task, its options or its template; it is built to see that, but reads no data yet."""
    try:
        task = tasks.load(use, options, base)
        grader = registry.check(task.grader, task.grader_options, base, in_trainer=False)
        if (fault := column_fault(task.grader, grader.columns, {}, [(use, task)])) is not None:
            return fault
        if fault := unfit.function(grader):
            return f"task {use!r}: its grader {task.grader!r} {fault}"
        prompt_template(template or task.template)
    except (ValueError, TypeError) as error:
        return str(error) if isinstance(error, tasks.TaskError | TemplateError) else f"task {use!r}: {error}"
    return None


def _check_rewards(config: StageConfig, recipe: Recipe) -> Iterator[Fault]:
    known = built(getattr(config, "tasks", None) or (), _definitions(recipe), recipe.base)
    for leaf in walk(config):
        if isinstance(leaf.value, list) and leaf.value and all(isinstance(item, RewardSpec) for item in leaf.value):
            yield from _check_gates(leaf)
            yield from _check_routes(leaf, [spec.title for spec in getattr(config, "tasks", None) or ()])
        if isinstance(leaf.value, RewardSpec) and leaf.value.use != ACCURACY:
            try:
                spec, in_trainer = leaf.value, config.trainer_class is not None
                found = registry.check(spec.use, spec.options, recipe.base, in_trainer, run=False)
                if (fault := column_fault(spec.use, found.columns, spec.where, known)) is not None:
                    yield leaf.loc, fault
                if fault := unfit.function(found):
                    yield leaf.loc, f"reward {spec.use!r} {fault}"
            except registry.UnknownRewardError as error:
                yield leaf.loc, str(registry.UnknownRewardError(error.use, [ACCURACY, *error.known]))
            except registry.RewardError as error:
                yield leaf.loc, str(error)


def _check_gates(rewards: Leaf) -> Iterator[Fault]:
    earlier: list[str] = []
    for index, spec in enumerate(rewards.value):
        if spec.gate is not None and spec.gate not in earlier:
            hint = nearest(spec.gate, earlier) or f"; earlier ones: {', '.join(earlier) or 'none'}"
            yield (*rewards.loc, index, "gate"), f"{spec.gate!r} is not an earlier reward{hint}"
        if spec.label in earlier:
            yield (*rewards.loc, index), f"two rewards are called {spec.label!r}; give one of them a name"
        if spec.clip is not None and spec.clip[0] > spec.clip[1]:
            yield (*rewards.loc, index, "clip"), "has to be [low, high], low first"
        earlier.append(spec.label)


def _check_routes(rewards: Leaf, known: list[str]) -> Iterator[Fault]:
    for index, spec in enumerate(rewards.value):
        wanted = spec.where.get("task", [])
        for name in wanted if isinstance(wanted, list) else [wanted]:
            if known and name not in known:
                hint = nearest(str(name), known) or f"; it has: {', '.join(known)}"
                yield (*rewards.loc, index, "where", "task"), f"the stage has no task {name!r}{hint}"


def _check_trainer(config: StageConfig, base: Path) -> Iterator[Fault]:
    values: Mapping[str, Any] = getattr(config, "trainer", {})
    if config.trainer_class is None or not values:
        return
    yield from _schedule_fault(config, values)
    name = config.trainer_class.rpartition(":")[2]
    known = trainer_fields.fields(config.trainer_class)
    for key, value in values.items():
        if key in config.reserved:
            unknown = trainer_fields.unknown_choice(known[key], value) if key in known else None
            yield ("trainer", key), unknown or f"cannot be set here: {config.reserved[key]}"
        elif key not in known:
            yield ("trainer", key), f"{name} has no field {key!r}{nearest(key, known)}"
        elif (fault := trainer_fields.mismatch(known[key], value, config.choices.get(key, ()))) is not None:
            yield ("trainer", key), fault
        elif key == "lr_scheduler_type" and value in FOLLOW_EVALUATIONS:
            yield ("trainer", key), f"{value} follows evaluations, and {NO_EVALUATION}"
        elif key == "report_to":
            yield from ((("trainer", key), message) for message in _unknown_trackers(value))
        elif key in TRAINER_FILES and isinstance(value, str) and (file := located(value, base)).is_file():
            if (message := _not_json(file)) is not None:
                yield ("trainer", key), message
        elif key == "model_init_kwargs" and "distributed_config" in (value or {}):
            yield ("trainer", key, "distributed_config"), "set launch: {accelerate: ep-1node}, or a config like it"


def _unknown_trackers(value: Any) -> Iterator[str]:
    known = ("none", *(name for name in trainer_fields.trackers() if name not in TRACKERS))
    for name in [value] if isinstance(value, str) else value or ():
        if name in (*TRACKERS, "all"):
            wanted = "wandb" if name == "all" else name
            yield f"cannot be {name}: set `track: [{wanted}]` at the top of the recipe: all stages in one run"
        elif name not in known:
            yield f"there is no tracker {name!r}{nearest(str(name), known)}. Known: {', '.join(known)}"


def _not_json(file: Path) -> str | None:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{file} is not JSON: {error}"
    return None


def _schedule_fault(config: StageConfig, values: Mapping[str, Any]) -> Iterator[Fault]:
    """Arguments that the schedule of the learning rate does not take: told at the first step otherwise."""
    given = values.get("lr_scheduler_kwargs")
    schedule = values.get("lr_scheduler_type", config.trainer_defaults.get("lr_scheduler_type", "linear"))
    if not isinstance(given, dict) or not given or schedule in FOLLOW_EVALUATIONS:
        return
    known = trainer_fields.schedule_arguments(str(schedule))
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            where = ("trainer", "lr_scheduler_kwargs", str(name))
            yield where, f"the schedule {schedule} has no argument {name!r}{nearest(str(name), known)}. It has: {takes}"


def _check_engines(config: StageConfig) -> Iterator[Fault]:
    for leaf in walk(config):
        if isinstance(leaf.value, RolloutSpec):
            in_trainer = config.trainer_class is not None and leaf.value.process is None
            try:
                check_options(leaf.value.engine_options, in_trainer)
            except RolloutError as error:
                yield leaf.loc, str(error)


def _check_unread(stage: str, config: StageConfig, text: Source, noticed: bool = False) -> Iterator[Fault]:
    """Settings that the stage's engine does not read: those to refuse, or those that are only `noticed`, since the
    recipe has them for its own engine or temperature, and the command line has chosen another."""
    for loc, message in idle.of_engine(config):
        chosen = any(text.by_override(("stages", stage, "rollout", name)) for name in idle.chosen_by(loc))
        if noticed == (chosen and not text.by_override(("stages", stage, *loc))):
            yield loc, message


def _check_cycles(recipe: Recipe, text: Source) -> list[Issue]:
    from graphlib import CycleError, TopologicalSorter

    needs = {
        name: {target for _, target, _ in references(config) if target in recipe.stages} | set(config.after)
        for name, config in recipe.stages.items()
    }
    try:
        TopologicalSorter({name: targets - {name} for name, targets in needs.items()}).prepare()
    except CycleError as error:
        loop = [str(name) for name in error.args[1]][::-1]
        return [text.issue(("stages", loop[0]), f"stages wait for each other: {' -> '.join(loop)}")]
    return []
