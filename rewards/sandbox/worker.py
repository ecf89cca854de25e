"""The host's end of one zygote: hand it a job, wait, read what the job left."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rewards.parent import kill_group
from rewards.sandbox.bubblewrap import SandboxError, Started, start
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.inside.watch import PATIENCE

log = logging.getLogger(__name__)

START_S = 30.0
"""Seconds for bubblewrap and the interpreter to start; a tenth of a second on an idle machine."""
GRACE_S = 5.0
"""Seconds that a zygote may be late with the end of a job whose time is up, on a machine that is busy."""


class Ending(StrEnum):
    """How a job ended."""

    EXITED = "exited"
    """By itself, well or badly: see the exit code."""
    WALL = "wall"
    """Its time was up."""
    MEMORY = "memory"
    """Its processes together held more memory than they may."""
    LETHAL = "lethal"
    """It took two sandboxes down that were sound otherwise."""
    BROKEN = "broken"
    """The sandbox failed, through no fault of the job."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job left behind. Everything but `ending` and `ms` may be forged by the job.

    Attributes:
        ending: how it ended.
        code: exit code; negative for the signal that killed it.
        stdout: what it printed, up to the limit on output.
        records: the results it reported, in order; `None` if there is anything else in its result channel.
        ms: wall time in milliseconds.
        detail: what went wrong, for people.
    """

    ending: Ending
    code: int = 0
    stdout: bytes = b""
    records: list[dict[str, Any]] | None = field(default_factory=list)
    ms: float = 0.0
    detail: str = ""


class WorkerDiedError(RuntimeError):
    """The zygote ended, or hung, while it had a job."""


class Worker:
    """One zygote, started when first needed; not for two threads at a time.

    Args:
        limits: what a job may use.
        nested: fresh namespaces for every job; otherwise a new bubblewrap for every job.
        guarded: `False` runs jobs without any protection.
    """

    def __init__(self, limits: Limits, nested: bool = True, guarded: bool = True) -> None:
        self.limits, self.nested, self.guarded = limits, nested, guarded
        self._started: Started | None = None

    def run(self, payloads: Sequence[bytes]) -> tuple[dict[str, Any], bytes, list[bytes]]:
        """Run a job: one payload, or a test suite's and its solution's.

        Returns:
            How it ended, as the zygote says; what the first member printed; each member's result channel.

        Raises:
            WorkerDiedError: no end was heard of. The next call starts a new zygote.
            SandboxError: no zygote can be started.
        """
        started = self._started = self._started or self._start()
        files = [_file(name) for _ in payloads for name in ("payload", "output", "results")]
        try:
            for results in files[2::3]:
                fcntl.fcntl(results, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # what a job was seen to do, stays
            for payload, file in zip(payloads, files[::3], strict=True):
                with os.fdopen(os.dup(file), "wb") as opened:
                    opened.write(payload)
                os.lseek(file, 0, os.SEEK_SET)
            end = self._exchange(started.control, files)
            size = self.limits.output_mb << 20
            return end, os.pread(files[1], size, 0), [os.pread(file, size, 0) for file in files[2::3]]
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """End the zygote and whatever runs in it."""
        if self._started is not None:
            _end(self._started)
            self._started = None

    def _exchange(self, control: socket.socket, files: list[int]) -> dict[str, Any]:
        """Hand over a job, wait for its end. Whatever else happens ends the zygote: no late answer may be read."""
        sound = False
        try:
            control.settimeout(self.limits.wall_s * (1 + PATIENCE) + GRACE_S)
            socket.send_fds(control, [b"run"], files)
            message = control.recv(4096)
            sound = bool(message) and self.nested
        except OSError as error:
            raise WorkerDiedError(str(error)) from error
        finally:
            if not sound:
                self.close()
        if not message:
            raise WorkerDiedError("the sandbox ended")
        end: dict[str, Any] = json.loads(message)
        return end

    def _start(self) -> Started:
        started = start(self.limits, self.nested, self.guarded)
        started.control.settimeout(START_S)
        try:
            if started.control.recv(64) == b"ready":
                return started
            reason = "it ended at once"
        except OSError as error:
            reason = str(error)
        raise SandboxError(f"the sandbox does not start: {_end(started) or reason}")


def _file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _end(started: Started) -> str:
    """Hang up: the zygote leaves, and its namespace with it. One that does not listen is killed.

    Returns:
        What it complained of.
    """
    started.control.close()
    try:
        started.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        kill_group(started.process.pid)
        started.process.wait()
    assert started.process.stderr is not None
    with started.process.stderr as complaints:
        os.set_blocking(complaints.fileno(), False)  # without protection, what a job left running may hold it open
        return (complaints.read() or b"").decode(errors="replace").strip()
