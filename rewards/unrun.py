"""A function of somebody's file, read and not run: enough to see what it is called with.

    def brevity(completion, *, limit=200): ...

A recipe is checked before anybody has decided to run it, and to import a file is to run it. A plain function's
parameters stand in its source. So the function alone is compiled, nothing is executed, and what comes back is never to
be called. Whatever is not plain (a class, a decorator other than `reward`, a default that has to be computed, a name
that is bound twice) is not answered here, and the file is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def function(path: Path, wanted: str) -> tuple[str, Callable[..., Any]] | None:
    """A function at the top of a file, by its own name or the one that `@reward("name")` gives it.

    Returns:
        That name, and the function, which must not be called; `None` if the source does not tell.
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    functions = [node for node in tree.body if isinstance(node, _Function)]
    marked = [node for node in functions if _mark(node) == wanted]
    found = marked or [node for node in functions if node.name == wanted]
    if len(found) != 1 or list(_bound(tree)).count(found[0].name) != 1 or (_rebinds(tree) and not marked):
        return None
    node = found[0]
    if node.decorator_list and _mark(node) is None:
        return None
    name = _mark(node) or node.name
    made = _made(node, path)
    return None if made is None else (name, made)


def _mark(node: _Function) -> str | None:
    """The name that its only decorator gives a function, if that is `reward`."""
    if len(node.decorator_list) != 1 or not isinstance(call := node.decorator_list[0], ast.Call):
        return None
    if ast.unparse(call.func) not in ("reward", "rewards.reward", "registry.reward") or call.keywords:
        return None
    name = call.args[0] if len(call.args) == 1 else None
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def _bound(tree: ast.Module) -> Iterator[str]:
    """Every name that a file binds anywhere, as often as it does."""
    for node in ast.walk(tree):
        if isinstance(node, _Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _rebinds(tree: ast.Module) -> bool:
    """Whether names may come from what the source does not show."""
    hidden = ("globals", "setattr", "exec", "eval", "__getattr__")
    return any(
        (isinstance(node, ast.alias) and node.name == "*") or (isinstance(node, ast.Name) and node.id in hidden)
        for node in ast.walk(tree)
    )


def _made(node: _Function, path: Path) -> Callable[..., Any] | None:
    """The function, with its defaults; `None` where one of those is no plain value."""
    given = node.args
    try:
        defaults = tuple(ast.literal_eval(value) for value in given.defaults)
        names = zip(given.kwonlyargs, given.kw_defaults, strict=True)
        by_name = {argument.arg: ast.literal_eval(value) for argument, value in names if value is not None}
    except (ValueError, TypeError):
        return None
    node.decorator_list, given.defaults = [], [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [None if value is None else ast.Constant(None) for value in given.kw_defaults]
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if argument is not None:
            argument.annotation = None
    returns, node.returns = node.returns, None
    module = compile(ast.fix_missing_locations(ast.Module([node], [])), str(path), "exec", dont_inherit=True)
    code = next(item for item in module.co_consts if isinstance(item, CodeType) and item.co_name == node.name)
    made = FunctionType(code, {}, node.name, defaults or None)
    made.__kwdefaults__ = by_name or None
    made.__annotations__ = {} if returns is None else {"return": ast.unparse(returns)}
    made.__doc__ = ast.get_docstring(node, clean=False)
    return made
