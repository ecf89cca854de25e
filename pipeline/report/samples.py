"""Samples that tell something: one problem through all evaluated models, side by side, with verdicts.

The problems are picked to be informative, not to be typical: mostly some that the first model gets wrong and the last
one right, then one that is still wrong and one that was lost on the way, if there are such. Files may be large, so a
first pass remembers only verdicts and places, and a second one reads what was picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.records.samples import SAMPLES
from pipeline.report.prose import main_root
from pipeline.report.run_data import Run, Stage, data_file, row_at, rows, rows_with_offsets
from pipeline.report.text import clean, finite, shorten
from rewards.text import opens_thought, split_thought

TEXT_LIMIT = 3_000  # characters of a thought, an answer or a question that the page shows
MOST_LEARNED, MOST_OTHERS = 3, 1  # problems of each sort on the page
STEPS_SHOWN = 4  # samples from within one reinforcement-learning stage
LABEL_LIMIT = 200  # characters of short fields: the gold answer, what was extracted, statuses


class Story(StrEnum):
    """What happened to a problem between the first model and the last."""

    LEARNED = "learned"
    LOST = "lost"
    STILL_WRONG = "still wrong"
    ALWAYS_RIGHT = "right from the start"


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, ready to be shown.

    Attributes:
        title: the model, the training step, or why it was kept or dropped.
        question, gold: of its problem; empty where they stand above all samples.
        thought: None if there was none.
        answer: what follows the thought.
        status: the verdict's status.
        good: whether it was judged correct.
        extracted: what the verifier read as the answer.
        tokens: length, if known.
        finish: why it ended.
        language: share in the target language, or its name, if known.
    """

    title: str
    question: str
    gold: str
    thought: str | None
    answer: str
    status: str
    good: bool
    extracted: str
    tokens: int | None
    finish: str
    language: str


@dataclass(frozen=True)
class Problem:
    """One problem and what was made of it."""

    task: str
    id: str
    story: str
    question: str
    gold: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    correct: bool


def problems_through_models(run: Run, models: tuple[str, ...]) -> list[Problem]:
    """The picked problems, each with the first completion of every model (in the given order) that met it."""
    found: dict[tuple[str, str], dict[str, _Place]] = {}
    for stage in run.stages.values():
        if stage.kind == "evaluate" and (path := data_file(stage, SAMPLES)):
            for offset, row in rows_with_offsets(stage, SAMPLES):
                model = model_of(stage, row)
                key = (str(row.get("task", "")), str(row.get("id", "")))
                found.setdefault(key, {}).setdefault(model, _Place(path, offset, is_correct(row)))
    order = {model: index for index, model in enumerate(models)}
    in_order = {
        key: dict(sorted(places.items(), key=lambda item: order.get(item[0], len(order))))
        for key, places in found.items()
    }
    main = main_root(run)
    chain = {model for model in models if model in run.stages and run.root(model) == main}
    return [_problem(story, places) for story, places in _pick(in_order, chain)]


def _pick(found: Mapping[tuple[str, str], dict[str, _Place]], chain: set[str]) -> list[tuple[Story, dict[str, _Place]]]:
    """The widest-covered problems of each story, tasks taking turns; file order decides the rest."""
    by_story: dict[Story, dict[str, list[dict[str, _Place]]]] = {}
    widest = max((len(places) for places in found.values()), default=0)
    for (task, _), places in found.items():
        if len(places) == widest:
            by_story.setdefault(_story(places, chain), {}).setdefault(task, []).append(places)
    picked: list[tuple[Story, dict[str, _Place]]] = []
    for story in (Story.LEARNED, Story.STILL_WRONG, Story.LOST, Story.ALWAYS_RIGHT):
        queues = list(by_story.get(story, {}).values())
        turns = [
            queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)
        ]
        limit = MOST_LEARNED if story is Story.LEARNED else MOST_OTHERS
        if story is not Story.ALWAYS_RIGHT or not picked:
            picked += [(story, places) for places in turns[:limit]]
    return picked


def _story(places: Mapping[str, _Place], chain: set[str]) -> Story:
    """What the chain of models (or, if none of it is there, whatever models there are) made of a problem."""
    line = [place.correct for model, place in places.items() if model in chain or not chain & places.keys()]
    if line[-1]:
        return Story.ALWAYS_RIGHT if line[0] else Story.LEARNED
    return Story.LOST if line[0] else Story.STILL_WRONG


def _problem(story: Story, places: Mapping[str, _Place]) -> Problem:
    return _from_rows(story.value, [(model, row_at(place.path, place.offset)) for model, place in places.items()])


def samples_while_training(stage: Stage) -> Problem | None:
    """A few completions from the stage's beginning to its end, of one problem if possible; None if it kept none."""
    steps: dict[float, dict[str, int]] = {}
    path = data_file(stage, SAMPLES)
    if path is None:
        return None
    for offset, row in rows_with_offsets(stage, SAMPLES):
        if (step := finite(row.get("step"))) is not None:
            steps.setdefault(step, {}).setdefault(str(row.get("id", "")), offset)
    if len(steps) < 2:
        return None
    ordered = sorted(steps)
    shown = [ordered[round(i * (len(ordered) - 1) / (STEPS_SHOWN - 1))] for i in range(STEPS_SHOWN)]
    shown = sorted(set(shown))
    common = set.intersection(*(set(steps[step]) for step in shown))
    same = next((identity for identity in steps[shown[0]] if identity in common), None)
    offsets = [(step, steps[step][same] if same is not None else next(iter(steps[step].values()))) for step in shown]
    return _from_rows("", [(f"step {s:g}", row_at(path, o)) for s, o in offsets])


def samples_by_reason(stage: Stage) -> Problem | None:
    """One sample for each reason that rejection sampling kept or dropped some for; None if it kept no samples."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows(stage, SAMPLES):
        if isinstance(reason := row.get("reason"), str):
            first.setdefault(reason, row)
    return _from_rows("", [(reason.replace("_", " "), row) for reason, row in first.items()]) if first else None


def _from_rows(story: str, titled: list[tuple[str, Mapping[str, Any]]]) -> Problem:
    """Question and answer stand above samples of one problem, and with each sample where the problems differ."""
    first = titled[0][1]
    same = all((row.get("id"), row.get("question")) == (first.get("id"), first.get("question")) for _, row in titled)
    return Problem(
        task=_label(first.get("task")),
        id=_label(first.get("id")),
        story=story,
        question=_text(first.get("question")) if same else "",
        gold=_label(first.get("answer")) if same else "",
        samples=[_sample(title, row, alone=not same) for title, row in titled],
    )


def _sample(title: str, row: Mapping[str, Any], alone: bool) -> Sample:
    thought, answer = thought_and_answer(row)
    tokens, language = finite(row.get("tokens")), row.get("language")
    return Sample(
        title=_label(title),
        question=_text(row.get("question")) if alone else "",
        gold=_label(row.get("answer")) if alone else "",
        thought=None if thought is None else _text(thought.strip("\n")),
        answer=_text(answer.strip("\n")),
        status=_label(row.get("status")).replace("_", " "),
        good=is_correct(row),
        extracted=_label(row.get("extracted")),
        tokens=None if tokens is None else int(tokens),
        finish=_label(row.get("finish")),
        language=f"language {language:.2f}" if isinstance(language, float) else _label(language),
    )


def thought_and_answer(row: Mapping[str, Any]) -> tuple[str | None, str]:
    """The two parts of a completion; no thought where there was none."""
    completion, begun = row.get("completion"), row.get("begun")
    opened = opens_thought(begun) if isinstance(begun, str) else False
    return split_thought(completion if isinstance(completion, str) else "", opened)


def model_of(stage: Stage, row: Mapping[str, Any]) -> str:
    """The model that wrote a sample of an evaluation."""
    return str(row.get("model") or stage.parent or stage.config.get("model") or stage.name)


def is_correct(row: Mapping[str, Any]) -> bool:
    """Whether a sample was judged correct."""
    status = row.get("status")
    return status == "correct" if isinstance(status, str) else (finite(row.get("score")) or 0.0) >= 1.0


def _text(value: object) -> str:
    return clean(shorten("" if value is None else str(value), TEXT_LIMIT))


def _label(value: object) -> str:
    text = clean("" if value is None else str(value))
    return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"
