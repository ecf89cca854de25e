"""Rejection sampling with a tiny model: the account adds up, rules hold, and interruptions change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.context import StageContext
from pipeline.data.mixture import DataSource, shaped
from pipeline.data.pairs import tokenised
from pipeline.sampling import sampler as sampling
from pipeline.stages.rejection_sample import NothingKeptError, RejectionSampleConfig, run
from rewards.preference import ConversationReader


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A folder with `sums.jsonl`: questions that the calculator knows."""
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(5) for b in range(5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def context(folder: Path, model: Path, name: str = "rs", **fields: Any) -> StageContext[RejectionSampleConfig]:
    options = {"path": "sums.jsonl", "grader": "exact", "template": "plain", "test_share": 0.2}
    config = RejectionSampleConfig.model_validate(
        {
            "kind": "rejection_sample",
            "model": str(model),
            "tasks": [{"use": "jsonl", "options": options}],
            "samples": 4,
            "keep": 2,
            "rollout": {"max_tokens": 12, "batch_size": 32},
            **fields,
        }
    )
    config = RejectionSampleConfig.model_validate_json(config.model_dump_json())  # as the stage's process gets it
    place = folder / name
    for part in ("output", "scratch"):
        (place / part).mkdir(parents=True, exist_ok=True)
    return StageContext(name, config, {}, place / "output", place / "scratch", folder, 3, place / "events.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_engine_elsewhere_samples_while_a_chunk_is_judged_and_the_rows_are_the_same(
    calculator: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_SEQUENCES", {"transformers": 24})
    rollout = {"max_tokens": 12, "batch_size": 24}
    here = context(sums, calculator, "here", rollout=rollout)
    elsewhere = context(sums, calculator, "elsewhere", rollout={**rollout, "process": {}})
    assert run(here).metrics == run(elsewhere).metrics
    for name in ("data.jsonl", "samples.jsonl"):
        assert (here.output / name).read_bytes() == (elsewhere.output / name).read_bytes()
    assert len(list(elsewhere.scratch.rglob("0000*.jsonl"))) > 2, "several chunks"


def test_the_account_adds_up_and_the_rows_keep_to_the_rules(calculator: Path, sums: Path) -> None:
    done = context(sums, calculator, require=["accuracy", "think_format"], dedup=False, template="boxed", save=1000)
    metrics = run(done).metrics
    rows, samples = lines(done.output / "data.jsonl"), lines(done.output / "samples.jsonl")
    assert metrics["sampled"] == 4 * metrics["problems"] == len(samples)
    assert metrics["kept"] + sum(metrics["dropped"].values()) == metrics["sampled"]
    assert metrics["kept"] == len(rows) == sum(sample["reason"] == "kept" for sample in samples)
    assert metrics["correct"] == sum(sample["status"] == "correct" for sample in samples)
    assert metrics["pass@1"] == pytest.approx(metrics["correct"] / metrics["sampled"])
    assert metrics["dropped"].keys() <= {"wrong", "truncated", "think_format", "enough"}
    assert {"wrong", "enough"} <= metrics["dropped"].keys()
    for row in rows:
        user, assistant = row["messages"]
        assert "\\boxed{}" in user["content"]
        assert assistant["content"].startswith("<think>")
        assert assistant["content"].endswith(f"<answer> {row['answer']} </answer>")
    assert max(sum(row["id"] == other["id"] for other in rows) for row in rows) == 2


def test_a_killed_stage_loses_one_chunk_and_ends_in_the_same_bytes(
    calculator: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_SEQUENCES", {"transformers": 16})
    whole = context(sums, calculator, "whole")
    run(whole)
    broken = context(sums, calculator, "broken")
    finished = sorted((whole.scratch / "samples" / "chunks").iterdir())
    assert len(finished) >= 4
    target = broken.scratch / "samples" / "chunks"
    target.mkdir(parents=True)
    for chunk in finished[:2]:
        (target / chunk.name).write_bytes(chunk.read_bytes())
    (target / (finished[2].name + ".part")).write_bytes(finished[2].read_bytes()[:37])
    run(broken)
    for name in ("data.jsonl", "samples.jsonl"):
        assert (broken.output / name).read_bytes() == (whole.output / name).read_bytes()
    steps = [event["step"] for event in lines(broken.events)]
    assert steps[0] > 2 * 16 - 1, "the finished chunks are not sampled again"


def test_sampling_stops_when_there_are_enough_rows(
    calculator: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_SEQUENCES", {"transformers": 16})
    done = context(sums, calculator, rows=3)
    metrics = run(done).metrics
    assert metrics["kept"] == 3 == len(lines(done.output / "data.jsonl"))
    assert metrics["sampled"] < 4 * 20


def test_what_fine_tuning_would_refuse_is_not_kept_whatever_is_required(calculator: Path, sums: Path) -> None:
    stopped = {"max_tokens": 12, "batch_size": 32, "stop": ["2", "3", "4", "5", "6", "7", "8", "<answer>"]}
    done = context(sums, calculator, require=[{"use": "accuracy", "min": 0}], prefill="<think> so ", rollout=stopped)
    metrics = run(done).metrics
    assert metrics["dropped"]["thought never closed"] > 0
    texts = [row["messages"][1]["content"] for row in lines(done.output / "data.jsonl")]
    assert texts and all("</think>" in text for text in texts)


def test_a_prefilled_thought_becomes_part_of_the_row(calculator: Path, sums: Path) -> None:
    done = context(sums, calculator, prefill="<think>", require=["accuracy", "think_format"])
    metrics = run(done).metrics
    assert metrics["pass@1"] > 0.8, "one answer in three is wrong, unless it is thought over"
    for row in lines(done.output / "data.jsonl"):
        assert row["messages"][-1]["content"].count("<think>") == 1


def test_requirements_are_handed_what_their_options_name(calculator: Path, sums: Path) -> None:
    (sums / "need.py").write_text(
        "from pathlib import Path\n\n"
        "from rewards import Status, Verdict\n\n\n"
        "class Read:\n"
        "    def __init__(self, word, model):\n"
        "        self.word, self.folder = Path(word).read_text(), Path(model)\n\n"
        "    def verify(self, items):\n"
        "        assert self.folder.is_absolute() and self.folder.name == 'model'\n"
        "        return [Verdict(Status.CORRECT, float(self.word in item.completion)) for item in items]\n"
    )
    (sums / "words").mkdir()
    (sums / "words" / "word.txt").write_text("<think>")
    (sums / "judge" / "model").mkdir(parents=True)
    need = {"use": "need.py:Read", "options": {"word": "words/word.txt", "model": "@judge"}}
    stage = replace(context(sums, calculator, require=["accuracy", need], save=1000), inputs={"judge": sums / "judge"})
    assert run(stage).metrics["kept"]
    assert all("<think>" in row["messages"][-1]["content"] for row in lines(stage.output / "data.jsonl"))


def test_test_problems_are_left_out(calculator: Path, sums: Path) -> None:
    options = {"path": "sums.jsonl", "grader": "exact", "template": "plain", "test_share": 0.2}
    leak = {"use": "jsonl", "options": {**options, "test_path": "sums.jsonl"}}
    done = context(sums, calculator, tasks=[leak], decontaminate=[{"use": "jsonl", "options": options}])
    metrics = run(done).metrics
    tests = {row["question"] for row in lines(sums / "sums.jsonl")} - {
        sample["question"] for sample in lines(done.output / "samples.jsonl")
    }
    assert metrics["contaminated"] == len(tests) > 0
    assert metrics["problems"] + metrics["contaminated"] == 25


def test_a_row_has_an_answer_that_was_dropped_and_a_reward_model_can_read_the_two(calculator: Path, sums: Path) -> None:
    """Which samples were dropped is read from `samples.jsonl`; without the option the rows are those of before."""
    from transformers import AutoTokenizer

    plain = context(sums, calculator, "plain", require=["accuracy", "think_format"], save=1000)
    done = context(sums, calculator, require=["accuracy", "think_format"], save=1000, pairs=True)
    run(plain)
    metrics = run(done).metrics
    rows, samples = lines(done.output / "data.jsonl"), lines(done.output / "samples.jsonl")
    assert [{key: row[key] for key in ("messages", "task", "id", "answer")} for row in rows] == lines(
        plain.output / "data.jsonl"
    )
    worse = {
        row["id"]: [s["completion"].strip() for s in samples if s["id"] == row["id"] and s["reason"] in BAD]
        for row in rows
    }
    assert 0 < metrics["pairs"] == sum(row["paired"] for row in rows) < len(rows)
    used: dict[str, list[str]] = {}
    for row in rows:
        assert row["paired"] == (row["rejected"] is not None)
        if row["paired"]:
            *asked, said = row["rejected"]
            assert asked == row["messages"][:-1] and said["role"] == "assistant"
            used.setdefault(row["id"], []).append(said["content"])
        else:
            assert len(used.get(row["id"], [])) == len(worse[row["id"]]), "none is left that stands in no pair"
    assert all(said == worse[identity][: len(said)] for identity, said in used.items())

    columns = {"chosen": "messages", "rejected": "rejected"}
    source = DataSource.model_validate({"from": "@samples", "columns": columns, "filter": {"paired": True}})
    found = list(shaped(source, lambda _: done.output / "data.jsonl"))
    reader = ConversationReader(AutoTokenizer.from_pretrained(calculator), "summary", None)
    dataset, account = tokenised(reader, found, 64)
    assert account["pairs"] + account["dropped"]["equal"] == metrics["pairs"], "the same summary may follow no thought"
    assert account["pairs"] == len(dataset) > 0


BAD = ("wrong", "truncated", "think_format")
"""Reasons for which a sample is worse than one that is kept."""


def test_nothing_to_keep_is_an_error_that_says_where_all_samples_went(calculator: Path, sums: Path) -> None:
    with pytest.raises(NothingKeptError, match=r"not one of 80 samples passed: .*'too_short': "):
        run(context(sums, calculator, tasks=[task(sums, 20)], filters={"min_tokens": 13, "truncated": True}))


def task(folder: Path, problems: int) -> dict[str, Any]:
    options = {"path": "sums.jsonl", "grader": "exact", "template": "plain", "test_share": 0.0}
    return {"use": "jsonl", "options": options, "problems": problems}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"require": [{"use": "accuracy", "weight": 2.0}]}, "a requirement has no weight"),
        ({"template": "boxd"}, "did you mean 'boxed'"),
        ({"tasks": ["gsm8k/tets"]}, "did you mean 'test'"),
        ({"filters": {"max_token": 3}}, "max_token"),
        ({"choose": "longest"}, "shortest"),
        ({"chat_template": "r1_zeroo"}, "did you mean 'r1_zero'"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        context(tmp_path, tmp_path, **fields)
