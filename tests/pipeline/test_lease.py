"""Two hosts and one run on a shared file system: real processes, real kills; that they are two is told to them."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.commands import status
from pipeline.files import durable, lease, locks
from pipeline.files.lease import Host, LockError
from pipeline.files.lease_folder import Folder
from tests.pipeline.talking import Talking, said, tell

NEVER = 3600.0
"""Seconds: a test that waited for this would not end."""
SOON = 0.5
"""How long a dead owner is watched here."""
OWNER = """
import sys
from pathlib import Path
from pipeline import artifacts
from pipeline.files import locks
from pipeline.files.lease import Host, LockError

run, name, silent = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
try:
    with locks.run_lock(run, Host(name, "boot of " + name), silent, every=0.05) as held:
        print("owner", int(held.path.name), flush=True)
        for line in sys.stdin:
            if line == "publish\\n":
                source = run / "scratch" / name
                source.mkdir(parents=True)
                (source / "by").write_text(name)
                manifest = {"fingerprint": "f" * 64}
                artifacts.publish(source, artifacts.folder(run, "base", "f" * 64), manifest, held.check)
                print("published", flush=True)
except LockError as error:
    print("refused", error, flush=True)
"""
LIMITS = {"watch/gsm8k/low": 0.4, "watch/gsm8k/high": 0.6, "watch/gsm8k/n": 100}
A, B = Host("a", "boot of a"), Host("b", "boot of b")


class Owners(Talking):
    """Starts processes that take a run."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run

    def start(self, host: str, silent: float = NEVER) -> subprocess.Popen[str]:
        return self.open([sys.executable, "-c", OWNER, str(self.run), host, str(silent)])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Owners]:
    made = Owners(tmp_path / "runs" / "r")
    yield made
    made.close()


@pytest.mark.parametrize("kernel", ["sees the other's lock", "does not see the other's lock"])
def test_a_living_owner_on_another_host_is_left_alone(kernel: str, owners: Owners) -> None:
    first = owners.start("a")
    assert said(first) == "owner 1"
    if "not" in kernel:
        (owners.run / locks.RUN_LOCK).unlink()  # the next one locks a file of its own
    whom = rf"another process \(pid {first.pid} on host a\) works on {owners.run}"
    with pytest.raises(LockError, match=whom), locks.run_lock(owners.run, B, 60):
        pass
    tell(first, "publish")
    assert said(first) == "published"


@pytest.mark.parametrize("kernel", ["sees the other's lock", "does not see the other's lock"])
def test_what_is_given_back_can_be_had_at_once_on_any_host(kernel: str, owners: Owners) -> None:
    for number, host in enumerate("abba", 1):
        owner = owners.start(host)
        assert said(owner) == f"owner {number}"
        if "not" in kernel:
            (owners.run / locks.RUN_LOCK).unlink()
        owner.communicate()
    assert Folder(owners.run).numbers() == [4], "nothing is left of earlier ones"


def test_a_dead_owner_is_noticed_at_once_on_its_host_and_after_a_while_on_another(
    owners: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    first = owners.start("a")
    assert said(first) == "owner 1"
    first.kill()
    first.wait()
    second = owners.start("a", NEVER)
    assert said(second) == "owner 2", "without a wait"
    second.kill()
    second.wait()
    with locks.run_lock(owners.run, B, SOON, every=0.05) as held:
        held.check()
        assert held.path.name == "000003"
    assert f"was last worked on by process {second.pid} on host a: waiting for a sign of life" in caplog.text
    assert f"no sign of life from process {second.pid} on host a: this one takes over" in caplog.text


@pytest.mark.parametrize("kernel", ["sees the other's lock", "does not see the other's lock"])
def test_who_was_stopped_and_lost_its_lease_publishes_no_more(kernel: str, owners: Owners) -> None:
    first = owners.start("a")
    assert said(first) == "owner 1"
    if "not" in kernel:
        (owners.run / locks.RUN_LOCK).unlink()
    first.send_signal(signal.SIGSTOP)
    second = owners.start("b", SOON)
    assert said(second) == "owner 2"
    tell(second, "publish")
    assert said(second) == "published"
    tell(first, "publish")
    first.send_signal(signal.SIGCONT)
    assert said(first).startswith(f"refused process {second.pid} on host b has taken over {owners.run}")
    found = artifacts.find(owners.run, "base", "f" * 64)
    assert found is not None and (found.path / "by").read_text() == "b"
    with pytest.raises(LockError, match=rf"another process \(pid {second.pid}\) works"), locks.run_lock(owners.run, B):
        pass  # the kernel's lock is the second one's by now


def test_one_of_many_hosts_takes_over(owners: Owners) -> None:
    first = owners.start("dead")
    assert said(first) == "owner 1"
    first.kill()
    first.wait()
    others = [owners.start(f"host {number}", 5.0) for number in range(5)]
    answers = [said(other) for other in others]
    assert sorted(answers)[:1] == ["owner 2"], answers
    assert all(answer.startswith("refused another process") for answer in sorted(answers)[1:]), answers


def test_twenty_kills_and_no_number_is_given_twice(owners: Owners) -> None:
    rng, given, kills = random.Random(0), list[int](), 0
    while kills < 20:
        both = [owners.start(host, 0.2) for host in rng.sample("ab", 2)]
        time.sleep(rng.uniform(0.0, 0.6))
        for owner in both:
            owner.kill()
            kills += 1
            answer = owner.communicate()[0].split()
            given += [int(answer[1])] if answer[:1] == ["owner"] else []
    last = owners.start("a", 0.2)
    given.append(int(said(last).removeprefix("owner ")))
    assert len(given) == len(set(given))
    assert given[-1] == max(given)
    assert Folder(owners.run).numbers() == [given[-1]]
    assert not list((owners.run / lease.FOLDER).glob(".*.part"))


def test_a_lease_that_a_crash_left_empty_is_watched_and_broken(tmp_path: Path) -> None:
    (tmp_path / lease.FOLDER).mkdir()
    (tmp_path / lease.FOLDER / "000007").touch()
    with locks.run_lock(tmp_path, A, SOON, every=0.05) as held:
        assert held.path.name == "000008"


def test_a_number_that_was_used_up_meanwhile_is_not_taken(tmp_path: Path) -> None:
    """The listing of a folder may be old on NFS: what it showed has gone through two owners since."""
    with lease.held(Folder(tmp_path), None, A):
        old = lease.newest(Folder(tmp_path))
    for host in (B, A):
        with lease.held(Folder(tmp_path), lease.newest(Folder(tmp_path)), host):
            pass
    with pytest.raises(LockError, match="has just begun"):
        lease.take(Folder(tmp_path), old, A)
    with pytest.raises(LockError, match="has just begun"):
        lease.take(Folder(tmp_path), None, A)
    assert Folder(tmp_path).numbers() == [3]


def test_an_old_listing_gives_nobody_a_number_that_was_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS remembers names in a folder for up to a minute; what is opened it looks up."""
    with lease.held(Folder(tmp_path), None, A):
        pass
    before = lease.newest(Folder(tmp_path))
    with lease.held(Folder(tmp_path), before, A):
        pass
    with lease.held(Folder(tmp_path), lease.newest(Folder(tmp_path)), A) as third:
        monkeypatch.setattr(Folder, "numbers", lambda self: [1, 2])
        with pytest.raises(lease.LockError, match="has just begun"):
            lease.take(Folder(tmp_path), before, B)
        monkeypatch.undo()
        third.check()
        assert Folder(tmp_path).numbers() == [3]


def test_stages_end_with_their_lease(tmp_path: Path) -> None:
    path = tmp_path / "000001"
    path.touch()
    script = (
        "import subprocess, sys; from pathlib import Path; from pipeline.files import lease_folder\n"
        "child = subprocess.Popen(['sleep', '600']); lease_folder.end_without(Path(sys.argv[1]), 0.05)\n"
        "print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as stage:
        child = int(said(stage))
        assert stage.poll() is None
        path.unlink()
        assert stage.wait(60) == -signal.SIGKILL
    status = Path(f"/proc/{child}/status")
    until(lambda: not status.exists() or "\nState:\tZ" in status.read_text())


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as exFAT's kernel says
    for number in (1, 2):
        with locks.run_lock(tmp_path, A) as held:
            held.check()
            assert held.path.name == f"00000{number}"
    with pytest.raises(LockError, match="has just begun"):
        lease.take(Folder(tmp_path), lease.Seen(1, B, 1, "", b""), A)


def test_answers_that_nfs_has_lost_are_no_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asks again then, and hears that the name is there, or that the source is gone: it was itself."""
    link, rename = os.link, Path.rename

    def linked(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "rename", renamed)
    with locks.run_lock(tmp_path, A) as held:
        held.check()
    (tmp_path / "made").mkdir()
    durable.move(tmp_path / "made", tmp_path / "there")
    assert (tmp_path / "there").is_dir()
    with pytest.raises(FileNotFoundError):
        durable.move(tmp_path / "made", tmp_path / "elsewhere")


def test_status_shows_throughput_beside_whatever_a_stage_logs(tmp_path: Path) -> None:
    stage = {"name": "zero", "kind": "grpo", "fingerprint": "f" * 64}
    durable.write_record(tmp_path / artifacts.RUN_RECORD, {"stages": [stage]})
    scratch = artifacts.scratch(tmp_path, "zero", "f" * 64)
    scratch.mkdir(parents=True)
    step = {"step": 3, "total": 9, "reward": 0.5, "rewards/accuracy/score": 0.25, "completions/mean_length": 80.0}
    lines = [{**step, "tokens_per_second": 12345.6}, {"step": 3, "total": 9, "watch/gsm8k/pass@1": 0.5} | LIMITS]
    for number in (1, 2):
        (scratch / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:number]) + '{"st')
        (row,) = status.status(tmp_path)
        assert row["tokens_per_second"] == 12345.6
        assert row["summary"].startswith("3/9  ") and row["summary"].endswith("  tok/s 12,346")


def test_status_says_from_any_host_who_works_and_since_when_nothing_was_heard(tmp_path: Path) -> None:
    assert status.runner(tmp_path) is None
    with lease.held(Folder(tmp_path), None, A, NEVER) as held:
        found = status.runner(tmp_path)
        assert found is not None and (found["host"], found["pid"]) == ("a", os.getpid())
        line = status.runner_line({**found, "silent_seconds": 3.2})
        assert line.startswith(f"process {os.getpid()} on host a works on this run since 20")
        assert line.endswith("UTC; its last sign of life is 3 s old")
        os.utime(held.path, (0, 0))
        lost = status.runner(tmp_path)
        assert lost is not None and f"process {os.getpid()} on host a has given no sign" in status.runner_line(lost)
        os.utime(held.path, (1e11, 1e11))  # the file server's clock is ahead
        ahead = status.runner(tmp_path)
        assert ahead is not None and ahead["silent_seconds"] == 0
    assert status.runner(tmp_path) is None
