"""Root's way into the sandbox: bring the interpreter within reach, stop being root, become bubblewrap.

    python unroot.py '["/root/.pyenv/versions/3.11/lib", …]' bwrap …

Root cannot be limited (RLIMIT_NPROC does not bind it, and it owns the host's files), so the sandbox runs as nobody.
But nobody cannot reach an interpreter below a home of mode 0700. In a mount namespace of its own this script binds
the given files and folders at /tmp/0, /tmp/1, … before it gives up its rights. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

NOBODY = 65534
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x00020000, 4096, 16384, 1 << 18


def main(sources: list[str], command: list[str]) -> None:
    """Bind `sources`, drop to nobody, and execute `command` with an empty environment."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result != 0:
            raise SystemExit(f"{what}: {os.strerror(ctypes.get_errno())}; as root the sandbox needs CAP_SYS_ADMIN")

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        kind_b = None if kind is None else kind.encode()
        must(libc.mount(source.encode(), target.encode(), kind_b, ctypes.c_ulong(flags), None), f"mount {target}")

    must(libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    opened = [os.open(source, os.O_PATH) for source in sources]  # before /tmp, where they may lie, is covered
    mount("tmpfs", "/tmp", "tmpfs", 0)
    for number, descriptor in enumerate(opened):
        target = Path("/tmp") / str(number)
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            target.mkdir()
        else:
            target.touch()
        mount(f"/proc/self/fd/{descriptor}", str(target), None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    Path("/tmp").chmod(0o755)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execve(command[0], command, {})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
