"""The proof, before any training, that what runs in the sandbox cannot do what it must not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.sandbox.bubblewrap import ENVIRONMENT, SandboxError
from rewards.sandbox.inside import values
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.worker import Outcome

VISIBLE_PROCESSES = 2
"""At most: the zygote and the job, where they share a namespace; only the job where it has its own."""

ADVICE = (
    "What the sandbox needs: Linux 5.14 or newer with user namespaces. Check that"
    " `bwrap --ro-bind / / --unshare-all true` runs as an ordinary user. If not:"
    " `sysctl kernel.unprivileged_userns_clone=1` (Debian),"
    " `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu 24.04 and newer), user.max_user_namespaces > 0;"
    " in Docker `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN`."
    " Otherwise name a remote sandbox (`backend: sandbox_fusion`, `url: …`); `unsafe_local: true` runs model code bare."
)

_SOLUTION = """
import os, socket

def reach(path, host_pids):
    try:
        socket.socket()
        network = True
    except OSError:
        network = False
    alive = []
    for pid in [*range(1, 300), *host_pids]:
        try:
            os.kill(pid, 0)
            alive.append(pid)
        except OSError:
            pass
    secrets = set(os.environ)
    for pid in alive:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                secrets.update(entry.split("=")[0] for entry in file.read().decode().split(chr(0)) if entry)
        except OSError:
            pass
    try:
        open("/written", "w")
        writable = True
    except OSError:
        writable = False
    return network, os.path.exists(path), len(alive), secrets, writable, os.getuid()

def fork():
    for count in range(1000):
        try:
            pid = os.fork()
        except OSError:
            return count
        if pid == 0:
            import time
            time.sleep(60)
    return 1000

def allocate(size):
    try:
        return len(bytearray(size))
    except MemoryError:
        return 0
"""


def prove(run: Callable[[Mapping[str, Any]], Outcome], limits: Limits) -> None:
    """Let probes try to get out, and make sure that each of them fails.

    Args:
        run: runs a job in the sandbox.
        limits: what the sandbox is said to enforce.

    Raises:
        SandboxError: naming what is possible and should not be, or why nothing runs at all, and what to do.
    """
    with tempfile.NamedTemporaryFile(prefix="canary-", dir=_home()) as canary_file:
        call = f"reach({canary_file.name!r}, {[os.getpid(), os.getppid()]})"
        network, canary, alive, names, writable, uid = _ask(run, call)
    reached = {
        "it has network sockets": network,
        "it sees the host's files": canary,
        "it can write outside of /tmp": writable,
        f"it can signal {alive} processes": alive > VISIBLE_PROCESSES,
        f"it sees environment variables {sorted(names - set(ENVIRONMENT))}": bool(names - set(ENVIRONMENT)),
        "it is root": uid == 0,
    }
    _refuse(reached)
    taken = {
        "it can fork without end": _ask(run, "fork()") >= limits.processes,
        "it can allocate without end": _ask(run, f"allocate({2 * limits.memory_mb << 20})") != 0,
    }
    _refuse(taken)


def _home() -> Path | None:
    """The user's home, if it can be written to."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if os.access(home, os.W_OK) else None


def _refuse(failures: Mapping[str, bool]) -> None:
    found = [text for text, failed in failures.items() if failed]
    if found:
        raise SandboxError(f"the sandbox does not isolate: {'; '.join(found)}. {ADVICE}")


def _ask(run: Callable[[Mapping[str, Any]], Outcome], call: str) -> Any:
    outcome = run({"kind": "calls", "code": _SOLUTION, "setup": "", "calls": [call], "stop": True})
    if not outcome.records or "value" not in outcome.records[0]:
        said = outcome.detail or f"a probe ended with {outcome.ending} {outcome.records}"
        raise SandboxError(f"{said}. {ADVICE}")
    return values.decode(outcome.records[0]["value"])
