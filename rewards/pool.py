"""A pool of processes that can be killed: wall-clock deadlines and memory limits for code that may never return.

Python cannot stop a thread, `SIGALRM` exists only in the main thread, and neither ends a big-number loop that holds
the GIL. So what may hang runs in a process, and the clock stays with the caller::

    pool = Pool("my_package.scoring:score", workers=4, deadline_s=2.0, rss_mib=512)
    for outcome in pool.map([("1/2", "0.5"), ("9**9**9**9", "1")]):
        print(outcome.fate, outcome.value)      # done True / timeout None

The function is named by its path and called with JSON-able arguments; it returns something JSON-able. Workers are
forked from a small server process (`rewards.pool_server`) that is started with `exec`, so that the pool works under
any parent: one that has CUDA and torch's threads, a daemonic `multiprocessing` child, a notebook, several threads at
once. A killed worker is replaced in milliseconds. The server ends with its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
_RECYCLE_AFTER = 2000
"""Tasks a worker serves before it is replaced, so that what libraries cache cannot grow without end."""
_MESSAGE_LIMIT = 2**24
"""Bytes of the largest reply that is read; more is taken for a worker gone mad."""


class Fate(StrEnum):
    """How a call in the pool ended."""

    DONE = "done"
    RAISED = "raised"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASHED = "crashed"
    UNREACHED = "unreached"
    """The whole batch ran out of time before this call's turn came."""


STATUS_OF: Mapping[Fate, Status] = {
    Fate.TIMEOUT: Status.TIMEOUT,
    Fate.MEMORY: Status.REJECTED,
    Fate.RAISED: Status.WRONG,
    Fate.CRASHED: Status.REJECTED,
    Fate.UNREACHED: Status.INFRA,
}
"""What a call that was not `DONE` says about the completion that it judged."""

_LASTING = frozenset({Fate.DONE, Fate.RAISED, Fate.TIMEOUT, Fate.MEMORY})
"""Fates that belong to the arguments, and are remembered with them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: its value if it is `DONE`, else `None` and the reason."""

    fate: Fate
    value: Any = None
    detail: str = ""
    ms: float = 0.0


class PoolError(RuntimeError):
    """The pool's server cannot be started: the function cannot be imported, or there are no processes to be had."""


class Pool:
    """Calls one function in killable processes. Thread-safe; picklable (the copy starts its own processes).

    Args:
        function_path: `package.module:function` or `path/file.py:function`.
        workers: processes at work for one `map` call. Calls from several threads do not wait for one another.
        deadline_s: wall-clock seconds one call may take before its process is killed.
        rss_mib: MiB of memory (address space) that a worker may take beyond what the function's imports need.
        cache_size: outcomes remembered (least recently used go first); equal arguments in one batch run once anyway.
    """

    def __init__(
        self,
        function_path: str,
        workers: int | None = None,
        deadline_s: float = 5.0,
        rss_mib: int = 1024,
        cache_size: int = 16384,
    ) -> None:
        if deadline_s <= 0 or rss_mib <= 0 or (workers is not None and workers < 1):
            raise ValueError("a pool needs at least one worker, a positive deadline and some memory")
        self.function_path, self.deadline_s, self.rss_mib = function_path, deadline_s, rss_mib
        self.workers = workers or min(8, len(os.sched_getaffinity(0)))
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Outcome] = OrderedDict()
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._server: _Server | None = None

    def __reduce__(self) -> tuple[type[Pool], tuple[Any, ...]]:
        return Pool, (self.function_path, self.workers, self.deadline_s, self.rss_mib, self.cache_size)

    def start(self) -> None:
        """Let the server begin with its imports, which take seconds; the first `map` waits for the rest of them.

        Raises:
            PoolError: there is no process to be had. What cannot be imported is told by `map`.
        """
        with self._lock:
            self._living_server()

    def map(self, calls: Sequence[Sequence[Any]], within_s: float | None = None) -> list[Outcome]:
        """Call the function once for each list of arguments, and wait for all.

        Args:
            calls: arguments, one JSON-able sequence a call. Equal ones run once.
            within_s: wall-clock seconds for the whole batch; calls that have not ended by then are `TIMEOUT` if they
                ran for `deadline_s`, else `UNREACHED`.

        Returns:
            One outcome a call, in order. What the function raises, hangs on or dies of is an outcome, not an error.

        Raises:
            PoolError: the server process cannot be started.
        """
        keys = [json.dumps(list(arguments)) for arguments in calls]
        known: dict[str, Outcome] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in self._cache:
                    self._cache.move_to_end(key)
                    known[key] = self._cache[key]
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            fresh = self._run(missing, within_s)
            known |= fresh
            with self._lock:
                self._cache |= {key: outcome for key, outcome in fresh.items() if outcome.fate in _LASTING}
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
        return [known[key] for key in keys]

    def close(self) -> None:
        """End all processes. The pool starts anew if it is used again."""
        with self._lock:
            for worker in self._idle:
                worker.channel.close()
            self._idle.clear()
            if self._server is not None:
                self._server.close()
                self._server = None

    def _run(self, keys: list[str], within_s: float | None) -> dict[str, Outcome]:
        todo, outcomes = deque(keys), {}
        busy: dict[_Worker, str] = {}
        self._ready()
        end = time.monotonic() + (within_s if within_s is not None else float("inf"))
        with selectors.DefaultSelector() as selector:
            try:
                while todo or busy:
                    while todo and len(busy) < self.workers and time.monotonic() < end:
                        worker = self._borrow()
                        busy[worker] = key = todo.popleft()
                        worker.start(key)
                        selector.register(worker.channel, selectors.EVENT_READ, worker)
                    if not busy:
                        break
                    wake = min(end, min(worker.started for worker in busy) + self.deadline_s)
                    ready = {e.data for e, _ in selector.select(max(0.0, wake - time.monotonic()))}
                    for worker in list(busy):
                        outcome = worker.reply() if worker in ready else None
                        outcome = outcome or self._overdue(worker, end)
                        if outcome is not None:
                            selector.unregister(worker.channel)
                            outcomes[busy.pop(worker)] = outcome
                            self._give_back(worker, outcome)
            finally:
                for worker in busy:
                    self._give_back(worker, _UNREACHED)
        return outcomes | dict.fromkeys(todo, _UNREACHED)

    def _overdue(self, worker: _Worker, end: float) -> Outcome | None:
        now = time.monotonic()
        if now >= worker.started + self.deadline_s:
            return Outcome(Fate.TIMEOUT, None, f"more than {self.deadline_s:g} s", (now - worker.started) * 1000)
        return replace(_UNREACHED, ms=(now - worker.started) * 1000) if now >= end else None

    def _ready(self) -> None:
        with self._lock:
            self._living_server().wait()

    def _living_server(self) -> _Server:
        if self._server is not None and not self._server.alive():
            self._server = None
            self._idle.clear()
        if self._server is None:
            self._server = _Server(self.function_path, self.rss_mib)
        return self._server

    def _borrow(self) -> _Worker:
        with self._lock:
            server = self._living_server()
            server.wait()
            return self._idle.pop() if self._idle else server.fork()

    def _give_back(self, worker: _Worker, outcome: Outcome) -> None:
        """Keep a worker that ended its task well; kill any other."""
        with self._lock:
            healthy = outcome.fate in (Fate.DONE, Fate.RAISED) and worker.served < _RECYCLE_AFTER
            if healthy and worker.server is self._server and len(self._idle) < self.workers:
                self._idle.append(worker)
            else:
                worker.kill()


_UNREACHED = Outcome(Fate.UNREACHED, None, "the batch ran out of time")


class _Server:
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

    def fork(self) -> _Worker:
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
        return _Worker(self, ours, pid)

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


class _Worker:
    """The parent's handle on one worker."""

    def __init__(self, server: _Server, channel: socket.socket, pid: int) -> None:
        self.server, self.channel, self.pid = server, channel, pid
        self.served, self.started = 0, 0.0
        self._buffer = bytearray()

    def start(self, key: str) -> None:
        """Hand it one call, given as the JSON text of its arguments."""
        self.started, self.served = time.monotonic(), self.served + 1
        self._buffer.clear()
        data = key.encode()
        with contextlib.suppress(OSError):  # a dead worker is noticed when its reply is read
            self.channel.sendall(HEADER.pack(len(data)) + data)

    def reply(self) -> Outcome | None:
        """Read what has arrived; an outcome once the reply is whole or the worker is gone."""
        try:
            piece = self.channel.recv(2**20)
        except OSError:
            piece = b""
        self._buffer += piece
        size = HEADER.size + (HEADER.unpack_from(self._buffer)[0] if len(self._buffer) >= HEADER.size else 0)
        if not piece or size > _MESSAGE_LIMIT:
            return Outcome(Fate.CRASHED, None, "the process died", (time.monotonic() - self.started) * 1000)
        if len(self._buffer) < max(size, HEADER.size + 1):
            return None
        message = json.loads(self._buffer[HEADER.size :])
        for name, fate in (("value", Fate.DONE), ("error", Fate.RAISED), ("memory", Fate.MEMORY)):
            if name in message:
                value, detail = (message[name], "") if fate is Fate.DONE else (None, message[name])
                return Outcome(fate, value, detail, message["ms"])
        return Outcome(Fate.CRASHED, None, "the process sent nonsense")

    def kill(self) -> None:
        """End it at once."""
        self.channel.close()
        self.server.kill(self.pid)
