"""Who waits for a lock says for whom and how long, and not for ever."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import locks


def test_nobody_to_wait_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    locks.await_ghosts(tmp_path, "zero")
    assert caplog.text == ""


def test_the_wait_has_a_limit_and_names_who_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locks.stage_lock(tmp_path):
        waiter = multiprocessing.get_context("fork").Pool(1)
        with waiter, pytest.raises(locks.LockError) as refused:
            waiter.apply(locks.await_ghosts, (tmp_path, "zero", 0.3))
    assert f"stage 'zero' cannot start: process {os.getpid()} (" in str(refused.value)
    assert "is still there after 0.3 s. End it (kill -9)" in str(refused.value)


def test_holders_are_those_who_have_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert locks.holders(path) == {}
    with path.open() as handle:
        command = [sys.executable, "-c", "input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[handle.fileno()]) as other:
            assert list(locks.holders(path)) == [other.pid]
            other.communicate(b"\n")


def test_one_runner_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    said = rf"another process \(pid {os.getpid()}\) works on {run}"
    with locks.run_lock(run), (run / ".lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(locks.LockError, match=said), locks.run_lock(run):
            pass
    with locks.run_lock(run):
        pass
