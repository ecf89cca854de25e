"""The killable pool: deadlines, memory, crashes, threads, daemons, forks, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.function import RewardFunction
from rewards.pool import Fate, Pool, PoolError

SOURCE = """
import os, sys, time

def work(what, value=0):
    started = time.process_time()
    if what == "hang":
        return len(str(9 ** 9 ** 9))
    if what == "sleep":
        time.sleep(value)
    if what == "burn":
        while time.process_time() - started < value:
            pass
    if what == "memory":
        return len(bytearray(value * 2**20))
    if what == "die":
        os._exit(3)
    if what == "raise":
        raise KeyError(value)
    if what == "exit":
        sys.exit(value)
    if what == "unserialisable":
        return object()
    if what == "pid":
        return os.getpid()
    if what == "print":
        print("x" * 10**6)
    if what == "time":
        return time.monotonic_ns()
    return value
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "tasks.py"
    file.write_text(SOURCE)
    return f"{file}:work"


@pytest.fixture
def pool(path):
    pool = Pool(path, workers=2, deadline_s=2.0, rss_mib=256)
    yield pool
    pool.close()


def fates(outcomes):
    return [outcome.fate for outcome in outcomes]


def test_values_come_back_in_order(pool):
    outcomes = pool.map([("echo", n) for n in [3, 1, 2, "a", None, [1, 2]]])
    assert [outcome.value for outcome in outcomes] == [3, 1, 2, "a", None, [1, 2]]


def test_every_way_to_fail_is_an_outcome_and_harms_nobody_else(pool):
    outcomes = pool.map(
        [("hang",), ("memory", 2000), ("die",), ("raise", 7), ("exit", 1), ("unserialisable",), ("print",), ("echo", 5)]
    )
    assert fates(outcomes[:4]) == [Fate.TIMEOUT, Fate.MEMORY, Fate.CRASHED, Fate.RAISED]
    assert outcomes[3].detail == "KeyError: 7"
    assert outcomes[4].fate is not Fate.DONE
    assert outcomes[5].fate is Fate.RAISED
    assert fates(outcomes[6:]) == [Fate.DONE, Fate.DONE]
    assert outcomes[7].value == 5


def test_a_hang_costs_its_deadline_and_no_more(pool):
    pool.map([("echo", 1)])
    started = time.monotonic()
    assert fates(pool.map([("hang",), ("echo", 2)])) == [Fate.TIMEOUT, Fate.DONE]
    assert 1.9 < time.monotonic() - started < 12.0


def test_a_batch_ends_in_time_and_what_hangs_costs_its_own_row_alone(path):
    pool = Pool(path, workers=1, deadline_s=30.0)
    try:
        started = time.monotonic()
        outcomes = pool.map([("echo", 1), ("sleep", 20), ("echo", 2)], within_s=1.5)
        assert time.monotonic() - started < 10
        assert fates(outcomes) == [Fate.DONE, Fate.TIMEOUT, Fate.DONE]
        assert pool.map([("echo", 2)])[0].value == 2
    finally:
        pool.close()


def test_equal_calls_run_once_and_are_remembered_within_bounds(path):
    pool = Pool(path, workers=2, deadline_s=20.0, cache_size=2)
    try:
        first = pool.map([("time", 1), ("time", 1), ("time", 2)])
        assert first[0].value == first[1].value != first[2].value
        assert pool.map([("time", 1)])[0].value == first[0].value
        pool.map([("echo", n) for n in range(5)])
        assert pool.map([("time", 1)])[0].value != first[0].value
    finally:
        pool.close()


def test_threads_do_not_wait_for_one_another(path):
    pool = Pool(path, workers=1, deadline_s=30.0)
    pool.map([("echo", 0)])
    done = []
    slow = threading.Thread(target=lambda: pool.map([("sleep", 8)]))
    slow.start()
    time.sleep(0.2)
    quick = threading.Thread(target=lambda: done.append(pool.map([("echo", 1)])[0].value))
    quick.start()
    quick.join()
    assert done == [1] and slow.is_alive()
    slow.join()
    pool.close()


def test_a_function_that_cannot_be_imported_is_a_clear_error():
    with pytest.raises(PoolError, match="No module named 'no_such_module'"):
        Pool("no_such_module:f").map([(1,)])


def test_a_prepared_reward_has_its_imports_behind_it(tmp_path):
    """A reward's first call does not wait for what `prepare` began; nothing starts before."""
    (tmp_path / "slow.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'imported').touch()\ndef work(value):\n    return value\n"
    )
    (tmp_path / "mine.py").write_text(
        f"""
from rewards.pool import Pool
from rewards.verdict import Status, Verdict

class Slow:
    def __init__(self):
        self.pool = Pool({str(tmp_path / "slow.py") + ":work"!r})

    def prepare(self):
        self.pool.start()

    def verify(self, items):
        return [Verdict(Status.CORRECT, outcome.value) for outcome in self.pool.map([(1.0,) for _ in items])]

    def close(self):
        self.pool.close()
"""
    )
    correct = {"correct": f"{tmp_path / 'mine.py'}:Slow"}
    function = RewardFunction("cosine_length", {**correct, "max_tokens": 10})
    assert function.verifier is not None
    assert not (tmp_path / "imported").exists()
    function.prepare()
    ended = time.monotonic() + 60
    while not (tmp_path / "imported").exists() and time.monotonic() < ended:
        time.sleep(0.01)
    assert (tmp_path / "imported").exists()
    function.close()


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="deadline"):
        Pool("math:sqrt", deadline_s=0)


def test_it_pickles_without_its_processes(pool):
    pool.map([("echo", 1)])
    copy = pickle.loads(pickle.dumps(pool))
    try:
        assert copy.deadline_s == 2.0
        assert copy.map([("pid",)])[0].value != pool.map([("pid",)])[0].value
    finally:
        copy.close()


def test_it_starts_anew_after_close_and_when_its_server_was_killed(pool):
    pool.map([("echo", 1)])
    pool.close()
    assert pool.map([("echo", 2)])[0].value == 2
    for child in psutil.Process().children():
        if child.pid != os.getpid() and "pool_server" in " ".join(child.cmdline()):
            child.kill()
            child.wait()
    assert pool.map([("echo", 3)])[0].value == 3


def _in_child(path, queue):
    pool = Pool(path, workers=1, deadline_s=30.0)
    queue.put(pool.map([("echo", 9)])[0].value)
    pool.close()


def test_it_works_in_a_daemonic_process(path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(path, queue), daemon=True)
    child.start()
    assert queue.get(timeout=60) == 9
    child.join()


def test_a_fork_of_the_trainer_gets_a_server_of_its_own(path):
    pool = Pool(path, workers=1, deadline_s=30.0)
    ours = pool.map([("pid",)])[0].value
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            theirs = pool.map([("pid",), ("echo", 4)])
            os.write(write, f"{theirs[1].value}".encode())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 10) == b"4"
    assert psutil.pid_exists(ours)
    assert pool.map([("echo", 5)])[0].value == 5
    pool.close()


@pytest.mark.parametrize("how", ["falls off the end", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise KeyError"])
def test_no_process_outlives_its_parent(path, how, tmp_path):
    script = tmp_path / "parent.py"
    end = "" if how == "falls off the end" else how
    script.write_text(
        textwrap.dedent(
            f"""
            import os, threading
            from rewards.pool import Pool
            pool = Pool({path!r}, workers=1, deadline_s=60.0)
            print(pool.map([("pid",)])[0].value, flush=True)
            threading.Thread(target=lambda: pool.map([("hang",)]), daemon=True).start()
            import time; time.sleep(0.5)
            {end}
            """
        )
    )
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    worker = int(run.stdout.split()[0])
    for _ in range(150):
        if not psutil.pid_exists(worker):
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlived its parent")


def test_it_does_not_inherit_the_parents_memory(pool):
    """The worker is small, however large the parent: it was started by exec, not forked from the trainer."""
    ballast = bytearray(200 * 2**20)
    worker = pool.map([("pid",)])[0].value
    assert psutil.Process(worker).memory_info().rss < 100 * 2**20
    assert len(ballast)


def test_hanging_calls_cost_their_own_share_and_never_a_neighbours_value(path):
    pool = Pool(path, workers=2, deadline_s=3.0)
    try:
        calls = [("hang", n) for n in range(24)] + [("echo", n) for n in range(8)]
        pool.map([("echo", -1)])
        started = time.monotonic()
        outcomes = pool.map(calls, within_s=6.0)
        assert time.monotonic() - started < 3 * 6.0 + 10.0
        assert {outcome.fate for outcome in outcomes[:24]} <= {Fate.TIMEOUT, Fate.UNREACHED}
        assert [outcome.value for outcome in outcomes[24:]] == list(range(8))
    finally:
        pool.close()


def test_a_call_that_needs_more_than_its_share_gets_what_the_others_leave(path):
    """Sixteen calls share six seconds; one of them needs more than a sixteenth, and the others nearly nothing."""
    pool = Pool(path, workers=1, deadline_s=3.0)
    try:
        outcomes = pool.map([("burn", 0.9), *(("echo", n) for n in range(15))], within_s=6.0)
        assert fates(outcomes) == [Fate.DONE] * 16
    finally:
        pool.close()


def test_cpu_time_decides_and_not_the_clock(path):
    """Six others compete for the cores, so that half a second of work takes longer than its limit on the clock."""
    pool = Pool(path, workers=1, deadline_s=1.0)
    burn = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(burn) for _ in range(3 * len(os.sched_getaffinity(0)))]
    try:
        (outcome,) = pool.map([("burn", 0.6)])
        assert outcome.fate is Fate.DONE
        assert 550 < outcome.ms < 1000
        assert fates(pool.map([("hang",)])) == [Fate.TIMEOUT]
    finally:
        pool.close()
        for other in others:
            other.kill()
            other.wait()


def test_a_timeout_in_a_crowd_is_not_remembered(path):
    pool = Pool(path, workers=1, deadline_s=2.0)
    try:
        crowd = [("burn", 0.8 + n / 1000) for n in range(20)]
        assert Fate.TIMEOUT in fates(pool.map(crowd, within_s=2.0))
        assert fates(pool.map(crowd[:1])) == [Fate.DONE]
    finally:
        pool.close()
