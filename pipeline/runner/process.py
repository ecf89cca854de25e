"""A stage's process as the runner sees it: what it logs, whether it still does anything, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.attempt import Attempt
from pipeline.runner import ranks
from pipeline.runner.forkserver import Forked
from pipeline.runner.graph import Node
from pipeline.runner.observer import Failure
from pipeline.runner.worker import DISK_FULL, OUTCOME
from pipeline.schema import environment
from pipeline.schema.pieces import STALL_SECONDS, StageConfig, TrainingConfig
from rewards.parent import end_group, ending

EVENTS, LOG = "events.jsonl", "log.txt"
"""Files in a stage's scratch folder: its progress, a JSON object a line, and whatever it prints."""
LOGS = "log*.txt"
"""The log, and on a cluster those of a stage's further hosts, `log-1.txt` and so on."""
LOG_TAIL_LINES = 25
RANK_POLL_SECONDS = 1.0
LEFT = "ended its own process in the midst of its work, as os._exit(0) does"
OUT_OF_MEMORY = " (out of memory?)"
_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def allocator(config: StageConfig, env: Mapping[str, str]) -> dict[str, str]:
    """How torch takes memory of a GPU in a stage that trains, if the environment does not say so.

    Passes differ in length, and blocks that cannot grow fragment: 52 GB instead of 42 for the GRPO step of
    `benchmarks.grpo`. vLLM refuses growing blocks where an engine sleeps between steps.
    """
    sleeps = isinstance(config, TrainingConfig) and config.trainer.get("vllm_enable_sleep_mode")
    if not isinstance(config, TrainingConfig) or sleeps or any(name in env for name in _ALLOCATOR):
        return {}
    return {_ALLOCATOR[0]: "expandable_segments:True"}


@dataclass(slots=True)
class StageProcess:
    """A stage's process, which leads a process group of its own; on a cluster, those on all of its hosts.

    Attributes:
        node: the stage.
        scratch: its scratch folder.
        popen: the process.
        started: when, in seconds since the epoch.
        attempt: 1 for the first process of the stage.
        read: bytes of its events that are known.
        secrets: values of environment variables that must stand in no log -> names; see `schema.environment.secrets`.
        gpus: names of the GPUs that it has.
    """

    node: Node
    scratch: Path
    popen: subprocess.Popen[bytes] | Forked | Attempt
    started: float
    attempt: int
    read: int = 0
    secrets: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    partial: bytes = field(default=b"")
    written: int = field(default=0)
    heard: float = field(default_factory=time.monotonic)
    hung: str = field(default="")
    moves: Mapping[int, int] = field(default_factory=dict)
    moved: float = field(default_factory=time.monotonic)
    looked: float = field(default=0.0)

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
        """The exit code if it has ended; one that hangs, or whose ranks wait for each other, is killed first."""
        code = self.popen.poll()
        if code is not None:
            return code
        self.hung = self._hung() or self._stalled()
        if not self.hung:
            return None
        self.signal(signal.SIGKILL)
        return self.popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to whatever it has started."""
        if isinstance(self.popen, Attempt):
            self.popen.signal(number)
        else:
            end_group(self.popen.pid, number)

    def scrub(self) -> None:
        """Take values of environment variables out of what it has logged, after it has ended."""
        said = (self.scratch / name for name in (EVENTS, OUTCOME))
        for path in (*said, *self.scratch.glob(LOGS), *ranks.files(self.scratch)):
            environment.scrub(path, self.secrets)

    def failure(self, code: int) -> Failure:
        """How it ended without a result, with the end of its log, or with the error of the rank that failed first."""
        name = self.node.name
        if code == DISK_FULL:
            how = f"ended because the disk of {self.scratch} is full"
            return Failure(name, how, ": free some space, and run again; it goes on from its last checkpoint")
        log, first = self.scratch / LOG, ranks.failure(self.scratch)
        if isinstance(self.popen, Attempt):
            log = self.popen.log
            if self.popen.lost:
                return Failure(name, self.popen.lost)
        if first is not None and first.told and self.node.config.launch.accelerate is None and not self.hung:
            return Failure(name, ending(code), f"; the end of {log}:\n{_tail(first.told)}")
        if gone := self._gone(code, first):
            return Failure(name, f"failed: {_listed(gone)} {LEFT}", _more(log, first, "the error of another"))
        if first is not None and first.error and not self.hung:
            *_, last = first.error.strip().splitlines()
            return Failure(name, f"failed on rank {first.rank} ({last})", _more(log, first))
        how = f"ended without a result: it {LEFT}" if code == 0 else ending(code)
        how += OUT_OF_MEMORY if code == -signal.SIGKILL else ""
        if first is not None:
            ended = f"was killed by {first.signal}" if first.signal else "ended without a word"
            how = f"failed: rank {first.rank} {ended}"
            how += OUT_OF_MEMORY if first.signal == signal.SIGKILL.name else ""
        return Failure(name, self.hung or how, _more(log))

    def _gone(self, code: int, first: ranks.Failure | None) -> list[int]:
        """Ranks that left in the midst of the work: the error of another, which lost them, is only what followed."""
        if self.hung or (first is not None and first.killed):
            return []
        return ranks.left(self.scratch) if code == 0 else list(first.left if first is not None else ())

    def _hung(self) -> str:
        """In words, if it has neither logged an event nor printed anything for as long as its `launch` allows."""
        allowed = self.node.config.launch.silence
        if allowed is None:
            return ""
        paths = (self.scratch / EVENTS, *self.scratch.glob(LOGS))
        written = sum(path.stat().st_size for path in paths if path.exists())
        if written != self.written:
            self.written, self.heard = written, time.monotonic()
        if time.monotonic() - self.heard < allowed:
            return ""
        return f"was killed after {allowed:g} s without a sign of life{self._stands()}"

    def _stalled(self) -> str:
        """In words, if it has several ranks and none of them has moved for as long as its config allows."""
        if self.node.config.launch.accelerate is None or time.monotonic() < self.looked + RANK_POLL_SECONDS:
            return ""
        self.looked = time.monotonic()
        moves = {rank: count for rank, (count, _) in ranks.stands(self.scratch).items()}
        if moves != self.moves:
            self.moves, self.moved = moves, time.monotonic()
        allowed = self.node.config.stall if moves else max(self.node.config.stall, STALL_SECONDS)  # not yet started
        if time.monotonic() - self.moved < allowed:
            return ""
        return f"was killed: its processes wait for each other, and none has moved for {allowed:g} s{self._stands()}"

    def _stands(self) -> str:
        gone = ranks.left(self.scratch)
        return "".join(
            f"; rank {rank} {f'{LEFT}, last seen' if rank in gone else 'stands'} at {where}"
            for rank, (_, where) in ranks.stands(self.scratch).items()
        )


def _listed(numbers: Sequence[int]) -> str:
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _more(log: Path, failure: ranks.Failure | None = None, whose: str = "its error") -> str:
    """The end of the log, or of the error that a rank has reported."""
    if failure is not None and failure.error:
        return f"; the end of {whose}, which is all in {log}:\n{_tail(failure.error)}"
    return f"; the end of {log}:\n{_tail(log.read_text(encoding='utf-8', errors='replace') if log.exists() else '')}"


def _tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines()[-LOG_TAIL_LINES:])
