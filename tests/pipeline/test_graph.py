"""Fingerprints decide what runs: one changed leaf makes exactly the stages downstream of it stale, and nothing else."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline import artifacts
from pipeline.commands import display
from pipeline.recipe import load
from pipeline.runner import graph, runner
from pipeline.runner.graph import State

#         base -> zero -> samples -> taught
#            \________________________/   \
#             \-> small                    -> score
RECIPE = """\
name: tiny
seed: 3
tasks:
  sums: {use: arithmetic, options: {digits: 1}}
  words: {use: jsonl, options: {path: words.jsonl}}
stages:
  score:
    kind: evaluate
    models: ["@zero", "@taught"]
    tasks: [words/test]
  base:
    kind: pretrain
    model: nano
    vocabulary: {kind: words}
    corpus: {use: "corpus.py:Sums", documents: 200}
    length: 32
    trainer: {learning_rate: 3.0e-3}
  small:
    kind: sft
    model: "@base"
    data: [rows.jsonl]
  zero:
    kind: grpo
    model: "@base"
    tasks: [sums]
    rewards: [accuracy, "rewards.py:brevity"]
  samples:
    kind: rejection_sample
    model: "@zero"
    tasks: [sums]
  taught:
    kind: sft
    model: "@base"
    data: ["@samples"]
"""
ALL = {"base", "small", "zero", "samples", "taught", "score"}
AFTER_ZERO = {"zero", "samples", "taught", "score"}

LEAVES = {
    "stages.base.trainer.learning_rate=0.001": ALL,
    "stages.base.seed=4": ALL,
    "stages.small.trainer.learning_rate=0.001": {"small"},
    "stages.zero.rollout.max_tokens=8": AFTER_ZERO,
    "stages.samples.samples=2": {"samples", "taught", "score"},
    "stages.taught.max_length=64": {"taught", "score"},
    "stages.score.samples=3": {"score"},
    "tasks.sums.options.digits=2": AFTER_ZERO,
    "tasks.words.options.question=text": {"score"},
    "seed=5": ALL,
    # What changes how a recipe runs, but not what comes out of it.
    "jobs=2": set(),
    "description=Another": set(),
    "stages.small.after=[zero]": set(),
    "stages.zero.launch={env: {OMP_NUM_THREADS: '1'}}": set(),
    "tasks.more={use: countdown}": set(),
}
FILES = {
    "corpus.py": ALL,
    "rows.jsonl": {"small"},
    "rewards.py": AFTER_ZERO,
    "words.jsonl": {"score"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "corpus.py").write_text(
        "from pipeline.data.corpus import Corpus\n\n\n"
        "class Sums(Corpus):\n    def documents(self, n, seed):\n        yield from ('1 + 1 = 2' for _ in range(n))\n"
    )
    (tmp_path / "rewards.py").write_text("def brevity(completion: str) -> float:\n    return 1.0\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    (tmp_path / "words.jsonl").write_text('{"question": "one and one", "answer": "2"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def fingerprints(recipe: Path, *overrides: str) -> dict[str, str]:
    return {name: node.fingerprint for name, node in graph.build(load(recipe, overrides)).items()}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("override", LEAVES)
def test_a_leaf_concerns_exactly_what_is_downstream(override: str, recipe: Path) -> None:
    assert changed(fingerprints(recipe), fingerprints(recipe, override)) == LEAVES[override]


@pytest.mark.parametrize("name", FILES)
def test_a_file_concerns_exactly_what_reads_it(name: str, recipe: Path) -> None:
    before = fingerprints(recipe)
    with (recipe.parent / name).open("a") as file:
        file.write("\n")
    assert changed(before, fingerprints(recipe)) == FILES[name]


def test_files_of_one_name_in_two_folders_both_count(recipe: Path) -> None:
    for folder in ("a", "b"):
        (recipe.parent / folder).mkdir()
        (recipe.parent / folder / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    both = "stages.small.data=[a/rows.jsonl, b/rows.jsonl]"
    before = fingerprints(recipe, both)
    for folder in ("a", "b"):
        (recipe.parent / folder / "rows.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n')
        after = fingerprints(recipe, both)
        assert changed(before, after) == {"small"}
        before = after


def test_spelling_is_no_change(recipe: Path) -> None:
    """Order of keys, comments, quotes, defaults that are spelt out, and where the recipe lies."""
    before = fingerprints(recipe)
    data = yaml.safe_load(RECIPE)
    data["stages"]["zero"]["seed"] = 3
    data["stages"]["score"]["samples"] = 4
    data["stages"] = dict(sorted(data["stages"].items()))
    elsewhere = recipe.parent / "elsewhere"
    elsewhere.mkdir()
    for name in FILES:
        (recipe.parent / name).rename(elsewhere / name)
    (elsewhere / "other.yaml").write_text("# the same\n" + yaml.safe_dump(data, sort_keys=True))
    assert fingerprints(elsewhere / "other.yaml") == before


def test_a_new_name_is_no_new_work(recipe: Path) -> None:
    """A stage's name is not part of its fingerprint, only of where its artifact lies."""
    before = fingerprints(recipe)["small"]
    recipe.write_text(RECIPE.replace("  small:", "  tiny:"))
    assert fingerprints(recipe)["tiny"] == before


def test_stages_come_after_what_they_use(recipe: Path) -> None:
    nodes = graph.build(load(recipe, ["stages.base.after=[]", "stages.small.after=[taught]"]))
    order = list(nodes)
    for name, node in nodes.items():
        assert all(order.index(needed) < order.index(name) for needed in node.after)
    assert order.index("taught") < order.index("small")
    assert set(nodes["small"].inputs) == {"base"}


@pytest.mark.parametrize("done", ["", "base", "base zero", "base zero samples", "base small"])
def test_what_can_start_is_in_the_order_of_the_recipe_whatever_is_done(done: str, recipe: Path) -> None:
    loaded = load(recipe)
    nodes = graph.build(loaded)
    left = [name for name in loaded.stages if name not in done.split()]
    order = graph.Order(nodes, list(loaded.stages), done.split())
    while left:
        ready = [name for name in left if not set(nodes[name].after) & set(left)]
        assert order.ready == ready
        assert order.left()
        order.ready.remove(ready[0])
        left.remove(ready[0])
        order.finish(ready[:1])
    assert not order.ready
    assert not order.left()


def publish(run: Path, nodes: Mapping[str, graph.Node], *names: str) -> None:
    for name in names:
        node = nodes[name]
        source = run / "made" / name
        source.mkdir(parents=True)
        (source / "data.jsonl").write_text("{}\n")
        manifest = {"fingerprint": node.fingerprint, "identity": node.identity, "finished": "2026-01-01"}
        artifacts.publish(source, artifacts.folder(run, name, node.fingerprint), manifest)


def states(recipe: Path, run: Path, *overrides: str) -> dict[str, tuple[State, str]]:
    return {step.node.name: (step.state, step.reason) for step in graph.plan(graph.build(load(recipe, overrides)), run)}


def test_the_plan_says_what_runs_and_why(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    nodes = graph.build(load(recipe))
    publish(run, nodes, *(ALL - {"score"}))
    artifacts.scratch(run, "score", nodes["score"].fingerprint).mkdir(parents=True)

    now = states(recipe, run)
    assert {state for name, (state, _) in now.items() if name != "score"} == {State.FRESH}
    assert now["score"][0] is State.INTERRUPTED

    then = states(recipe, run, "stages.zero.trainer.learning_rate=5e-7")
    assert {name for name, (state, _) in then.items() if state is State.FRESH} == {"base", "small"}
    assert then["zero"] == (State.STALE, "trainer.learning_rate nothing → 5e-07")
    assert then["samples"] == (State.STALE, "input @zero runs again")
    assert then["score"][0] is State.NEW

    (recipe.parent / "rewards.py").write_text("def brevity(completion: str) -> float:\n    return 0.5\n")
    assert states(recipe, run)["zero"][1] == "file rewards.py changed"


def test_a_new_version_of_a_stage_kind_makes_it_stale(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.stages.grpo import GrpoConfig

    before = fingerprints(recipe)
    monkeypatch.setattr(GrpoConfig, "version", GrpoConfig.version + 1)
    assert changed(before, fingerprints(recipe)) == AFTER_ZERO


def test_nobody_waits_for_a_run_that_is_finished(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, run = load(recipe), tmp_path / "run"
    publish(run, graph.build(checked), *ALL)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"sleeps {seconds} s"))
    with display.observer(Console(file=io.StringIO()), as_json=False) as observer:
        assert runner.execute(checked, run, observer).ran == ()


def test_a_local_model_counts_with_its_content_wherever_it_is_named(recipe: Path) -> None:
    names = {"score": "z/mm", "taught": "mm"}
    for name in names.values():
        (recipe.parent / name).mkdir(parents=True)
        (recipe.parent / name / "model.safetensors").write_bytes(b"1")
    overrides = [f"stages.score.models=[{names['score']}]", f"stages.taught.model={names['taught']}"]
    before = fingerprints(recipe, *overrides)
    for stage, name in names.items():
        (recipe.parent / name / "model.safetensors").write_bytes(b"2")
        after = fingerprints(recipe, *overrides)
        assert stage in changed(before, after), f"{name} is not what {stage} was made from"
        before = after


def test_a_tilde_is_the_home_folder(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in FILES:
        (recipe.parent / name).rename(home / name)
    overrides = [
        "stages.base.corpus.use=~/corpus.py:Sums",
        "stages.small.data=[~/rows.jsonl]",
        "stages.zero.rewards.1=~/rewards.py:brevity",
        "tasks.words.options.path=~/words.jsonl",
    ]
    for name, readers in FILES.items():
        before = fingerprints(recipe, *overrides)
        with (home / name).open("a") as file:
            file.write("\n")
        assert changed(before, fingerprints(recipe, *overrides)) == readers


@pytest.mark.parametrize("text", ["", "~", "~/"])
def test_an_empty_option_is_no_folder(text: str, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(recipe.parent))
    before = fingerprints(recipe, f"tasks.words.options.question='{text}'")
    (recipe.parent / "runs").mkdir()
    (recipe.parent / "runs" / "new.txt").write_text("written by the run itself")
    assert not changed(before, fingerprints(recipe, f"tasks.words.options.question='{text}'"))
