"""Reading a test suite before anything runs: what it asks of the solution, and whether a cheat could pass it.

A suite is evaluated in a process of its own (`rewards.sandbox.inside.questions`). Names that it uses and does not
define are the solution's. What the solution gets to see of it are imports, classes that only hold data, and, of a
`check`, the helpers that no expected value is made with.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.code.facts import FUNCTIONS, STANDARD, Facts, bound_names, names_in, reached, root_of
from rewards.code.literals import folded
from rewards.code.unsafe import refuse_captures, refuse_own_judgement, refuse_swallowed, refuse_uncalled

OWN_MODULES = frozenset({"solution", "main", "__main__", "candidate"})
"""Modules that suites import the solution from."""

_ENDLESS = frozenset({"count", "cycle", "repeat", "itertools", "iter"})
_DATA_METHODS = frozenset({"__init__", "__repr__", "__str__", "__slots__"})


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
    public, before, *parts = (folded(ast.parse(text)) for text in (given, setup, *tests))
    before.body[:0] = public.body
    own = _OwnImports([before, *parts])
    before, parts = own.visit(before), [own.visit(part) for part in parts]
    whole = ast.Module([*before.body, *(node for part in parts for node in part.body)], [])
    refuse_uncalled(whole, entry)
    refuse_captures(whole)
    ahead = _given(before, whole, Facts(whole, entry), public.body, shared=bool(entry))
    shown = {node.name for node in ahead if isinstance(node, ast.ClassDef)}
    before.body, whole.body = (
        [node for node in body if not _defines(node, shown)] for body in (before.body, whole.body)
    )
    facts = Facts(whole, entry)
    refuse_own_judgement(whole, facts)
    refuse_swallowed(whole, facts)
    preparation = _Preparation(facts)
    scripts = [ast.unparse(ast.fix_missing_locations(preparation.visit(part))) for part in [before, *parts]]
    suite, *rest = ["\n".join(scripts)] if entry else scripts
    suite = "\n".join([*(f"from {STANDARD[name]} import {name}" for name in sorted(facts.standard)), suite])
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


class _OwnImports(ast.NodeTransformer):
    """Takes out imports of the solution: its names are known as they are."""

    def __init__(self, parts: Sequence[ast.Module]) -> None:
        self._modules: set[str] = set()
        self._names: dict[str, str] = {}
        for node in (node for part in parts for node in ast.walk(part)):
            if isinstance(node, ast.Import):
                self._modules |= {alias.asname or alias.name for alias in node.names if alias.name in OWN_MODULES}
            elif isinstance(node, ast.ImportFrom) and node.module in OWN_MODULES:
                self._names |= {alias.asname: alias.name for alias in node.names if alias.asname}

    def visit_Import(self, node: ast.Import) -> ast.AST:
        node.names = [alias for alias in node.names if alias.name not in OWN_MODULES]
        return node if node.names else ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.Pass() if node.module in OWN_MODULES else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        is_own = isinstance(node.value, ast.Name) and node.value.id in self._modules
        return ast.Name(node.attr, node.ctx) if is_own else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._names[node.id], node.ctx) if node.id in self._names else node


class _Preparation(ast.NodeTransformer):
    """Marks where a suite expects exceptions, and where it looks at what a call did to its arguments."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def visit_Try(self, node: ast.Try) -> ast.AST:
        self.generic_visit(node)
        if node.handlers:
            kinds = [handler.type or ast.Name("BaseException", ast.Load()) for handler in node.handlers]
            expecting = ast.Call(ast.Name("__expecting__", ast.Load()), kinds, [])
            node.body = [ast.With([ast.withitem(expecting)], node.body)]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Call(ast.Name("__value__", ast.Load()), [node], []) if node.id in self._facts.data else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call):
            node.value = self._in_place(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = {getattr(argument, "id", "") for argument in node.args}
        if getattr(node.func, "id", "") == "zip" and not node.keywords and self._pairs_with_expected(node.args):
            node.keywords = [ast.keyword("strict", ast.Constant(value=True))]  # or results that are missing would pass
        return self._in_place(node) if names & self._facts.changed else node

    def _pairs_with_expected(self, arguments: list[ast.expr]) -> bool:
        """Whether results of the solution are paired with as many values that it has no part in."""
        mine = [argument for argument in arguments if not names_in(argument) & self._facts.subject]
        finite = all(not isinstance(node, ast.Call) for argument in mine for node in ast.walk(argument))
        made = [sources for targets, sources in self._facts.flows for name in mine if names_in(name) & targets]
        return finite and 0 < len(mine) < len(arguments) and not any(sources & _ENDLESS for sources in made)

    def _in_place(self, call: ast.Call) -> ast.Call:
        if isinstance(call.func, ast.Call) and getattr(call.func.func, "id", "") == "__in_place__":
            return call
        if isinstance(call.func, ast.Name) and call.func.id not in self._facts.names:
            return call
        call.func = ast.Call(ast.Name("__in_place__", ast.Load()), [call.func], [])
        return call


def _given(before: ast.Module, whole: ast.Module, facts: Facts, public: list[ast.stmt], shared: bool) -> list[ast.stmt]:
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
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            if all(module.partition(".")[0] in sys.stdlib_module_names for module in modules):
                given.append(node)
        elif isinstance(node, ast.ClassDef):
            if node.name not in secret and _is_data(node):
                given.append(node)
        elif shared and isinstance(node, FUNCTIONS):
            if node.name not in secret:
                given.append(node)
        elif shared and not bound_names(ast.walk(node)) & (mentioned | secret):
            given.append(node)
    return given


def _is_data(node: ast.ClassDef) -> bool:
    """Whether a class only holds data, so that it may live with the solution."""
    plain = all(not isinstance(part, FUNCTIONS) or part.name in _DATA_METHODS for part in node.body)
    return plain and not node.bases and all("dataclass" in names_in(decorator) for decorator in node.decorator_list)


def _defines(node: ast.stmt, names: set[str]) -> bool:
    return isinstance(node, ast.ClassDef) and node.name in names


def _expected_names(whole: ast.Module, facts: Facts) -> set[str]:
    """Names that expected values are made of: those that meet results of the solution, and that it has no part in."""
    nodes, subject = list(ast.walk(whole)), facts.subject
    handed = {
        name
        for node in nodes
        if isinstance(node, ast.Call) and root_of(node) in subject
        for argument in node.args
        if (name := getattr(argument, "id", ""))
    }
    expected: set[str] = set()
    for node in nodes:
        kinds = [names_in(side) for side in _beside(node, subject)]
        if any(names & subject for names in kinds):
            expected |= set().union(*(names - handed for names in kinds if not names & subject))
    return reached(expected, [(sources - subject, targets) for targets, sources in facts.flows])


def _beside(node: ast.AST, subject: set[str]) -> list[ast.expr]:
    """Expressions that meet in a node; arguments of the solution's own functions do not meet what it returns."""
    match node:
        case ast.Compare():
            return [node.left, *node.comparators]
        case ast.BinOp():
            return [node.left, node.right]
        case ast.Tuple() | ast.List() | ast.Set():
            return node.elts
        case ast.Call() if root_of(node) not in subject:
            receiver = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            return [*receiver, *node.args, *(keyword.value for keyword in node.keywords)]
    return []
