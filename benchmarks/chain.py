"""What finished runs of a chain of stages came to: a JSON file a run, its report and manifests, the tables of a page.

    python -m benchmarks.chain runs/0/r1-qwen-1.5b runs/1/r1-qwen-1.5b          # benchmarks/results/NAME-seed-N.json
    python -m benchmarks.chain runs/0/r1-qwen-1.5b --page docs/results/qwen-1.5b.md
    python -m benchmarks.chain --name r1-qwen-1.5b --page docs/results/qwen-1.5b.md                 # the page alone

Models, tasks and protocols are those of the run's `evaluate` stages, so it serves any recipe. Stages that sample in one
way, and ask in one way, are one protocol. `table` has the one that most models were scored by, and `protocols` those of
other sampling. A model that was also asked in another way, with the same sampling, stands there a second time, as
MODEL_STAGE. Each entry has the shares of `format` (a thought, then an answer) and, where the recipe rewards a language,
of `language`, over those samples that the evaluation has kept. No weights are copied; folders of the machine are left
out of paths.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.chain_page import HEALTH, NOTHING, page
from benchmarks.collect import collect
from benchmarks.collect import fault as run_fault
from benchmarks.pages import fault as page_fault
from benchmarks.pages import tell
from pipeline import artifacts
from pipeline.files.rows import read_rows
from pipeline.report.run_data import Run, Stage, State, read_run
from pipeline.rollout.base import Finish

__all__ = ["HEALTH", "NOTHING", "keep", "numbers", "page", "published"]

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = (artifacts.RUN_RECORD, artifacts.RUN_RECIPE, "report.html")
"""Files of a run that are copied beside the manifests of its stages."""
SHOWN_PROBLEMS = 2
"""Problems of each task that are shown as all models answered them."""

Entries = dict[str, dict[str, Any]]
"""Model -> task -> its scores."""


@dataclass
class Protocol:
    """Scores that were sampled in one way, of prompts of one kind.

    Attributes:
        stages: that scored by it, in the order of the recipe.
        sampling: temperature, top-p, samples and so on.
        models: the scores.
    """

    sampling: Mapping[str, Any]
    stages: list[Stage] = field(default_factory=list)
    models: Entries = field(default_factory=lambda: defaultdict(dict))

    @property
    def name(self) -> str:
        """The first stage's."""
        return self.stages[0].name


def numbers(folder: Path) -> dict[str, Any]:
    """What is published of a run, finished or not; stages that are not finished are named as `missing`."""
    run = read_run(folder)
    done = {name: stage for name, stage in run.stages.items() if stage.state is State.FINISHED}
    if not done:
        raise SystemExit(f"{folder}: no stage of this run is finished")
    first, *others = joined(protocols(run)) or [Protocol({})]
    took = {name: stage.seconds or 0.0 for name, stage in done.items()}
    return {
        **{key: value for key, value in collect(folder).items() if key not in ("table", "stages")},
        "table": first.models,
        "sampling": first.sampling,
        "protocols": {one.name: {"sampling": one.sampling, "table": one.models} for one in others},
        "minutes": {name: round(seconds / 60, 2) for name, seconds in took.items()},
        "gpu_minutes": {
            name: round(took[name] * len(gpus) / 60, 2)
            for name, stage in done.items()
            if (gpus := stage.manifest.get("gpus"))
        },
        "wall_minutes": _wall(done.values()),
        "kinds": {name: stage.kind for name, stage in done.items()},
        "resumed": {name: times for name, stage in done.items() if (times := stage.manifest.get("resumed"))},
        "missing": [name for name in run.stages if name not in done],
        "samples": list(_shown(first)),
    }


def _wall(stages: Iterable[Stage]) -> float | None:
    """Minutes from the first start to the last end; pauses between two commands count."""
    known = [(one.started, one.finished) for one in stages if one.started is not None and one.finished is not None]
    return round((max(end for _, end in known) - min(start for start, _ in known)) / 60, 2) if known else None


def protocols(run: Run) -> list[Protocol]:
    """The scores of a run's evaluations, in the order of the recipe."""
    found: dict[str, Protocol] = {}
    for stage in _evaluations(run):
        sampling = {key: value for key, value in stage.metrics["sampling"].items() if key != "seed"}
        asked = [[task.get(key) for key in ("use", "template", "options")] for task in stage.config["tasks"]]
        key = json.dumps([sampling, sorted(map(str, asked)), stage.config.get("harness")], sort_keys=True)
        protocol = found.setdefault(key, Protocol(sampling))
        protocol.stages.append(stage)
        shares = _shares(stage, _language(run))
        for model, scores in stage.metrics["scores"].items():
            for task, entry in scores.items():
                protocol.models[model][task] = {**entry, **shares.get((model, task), {})}
    return list(found.values())


def joined(found: Sequence[Protocol]) -> list[Protocol]:
    """One protocol for each sampling, the one with the most models first; see the top of this module."""
    kept: list[Protocol] = []
    for one in sorted(found, key=lambda protocol: -len(protocol.models)):
        same = next((other for other in kept if other.sampling == one.sampling), None)
        if same is None:
            kept.append(one)
        else:
            same.models |= {f"{model}_{one.name}": scores for model, scores in one.models.items()}
    return kept


def _evaluations(run: Run) -> Iterator[Stage]:
    order = list(run.recipe.get("stages", run.stages))
    for name in sorted(run.stages, key=lambda name: order.index(name) if name in order else len(order)):
        stage = run.stages[name]
        if stage.kind == "evaluate" and stage.state is State.FINISHED:
            yield stage


def _language(run: Run) -> Mapping[str, Any] | None:
    """Options of the language reward that the recipe has; `None` if it has none."""
    for stage in run.stages.values():
        for reward in [*(stage.config.get("rewards") or []), *(stage.config.get("require") or [])]:
            if reward == "language":
                return {}
            if isinstance(reward, Mapping) and reward.get("use") == "language":
                return dict(reward.get("options") or {})
    return None


def _shares(stage: Stage, language: Mapping[str, Any] | None) -> dict[tuple[str, str], dict[str, float]]:
    """(model, task) -> shares of the right format and language, and of how many samples."""
    from rewards import Item
    from rewards.format import ThinkFormat
    from rewards.language import Language
    from rewards.verdict import PREFILL

    rows = list(_samples(stage))
    items = [
        Item(
            row["completion"],
            columns={PREFILL: row.get("begun", ""), "truncated": row["finish"] == Finish.LENGTH.value},
        )
        for row in rows
    ]
    judged = {"format": ThinkFormat().verify(items)}
    if language is not None:
        judged["language"] = Language(**language).verify(items)
    labels = {task.rpartition("/")[0] or task: task for task in _tasks(stage)}
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, verdicts in judged.items():
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.score is not None and row["task"] in labels:
                found[row["model"], labels[row["task"]]][name].append(verdict.score)
    return {
        key: {**{name: fmean(scores) for name, scores in shares.items()}, "looked_at": len(shares["format"])}
        for key, shares in found.items()
    }


def _tasks(stage: Stage) -> list[str]:
    return list(dict.fromkeys(task for scores in stage.metrics["scores"].values() for task in scores))


def _samples(stage: Stage) -> Iterator[dict[str, Any]]:
    assert stage.folder is not None
    path = stage.folder / "samples.jsonl"
    return (row for _, row in read_rows(path)) if path.exists() else iter(())


def _shown(protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Problems as all models answered them: the first model got them wrong, and half of the others right."""
    models = list(dict.fromkeys(model for stage in protocol.stages for model in stage.metrics["scores"]))
    answers: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for stage in protocol.stages:
        for row in _samples(stage):
            answers[row["task"], row["id"]].setdefault(row["model"], row)
    counted: dict[str, int] = defaultdict(int)
    for (task, _), by_model in answers.items():
        told = [by_model[model] for model in models if model in by_model]
        right = [row["status"] == "correct" for row in told]
        if len(told) < len(models) or right[0] or 2 * sum(right) < len(right):
            continue
        counted[task] += 1
        if counted[task] <= SHOWN_PROBLEMS:
            said = {row["model"]: {"completion": row["completion"], "status": row["status"]} for row in told}
            yield {"task": task, "question": told[0]["question"], "answer": told[0]["answer"], "answers": said}


def keep(folder: Path, results: Path) -> Path:
    """Write the numbers of a run, and copy its records, report and manifests; returns the file of numbers."""
    found = numbers(folder)
    places = Places(folder)
    name = f"{found['recipe']}-seed-{found['seed']}"
    file = results / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(places.shortened(json.dumps(found, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8")
    target = results / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in (folder / part for part in KEPT):
        if path.exists():
            (target / path.name).write_text(places.shortened(path.read_text(encoding="utf-8")), encoding="utf-8")
    for stage, artifact in artifacts.current(folder).items():
        if artifact is not None:
            manifest = {key: value for key, value in artifact.manifest.items() if key != "sha256"}  # the original's
            text = places.shortened(json.dumps(manifest, indent=1, ensure_ascii=False))
            (target / f"{stage}.json").write_text(text + "\n", encoding="utf-8")
    return file


class Places:
    """Folders of the machine that a run's records name, which say nothing to anybody else.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        record = json.loads((folder / artifacts.RUN_RECORD).read_text(encoding="utf-8"))
        known = {str(folder.resolve().parent), str(folder.resolve())}
        known |= {path for word in _texts(record) for path in _paths(word)}
        for artifact in filter(None, artifacts.current(folder).values()):
            known |= {path for word in _texts(artifact.manifest) for path in _paths(word)}
        self._known = sorted((path for path in known if path.count("/") > 1), key=len, reverse=True)

    def shortened(self, text: str) -> str:
        """A text in which each of them is its last part alone."""
        for path in self._known:
            text = text.replace(path, Path(path).name)
        return text


def _texts(value: Any) -> Iterator[str]:
    """Every text in a record, also of keys: files are named there."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _paths(text: str) -> Iterator[str]:
    """The absolute paths in a text, such as an override has one."""
    for word in text.replace('"', " ").replace("'", " ").replace("=", " ").replace(",", " ").replace("}", " ").split():
        if word.startswith("/") and not word.startswith("//"):
            yield word.rstrip("/")


def published(name: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The published runs of a recipe, one a seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob(f"{name}-seed-*.json")]
    return sorted(found, key=lambda run: int(run["seed"]))


def main() -> None:
    """Parse the command line, write the files, and print the tables or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of one recipe")
    parser.add_argument("--name", help="the recipe's name, if no run is given")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of published results")
    parser.add_argument("--page", type=Path, help="page with a place for the tables; they are printed if not given")
    options = parser.parse_args()
    if not options.runs and not options.name:
        parser.error("give the folders of runs, or --name with the recipe's")
    if options.page is not None and (fault := page_fault(options.page, "chain")):
        parser.error(fault)
    if fault := next(filter(None, map(run_fault, options.runs)), ""):
        parser.error(fault)
    known = [collect(folder) for folder in options.runs]
    if len(names := {one["recipe"] for one in known} or {options.name}) > 1:
        parser.error(f"these are runs of several recipes: {', '.join(sorted(names))}")
    if len({one["seed"] for one in known}) < len(known):
        seeds = ", ".join(str(one["seed"]) for one in known)
        parser.error(f"these are runs with the seeds {seeds}: one a seed can be published")
    (name,) = names
    for folder in options.runs:
        keep(folder, options.results)
    if not (runs := published(name, options.results)):
        there = sorted({path.name.rpartition("-seed-")[0] for path in options.results.glob("*-seed-*.json")})
        parser.error(f"no run of {name!r} is published in {options.results}; there are: {', '.join(there) or 'none'}")
    tell("chain", page(runs), options.page)


if __name__ == "__main__":
    main()
