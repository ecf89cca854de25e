"""The next stage's process, started before its turn: it loads libraries and waits, and is warm when its input appears.

Python, torch, transformers, TRL and vLLM take ten to thirty seconds to load, in which GPUs idle. One process at a time
is started early, for the stage that follows those that run, with the GPUs that it will have in its environment. It
touches none of them, makes no folder of the stage's, and ends with the runner. If its turn comes otherwise than was
expected, it is ended, and the stage starts as every other.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.gpus import Gpu
from pipeline.placement import Placed
from pipeline.runner.graph import Node
from rewards.parent import end_group

log = logging.getLogger(__name__)

FOLDER = ".early"
"""In the run's folder: job, log and sign of a process that was started early."""
PROCESS_BYTES = 2 * 2**30
"""Memory that a process with all libraries takes at most."""
SHARE = 0.25
"""Of the memory that is available, what processes that wait may take."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A process that waits for its turn.

    Attributes:
        stage, fingerprint: whose.
        gpus: names of the GPUs in its environment.
        popen: the process; with a launcher, its ranks belong to it.
        go: the file whose appearance is its sign.
    """

    stage: str
    fingerprint: str
    gpus: tuple[str, ...]
    popen: subprocess.Popen[bytes]
    go: Path


Start = Callable[[Node, Sequence[Gpu], Placed | None, Path], Waiting]
"""Starts a process that waits, given its stage, its GPUs, who sees which, and a folder of its own."""


class Early:
    """At most one process that waits.

    Args:
        run: the run's folder.
        start: starts one.
        wanted: whether any are.
    """

    def __init__(self, run: Path, start: Start, wanted: bool) -> None:
        self.folder, self.start, self.wanted = run / FOLDER, start, wanted
        self.waiting: Waiting | None = None
        self._tried: set[str] = set()

    def consider(self, node: Node, which: Sequence[Gpu], placed: Placed | None) -> None:
        """Start the process of a stage, unless it was tried before, another waits, or memory is short."""
        ranks = 1 if placed is None else placed.ranks or (len(placed.own) if node.config.launch.accelerate else 1)
        enough = max(1, ranks) * PROCESS_BYTES <= SHARE * available_bytes()
        if not self.wanted or self.waiting is not None or node.name in self._tried or not enough:
            return
        self._tried.add(node.name)
        folder = self.folder / node.name
        shutil.rmtree(folder, ignore_errors=True)  # of a runner that was killed
        folder.mkdir(parents=True)
        self.waiting = self.start(node, which, placed, folder)

    def take(self, node: Node, gpus: Sequence[str]) -> subprocess.Popen[bytes] | None:
        """The process of a stage whose turn has come, told to go on; `None` if none waits that would do."""
        waiting = self.waiting
        if waiting is None or waiting.stage != node.name:
            return None
        if waiting.fingerprint != node.fingerprint or waiting.gpus != tuple(gpus) or waiting.popen.poll() is not None:
            self._end()
            return None
        self.waiting = None
        waiting.go.touch()
        return waiting.popen

    def close(self) -> None:
        """End the process that waits, if one does, and leave nothing behind."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self) -> None:
        if self.waiting is not None:
            end_group(self.waiting.popen.pid)
            self.waiting.popen.wait()
            self.waiting = None


def available_bytes() -> int:
    """Memory that is available on this host, as the kernel estimates it; 0 where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    said: Mapping[str, str] = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(said.get("MemAvailable", "0 kB").split()[0]) * 1024
