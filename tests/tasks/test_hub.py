"""Data sets and models on the hub: what is read, at which commit, and what is said of one that cannot be had."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.checks import needs
from pipeline.data.mixture import DataSource, mixed
from pipeline.files import hub as hub_module
from pipeline.files.hub import HubError
from pipeline.files.source import RecipeError
from pipeline.recipe import load as load_recipe
from pipeline.runner import graph
from pipeline.schema.hub import HubSource
from pipeline.stages.registry import run_function
from pipeline.tasks.base import TaskError, load
from pipeline.tasks.resolve import TaskField
from tests.hub import Hub
from tests.stages.driving import context_of


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sums(several: range) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {n} + {n}?", "reward_model": {"ground_truth": [2 * n]}, "level": n % 3} for n in several
    ]


@pytest.fixture(scope="module")
def commit(hub: Hub) -> str:
    hub.add("someone/closed", {"train.jsonl": b"{}\n"}, gated=True)
    files = {
        "data/train-00000-of-00001.parquet": as_parquet(sums(range(1, 41))),
        "data/test-00000-of-00001.parquet": as_parquet(sums(range(100, 110))),
    }
    return hub.add("someone/sums", files)


SUMS = {"path": "someone/sums", "question": "prompt", "answer": "reward_model.ground_truth"}


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ({"split": "train"}, 40, None),
        ({"split": "test"}, None, 10),
        ({"split": "train+test"}, 50, None),
        ({"test_split": "test"}, 40, 10),
    ],
)
@pytest.mark.usefixtures("commit")
def test_a_task_takes_the_splits_that_it_is_told(options: dict[str, Any], train: int | None, test: int | None) -> None:
    task = load("hub", {**SUMS, **options})
    counts: list[int | None] = []
    for split in ("train", "test"):
        try:
            problems = task.problems(split)  # type: ignore[arg-type]
            assert not task.validate(problems)
            counts.append(len(problems))
        except TaskError as error:
            assert "give the task test_split, or test_share" in str(error)
            counts.append(None)
    assert counts == [train, test]


@pytest.mark.parametrize(("options", "share"), [({"split": "train", "test_share": 0.5}, 0.5), ({}, 0.1)])
@pytest.mark.usefixtures("commit")
def test_a_share_of_a_split_is_held_out(options: dict[str, Any], share: float) -> None:
    task = load("hub", {**SUMS, **options})
    train, test = ({problem.question for problem in task.problems(split)} for split in ("train", "test"))  # type: ignore[arg-type]
    assert train | test == {row["prompt"] for row in sums(range(1, 41))}
    assert not train & test
    assert abs(len(test) - share * 40) <= 5


def test_what_stands_beside_use_are_options() -> None:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(TaskField)
    spec = adapter.validate_python({"use": "hub", **SUMS, "split": "validation", "problems": 5})
    assert (spec.split, spec.label, spec.problems) == ("test", "sums/test", 5)
    assert spec.options == {**SUMS, "split": "validation"}
    assert adapter.validate_python(spec.model_dump()) == spec, "as a stage's process reads it"
    both = adapter.validate_python({"use": "hub", **SUMS})
    assert adapter.validate_python(both.model_dump()) == both
    with pytest.raises(ValueError, match=r"task 'hub' has no option 'anwser' .did you mean 'answer'"):
        adapter.validate_python({"use": "hub", "path": "someone/sums", "anwser": "x"})


RECIPE = """name: r
tasks:
  named: {{use: hub, path: someone/sums, revision: {revision}, question: prompt, answer: reward_model.ground_truth,
          split: train, test_split: test, filter: {{level: [1, 2]}}}}
stages:
  zero: {{kind: grpo, model: some/model, tasks: [{task}], rewards: [accuracy]}}
  sft: {{kind: sft, model: some/model, data: [{{from: {source}}}]}}
"""


def recipe(folder: Path, revision: str = "main", task: str = "named", source: str = "{hub: someone/chats}") -> Any:
    (folder / "recipe.yaml").write_text(RECIPE.format(revision=revision, task=task, source=source))
    return load_recipe(folder / "recipe.yaml")


def test_the_commit_is_part_of_the_fingerprint(hub: Hub, commit: str, tmp_path: Path) -> None:
    first = hub.add("someone/chats", {"train.jsonl": as_lines([{"messages": []}])})
    hub_module._commit.cache_clear()
    before = graph.build(recipe(tmp_path))
    config = before["zero"].config
    assert config.tasks[0].options["revision"] == commit  # type: ignore[attr-defined]
    assert before["sft"].config.data[0].source.revision == first  # type: ignore[attr-defined]
    assert commit in json.dumps(before["zero"].identity)
    second = hub.add("someone/chats", {"train.jsonl": as_lines([{"messages": [1]}])})
    assert graph.build(recipe(tmp_path))["sft"].fingerprint == before["sft"].fingerprint, "asked once a process"
    hub_module._commit.cache_clear()
    after = graph.build(recipe(tmp_path))
    assert after["sft"].config.data[0].source.revision == second  # type: ignore[attr-defined]
    assert after["sft"].fingerprint != before["sft"].fingerprint
    assert after["zero"].fingerprint == before["zero"].fingerprint


def test_without_a_network_the_commit_is_the_last_that_was_found(
    hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub_module._commit.cache_clear()
    assert hub_module.commit(HubSource(hub="someone/sums")) == commit
    hub_module._commit.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_module.commit(HubSource(hub="someone/sums")) == commit
    with pytest.raises(HubError, match=r"someone/new: cannot reach the hub at http://127.0.0.1:9 .*, and no copy is"):
        hub_module.commit(HubSource(hub="someone/new"))
    hub_module._commit.cache_clear()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "{hub: someone/nothing}"}, r"sft.data.0.from: data set someone/nothing: there is none of that"),
        ({"source": "{hub: someone/closed}"}, r"sft.data.0.from: data set someone/closed is gated: accept its terms"),
        ({"source": "{hub: someone/sums, revision: nowhere}"}, "data set someone/sums: there is no revision 'nowhere'"),
        ({"source": "{hub: someone/sums, split: dev}"}, r"there is no split 'dev'; it has: train, test"),
        ({"source": "{hub: someone/sums, config: hard}"}, r"BuilderConfig 'hard' not found. Available: \['default'\]"),
        ({"source": "{hub: someone/sums}"}, "row 1: a row needs messages, or prompt and completion, .* has: prompt"),
        ({"source": "{hub: someone/sums}, columns: {prompt: promt}"}, "there is no field promt .did you mean 'prompt'"),
        (
            {"source": "{hub: someone/sums}, columns: {prompt: prompt, completion: reward_model.truth}"},
            "row 1: there is no field reward_model.truth",
        ),
        ({"task": "{use: hub, path: someone/sums, split: train}"}, "row 1: there is no field question"),
        ({"task": "{use: hub, path: someone/sums, question: prompt, answer: reward_model, split: train}"},
         "reward_model is a text or a number, not .*; name a field within it, such as reward_model.ground_truth"),
        ({"task": "{use: hub, path: someone/none}"}, "stages.zero.tasks.0: data set someone/none: there is none"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("commit")
def test_what_cannot_be_had_is_one_line_before_anything_runs(
    changes: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    made = recipe(tmp_path, **changes)
    stage = "zero" if "task" in changes else "sft"
    told = needs.unmet(made, [stage], run=True)
    assert len(told) == 1 and "\n" not in told[0]
    assert re.search(words, told[0]), told


def test_a_data_set_of_several_configurations_names_them(hub: Hub) -> None:
    one = "- config_name: {0}\n  data_files: {0}.jsonl\n"
    card = f"---\nconfigs:\n{one.format('en')}{one.format('zh')}---\n".encode()
    hub.add("someone/languages", {"README.md": card, **dict.fromkeys(("en.jsonl", "zh.jsonl"), as_lines([{"a": 1}]))})
    with pytest.raises(HubError, match=r"available configs: \['en', 'zh'\] .the field `config`.$") as caught:
        next(hub_module.rows(HubSource(hub="someone/languages")))
    assert "\n" not in str(caught.value)


def test_rows_to_train_on_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    chats = [
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!"}], "n": n}
        for n in range(20)
    ]
    hub.add(
        "someone/sharegpt",
        {"a.jsonl": as_lines(chats), "README.md": b"---\nconfigs:\n- config_name: all\n  data_files: a.jsonl\n---\n"},
    )
    source = {"from": {"hub": "someone/sharegpt", "config": "all"}, "filter": {"n": [5, 14]}, "take": 4}
    context = context_of(tmp_path, "sft", {"kind": "sft", "model": "m", "data": [source]}, {})
    rows = list(mixed([DataSource.model_validate(source)], context))
    assert len(rows) == 4
    for row in rows:
        asked, said = row["messages"]
        assert asked == {"role": "user", "content": said["content"].replace("!", "?")}
        assert said["role"] == "assistant" and 5 <= int(said["content"][:-1]) <= 14
        assert row.place.startswith("someone/sharegpt/all@") and ", row " in row.place


@pytest.mark.usefixtures("commit")
def test_streaming_gives_the_same_rows() -> None:
    kept, streamed = (
        list(hub_module.rows(HubSource(hub="someone/sums", streaming=streaming))) for streaming in (False, True)
    )
    assert kept == streamed
    assert len(kept) == 40


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{hub: someone/sums, splt: test}", r"data.0.from.splt: unknown key \(did you mean 'split'\?\)"),
        ("{split: test}", "data.0.from.hub: is required"),
        ("{hub: 'no name'}", "'no name' is not the name of a data set"),
        ("nothing/*.parquet", r"data.0.from: there is no file or folder .*/nothing/\*.parquet"),
    ],
)
def test_a_source_that_cannot_be_is_told_with_its_key(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(tmp_path, source=source)


def test_a_model_of_the_hub_is_taken_whole_and_stays_here(
    hub: Hub, calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from transformers import AutoModelForCausalLM

    hub.add("someone/adder", {path.name: path.read_bytes() for path in calculator.iterdir()})
    assert hub_module.model_fault("someone/adder") == ""
    context = context_of(tmp_path, "base", {"kind": "import_model", "model": "someone/adder"}, {})
    assert run_function("import_model")(context).metrics["end_of_turn"] == "<eos>"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(place) for place in (context.output / "model", calculator))
    assert all((ours.state_dict()[name] == weight).all() for name, weight in theirs.state_dict().items())
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_module.model_fault("someone/adder") == "", "a copy is here"
    assert hub_module.model_fault("someone/other") == hub_module.UNREACHABLE


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("model: someone/nothing", "someone/nothing cannot be loaded: it is no folder here, and no model on http"),
        ("model: someone/shut", "someone/shut cannot be loaded: it is gated: accept its terms at http"),
        ("model: someone/open, revision: v9", "someone/open cannot be loaded: it has no revision 'v9' on http"),
        ("model: someone/open", None),
        ("model: here", None),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line_before_anything_runs(
    model: str, words: str | None, hub: Hub, tmp_path: Path
) -> None:
    hub.add_model("someone/open")
    hub.add_model("someone/shut", gated=True)
    (tmp_path / "here").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f'name: r\nstages:\n  base: {{kind: import_model, {model}}}\n  after: {{kind: export, model: "@base"}}\n'
    )
    told = needs.unfound_models(load_recipe(recipe), ["base", "after"])
    assert [line.startswith(f"stages.base.model: {words}") for line in told] == ([True] if words else [])
