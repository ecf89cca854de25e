"""What happens during a run, in the order in which a person expects it: a stage is finished before the next one starts.

The files of a stage that has ended are hashed before they are published. Meanwhile the next stage's process is started,
loads its libraries, and waits for them. So that it is not shown as started while the stage before it seems to
train still, its start is told once that one is published::

    base: finished in 12.0 s
    zero: started

A stage that needs nothing of it may be at work before then. In that case the stage that has ended is said to be
published:

    base: done; its files are hashed and published
    other: started
    other: 1/20
    base: finished in 12.0 s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.runner.graph import Node, State, Step
from pipeline.runner.observer import NOTE, PUBLISHING, Failure, Observer

DONE = "done; its files are hashed and published"


class InOrder:
    """Passes on what an observer is told, and holds the starts of stages back while others are published.

    Args:
        to: the observer.
    """

    def __init__(self, to: Observer) -> None:
        self.to = to
        self.publishing: dict[str, Node] = {}
        self.held: dict[str, list[Callable[[], None]]] = {}

    def planned(self, steps: Sequence[Step]) -> None:
        """Pass it on."""
        self.to.planned(steps)

    def started(self, node: Node, state: State) -> None:
        """Tell it, once what has ended is published."""
        self.held[node.name] = [lambda: self.to.started(node, state)]
        if not self.publishing:
            self._release()

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        """Tell it; of a stage whose start is held back, that first."""
        if PUBLISHING in event:
            self._release_one(node)
            self.publishing[node.name] = node
        elif NOTE in event and node.name in self.held:
            self.held[node.name].append(lambda: self.to.event(node, event))
        else:
            self._release_one(node)
            self.to.event(node, event)

    def said(self, text: str) -> None:
        """Pass it on."""
        self.to.said(text)

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Tell it, and then which stages have started meanwhile."""
        self.publishing.pop(node.name, None)
        self.to.finished(node, artifact)
        if not self.publishing:
            self._release()

    def restarted(self, node: Node, message: Failure) -> None:
        """Tell it; that it had started at all, first."""
        self._release_one(node)
        self.to.restarted(node, message)

    def failed(self, node: Node, message: str) -> None:
        """Tell it; that it had started at all, first."""
        self._release_one(node)
        self.to.failed(node, message)

    def _release(self) -> None:
        for name in list(self.held):
            for tell in self.held.pop(name):
                tell()

    def _release_one(self, node: Node) -> None:
        """Tell the start of a stage that is at work, or over, while others are published still."""
        if node.name in self.held:
            for ended in self.publishing.values():
                self.to.event(ended, {"step": 0, NOTE: DONE})
            for tell in self.held.pop(node.name):
                tell()
