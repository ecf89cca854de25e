"""Literals in test suites: taken as one node each, since tables of cases are large and nothing in them is a name."""

from __future__ import annotations

import ast
from typing import Any


def folded(tree: ast.Module) -> ast.Module:
    """A module in which every container that holds constants only is a constant itself; `ast.unparse` is as before."""
    module = _Folder().visit(tree)
    assert isinstance(module, ast.Module)
    return module


class _Source:
    """A value that is written as the text it was read from."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Folder(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict) and _is_plain(node):
            return ast.Constant(_Source(f"({ast.unparse(node)})"))  # type: ignore[arg-type]  # it only has to print
        return self.generic_visit(node)


def _is_plain(node: ast.AST | None) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp():
            return isinstance(node.operand, ast.Constant) and isinstance(node.op, ast.USub | ast.UAdd)
        case ast.List() | ast.Tuple() if isinstance(node.ctx, ast.Load):
            return all(map(_is_plain, node.elts))
        case ast.Set():
            return all(map(_is_plain, node.elts))
        case ast.Dict():
            return all(map(_is_plain, node.keys)) and all(map(_is_plain, node.values))
    return False
