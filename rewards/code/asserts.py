"""Taking assert statements apart, so that what they expect never meets the code they test.

    assert f([3, 1]) == [1, 3]          ->  call `f([3, 1])`,  expected [1, 3]
    assert math.isclose(f(2), 1.41)     ->  call `f(2)`,       predicate `math.isclose(_0, 1.41)`
    assert set(f(x)) == {1, 2}          ->  call `f(x)`,       predicate `set(_0) == {1, 2}`

Only calls of the solution's own functions, with arguments that need nothing else, are evaluated where it lives.
Expected literals are compared outside, predicates evaluated in a sandbox of their own that knows values only. Tests
with statements, loops or comprehensions, or with a set-up, stay whole (`rewards.code.suite`).
"""

from __future__ import annotations

import ast
import builtins
import sys
from dataclasses import dataclass
from typing import Any

from rewards.sandbox.inside.values import PLAIN_NAMES

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
        function: name of the function, if all there is to it is one call with literals.
    """

    calls: tuple[str, ...]
    predicate: str | None = None
    expected: Any = None
    imports: tuple[str, ...] = ()
    function: str = ""


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
    if (
        not splitter.calls and not splitter.needs_more
    ):  # the solution's function has the name of a built-in, such as `sum`
        body = ast.parse(source.strip()).body
        assert isinstance(body[0], ast.Assert)
        splitter = _Splitter(called_names(body[0].test))
        test = splitter.visit(body[0].test)
    if not splitter.calls or splitter.needs_more or _looks_into(test):
        return None
    calls, imports = tuple(splitter.calls), tuple(sorted(splitter.imports))
    if isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]:
        left, right = test.left, test.comparators[0]
        if isinstance(left, ast.Name) and left.id == "_0" and len(calls) == 1:
            try:
                return Split(calls, expected=ast.literal_eval(right), function=_plain_call(calls[0]))
            except (ValueError, TypeError):
                pass
    if splitter.makes_objects:  # what is done with one is up to the solution
        return None
    return Split(calls, ast.unparse(test), imports=imports)


def _plain_call(source: str) -> str:
    call = ast.parse(source, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return ""
    names = sum(isinstance(node, ast.Name) for node in ast.walk(call))
    return call.func.id if names == 1 else ""


def called_names(node: ast.AST) -> frozenset[str]:
    """Names that are called as functions anywhere below a node."""
    calls = (child.func for child in ast.walk(node) if isinstance(child, ast.Call))
    return frozenset(func.id for func in calls if isinstance(func, ast.Name))


class _Splitter(ast.NodeTransformer):
    """Replaces what only the solution can evaluate by placeholders.

    Attributes:
        calls: source of what was replaced.
        imports: modules that the rest names.
        needs_more: whether something has to be evaluated before the solution can be asked.
        makes_objects: whether one of the calls may be that of a class.
    """

    def __init__(self, own: frozenset[str]) -> None:
        self.own, self.calls, self.imports, self.needs_more = own, list[str](), set[str](), False
        self.makes_objects = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        root: ast.expr = node
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and not self._is_pure(root.id) and self._is_solutions(node):
            return self._ship(node)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [
            self._ship(side) if isinstance(side, ast.Name) and not self._is_pure(side.id) else self.visit(side)
            for side in (node.left, *node.comparators)
        ]
        return ast.Compare(sides[0], node.ops, sides[1:])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        self.needs_more |= not self._is_pure(node.id)  # such as a function that is handed on
        if node.id in sys.stdlib_module_names:
            self.imports.add(node.id)
        return node

    def _is_solutions(self, node: ast.expr) -> bool:
        """Whether a chain of calls is up to the solution: no link of it is a method that plain values have too.

        `f(1).strip()` is not, `Stack().pop()` is, as the first call is that of a class.
        """
        if isinstance(node, ast.Call):
            return self._is_solutions(node.func)
        if not isinstance(node, ast.Attribute):
            return True
        made = node.value
        of_class = isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id[:1].isupper()
        own = node.attr not in PLAIN_NAMES or (of_class and not _is_of_text(node.attr))
        return own and self._is_solutions(made)

    def _is_pure(self, name: str) -> bool:
        return name not in self.own and (name in PURE or name in sys.stdlib_module_names)

    def _ship(self, node: ast.expr) -> ast.Name:
        inside = [child for child in ast.walk(node) if isinstance(child, ast.Name)]
        self.needs_more |= any(self._is_pure(name.id) and name.id in sys.stdlib_module_names for name in inside)
        self.makes_objects |= isinstance(node, ast.Call) and getattr(node.func, "id", "")[:1].isupper()
        self.calls.append(ast.unparse(node))
        return ast.Name(f"_{len(self.calls) - 1}", ast.Load())


def _is_of_text(name: str) -> bool:
    """Whether text has such a method: on what `Extract("…")` returned, it belongs to the test."""
    return hasattr(str, name)


def _looks_into(test: ast.AST) -> bool:
    """Whether a predicate uses attributes that no plain value has: the solution has to be asked for them."""
    for node in ast.walk(test):
        if isinstance(node, ast.Attribute) and node.attr not in PLAIN_NAMES:
            root: ast.expr = node
            while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                root = root.func if isinstance(root, ast.Call) else root.value
            if not (isinstance(root, ast.Name) and root.id in sys.stdlib_module_names):
                return True
    return False
