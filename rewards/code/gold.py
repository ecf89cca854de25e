"""Gold answers of code problems: four forms, as a mapping or as JSON text (those of others: `rewards.code.forms`).

{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                              a program that reads and prints
{"function": "add", "calls": [{"args": [1, 2], "expected": 3}]}         calls of a function (or Solution().add)
{"tests": ["assert add(1, 2) == 3"], "setup": ""}                       assert statements (MBPP)
{"check": "def check(candidate): …", "entry": "add", "setup": ""}       a test suite (HumanEval)

`setup` stands before the tests; the program gets of it what `rewards.code.suite` says. A suite may also have `given`,
which stands before both: what the question shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.code.asserts import Split, split
from rewards.code.errors import GoldError
from rewards.code.forms import translate
from rewards.code.suite import Suite, read_suite
from rewards.sandbox.inside import values

_ENTRY = re.compile(r"[^\W\d]\w*(\(\)\.[^\W\d]\w*)?")
"""A function, or `Solution().method`."""


@dataclass(frozen=True, slots=True)
class Stdio:
    """A program that reads and prints.

    Attributes:
        cases: (what it reads, what it must print).
    """

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function: its encoded arguments, and the value it must return."""

    args: Any
    kwargs: Any
    expected: Any


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of a function, which may also be a method of a class `Solution`."""

    function: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Asserts:
    """Assert statements that could be taken apart.

    Attributes:
        tests: each of them.
        whole: the same as a suite; `None` if there is nothing in them but calls of one function and literals.
    """

    tests: tuple[Split, ...]
    whole: Suite | None


Gold = Stdio | Calls | Asserts | Suite


def read_gold(answer: Any) -> Gold:
    """What a gold answer asks of a program.

    Args:
        answer: a mapping, or JSON text of one; see the top of this module.

    Raises:
        GoldError: it is in none of the four forms, or has no test.
    """
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise GoldError(f"the gold answer is no JSON ({error}); asserts go into {{'tests': [...]}}") from error
    answer = translate(answer)
    if not isinstance(answer, Mapping):
        raise GoldError(f"a gold answer of code is a mapping, not {type(answer).__name__}")
    fields = {key: value for key, value in answer.items() if value is not None}  # tables fill missing ones with None
    for required, allowed, read in (
        ("inputs", {"inputs", "outputs"}, _stdio),
        ("calls", {"function", "calls"}, _calls),
        ("tests", {"tests", "setup"}, _asserts),
        ("check", {"check", "entry", "setup", "given"}, _suite),
    ):
        if required in fields:
            if unknown := set(fields) - allowed:
                raise GoldError(f"a gold answer with {required!r} has no {sorted(unknown)}; it has {sorted(allowed)}")
            try:
                return read(fields)
            except GoldError:
                raise
            except (KeyError, TypeError, SyntaxError, values.RefusedError, RecursionError) as error:
                raise GoldError(f"unreadable {required!r}: {type(error).__name__}: {error}") from error
    raise GoldError("a gold answer of code has 'inputs', 'calls', 'tests' or 'check'")


def _stdio(fields: Mapping[str, Any]) -> Stdio:
    inputs, outputs = fields["inputs"], fields["outputs"]
    if not inputs or len(inputs) != len(outputs) or not _texts(inputs) or not _texts(outputs):
        raise GoldError("'inputs' and 'outputs' are lists of text of one length, and not empty")
    if not any(output.strip() for output in outputs):
        raise GoldError("tests nothing: every output is empty")
    return Stdio(tuple(zip(inputs, outputs, strict=True)))


def _calls(fields: Mapping[str, Any]) -> Calls:
    function, calls = fields["function"], fields["calls"]
    if not isinstance(function, str) or not function.isidentifier() or not calls:
        raise GoldError("'function' is a name, and 'calls' a list that is not empty")
    read = []
    for call in calls:
        if unknown := set(call) - {"args", "kwargs", "expected"}:
            raise GoldError(f"a call has no {sorted(unknown)}; it has 'args', 'kwargs' and 'expected'")
        values.encode(call["expected"])  # nothing else can ever be returned
        arguments, keywords = list(call.get("args") or []), dict(call.get("kwargs") or {})
        read.append(Call(values.encode(arguments), values.encode(keywords), call["expected"]))
    return Calls(function, tuple(read))


def _asserts(fields: Mapping[str, Any]) -> Asserts | Suite:
    tests, setup = fields["tests"], fields.get("setup") or ""
    if not tests or not _texts(tests) or not isinstance(setup, str):
        raise GoldError("'tests' is a list of assert statements, and not empty; 'setup' is code")
    splits = [split(test) for test in tests] if not setup.strip() else [None]
    found = tuple(found for found in splits if found is not None)
    if len(found) == len(tests) and len({test.function for test in found}) == 1 and found[0].function:
        return Asserts(found, None)
    suite = read_suite(setup, tests)
    return Asserts(found, suite) if len(found) == len(tests) and not suite.source else suite


def _suite(fields: Mapping[str, Any]) -> Suite:
    suite, entry = fields["check"], fields["entry"]
    if not _ENTRY.fullmatch(entry):
        raise GoldError("'entry' is the name of the function that 'check' tests")
    return read_suite(fields.get("setup") or "", [suite], entry, fields.get("given") or "")


def _texts(items: Any) -> bool:
    return isinstance(items, Sequence) and not isinstance(items, str) and all(isinstance(i, str) for i in items)
