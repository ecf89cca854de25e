"""Tasks: golds against independent arithmetic, disjoint splits, stable ids, files with mistakes in them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.tasks.base import Split, TaskError, check, load
from pipeline.tasks.chain import results
from pipeline.tasks.generated import split_of

GENERATED: list[tuple[str, dict[str, Any]]] = [
    ("arithmetic", {}),
    ("arithmetic", {"order": "left_to_right", "modulo": 7, "terms": [3, 6], "digits": 1}),
    ("chain", {}),
    ("chain", {"length": [2, 5], "language": "en"}),
    ("countdown", {}),
    ("countdown", {"numbers": [2, 6], "largest": 20, "target": [1, 50]}),
    ("needle", {"words": 20, "asked": 2}),
    ("requests", {}),
]


@pytest.mark.parametrize(("use", "options"), GENERATED)
def test_train_and_test_are_disjoint_whatever_the_seed(use: str, options: dict[str, Any]) -> None:
    task = load(use, options)
    train = [task.problems("train", 400, seed) for seed in (0, 1)]
    test = [task.problems("test", 60, seed) for seed in (0, 2)]
    questions = {split: {p.question for some in groups for p in some} for split, groups in (("r", train), ("e", test))}
    assert not questions["r"] & questions["e"]
    assert len({p.id for p in train[0]}) == len({p.question for p in train[0]}) == 400
    assert train[0] != train[1]
    assert task.problems("train", 400, 1) == train[1]
    assert task.problems("train", 50, 1) == train[1][:50], "more problems begin with the same ones"
    assert not task.validate(train[0] + test[0])


def test_countdown_splits_by_the_problem_not_by_its_wording() -> None:
    task = load("countdown", {"numbers": [2, 2], "largest": 9, "target": [1, 20]})
    problems: dict[Split, set[Any]] = {"train": set(), "test": set()}
    for split, found in problems.items():
        for seed in range(3):
            drawn = task.problems(split, {"train": 100, "test": 8}[split], seed)
            found |= {(tuple(sorted(p.columns["numbers"])), p.columns["target"]) for p in drawn}
    assert len(problems["train"]) > 100
    assert not problems["train"] & problems["test"]


@pytest.mark.parametrize("order", ["usual", "left_to_right"])
@pytest.mark.parametrize("modulo", [None, 11])
def test_arithmetic_golds_against_python(order: str, modulo: int | None) -> None:
    wording = "{expression}"
    task = load("arithmetic", {"order": order, "modulo": modulo, "terms": [1, 6], "digits": 3, "wording": wording})
    for problem in task.problems("train", 300):
        tokens = problem.question.split()
        if order == "usual":
            value = eval(problem.question)
        else:
            value = int(tokens[0])
            for op, number in zip(tokens[1::2], tokens[2::2], strict=True):
                value = eval(f"{value} {op} {number}") if value >= 0 else eval(f"({value}) {op} {number}")
        assert problem.answer == str(value if modulo is None else value % modulo)
        assert not re.search(r"\b0\d", problem.question)


def test_chain_golds_against_python() -> None:
    for problem in load("chain").problems("test", 200):
        start, *steps = problem.question.removesuffix(" =").split()
        value = int(start)
        for step in steps:
            value = eval(f"({value}) {step}") % 10
        assert (problem.answer, results(" ".join([start, *steps]))[-1]) == (str(value), value)


def test_request_golds() -> None:
    words = {"copy": "cat sun -> cat sun", "reverse": "cat sun -> sun cat", "chinese": "one nine -> 一 九"}
    words["opposite"] = "hot small night -> cold big day"
    from pipeline.tasks.requests import answer

    for kind, example in words.items():
        asked, wanted = example.split(" -> ")
        assert answer(f"{kind} {asked}") == wanted
    with pytest.raises(ValueError, match="not a request"):
        answer("reverse hot")


def test_a_split_is_the_same_on_every_machine_and_in_every_process() -> None:
    assert [number for number in range(40) if split_of(str(number)) == "test"] == [9, 39]
    code = "from pipeline.tasks.base import load; print(load('chain').problems('test', 3)[2].id)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {load("chain").problems("test", 3)[2].id + "\n"}


def test_a_generator_that_runs_dry_says_how_many_problems_there_are() -> None:
    small = {"terms": [2, 2], "digits": 1, "ops": "+"}
    everything = load("arithmetic", small).problems("train")
    assert 80 <= len(everything) <= 95
    with pytest.raises(TaskError, match=rf"only {len(everything)} different ones exist"):
        load("arithmetic", small).problems("train", 96)


@pytest.mark.parametrize(
    ("use", "options", "words"),
    [
        ("arithmetic", {"terms": [3, 2]}, "fewest, most"),
        ("arithmetic", {"ops": "+%"}, "ops is made of"),
        ("arithmetic", {"order": "reverse"}, "left_to_right"),
        ("arithmetic", {"modulo": 1}, "2 or more"),
        ("arithmetic", {"wording": "Compute."}, "{expression}"),
        ("arithmetic", {"digit": 2}, "did you mean 'digits'"),
        ("chain", {"steps": "+1 ^2"}, r"not '\^2'"),
        ("chain", {"steps": ["+1", "*3"]}, "steps are one text"),
        ("chain", {"length": [5, 2]}, "fewest, most"),
        ("countdown", {"numbers": [1, 3]}, "from 2"),
        ("countdown", {"wording": "{numbers}"}, "lacks {target}"),
        ("countdown", {"ops": "+^"}, "ops is made of"),
        ("requests", {"kinds": "copy dance"}, "kinds are of"),
        ("jsonl", {}, "needs the option path"),
        ("jsonl", {"path": "nowhere.jsonl"}, "there is no .*nowhere.jsonl"),
        ("gsm8k", {"path": "nowhere"}, "there is no .*nowhere"),
        ("gsm9k", {}, "did you mean 'gsm8k'"),
    ],
)
def test_options_that_make_no_sense(use: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load(use, options)


def test_gsm8k_reads_the_original_files(repository: Path) -> None:
    folder = repository / "tests" / "data" / "gsm8k"
    task = load("gsm8k", {"path": "data/gsm8k"}, base=repository / "tests")
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (20, 20)
    for problem in train + test:
        assert re.fullmatch(r"-?\d+", problem.answer)
        assert "#" not in problem.question
    raw = {row["question"]: row["answer"] for row in map(json.loads, (folder / "train.jsonl").open())}
    for problem in train:
        assert raw[problem.question].endswith("#### " + problem.answer) or "," in raw[problem.question].split("####")[1]
    assert task.problems("test", seed=1) != test
    assert sorted(p.id for p in task.problems("test", seed=1)) == sorted(p.id for p in test)
    with pytest.raises(TaskError, match="21 problems are wanted, but there are only 20"):
        task.problems("test", 21)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_any_jsonl_with_a_mapping(tmp_path: Path) -> None:
    rows = [{"q": f"What is {n} + 1?", "worked": f"one more\n#### {n + 1}", "level": n % 3} for n in range(50)]
    write(tmp_path / "rows.jsonl", *rows, rows[0], "", {**rows[1], "level": 9})
    options = {"path": "rows.jsonl", "question": "q", "answer": "worked", "answer_after": "####", "columns": ["level"]}
    task = load("jsonl", {**options, "test_share": 0.3}, tmp_path)
    train, test = task.problems("train"), task.problems("test")
    assert len(train) + len(test) == 50, "a question that comes twice counts once"
    assert 5 <= len(test) <= 25
    assert all(p.answer == str(int(p.question.split()[2]) + 1) for p in train + test)
    assert {p.columns["level"] for p in train + test} <= {0, 1, 2, 9}
    renamed = load("jsonl", {**options, "columns": {"difficulty": "level"}}, tmp_path).problems("train")
    assert set(renamed[0].columns) == {"difficulty"}
    grown = write(tmp_path / "grown.jsonl", *rows, {"q": "What is 99 + 1?", "worked": "#### 100", "level": 0})
    more = load("jsonl", {**options, "path": str(grown), "test_share": 0.3}).problems("test")
    assert {p.id for p in test} <= {p.id for p in more}, "new rows do not move old ones between the splits"


def test_two_answers_to_one_question_are_an_error_and_two_descriptions_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": "1 + 1", "answer": "2", "level": 1}, {"question": "2 + 2", "answer": 4, "level": 1}]
    options = {"path": str(tmp_path / "rows.jsonl"), "columns": ["level"], "test_share": 0.0}
    write(tmp_path / "rows.jsonl", *rows, {**rows[0], "answer": "3"})
    with pytest.raises(
        TaskError, match=r"rows.jsonl:3: the question of \S*rows.jsonl:1 with another answer, '3' instead"
    ):
        load("jsonl", options).problems("train")
    write(tmp_path / "rows.jsonl", *rows, {**rows[1], "answer": "4", "level": 7}, rows[0])
    found = load("jsonl", options).problems("train")
    assert sorted((p.answer, p.columns["level"]) for p in found) == [("2", 1), ("4", 1)]
    assert "rows.jsonl:3: the question and the answer of" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", r"rows.jsonl:2 is not JSON"),
        ("[1, 2]", r"rows.jsonl:2 is not a JSON object"),
        ({"question": "x"}, r"rows.jsonl:2: there is no field answer; the row has: question"),
        ({"question": "", "answer": "1"}, r"rows.jsonl:2: question is a text"),
        ({"question": 7, "answer": "1"}, r"rows.jsonl:2: question is a text, not 7"),
        ({"question": "x", "answer": None}, r"rows.jsonl:2: answer is a text or a number"),
        ({"question": "x", "answer": [1, [2]]}, r"rows.jsonl:2: answer is a text or a number"),
        ({"question": "x", "answer": "  "}, r"rows.jsonl:2: the answer is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, words: str) -> None:
    write(tmp_path / "rows.jsonl", {"question": "1 + 1", "answer": 2}, row)
    with pytest.raises(TaskError, match=words):
        load("jsonl", {"path": "rows.jsonl"}, tmp_path).problems("train")


def test_a_field_within_a_field_is_shown_as_it_is(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    write(tmp_path / "rows.jsonl", {"asked": {"turns": chat}, "answer": 2})
    with pytest.raises(TaskError, match=r"rows.jsonl:1: asked.turns is a text, not \[\{'role': 'user'"):
        load("jsonl", {"path": "rows.jsonl", "question": "asked.turns"}, tmp_path).problems("train")


def test_an_answer_that_lacks_its_mark_is_named(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"question": "1 + 1", "answer": "2"})
    with pytest.raises(TaskError, match=r"rows.jsonl:1: answer does not contain '####'"):
        load("jsonl", {"path": "rows.jsonl", "answer_after": "####"}, tmp_path).problems("train")
    write(tmp_path / "train.jsonl", {"question": "1 + 1", "answer": "2"})
    with pytest.raises(TaskError, match=r"train.jsonl:1: a row needs a question, and an answer with ####"):
        load("gsm8k", {"path": "."}, tmp_path).problems("train")


def test_validate_names_the_problems_that_nobody_could_be_rewarded_for(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"question": "a", "answer": "4"}, {"question": "b", "answer": "</think> </answer>"})
    task = load("jsonl", {"path": "rows.jsonl", "grader": "exact", "test_share": 0.0}, tmp_path)
    task.gold_completion = lambda problem: f"<answer>{problem.answer}</answer>"  # type: ignore[method-assign]
    assert [problem.question for problem, _ in task.validate(task.problems("train"))] == ["b"]


@pytest.mark.parametrize(
    ("use", "options", "words"),
    [
        ("hub", {"path": "a/b/c"}, "task 'hub': hub: 'a/b/c' is not the name of a data set"),
        ("hub", {"path": "a/b", "revision": 3}, "task 'hub': revision has to be "),
        ("hub", {"path": "a/b", "revision": ""}, "task 'hub': revision: String should have at least 1 character"),
        ("hub", {"path": "a/b", "streaming": "yes"}, "task 'hub': streaming has to be "),
        ("gsm8k", {"revision": 3}, "task 'gsm8k': revision has to be "),
        ("math", {"grader_options": "x"}, "task 'math': grader_options has to be "),
        ("reasoning_gym", {"config": "x"}, "task 'reasoning_gym': config has to be "),
    ],
)
def test_options_of_a_wrong_type_are_one_line(use: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=re.escape(words)) as told:
        load(use, options)
    assert "\n" not in str(told.value)


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Letters:\n    pass\n")
    with pytest.raises(TaskError, match="not a subclass"):
        check("own.py:Letters", {}, tmp_path)
