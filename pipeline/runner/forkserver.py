"""A process with the libraries loaded, of which the processes of stages are forked: they start at once.

Python, torch, transformers and TRL take ten seconds of a processor to load, for each stage of a chain anew. Where
there are no GPUs (CUDA cannot be used in a forked process), the runner starts one server. It loads them for the first
stage that needs them. A forked process has an environment, a log and a process group of its own, as every stage has.

Runner and server talk JSON over a socket: `{"words", "environment", "log"}` is answered with `{"started": pid}`, and
`{"ended": pid, "code"}` comes when a process has ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pipeline.runner import worker
from pipeline.schema import environment
from rewards.parent import end_with_parent

NOT_READ = frozenset({environment.HANDED_ON})
"""Variables in which the processes of one server may differ: no library reads them."""


class Forked:
    """A process of a stage that the server has forked, as `subprocess.Popen` would show it.

    Attributes:
        pid: its number; it leads a process group of this number.
        returncode: how it ended; minus the signal's number if it was killed; `None` while it runs.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, or `None` while it runs."""
        self.server.listen(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most for a number of seconds. Raises subprocess.TimeoutExpired after them."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self.server.listen(left):
                raise subprocess.TimeoutExpired("the process of a stage", timeout or 0.0)
        return self.returncode


class ForkServer:
    """The server as the runner sees it; started when the first process is wanted.

    Args:
        wanted: whether stages may be forked at all.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted and sys.platform == "linux" and find_spec("vllm") is None
        self.running: dict[int, Forked] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._read: Mapping[str, str] = {}

    def fork(self, words: Sequence[str], variables: Mapping[str, str], log: Path) -> Forked | None:
        """Start the process of a stage.

        Args:
            words: the arguments of `pipeline.runner.worker`.
            variables: all of its environment variables.
            log: the file that it prints to, at the end.

        Returns:
            The process; `None` where the server cannot: it has ended, or libraries in it have read another environment.
        """
        read = {name: value for name, value in variables.items() if name not in NOT_READ}
        if not self.wanted or read != (self._read or read):
            return None
        self._read, channel = read, self._channel or self._start(read, log)
        request = {"words": list(words), "environment": dict(variables), "log": str(log)}
        try:
            channel.send_bytes(json.dumps(request).encode())
            while "started" not in (answer := json.loads(channel.recv_bytes())):
                self._ended(answer)
        except (EOFError, OSError):
            self._lost()
            return None
        forked = self.running[answer["started"]] = Forked(self, answer["started"])
        return forked

    def listen(self, timeout: float | None) -> bool:
        """Take what the server says within a number of seconds; whether it said anything, or is gone."""
        if self._channel is None:
            return True
        if not self._channel.poll(timeout):
            return False
        try:
            while self._channel.poll(0.0):
                self._ended(json.loads(self._channel.recv_bytes()))
        except (EOFError, OSError):
            self._lost()
        return True

    def close(self) -> None:
        """End the server, and with it what it has forked."""
        if self._server is not None:
            self._lost()

    def _start(self, variables: Mapping[str, str], log: Path) -> Connection:
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "pipeline.runner.forkserver", str(theirs.fileno()), str(os.getpid())]
        with theirs, log.open("ab") as sink:
            self._server = subprocess.Popen(
                words,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = Connection(ours.detach())
        return self._channel

    def _ended(self, answer: Mapping[str, Any]) -> None:
        """Take an answer, unless it is about a process of which Ctrl-C came before its number did."""
        if "ended" in answer and (forked := self.running.pop(answer["ended"], None)) is not None:
            forked.returncode = answer["code"]

    def _lost(self) -> None:
        """The server has ended, or ends now; its processes end with it, by the kernel."""
        assert self._server is not None and self._channel is not None
        self._server.kill()
        code = self._server.wait()
        self._channel.close()
        self._server, self._channel, self.wanted = None, None, False
        for forked in self.running.values():
            forked.returncode = code
        self.running.clear()


def main() -> None:
    """`python -m pipeline.runner.forkserver DESCRIPTOR RUNNER`: be the server, or a process that it has forked."""
    descriptor, runner = map(int, sys.argv[1:])
    end_with_parent(runner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner interrupts stages itself
    request = _serve(Connection(descriptor))
    if request is not None:
        _become(request)
        worker.main(request["words"])


def _serve(channel: Connection) -> Mapping[str, Any] | None:
    """Fork for every request until the runner is gone; returns the request in a process that was forked for it."""
    running: dict[int, int] = {}  # descriptor that is ready when a process has ended -> the process
    while True:
        for ready in wait([channel, *running]):
            if ready is channel:
                try:
                    request: Mapping[str, Any] = json.loads(channel.recv_bytes())
                except EOFError:
                    return None
                with contextlib.suppress(ImportError):  # the stage meets it too, and says so
                    worker.load(Path(request["words"][0]))
                gc.freeze()  # collecting garbage would copy pages that processes share
                if (pid := os.fork()) == 0:
                    channel.close()
                    for descriptor in running:
                        os.close(descriptor)
                    return request
                with contextlib.suppress(PermissionError, ProcessLookupError):  # it was faster
                    os.setpgid(pid, pid)
                running[os.pidfd_open(pid)] = pid
                channel.send_bytes(json.dumps({"started": pid}).encode())
            else:
                assert isinstance(ready, int)
                pid = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                channel.send_bytes(json.dumps({"ended": pid, "code": code}).encode())


def _become(request: Mapping[str, Any]) -> None:
    """Take the process group, the environment and the log of a stage's process."""
    gc.unfreeze()
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


if __name__ == "__main__":
    main()
