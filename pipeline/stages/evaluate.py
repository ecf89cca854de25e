"""Score models on held-out problems: k samples each, pass@1 with a 95 % interval, pass@k, cons@k.

    score:
      kind: evaluate
      models: ["@base", "@zero", "@r1"]
      tasks: [gsm8k/test, {use: countdown, problems: 200}]
      samples: 4

The sampling defaults are those of R1's evaluation (temperature 0.6, top-p 0.95, several samples a problem), because
greedy decoding of long thoughts repeats itself and varies much between checkpoints (Nature version, Methods).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.artifacts import MANIFEST
from pipeline.context import Outputs, StageContext
from pipeline.files import durable
from pipeline.files.rows import write_rows
from pipeline.prompts.templates import ChatTemplateName
from pipeline.records.samples import SAMPLES
from pipeline.rollout import engine_name
from pipeline.sampling.engines import Engines
from pipeline.sampling.harness import Harness, Scored
from pipeline.sampling.sampler import Group, Sampler, record
from pipeline.sampling.scores import Labels, same_spelling, score, sentence
from pipeline.schema.pieces import InputFile, ModelRef, Product, PromptedConfig, RewardSpec, RolloutSpec, check_samples
from pipeline.schema.task import TaskSpec
from pipeline.tasks.grading import ACCURACY, accuracy_options, reward_part, same_answers
from pipeline.tasks.resolve import Resolved, TestTaskField, problem_rows, resolve
from rewards import Composite, names
from rewards.registry import located

logger = logging.getLogger(__name__)

LANGUAGE = "language"
"""Reward that measures language consistency, and the column that asks for it."""
LABELS = Labels(ACCURACY, LANGUAGE)


class EvaluationRollout(RolloutSpec):
    """How completions are sampled; see `RolloutSpec`. The defaults are those of R1's evaluation.

    Attributes:
        temperature: of sampling; 0 is greedy, which repeats itself in long thoughts.
        top_p: the most likely tokens that together have this probability are sampled from; 1 is all.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95


class EvaluateConfig(PromptedConfig):
    """Fields of an `evaluate` stage; see `PromptedConfig` for the other fields.

    Attributes:
        model, models: what to score: one model, or several in one process.
        tasks: what on; the split is `test` where none is given.
        samples: samples a problem (k). Several make the interval of pass@1 narrower, and pass@k needs them.
        problems: most problems of each task; as many as the task gives if not given.
        rollout: how to sample.
        chat_template: chat template to use instead of the tokenizer's own, such as for a base model from the hub.
        harness: tasks of lm-evaluation-harness by their names, such as gpqa_diamond_cot_zeroshot, ifeval or mmlu_pro;
            each question is answered once. Needs the extra `harness`; see `pipeline.sampling.harness`.
        harness_folder: folder with tasks of one's own for it, as YAML files.
        save: how many problems of each task keep their samples in `samples.jsonl`; all if not given.
    """

    product: ClassVar[Product] = Product.METRICS
    shared: ClassVar[bool] = True
    version: ClassVar[int] = 2  # a completion that is cut off has no format
    default_split: ClassVar[Literal["train", "test"]] = "test"

    model: ModelRef | None = None
    models: list[ModelRef] = Field(default_factory=list)
    harness: list[str] = Field(default_factory=list)
    tasks: list[TestTaskField] = Field(default_factory=list)
    harness_folder: Annotated[str, InputFile()] | None = None
    samples: Annotated[int, Field(gt=0)] = 4
    problems: Annotated[int, Field(gt=0)] | None = None
    rollout: EvaluationRollout = EvaluationRollout()
    chat_template: ChatTemplateName | None = None
    save: Annotated[int, Field(ge=0)] | None = None

    @field_validator("models")
    @classmethod
    def _told_apart(cls, models: list[str]) -> list[str]:
        if (label := _repeated([model_label(reference) for reference in models])) is not None:
            raise ValueError(f"model {label!r} is given twice")
        return models

    @field_validator("tasks")
    @classmethod
    def _scored_apart(cls, tasks: list[TaskSpec], info: ValidationInfo) -> list[TaskSpec]:
        if not tasks and not info.data.get("harness"):
            raise ValueError("at least 1 is needed, or `harness:` with tasks of lm-evaluation-harness")
        if (label := _repeated([task.label for task in tasks])) is not None:
            raise ValueError(f"task {label!r} is given twice; define tasks of different options under `tasks:`")
        return tasks

    @field_validator("harness")
    @classmethod
    def _named_once(cls, harness: list[str]) -> list[str]:
        if (name := _repeated(harness)) is not None:
            raise ValueError(f"{name!r} is given twice")
        return harness

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if not self.tasks and not self.harness:
            raise ValueError("say what to score on: `tasks:`, or `harness:` for tasks of lm-evaluation-harness")
        if self.harness_folder is not None and not self.harness:
            raise ValueError("harness_folder has no effect: `harness` names no task")
        if (self.model is None) == (not self.models):
            raise ValueError("say which `model:` or `models:` to evaluate, one of the two")
        check_samples(self.samples, self.rollout.temperature)
        return self

    @property
    def references(self) -> list[str]:
        """All models."""
        return self.models or ([] if self.model is None else [self.model])


def run(context: StageContext[EvaluateConfig]) -> Outputs:
    """Score every model on every task; writes `samples.jsonl`."""
    config = context.config
    tasks = [resolve(spec, context.tasks, context.base) for spec in config.tasks]
    labels = {model_label(reference): reference for reference in config.references}
    rows_by_task = {task.label: problem_rows(task, context)[: config.problems] for task in tasks}
    judge = _judge(tasks, [row for rows in rows_by_task.values() for row in rows], context) if tasks else None
    harness = _harness(context)
    if judge is not None:
        judge.prepare()
    same = {task.label: same_answers(task.task, context.base) or same_spelling for task in tasks}
    models = [context.model_path(reference) for reference in labels.values()]
    engines = Engines(context.rollout(config.rollout), context.seed, models)
    progress = _Progress(context, list(labels), rows_by_task)
    scores: dict[str, dict[str, Any]] = {}
    speculation: dict[str, Any] = {}
    prompting: dict[str, Any] = {}
    saved: list[dict[str, Any]] = []
    try:
        samplers = {label: _sampler(context, label, reference, engines) for label, reference in labels.items()}
        for sampler in samplers.values():  # before the first of them samples anything
            for rows in rows_by_task.values():
                sampler.fitting(rows)
        for label, sampler in samplers.items():
            scores[label] = {}
            for task, rows in rows_by_task.items():
                groups = list(sampler.groups(rows, judge, task, progress.of(label, task)))
                scores[label][task] = entry = score(groups, config.samples, LABELS, same[task])
                entry |= sampler.limit.left_out(len(rows) - len(groups))
                logger.info("%s", sentence(label, task, entry, sampling_facts(context)))
                saved += _records(groups[: config.save], label)
            for name, found in _by_harness(context, harness, label, sampler):
                scores[label][name] = {**found.entry, "sampling": _harness_facts(context)}
                saved += _records(found.groups[: config.save], label)
            if sampler.renderer.told:
                prompting[label] = sampler.renderer.told
            if sampler.speculation:
                speculation[label] = sampler.speculation
            context.work.add(sampler.seconds)
    finally:
        engines.close()
        if judge is not None:
            judge.close()
    write_rows(context.output / SAMPLES, saved)
    told = {"speculation": speculation, "prompting": prompting}
    told = {name: of_model for name, of_model in told.items() if of_model}
    return Outputs({"sampling": sampling_facts(context), "scores": scores, **told})


def _harness(context: StageContext[EvaluateConfig]) -> Harness | None:
    """The tasks of the harness, loaded before any model is, if there are any."""
    config = context.config
    if not config.harness:
        return None
    folder = None if config.harness_folder is None else located(config.harness_folder, context.base).resolve()
    return Harness(config.harness, folder, config.problems, context.seed)


def _by_harness(
    context: StageContext[EvaluateConfig], harness: Harness | None, label: str, sampler: Sampler
) -> Iterator[tuple[str, Scored]]:
    """A model's scores on the tasks of the harness."""
    if harness is not None:
        for name in harness.names:
            yield name, harness.score(name, sampler, partial(context.log, model=label, task=name))


def _harness_facts(context: StageContext[EvaluateConfig]) -> dict[str, Any]:
    return {**sampling_facts(context), "samples": 1, "harness": f"lm-eval {version('lm-eval')}"}


def _sampler(context: StageContext[EvaluateConfig], label: str, reference: str, engines: Engines) -> Sampler:
    config = context.config
    return Sampler(
        context.model_path(reference),
        context.rollout(config.rollout),
        config.samples,
        context.seed,
        context.scratch / "samples" / durable.file_name(label),
        config.chat_template,
        config.chat_template_kwargs,
        config.prefill,
        engines,
        context.share,
    )


def evaluate_model(
    model: str | Path, tasks: Sequence[str | Mapping[str, Any]], folder: Path, seed: int = 0, **fields: Any
) -> Mapping[str, Any]:
    """Score one model outside of a recipe.

    Args:
        model: folder or hub id.
        tasks: such as `gsm8k/test`, or mappings as in a recipe.
        folder: where `samples.jsonl`, `events.jsonl` and the scratch folder go; a second call resumes in it.
        seed: seed of the samples.
        fields: further fields of `EvaluateConfig`.

    Returns:
        The metrics of the stage: `sampling` and `scores`.

    Raises:
        pydantic.ValidationError: a field does not exist or has a wrong value.
    """
    config = EvaluateConfig.model_validate({"kind": "evaluate", "model": str(model), "tasks": list(tasks), **fields})
    output, scratch = folder / "output", folder / "scratch"
    for path in (output, scratch):
        path.mkdir(parents=True, exist_ok=True)
    context = StageContext("eval", config, {}, output, scratch, Path.cwd(), seed, folder / "events.jsonl")
    return run(context).metrics


def model_label(reference: str) -> str:
    """What a model is called in tables: the stage's name, or folder or hub id as they are."""
    artifact = Path(reference).parent
    if (artifact / MANIFEST).is_file():
        return artifact.parent.name
    return reference.removeprefix("@")


def sampling_facts(context: StageContext[EvaluateConfig]) -> dict[str, Any]:
    """How the samples were made: without this a score means little."""
    config, rollout = context.config, context.config.rollout
    facts: dict[str, Any] = {
        "engine": engine_name(rollout),
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "min_p": rollout.min_p,
        "max_tokens": rollout.max_tokens,
        **({"stop": rollout.stop} if rollout.stop else {}),
        "samples": config.samples,
        "seed": context.seed,
    }
    asked = ("chat_template", "chat_template_kwargs", "prefill")
    return facts | {name: value for name in asked if (value := getattr(config, name)) is not None and value != ""}


class _Progress:
    """Progress over all models and tasks, as the stage's events."""

    def __init__(
        self, context: StageContext[EvaluateConfig], models: Sequence[str], rows_by_task: Mapping[str, Sequence[Any]]
    ) -> None:
        self._context, k = context, context.config.samples
        self._before: dict[tuple[str, str], int] = {}
        self._total = 0
        for model in models:
            for task, rows in rows_by_task.items():
                self._before[model, task] = self._total
                self._total += len(rows) * k

    def of(self, model: str, task: str) -> Any:
        """The report of one model on one task."""
        before = self._before[model, task]
        return lambda done, _: self._context.log(before + done, self._total, model=model, task=task)


def _judge(
    tasks: Sequence[Resolved], rows: Sequence[Mapping[str, Any]], context: StageContext[EvaluateConfig]
) -> Composite:
    parts = [reward_part(RewardSpec(use=ACCURACY), accuracy_options(tasks, context.base))]
    if LANGUAGE in names() and any(row.get(LANGUAGE) for row in rows):
        parts.append(reward_part(RewardSpec(use=LANGUAGE), {}))
    return Composite(parts, context.base)


def _repeated(labels: Sequence[str]) -> str | None:
    return next((label for label in labels if labels.count(label) > 1), None)


def _records(groups: Sequence[Group], label: str) -> Iterator[dict[str, Any]]:
    for group in groups:
        for sample in group.samples:
            language = sample.judgements.get(LANGUAGE)
            more = {} if language is None else {LANGUAGE: language.score}
            yield record(group, sample, ACCURACY, model=label, **more)
