"""A stage's process as the runner sees it: what it logs, whether it still does anything, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.graph import Node
from pipeline.worker import DISK_FULL

EVENTS, LOG = "events.jsonl", "log.txt"
"""Files in a stage's scratch folder: its progress, a JSON object a line, and whatever it prints."""
LOG_TAIL_LINES = 25


@dataclass(slots=True)
class StageProcess:
    """A stage's process, which leads a process group of its own.

    Attributes:
        node: the stage.
        scratch: its scratch folder.
        popen: the process.
        started: when, in seconds since the epoch.
        attempt: 1 for the first process of the stage.
        read: bytes of its events that are known.
    """

    node: Node
    scratch: Path
    popen: subprocess.Popen[bytes]
    started: float
    attempt: int
    read: int = 0
    partial: bytes = field(default=b"")
    written: int = field(default=0)
    heard: float = field(default_factory=time.monotonic)
    hung: bool = field(default=False)

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Lines that the stage has logged since the last call; a line still being written waits."""
        try:
            with (self.scratch / EVENTS).open("rb") as source:
                if source.seek(0, os.SEEK_END) < self.read:  # a damaged one became what it was at a checkpoint
                    self.read, self.partial = source.tell(), b""
                source.seek(self.read)
                data = source.read()
        except FileNotFoundError:
            return
        self.read += len(data)
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def ended(self) -> int | None:
        """The exit code if it has ended; one that was silent for as long as its `launch` allows is killed first."""
        code, allowed = self.popen.poll(), self.node.config.launch.silence
        if code is not None or allowed is None or self._silence() < allowed:
            return code
        self.hung = True
        self.signal(signal.SIGKILL)
        return self.popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def failure(self, code: int) -> str:
        """How it ended without a result, with the end of its log."""
        if code == DISK_FULL:
            return (
                f"stage {self.node.name!r} ended because the disk of {self.scratch} is full: free some space, and run"
                " again; it goes on from its last checkpoint"
            )
        log = self.scratch / LOG
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        if self.hung:
            how, hint = f"was killed after {self.node.config.launch.silence:g} s without a sign of life", ""
        lines = "\n".join(f"  | {line}" for line in tail)
        return f"stage {self.node.name!r} {how}{hint}; the end of {log}:\n{lines}"

    def _silence(self) -> float:
        """Seconds since it last logged an event or printed anything."""
        paths = (self.scratch / EVENTS, self.scratch / LOG)
        written = sum(path.stat().st_size for path in paths if path.exists())
        if written != self.written:
            self.written, self.heard = written, time.monotonic()
        return time.monotonic() - self.heard
