"""The zygote: a warm interpreter in bubblewrap that clones one job at a time into namespaces of its own.

It obeys a host over a socket. A request is the descriptors of one or two *members*: a payload to
read, a file for what it prints, a file for its results. Payloads are read by the cloned process only: nothing that a
job must not know (the expected values of a test suite, an earlier job's secrets) was ever in the memory it inherits.

Two members are a test suite, which leads, and the solution it questions; they share two pipes and nothing else.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import time
from typing import Any

from rewards.sandbox.inside import answers, jail, play, questions, seccomp
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.inside.watch import watch

FDS_PER_MEMBER = 3
CONTROL_FD = 0
PRELOADED = (
    "array bisect cmath collections copy datetime decimal functools fractions heapq itertools math operator random re "
    "statistics string typing"
)
"""Modules that solutions import most; loaded once, so that no job waits for them."""

KINDS = {**play.KINDS, "check": questions.check, "rehearse": questions.rehearse, "serve": answers.serve}

_libc = ctypes.PyDLL(None, use_errno=True)  # does not let go of the interpreter's lock around a call
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_PARKING = 100
"""Descriptors from here on are free while those of a job are put in their places."""


def main(limits: Limits, nested: bool, guarded: bool) -> None:
    """Serve requests until the host hangs up.

    Args:
        limits: what a job may use.
        nested: clone every job into fresh namespaces; otherwise it is a plain child, and the zygote good for one job.
        guarded: confine jobs (jail and system-call filter) and watch them; `False` runs them bare.
    """
    control = socket.socket(fileno=os.dup(CONTROL_FD))
    os.dup2(os.open("/dev/null", os.O_RDWR), CONTROL_FD)
    for name in PRELOADED.split():
        __import__(name)
    play.complete_builtins()
    program = seccomp.build() if guarded else b""
    if guarded:
        jail.show_memory(False)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 2 * FDS_PER_MEMBER)
        if not message:
            return
        members = [descriptors[i : i + FDS_PER_MEMBER] for i in range(0, len(descriptors), FDS_PER_MEMBER)]
        end = _run(members, limits, nested, program, control)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps(end).encode())


def _run(
    members: list[list[int]], limits: Limits, nested: bool, program: bytes, control: socket.socket
) -> dict[str, Any]:
    """Start the members, wait for the first of them, kill the rest; say how it ended."""
    started, pipes = time.monotonic(), []
    lines: list[tuple[int, ...]] = [()] * len(members)
    if len(members) == 2:
        (heard, asked), (received, replied) = os.pipe(), os.pipe()
        pipes, lines = [heard, asked, received, replied], [(asked, received), (heard, replied)]
    pids = []
    for files, line in zip(members, lines, strict=True):
        pid = _clone(jail.CLONE_FLAGS if nested else 0)
        if pid == 0:
            _become(files, line, limits, nested, program)
        pids.append(pid)
    for descriptor in pipes:
        os.close(descriptor)
    reason, peak_kb = watch(pids, limits, bool(program), control)
    for pid in pids:
        if pid != pids[0] or reason != "exited":
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"reason": reason, "codes": codes, "ms": (time.monotonic() - started) * 1000, "peak_kb": peak_kb}


def _become(files: list[int], line: tuple[int, ...], limits: Limits, nested: bool, program: bytes) -> None:
    """Turn this new process into a job: confined, its descriptors in place, then run. Never returns."""
    try:
        payload_fd, output_fd, results_fd = files
        with os.fdopen(os.dup(payload_fd), "rb") as file:
            payload = json.load(file)
        play.connect(payload.get("stdin", ""))
        wanted = [(os.open("/dev/null", os.O_RDWR), 2), (output_fd, 1), (results_fd, play.RESULTS_FD)]
        wanted += zip(line, (play.ASK_FD, play.REPLY_FD), strict=False)
        parked = [(fcntl.fcntl(source, fcntl.F_DUPFD, _PARKING), target) for source, target in wanted]
        for source, target in parked:
            os.dup2(source, target)
        os.closerange(play.RESULTS_FD + 1 + len(line), 1024)
        if program:
            jail.enclose(limits, nested)
            seccomp.install(program)
    except OSError as error:
        os._exit(error.errno or 1)
    try:
        play.play(payload, KINDS)
    finally:
        os._exit(0)


def _clone(flags: int) -> int:
    """fork(2) into new namespaces: `clone(2)` with the interpreter told as C programs should (PyOS_BeforeFork &c.)."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(_libc.syscall(_SYS_CLONE[os.uname().machine], ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0))
    error = ctypes.get_errno()
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, "clone")
    return pid
