"""`r1/qwen-1.5b`: the chain of the paper, where its stages run, and what is published of a run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chain, r1_qwen, r1_rehearsal
from benchmarks.pages import placed
from pipeline.gpus import Gpu
from pipeline.placement import wanted
from pipeline.recipe import Recipe, load
from pipeline.runner import graph
from tests.report import nano_run

PAGES = {"qwen-1.5b.md": r1_qwen.RUN, "v3-small.md": "v3-small-r1"}
"""Pages of results -> the recipe whose runs they show."""
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MODELS = {"base", "zero", "dev1", "dev2", "dev3", "r1", "student_base", "student", "student_rl"}
TASKS = {"gsm8k/test", "math500/test", "code/test"}
BESIDE = ("general", "student_rl")
"""Stages beside the chain; evaluations are, too."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rehearsal's data, and a folder in place of its model."""
    folder = tmp_path_factory.mktemp("rehearsal")
    r1_rehearsal.problems(folder)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def planned(folder: Path, values: dict[str, Any]) -> tuple[Recipe, dict[str, graph.Node]]:
    """The recipe with local data, and its stages as nodes."""
    models = {f"stages.{stage}.model": str(folder / "model") for stage in ("base", "student_base")}
    recipe = load(r1_qwen.RECIPE, r1_qwen.overrides({**r1_qwen.local(folder), **models, **values}))
    return recipe, graph.build(recipe)


def test_the_chain_is_the_papers(small: Path) -> None:
    """Both fine-tunings start from the base; the student's twin never sees what R1 wrote."""
    _, nodes = planned(small, {})

    def before(name: str) -> set[str]:
        found = set(nodes[name].inputs)
        return found.union(*map(before, found)) if found else found

    starts = {name: node.config.model for name, node in nodes.items() if node.config.kind in ("grpo", "sft", "distill")}
    assert starts == {
        "zero": "@base", "dev1": "@base", "dev2": "@dev1", "dev3": "@base", "r1": "@dev3",
        "student": "@student_base", "student_rl": "@student_base",
    }  # fmt: skip
    assert before("dev1") == {"base", "zero", "cold_start"}
    assert before("r1") >= {"dev2", "reasoning", "general", "helpful"}
    assert before("student") >= {"r1", "lessons"} and before("student_rl") == {"student_base"}


def test_every_model_is_scored_greedily_and_by_sampling_and_the_bases_in_their_own_words(small: Path) -> None:
    recipe, _ = planned(small, {})
    found: dict[tuple[bool, str], set[str]] = {}
    for stage in (stage for stage in recipe.stages.values() if stage.kind == "evaluate"):
        templates = {task.template for task in stage.tasks}
        way = "own" if templates == {"boxed", "plain"} else "chain"
        assert {task.label for task in stage.tasks} == TASKS and (way == "own" or templates == {None})
        assert all(task.problems is None for task in stage.tasks) and stage.problems is None
        found.setdefault((stage.rollout.temperature == 0, way), set()).update(ref[1:] for ref in stage.references)
    bases = {"base", "student_base"}
    assert found == {
        (greedy, way): MODELS if way == "chain" else bases for greedy in (True, False) for way in ("own", "chain")
    }


@pytest.mark.parametrize("seed", range(20))
def test_on_four_gpus_no_stage_of_the_chain_waits_for_what_runs_beside_it(small: Path, seed: int) -> None:
    """Whatever the stages take: started as the runner does, the first in the recipe's order whose GPUs are free."""
    recipe, nodes = planned(small, {})
    there = [Gpu(str(index), str(index)) for index in range(4)]
    need = {name: wanted(node.config, recipe.base).number(there) for name, node in nodes.items()}
    takes = random.Random(seed)
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    now = 0.0
    while len(ends) < len(nodes):
        ready = [
            name for name in recipe.stages if name not in (*ends, *running) and set(nodes[name].after) <= ends.keys()
        ]
        for name in ready:
            if len(running) < recipe.jobs and sum(need[one] for one in running) + need[name] <= len(there):
                running[name] = now + takes.uniform(0.1, 10)
                continue
            assert name in BESIDE or nodes[name].config.kind == "evaluate", f"{name} waits for {list(running)}"
        first = min(running, key=running.__getitem__)
        now = ends[first] = running.pop(first)


def test_on_one_gpu_each_stage_has_one_at_most(small: Path) -> None:
    recipe, nodes = planned(small, dict(r1_qwen.ONE_GPU))
    there = [Gpu("0", "0")]
    assert {wanted(node.config, recipe.base).number(there) for node in nodes.values()} == {0, 1}
    said = Path(str(recipe.path)).read_text(encoding="utf-8")
    for key, value in r1_qwen.ONE_GPU.items():
        assert f"{key}={json.dumps(value)}" in said, "the recipe's comment says it, too"


@pytest.mark.parametrize("values", [r1_qwen.cut(problems=20), None], ids=["cut", "rehearsal"])
def test_a_cut_down_chain_has_other_sizes_and_engines_alone(small: Path, values: dict[str, Any] | None) -> None:
    full, _ = planned(small, {})
    cut, _ = planned(small, r1_rehearsal.small(small) if values is None else values)
    assert cut.name == r1_qwen.CUT_NAME and list(cut.stages) == list(full.stages)
    for name, stage in cut.stages.items():
        other = full.stages[name]
        for part in ("kind", "after", "rewards", "require", "filters", "model", "models", "pairs", "packing"):
            assert getattr(stage, part, None) == getattr(other, part, None), (name, part)
        if hasattr(stage, "trainer"):
            assert stage.trainer["max_steps"] <= 4


SAMPLED = {**nano_run.SAMPLING, "samples": 2}
GREEDY = {**nano_run.SAMPLING, "samples": 1, "temperature": 0.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two protocols, of which the first has two stages, and a base that was asked in its own words."""
    english = {"use": "language", "options": {"language": "en", "detect": False}}
    tasks = [{"use": "chain", "split": "test", "template": None, "options": {}}]
    stages: dict[str, Any] = {
        "base": {"kind": "import_model", "model": "/somewhere/else/models/tiny"},
        "zero": {"kind": "grpo", "model": "@base", "rewards": [english]},
        "own": {"kind": "evaluate", "models": ["@base"], "tasks": [{**tasks[0], "template": "boxed"}]},
        "score": {"kind": "evaluate", "models": ["@base"], "tasks": tasks},
        "score_zero": {"kind": "evaluate", "model": "@zero", "tasks": tasks},
        "greedy": {"kind": "evaluate", "models": ["@base", "@zero"], "tasks": tasks},
        "last": {"kind": "sft", "model": "@zero"},
    }

    def entry(model: str, share: float, sampling: dict[str, Any]) -> dict[str, Any]:
        low, high = nano_run.wilson(share, 1319)
        scores = {"n": 1319, "samples": sampling["samples"], "pass@1": share, "low": low, "high": high}
        return {model: {"chain/test": {**scores, "tokens": 20.0, "truncated": 0.0, "thinking": 0.5}}}

    def said(model: str, text: str, right: bool, finish: str = "stop", at: int = 0) -> dict[str, Any]:
        row = {"task": "chain", "id": f"chain-{at}", "question": f"What is {at}?", "answer": "5", "model": model}
        return {**row, "completion": text, "status": "correct" if right else "wrong", "tokens": 9, "finish": finish}

    english_thought, other = "<think>we add up all of them now</think> 5", "<think>我们把所有的数字都加起来</think> 5"
    samples = {
        "own": [said("base", "It is 5.", True)],
        "score": [said("base", "5", False), said("base", english_thought, True, "length", at=1)],
        "score_zero": [said("zero", english_thought, True), said("zero", other, True, at=1)],
        "greedy": [said("base", "6", False), said("zero", "5", True)],
    }
    metrics = {
        "own": {"sampling": SAMPLED, "scores": entry("base", 0.5, SAMPLED)},
        "score": {"sampling": SAMPLED, "scores": entry("base", 0.25, SAMPLED)},
        "score_zero": {"sampling": {**SAMPLED, "seed": 7}, "scores": entry("zero", 0.75, SAMPLED)},
        "greedy": {
            "sampling": GREEDY,
            "scores": {**entry("base", 0.2, GREEDY), **entry("zero", 0.7, GREEDY)},
        },
    }
    made = nano_run.build(tmp_path / "tiny-chain", stages, waiting=("last",), metrics=metrics, samples=samples)
    record = json.loads((made / "run.json").read_text())
    record["command"] += ["stages.base.model=/somewhere/else/models/tiny", 'tasks.chain={"use": "chain"}']
    (made / "run.json").write_text(json.dumps(record))
    manifest = next((made / "stages" / "zero").glob("*/manifest.json"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "gpus": ["0", "1"]}))
    return made


def test_the_numbers_of_a_run_are_those_of_its_evaluations(run: Path) -> None:
    found = chain.numbers(run)
    table = found["table"]
    assert {model: scores["chain/test"]["pass@1"] for model, scores in table.items()} == {
        "base": 0.25, "zero": 0.75, "base_own": 0.5,
    }  # fmt: skip
    assert found["sampling"]["samples"] == 2 and "seed" not in found["sampling"]
    greedy = found["protocols"]["greedy"]["table"]
    assert {model: scores["chain/test"]["pass@1"] for model, scores in greedy.items()} == {"base": 0.2, "zero": 0.7}
    base, zero = table["base"]["chain/test"], table["zero"]["chain/test"]
    assert (base["format"], base["looked_at"]) == (0.0, 2), "one has no thought, the other was cut off"
    assert (zero["format"], zero["language"]) == (1.0, 0.5), "one of two thoughts is Chinese"
    assert found["missing"] == ["last"] and found["minutes"]["zero"] == pytest.approx(112 / 60, abs=0.01)
    assert found["gpu_minutes"] == {"zero": pytest.approx(224 / 60, abs=0.01)}
    (shown,) = found["samples"]
    assert shown["question"] == "What is 0?" and set(shown["answers"]) == {"base", "zero"}


def test_what_is_kept_of_a_run_has_no_weights_and_names_no_folder_of_the_machine(run: Path, tmp_path: Path) -> None:
    file = chain.keep(run, tmp_path / "results")
    assert file.name == "tiny-chain-seed-0.json"
    copied = {path.name for path in (tmp_path / "results" / "tiny-chain-seed-0").iterdir()}
    assert {"run.json", "recipe.yaml", "zero.json", "score.json"} <= copied and "last.json" not in copied
    for path in (tmp_path / "results").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "/somewhere" not in text and str(tmp_path) not in text, path
    command = json.loads(file.read_text())["command"]
    assert command.endswith("""stages.base.model=tiny 'tasks.chain={"use": "chain"}'"""), "as a shell reads it"


def test_the_page_has_every_seed_and_is_silent_where_nothing_is_published(run: Path, tmp_path: Path) -> None:
    chain.keep(run, tmp_path)
    (one,) = chain.published("tiny-chain", tmp_path)
    told = chain.page([one, {**one, "seed": 1}])
    assert "| model | chain/test (n = 1,319), seed 0 | seed 1 |" in told
    low, high = nano_run.wilson(0.75, 1319)
    score = f"75.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert f"| zero | {score} | {score} |" in told and "greedy, one sample a problem" in told
    assert "| zero | 100.0 % | 50.0 % | 0.0 % | 20 |" in told
    assert chain.page([]) == chain.NOTHING


def test_the_page_shows_what_unfinished_runs_have_and_what_they_lack(run: Path, tmp_path: Path) -> None:
    """A seed that was scored in one way alone, beside one that was scored in both: no table is lost, none mixed."""
    chain.keep(run, tmp_path)
    (one,) = chain.published("tiny-chain", tmp_path)
    greedy = one["protocols"]["greedy"]
    half = {**one, "sampling": greedy["sampling"], "table": {"base": greedy["table"]["base"]}, "protocols": {}}
    told = chain.page([half, {**one, "seed": 1, "missing": []}])
    assert "Seed 0 is not finished. Missing: `last`." in told and "Seed 1 is not" not in told
    low, high = nano_run.wilson(0.2, 1319)
    score = f"20.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert f"| base | {score} | {score} |" in told, "both greedily, whatever each run calls it"
    assert told.count("temperature 0.6, top-p 0.95, 2 samples") == 1 and told.count("greedy, one sample") == 1
    unscored = {**half, "sampling": {}, "table": {}, "samples": []}
    assert "pass@1" not in chain.page([unscored]) and "minutes, seed 0" in chain.page([unscored])


def test_the_page_has_curves_a_problem_through_all_models_and_what_repeats_it(run: Path, tmp_path: Path) -> None:
    chain.keep(run, tmp_path)
    (one,) = chain.published("tiny-chain", tmp_path)
    one["samples"][0]["answers"]["base"]["completion"] = "```" + "x" * 2000 + "\n```"
    told = chain.page([{**one, "curves": {"zero": {"reward": [float(step) for step in range(10)]}}}])
    assert "| `zero` | 0 | 0.5 → 2.5 → 4.5 → 6.5 → 8.5 |  |  |" in told
    assert "One problem of chain, whose answer is 5, through all models:\n\n```text\nWhat is 0?\n" in told
    assert "\nzero: correct\n    <think>we add up" in told and " […] " in told and "x" * 700 not in told
    assert not [
        line for line in told.splitlines() if line.startswith("```") and line not in ("```text", "```sh", "```")
    ]
    assert one["command"] in told and f"torch {one['packages']['torch']}" in told


def test_what_cannot_be_published_is_one_line_and_leaves_everything_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    page.write_text("no place here")
    (tmp_path / "empty").mkdir()
    for words, line in {
        f"{tmp_path / 'empty'}": "holds no run: there is no run.json in it",
        f"{run} {run}": "these are runs with the seeds 0, 0: one a seed can be published",
        f"{run} --page {page}": "the page has no place for this table",
        f"{run} --page {tmp_path / 'none.md'}": "No such file",
        "--name r1-qwen-1.5": f"no run of 'r1-qwen-1.5' is published in {results}; there are: none",
    }.items():
        monkeypatch.setattr("sys.argv", ["chain", *words.split(), "--results", str(results)])
        with pytest.raises(SystemExit) as ended:
            chain.main()
        assert ended.value.code == 2 and line in capsys.readouterr().err
    assert not results.exists() and page.read_text() == "no place here"


def test_the_page_has_the_mismatch_of_engine_and_trainer_and_the_load_of_experts(run: Path, tmp_path: Path) -> None:
    """First, last and worst value of each stage that logged them; a recipe without such stages has no table."""
    chain.keep(run, tmp_path)
    (one,) = chain.published("tiny-chain", tmp_path)
    mismatch, load = chain.HEALTH
    curves = {"base": {load: [1.5, 0.25]}, "zero": {mismatch: [0.004, 0.0061, 0.0035], load: [0.25, 0.2]}}
    told = chain.page([{**one, "curves": curves}, {**one, "seed": 1, "curves": {}}])
    assert "| `base` |  |  | 1.5 → 0.25 (1.5) |  |" in told
    assert "| `zero` | 0.004 → 0.0035 (0.0061) |  | 0.25 → 0.2 (0.25) |  |" in told
    assert "engine against trainer" not in chain.page([{**one, "curves": {}}])


@pytest.mark.parametrize("page", PAGES)
def test_a_committed_page_is_that_of_the_committed_results(page: str) -> None:
    text = (RESULTS / page).read_text(encoding="utf-8")
    assert placed(text, "chain", chain.page(chain.published(PAGES[page]))) == text, "python -m benchmarks.chain --page"
