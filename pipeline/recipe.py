"""A recipe is data: a YAML file that becomes typed stage configs, or one clear error that names every fault.

    name: r1-zero-gsm8k
    task: gsm8k
    stages:
      base: {kind: import_model, model: Qwen/Qwen2.5-0.5B}
      zero: {kind: grpo, model: "@base", rewards: [accuracy]}
      score: {kind: evaluate, model: "@zero"}

Nothing heavy is imported here: a recipe is checked whole, down to the fields of TRL's config classes and the options
of rewards and tasks, in a fraction of a second and before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipeline.artifacts import RUN_RECORD
from pipeline.checks import whole_recipe
from pipeline.files import source
from pipeline.files.durable import LONGEST_NAME
from pipeline.files.source import Issue, Loc, RecipeError, Source, brief
from pipeline.schema import trainer_fields, trainer_numbers
from pipeline.schema.environment import HIDDEN
from pipeline.schema.hub import FILE_ARM, HUB_ARM
from pipeline.schema.launch import Launch
from pipeline.schema.pieces import Seed, StageConfig
from pipeline.schema.strict import EntryError, Strict
from pipeline.schema.task import TaskFilter, TaskSpec
from pipeline.schema.track import Track, Tracks
from pipeline.schema.walk import replaced
from pipeline.stages.registry import KINDS, config_class
from pipeline.tasks.resolve import with_options
from rewards.registry import nearest

__all__ = ["Issue", "Recipe", "RecipeError", "TaskDefinition", "load", "locate", "shipped"]

SCORING, PASS_RATE = ("evaluate", "tree_search"), "pass_rate"
"""Stage kinds that other stages are told about: those that score on held-out problems, and one whose name is also that
of the column that it measures."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class TaskDefinition(Strict):
    """A task that the recipe's stages share by name.

    Attributes:
        use: a built-in task, `package.module:Class`, or `file.py:Class`.
        template: prompt template; the task's own if not given.
        options: arguments of the task.
        filter: which of its problems, unless a stage says otherwise.
        bad_rows: what happens to rows without a usable answer; see `TaskSpec`.
    """

    use: str
    template: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    filter: TaskFilter | None = None
    bad_rows: Literal["error", "skip"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return with_options(value) if isinstance(value, Mapping) else value


class Header(Strict):
    """The top level of a recipe.

    Attributes:
        name: names the run's folder, `runs/NAME`.
        description: a sentence or two for the report.
        seed: seed of every stage that does not set its own.
        jobs: how many stages may run at once.
        warm: whether the process of the next stage loads its libraries while a stage works. If not given: where there
            are GPUs; elsewhere, all stages are forked from one process that has loaded them.
        track: trackers that the run is mirrored to, such as [wandb, tensorboard]: names, or mappings (see `Track`).
        task: the task of stages that name none: its train split, or its test split for `evaluate`.
        tasks: tasks that stages use by name, such as {gsm8k: {use: gsm8k, template: boxed}}.
        launch: how the stages' processes start; a stage may have its own.
        defaults: settings by stage kind, beneath those of each stage of that kind.
        stages: name -> settings, in the order of the table and the report. A name has letters, digits, `_` and `-`.
    """

    name: str = Field(max_length=LONGEST_NAME)
    description: str = ""
    seed: Seed = 0
    jobs: int = Field(default=1, ge=1)
    warm: bool | None = None
    track: Tracks = Field(default_factory=list)
    task: str | None = None
    tasks: dict[str, TaskDefinition] = Field(default_factory=dict)
    launch: Launch | None = None
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"has to be letters, digits, '_', '-' and '.', as it names a folder, not {name!r}")
        return name


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe.

    Attributes:
        name: names the run's folder.
        description: a sentence or two for people.
        path: the file; relative paths in the recipe are read against its folder.
        seed: seed of every stage that does not set its own.
        jobs: how many stages may run at once.
        tasks: tasks that stages use by name.
        stages: name -> config, in the order of the file.
        data: the recipe as plain data, overrides and defaults applied.
        warm: whether the next stage's process is started early; see the same field of the file.
        track: trackers that the run is mirrored to.
        notices: what is worth knowing before it runs, such as a setting without effect on the engine that an override
            has chosen.
    """

    name: str
    path: Path
    stages: Mapping[str, StageConfig]
    description: str = ""
    seed: int = 0
    jobs: int = 1
    tasks: Mapping[str, TaskDefinition] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    warm: bool | None = None
    track: Sequence[Track] = ()
    notices: Sequence[Issue] = ()

    @property
    def evaluated(self) -> list[TaskSpec]:
        """The tasks that its `evaluate` stages score, whole: what no stage is to learn unless it says so."""
        scored = [spec for config in self.stages.values() if config.kind in SCORING for spec in tasks_of(config)]
        whole = {"problems": None, "filter": None}
        return list({spec.label: spec.model_copy(update=whole) for spec in scored}.values())

    @property
    def base(self) -> Path:
        """The folder of the recipe file."""
        return self.path.parent


def tasks_of(config: StageConfig) -> list[TaskSpec]:
    """The field `tasks` of a stage; empty if it has none."""
    return list(getattr(config, "tasks", None) or ())


def shipped() -> dict[str, Path]:
    """The recipes that come with the package: `nano/r1` -> file."""
    root = Path(str(files("recipes")))
    return {str(path.relative_to(root)).removesuffix(".yaml"): path for path in sorted(root.rglob("*.yaml"))}


def locate(name: str | Path) -> Path:
    """The file of a recipe: a path, or a shipped recipe by its name (`nano/r1`, also `recipes/nano/r1.yaml`).

    Raises:
        RecipeError: there is neither; names the nearest shipped recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if (path / RUN_RECORD).is_file():
        raise RecipeError([Issue(str(name), "", "is the folder of a run: give the recipe that it was started with")])
    known = shipped()
    short = str(path).removesuffix(".yaml").removeprefix("recipes/")
    if short in known:
        return known[short]
    hint = f"{nearest(short, known)}. Shipped recipes: {', '.join(known) or 'none'}"
    raise RecipeError([Issue(str(name), "", f"there is no such file or shipped recipe{hint}")])


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: `a.b.c=value` assignments that replace leaves.

    Raises:
        RecipeError: with every fault found: unknown keys, wrong types, dangling references, cycles, missing files,
            unknown tasks, rewards, kinds or trainer fields; each with file, line and the nearest valid name.
    """
    text = source.read(locate(name))
    if not isinstance(text.data, dict):
        raise RecipeError([text.issue((), "a recipe is a mapping with the keys name and stages")])
    for assignment in overrides:
        text.override(assignment)
    return check(text)


def check(text: Source) -> Recipe:
    """Turn a source into a recipe; see `load` for the errors."""
    try:
        header = Header.model_validate(text.data)
    except ValidationError as error:
        raise RecipeError(_explain(error, Header, text, ())) from error
    issues = [
        text.issue(("defaults", kind), f"unknown stage kind {kind!r}{nearest(kind, KINDS)}")
        for kind in header.defaults
        if kind not in KINDS
    ]
    stages: dict[str, StageConfig] = {}
    room = source.MAX_VALUES
    for stage, values in header.stages.items():
        try:
            merged = _with_defaults(stage, values, header, text)
            if (room := room - source.size(merged)) < 0:
                many = f"with `defaults` and `launch` the stages hold more than {source.MAX_VALUES:,} values"
                issues.append(text.issue(("stages", stage), many))
                break
            stages[stage] = _filtered(_stage(stage, merged, text, issues), header)
        except RecipeError as error:
            issues.extend(error.issues)
    about = (header.description, header.seed, header.jobs, header.tasks, text.data, header.warm, header.track)
    recipe = Recipe(header.name, text.path, stages, *about)
    issues.extend(whole_recipe.check(recipe, text, names=list(header.stages)))
    if issues:
        raise RecipeError(list(dict.fromkeys(issues)))  # one of `defaults` is the same in every stage
    return replace(recipe, notices=tuple(dict.fromkeys(whole_recipe.notices(recipe, text))))


def _with_defaults(stage: str, values: dict[str, Any], header: Header, text: Source) -> dict[str, Any]:
    """The fields of a stage, those that the recipe gives for all stages or all of its kind included."""
    loc: Loc = ("stages", stage)
    if not _NAME.fullmatch(stage) or "." in stage:
        reason = ": a dot would keep KEY=VALUE on the command line from reaching it" if "." in stage else ""
        raise RecipeError([text.issue(loc, f"a stage's name is made of letters, digits, '_' and '-'{reason}")])
    if len(stage) > LONGEST_NAME:
        reason = f"its name has {len(stage)} characters; it names folders, so {LONGEST_NAME} are the most"
        raise RecipeError([text.issue(loc, reason)])
    kind = values.get("kind")
    if kind is None and loc not in text.lines:
        known = [name for name in header.stages if ("stages", name) in text.lines]
        raise RecipeError(
            [text.issue(loc, f"there is no stage {stage!r}{nearest(stage, known)}. Stages: {', '.join(known)}")]
        )
    if kind is None:
        raise RecipeError([text.issue(loc, f"a stage needs a kind: one of {', '.join(KINDS)}")])
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError([text.issue((*loc, "kind"), f"unknown stage kind {kind!r}{nearest(str(kind), KINDS)}")])
    model = config_class(kind)
    merged = _merge(header.defaults.get(kind, {}), values)
    text.beneath[loc] = ("defaults", kind)
    if header.launch is not None and "launch" not in merged:
        text.beneath[(*loc, "launch")] = ("launch",)
        merged["launch"] = _launch(header.launch, model.launch_fields())
    if header.task is not None and "tasks" in model.model_fields and not {"tasks", "data", "harness"} & merged.keys():
        merged["tasks"] = [f"{header.task}/{model.default_split}"]
    watch = merged.get("watch")
    if header.task is not None and isinstance(watch, dict):
        merged["watch"] = {"tasks": [f"{header.task}/test"], **watch}
    return merged


def _launch(launch: Launch, fields: set[str]) -> dict[str, Any]:
    """The recipe's `launch` for a stage kind; of GPUs on several hosts, one that runs on one host has those of one."""
    merged = launch.model_dump(include=fields)
    if "nodes" not in fields and isinstance(gpus := merged.get("gpus"), int):
        merged["gpus"] = gpus // launch.nodes
    return merged


def _stage(stage: str, merged: Mapping[str, Any], text: Source, issues: list[Issue]) -> StageConfig:
    """The config of a stage. What is wrong with single fields of its `trainer` goes to `issues`: no model tells it."""
    model, loc = config_class(merged["kind"]), ("stages", stage)
    wrong = dict(_senseless(model, merged))
    issues += [text.issue((*loc, "trainer", key), fault) for key, fault in wrong.items()]
    if wrong:
        merged = {**merged, "trainer": {k: value for k, value in merged["trainer"].items() if k not in wrong}}
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        told = [issue for issue in _explain(error, model, text, loc) if not wrong or issue.loc != ".".join(loc)]
        raise RecipeError(told) from error


def _senseless(model: type[StageConfig], merged: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields of a stage's `trainer` of a wrong type, or out of range: the stage's own checks count with them."""
    where, trainer = model.trainer_class_of(merged), merged.get("trainer")
    if where is None or not isinstance(trainer, dict):
        return
    known, reserved = trainer_fields.fields(where), model.reserved if isinstance(model.reserved, Mapping) else {}
    for key, value in trainer.items():
        if key in known and key not in reserved:
            if (fault := trainer_fields.mismatch(known[key], value)) is not None:
                yield key, fault
            elif (fault := trainer_numbers.fault(key, value)) is not None:
                yield key, f"{fault}, not {value!r}"


def _filtered(config: StageConfig, header: Header) -> StageConfig:
    """Filters of the recipe's task definitions in the stages that use them, and whose numbers they mean."""
    measuring = [name for name, values in header.stages.items() if values.get("kind") == PASS_RATE]

    def change(value: Any) -> Any:
        if not isinstance(value, TaskSpec):
            return value
        defined = header.tasks.get(value.use)
        chosen = value.filter or (defined.filter if defined is not None else None)
        if chosen is not None and chosen.source is None and PASS_RATE in chosen.wanted and len(measuring) == 1:
            chosen = chosen.model_copy(update={"source": f"@{measuring[0]}"})
        return value if chosen is value.filter else value.model_copy(update={"filter": chosen})

    filtered: StageConfig = replaced(config, change) if config.kind != PASS_RATE else config
    return filtered


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged leaf by leaf; what is over wins, and lists are replaced whole."""
    result = dict(under)
    for key, value in over.items():
        lower = result.get(key)
        both = isinstance(value, Mapping) and isinstance(lower, Mapping)
        result[key] = _merge(lower, value) if both else value  # type: ignore[arg-type]
    return result


def _unknown(model: type[BaseModel], loc: Loc) -> str:
    """What is said of a key that does not exist: what has become of it, or the nearest one."""
    piece, key = whole_recipe.model_at(model, loc[:-1]), str(loc[-1])
    if piece is not None and issubclass(piece, Strict) and key in piece.former:
        return piece.former[key]
    known = whole_recipe.keys_at(model, loc[:-1])
    if (home := _home(piece, key)) is not None:
        return f"belongs in {home}: write `{home}: {{{key}: …}}`"
    return f"unknown key{nearest(key, known)}. Known: {', '.join(known)}" if known else "unknown key"


def _home(piece: type[BaseModel] | None, key: str) -> str | None:
    """The field of a piece in which a key stands that was written beside it, as `learning_rate` beside `trainer`."""
    if piece is None:
        return None
    where = piece.trainer_class_of({}) if issubclass(piece, StageConfig) else None
    if where is not None and key in trainer_fields.fields(where):
        return "trainer"
    fields = piece.model_fields  # `rollout`, which every such stage has, before `watch`, which few have
    always_first = sorted(fields, key=lambda name: fields[name].default is None)
    return next((name for name in always_first if key in whole_recipe.keys_at(piece, (name,))), None)


_PLAIN = {
    "model_type": "has to be a mapping of its keys",
    "dict_type": "has to be a mapping of its keys",
    "string_type": "has to be text: put it into quotes",
    "too_short": "has to hold at least {min_length}",
}
"""Pydantic's type of an error -> what is said in place of its own words, which speak of Python."""


def _explain(error: ValidationError, model: type[BaseModel], text: Source, prefix: Loc) -> list[Issue]:
    """Pydantic's errors in our words: with the line, and the nearest valid key for an unknown one."""
    issues = []
    for item in error.errors(include_url=False):
        loc = tuple(part for part in item["loc"] if part not in (FILE_ARM, HUB_ARM))
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = _unknown(model, loc)
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "value_error":
            cause = item["ctx"]["error"]
            message = str(cause)
            if isinstance(cause, EntryError):
                loc, message = (*loc, cause.name), cause.message
        else:
            given = HIDDEN if "env" in loc else brief(repr(item["input"]))
            plain = _PLAIN.get(item["type"])
            said = f"{message[0].lower()}{message[1:]}" if plain is None else plain.format(**item.get("ctx", {}))
            message = f"{said}, not {given}"
        issues.append(text.issue((*prefix, *loc), message))
    return issues
