"""Taking assert statements apart, so that what they expect never meets the code they test.

    assert f([3, 1]) == [1, 3]          ->  call `f([3, 1])`,  expected [1, 3]
    assert math.isclose(f(2), 1.41)     ->  call `f(2)`,       predicate `math.isclose(_0, 1.41)`
    assert set(f(x)) == {1, 2}          ->  call `f(x)`,       predicate `set(_0) == {1, 2}`

Calls are evaluated where the solution lives. Expected literals are compared outside, predicates evaluated in a
sandbox of their own that knows values only. Tests with statements, loops or comprehensions stay whole: they become a
suite that runs in one process and questions the solution in another.
"""

from __future__ import annotations

import ast
import builtins
import sys
from dataclasses import dataclass
from typing import Any

PURE = frozenset(name for name in dir(builtins) if not name.startswith("_")) - {"eval", "exec", "open", "input"}
"""Built-in names: a call of one of these is part of the test, not of the solution."""

_SCOPED = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr, ast.Await)


@dataclass(frozen=True, slots=True)
class Split:
    """One assert statement, taken apart.

    Attributes:
        calls: source of the parts that the solution must evaluate.
        predicate: source of the rest, over `_0`, `_1`, … for the values of the calls; `None` if it is `_0 == literal`.
        expected: that literal.
        imports: modules of the standard library that the predicate names.
    """

    calls: tuple[str, ...]
    predicate: str | None = None
    expected: Any = None
    imports: tuple[str, ...] = ()


def split(source: str) -> Split | None:
    """Take one assert statement apart; `None` if it cannot be.

    Raises:
        SyntaxError: it is no Python.
    """
    body = ast.parse(source.strip()).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        return None
    if any(isinstance(node, _SCOPED) for node in ast.walk(body[0].test)):
        return None
    splitter = _Splitter(frozenset())
    test = splitter.visit(body[0].test)
    if not splitter.calls:  # the solution's function has the name of a built-in, such as `sum`
        body = ast.parse(source.strip()).body
        assert isinstance(body[0], ast.Assert)
        splitter = _Splitter(called_names(body[0].test))
        test = splitter.visit(body[0].test)
    if not splitter.calls:
        return None
    calls, imports = tuple(splitter.calls), tuple(sorted(splitter.imports))
    if isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]:
        left, right = test.left, test.comparators[0]
        if isinstance(left, ast.Name) and left.id == "_0" and len(calls) == 1:
            try:
                return Split(calls, expected=ast.literal_eval(right))
            except (ValueError, TypeError):
                pass
    return Split(calls, ast.unparse(test), imports=imports)


def called_names(node: ast.AST) -> frozenset[str]:
    """Names that are called as functions anywhere below a node."""
    calls = (child.func for child in ast.walk(node) if isinstance(child, ast.Call))
    return frozenset(func.id for func in calls if isinstance(func, ast.Name))


def free_names(source: str) -> tuple[list[str], list[str]]:
    """Names that code uses but does not define: those of the solution, and modules of the standard library.

    Raises:
        SyntaxError: it is no Python.
    """
    nodes = list(ast.walk(ast.parse(source)))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler) and n.name}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    bound |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    free = used - bound - set(dir(builtins))
    modules = free & sys.stdlib_module_names
    return sorted(free - modules), sorted(modules)


class _Splitter(ast.NodeTransformer):
    """Replaces what only the solution can evaluate by placeholders."""

    def __init__(self, own: frozenset[str]) -> None:
        self.own, self.calls, self.imports = own, list[str](), set[str]()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        root: ast.expr = node
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and not self._is_pure(root.id):
            return self._ship(node)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not self._is_pure(node.id):
            return self._ship(node)
        if node.id in sys.stdlib_module_names:
            self.imports.add(node.id)
        return node

    def _is_pure(self, name: str) -> bool:
        return name not in self.own and (name in PURE or name in sys.stdlib_module_names)

    def _ship(self, node: ast.expr) -> ast.Name:
        self.calls.append(ast.unparse(node))
        return ast.Name(f"_{len(self.calls) - 1}", ast.Load())
