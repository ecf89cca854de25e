"""The code reward: what is extracted, what gold answers may say, what is compared, what is paid."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rewards
from benchmarks.mbpp import judge, spoilt
from rewards.code import CodeVerifier, GoldError, extract_code, read_gold
from rewards.code.asserts import split
from rewards.code.compare import same_output, same_value
from rewards.code.gold import Asserts, Suite
from rewards.verdict import Item, Status

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

SAMPLE = Path(__file__).parents[1] / "data" / "mbpp-sample.jsonl"
"""Every 32nd row of MBPP and its five odd ones (Austin et al., arXiv 2108.07732; CC BY 4.0)."""


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    built = CodeVerifier(timeout=2, memory_mb=256, workers=2)
    yield built
    built.close()


def item(code: str, gold: Any) -> Item:
    return Item(f"<think>\n```python\nwrong\n```\n</think>\nSo:\n```python\n{code}\n```\n", gold)


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```python\na\n```", "a"),
        ("```python\na\n```\ntext\n```python\nb\n\nc\n```\nmore", "b\n\nc"),
        ("```python\na\n```\n```\noutput\n```", "a"),
        ("```\na\n```\n```cpp\nb\n```", "b"),
        ("```Python3 \na\n```", "a"),
        ("<think>```python\na\n```</think>", None),
        ("<think>\n```python\na\n```\n</think>\n```py\nb\n```", "b"),
        ("<think>\n```python\na\n```", None),
        ("```python\na\n", None),
        ("```python\na\n```python\nb\n```", "b"),
        ("<answer>print(1)</answer>", "print(1)"),
        ("<answer>\n```python\nprint(1)\n```\n</answer>", "print(1)"),
        ("print(1)", None),
        ("  ```python\n  a\n  ```", "  a"),
        ("", None),
    ],
)
def test_extraction(completion: str, code: str | None) -> None:
    assert extract_code(completion) == code


def test_extraction_takes_linear_time() -> None:
    started = time.process_time()
    for hostile in ("```python\n" * 10**5, "```x\n" * 10**5, "<answer>" * 10**5, "`" * 10**6, "<think>" * 10**5):
        extract_code(hostile)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "gold",
    [
        None,
        "",
        "42",
        "{",
        {},
        [],
        {"inputs": [], "outputs": []},
        {"inputs": ["1"], "outputs": []},
        {"inputs": [1], "outputs": ["1"]},
        {"inputs": "12", "outputs": "12"},
        {"inputs": ["1"], "outputs": ["1"], "output": ["1"]},
        {"function": "f", "calls": []},
        {"function": "f(", "calls": [{"args": [], "expected": 1}]},
        {"function": "f", "calls": [{"args": [1]}]},
        {"function": "f", "calls": [{"arg": [1], "expected": 1}]},
        {"function": "f", "calls": [{"args": [], "expected": object()}]},
        {"tests": []},
        {"tests": "assert f() == 1"},
        {"tests": ["assert f( == 1"]},
        {"tests": ["assert f() == 1"], "setup": "x ="},
        {"check": "def check(c): pass"},
        {"check": "def check(c: pass", "entry": "f"},
    ],
)
def test_bad_gold_is_nobodys_fault(gold: Any, verifier: CodeVerifier) -> None:
    with pytest.raises(GoldError):
        read_gold(gold)
    (verdict,) = verifier.verify([item("print(1)", gold)])
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)


@pytest.mark.parametrize(
    ("source", "calls", "predicate", "expected"),
    [
        ("assert f([1, 2], k=3) == (1, {2: 'a'})", ["f([1, 2], k=3)"], None, (1, {2: "a"})),
        ("assert f(1) == set()", ["f(1)"], None, set()),
        ("assert f(f(1)) == -2", ["f(f(1))"], None, -2),
        ("assert 3 == f(1)", ["f(1)"], "3 == _0", None),
        ("assert f(1), 'message'", ["f(1)"], "_0", None),
        ("assert not f(1)", ["f(1)"], "not _0", None),
        ("assert math.isclose(f(1), 2.0, rel_tol=0.1)", ["f(1)"], "math.isclose(_0, 2.0, rel_tol=0.1)", None),
        ("assert set(f(1)) == set([1, 2])", ["f(1)"], "set(_0) == set([1, 2])", None),
        ("assert f(1) == f(2)", ["f(1)", "f(2)"], "_0 == _1", None),
        ("assert f(1).strip() == 'a'", ["f(1)"], "_0.strip() == 'a'", None),
        ("assert f(root)[0].strip() == 'a'", ["f(root)"], "_0[0].strip() == 'a'", None),
        ("assert len(f(1)) == 3 and f(2)", ["f(1)", "f(2)"], "len(_0) == 3 and _1", None),
        ("assert Solution().f(1) == 2", ["Solution().f(1)"], None, 2),
        ("assert sum(10, 15) == 6", ["sum(10, 15)"], None, 6),
        ("assert f(1) == 2 == f(1)", ["f(1)", "f(1)"], "_0 == 2 == _1", None),
    ],
)
def test_asserts_are_taken_apart(source: str, calls: list[str], predicate: str | None, expected: Any) -> None:
    found = split(source)
    assert found is not None
    assert (list(found.calls), found.predicate, found.expected) == (calls, predicate, expected)


@pytest.mark.parametrize(
    "source",
    ["x = f(1)\nassert x == 1", "assert all(f(i) == i for i in range(3))", "assert 1 == 1", "assert (lambda: f(1))()"],
)
def test_what_cannot_be_taken_apart_stays_whole(source: str) -> None:
    assert split(source) is None
    assert isinstance(read_gold({"tests": ["assert f(1) == 1", source]}), Suite)
    assert isinstance(read_gold({"tests": ["assert f(1) == 1"]}), Asserts)


SQUARE = "def f(x): return x * x"
CHECK = """
import random
def check(candidate):
    for _ in range(5):
        x = random.randrange(100)
        assert candidate(x) == x ** 2
    try:
        candidate("a")
        assert False
    except TypeError:
        pass
"""


READ_ADD = "print(sum(map(int, input().split())))"
ADD = {"inputs": ["1 2", "3 4\n"], "outputs": ["3", "7\n"]}
THREE = {"inputs": [""], "outputs": ["3"]}


def asserts(*sources: str, setup: str = "") -> dict[str, Any]:
    return {"tests": list(sources), "setup": setup}


def f_gives(*calls: tuple[Any, Any]) -> dict[str, Any]:
    return {"function": "f", "calls": [{"args": [argument], "expected": value} for argument, value in calls]}


@pytest.mark.parametrize(
    ("code", "gold", "status"),
    [
        (SQUARE, asserts("assert f(3) == 9", "assert not f(0)", "assert math.isclose(f(0.5), 0.25)"), Status.CORRECT),
        (SQUARE, asserts("assert f(3) == 9", "assert not f(1)"), Status.WRONG),
        (SQUARE, asserts("assert all(f(i) == i * i for i in range(4))"), Status.CORRECT),
        (SQUARE, asserts("assert all(f(i) == i for i in range(4))"), Status.WRONG),
        (SQUARE, asserts("y = 3\nassert f(y) == 9"), Status.CORRECT),
        (SQUARE, asserts("assert f(n) == 49", setup="n = 7"), Status.CORRECT),
        (SQUARE, {"check": CHECK, "entry": "f"}, Status.CORRECT),
        ("def f(x): return x + x", {"check": CHECK, "entry": "f"}, Status.WRONG),
        ("def f(x): return int(x) ** 2", {"check": CHECK, "entry": "f"}, Status.WRONG),
        ("def g(x): return x", {"check": CHECK, "entry": "f"}, Status.WRONG),
        (SQUARE, f_gives((3, 9), (-1, 1)), Status.CORRECT),
        (SQUARE, {"function": "f", "calls": [{"kwargs": {"x": 2}, "expected": 4}]}, Status.CORRECT),
        ("class Solution:\n    def f(self, x): return (x, x)", f_gives((3, [3, 3])), Status.CORRECT),
        ("def f(x): return True", f_gives((3, 1)), Status.WRONG),
        (READ_ADD, ADD, Status.CORRECT),
        ("print(3)", ADD, Status.WRONG),
        ("if __name__ == '__main__':\n    print(3)", THREE, Status.CORRECT),
        ("import sys\nprint(3)\nsys.exit()", THREE, Status.CORRECT),
        ("import time\ntime.sleep(60)", THREE, Status.TIMEOUT),
        ("  ", THREE, Status.NO_ANSWER),
        ("#" * (1 << 18), THREE, Status.REJECTED),
    ],
)
def test_verdicts(code: str, gold: Any, status: Status, verifier: CodeVerifier) -> None:
    for answer in (gold, json.dumps(gold)):
        (verdict,) = verifier.verify([item(code, answer)])
        assert verdict.status is status, verdict
        assert verdict.score == (1.0 if status is Status.CORRECT else 0.0)


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance", "same"),
    [
        ("1 2\n3", "1  2 \n3\n\n", None, True),
        ("1 2 3", "1 2\n3", None, False),
        ("", "1", None, False),
        ("1\n", "1\n2", None, False),
        ("\n1", "1", None, False),
        ("1.0", "1", None, False),
        ("1.0", "1", 1e-6, True),
        ("0.333333", "0.3333333333", 1e-5, True),
        ("0.34", "0.3333333333", 1e-5, False),
        ("nan", "1", 1e-5, False),
        ("1_0", "10", 1e-5, False),
        ("YES", "yes", 1e-5, False),
    ],
)
def test_outputs(actual: str, expected: str, tolerance: float | None, same: bool) -> None:
    assert same_output(actual, expected, tolerance) is same


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance", "same"),
    [
        (1, 1.0, None, True),
        (True, 1, None, False),
        (1, True, None, False),
        ((1, [2]), [1, [2]], None, True),
        ([1, True], [1, 1], None, False),
        ("1", 1, None, False),
        (None, 0, None, False),
        ({"a": (1,)}, {"a": [1]}, None, True),
        ({"a": 1, "b": 2}, {"a": 1}, None, False),
        (0.1 + 0.2, 0.3, None, False),
        (0.1 + 0.2, 0.3, 1e-9, True),
        (10**400, 1.0, 1e-9, False),
        (math.nan, math.nan, 1e-9, False),
        ({1, 2}, [1, 2], None, False),
    ],
)
def test_values(actual: Any, expected: Any, tolerance: float | None, same: bool) -> None:
    assert same_value(actual, expected, tolerance) is same


def test_partial_credit_only_if_asked() -> None:
    golds = [
        {"tests": ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 9", "assert not f(1)"]},
        {"inputs": ["1", "2"], "outputs": ["1", "4"]},
        {"function": "f", "calls": [{"args": [2], "expected": 5}, {"args": [2], "expected": 4}]},
    ]
    codes = [SQUARE, "print(input())", SQUARE]
    items = [item(code, gold) for code, gold in zip(codes, golds, strict=True)]
    for partial, scores in ((False, [0, 0, 0]), (True, [0.5, 0.5, 0.5])):
        verifier = CodeVerifier(partial=partial, workers=1)
        assert [v.score for v in verifier.verify(items)] == scores
        verifier.close()


def test_an_endless_case_keeps_the_credit_of_those_before_it() -> None:
    verifier = CodeVerifier(partial=True, timeout=0.5, workers=1)
    gold = {"tests": ["assert f(1) == 1", "assert f(2) == 4"]}
    (verdict,) = verifier.verify([item("def f(x):\n    while x > 1: pass\n    return x", gold)])
    verifier.close()
    assert (verdict.status, verdict.score) == (Status.TIMEOUT, 0.5)


def test_equal_programs_run_once(verifier: CodeVerifier) -> None:
    slow = item("import time\ntime.sleep(0.4)\nprint(3)", THREE)
    started = time.perf_counter()
    assert [v.score for v in verifier.verify([slow] * 40)] == [1.0] * 40
    assert time.perf_counter() - started < 5


def test_a_batch_keeps_its_order(verifier: CodeVerifier) -> None:
    items = [item(f"print({n} * {n})", {"inputs": [""], "outputs": [str(n * n if n % 3 else -1)]}) for n in range(24)]
    assert [v.score for v in verifier.verify(items)] == [float(n % 3 > 0) for n in range(24)]


def test_as_a_trl_reward() -> None:
    score = pickle.loads(pickle.dumps(rewards.load("code", workers=1)))
    completions = [[{"role": "assistant", "content": f"```python\nprint({n})\n```"}] for n in (1, 2)]
    gold = json.dumps({"inputs": [""], "outputs": ["2"]})
    assert score(["p", "p"], completions, answer=[gold, gold]) == [0.0, 1.0]
    score.close()


def test_beside_torch_and_its_threads() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(500, 500) @ torch.ones(500, 500)
        verifier = CodeVerifier(workers=1)
        assert verifier.verify([item(SQUARE, {"tests": ["assert f(3) == 9"]})])[0].score == 1.0
        verifier.close()
    finally:
        torch.set_num_threads(before)


def test_mbpp_references_pass_and_spoilt_ones_fail(verifier: CodeVerifier) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    _check_mbpp(rows, verifier)


@pytest.mark.slow
def test_all_of_mbpp() -> None:
    """`MBPP=path/to/mbpp.jsonl pytest -m slow tests/rewards/test_code.py`"""
    path = os.environ.get("MBPP")
    if path is None:
        pytest.skip("set MBPP to the path of mbpp.jsonl")
    verifier = CodeVerifier(timeout=60)
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 974
    _check_mbpp(rows, verifier)
    verifier.close()


def _check_mbpp(rows: list[dict[str, Any]], verifier: CodeVerifier) -> None:
    right = judge(verifier, rows, [row["code"] for row in rows])
    assert {row["task_id"]: v for row, v in zip(rows, right, strict=True) if v.score != 1.0} == {}
    wrong = judge(verifier, rows, [spoilt(row["code"], row["test_list"]) for row in rows])
    assert {row["task_id"]: v for row, v in zip(rows, wrong, strict=True) if v.score != 0.0} == {}
