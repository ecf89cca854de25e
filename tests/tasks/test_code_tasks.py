"""Programming tasks: rows become questions and gold answers that their own references satisfy."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

import rewards
from pipeline.tasks.base import TaskError, load
from rewards import Item, Status

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

SAMPLE = Path(__file__).parents[1] / "data" / "mbpp-sample.jsonl"
SUITE = "def check(candidate):\n    assert candidate(2) == double(2) + 1\n    assert candidate('a') == 'aa1'\n"
HUMANEVAL = {
    "task_id": "Test/7",
    "prompt": 'import math\n\ndef double(x):\n    return x + x\n\ndef more(x):\n    """Twice x, and one.\n    """\n',
    "canonical_solution": "    assert math.pi\n    one = '1' if x == 'a' else 1\n    return double(x) + one\n",
    "test": "METADATA = {}\n\n" + SUITE,
    "entry_point": "more",
}
LIVE = {
    "question_content": "Add all numbers.",
    "question_id": "1873_A",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "4\n", "output": "4", "testtype": "stdin"}]),
}


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def written(folder: Path, *rows: dict[str, Any]) -> dict[str, str]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path)}


def test_mbpp_splits_questions_and_references() -> None:
    task = load("mbpp", {"path": str(SAMPLE)})
    train, test = task.problems("train"), task.problems("test")
    numbers = {split: {int(p.id.removeprefix("mbpp-")) for p in found} for split, found in (("a", train), ("b", test))}
    assert numbers["b"] == {n for n in numbers["a"] | numbers["b"] if 11 <= n <= 510}
    problem = next(p for p in test if p.id == "mbpp-126")
    tests = json.loads(problem.answer)["tests"]
    assert len(tests) == 3 and [test in problem.question for test in tests] == [True, False, False]
    assert task.validate(train + test) == []


def test_mbpp_shows_as_many_tests_as_asked() -> None:
    problem = load("mbpp", {"path": str(SAMPLE), "shown": 3}).problems("test")[0]
    assert all(test in problem.question for test in json.loads(problem.answer)["tests"][:3])
    with pytest.raises(TaskError, match="at least 1"):
        load("mbpp", {"shown": 0})


def test_humaneval_gives_the_helpers_of_its_prompt(tmp_path: Path) -> None:
    task = load("humaneval", written(tmp_path, HUMANEVAL))
    (problem,) = task.problems("test")
    assert task.problems("train") == []
    assert task.validate([problem]) == []
    alone = "```python\ndef more(x):\n    return double(x) + (1 if x == 2 else '1')\n```"
    wrong = "```python\ndef double(x): return 0\ndef more(x): return double(x) + 1\n```"
    verdicts = rewards.verify("code", [Item(text, problem.answer) for text in (alone, wrong)])
    assert [v.status for v in verdicts] == [Status.CORRECT, Status.WRONG]


@pytest.mark.parametrize("pack", [json.dumps, lambda cases: packed(json.dumps(cases))])
def test_livecodebench(tmp_path: Path, pack: Any) -> None:
    cases = [{"input": "4 5\n", "output": "9", "testtype": "stdin"}]
    old = {**LIVE, "contest_date": "2023-01-01", "question_id": "old"}
    options = written(tmp_path, {**LIVE, "private_test_cases": pack(cases)}, old)
    task = load("livecodebench", options)
    (problem,) = task.problems("test")
    assert [p.id for p in task.problems("train")] != [problem.id]
    assert task.validate([problem]) == []
    right, wrong = ("```python\nprint(sum(map(int, input().split())))\n```", "```python\nprint(3)\n```")
    verdicts = rewards.verify("code", [Item(text, problem.answer) for text in (right, wrong)])
    assert [v.score for v in verdicts] == [1.0, 0.0]


def test_livecodebench_functions(tmp_path: Path) -> None:
    case = {"input": '[1, 2]\n"a"', "output": '[[1, 2], "a"]', "testtype": "functional"}
    row = {
        **LIVE,
        "public_test_cases": json.dumps([case]),
        "private_test_cases": "[]",
        "metadata": json.dumps({"func_name": "pair"}),
        "starter_code": "class Solution:\n    def pair(self, x, y):",
    }
    (problem,) = load("livecodebench", written(tmp_path, row)).problems("test")
    assert row["starter_code"] in problem.question
    code = "```python\nclass Solution:\n    def pair(self, x, y):\n        return x, y\n```"
    (verdict,) = rewards.verify("code", [Item(code, problem.answer)])
    assert verdict.status is Status.CORRECT, verdict


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/unpickled",)


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("livecodebench", {**LIVE, "private_test_cases": packed(Hostile())}, "UnpicklingError: test cases are text"),
        ("livecodebench", {**LIVE, "private_test_cases": "?"}, "rows.jsonl:1"),
        ("livecodebench", {**LIVE, "public_test_cases": "[]", "private_test_cases": "[]"}, "rows.jsonl:1"),
        ("mbpp", {"task_id": 1, "text": "x", "code": "", "test_list": []}, "GoldError"),
        ("mbpp", {"task_id": 1}, "test_list"),
        ("humaneval", {**HUMANEVAL, "prompt": "def ("}, "SyntaxError"),
    ],
)
def test_rows_that_cannot_be_read_are_named(task: str, row: dict[str, Any], words: str, tmp_path: Path) -> None:
    loaded = load(task, written(tmp_path, row))
    with pytest.raises(TaskError, match=words):
        loaded.problems("train") + loaded.problems("test")
    assert not Path("/tmp/unpickled").exists()
