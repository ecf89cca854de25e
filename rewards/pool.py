"""A pool of processes that can be killed: CPU time and memory limits for code that may never return.

Python cannot stop a thread, `SIGALRM` exists only in the main thread, and neither ends a big-number loop that holds
the GIL. So what may hang runs in a process, and the clock stays with the caller::

    pool = Pool("my_package.scoring:score", workers=4, deadline_s=2.0, rss_mib=512)
    for outcome in pool.map([("1/2", "0.5"), ("9**9**9**9", "1")]):
        print(outcome.fate, outcome.value)      # done True / timeout None

CPU time decides, so that a busy machine changes no outcome; wall-clock time only guards against calls that wait for
ever. A batch's time is divided by `rewards.pool_turns`, so that a call that hangs costs no other its turn.

The function is named by its path and called with JSON-able arguments; it returns something JSON-able. Workers are
forked from a small server process (`rewards.pool_server`) that is started with `exec`, so that the pool works under
any parent: one that has CUDA and torch's threads, a daemonic `multiprocessing` child, a notebook, several threads at
once. A killed worker is replaced in milliseconds. The server ends with its parent, however that ends.
"""

from __future__ import annotations

import json
import os
import selectors
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from rewards.pool_turns import Turn, Turns
from rewards.pool_workers import STATUS_OF, Fate, Outcome, PoolError, Server, Worker

__all__ = ["STATUS_OF", "Fate", "Outcome", "Pool", "PoolError"]

_RECYCLE_AFTER = 2000
"""Tasks a worker serves before it is replaced, so that what libraries cache cannot grow without end."""
_PATIENCE = 10.0
"""Wall-clock seconds that a call may take for each second of CPU time it is given: it may sleep, or wait for a core."""
_BUSY_SHARE = 0.5
"""Share of a batch's time on the clock that its calls may spend as CPU time: half, so that a machine whose cores do
something else half of the time still keeps the deadline."""
_GRACE = 3.0
"""How many times a batch's deadline calls wait for their first attempt, where others keep the cores busy."""
_GLANCE_S = 0.01
"""Wall-clock seconds between two looks at a CPU clock, at least."""
_LASTING = frozenset({Fate.DONE, Fate.RAISED, Fate.MEMORY})
"""Fates that belong to the arguments, and are remembered with them; so is a timeout after the whole of a deadline."""


class Pool:
    """Calls one function in killable processes. Thread-safe; picklable (the copy starts its own processes).

    Args:
        function_path: `package.module:function` or `path/file.py:function`.
        workers: processes at work for one `map` call. Calls from several threads do not wait for one another.
        deadline_s: CPU seconds one call may take before its process is killed.
        rss_mib: MiB of memory (address space) that a worker may take beyond what the function's imports need.
        cache_size: outcomes remembered (least recently used go first); equal arguments in one batch run once anyway.
    """

    def __init__(
        self,
        function_path: str,
        workers: int | None = None,
        deadline_s: float = 5.0,
        rss_mib: int = 1024,
        cache_size: int = 16384,
    ) -> None:
        if deadline_s <= 0 or rss_mib <= 0 or (workers is not None and workers < 1):
            raise ValueError("a pool needs at least one worker, a positive deadline and some memory")
        self.function_path, self.deadline_s, self.rss_mib = function_path, deadline_s, rss_mib
        self.workers = workers or min(8, _cores())
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Outcome] = OrderedDict()
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._server: Server | None = None

    def __reduce__(self) -> tuple[type[Pool], tuple[Any, ...]]:
        return Pool, (self.function_path, self.workers, self.deadline_s, self.rss_mib, self.cache_size)

    def start(self) -> None:
        """Let the server begin with its imports, which take seconds; the first `map` waits for the rest of them.

        Raises:
            PoolError: there is no process to be had. What cannot be imported is told by `map`.
        """
        with self._lock:
            self._living_server()

    def map(self, calls: Sequence[Sequence[Any]], within_s: float | None = None) -> list[Outcome]:
        """Call the function once for each list of arguments, and wait for all.

        Args:
            calls: arguments, one JSON-able sequence a call. Equal ones run once.
            within_s: seconds for the whole batch. Calls share half of that as CPU time on each core, evenly, and one
                that does not end within its share is `TIMEOUT`. If other processes take the cores, first attempts may
                run for three times as long by the clock; calls that even then had none, or were in it, are `UNREACHED`.

        Returns:
            One outcome a call, in order. What the function raises, hangs on or dies of is an outcome, not an error.

        Raises:
            PoolError: the server process cannot be started.
        """
        keys = [json.dumps(list(arguments)) for arguments in calls]
        known: dict[str, Outcome] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in self._cache:
                    self._cache.move_to_end(key)
                    known[key] = self._cache[key]
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            fresh = self._run(missing, within_s)
            known |= fresh
            with self._lock:
                self._cache |= {key: outcome for key, outcome in fresh.items() if self._lasts(outcome)}
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
        return [known[key] for key in keys]

    def close(self) -> None:
        """End all processes. The pool starts anew if it is used again."""
        with self._lock:
            for worker in self._idle:
                worker.channel.close()
            self._idle.clear()
            if self._server is not None:
                self._server.close()
                self._server = None

    def _run(self, keys: list[str], within_s: float | None) -> dict[str, Outcome]:
        self._ready()
        lanes = min(self.workers, _cores())
        turns = Turns(keys, self.deadline_s, None if within_s is None else within_s * lanes * _BUSY_SHARE)
        outcomes: dict[str, Outcome] = {}
        busy: dict[Worker, Turn] = {}
        started = time.monotonic()
        end = started + (float("inf") if within_s is None else within_s)
        last = started + (float("inf") if within_s is None else within_s * _GRACE)
        with selectors.DefaultSelector() as selector:
            try:
                while (now := time.monotonic()) < last:
                    while turns.waiting(now < end) and len(busy) < self.workers and (turn := turns.next()) is not None:
                        worker = self._borrow()
                        busy[worker] = turn
                        worker.start(turn.key)
                        selector.register(worker.channel, selectors.EVENT_READ, worker)
                    if not busy:
                        break
                    wake = min(last, *(_next_look(worker, turn, end) for worker, turn in busy.items()))
                    ready = {e.data for e, _ in selector.select(max(_GLANCE_S, wake - time.monotonic()))}
                    for worker, turn in list(busy.items()):
                        outcome = (worker.reply() if worker in ready else None) or self._overdue(worker, turn, end)
                        if outcome is None:
                            continue
                        del busy[worker]
                        selector.unregister(worker.channel)
                        turns.ended(turn, worker.used_s())
                        if outcome.fate is not Fate.TIMEOUT or not turns.overran(turn):
                            outcomes[turn.key] = outcome
                        self._give_back(worker, outcome)
            finally:
                for worker, turn in busy.items():
                    outcomes[turn.key] = worker.ended(Fate.UNREACHED, "the batch ran out of time")
                    self._give_back(worker, outcomes[turn.key])
        for key, tried in turns.rest():
            fate = Fate.TIMEOUT if tried else Fate.UNREACHED
            outcomes[key] = Outcome(fate, None, "not decided within its share of the batch's time")
        return outcomes

    def _overdue(self, worker: Worker, turn: Turn, end: float) -> Outcome | None:
        """What becomes of a call that has taken its CPU time, sleeps, or is tried again when the batch is over."""
        if worker.used_s() >= turn.share_s:
            return worker.ended(Fate.TIMEOUT, f"more than {turn.share_s:.2g} s of CPU time")
        now = time.monotonic()
        if now >= worker.started + _PATIENCE * turn.share_s:
            return worker.ended(Fate.TIMEOUT, f"{now - worker.started:.2g} s on the clock without an answer")
        return worker.ended(Fate.TIMEOUT, "the batch ran out of time") if turn.before_s and now >= end else None

    def _ready(self) -> None:
        with self._lock:
            self._living_server().wait()

    def _living_server(self) -> Server:
        if self._server is not None and not self._server.alive():
            self._server = None
            self._idle.clear()
        if self._server is None:
            self._server = Server(self.function_path, self.rss_mib)
        return self._server

    def _borrow(self) -> Worker:
        with self._lock:
            server = self._living_server()
            server.wait()
            return self._idle.pop() if self._idle else server.fork()

    def _give_back(self, worker: Worker, outcome: Outcome) -> None:
        """Keep a worker that ended its task well; kill any other."""
        with self._lock:
            healthy = outcome.fate in (Fate.DONE, Fate.RAISED) and worker.served < _RECYCLE_AFTER
            if healthy and worker.server is self._server and len(self._idle) < self.workers:
                self._idle.append(worker)
            else:
                worker.kill()

    def _lasts(self, outcome: Outcome) -> bool:
        whole = outcome.fate is Fate.TIMEOUT and outcome.ms >= self.deadline_s * 1000
        return whole or outcome.fate in _LASTING


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _next_look(worker: Worker, turn: Turn, end: float) -> float:
    """When this call could be overdue at the earliest: it gets no more CPU time than passes on the clock."""
    now = time.monotonic()
    soonest = now + max(_GLANCE_S, turn.share_s - worker.used_s())
    return min(soonest, worker.started + _PATIENCE * turn.share_s, end if turn.before_s else soonest)
