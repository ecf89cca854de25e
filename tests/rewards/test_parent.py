"""Groups of processes that end with their leader, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.parent import end_group, kill_group

SECONDS = 120
"""Longest wait for what takes milliseconds on an idle machine."""
LEADER = """
import subprocess, sys
from multiprocessing import shared_memory
from pathlib import Path
from rewards.parent import guard_group

folder = Path(sys.argv[1])
guard_group(folder)
(folder / "socket").touch()
memory = shared_memory.SharedMemory(create=True, size=64)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(memory._name, worker.pid, flush=True)
worker.wait()
"""


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["leader killed", "group ended", "group ended from outside after its leader"])
def test_shared_memory_and_files_of_a_group_go_with_it(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    command = [sys.executable, "-c", LEADER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        name, worker = leader.stdout.readline().split()
        memory = Path("/dev/shm") / name.lstrip("/")
        assert memory.exists()
        if how == "group ended":
            end_group(leader.pid)
        else:
            leader.kill()
            leader.wait()
        if how == "group ended from outside after its leader":
            end_group(leader.pid)
        until(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker), "the worker's end")
    until(lambda: not memory.exists(), "the shared memory's end")
    until(lambda: not folder.exists(), "the folder's end")


def test_what_is_not_trusted_gets_no_grace() -> None:
    """A program in a sandbox may call itself what it likes."""
    claims = [sys.executable, "-c", "import time; time.sleep(1000)", "resource_tracker"]
    with subprocess.Popen(claims, start_new_session=True) as process:
        kill_group(process.pid)
        assert process.wait(SECONDS) == -signal.SIGKILL


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
