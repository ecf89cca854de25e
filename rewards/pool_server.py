"""The far side of `rewards.pool`: a server process that imports once and forks workers on demand.

The server is a fresh interpreter (nothing of the trainer's memory, threads or CUDA context is in it) with a single
thread, so forking it is safe and takes milliseconds, however heavy the imports were. It lives as long as its parent:
when the control socket closes, or the parent is gone, it kills its workers and ends. Messages are JSON behind a
length, never pickle: a worker that went bad must not be able to run code in the trainer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.parent import end_with_parent

HEADER = struct.Struct("!I")
"""Length of the JSON message that follows, in bytes."""

FORK, KILL = b"F", b"K"
PID = struct.Struct("!i")
_PARENT_POLL_S = 2.0
"""How often the server looks whether its parent still lives, should the socket have leaked into another process."""


def serve(control_fd: int, function_path: str, rss_mib: int) -> None:
    """Import the function, say so on the control socket, then fork and kill workers as told."""
    parent = os.getppid()
    control = socket.socket(fileno=control_fd)
    _quiet()
    try:
        function = _load(function_path)
    except BaseException as error:  # noqa: BLE001  whatever an import raises is reported and ends this process
        send(control, {"error": f"{type(error).__name__}: {error}"})
        return
    send(control, {"ready": True})
    children: set[int] = set()
    try:
        while os.getppid() == parent:
            if not select.select([control], [], [], _PARENT_POLL_S)[0]:
                continue
            message, fds, _, _ = socket.recv_fds(control, 1 + PID.size, 1)
            if not message:
                break
            if message[:1] == FORK:
                pid = os.fork()
                if pid == 0:
                    children.clear()
                    control.close()
                    _work(socket.socket(fileno=fds[0]), function, rss_mib)
                os.close(fds[0])
                children.add(pid)
                control.sendall(PID.pack(pid))
            else:
                (pid,) = PID.unpack(message[1:])
                _end(pid)
                children.discard(pid)
    finally:
        for pid in children:
            _end(pid)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _work(channel: socket.socket, function: Callable[..., Any], rss_mib: int) -> None:
    """A worker: one request after another until the channel closes. Never returns."""
    status = 1
    try:
        end_with_parent(os.getppid())
        limit = _address_space() + rss_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while (arguments := receive(channel)) is not None:
            started = time.process_time()
            try:
                reply = {"value": function(*arguments)}
                json.dumps(reply)
            except MemoryError:
                reply = {"memory": f"more than {rss_mib} MiB"}
            except Exception as error:  # noqa: BLE001  the caller's function may raise anything; it is reported
                reply = {"error": f"{type(error).__name__}: {error}"[:500]}
            reply["ms"] = (time.process_time() - started) * 1000
            send(channel, reply)
        status = 0
    except BaseException:  # noqa: BLE001  a worker that cannot even report is seen as crashed
        pass
    finally:
        os._exit(status)


def _load(path: str) -> Callable[..., Any]:
    module, _, attribute = path.rpartition(":")
    if module.endswith(".py"):
        from rewards.registry import find

        return find(path).target
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _quiet() -> None:
    """What the function prints goes nowhere; Ctrl-C is the parent's business."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _address_space() -> int:
    """Bytes of address space in use now (on Linux; elsewhere a guess of 1 GiB)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 2**30


def send(channel: socket.socket, message: Any) -> None:
    """Send one JSON message."""
    data = json.dumps(message).encode()
    channel.sendall(HEADER.pack(len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """Wait for one JSON message; `None` when the other side has gone."""
    head = _exactly(channel, HEADER.size)
    if head is None:
        return None
    data = _exactly(channel, HEADER.unpack(head)[0])
    return None if data is None else json.loads(data)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        piece = channel.recv(min(size - len(parts), 2**20))
        if not piece:
            return None
        parts += piece
    return bytes(parts)
