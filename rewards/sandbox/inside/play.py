"""Running one job, in its jail: a program, calls of a solution, or a test suite that questions a solution.

Results go to a descriptor of their own, one line each, opened by the job's secret nonce. They are *claims* of code
that may be hostile; no expected value is ever in the process that makes them, so a forged claim is worth no more than
a returned one.
"""

from __future__ import annotations

import atexit
import builtins
import io
import json
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rewards.sandbox.inside import values

RESULTS_FD, ASK_FD, REPLY_FD = 3, 4, 5
"""Results of the job; and the two ends of the line between a test suite and the solution it questions."""

MAX_REPLY = 1 << 20
"""Bytes of one result, or of one answer that a test suite reads from a solution."""

Payload = dict[str, Any]
Report = Callable[[Payload], None]


def play(payload: Payload) -> None:
    """Run the job that the payload describes. May end in any way; what counts was reported before."""
    nonce = payload["nonce"]

    def report(result: Payload) -> None:
        line = f"{nonce} {json.dumps(result, separators=(',', ':'), allow_nan=False)}\n".encode()
        if len(line) > MAX_REPLY:
            raise values.RefusedError(f"a result of {len(line)} bytes")
        while line:
            line = line[os.write(RESULTS_FD, line) :]

    report({"ready": True})
    KINDS[payload["kind"]](payload, report)


def program(payload: Payload, report: Report) -> None:
    """Run code as a script. Its input lies ready; what it prints and how it exits is seen from outside."""
    code = 0
    try:
        _load(payload["code"], "__main__")
        threading._shutdown()  # type: ignore[attr-defined]  # wait for its threads, as the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  # whatever a model's program raises
        report({"error": _words(error)})
        code = 1
    os._exit(code & 0xFF)


def calls(payload: Payload, report: Report) -> None:
    """Load a solution, then evaluate calls of it, in order; each is source text, or a function's name and arguments."""
    namespace = _solution(payload, report)
    if namespace is None:
        return
    for call in payload["calls"]:
        try:
            if isinstance(call, str):
                value = eval(compile(call, "<call>", "eval"), namespace)  # noqa: S307  # the purpose of this process
            else:
                arguments, keywords = values.decode(call["args"]), values.decode(call["kwargs"])
                value = _function(namespace, call["function"])(*arguments, **keywords)
            report({"value": values.encode(value)})
        except BaseException as error:  # noqa: BLE001
            report({"error": _words(error)})
            if payload["stop"]:
                return


def judge(payload: Payload, report: Report) -> None:
    """Evaluate predicates of a test suite over values that a solution returned. No solution is in this process."""
    for test in payload["tests"]:
        try:
            namespace = {name: __import__(name) for name in test["imports"]}
            namespace |= {f"_{i}": values.decode(value) for i, value in enumerate(test["values"])}
            passed = bool(eval(compile(test["predicate"], "<test>", "eval"), namespace))  # noqa: S307
            report({"passed": passed})
        except BaseException as error:  # noqa: BLE001
            report({"passed": False, "error": _words(error)})


def check(payload: Payload, report: Report) -> None:
    """Run a test suite whose solution lives in another process; `names` are functions that the solution defines.

    A suite is a script that fails by raising. If it defines `check(candidate)`, that is called with the entry point.
    """
    asks, replies = os.fdopen(ASK_FD, "w"), os.fdopen(REPLY_FD, "rb")

    def ask(name: str, *arguments: Any, **keywords: Any) -> Any:
        print(values.dumps([name, arguments, keywords]), file=asks, flush=True)
        line = replies.readline(MAX_REPLY)
        if not line.endswith(b"\n"):
            raise AssertionError("the solution gave no answer")
        value, error = values.loads(line)
        if error is not None:
            kind = getattr(builtins, str(error[0]), None)
            raise kind(error[1]) if isinstance(kind, type) and issubclass(kind, Exception) else AssertionError(error[1])
        return value

    try:
        asked = {name: partial(ask, name) for name in payload["names"]}
        namespace = _load(payload["suite"], "suite", {name: __import__(name) for name in payload["imports"]} | asked)
        if payload["entry"]:
            namespace["check"](partial(ask, payload["entry"]))
        report({"passed": True})
    except BaseException as error:  # noqa: BLE001
        report({"passed": False, "error": _words(error)})


def serve(payload: Payload, report: Report) -> None:
    """Load a solution and answer the calls that a test suite makes, until it is killed."""
    namespace = _solution(payload, report)
    if namespace is None:
        return
    asks, replies = os.fdopen(ASK_FD, "rb"), os.fdopen(REPLY_FD, "w")
    for line in asks:
        try:
            name, arguments, keywords = values.loads(line)
            answer = values.dumps([_function(namespace, name)(*arguments, **keywords), None])
        except BaseException as error:  # noqa: BLE001
            answer = values.dumps([None, [type(error).__name__, _words(error)]])
        print(answer, file=replies, flush=True)


KINDS: dict[str, Callable[[Payload, Report], None]] = {
    function.__name__: function for function in (program, calls, judge, check, serve)
}


def _load(code: str, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Execute code as a module of this name, with some names given, and return its namespace."""
    module = types.ModuleType(name)
    module.__dict__.update(given or {})
    sys.modules[name] = module
    exec(compile(code, f"<{name}>", "exec"), module.__dict__)  # noqa: S102  # the purpose of this process
    return module.__dict__


def _solution(payload: Payload, report: Report) -> dict[str, Any] | None:
    """The namespace of a solution, with what its problem gives before it and the set-up of its tests after it.

    `None`, and a report, if one of them fails.
    """
    try:
        namespace = _load(payload.get("given", ""), "solution")
        exec(compile(payload["code"], "<solution>", "exec"), namespace)  # noqa: S102
        if payload["setup"]:
            exec(compile(payload["setup"], "<setup>", "exec"), namespace)  # noqa: S102
    except BaseException as error:  # noqa: BLE001
        report({"failed": _words(error)})
        return None
    return namespace


def _function(namespace: dict[str, Any], name: str) -> Any:
    """The function of a solution; methods of a class `Solution` count, as competition sites want it."""
    if name in namespace:
        return namespace[name]
    if "Solution" in namespace and hasattr(namespace["Solution"], name):
        return getattr(namespace["Solution"](), name)
    raise NameError(f"the solution defines no {name!r}")


def _words(error: BaseException) -> str:
    """An exception in at most 200 characters; its own `__str__` may be hostile too."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001
        text = "an exception that cannot be printed"
    return text[:200]


def connect(stdin: str) -> None:
    """Give this process standard streams of its own: the input as a file, and the output where it was sent."""
    content = os.memfd_create("stdin")
    data = stdin.encode(errors="surrogateescape")
    while data:
        data = data[os.write(content, data) :]
    os.lseek(content, 0, os.SEEK_SET)
    os.dup2(content, 0)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8", errors="replace")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False), 1 << 16), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="replace")
