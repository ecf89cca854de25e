"""Puzzles made by the library reasoning-gym (Stojanovski et al., arXiv 2505.24760; Apache-2.0). One of them::

    question  "Using all the numbers 36, 29, 95, 32, 4, 15, create an expression that equals 139. …"
    answer    "15 - 4 + 95 + 36 - 32 + 29"
    columns   {"dataset": "countdown", "puzzle": "{\"dataset\": \"countdown\", \"seed\": 3817…, \"index\": 0, …}"}

The library makes the problems; how its answers are judged, and which of its datasets are refused because their scorers
execute the answer, is told in `rewards.reasoning_gym`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any

from pipeline.schema import extras
from pipeline.tasks.base import Problem, Split, Task, TaskError
from pipeline.tasks.generated import draw, problem_id, stable_hash
from rewards.reasoning_gym import EXECUTING, OWN_SCORER, gold_of
from rewards.registry import nearest

DEFAULT_PROBLEMS: Mapping[Split, int] = {"train": 5000, "test": 500}
BLOCK = 500
"""Problems of one library dataset; the next ones come from a dataset with another seed."""
SEEDS = 2**32
UNSTABLE = frozenset({"isomorphic_strings", "knight_swap", "ransom_note", "word_ladder"})
"""Datasets that walk through sets of texts, so that the same seed gives other puzzles in another process."""


class ReasoningGym(Task):
    """Puzzles of one or several datasets of reasoning-gym (`pip install reasoning-gym`), in turn.

    Args:
        dataset: name of a dataset, or a list of names.
        config: fields of the datasets' configurations, such as `min_terms`; with several datasets, each takes those
            that it has.
        grader_options: options of the reward `reasoning_gym`.
        template: prompt template; the answer must stand in `<answer>` tags.
    """

    grader = "reasoning_gym"
    generated = True
    column_names = ("dataset", "puzzle")

    def __init__(
        self,
        dataset: str | Sequence[str] = "basic_arithmetic",
        config: Mapping[str, Any] | None = None,
        grader_options: Mapping[str, Any] | None = None,
        template: str = "r1_zero",
    ) -> None:
        self.datasets = [dataset] if isinstance(dataset, str) else list(dataset)
        self.grader_options, self.template = dict(grader_options or {}), template
        self._configs = _checked(self.datasets, dict(config or {}))

    def problems(self, split: Split, n: int | None = None, seed: int = 0) -> list[Problem]:
        """Distinct puzzles; the split follows from the question. See `Task.problems`."""
        stream = self._stream(seed)

        def make(_: Random) -> tuple[str, Callable[[], Problem]]:
            problem = next(stream)
            return problem.question, lambda: problem

        return draw(make, split, n, DEFAULT_PROBLEMS[split], seed)

    def gold_completion(self, problem: Problem) -> str:
        """The library's answer."""
        return f"<answer>{problem.answer}</answer>"

    def _stream(self, seed: int) -> Iterator[Problem]:
        """Puzzles without end, of each dataset in turn."""
        from reasoning_gym import create_dataset

        for block in count():
            made = {}
            for name in self.datasets:
                own_seed = stable_hash(f"{name}/{seed}/{block}") % SEEDS
                made[name] = own_seed, create_dataset(name, seed=own_seed, **self._configs[name])
            for index in range(BLOCK):
                for name, (own_seed, dataset) in made.items():
                    yield _problem(name, self._configs[name], own_seed, index, dataset[index])


def _problem(name: str, config: Mapping[str, Any], seed: int, index: int, entry: Mapping[str, Any]) -> Problem:
    puzzle = {"dataset": name, "config": dict(config), "seed": seed, "index": index}
    if name == OWN_SCORER:
        puzzle |= {key: entry["metadata"][key] for key in ("numbers", "target")}
    gold, columns = gold_of(entry), {"dataset": name, "puzzle": json.dumps(puzzle)}
    if not gold:
        raise TaskError(f"reasoning_gym: {name} gives puzzles without an answer, whose grader nobody can check")
    return Problem(problem_id(name, entry["question"]), entry["question"], gold, columns)


def _checked(names: Sequence[str], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The part of the configuration that each dataset takes."""
    from dataclasses import fields

    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TaskError(f"reasoning_gym: {extras.install('reasoning-gym')}") from error
    if not names:
        raise TaskError("reasoning_gym: dataset names no dataset")
    configs, known = {}, set[str]()
    for name in names:
        if name in EXECUTING:
            raise TaskError(f"reasoning_gym: the scorer of {name} executes what the model wrote, so it is not offered")
        if name in UNSTABLE:
            raise TaskError(f"reasoning_gym: {name} makes other puzzles of the same seed in every process")
        if name not in DATASETS:
            raise TaskError(f"reasoning_gym has no dataset {name!r}{nearest(name, list(DATASETS))}")
        own = {field.name for field in fields(DATASETS[name][1])} - {"seed", "size"}
        configs[name] = {key: value for key, value in config.items() if key in own}
        known |= own
    if unknown := sorted(config.keys() - known):
        raise TaskError(f"reasoning_gym: {', '.join(names)} has no field {unknown[0]!r}{nearest(unknown[0], known)}")
    return configs
