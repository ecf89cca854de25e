"""A test suite in conversation with a solution that lives in another process (`answers`).

Everything the suite says is evaluated here, where no code of the solution ever runs: helpers, expected values,
comparisons, methods of plain results. What only the solution can do (calls of its functions, and what is done with its
own objects) is asked for, and the answer is plain, or a `Remote` that stands for an object over there.

Nothing over there decides by other means than such answers. An exception of the solution is raised here only where the
suite says that it expects it (`Expecting`); everywhere else it fails the test at once and for good, since in a loop, a
`map` or a bare `except` it would mean something. An object that is no plain value has no plain value's methods.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rewards.sandbox.inside import play, values
from rewards.sandbox.inside.values import PLAIN_NAMES

NONSENSE: tuple[Any, ...] = (None, True, -7919.5, "nothing of the kind", ["nothing"])
"""What a solution that knows nothing may answer. Tests that each of them passes test nothing."""

EMPTY: tuple[Any, ...] = ([], (), "", {}, set())
"""Results without items, which pass where a loop, `all` or a subset looks at items."""
FALSE: tuple[Any, ...] = (False, 0, None)
"""Results that pass, as all of `EMPTY` do, where a test only asks for falsehood."""

_MEANINGFUL = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)
"""Exceptions that steer the code around them: raised only where the suite names them."""

_CONTAINERS = (list, dict, set, tuple, bytearray, deque)

Reply = dict[str, Any]


class Failed(BaseException):
    """The solution failed the test; nothing that the suite does can change that."""


class UnsendableError(Exception):
    """The suite hands over what has no plain form: not the solution's fault."""


class Conversation:
    """Questions to a solution, and what they meant for the test that runs.

    Args:
        asks: where questions go.
        replies: where answers come from.
        classes: names of the solution that the suite uses as classes.
    """

    def __init__(self, asks: TextIO | None, replies: Any, classes: list[str]) -> None:
        self._asks, self._replies, self.classes = asks, replies, frozenset(classes)
        self.failure: str | None = None
        self.unsendable = ""
        self.asked = 0
        self.expecting: list[tuple[type[BaseException], ...]] = []
        self._remotes: dict[int, Remote] = {}
        self._functions: list[Callable[..., Any]] = []

    def ask(self, operation: str, *operands: Any, in_place: bool = False) -> Any:
        """What the solution says.

        Raises:
            Failed: nothing that can be used.
            BaseException: what it raised, if that is expected.
        """
        if self.failure is not None:
            raise Failed(self.failure)
        self.asked += 1
        reply = self._exchange(self._encode([operation, operands, in_place]))
        while "ask" in reply:
            reply = self._exchange(self._call_back(reply["ask"]))
        if "error" in reply:
            raise self._raised(reply)
        if reply == {"end": True} and operation == "next":
            raise StopIteration
        known = len(self._remotes)
        try:
            value = values.decode(reply["value"], 0, self._resolve)
            is_new = len(self._remotes) > known
            if in_place:
                for old, new in zip(operands[1:], values.decode(reply["changed"], 0, self._resolve), strict=False):
                    _update(old, new)
        except (KeyError, ValueError, RecursionError) as error:
            self.fail(f"it gave no value: {error}")
        called = operands[0] if operation == "call" else None
        if type(value) is Remote and isinstance(called, Tested) and called._name in self.classes:
            # What a suite makes to compare with must not turn out to be what it compares.
            if not is_new and called._name[:1].isupper():
                self.fail("its class gave an object that was there before")
            value._is_own = True
        return value

    def fail(self, reason: str) -> Any:
        """End the test that runs."""
        self.failure = self.failure or reason
        raise Failed(self.failure)

    def _exchange(self, line: str) -> Reply:
        try:
            print(line, file=self._asks, flush=True)
            answer = self._replies.readline(play.MAX_REPLY)
            reply = json.loads(answer) if answer.endswith(b"\n") else None
        except (OSError, ValueError, RecursionError):  # it hung up, or what it says is no JSON
            reply = None
        return reply if type(reply) is dict else self.fail("the solution gave no answer")

    def _encode(self, value: Any) -> str:
        try:
            return values.dumps(value, self._refer)
        except values.RefusedError as error:
            self.unsendable = str(error)
            raise UnsendableError(str(error)) from error

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["object", value._name if isinstance(value, Tested) else value._number]
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and vars(builtins).get(name) is value:
            return ["builtin", name]
        if type(value) in values.ITERATORS:
            return ["it", *(values.encode(item, 1, self._refer) for item in values.yielded(value))]
        if callable(value) and not isinstance(value, type):
            if value not in self._functions:
                self._functions.append(value)
            return ["function", self._functions.index(value)]
        raise values.RefusedError(f"the tests hand an object of {type(value).__name__} to the solution")

    def _resolve(self, tag: str, items: list[Any]) -> Any:
        if tag != "object" or len(items) != 1 or type(items[0]) is not int:
            raise values.RefusedError("no object of the solution")
        number = items[0]
        return self._remotes.setdefault(number, Remote(self, number))

    def _call_back(self, call: Any) -> str:
        """Evaluate a function of the suite for the solution; the solution's own failures count nowhere else."""
        try:
            number, arguments, keywords = values.decode(call, 0, self._resolve)
            if type(number) is not int or type(arguments) is not tuple or type(keywords) is not dict:
                self.fail("it asked for no function of the tests")
            function = self._functions[number]
        except (ValueError, LookupError, TypeError) as error:
            self.fail(f"it asked for no function of the tests: {error}")
        try:
            return self._encode([function(*arguments, **keywords), None])
        except Exception as error:  # noqa: BLE001  # whatever a function of the tests raises
            return self._encode([None, [type(error).__name__, [str(error)]]])

    def _raised(self, reply: Reply) -> BaseException:
        """The solution's exception, if the suite waits for one of its kind.

        Raises:
            Failed: it does not.
        """
        names = reply["error"]
        if type(names) is list:
            for kinds in reversed(self.expecting):
                for kind in kinds:
                    if kind.__name__ in names:
                        return self._built(kind, names, reply)
        return self.fail(f"{reply.get('words')}")  # type: ignore[no-any-return]  # it raises

    def _built(self, kind: type[BaseException], names: list[str], reply: Reply) -> BaseException:
        try:
            said = values.decode(reply.get("said"))
        except ValueError:
            said = ()
        candidates = [getattr(builtins, str(name), None) for name in names]
        exact = [c for c in candidates if isinstance(c, type) and issubclass(c, kind) and c not in _MEANINGFUL]
        chosen: type[BaseException] = exact[0] if exact else kind
        try:
            return chosen(*said)
        except Exception:  # noqa: BLE001  # not every exception can be made of any arguments
            return chosen.__new__(chosen)


class Rehearsal(Conversation):
    """A conversation with nobody, who always says the same."""

    def __init__(self, reply: Reply, classes: list[str]) -> None:
        super().__init__(None, None, classes)
        self._reply = reply

    def _exchange(self, line: str) -> Reply:
        return self._reply


class Remote:
    """An object of the solution."""

    __slots__ = ("_conversation", "_is_own", "_number")
    _conversation: Conversation
    _number: int
    _is_own: bool

    def __init__(self, conversation: Conversation, number: int) -> None:
        for name, value in (("_conversation", conversation), ("_number", number), ("_is_own", False)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name in PLAIN_NAMES and not self._is_own:
            self._conversation.fail(f"it gave no plain value, of which the tests ask .{name}")
        return self._conversation.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Remote.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._conversation.ask("set", self, name, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._conversation.ask("call", self, arguments, keywords)

    def __enter__(self) -> Any:
        return self._conversation.ask("call", self._conversation.ask("get", self, "__enter__"), (), {})

    def __exit__(self, *error: object) -> None:
        self._conversation.ask("call", self._conversation.ask("get", self, "__exit__"), (None, None, None), {})

    def __bool__(self) -> bool:
        return not self._is_own or bool(self._conversation.ask("bool", self))

    def __deepcopy__(self, memo: object) -> Any:
        return self._conversation.ask("deepcopy", self)

    def __len__(self) -> int:
        with Expecting(self._conversation, TypeError):  # `list(x)` asks for a length, and goes on without
            return self._conversation.ask("len", self)  # type: ignore[no-any-return]

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and self._conversation.ask("isinstance", value, self) is True


def _operation(name: str, decides: bool) -> Callable[..., Any]:
    def method(self: Remote, *operands: Any) -> Any:
        if decides and not self._is_own:
            self._conversation.fail("it gave no plain value, with which the tests compute")
        return self._conversation.ask(name, self, *operands)

    return method


for _name in ("str", "repr", "iter", "next", "int", "float", "abs", "neg", "pos", "invert", "copy"):
    setattr(Remote, f"__{_name}__", _operation(_name, decides=False))
for _name in ("getitem", "setitem", "delitem", "contains", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv"):
    setattr(Remote, f"__{_name}__", _operation(_name, decides=_name not in ("getitem", "setitem", "delitem")))
for _name in ("floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift"):
    setattr(Remote, f"__{_name.rstrip('_')}__", _operation(_name, decides=True))


class Tested(Remote):
    """A function or class that the solution has to define, by its name."""

    __slots__ = ("_name",)
    _name: str

    def __init__(self, conversation: Conversation, name: str) -> None:
        super().__init__(conversation, -1)
        object.__setattr__(self, "_name", name)


class Expecting:
    """Within it, exceptions of the solution of these kinds are raised in the test suite.

    Args:
        conversation: with the solution.
        kinds: classes of exceptions, or tuples of them.
    """

    def __init__(self, conversation: Conversation, *kinds: Any) -> None:
        flat = [kind for group in kinds for kind in (group if isinstance(group, tuple) else (group,))]
        self._conversation = conversation
        self._kinds = tuple(k for k in flat if isinstance(k, type) and issubclass(k, BaseException))

    def __enter__(self) -> None:
        self._conversation.expecting.append(self._kinds)

    def __exit__(self, *error: object) -> None:
        self._conversation.expecting.pop()


def check(payload: play.Payload, report: play.Report) -> None:
    """Run a test suite: a script, then `check(entry)` if it has an entry, then each of its tests.

    Each fails by raising. One report a test, or a single one if there are no tests or the script fails.
    """
    asks, replies = os.fdopen(play.ASK_FD, "w", encoding="utf-8"), os.fdopen(play.REPLY_FD, "rb")
    for failure in run(payload, Conversation(asks, replies, payload.get("classes", []))):
        report({"passed": True} if failure is None else {"passed": False, "error": failure[:200]})


def rehearse(payload: play.Payload, report: play.Report) -> None:
    """Run a test suite with nobody to question: all answers are the same nonsense, or empty, or an exception."""
    said = [{"value": values.encode(answer), "changed": ["t"]} for answer in (*NONSENSE, *EMPTY, *FALSE)]
    for reply in (*said, {"error": ["Exception", "BaseException"], "words": "nothing of the kind"}):
        rehearsal = Rehearsal(reply, payload.get("classes", []))
        failures = list(run(payload, rehearsal))
        words = next((failure for failure in failures if failure is not None), "")
        report({"asked": rehearsal.asked, "failure": words[:200], "unsendable": rehearsal.unsendable})


def run(payload: play.Payload, conversation: Conversation) -> Iterator[str | None]:
    """Run a test suite; for each of its tests, why it failed."""
    from rewards.sandbox.inside import helpers

    module = types.ModuleType("__main__")
    namespace = module.__dict__
    namespace |= {name: type(name, (Exception,), {}) for name in payload.get("exceptions", ())}
    namespace |= {name: Tested(conversation, name) for name in payload["names"]}
    namespace |= {
        "__expecting__": lambda *kinds: Expecting(conversation, *kinds),
        "__value__": lambda name: conversation.ask("value", name),
        "__in_place__": lambda callee: _InPlace(callee) if isinstance(callee, Remote) else callee,
    }
    sys.modules["__main__"], sys.argv = module, ["tests"]
    helpers.install(conversation, "\n".join([payload["suite"], *payload.get("tests", ())]))

    def script() -> None:
        namespace.update({name: __import__(name) for name in payload["imports"]})
        exec(compile(payload["suite"], "<tests>", "exec"), namespace)  # noqa: S102  # the purpose of this process
        if payload["entry"]:
            namespace["check"](eval(payload["entry"], namespace | {payload["entry"]: entry}))  # noqa: S307

    entry = Tested(conversation, payload["entry"])
    failure = _attempt(conversation, script)
    if failure is not None or not payload.get("tests"):
        yield failure
        return
    for test in payload["tests"]:
        code = compile(test, "<test>", "exec")
        failure = _attempt(conversation, lambda code=code: exec(code, namespace))  # type: ignore[misc]  # noqa: S102
        yield failure
        if failure is not None and payload.get("stop"):
            return


def _attempt(conversation: Conversation, step: Callable[[], Any]) -> str | None:
    """Why a step failed; a suite that leaves by `sys.exit()` says that all went well."""
    conversation.failure = None
    conversation.expecting.clear()
    words = None
    try:
        step()
    except SystemExit as error:
        words = f"the tests end with {error.code}" if error.code else None
    except BaseException as error:  # noqa: BLE001
        words = play.words(error)
    return conversation.failure if conversation.failure is not None else words


class _InPlace:
    """A call whose arguments are as the solution left them, afterwards."""

    def __init__(self, callee: Remote) -> None:
        self._callee = callee

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._callee._conversation.ask("call", self._callee, arguments, keywords, in_place=True)


def _update(old: Any, new: Any) -> None:
    """Give a container of the suite the content that the solution left it with, and so on within."""
    kind = type(old)
    if kind is not type(new):
        return
    if kind is tuple or (kind is list and len(old) == len(new)):
        for place, (before, after) in enumerate(zip(old, new, strict=False)):
            if type(before) is type(after) and type(before) in _CONTAINERS:
                _update(before, after)
            elif kind is list:
                old[place] = after
    elif kind in (list, bytearray):
        old[:] = new
    elif kind is dict and old.keys() == new.keys() and all(type(v) is list for v in old.values()):
        for key, before in old.items():
            _update(before, new[key]) if type(new[key]) is list else old.__setitem__(key, new[key])
    elif kind in (dict, set):
        old.clear()
        old.update(new)
    elif kind is deque:
        old.clear()
        old.extend(new)
