"""Tasks of lm-evaluation-harness on our engines: `evaluate: {harness: [gpqa_diamond_cot_zeroshot, ifeval]}`.

The harness makes the questions and judges the answers; completions come from the stage's engine, with the stage's
sampling, through the model's own chat template. What a model thinks before its answer is not given to the harness, and
an answer ends where the task's `until` says. Tasks that compare the probabilities of given answers are refused: engines
here only generate.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.records.samples import Judgement
from pipeline.sampling.sampler import Group, Report, Sampler
from pipeline.sampling.scores import interval
from pipeline.tasks.grading import ACCURACY
from rewards import Item, Status
from rewards.registry import nearest
from rewards.text import says_something
from rewards.verdict import PREFILL

log = logging.getLogger(__name__)

PACKAGE = "lm_eval"
GENERATES = "generate_until"
NO_FILTER = "none"


class HarnessError(ValueError):
    """A task of the harness that is not there, or that the engines here cannot answer."""


def fault(names: Sequence[str], folder: Path | None) -> str | None:
    """What is wrong with the names of tasks, asked before anything runs; `None` if they are all known.

    Only what is likely is looked up: a file of that name. Where there is none the harness's whole index is made, which
    takes ten seconds.

    Args:
        names: tasks, groups or tags.
        folder: of tasks of one's own.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return None  # told as a package that is missing
    unsure = [name for name in names if not _has_file(name)]
    if not unsure:
        return None
    known = _manager(folder).all_tasks
    unknown = next((name for name in unsure if name not in known), None)
    if unknown is None:
        return None
    return f"lm-evaluation-harness has no task {unknown!r}{nearest(unknown, known)}; `lm-eval ls tasks` lists them"


def _has_file(name: str) -> bool:
    spec = importlib.util.find_spec(PACKAGE)
    roots = [Path(place) / "tasks" for place in (spec.submodule_search_locations or [])] if spec is not None else []
    if not name.replace("_", "").isalnum():
        return False
    return any(True for root in roots for found in root.rglob(f"{name}.yaml") if f"task: {name}\n" in found.read_text())


def _manager(folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))


@dataclass(frozen=True, slots=True)
class Scored:
    """A model on one name of the harness.

    Attributes:
        entry: its place in the score table, as `pipeline.sampling.scores.score` makes it; `harness` has every number
            that the harness gives, by task, metric and filter.
        groups: the samples, judged, one group a question.
    """

    entry: dict[str, Any]
    groups: list[Group]


class Harness:
    """Tasks by their names, loaded once for all models.

    Args:
        names: of tasks, groups or tags.
        folder: of tasks of one's own, as YAML files.
        limit: most questions of each task.
        seed: of whatever the tasks draw.

    Raises:
        HarnessError: a name is unknown, or a task asks for more than completions.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, limit: int | None, seed: int) -> None:
        self.limit, self.seed = limit, seed
        self.manager = _manager(folder)
        if unknown := next((name for name in names if name not in self.manager.all_tasks), None):
            raise HarnessError(f"there is no task {unknown!r}{nearest(unknown, self.manager.all_tasks)}")
        self.names = list(names)
        for name in names:
            for task in self.manager.load([name])["tasks"].values():
                if (kind := task.get_config("output_type")) != GENERATES:
                    raise HarnessError(
                        f"{task.task_name} needs {kind}, the probabilities of given answers, and engines here only"
                        " generate: take a task that lets the model answer in words, such as"
                        " gpqa_diamond_cot_zeroshot, mmlu_pro or ifeval"
                    )

    def score(self, name: str, sampler: Sampler, report: Report | None = None) -> Scored:
        """Let a model answer a task's questions, and the harness judge them.

        Raises:
            HarnessError: the task's first metric is not a share of right answers, or it begins the answers itself.
        """
        from lm_eval import simple_evaluate

        answers = _Answers(sampler, name, report)
        seeds = {f"{what}_random_seed": self.seed for what in ("numpy", "torch", "fewshot")}
        results = simple_evaluate(
            model=_engine_model(answers),
            tasks=[name],
            limit=self.limit,
            apply_chat_template=True,
            task_manager=self.manager,
            bootstrap_iters=0,
            random_seed=self.seed,
            **seeds,
        )
        return _scored(results, answers)


class _Answers:
    """Completions of a model for the harness, and what they were."""

    def __init__(self, sampler: Sampler, name: str, report: Report | None) -> None:
        self.sampler, self.name, self.report = sampler, name, report
        self.groups: dict[tuple[str, int], list[Group]] = {}
        self.left_out = 0

    def of(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, without thoughts, up to where the task says it ends; empty if it did not fit."""
        rows = [_row(at, request) for at, request in enumerate(requests)]
        texts = [""] * len(requests)
        found = list(self.sampler.groups(rows, None, f"harness {self.name}", self.report))
        self.left_out = len(rows) - len(found)
        for group in found:
            at = group.row["at"]
            ((sample),) = group.samples
            _, answer = Item(sample.completion, columns={PREFILL: group.begun}).split()
            until = requests[at].args[1].get("until") or []
            for end in [until] if isinstance(until, str) else until:
                answer = answer.split(end)[0] if end else answer
            texts[at] = answer
            self.groups.setdefault((requests[at].task_name, requests[at].doc_id), []).append(group)
        return texts


def _row(at: int, request: Any) -> dict[str, Any]:
    chat = json.loads(request.args[0])
    said = {"task": request.task_name, "id": f"{request.task_name}-{request.doc_id}", "question": chat[-1]["content"]}
    return {**said, "answer": "", "prompt": chat, "at": at}


def _engine_model(answers: _Answers) -> Any:
    """The harness's own kind of model, which asks ours."""
    from lm_eval.api.model import LM

    class EngineModel(LM):  # type: ignore[misc]
        """Chats travel through the harness as JSON, and are rendered where they are sampled."""

        tokenizer_name = "of the model"

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise HarnessError(f"{answers.name} begins the model's answer itself, which chats here do not allow")
            return json.dumps(chat_history)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answers.of(requests)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise HarnessError(f"{answers.name} asks for probabilities, and engines here only generate")

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise HarnessError(f"{answers.name} asks for probabilities, and engines here only generate")

    return EngineModel()


def _scored(results: Mapping[str, Any], answers: _Answers) -> Scored:
    means: list[float] = []
    judged: list[Group] = []
    for task, samples in results["samples"].items():
        config = results["configs"][task]
        metric = config["metric_list"][0]["metric"]
        wanted = (config.get("filter_list") or [{"name": NO_FILTER}])[-1]["name"]  # the most lenient comes last
        for sample in samples:
            if sample["filter"] != wanted:
                continue
            value = sample.get(metric)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise HarnessError(
                    f"{task}: its metric {metric} is not a share of right answers, but {str(value)[:40]}"
                )
            means.append(float(value))
            for group in answers.groups.get((task, sample["doc_id"]), []):
                judged.append(_judged(group, float(value), str(sample["filtered_resps"][0])[:200], sample["target"]))
    if not means:
        raise HarnessError(f"{answers.name}: the harness has judged nothing")
    low, high = interval(means, 1)
    samples_of = [sample for group in judged for sample in group.samples]
    thoughts = [
        Item(sample.completion, columns={PREFILL: group.begun}).split()[0]
        for group in judged
        for sample in group.samples
    ]
    entry = {
        "n": len(means),
        "samples": 1,
        "pass@1": sum(means) / len(means),
        "low": low,
        "high": high,
        "tokens": sum(sample.tokens for sample in samples_of) / max(1, len(samples_of)),
        "thinking": sum(says_something(thought or "") for thought in thoughts) / max(1, len(thoughts)),
        "truncated": sum(sample.truncated for sample in samples_of) / max(1, len(samples_of)),
        "harness": {
            f"{task}/{name}": float(value)
            for task, numbers in results["results"].items()
            for name, value in numbers.items()
            if isinstance(value, int | float) and "stderr" not in name and "," in name
        },
    }
    return Scored({**entry, **answers.sampler.limit.left_out(answers.left_out)}, judged)


def _judged(group: Group, value: float, extracted: str, target: Any) -> Group:
    status = Status.CORRECT if value == 1 else Status.WRONG
    judgement = Judgement(status.value, value, extracted)
    samples = tuple(replace(sample, judgements={ACCURACY: judgement}) for sample in group.samples)
    return replace(group, row={**group.row, "answer": str(target)}, samples=samples)
