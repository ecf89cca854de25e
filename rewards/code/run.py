"""Running a program against its gold answer: what passed, and why it stopped."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.code.compare import same_output, same_value
from rewards.code.gold import Asserts, Calls, Gold, Stdio
from rewards.code.suite import Suite
from rewards.sandbox import Ending, Outcome, Sandbox
from rewards.sandbox.inside import values
from rewards.sandbox.inside.questions import EMPTY, FALSE, NONSENSE
from rewards.verdict import Status

_FINAL = (Status.INFRA, Status.TIMEOUT, Status.REJECTED)
"""What is not tried again on the next input, also where passed tests are counted: it took as long as a job may."""

MAX_DETAIL = 200
"""Characters of a verdict's detail."""


_CLAIMS = ({"value"}, {"error"}, {"value", "argument"})
"""What a record of a call has: what it returned (and what became of its first argument), or what it raised."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program did.

    Attributes:
        status: `correct`, or why the first test that failed did.
        passed: tests passed; stops counting at the first failure unless all were asked for.
        total: tests there are.
        detail: about the first failure, for people.
    """

    status: Status
    passed: int
    total: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs programs in a sandbox.

    Attributes:
        sandbox: where.
        complete: run every test; otherwise stop at the first that fails.
        tolerance: allowed difference of numbers in outputs and float results; exact if `None`.
    """

    sandbox: Sandbox
    complete: bool = False
    tolerance: float | None = None

    def run(self, code: str, gold: Gold) -> Result:
        """Run a program through all tests of a gold answer."""
        if isinstance(gold, Stdio):
            return self._stdio(code, gold)
        if isinstance(gold, Calls):
            return self._calls(code, gold)
        if isinstance(gold, Asserts):
            return self._asserts(code, gold)
        return self._suite(code, gold)

    def _stdio(self, code: str, gold: Stdio) -> Result:
        tests: list[tuple[Status, str]] = []
        for stdin, expected in gold.cases:
            outcome = self.sandbox.run({"kind": "program", "code": code, "stdin": stdin})
            failed = _failure(outcome)
            if failed is None and outcome.code != 0:
                failed = Status.WRONG, _error(outcome) or f"it exited with {outcome.code}"
            if failed is None and not same_output(_text(outcome.stdout), expected, self.tolerance):
                failed = Status.WRONG, "another output was expected"
            tests.append(failed or (Status.CORRECT, ""))
            if failed is not None and (not self.complete or failed[0] in _FINAL):
                break
        return _result(tests, len(gold.cases))

    def _calls(self, code: str, gold: Calls) -> Result:
        in_place = _returns_nothing(code, gold)
        calls = [
            {"function": gold.function, "args": call.args, "kwargs": call.kwargs, "in_place": in_place}
            for call in gold.calls
        ]
        outcome, claims = self._evaluate(code, calls)
        tests: list[tuple[Status, str]] = []
        for call, claim in zip(gold.calls, claims, strict=True):
            if claim is not None and "argument" in claim:
                claim = {"value": claim["argument"]}
            failed = _unusable(claim) or _compared(claim, lambda v, c=call: same_value(v, c.expected, self.tolerance))
            tests.append(failed or (Status.CORRECT, ""))
        return _result(_explained(tests, outcome), len(tests))

    def _asserts(self, code: str, gold: Asserts) -> Result:
        outcome, claims = self._evaluate(code, [call for test in gold.tests for call in test.calls])
        tests: list[tuple[Status, str]] = []
        left: list[tuple[int, dict[str, Any]]] = []
        for test in gold.tests:
            own, claims = claims[: len(test.calls)], claims[len(test.calls) :]
            failed = next((reason for claim in own if (reason := _unusable(claim))), None)
            if failed is None and test.predicate is None:
                failed = _compared(own[0], lambda v, t=test: bool(v == t.expected))
            elif failed is None:
                given = [claim["value"] for claim in own if claim is not None]
                predicate = {"predicate": test.predicate, "imports": test.imports, "values": given}
                left.append((len(tests), predicate))
            tests.append(failed or (Status.CORRECT, ""))
        if left and (self.complete or all(status is Status.CORRECT for status, _ in tests)):
            verdict = self.sandbox.run({"kind": "judge", "tests": [predicate for _, predicate in left]})
            judged = _failure(verdict)
            records = verdict.records or []
            for place, (number, _) in enumerate(left):
                if judged is not None:
                    tests[number] = judged
                elif len(records) <= place or records[place].get("passed") is not True:
                    tests[number] = Status.WRONG, str(records[place : place + 1])
        return _result(_explained(tests, outcome), len(tests))

    def _suite(self, code: str, gold: Suite) -> Result:
        total = len(gold.tests) or 1
        suite = {**_questions(gold), "kind": "check", "stop": not self.complete}
        outcome = self.sandbox.run(suite, {"kind": "serve", "given": gold.given, "code": code, "setup": ""})
        tests: list[tuple[Status, str]] = []
        for record in (outcome.records or [])[:total]:
            passed = record.get("passed") is True
            tests.append((Status.CORRECT, "") if passed else (Status.WRONG, str(record.get("error", ""))))
        failed = _failure(outcome)
        if failed is not None and failed[0] is Status.INFRA:
            tests = []
        first = next((test for test in tests if test[0] is not Status.CORRECT), None)
        missing = first or failed or (Status.WRONG, "it ended before all its tests")
        return _result([*tests, *[missing] * (total - len(tests))], total)

    def rehearse(self, gold: Gold) -> str | None:
        """Why no verdict on these tests would mean anything, or `None`: they are run with no solution to question."""
        suite = gold.whole if isinstance(gold, Asserts) else gold
        if not isinstance(suite, Suite) or (isinstance(gold, Asserts) and any(t.predicate is None for t in gold.tests)):
            return None
        outcome = self.sandbox.run({**_questions(suite), "kind": "rehearse"})
        records = outcome.records or []
        if _failure(outcome) is not None:
            return None  # they take their time; what comes of it is seen when there is a solution
        if len(records) <= len(NONSENSE) + len(EMPTY) + len(FALSE):
            return "the tests end their own process"
        for record in records:
            if record["unsendable"]:
                return f"unsafe: {record['unsendable']}; classes of the tests that only hold data belong in 'setup'"
            if record["failure"] and not record["asked"]:
                return f"the tests fail before they ask anything: {record['failure']}"
        failures = [record["failure"] for record in records]
        nonsense, failures = failures[: len(NONSENSE)], failures[len(NONSENSE) :]
        empty, false, raising = failures[: len(EMPTY)], failures[len(EMPTY) : -1], failures[-1]
        if not any(record["asked"] for record in records):
            return "tests nothing: the solution is never called"
        if not any(nonsense):
            return "tests nothing: any result passes"
        if not any(empty) and any(false):
            return "tests nothing: any empty result passes; compare whole results"
        if not raising:
            return "tests nothing: a solution that only raises passes; expect exceptions by their names"
        return None

    def _evaluate(self, code: str, calls: list[Any]) -> tuple[Outcome, list[dict[str, Any] | None]]:
        """What the solution claims for each call; `None` where it said nothing."""
        payload = {"kind": "calls", "code": code, "setup": "", "calls": calls, "stop": not self.complete}
        outcome = self.sandbox.run(payload)
        records: Iterable[dict[str, Any]] = outcome.records or []
        claims = [record for record in records if set(record) in _CLAIMS][: len(calls)]
        return outcome, [*claims, *[None] * (len(calls) - len(claims))]


def _returns_nothing(code: str, gold: Calls) -> bool:
    """Whether a solution works in place: its function says `-> None`, where every call is expected to give a value."""
    if not re.search(r"->\s*None", code) or any(call.expected is None for call in gold.calls):
        return False
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == gold.function]
    return bool(functions) and all(
        isinstance(function.returns, ast.Constant) and function.returns.value is None for function in functions
    )


def _questions(suite: Suite) -> dict[str, Any]:
    return {
        "suite": suite.source,
        "tests": suite.tests,
        "names": suite.names,
        "classes": suite.classes,
        "exceptions": suite.exceptions,
        "imports": suite.imports,
        "entry": suite.entry,
    }


def _unusable(claim: Mapping[str, Any] | None) -> tuple[Status, str] | None:
    if claim is None:
        return Status.WRONG, ""
    if "value" not in claim:
        return Status.WRONG, str(claim.get("error"))
    return None


def _compared(claim: Mapping[str, Any] | None, same: Any) -> tuple[Status, str] | None:
    assert claim is not None
    try:
        value = values.decode(claim["value"])
    except (ValueError, RecursionError, OverflowError) as error:
        return Status.REJECTED, f"a forged result: {error}"
    if same(value):
        return None
    return Status.WRONG, f"it returned {_short(value)}"


def _explained(tests: list[tuple[Status, str]], outcome: Outcome) -> list[tuple[Status, str]]:
    """Where a test failed for want of a result, the job's own end says why."""
    failed = _failure(outcome)
    if failed is not None and failed[0] in (Status.INFRA, Status.REJECTED):
        return [failed] * len(tests)
    reason = failed or (Status.WRONG, _error(outcome) or "it ended before all its tests")
    return [reason if test == (Status.WRONG, "") else test for test in tests]


def _result(tests: list[tuple[Status, str]], total: int) -> Result:
    passed = sum(status is Status.CORRECT for status, _ in tests)
    status, detail = next((test for test in tests if test[0] is not Status.CORRECT), (Status.CORRECT, ""))
    shown = "".join(c if c.isprintable() else " " for c in detail[:MAX_DETAIL])  # a program's own words, for a terminal
    return Result(status, passed, total, shown)


def _failure(outcome: Outcome) -> tuple[Status, str] | None:
    """The end of a job that says by itself that nothing passed."""
    match outcome.ending:
        case Ending.BROKEN:
            return Status.INFRA, outcome.detail
        case Ending.LETHAL:
            return Status.REJECTED, f"it took its sandbox down: {outcome.detail}"
        case Ending.MEMORY:
            return Status.WRONG, "it used too much memory"
        case Ending.WALL:
            return Status.TIMEOUT, f"it ran for more than {outcome.ms / 1000:.1f} s"
        case _ if outcome.records is None:
            return Status.REJECTED, "it wrote to the channel of its results"
    return None


def _error(outcome: Outcome) -> str:
    records = outcome.records or []
    return next((str(r[key]) for r in records for key in ("failed", "error") if key in r), "")


def _text(output: bytes) -> str:
    return output.decode(errors="replace")


def _short(value: Any) -> str:
    try:
        return repr(value)[:100]
    except ValueError:  # an integer with more digits than Python prints
        return f"a huge {type(value).__name__}"
