"""The nodes of an expression's tree."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """One operation: `op`, what it works on, and for leaves and functions a name or a value."""

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction | None = None

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for arg in self.args:
            yield from arg.walk()


def number(value: Fraction | int) -> Node:
    """A constant."""
    return Node("number", value=value if isinstance(value, Fraction) else Fraction(value))
