"""What a test suite uses of the solution that it tests: names, classes, variables that the solution may change."""

from __future__ import annotations

import ast
import builtins
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from rewards.sandbox.inside.values import PLAIN_NAMES

STANDARD = {
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"),
    **dict.fromkeys(("date", "datetime", "timedelta", "timezone"), "datetime"),
    "Decimal": "decimal",
    "Fraction": "fractions",
    "isclose": "math",
}
"""Names that suites use without importing them, as the solution surely does; and their modules."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Facts:
    """What a suite uses of the solution.

    Attributes:
        names: of functions and classes that it does not define.
        modules: of the standard library, used without an import.
        exceptions: names that it expects as exceptions and does not define.
        classes: names of the solution that it treats as classes.
        data: names of the solution that it only compares.
        standard: names of the standard library that it forgot to import.
        changed: variables that the solution may change in place, for the suite to look at.
        entry: what `check` is called with, if there is one.
        entry_names: names of the solution in it.
        candidates: what `check` calls it.
        flows: (names that get a value, names that it is made of).
        subject: all names that anything of the solution gets to.
    """

    def __init__(self, whole: ast.Module, entry: str) -> None:
        nodes = list(ast.walk(whole))
        checks = [node for node in whole.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        self.entry, self.candidates = entry, {check.args.args[0].arg for check in checks if entry and check.args.args}
        bound = bound_names(nodes)
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        free = used - bound
        caught = {name for node in nodes for name in _caught(node)} & free - set(dir(builtins))
        self.exceptions = caught - sys.stdlib_module_names
        self.modules = free & sys.stdlib_module_names - called
        self.names = free - set(dir(builtins)) - self.modules - self.exceptions - {"pytest"}
        self.entry_names = names_in(ast.parse(entry, mode="eval")) if entry else set[str]()
        self.names |= self.entry_names
        if not self.names:  # the solution's function has the name of a built-in, such as `sum`
            self.names = called - bound
        compared = Counter(getattr(s, "id", "") for n in nodes if isinstance(n, ast.Compare) for s in sides_of(n))
        loaded = Counter(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        self.data = {name for name in self.names if compared[name] == loaded[name]}
        uses = _Uses(nodes)
        self.classes = {name for name in self.names if uses.is_class(name, name[:1].isupper())}
        if any(uses.is_class(name, entry[:1].isupper()) for name in self.candidates):
            self.classes.add(entry)
        standard = self.names & set(STANDARD) - self.classes - self.entry_names
        self.standard = standard if self.names - standard else set[str]()
        self.names -= self.standard
        self.changed = self._changed(nodes)
        self.flows = [flow for node in nodes for flow in flows_of(node)] + _handed_on(nodes)
        self.subject = reached(self.names | self.candidates, self.flows)

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
            if (name := _container(side)) and any(_is_literal(s) for s in (node.left, *node.comparators))
        }
        return left | handed & looked_at

    def _is_ours(self, function: ast.expr) -> bool:
        """Whether a function is surely the suite's own, or built in."""
        root = function
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        name = getattr(root, "id", None)
        return name is None or (isinstance(function, ast.Name) and name in dir(builtins) and name not in self.names)


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
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
            case ast.ImportFrom():
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


class _Uses:
    """How a suite uses what its variables hold."""

    def __init__(self, nodes: list[ast.AST]) -> None:
        self._held = [
            (set(map(_place, _operands(target))) - {""}, set(map(_place, _operands(value))) - {""})
            for node in nodes
            for target, value in _bindings(node)
        ]
        self._as_objects, self._left, self._ordered = set[str](), set[str](), set[str]()
        for node in nodes:
            if isinstance(node, ast.Attribute) and (node.attr not in PLAIN_NAMES or not isinstance(node.ctx, ast.Load)):
                self._as_objects.add(_place(node.value))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                if isinstance(node.value.func, ast.Attribute):
                    self._left.add(_place(node.value.func.value))
            elif isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Eq):
                roots = {root_of(side) if isinstance(side, ast.Call) else "" for side in sides_of(node)}
                self._ordered |= roots if len(roots) == 1 else set()

    def is_class(self, name: str, is_capital: bool) -> bool:
        """Whether a suite uses what it calls by this name as an object with methods of its own.

        Attributes that no plain value has say so, and those that are assigned. Of names that begin as those of classes
        do (`is_capital`), so does a method whose result is of no interest, and an order of two objects.
        """
        holders = reached({name}, self._held)
        evidence = self._as_objects | self._left if is_capital else self._as_objects
        return bool(holders & evidence) or (is_capital and name in self._ordered)


def _bindings(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """(what gets a value, the value, or what it is an item of)."""
    match node:
        case ast.Assign():
            return [(target, node.value) for target in node.targets]
        case ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
            return [(node.target, node.value)]
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            return [(node.target, node.iter)]
        case ast.withitem() if node.optional_vars is not None:
            return [(node.optional_vars, node.context_expr)]
    return []


def _operands(node: ast.expr) -> list[ast.expr]:
    """What an expression is made of, such as `A(1)` and `A(2)` of `A(1) + A(2)` and of `[A(1), A(2)]`."""
    match node:
        case ast.BinOp():
            return [*_operands(node.left), *_operands(node.right)]
        case ast.Tuple() | ast.List():
            return [part for element in node.elts for part in _operands(element)]
    return [node]


def _place(node: ast.expr) -> str:
    """Where a value is kept, or which function gives it: `x` of `x`, `x[0]` and `x(1)`, `self.x` of `self.x`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return root_of(node)


def root_of(node: ast.expr) -> str:
    """The name that an expression of calls starts with: `f` of `f`, `f(1)`, but not of `f(1).x`."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.id if isinstance(node, ast.Name) else ""


def _container(node: ast.expr) -> str:
    """The name of what an expression takes items of: `x` of `x` and of `x[:2][0]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True


def sides_of(node: ast.AST) -> list[ast.expr]:
    """What a comparison compares."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Call) and str(getattr(node.func, "attr", "")).startswith("assert"):
        return node.args[:2]
    return []


def names_in(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def flows_of(node: ast.AST) -> list[tuple[set[str], set[str]]]:
    """(names that get a value, names that it is made of)."""
    match node:
        case ast.Assign():
            return [(set().union(*map(names_in, node.targets)) - {"self"}, names_in(node.value))]
        case ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
            return [(names_in(node.target), names_in(node.value))]
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            return [(names_in(node.target), names_in(node.iter))]
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [({node.name}, set().union(*map(names_in, node.body)))]
    return []


def _handed_on(nodes: list[ast.AST]) -> list[tuple[set[str], set[str]]]:
    """What arguments of the suite's own functions are made of at all calls, and what methods put into objects."""
    flows = []
    parameters = {n.name: [a.arg for a in n.args.args] for n in nodes if isinstance(n, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                flows.append(({node.func.value.id} - {"self"}, set().union(*map(names_in, values))))
            names = parameters.get(root_of(node), [])
            flows += [({name}, names_in(value)) for name, value in zip(names, node.args, strict=False)]
            flows += [({keyword.arg}, names_in(keyword.value)) for keyword in node.keywords if keyword.arg in names]
    return flows


def reached(names: set[str], flows: Sequence[tuple[set[str], set[str]]]) -> set[str]:
    """All names that flow from these, and these."""
    leads: dict[str, set[str]] = {}
    for targets, sources in flows:
        for source in sources:
            leads.setdefault(source, set()).update(targets)
    found, todo = set(names), [*names]
    while todo:
        more = leads.get(todo.pop(), set()) - found
        found |= more
        todo += more
    return found
