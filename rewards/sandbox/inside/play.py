"""Running one job, in its jail: a program, calls of a solution, or predicates over what they returned.

Results go to a descriptor of their own, one line each, opened by the job's secret nonce. They are *claims* of code
that may be hostile; no expected value is ever in the process that makes them, so a forged claim is worth no more than
a returned one.
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import importlib
import io
import json
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

from rewards.sandbox.inside import values

RESULTS_FD, ASK_FD, REPLY_FD = 3, 4, 5
"""Results of the job; and the two ends of the line between a test suite and the solution it questions."""

MAX_REPLY = 1 << 20
"""Bytes of one result, or of one answer that a test suite reads from a solution."""

SITE_IMPORTS = (
    "typing collections itertools functools math heapq bisect string re copy random operator statistics datetime json "
    "decimal fractions sys"
)
"""Modules whose names LiveCodeBench and LeetCode put before a solution; in this order, the first one wins."""
SITE_RECURSION = 50_000

Payload = dict[str, Any]
Report = Callable[[Payload], None]
Kind = Callable[[Payload, Report], None]


def play(payload: Payload, kinds: Mapping[str, Kind] | None = None) -> None:
    """Run the job that the payload describes. May end in any way; what counts was reported before."""
    nonce = payload["nonce"]

    def report(result: Payload) -> None:
        line = f"{nonce} {json.dumps(result, separators=(',', ':'), allow_nan=False)}\n".encode()
        if len(line) > MAX_REPLY:
            raise values.RefusedError(f"a result of {len(line)} bytes")
        while line:
            line = line[os.write(RESULTS_FD, line) :]

    report({"ready": True})
    (kinds or KINDS)[payload["kind"]](payload, report)


def program(payload: Payload, report: Report) -> None:
    """Run code as a script. Its input lies ready; what it prints and how it exits is seen from outside."""
    code = 0
    try:
        try:
            load(payload["code"], "__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]  # wait for its threads, as the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  # whatever a model's program raises
        report({"error": words(error)})
        code = 1
    os._exit(code & 0xFF)


def calls(payload: Payload, report: Report) -> None:
    """Load a solution, then evaluate calls of it, in order; each is source text, or a function's name and arguments."""
    namespace = solution(payload, report)
    if namespace is None:
        return
    for call in payload["calls"]:
        try:
            if isinstance(call, str):
                value = eval(compile(call, "<call>", "eval"), namespace)  # noqa: S307  # the purpose of this process
                report({"value": values.encode(value)})
                continue
            arguments, keywords = values.decode(call["args"]), values.decode(call["kwargs"])
            value = lookup(namespace, call["function"])(*arguments, **keywords)
            changed = {"argument": values.encode(arguments[0])} if value is None and call.get("in_place") else {}
            report({"value": values.encode(value), **changed})
        except BaseException as error:  # noqa: BLE001
            report({"error": words(error)})
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
            report({"passed": False, "error": words(error)})


KINDS: dict[str, Kind] = {function.__name__: function for function in (program, calls, judge)}


def load(code: str, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Execute code as a module of this name, with some names given, and return its namespace."""
    module = types.ModuleType(name)
    module.__dict__.update(given or {})
    sys.modules[name] = module
    exec(compile(code, f"<{name}>", "exec"), module.__dict__)  # noqa: S102  # the purpose of this process
    return module.__dict__


def solution(payload: Payload, report: Report) -> dict[str, Any] | None:
    """The namespace of a solution, with what its problem gives before it and the set-up of its tests after it.

    `None`, and a report, if one of them fails.
    """
    try:
        if "class Solution" in payload["code"]:
            _give_imports()
        namespace = load(payload.get("given", ""), "solution")
        exec(compile(payload["code"], "<solution>", "exec"), namespace)  # noqa: S102
        if payload["setup"]:
            exec(compile(payload["setup"], "<setup>", "exec"), namespace)  # noqa: S102
    except BaseException as error:  # noqa: BLE001
        report({"failed": words(error)})
        return None
    return namespace


def _give_imports() -> None:
    """Make names known that competition sites import before a class `Solution`, unless built-ins have them.

    They stand behind the solution's own names, so that nothing it defines or imports changes. Recursion is as deep as
    there, too.
    """
    sys.setrecursionlimit(SITE_RECURSION)
    for module in SITE_IMPORTS.split():
        known = importlib.import_module(module)
        vars(builtins).setdefault(module.partition(".")[0], sys.modules[module.partition(".")[0]])
        for name in getattr(known, "__all__", None) or [name for name in vars(known) if not name.startswith("_")]:
            vars(builtins).setdefault(name, getattr(known, name))


def complete_builtins() -> None:
    """Add `exit` and `quit`, which the interpreter has only where it reads `site`."""
    vars(builtins).update({name: _sitebuiltins.Quitter(name, "") for name in ("exit", "quit")})


def lookup(namespace: dict[str, Any], name: str) -> Any:
    """The function of a solution; methods of a class `Solution` count, as competition sites want it."""
    if name in namespace:
        return namespace[name]
    if "Solution" in namespace and hasattr(namespace["Solution"], name):
        return getattr(namespace["Solution"](), name)
    raise NameError(f"the solution defines no {name!r}")


def words(error: BaseException) -> str:
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
