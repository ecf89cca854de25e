"""Reading a test suite before anything runs: what it asks of the solution, and whether a cheat could pass it.

A suite is evaluated in a process of its own (`rewards.sandbox.inside.questions`). Names that it uses and does not
define are the solution's. What the solution gets to see of it are imports, classes that only hold data, and, of a
`check`, the helpers that no expected value is made with.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rewards.sandbox.inside.values import PLAIN_NAMES

OWN_MODULES = frozenset({"solution", "main", "__main__", "candidate"})
"""Modules that suites import the solution from."""
CAPTURES = frozenset({"redirect_stdout", "redirect_stderr", "capsys", "capfd", "patch", "monkeypatch"})
"""What suites use to see prints or to change the solution's surroundings, which are in another process."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DATA_METHODS = frozenset({"__init__", "__repr__", "__str__", "__slots__"})


class UnsafeError(ValueError):
    """A suite that does not test, or that cannot be kept from what it tests."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests that stay whole: they run apart from the solution and question it.

    Attributes:
        source: the script that comes first; it fails by raising.
        tests: further scripts, each a test; if there are none, the script is the test.
        names: functions and classes of the solution that they use.
        classes: those of them that are used as classes.
        exceptions: exceptions of the solution that they expect.
        imports: modules that they use without importing them.
        entry: what `check(candidate)` is called with; empty if there is no `check`.
        given: code that stands before the solution.
    """

    source: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    entry: str = ""
    given: str = ""


def read_suite(setup: str, tests: Sequence[str], entry: str = "", given: str = "") -> Suite:
    """Take a suite in.

    Args:
        setup: what stands before the tests.
        tests: scripts.
        entry: what `check(candidate)`, defined by the only test, is called with.
        given: what the question shows, so that it stands before the solution as well as before the tests.

    Raises:
        SyntaxError: it is no Python.
        UnsafeError: it tests nothing, or a cheat could pass it.
    """
    public, before, parts = ast.parse(given), ast.parse(setup), [ast.parse(test) for test in tests]
    before.body[:0] = public.body
    whole = ast.Module([*before.body, *(node for part in parts for node in part.body)], [])
    _refuse_uncalled(whole)
    _refuse_captures(whole)
    ahead = _given(before, whole, _Facts(whole, entry), public.body, shared=bool(entry))
    shown = {node.name for node in ahead if isinstance(node, ast.ClassDef)}
    before.body, whole.body = (
        [node for node in body if not _defines(node, shown)] for body in (before.body, whole.body)
    )
    facts = _Facts(whole, entry)
    _refuse_own_judgement(whole, facts)
    preparation = _Preparation(facts)
    scripts = [ast.unparse(ast.fix_missing_locations(preparation.visit(part))) for part in [before, *parts]]
    suite, *rest = ["\n".join(scripts)] if entry else scripts
    return Suite(
        suite,
        tuple(rest),
        tuple(sorted(facts.names)),
        tuple(sorted(facts.classes | shown)),
        tuple(sorted(facts.exceptions)),
        tuple(sorted(facts.modules)),
        entry,
        ast.unparse(ast.Module(ahead, [])),
    )


class _Facts:
    """What a suite uses of the solution.

    Attributes:
        names: of functions and classes that it does not define.
        modules: of the standard library, used without an import.
        exceptions: names that it expects as exceptions and does not define.
        classes: names of the solution that it treats as classes.
        changed: variables that the solution may change in place, for the suite to look at.
    """

    def __init__(self, whole: ast.Module, entry: str) -> None:
        nodes = list(ast.walk(whole))
        bound = _bound(nodes)
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        free = used - bound
        caught = {name for node in nodes for name in _caught(node)} & free - set(dir(builtins))
        self.exceptions = caught - sys.stdlib_module_names
        self.modules = free & sys.stdlib_module_names - called
        self.names = free - set(dir(builtins)) - self.modules - self.exceptions - {"pytest"}
        asked = (
            {node.id for node in ast.walk(ast.parse(entry, mode="eval")) if isinstance(node, ast.Name)}
            if entry
            else set()
        )
        self.names |= asked
        if not self.names:  # the solution's function has the name of a built-in, such as `sum`
            self.names = called - bound
        self.classes = {name for name in self.names if name[:1].isupper() and _is_class(name, nodes)}
        self.changed = self._changed(nodes)

    def asks(self, node: ast.AST) -> bool:
        """Whether an expression calls the solution."""
        return any(isinstance(child, ast.Name) and child.id in self.names for child in ast.walk(node))

    def _changed(self, nodes: list[ast.AST]) -> set[str]:
        handed = {
            name
            for node in nodes
            if isinstance(node, ast.Call) and not self._is_ours(node.func)
            for argument in node.args
            if (name := getattr(argument, "id", ""))
        }
        left = {
            name
            for node in nodes
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not self._is_ours(node.value.func)
            for argument in node.value.args
            if (name := getattr(argument, "id", ""))
        }
        looked_at = {
            name
            for node in nodes
            if isinstance(node, ast.Compare)
            for side in (node.left, *node.comparators)
            if (name := getattr(side, "id", "")) and any(_is_literal(s) for s in (node.left, *node.comparators))
        }
        return left | handed & looked_at

    def _is_ours(self, function: ast.expr) -> bool:
        """Whether a function is surely the suite's own, or built in."""
        root = function
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        name = getattr(root, "id", None)
        return name is None or (isinstance(function, ast.Name) and name in dir(builtins) and name not in self.names)


class _Preparation(ast.NodeTransformer):
    """Marks where a suite expects exceptions, and where it looks at what a call did to its arguments."""

    def __init__(self, facts: _Facts) -> None:
        self._facts = facts

    def visit_Try(self, node: ast.Try) -> ast.AST:
        self.generic_visit(node)
        if node.handlers:
            kinds = [handler.type or ast.Name("BaseException", ast.Load()) for handler in node.handlers]
            expecting = ast.Call(ast.Name("__expecting__", ast.Load()), kinds, [])
            node.body = [ast.With([ast.withitem(expecting)], node.body)]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call):
            node.value = self._in_place(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = {getattr(argument, "id", "") for argument in node.args}
        return self._in_place(node) if names & self._facts.changed else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return ast.Pass() if node.module in OWN_MODULES else node

    def _in_place(self, call: ast.Call) -> ast.Call:
        if isinstance(call.func, ast.Call) and getattr(call.func.func, "id", "") == "__in_place__":
            return call
        if isinstance(call.func, ast.Name) and call.func.id not in self._facts.names:
            return call
        call.func = ast.Call(ast.Name("__in_place__", ast.Load()), [call.func], [])
        return call


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that code defines, imports, assigns or takes as arguments."""
    bound: set[str] = set()
    for node in nodes:
        match node:
            case ast.Name() if not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
            case ast.arg():
                bound.add(node.arg)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar() if node.name:
                bound.add(node.name)
            case ast.Import():
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom() if node.module not in OWN_MODULES:
                bound |= {alias.asname or alias.name for alias in node.names}
    return bound


def _caught(node: ast.AST) -> set[str]:
    """Names of exceptions that a handler, `assertRaises` or `raises` waits for."""
    kinds: list[ast.expr] = []
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        kinds = [node.type]
    elif isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        kinds = node.args[:1] if name in ("assertRaises", "assertRaisesRegex", "raises") else []
    return {child.id for kind in kinds for child in ast.walk(kind) if isinstance(child, ast.Name)}


def _is_class(name: str, nodes: list[ast.AST]) -> bool:
    """Whether a suite uses what it calls by this name as an object with methods of its own.

    Methods that plain values have too say nothing, unless their result is of no interest.
    """
    holders = {name}
    for node in nodes:
        if isinstance(node, ast.Assign) and any(
            isinstance(part, ast.Call) and _root(part) == name for part in ast.walk(node.value)
        ):
            holders |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in nodes:
        if (
            isinstance(node, ast.Attribute)
            and _root(node.value) in holders
            and (node.attr not in PLAIN_NAMES or not isinstance(node.ctx, ast.Load))
        ):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Attribute) and _root(function.value) in holders:
                return True
    return False


def _root(node: ast.expr) -> str:
    """The name that an expression of calls starts with: `f` of `f`, `f(1)`, but not of `f(1).x`."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.id if isinstance(node, ast.Name) else ""


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True


def _refuse_uncalled(whole: ast.Module) -> None:
    used = {node.id for node in ast.walk(whole) if isinstance(node, ast.Name)}
    for node in whole.body:
        if isinstance(node, _FUNCTIONS) and node.name.startswith("test") and node.name not in used:
            raise UnsafeError(f"tests nothing: {node.name}() is defined and never called; call it at the end")


def _refuse_captures(whole: ast.Module) -> None:
    for node in ast.walk(whole):
        name = getattr(node, "id", getattr(node, "attr", getattr(node, "arg", None)))
        if name in CAPTURES or (
            isinstance(node, ast.Attribute) and name == "stdout" and getattr(node.value, "id", "") == "sys"
        ):
            raise UnsafeError(
                f"unsafe: it uses {name}, but the solution runs in another process; a program that reads and prints has"
                " 'inputs' and 'outputs'"
            )


def _refuse_own_judgement(whole: ast.Module, facts: _Facts) -> None:
    """Refuse a suite in which the solution, or what it touched, decides what is expected."""
    nodes = list(ast.walk(whole))
    origins = {name: {name} for name in facts.names}
    flows = [flow for node in nodes for flow in _flows(node) if not isinstance(node, _FUNCTIONS)]
    for _ in flows:  # as often as values can be handed on
        for targets, sources in flows:
            made_of = set().union(*(origins.get(source, set()) for source in sources))
            for target in targets - facts.names:
                origins[target] = origins.get(target, set()) | made_of
    for node in nodes:
        sides = _sides(node)
        named = [_names(side) for side in sides]
        for name in sorted(facts.changed):
            if sum(name in names for names in named) > 1:
                raise UnsafeError(
                    f"unsafe: it compares {name!r}, which the solution may change, with something made of it; compare"
                    " with a copy from before the call"
                )
        _refuse_made_expectations(sides, nodes, facts)
        asked = [set().union(*(origins.get(name, set()) for name in names)) for names in named]
        for left, right in pairwise(asked):
            if left and right and not left & right:
                raise UnsafeError(
                    f"unsafe: what it expects comes from the solution too: {_listed(left)} and {_listed(right)} are not"
                    " defined in the tests; define what is expected in 'setup', or compare plain values"
                )
        if isinstance(node, ast.Assert):
            _refuse_foreign_judges(node.test, facts)


def _refuse_made_expectations(sides: list[ast.expr], nodes: list[ast.AST], facts: _Facts) -> None:
    """Refuse `assert f(p) == Point(2, 4)` and `assert f(p) == Color.RED`, whose right sides the solution makes up."""
    for side in sides:
        made = side
        if isinstance(side, ast.Name):
            values = [n.value for n in nodes if isinstance(n, ast.Assign) and side.id in map(_root, n.targets)]
            handed = any(
                side.id in _names(part)
                for node in nodes
                for part in (
                    [*node.args, *(keyword.value for keyword in node.keywords)]
                    if isinstance(node, ast.Call)
                    else [node.value]
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
                    else []
                )
            )
            made = side if handed or len(values) != 1 else values[0]
        name = _root(made) if isinstance(made, ast.Call) else ""
        while isinstance(made, ast.Attribute):
            made = made.value
            name = made.id if isinstance(made, ast.Name) else ""
        if name in facts.names and name[:1].isupper() and "_" not in name:
            others = [other for other in sides if other is not side and _root(other) != name]
            if any(facts.asks(other) for other in others):
                raise UnsafeError(
                    f"unsafe: what it expects is made by {name}, which the solution defines; compare plain values, such"
                    " as attributes"
                )


def _sides(node: ast.AST) -> list[ast.expr]:
    """What a comparison compares."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Call) and str(getattr(node.func, "attr", "")).startswith("assert"):
        return node.args[:2]
    return []


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _refuse_foreign_judges(test: ast.expr, facts: _Facts) -> None:
    """Refuse `assert is_close(f(2), 1.4)` where nobody but the solution could define `is_close`."""
    while isinstance(test, ast.UnaryOp):
        test = test.operand
    for part in test.values if isinstance(test, ast.BoolOp) else [test]:
        name = _root(part) if isinstance(part, ast.Call) else ""
        if isinstance(part, ast.Call) and name in facts.names and len(part.args) > 1:
            inner = {_root(argument) for argument in part.args if isinstance(argument, ast.Call)}
            if inner & facts.names - facts.classes - {name}:
                raise UnsafeError(f"unsafe: {name}() decides, and only the solution defines it; define it in 'setup'")


def _given(
    before: ast.Module, whole: ast.Module, facts: _Facts, public: list[ast.stmt], shared: bool
) -> list[ast.stmt]:
    """What of the set-up stands before the solution."""
    secret = _expected_names(whole, facts)
    mentioned = {
        node.id
        for part in whole.body
        if part not in before.body
        for node in ast.walk(part)
        if isinstance(node, ast.Name)
    }
    given: list[ast.stmt] = []
    for node in before.body:
        if node in public:
            given.append(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if not isinstance(node, ast.ImportFrom) or node.module not in OWN_MODULES:
                given.append(node)
        elif isinstance(node, ast.ClassDef):
            if node.name not in secret and _is_data(node):
                given.append(node)
        elif shared and isinstance(node, _FUNCTIONS):
            if node.name not in secret:
                given.append(node)
        elif shared and not _bound(ast.walk(node)) & (mentioned | secret):
            given.append(node)
    return given


def _is_data(node: ast.ClassDef) -> bool:
    """Whether a class only holds data, so that it may live with the solution."""
    plain = all(not isinstance(part, _FUNCTIONS) or part.name in _DATA_METHODS for part in node.body)
    return plain and not node.bases and all("dataclass" in _names(decorator) for decorator in node.decorator_list)


def _defines(node: ast.stmt, names: set[str]) -> bool:
    return isinstance(node, ast.ClassDef) and node.name in names


def _expected_names(whole: ast.Module, facts: _Facts) -> set[str]:
    """Names that expected values are made of: of sides of comparisons that the solution has no part in."""
    nodes = list(ast.walk(whole))
    flows = [flow for node in nodes for flow in _flows(node)]
    subject = set(facts.names) | {"candidate"}
    _spread(subject, [(targets, sources) for targets, sources in flows])
    handed = {
        name
        for node in nodes
        if isinstance(node, ast.Call) and _root(node) in subject
        for argument in node.args
        if (name := getattr(argument, "id", ""))
    }
    expected: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Compare):
            sides: list[ast.expr] = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and _root(node) not in subject:
            sides = node.args
        else:
            continue
        kinds = [_names(side) for side in sides]
        if any(names & subject for names in kinds):
            expected |= set().union(*(names - handed for names in kinds if not names & subject))
    _spread(expected, [(sources - subject, targets) for targets, sources in flows])
    return expected


def _names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _flows(node: ast.AST) -> list[tuple[set[str], set[str]]]:
    """(names that get a value, names that it is made of)."""
    match node:
        case ast.Assign():
            return [(set().union(*map(_names, node.targets)), _names(node.value))]
        case ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
            return [(_names(node.target), _names(node.value))]
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            return [(_names(node.target), _names(node.iter))]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [({node.name}, set().union(*map(_names, node.body)))]
    return []


def _spread(names: set[str], flows: list[tuple[set[str], set[str]]]) -> None:
    """Add all names that flow from these on, again and again."""
    while True:
        more = {name for targets, sources in flows if sources & names for name in targets} - names
        if not more:
            return
        names |= more
