"""The parent's side of `rewards.pool`: handles on the server and its workers, and the CPU clock of a worker."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rewards.pool_server import FORK, HEADER, KILL, PID, receive
from rewards.verdict import Status

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from rewards.pool_server import serve; serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
)
_START_LIMIT_S = 120.0
"""The server's imports may be slow on a cold file system; longer than this means that it is broken."""
_MESSAGE_LIMIT = 2**24
"""Bytes of the largest reply that is read; more is taken for a worker gone mad."""
_SCHEDULER_CLOCK = 2
"""Linux numbers the CPU clock of process p as (~p << 3) | 2; see clock_getcpuclockid(3)."""


class Fate(StrEnum):
    """How a call in the pool ended."""

    DONE = "done"
    RAISED = "raised"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASHED = "crashed"
    UNREACHED = "unreached"
    """The batch's deadline passed before this call's turn came, or while it ran."""


STATUS_OF: Mapping[Fate, Status] = {
    Fate.TIMEOUT: Status.TIMEOUT,
    Fate.MEMORY: Status.REJECTED,
    Fate.RAISED: Status.WRONG,
    Fate.CRASHED: Status.REJECTED,
    Fate.UNREACHED: Status.TIMEOUT,
}
"""What a call that was not `DONE` says about the completion that it judged: always its fault, never the machine's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: its value if it is `DONE`, else `None` and the reason; `ms` of CPU time went into it."""

    fate: Fate
    value: Any = None
    detail: str = ""
    ms: float = 0.0


class PoolError(RuntimeError):
    """The pool's server cannot be started: the function cannot be imported, or there are no processes to be had."""


class Server:
    """The parent's handle on one server process."""

    def __init__(self, function_path: str, rss_mib: int) -> None:
        self.owner, self._started = os.getpid(), False
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            process = subprocess.Popen(
                [*command, function_path, str(rss_mib)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise PoolError(f"no process for {function_path}: {error}") from error
        finally:
            theirs.close()
        self.control, self._name = ours, function_path
        self._finalizer = weakref.finalize(self, _stop, ours, process, self.owner)

    def alive(self) -> bool:
        """Whether it may be used by this process: a fork of the trainer needs a server of its own."""
        if self.owner != os.getpid() or not self._finalizer.alive:
            return False
        _, _, (_, process, _), _ = self._finalizer.peek()  # type: ignore[misc]
        return process.poll() is None

    def wait(self) -> None:
        """Wait until its imports are done.

        Raises:
            PoolError: they failed, or took longer than two minutes.
        """
        if self._started:
            return
        self.control.settimeout(_START_LIMIT_S)
        try:
            message = receive(self.control)
        except OSError as error:
            message = {"error": f"no sign of life after {_START_LIMIT_S:g} s ({error})"}
        if message is None or "error" in message:
            self.close()
            raise PoolError(f"cannot start {self._name}: {(message or {}).get('error', 'the process ended at once')}")
        self._started = True

    def fork(self) -> Worker:
        """A fresh worker."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self.control, [FORK], [theirs.fileno()])
            (pid,) = PID.unpack(self.control.recv(PID.size, socket.MSG_WAITALL))
        except (OSError, ValueError) as error:
            ours.close()
            raise PoolError(f"the pool's server for {self._name} has gone: {error}") from error
        finally:
            theirs.close()
        return Worker(self, ours, pid)

    def kill(self, pid: int) -> None:
        """Kill a worker; the server does it, since only it can know that the pid is still that worker's."""
        with contextlib.suppress(OSError):
            self.control.sendall(KILL + PID.pack(pid))

    def close(self) -> None:
        """End the server and, through it, its workers."""
        self._finalizer()


def _stop(control: socket.socket, process: subprocess.Popen[bytes], owner: int) -> None:
    control.close()
    if owner == os.getpid():
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Worker:
    """The parent's handle on one worker."""

    def __init__(self, server: Server, channel: socket.socket, pid: int) -> None:
        self.server, self.channel, self.pid = server, channel, pid
        self.served, self.started = 0, 0.0
        self._buffer, self._before = bytearray(), 0.0

    def start(self, key: str) -> None:
        """Hand it one call, given as the JSON text of its arguments."""
        self.started, self.served, self._before = time.monotonic(), self.served + 1, self._clock()
        self._buffer.clear()
        data = key.encode()
        with contextlib.suppress(OSError):  # a dead worker is noticed when its reply is read
            self.channel.sendall(HEADER.pack(len(data)) + data)

    def used_s(self) -> float:
        """CPU seconds that its call has taken so far; wall-clock seconds where the system does not tell."""
        return max(0.0, self._clock() - self._before)

    def _clock(self) -> float:
        if sys.platform != "linux":
            return time.monotonic()
        try:
            return time.clock_gettime((~self.pid << 3) | _SCHEDULER_CLOCK)
        except OSError:  # it has died; its channel tells
            return self._before

    def reply(self) -> Outcome | None:
        """Read what has arrived; an outcome once the reply is whole or the worker is gone."""
        try:
            piece = self.channel.recv(2**20)
        except OSError:
            piece = b""
        self._buffer += piece
        size = HEADER.size + (HEADER.unpack_from(self._buffer)[0] if len(self._buffer) >= HEADER.size else 0)
        if not piece or size > _MESSAGE_LIMIT:
            return self.ended(Fate.CRASHED, "the process died")
        if len(self._buffer) < max(size, HEADER.size + 1):
            return None
        message = json.loads(self._buffer[HEADER.size :])
        for name, fate in (("value", Fate.DONE), ("error", Fate.RAISED), ("memory", Fate.MEMORY)):
            if name in message:
                value, detail = (message[name], "") if fate is Fate.DONE else (None, message[name])
                return Outcome(fate, value, detail, message["ms"])
        return self.ended(Fate.CRASHED, "the process sent nonsense")

    def ended(self, fate: Fate, detail: str) -> Outcome:
        """The outcome of a call that gave no value."""
        return Outcome(fate, None, detail, self.used_s() * 1000)

    def kill(self) -> None:
        """End it at once."""
        self.channel.close()
        self.server.kill(self.pid)
