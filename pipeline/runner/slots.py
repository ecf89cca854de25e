"""The GPUs of a run's stages: taken when a stage starts, given back when its process has ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline import gpus
from pipeline.files.locks import named_holders
from pipeline.gpus import Gpu, Lease
from pipeline.placement import Placed, Wanted, placed, wanted
from pipeline.runner.graph import Node
from pipeline.runner.observer import NOTE, Observer

PATIENCE_SECONDS = 1.0
"""Wait for a GPU of which nothing is said: a stage that has just ended has it."""


class Slots:
    """Which stage has which GPUs. On a host without GPUs it gives none, and nobody waits.

    Args:
        nodes: the stages.
        base: the recipe's folder.
        observer: told where stages are, and what they wait for.

    Attributes:
        wanted: the GPUs that each stage wants; none where there are none, or none are exported.
    """

    def __init__(self, nodes: Mapping[str, Node], base: Path, observer: Observer) -> None:
        self.base, self.observer = base, observer
        self.there = gpus.visible(os.environ)
        asked = {name: wanted(node.config, base) for name, node in nodes.items()}
        named = gpus.of_driver()  # a stage may have a GPU by its name where none is exported
        self.wanted = {name: want for name, want in asked.items() if self.there or (named and want.names)}
        self._leases: dict[str, Lease] = {}
        self._waiting: dict[str, float] = {}

    def connected(self, stages: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        """This host's GPUs are always there; those of a cluster have to be reached."""
        return contextlib.nullcontext()

    def take(self, node: Node) -> bool:
        """Take the GPUs of a stage, unless it has them; whether it has them now."""
        want = self.wanted.get(node.name)
        if want is None or node.name in self._leases:
            return True
        number = want.number(self.there)
        lease = gpus.take(want.candidates(self.there), number)
        if lease is None:
            self._wait(node, want, number)
            return False
        self._waiting.pop(node.name, None)
        self._leases[node.name] = lease
        return True

    def of(self, node: Node) -> tuple[Lease | None, Placed | None]:
        """The GPUs of a stage, and which of its processes sees which; `None` for both on a host without."""
        lease = self._leases.get(node.name)
        return lease, None if lease is None else placed(node.config, self.base, lease.gpus)

    def foreseen(self, node: Node, leaving: Collection[str]) -> tuple[tuple[Gpu, ...], Placed | None] | None:
        """The GPUs that a stage will have when some of those that run have ended; `None` if that is not sure."""
        want = self.wanted.get(node.name)
        if want is None:
            return (), None
        kept = {gpu.key for stage, lease in self._leases.items() if stage not in leaving for gpu in lease.gpus}
        found = [gpu for gpu in want.candidates(self.there) if gpu.key not in kept][: want.number(self.there)]
        if len(found) < want.number(self.there):
            return None
        return tuple(found), placed(node.config, self.base, found)

    def tell(self, node: Node) -> None:
        """Say where a stage runs, where there is a choice."""
        lease = self._leases.get(node.name)
        if lease is not None and lease.gpus and len(self.there) > 1:
            self._say(node, f"on {_listed(lease.gpus)}")

    def release(self, stage: str) -> None:
        """Give the GPUs of a stage back: its process has ended, or it does not start."""
        if (lease := self._leases.pop(stage, None)) is not None:
            lease.release()

    def close(self) -> None:
        """Give all back."""
        for stage in list(self._leases):
            self.release(stage)

    def _wait(self, node: Node, want: Wanted, number: int) -> None:
        """Say what a stage waits for, once."""
        since = self._waiting.setdefault(node.name, time.monotonic())
        if time.monotonic() - since < PATIENCE_SECONDS:
            return
        self._waiting[node.name] = float("inf")
        mine = {gpu.key: stage for stage, lease in self._leases.items() for gpu in lease.gpus}
        holders = [f"stage {stage!r}" for stage in dict.fromkeys(mine.values())]
        others = [gpu for gpu in want.candidates(self.there) if gpu.key not in mine]
        holders += [name for gpu in others if (name := named_holders(gpus.lock_path(gpu)))]
        what = _listed(want.candidates(self.there)) if want.names else f"{number} GPU{'s' if number > 1 else ''}"
        self._say(node, f"waits for {what}; taken by {', '.join(dict.fromkeys(holders)) or 'nobody any more'}")

    def _say(self, node: Node, text: str) -> None:
        self.observer.event(node, {"step": 0, "total": None, NOTE: text})


def _listed(which: tuple[Gpu, ...]) -> str:
    return f"GPU{'s' if len(which) > 1 else ''} {', '.join(gpu.name for gpu in which)}"
