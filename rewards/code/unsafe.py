"""Refusing test suites that test nothing, or whose verdict the solution could make itself."""

from __future__ import annotations

import ast
from collections.abc import Callable
from itertools import pairwise

from rewards.code.errors import UnsafeError
from rewards.code.facts import FUNCTIONS, Facts, flows_of, names_in, root_of, sides_of

CAPTURES = frozenset({"redirect_stdout", "redirect_stderr", "sys.stdout", "capsys", "capfd", "patch", "monkeypatch"})
"""What suites use to see prints or to change the solution's surroundings, which are in another process."""


def refuse_uncalled(whole: ast.Module) -> None:
    """Refuse a suite with functions `test…` that nobody calls."""
    used = names_in(whole)
    for node in whole.body:
        if isinstance(node, FUNCTIONS) and node.name.startswith("test") and node.name not in used:
            raise UnsafeError(f"tests nothing: {node.name}() is defined and never called; call it at the end")


def refuse_captures(whole: ast.Module) -> None:
    """Refuse a suite that looks at what the solution prints, or patches what it calls."""
    for node in ast.walk(whole):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr, ast.unparse(node)]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        for name in CAPTURES.intersection(names):
            raise UnsafeError(
                f"unsafe: it uses {name}, but the solution runs in another process; a program that reads and prints has"
                " 'inputs' and 'outputs'"
            )


def refuse_own_judgement(whole: ast.Module, facts: Facts) -> None:
    """Refuse a suite in which the solution, or what it touched, decides what is expected."""
    nodes = list(ast.walk(whole))
    origins = {name: {name} for name in facts.names} | {name: {facts.entry} for name in facts.candidates}
    flows = [flow for node in nodes for flow in flows_of(node) if not isinstance(node, FUNCTIONS)]
    grown = True
    while grown:
        grown = False
        for targets, sources in flows:
            made_of = set().union(*(origins.get(source, set()) for source in sources))
            for target in targets - facts.names:
                if not made_of <= origins.setdefault(target, set()):
                    origins[target] |= made_of
                    grown = True
    made = _made_to_compare(nodes)
    for node in nodes:
        sides = sides_of(node)
        named = [names_in(side) for side in sides]
        for name in sorted(facts.changed):
            if sum(name in names for names in named) > 1:
                raise UnsafeError(
                    f"unsafe: it compares {name!r}, which the solution may change, with something made of it; compare"
                    " with a copy from before the call"
                )
        _refuse_made_expectations(sides, made, facts)
        asked = [set().union(*(origins.get(name, set()) for name in names)) for names in named]
        for left, right in pairwise(asked):
            if left and right and not left & right:
                raise UnsafeError(
                    f"unsafe: what it expects comes from the solution too: {_listed(left)} and {_listed(right)} are not"
                    " defined in the tests; define what is expected in 'setup', or compare plain values"
                )
        if isinstance(node, ast.Assert):
            _refuse_foreign_judges(node.test, origins, facts)


def _made_to_compare(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Variables that are assigned once and handed to nobody, with their values."""
    values: dict[str, list[ast.expr]] = {}
    handed: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
                else:
                    handed |= names_in(node.value)
        elif isinstance(node, ast.Call):
            handed = handed.union(*map(names_in, node.args), *(names_in(keyword.value) for keyword in node.keywords))
    return {name: found[0] for name, found in values.items() if len(found) == 1 and name not in handed}


def _refuse_made_expectations(sides: list[ast.expr], made: dict[str, ast.expr], facts: Facts) -> None:
    """Refuse `assert f(p) == Point(2, 4)` and `assert f(p) == Color.RED`, whose right sides the solution makes up."""
    for side in sides:
        expected = made.get(side.id, side) if isinstance(side, ast.Name) else side
        name = root_of(expected) if isinstance(expected, ast.Call) else ""
        while isinstance(expected, ast.Attribute):
            expected = expected.value
            name = expected.id if isinstance(expected, ast.Name) else ""
        if name in facts.names and name[:1].isupper() and "_" not in name:
            others = [other for other in sides if other is not side and root_of(other) != name]
            if any(facts.asks(other) for other in others):
                raise UnsafeError(
                    f"unsafe: what it expects is made by {name}, which the solution defines; compare plain values, such"
                    " as attributes"
                )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _refuse_foreign_judges(test: ast.expr, origins: dict[str, set[str]], facts: Facts) -> None:
    """Refuse `assert is_close(f(2), 1.4)` where nobody but the solution could define `is_close`."""
    while isinstance(test, ast.UnaryOp):
        test = test.operand
    if isinstance(test, ast.Compare):
        truth = isinstance(test.comparators[0], ast.Constant) and isinstance(test.comparators[0].value, bool)
        if truth or facts.entry or not isinstance(test.ops[0], ast.Eq):
            test = test.left
    for part in test.values if isinstance(test, ast.BoolOp) else [test]:
        name = root_of(part) if isinstance(part, ast.Call) else ""
        if isinstance(part, ast.Call) and name in facts.names and not name[:1].isupper():
            made_by = {root_of(argument) for argument in part.args if isinstance(argument, ast.Call)} & facts.names
            if facts.entry:
                made_by |= {
                    n for argument in part.args for n in set().union(*map(_origin(origins), names_in(argument)))
                }
            if any(not maker[:1].isupper() for maker in made_by - {name}):
                raise UnsafeError(f"unsafe: {name}() decides, and only the solution defines it; define it in 'setup'")


def _origin(origins: dict[str, set[str]]) -> Callable[[str], set[str]]:
    return lambda name: origins.get(name, set())
