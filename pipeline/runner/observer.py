"""Who wants to know what happens during a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.artifacts import Artifact
from pipeline.runner.graph import Node, State, Step

NOTE = "note"
"""Key of an event that says something instead of reporting numbers."""
PUBLISHING = "publishing"
"""Key of the event that tells that a stage has ended well: its files are hashed, and then it is finished."""


class Failure(str):
    """How a stage's process ended without a result: the whole message, with the end of its log, as text.

    Attributes:
        how: what happened, in words that go on after the stage's name, without the log.
        last: the last line of the log, where an error says what it is; empty if there is none.

    Args:
        stage: the stage's name.
        how: see above.
        more: what follows: where the log is, and its end.
    """

    how: str
    last: str

    def __new__(cls, stage: str, how: str, more: str = "") -> Failure:
        """The message."""
        made = super().__new__(cls, f"stage {stage!r} {how}{more}")
        made.how = how
        made.last = next((line.strip() for line in reversed(more.splitlines()[1:]) if line.strip()), "")
        return made

    @property
    def again(self) -> str:
        """What is told where the stage is started again."""
        why = f". The end of its log: {self.last}" if self.last and self.last not in self.how else ""
        return f"{self.how}; it goes on from its last checkpoint{why}"


class Observer(Protocol):
    """Told what happens during a run, for people or machines."""

    def planned(self, steps: Sequence[Step]) -> None:
        """Before anything runs."""

    def started(self, node: Node, state: State) -> None:
        """A stage's process was started; it may wait for what it needs, while that is published."""

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        """A stage logged progress or metrics, or has ended (`PUBLISHING`)."""

    def said(self, text: str) -> None:
        """Something happened that is no stage's, such as a tracker that cannot be reached."""

    def finished(self, node: Node, artifact: Artifact) -> None:
        """A stage was published."""

    def restarted(self, node: Node, message: Failure) -> None:
        """A stage failed, and goes on from its last checkpoint in a new process."""

    def failed(self, node: Node, message: str) -> None:
        """A stage failed."""
