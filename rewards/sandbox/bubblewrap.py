"""Starting the zygote: which command, seeing what, as whom.

Bubblewrap gives it namespaces of its own, no network, an empty environment, and a read-only file system that holds
the C libraries, this interpreter's standard library and `rewards.sandbox.inside`: nothing else exists there.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.sandbox.inside.jail import UID, Limits

INSTALL = "install it with `apt-get install bubblewrap` (Debian, Ubuntu) or `dnf install bubblewrap` (Fedora)"
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64")
OPTIONAL = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("null", "random", "urandom")  # a shared mapping of /dev/zero is memory that no process shows
_PYTHON, _HOME = Path("/python"), Path("/sandbox")
_BOOT = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from rewards.sandbox.inside import jail, zygote;"
    "del sys.path[0]; "
    "o = json.loads(sys.argv[2]); zygote.main(jail.Limits(**o['limits']), o['nested'], o['guarded'])"
)


ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "LD_LIBRARY_PATH": "/python/lib",
    "PWD": "/tmp",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the same program gives the same verdict, whatever the order of its sets
}
"""All that a job finds in its environment."""


class SandboxError(RuntimeError):
    """No sandbox can be had here, or the one that was started does not isolate. Says what to do about it."""


@dataclass(frozen=True, slots=True)
class Started:
    """A zygote: the process that holds it, and the socket it obeys."""

    process: subprocess.Popen[bytes]
    control: socket.socket


def start(limits: Limits, nested: bool = True, guarded: bool = True) -> Started:
    """Start a zygote; it says b"ready" on the socket once it can take requests.

    Args:
        limits: what a job may use.
        nested: clone every job into fresh namespaces; otherwise the zygote is good for one job.
        guarded: in bubblewrap. `False` runs it, and what it runs, with no protection at all.

    Raises:
        SandboxError: bubblewrap is not installed.
    """
    options = json.dumps({"limits": asdict(limits), "nested": nested, "guarded": guarded})
    if guarded:
        command = bubblewrapped(limits, ["-c", _BOOT, str(_HOME), options])
    else:
        package = Path(__file__).parents[2]
        command = [sys.executable, "-s", "-S", "-P", "-c", _BOOT, str(package), options]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={} if guarded else ENVIRONMENT,
            cwd="/tmp",
            start_new_session=True,
        )
    return Started(process, ours)


def bubblewrapped(limits: Limits, arguments: list[str]) -> list[str]:
    """The command that runs this Python interpreter with these arguments in bubblewrap.

    Raises:
        SandboxError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(f"bubblewrap is not installed: {INSTALL}")
    base, version = Path(sys.base_prefix).resolve(), f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = (base / "bin" / version).resolve()
    if base == Path("/usr"):
        binds, python = {executable: executable}, executable
    else:
        python = _PYTHON / "bin" / version
        binds = {executable: python, base / "lib": _PYTHON / "lib"}
    binds[Path(__file__).parent / "inside"] = _HOME / "rewards" / "sandbox" / "inside"
    launcher: list[str] = []
    if os.geteuid() == 0:
        mounts = [str(source) for source in binds]
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).parent / "unroot.py"), json.dumps(mounts)]
        binds = {Path("/tmp") / str(number): target for number, target in enumerate(binds.values())}
    command = [
        *launcher,
        bwrap,
        "--unshare-all",
        "--as-pid-1",
        "--uid",
        str(UID),
        "--gid",
        str(UID),
        "--hostname",
        "sandbox",
    ]
    for folder in LIBRARIES:
        if Path(folder).is_symlink():
            command += ["--symlink", str(Path(folder).readlink()), folder]
        elif Path(folder).is_dir():
            command += ["--ro-bind", folder, folder]
    for path in OPTIONAL:
        command += ["--ro-bind-try", path, path]
    for source, target in binds.items():
        command += ["--ro-bind", str(source), str(target)]
    for device in DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--symlink", "/tmp", "/dev/shm", "--dir", "/empty", "--proc", "/proc"]
    command += ["--size", str(limits.files_mb << 20), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    return [*command, str(python), "-s", "-S", "-P", *arguments]
