"""Golds of code: they pay no cheat, refuse no right program, and are refused themselves where they test nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rewards import corpus
from rewards.audit import audit
from rewards.code import CodeVerifier, GoldError, extract_code, read_gold
from rewards.code.compare import same_output, same_value
from rewards.verdict import Item, Status
from tests.rewards.secret_golds import ALL, SECRET, forms, program

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    built = CodeVerifier(timeout=3, memory_mb=256, workers=2)
    yield built
    built.close()


def item(code: str, gold: Any) -> Item:
    return Item(f"```python\n{code}\n```", gold)


def test_corpus(verifier: CodeVerifier) -> None:
    pairs = corpus.load("code")
    assert sum(not pair.equal for pair in pairs) >= 60 and all(pair.why for pair in pairs)
    verdicts = verifier.verify([Item(pair.completion, pair.gold) for pair in pairs])
    judged = [(pair.gold, pair.completion, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    assert [j for j, pair in zip(judged, pairs, strict=True) if (j[2].score == 1.0) != pair.equal] == []
    assert not [j for j in judged if j[2].status is Status.INFRA]


CAPTURING = """
import contextlib, io
def check(candidate):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        candidate(1)
    assert out.getvalue()
"""


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        ({"tests": ["assert True"]}, "never called"),
        ({"tests": ["def test_f():\n    assert f(2) == 4"]}, r"test_f\(\) is defined and never called; call it"),
        ({"tests": ["assert f(2) == 4", "def test_g():\n    assert f(3) == 9"]}, "test_g"),
        ({"tests": ["f(2)"]}, "any result passes"),
        ({"tests": ["try:\n    f(2)\nexcept Exception:\n    ok = True\nassert ok"]}, "only raises passes"),
        ({"tests": ["import nowhere\nassert f(2) == 4"]}, "fail before they ask anything: ModuleNotFoundError"),
        ({"check": "def chek(candidate):\n    assert candidate(2) == 4", "entry": "f"}, "KeyError: 'check'"),
        ({"tests": ["assert f(2) == expected"]}, "expected are not defined in the tests; define what is expected"),
        ({"tests": ["assert is_close(f(2), 1.4)"]}, r"is_close\(\) decides, and only the solution defines it"),
        ({"tests": ["assert f(1) == Point(1, 2)"]}, "made by Point, which the solution defines"),
        ({"tests": ["p = Point(1, 2)\nassert f(1) == p"]}, "made by Point"),
        ({"tests": ["x = [2, 1]\nf(x)\nassert x == sorted(x)"]}, "compare with a copy from before the call"),
        ({"tests": ["class A:\n    pass\nassert f(A()) == 1"]}, "hand an object of A to the solution"),
        ({"tests": ["import os\nos._exit(0)\nassert f(1) == 1"]}, "end their own process"),
        ({"check": CAPTURING, "entry": "f"}, "'inputs'"),
        ({"inputs": ["1", "2"], "outputs": ["", "\n"]}, "every output is empty"),
    ],
)
def test_golds_that_cannot_judge_are_refused_by_name(gold: Any, words: str, verifier: CodeVerifier) -> None:
    (verdict,) = verifier.verify([item("def f(x): return x * x", gold)])
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)
    with pytest.raises(GoldError, match=words):
        raise GoldError(verifier.check_gold(gold))
    assert verdict.detail == verifier.check_gold(gold)


def test_sound_golds_pass_the_rehearsal(verifier: CodeVerifier) -> None:
    for gold in (
        {"tests": ["assert f(2)", "assert f(3) is not None"]},
        {"tests": ["with pytest.raises(ValueError):\n    f(-1)"], "setup": "import pytest"},
        {"check": "def check(candidate):\n    assert candidate(2) == 4", "entry": "f"},
        {"inputs": [""], "outputs": ["1"]},
    ):
        assert verifier.check_gold(gold) is None


def test_suites_that_end_before_the_first_question_are_nobodys_breakdown(verifier: CodeVerifier) -> None:
    """A suite that is through before its solution is set up: twelve of two hundred were `infra`."""
    gold = {"check": "def check(candidate):\n    raise ValueError", "entry": "f"}
    read = read_gold(gold)
    slow = "#" * 100_000  # to be read before a solution is ready
    results = [verifier._runner.run(slow, read) for _ in range(20)]
    assert {result.status for result in results} == {Status.WRONG}


def test_partial_counts_each_test_of_a_suite_and_stops_at_a_program_that_hangs() -> None:
    verifier = CodeVerifier(partial=True, timeout=0.5, workers=1)
    suite = {"tests": ["x = 2\nassert f(x) == 4", "assert f(3) == 0", "y = 3\nassert f(y) == 9"], "setup": "z = 1"}
    stdio = {"inputs": [str(n) for n in range(40)], "outputs": ["0"] * 40}
    started = time.perf_counter()
    first, second = verifier.verify(
        [item("def f(x): return x * x", suite), item("n = int(input())\nwhile n: pass\nprint(n)", stdio)]
    )
    assert time.perf_counter() - started < 6
    verifier.close()
    assert (first.status, first.score) == (Status.WRONG, 2 / 3)
    assert (second.status, second.score) == (Status.TIMEOUT, 1 / 40)


PAIR = "class Solution:\n    def f(self, x: List[int], y: Optional[int] = None) -> int: return sum(x) + (y or 0)"
ADD = "def f(x, y=None): return sum(x) + (y or 0)"
READ = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    ("code", "gold"),
    [
        (ADD, ["assert f([1, 2]) == 3", "assert f([1], 2) == 3"]),
        (ADD, {"test_list": ["assert f([1, 2]) == 3"], "test_setup_code": "", "challenge_test_list": []}),
        (ADD, {"test": "def check(candidate):\n    assert candidate([1, 2]) == 3", "entry_point": "f"}),
        (PAIR, {"check": "def check(candidate):\n    assert candidate([1, 2]) == 3", "entry": "Solution().f"}),
        (PAIR, {"fn_name": "f", "inputs": [[[1, 2]], [[1], 2]], "outputs": [[3], [3]]}),
        (PAIR, {"input_output": json.dumps({"fn_name": "f", "inputs": [[[1, 2]]], "outputs": [3]})}),
        (READ, {"inputs": ["1 2\n"], "outputs": ["3\n"], "fn_name": None}),
        (READ, {"inputs": [["1 2"]], "outputs": [["3"]]}),
        (READ, [{"input": "1 2\n", "output": "3", "testtype": "stdin"}]),
        (PAIR, [{"input": "[1, 2]\n4", "output": "7", "testtype": "functional", "metadata": '{"func_name": "f"}'}]),
        (PAIR, {"test_cases": [{"fn_name": "f", "input": "[1, 2]\n4", "output": "7", "type": "function_call"}]}),
        (READ, {"language": "python", "test_cases": [{"input": "1 2", "output": "3", "type": "stdin_stdout"}]}),
        (ADD, {"test_cases": ["assert f([1, 2]) == 3"]}),
        (ADD, {"test_cases": {"inputs": [[[1, 2]]], "outputs": [3]}, "fn_name": "f"}),
    ],
)
def test_golds_of_other_collections(code: str, gold: Any, verifier: CodeVerifier) -> None:
    wrong = code.replace("sum(", "-sum(")
    verdicts = verifier.verify([item(text, given) for text in (code, wrong) for given in (gold, json.dumps(gold))])
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0], verdicts


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        ({"test_cases": []}, "not empty"),
        ({"test_cases": [{"input": "1"}]}, "test case 0: an assert as text, or 'input' and 'output'"),
        ([{"input": "1", "output": "2", "time_limit": 3}], "beside them only fn_name, metadata"),
        ({"test_cases": [{"input": "[1", "output": "3", "fn_name": "f"}]}, "input of test case 0 is no JSON"),
        ({"test_cases": [{"input": "1", "output": "3", "type": "function_call"}]}, "add 'fn_name'"),
        ({"test_cases": [{"input": "1", "output": "3"}, {"fn_name": "f", "input": "", "output": "1"}]}, "all calls of"),
        ({"language": "cpp", "inputs": ["1"], "outputs": ["1"]}, "tests of cpp: only Python is run"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [1, 2]}, "1 inputs and 2 outputs"),
        ({"fn_name": "f", "calls": []}, "has 'inputs' and 'outputs'"),
        ("assert f(1) == 1", r"asserts go into \{'tests'"),
    ],
)
def test_golds_that_are_nearly_in_a_form_name_the_fix(gold: Any, words: str) -> None:
    with pytest.raises(GoldError, match=words):
        read_gold(gold)


@pytest.mark.parametrize(("form", "gold"), [*forms()])
def test_hostile_programs_are_never_paid(form: str, gold: Any) -> None:
    """Every program under three of the eight forms, or under all of them with the variable HOSTILE=all (a minute)."""
    every = 1 if os.environ.get("HOSTILE") == "all" else 3
    names = [name for n, name in enumerate(ALL) if (n + len(form)) % every == 0]
    verifier = CodeVerifier(timeout=0.4, memory_mb=128, workers=2)
    honest = f"def f(): return {SECRET!r}" + ("\nprint(f())" if form == "program" else "")
    first, *verdicts = verifier.verify([item(code, gold) for code in [honest, *(program(n, form) for n in names)]])
    verifier.close()
    assert first.status is Status.CORRECT, first
    assert {name: v for name, v in zip(names, verdicts, strict=True) if v.score != 0.0} == {}


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```python\nprint(1)```", "print(1)"),
        ("```python\ndef f():\n    return 1```\nDone.", "def f():\n    return 1"),
        ("```python print(1)\n```", "print(1)"),
        ("```python def f(x):\n    return x\n```", "def f(x):\n    return x"),
        ("```python print(1)```", "print(1)"),
        ("```print(1)```", "print(1)"),
        ("~~~python\na\n~~~", "a"),
        ("~~~\na\n```\nb\n~~~", "a\n```\nb"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("```python\na\n````", "a"),
        ("```python\na\n~~~\nb\n```", "a\n~~~\nb"),
        ("```python {.numbered}\na\n```", "a"),
        ("```python\ns = '```'\nb\n```", "s = '```'\nb"),
        ("````python\na\n```", None),
        ("Use ```python\na\n```", None),
    ],
)
def test_fences(completion: str, code: str | None) -> None:
    assert extract_code(completion) == code


def test_a_block_within_a_list_runs(verifier: CodeVerifier) -> None:
    completion = "1. So:\n   ```python\n   for i in range(2):\n       print(i)\n   ```\n"
    assert verifier.verify([Item(completion, {"inputs": [""], "outputs": ["0\n1"]})])[0].score == 1.0


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("1000000008", "1000000007", False),
        ("1000000007.0", "1000000007", True),
        ("1000000008.0", "1000000007", False),
        ("007", "7", True),
        ("1" * 5000, "1" * 4999 + "2", False),
        ("2.0000001", "2.0", True),
        ("2", "2.0", True),
        (".5", "0.50", True),
        ("5e-1", "0.5", True),
        ("٣", "3", False),
        ("٣.0", "3.0", False),
        ("1_000", "1000", False),
        ("1_000.0", "1000.0", False),
        ("inf", "1.5", False),
        ("1e999", "1.5", False),
        ("1e999", "2e999", False),
        ("nan", "nan", True),
        ("infinity", "inf", False),
        ("1e9999999999", "3", False),
        ("0x10", "16", False),
    ],
)
def test_tolerance_is_for_numbers_with_a_point(actual: str, expected: str, same: bool) -> None:
    assert same_output(actual, expected, 1e-6) is same


def test_what_a_list_of_json_stands_for() -> None:
    for value in (range(3), iter([0, 1, 2]), (0, 1, 2), {0: 1, 1: 1, 2: 1}.keys()):
        assert same_value(value, [0, 1, 2])
    assert not same_value(range(10**18), [0, 1, 2])
    assert not same_value({0, 1, 2}, [0, 1, 2])
    assert not same_value("012", ["0", "1", "2"])


def test_audit_says_which_golds_are_unsafe_and_tries_cheats_on_a_sound_one() -> None:
    golds = [{"tests": ["assert is_close(f(2), 1.4)"]}, {"tests": ["assert f(2) == 4"]}, {"tests": ["assert True"]}]
    report = audit("code", [{"answer": gold} for gold in golds], timeout=0.5)
    sound, hostile = report.findings
    assert (sound.check, sound.passed, sound.total, report.ok) == ("golds are sound", 1, 3, False)
    assert [row for row, _ in sound.examples] == ["row 0", "row 2"]
    assert "unsafe: is_close() decides" in sound.examples[0][1] and "never called" in sound.examples[1][1]
    assert hostile.ok and hostile.total > 120


@pytest.mark.parametrize(
    "source",
    [
        "import solution\nassert solution.f(2) == 4",
        "import math, solution as s\nassert math.sqrt(s.f(2)) == 2",
        "from solution import f as g\nassert g(2) == 4",
        "from solution import *\nassert f(2) == 4",
    ],
)
def test_suites_that_import_the_solution(source: str, verifier: CodeVerifier) -> None:
    right, wrong = verifier.verify([item(f"def f(x): return {y}", {"tests": [source]}) for y in ("x * x", "x * 3")])
    assert (right.status, wrong.status) == (Status.CORRECT, Status.WRONG)


def large_golds(size: int) -> list[Any]:
    """Golds with so many cases, statements, names, or variables that are made of each other."""
    cases = repr([(n, [n] * 10, {"a": n}) for n in range(size)])
    chain = "\n".join(f"x{n + 1} = x{n} + 1" for n in reversed(range(size)))
    return [
        {
            "check": f"def check(candidate):\n    for a, b, c in {cases}:\n        assert candidate(a) == b",
            "entry": "f",
        },
        {"tests": ["\n".join(f"x{n} = f({n})\nassert x{n} == {n}" for n in range(size))]},
        {"tests": [f"assert f{n}({n}) == {n}" for n in range(size // 4)], "setup": "import math"},
        {"tests": [f"x0 = f(1)\n{chain}\nassert x5 == 3"]},
    ]


def test_large_golds_are_read_in_linear_time() -> None:
    def seconds(gold: Any) -> float:
        taken = []
        for _ in range(3):  # Python may collect the garbage of other tests in one of them
            started = time.process_time()
            read_gold(gold)
            taken.append(time.process_time() - started)
        return min(taken)

    for small, large in zip(large_golds(100), large_golds(800), strict=True):
        assert seconds(large) < 25 * seconds(small) + 0.1


@pytest.mark.parametrize(
    ("test", "right", "cheat"),
    [
        ("f(1, 2) == Fraction(1, 2)", "from fractions import Fraction\nf = Fraction", "Fraction = f = lambda *a: 0"),
        ("f('aab') == Counter('aab')", "from collections import Counter\nf = Counter", "Counter = f = lambda *a: 0"),
        ("isclose(f(2), 1.414, rel_tol=1e-3)", "def f(x): return x**.5", "isclose = f = lambda *a, **k: True"),
        ("f('2020-01-01') == date(2020, 1, 1)", "import datetime\nf = datetime.date.fromisoformat", "date = f = id"),
    ],
)
def test_well_known_names_are_those_of_the_standard_library(
    test: str, right: str, cheat: str, verifier: CodeVerifier
) -> None:
    verdicts = verifier.verify([item(code, {"tests": [f"assert {test}"]}) for code in (right, cheat)])
    assert [verdict.status for verdict in verdicts] == [Status.CORRECT, Status.WRONG]
