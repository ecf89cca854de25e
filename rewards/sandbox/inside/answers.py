"""A solution in conversation: it answers what a test suite in another process (`questions`) asks, one line each.

A question is an operation, its operands, and whether to tell what became of them. Plain values travel as such; objects
of the solution stay here and are named by number, functions of the test suite stay there. Every answer is a claim:
nothing here knows what is expected.
"""

from __future__ import annotations

import builtins
import copy
import json
import operator
import os
from collections.abc import Callable
from typing import Any, TextIO

from rewards.sandbox.inside import play, values

_UNARY = ("neg", "pos", "abs", "invert")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_ORDER = ("lt", "le", "gt", "ge")
_ITEMS = ("getitem", "setitem", "delitem", "contains")

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, arguments, keywords: target(*arguments, **keywords),
    "value": lambda target: target,
    "get": getattr,
    "set": setattr,
    **{kind.__name__: kind for kind in (str, bool, int, float)},
    **{function.__name__: function for function in (repr, len, iter, isinstance, copy.copy, copy.deepcopy)},
    **{name: getattr(operator, name) for name in (*_UNARY, *_BINARY, *_ORDER, *_ITEMS)},
}
"""What a test suite may ask for, by name."""


class Answers:
    """The objects of a solution, and the line on which it is questioned.

    Args:
        namespace: of the loaded solution.
        asks: questions, one a line.
        replies: where answers go.
    """

    def __init__(self, namespace: dict[str, Any], asks: TextIO, replies: TextIO) -> None:
        self._namespace, self._asks, self._replies = namespace, asks, replies
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._functions: dict[int, Callable[..., Any]] = {}

    def give(self) -> None:
        """Answer until the line ends."""
        for line in self._asks:
            self._say(self._answer(line))

    def _answer(self, line: str) -> str:
        try:
            operation, operands, in_place = values.loads(line, self._resolve)
            if operation == "next":
                end = object()
                value = next(operands[0], end)
                return self._text({"end": True} if value is end else {"value": self._encode(value)})
            value = OPERATIONS[operation](*operands)
            changed = {"changed": self._encode(operands[1:])} if in_place else {}
            return self._text({"value": self._encode(value), **changed})
        except BaseException as error:  # noqa: BLE001  # whatever a model's program raises
            return self._text({"error": _names(error), "said": self._said(error), "words": play.words(error)})

    def _encode(self, value: Any) -> Any:
        return values.encode(value, 0, self._refer)

    def _said(self, error: BaseException) -> Any:
        try:
            return values.encode(error.args)
        except BaseException:  # noqa: BLE001
            return ["t", play.words(error)]

    def _refer(self, value: Any) -> Any:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return ["object", number]

    def _resolve(self, tag: str, items: list[Any]) -> Any:
        (name,) = items
        if tag == "builtin":
            return getattr(builtins, name)
        if tag == "function":
            return self._functions.setdefault(name, self._function(name))
        return self._objects[name] if isinstance(name, int) else play.lookup(self._namespace, name)

    def _function(self, number: int) -> Callable[..., Any]:
        """A function of the test suite, as the solution sees it."""

        def function(*arguments: Any, **keywords: Any) -> Any:
            self._say(self._text({"ask": self._encode((number, arguments, keywords))}))
            value, error = values.loads(self._asks.readline(), self._resolve)
            if error is not None:
                kind = getattr(builtins, error[0], None)
                raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(*error[1])
            return value

        return function

    def _text(self, answer: dict[str, Any]) -> str:
        text = json.dumps(answer, separators=(",", ":"), allow_nan=False)
        if len(text) >= play.MAX_REPLY:
            raise values.RefusedError(f"a result of {len(text)} bytes")
        return text

    def _say(self, text: str) -> None:
        print(text, file=self._replies, flush=True)


def serve(payload: play.Payload, report: play.Report) -> None:
    """Load a solution and answer what a test suite asks, until it is killed."""
    namespace = play.solution(payload, report)
    if namespace is not None:
        Answers(namespace, os.fdopen(play.ASK_FD, encoding="utf-8"), os.fdopen(play.REPLY_FD, "w")).give()


def _names(error: BaseException) -> list[str]:
    """Names of an exception's class and of all that it is derived from."""
    try:
        return [str(kind.__name__) for kind in type(error).__mro__]
    except BaseException:  # noqa: BLE001
        return ["Exception", "BaseException"]
