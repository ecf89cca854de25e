"""Shutting a job in: what a freshly cloned process does to itself before it runs code that a model wrote.

The process is process 1 of new user, pid, mount and IPC namespaces, and for a moment has every capability *within*
them. It gets a private /tmp, loses sight of /proc, binds its limits, gives up its capabilities and installs the
system-call filter. Nothing of that can be undone.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass
from pathlib import Path

UID = 1000
"""User and group id inside; outside it is whoever started the sandbox (nobody, if that was root)."""

CLONE_FLAGS = 0x10000000 | 0x20000000 | 0x00020000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER | NEWPID | NEWNS | NEWIPC | NEWUTS. The network namespace is the zygote's: empty, and no job can open
a socket; a new one for every job would cost more than all the rest."""

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE = 4
_MB = 1 << 20
_SIGNALS = 256
"""Queued signals: enough for timers, too few to fill kernel memory."""


@dataclass(frozen=True)
class Limits:
    """What one job may use.

    Attributes:
        wall_s: seconds until the whole job is killed, not counting those for which a busy machine did not run it.
        memory_mb: resident memory of all its processes together, beyond the interpreter's own; also the address
            space of each of them.
        processes: processes and threads at one time.
        output_mb: size of any file, and of what is printed.
        files_mb: size of /tmp.
        open_files: descriptors of one process.
    """

    wall_s: float = 6.0
    memory_mb: int = 512
    processes: int = 32
    output_mb: int = 4
    files_mb: int = 64
    open_files: int = 64


_libc = ctypes.CDLL(None, use_errno=True)
_Capabilities = ctypes.c_uint32 * 6


def enclose(limits: Limits, nested: bool) -> None:
    """Confine this process for good, all but the system-call filter.

    Args:
        limits: what it may use.
        nested: whether it stands in fresh namespaces of its own (see `CLONE_FLAGS`); otherwise it shares those of
            bubblewrap, whose /tmp it uses.

    Raises:
        OSError: the kernel refused a step; nothing may be run then.
    """
    show_memory(True)  # for as long as its own files in /proc must be written
    interpreter_pages = int(Path("/proc/self/statm").read_text().split()[0])
    _write("/proc/self/oom_score_adj", "1000")  # if memory runs out, the job dies and not the trainer
    if nested:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{UID} {UID} 1")
        _write("/proc/self/gid_map", f"{UID} {UID} 1")
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        size = f"size={limits.files_mb}m,nr_inodes=4096,mode=0700"
        _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, size)
        _mount("/empty", "/proc", None, _MS_BIND)
    show_memory(False)
    os.setpgid(0, 0)  # kill(0, …) reaches a process group across namespaces; a session of its own costs a millisecond
    os.chdir("/tmp")
    os.umask(0o077)
    _bind_limits(limits, interpreter_pages * os.sysconf("SC_PAGE_SIZE"))
    _drop_capabilities()


def show_memory(shown: bool) -> None:
    """Whether processes of the same user may trace this one and open its files in /proc, such as its memory."""
    if _libc.prctl(_PR_SET_DUMPABLE, int(shown), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _bind_limits(limits: Limits, interpreter_bytes: int) -> None:
    """Set the resource limits of this process and its children."""
    for name, value in (
        (resource.RLIMIT_AS, interpreter_bytes + limits.memory_mb * _MB),
        (resource.RLIMIT_FSIZE, limits.output_mb * _MB),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_CPU, int(limits.wall_s) + 2),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, _SIGNALS),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _drop_capabilities() -> None:
    """Give up every capability; without new privileges (the filter sets that) none comes back."""
    header = _Capabilities(_CAPABILITY_VERSION_3)
    if _libc.capset(header, _Capabilities()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    source_b, target_b, kind_b, data_b = (None if t is None else t.encode() for t in (source, target, kind, data))
    if _libc.mount(source_b, target_b, kind_b, ctypes.c_ulong(flags), data_b) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")
