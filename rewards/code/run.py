"""Running a program against its gold answer: what passed, and why it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.code.compare import same_output, same_value
from rewards.code.gold import Asserts, Calls, Gold, Stdio, Suite
from rewards.sandbox import Ending, Outcome, Sandbox
from rewards.sandbox.inside import values
from rewards.verdict import Status

MAX_DETAIL = 200
"""Characters of a verdict's detail."""


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
            if failed is not None and (not self.complete or failed[0] is Status.INFRA):
                break
        return _result(tests, len(gold.cases))

    def _calls(self, code: str, gold: Calls) -> Result:
        calls = [{"function": gold.function, "args": call.args, "kwargs": call.kwargs} for call in gold.calls]
        outcome, claims = self._evaluate(code, "", calls)
        tests: list[tuple[Status, str]] = []
        for call, claim in zip(gold.calls, claims, strict=True):
            failed = _unusable(claim) or _compared(claim, lambda v, c=call: same_value(v, c.expected, self.tolerance))
            tests.append(failed or (Status.CORRECT, ""))
        return _result(_explained(tests, outcome), len(tests))

    def _asserts(self, code: str, gold: Asserts) -> Result:
        outcome, claims = self._evaluate(code, gold.setup, [call for test in gold.tests for call in test.calls])
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
        suite = {
            "kind": "check",
            "suite": gold.source,
            "names": gold.names,
            "imports": gold.imports,
            "entry": gold.entry,
        }
        outcome = self.sandbox.run(suite, {"kind": "serve", "given": gold.given, "code": code, "setup": ""})
        failed = _failure(outcome)
        record = (outcome.records or [{}])[0]
        if failed is None and record.get("passed") is not True:
            failed = Status.WRONG, str(record.get("error", ""))
        return _result([failed or (Status.CORRECT, "")], 1)

    def _evaluate(self, code: str, setup: str, calls: list[Any]) -> tuple[Outcome, list[dict[str, Any] | None]]:
        """What the solution claims for each call; `None` where it said nothing."""
        payload = {"kind": "calls", "code": code, "setup": setup, "calls": calls, "stop": not self.complete}
        outcome = self.sandbox.run(payload)
        records: Iterable[dict[str, Any]] = outcome.records or []
        claims = [record for record in records if set(record) in ({"value"}, {"error"})][: len(calls)]
        return outcome, [*claims, *[None] * (len(calls) - len(claims))]


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
