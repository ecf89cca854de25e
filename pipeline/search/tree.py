"""A tree of beginnings of one answer: selection by PUCT, growth, and backing up, as plain numbers.

A node is what was written so far, and an action is the next step. AlphaZero's rule (Silver et al., arXiv 1712.01815)
descends to the child with the largest

    mean(child) + exploration * prior(child) * sqrt(visits(parent)) / (1 + visits(child))

Actions cannot be listed, since a step is any text: a node gets the distinct ones among `width` steps that the policy
samples, and their priors are how often each came. This is the limit on each node's growth that R1's authors set against
the size of the space of tokens (arXiv 2501.12948, section 4.2). Each new node is valued at once by the value model, and
its value counts as one visit for itself and for all that lie above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple


class Grown(NamedTuple):
    """A step that was sampled: the whole answer up to its end, tokens sampled for it, whether it ends the answer."""

    ids: tuple[int, ...]
    tokens: int
    ended: bool


@dataclass(eq=False)
class Node:
    """A beginning of an answer.

    Attributes:
        ids: its token ids.
        prior: share of the samples that were this step.
        parent: what it goes on from.
        at: tokens that had been sampled for the whole tree when it was there.
        ended: whether it is a whole answer.
        value: what the value model says of it.
        visits: nodes of its subtree, itself included.
        total: the sum of their values.
        children: what goes on from it.
    """

    ids: tuple[int, ...]
    prior: float = 1.0
    parent: Node | None = None
    at: int = 0
    ended: bool = False
    value: float = 0.0
    visits: int = 0
    total: float = 0.0
    children: list[Node] = field(default_factory=list)
    closed: bool = False
    """Whether nothing can grow in it: it is a whole answer, or all of its children are closed."""

    @property
    def mean(self) -> float:
        """The mean value of its subtree."""
        return self.total / self.visits if self.visits else 0.0

    def score(self, exploration: float) -> float:
        """PUCT; see the top of this module."""
        assert self.parent is not None
        return self.mean + exploration * self.prior * sqrt(self.parent.visits) / (1 + self.visits)


@dataclass(eq=False)
class Tree:
    """The search for the answer to one problem.

    Attributes:
        exploration: weight of the priors in selection.
        root: the empty answer.
        spent: tokens sampled so far.
    """

    exploration: float
    root: Node = field(default_factory=lambda: Node(()))
    spent: int = 0

    def select(self) -> Node:
        """The leaf that grows next.

        Raises:
            ValueError: nothing can grow any more.
        """
        if self.root.closed:
            raise ValueError("the tree is closed: every node that was found is a whole answer")
        node = self.root
        while node.children:
            node = max(
                (child for child in node.children if not child.closed), key=lambda child: child.score(self.exploration)
            )
        return node

    def grow(self, leaf: Node, sampled: Sequence[Grown]) -> list[Node]:
        """Give a leaf the distinct steps among those that were sampled; the new nodes have no value yet."""
        new: dict[tuple[int, ...], Node] = {}
        for step in sampled:
            self.spent += step.tokens
            node = new.setdefault(step.ids, Node(step.ids, 0.0, leaf, self.spent, step.ended, closed=step.ended))
            node.prior += 1 / len(sampled)
        leaf.children = list(new.values())
        return leaf.children

    def back_up(self, node: Node, value: float) -> None:
        """Take a new node's value: one visit for it and for all above it, which may be closed by it."""
        node.value = value
        above: Node | None = node
        while above is not None:
            above.visits += 1
            above.total += value
            if above.children:
                above.closed = all(child.closed for child in above.children)
            above = above.parent

    def answers(self) -> Iterator[Node]:
        """The whole answers that were found."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += reversed(node.children)
            if node.ended:
                yield node
