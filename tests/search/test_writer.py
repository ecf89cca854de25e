"""Step labels against continuations that transformers samples, and the account of every token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification, set_seed

from pipeline.context import Share, StageContext
from pipeline.search.labels import beginnings, row_of, share
from pipeline.search.search import Search, Values, sampled
from pipeline.search.writer import Row, Writer, in_chunks
from pipeline.stages import step_labels, tree_search
from pipeline.stages.step_labels import StepLabelsConfig
from pipeline.stages.tree_search import TreeSearchConfig
from pipeline.tasks.resolve import prompt_rows
from rewards.process import StepReader, StepScorer
from tests.stages.driving import context_of

ROLLOUT = {"max_tokens": 12, "batch_size": 256}
TASK = {"use": "jsonl", "options": {"path": "sums.jsonl", "grader": "exact", "template": "plain", "test_share": 0}}


@pytest.fixture
def folder(calculator: Path, tmp_path: Path) -> Path:
    """Sums, the calculator, and a value model that knows nothing."""
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(5) for b in range(5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "calculator").symlink_to(calculator)
    set_seed(0)
    LlamaForSequenceClassification.from_pretrained(calculator, num_labels=1).save_pretrained(tmp_path / "value")
    AutoTokenizer.from_pretrained(calculator).save_pretrained(tmp_path / "value")
    return tmp_path


LABELS = {
    "kind": "step_labels",
    "model": "calculator",
    "tasks": [TASK],
    "samples": 2,
    "continuations": 48,
    "step_tokens": 1,
    "rollout": ROLLOUT,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_labels_are_the_shares_of_continuations_that_come_out_right(folder: Path) -> None:
    context = context_of(folder, "labels", LABELS, {})
    metrics = step_labels.run(context).metrics
    rows = lines(context.output / "data.jsonl")
    assert metrics["problems"] == 25
    assert metrics["answers"] == len(rows) + metrics["unlabelled"] == 50
    assert metrics["sampled_tokens"] == sum(row["sampled"] for row in rows)
    assert metrics["step_labels"] == sum(len(row["labels"]) for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(folder / "calculator", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder / "calculator")
    for row in rows:
        whole = " ".join(row["completions"])
        assert row["labels"][-1] == float(f"<answer> {row['answer']} </answer>" in whole)
        assert len(row["labels"]) == len(row["completions"])
    torch.manual_seed(1)
    # far more right ones behind a thought than behind none: both kinds are looked at
    thought = next(row for row in rows if row["completions"][0] == "<think>")
    none = next(row for row in rows if row["completions"][0] == "<answer>")
    for row, at in ((thought, 0), (thought, 2), (none, 0), (none, 1)):
        begun = " ".join(row["completions"][: at + 1])
        text = f"User: {row['question']}\nAssistant:\n{begun}"
        ids_1P = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        out_KT = model.generate(ids_1P, do_sample=True, top_k=0, num_return_sequences=400, max_new_tokens=10)
        good = sum(
            f"<answer> {row['answer']} </answer>" in said.split("Assistant:")[1]
            for said in tokenizer.batch_decode(out_KT, skip_special_tokens=True)
        )
        assert row["labels"][at] == pytest.approx(good / 400, abs=0.3)
    assert thought["labels"][0] > none["labels"][0] + 0.3


def test_beginnings_and_shares() -> None:
    assert beginnings([[1], [2, 3], [4]]) == [(1,), (1, 2, 3)]
    assert beginnings([[1]]) == []
    assert share([True, False, None, True]) == pytest.approx(2 / 3)
    assert share([None]) is None


def test_an_answer_that_says_nothing_has_no_labels() -> None:
    row = {"prompt": "2 + 2 =", "task": "sums", "id": "a", "question": "2 + 2 =", "answer": "4"}
    assert row_of(row, "<think>", ["2 ", "4"], [0.5, 1.0], 9)["labels"] == [0.5, 1.0]
    assert row_of(row, "<think>", ["2 ", "4"], [0.5, None], 9)["labels"] is None
    assert row_of(row, "<think>", [""], [0.0], 1)["labels"] is None
    assert row_of(row, "<think>", [], [0.0], 0)["labels"] is None


def test_an_interrupted_stage_keeps_its_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_labels, "CHUNK_ANSWERS", 20)
    context = context_of(folder, "labels", LABELS, {})
    step_labels.run(context)
    whole = (context.output / "data.jsonl").read_bytes()
    chunks = sorted((context.scratch / "samples" / "labels").glob("*.jsonl"))
    assert len(chunks) == 3
    chunks[1].unlink()
    kept = chunks[0].stat().st_mtime_ns
    (context.output / "data.jsonl").unlink()
    step_labels.run(context)
    assert (context.output / "data.jsonl").read_bytes() == whole
    assert chunks[0].stat().st_mtime_ns == kept


class Counting(Writer):
    """Counts the tokens that leave the engine."""

    sampled_tokens = 0

    def _sampled(self, *args: Any) -> Any:
        groups = super()._sampled(*args)
        self.sampled_tokens += sum(len(rollout.token_ids) for group in groups for rollout in group)
        return groups


@pytest.fixture
def writer(folder: Path) -> Iterator[tuple[Counting, StageContext[TreeSearchConfig]]]:
    context = context_of(folder, "search", SEARCH, {})
    writer = Counting(context, prompt_rows(context.config.tasks, context)[:12])
    yield writer, context
    writer.close()


SEARCH = {
    "kind": "tree_search",
    "model": "calculator",
    "value": "value",
    "tasks": [{**TASK, "split": "train"}],
    "budgets": [20, 60],
    "width": 3,
    "step_tokens": 2,
    "rollout": ROLLOUT,
}


def test_every_sampled_token_has_its_number(writer: tuple[Counting, Any]) -> None:
    policy, _ = writer
    prompts = policy.prompts(policy.rows)
    answers = sampled(policy, prompts, 60, seed=1)
    for group in answers:
        ends = [0, *(one.at for one in group)]
        assert [b - a for a, b in pairwise(ends)] == [len(one.rollout.token_ids) for one in group]
        assert ends[-1] >= 60
    assert policy.sampled_tokens == sum(group[-1].at for group in answers)


def test_a_tree_accounts_for_every_token(writer: tuple[Counting, Any], folder: Path) -> None:
    policy, _ = writer
    prompts = policy.prompts(policy.rows)
    reader = StepReader(AutoTokenizer.from_pretrained(folder / "value"))
    values = Values(StepScorer(str(folder / "value")), reader, policy)
    search = Search(policy, values, width=3, exploration=1.0)
    found = search.answers(prompts, 60, seed=1)
    assert search.tokens == policy.sampled_tokens
    assert search.tokens >= 60 * len(prompts)
    assert search.grown > len(prompts)
    for group in found:
        ends = [one.at for one in group]
        assert ends == sorted(ends)
        for one in group:
            ids = one.rollout.token_ids
            assert len(ids) <= one.at
            assert ids[-1] == policy.sampler.tokenizer.eos_token_id or len(ids) == 12, "an answer is whole"
    again = Search(policy, values, width=3, exploration=1.0).answers(prompts, 60, seed=1)
    assert again == found


def test_the_stage_scores_all_ways_at_each_budget(folder: Path) -> None:
    context = context_of(folder, "search-stage", SEARCH, {})
    metrics = tree_search.run(context).metrics
    scores = metrics["budgets"]["jsonl/train"] if "jsonl/train" in metrics["budgets"] else metrics["budgets"]["jsonl"]
    assert scores["n"] == 25
    for budget in ("20", "60"):
        of = scores[budget]
        assert of["best_of_n"]["share"] <= of["sampling_covers"]["share"]
        assert of["tree_search"]["share"] <= of["tree_covers"]["share"]
        assert of["sampling"]["low"] <= of["sampling"]["share"] <= of["sampling"]["high"]
    assert scores["60"]["sampling_covers"]["share"] >= scores["20"]["sampling_covers"]["share"]
    samples = lines(context.output / "samples.jsonl")
    assert {row["model"] for row in samples} == {"sampled", "searched"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**SEARCH, "budgets": [60, 20]}, "rise"),
        ({**SEARCH, "width": 0}, "width"),
        ({**SEARCH, "step_end": ""}, "step_end"),
        ({**LABELS, "continuations": 0}, "continuations"),
    ],
)
def test_settings_without_sense_are_named(config: dict[str, Any], words: str) -> None:
    kinds: Sequence[Any] = (StepLabelsConfig, TreeSearchConfig)
    kind = next(kind for kind in kinds if kind.model_fields["kind"].default == config["kind"])
    with pytest.raises(ValueError, match=words):
        kind.model_validate(config)


def test_a_damaged_chunk_is_told_and_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    context, asked = context_of(folder, "labels", LABELS, {}), list[int]()

    def work(rows: Sequence[Row], number: int) -> list[Row]:
        asked.append(number)
        return [{"number": number, "rows": len(rows)}]

    rows = [{"prompt": str(at)} for at in range(5)]
    first = list(in_chunks(rows, 2, context, work))
    assert [(row["number"], row["rows"]) for row in first] == [(0, 2), (1, 2), (2, 1)]
    assert list(in_chunks(rows, 2, context, work)) == first and asked == [0, 1, 2]
    (damaged,) = (context.scratch / "samples").rglob("00001.jsonl")
    damaged.write_text(damaged.read_text()[:-3])
    assert list(in_chunks(rows, 2, context, work)) == first and asked == [0, 1, 2, 1]
    (line,) = caplog.messages
    assert f"{damaged} is damaged" in line and line.endswith("its prompts are sampled again")


@pytest.mark.parametrize(("kind", "name"), [(step_labels, "data.jsonl"), (tree_search, "samples.jsonl")])
def test_what_hosts_share_is_what_one_makes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    """Each host makes its own chunks alone, whatever it has made before, and reads those of the other one."""
    monkeypatch.setattr(kind, "CHUNK_ANSWERS", 20)
    config = {**LABELS, "continuations": 4} if kind is step_labels else {**SEARCH, "budgets": [8]}
    alone = context_of(folder, "stage", config, {})
    metrics = kind.run(alone).metrics
    chunks = sorted(path.name for path in (alone.scratch / "samples" / "stage").glob("*.jsonl"))
    assert len(chunks) >= 3
    for host in range(2):
        others = [chunk for at, chunk in enumerate(chunks) if at % 2 != host]
        shared = replace(
            alone, share=Share(host, 2), scratch=folder / f"scratch-{host}", output=folder / f"output-{host}"
        )
        shared.output.mkdir()
        theirs = shared.scratch / "samples" / "stage"
        theirs.mkdir(parents=True)
        for chunk in others:
            for file in (alone.scratch / "samples" / "stage").glob(f"{chunk}*"):
                shutil.copy2(file, theirs)
        kept = {chunk: (theirs / chunk).stat().st_ino for chunk in others}
        assert kind.run(shared).metrics == metrics
        assert (shared.output / name).read_bytes() == (alone.output / name).read_bytes()
        assert {chunk: (theirs / chunk).stat().st_ino for chunk in others} == kept
