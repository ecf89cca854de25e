"""Refusing test suites that test nothing, or whose verdict the solution could make itself."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from itertools import pairwise

from rewards.code.errors import UnsafeError
from rewards.code.facts import FUNCTIONS, Facts, flows_of, names_in, reached, root_of, sides_of

CAPTURES = frozenset({"redirect_stdout", "redirect_stderr", "sys.stdout", "capsys", "capfd", "patch", "monkeypatch"})
"""What suites use to see prints or to change the solution's surroundings, which are in another process."""

EXPECTED = frozenset({"expected", "expect", "output", "out", "answer", "result", "want", "solution", "target"})
"""What suites call the expected value of a case."""


def refuse_uncalled(whole: ast.Module, entry: str) -> None:
    """Refuse a suite with functions `test…` that nobody calls, or with `check` if it has no entry."""
    used = names_in(whole)
    for node in whole.body:
        is_test = isinstance(node, FUNCTIONS) and (node.name.startswith("test") or (node.name == "check" and not entry))
        if isinstance(node, FUNCTIONS) and is_test and node.name not in used:
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
    origins, made, touched = _origins(nodes, facts), _made_to_compare(nodes), _touched(nodes, facts)
    for node in nodes:
        sides = sides_of(node)
        _refuse_touched_expectations(sides, touched)
        _refuse_made_expectations(sides, made, facts)
        asked = []
        for side in sides:
            makers = {maker for name in names_in(side) for maker in origins.get(name, set())} | _methods(side, facts)
            asked.append(makers - facts.classes or makers)
        for left, right in pairwise(asked):
            if left and right and not left & right:
                raise UnsafeError(
                    f"unsafe: what it expects comes from the solution too: {_listed(left)} and {_listed(right)} are not"
                    " defined in the tests; define what is expected in 'setup', or compare plain values"
                )
        if isinstance(node, ast.Assert):
            _refuse_foreign_judges(node.test, origins, facts)


def _origins(nodes: list[ast.AST], facts: Facts) -> dict[str, set[str]]:
    """For each variable, what of the solution it is made with."""
    flows = [flow for node in nodes for flow in flows_of(node) if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    flows = [(targets - facts.names, sources) for targets, sources in flows]
    origins: dict[str, set[str]] = {}
    for maker in facts.names:
        aliases = facts.candidates if maker in facts.entry_names else set()
        for name in reached({maker, *aliases}, flows):
            origins.setdefault(name, set()).add(maker)
    return origins


def _touched(nodes: list[ast.AST], facts: Facts) -> dict[str, str]:
    """Variables that are nothing but what the solution may have changed in place, with its name."""
    touched = {name: name for name in facts.changed}
    for node in nodes:
        if isinstance(node, ast.For | ast.comprehension):
            sources = names_in(node.iter) - set(dir(builtins))
            if len(sources) == 1 and sources <= facts.changed:
                touched |= dict.fromkeys(names_in(node.target), *sources)
    return touched


def _refuse_touched_expectations(sides: list[ast.expr], touched: dict[str, str]) -> None:
    """Refuse `f(x)` and then `assert x == sorted(x)`, which a solution that empties `x` passes."""
    seen = [{touched[name] for name in names_in(side) & set(touched)} for side in sides]
    for left, right in pairwise(seen):
        for name in sorted(left & right):
            raise UnsafeError(
                f"unsafe: it compares {name!r}, which the solution may change, with something made of it; compare with"
                " a copy from before the call"
            )


def refuse_swallowed(whole: ast.Module, facts: Facts) -> None:
    """Refuse `try: assert f(2) == 4`, `except ValueError: pass`, which a solution passes by raising."""
    for node in ast.walk(whole):
        if isinstance(node, ast.Try) and any(_is_silent(handler) for handler in node.handlers):
            for part in node.body:
                looks = not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Call))
                if looks and names_in(part) & facts.subject:
                    raise UnsafeError(
                        "unsafe: it goes on after an exception of the solution; leave `try` out, or fail in `except`"
                    )


def _is_silent(handler: ast.ExceptHandler) -> bool:
    return all(
        isinstance(part, ast.Pass | ast.Continue)
        or (isinstance(part, ast.Return) and part.value is None)
        or (isinstance(part, ast.Expr) and (isinstance(part.value, ast.Constant) or root_of(part.value) == "print"))
        for part in handler.body
    )


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
    """Refuse right sides that the solution makes up, or is handed.

    Such are `f(p) == Point(2, 4)`, `f(p) == Color.RED` and `f(case) == case["expected"]`.
    """
    for side in sides:
        others = [other for other in sides if other is not side and facts.asks(other)]
        expected = made.get(side.id, side) if isinstance(side, ast.Name) else side
        name, key = root_of(expected) if isinstance(expected, ast.Call) else "", ""
        while isinstance(expected, ast.Attribute | ast.Subscript):
            key = expected.attr if isinstance(expected, ast.Attribute) else str(getattr(expected.slice, "value", ""))
            expected = expected.value
            name = expected.id if isinstance(expected, ast.Name) else ""
        if name in facts.names and name[:1].isupper() and "_" not in name:
            if any(root_of(other) != name for other in others):
                raise UnsafeError(
                    f"unsafe: what it expects is made by {name}, which the solution defines; compare plain values, such"
                    " as attributes"
                )
        elif key in EXPECTED and any(isinstance(o, ast.Call) and name in map(root_of, o.args) for o in others):
            raise UnsafeError(f"unsafe: it hands {name!r} to the solution, with {key!r}, which is what it expects")


def _methods(side: ast.expr, facts: Facts) -> set[str]:
    """Methods of the solution's classes that a side calls at once, such as `Solution.f` of `Solution().f(2)`."""
    links = (node for node in ast.walk(side) if isinstance(node, ast.Attribute))
    return {f"{root_of(node.value)}.{node.attr}" for node in links if root_of(node.value) in facts.classes}


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
