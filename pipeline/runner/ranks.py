"""What the ranks of a stage leave in its scratch folder for the runner: where each of them stands, and how one failed.

Ranks that part ways wait for each other: one has died, raised an error, or hangs, and the others stay in a collective.
The launcher ends them all when one ends with an error, and shows its own error rather than the rank's. When one hangs,
or leaves early, nobody ends anything. So each rank says where its main thread stands, again and again; when no rank has
moved for long, the runner ends the stage and says where they stood. A rank that is at work moves: even in a loop that
waits for a GPU nearly all the time, some looks find it elsewhere.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

FAILURES = "failure-host-*.json"
"""What the launcher of each host saw: the rank that failed first, as a `Failure`."""
DONE = "done-rank-{}.json"
"""What a rank leaves when its work is done."""
EXITING = 0x4
"""Linux's PF_EXITING among the flags in `/proc/PID/stat`: set before a process closes its sockets."""
FOLLOWS = frozenset({"", signal.SIGTERM.name, signal.SIGABRT.name})
"""How a rank ends whose partners are gone: an error of its own, the launcher's signal, or NCCL's watchdog."""
LOOK_SECONDS = 1.0
LOOKS, MANY_LOOKS = 10, 100
"""Looks at the main thread each time, a few milliseconds apart, until one finds that it has moved; and when many found
nothing. In the ten minutes that the runner waits by default they are enough to find a loop that computes for a
thousandth of its time."""
LOOK_GAP_SECONDS = 0.02
OURS = ("pipeline", "rewards", "model")
"""Packages whose errors are messages for people."""
PATH_PARTS = 3
"""Parts of a file's path that are shown."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a rank failed.

    Attributes:
        rank: its number.
        time: when, in seconds since the epoch.
        error: its traceback; empty if it left none.
        signal: what killed it, such as `SIGKILL`; empty if nothing did.
        told: the last line of the traceback, if that says all: of an error that this project raises for people to read.
        left: ranks of the same host whose process had ended by then, without an error and without being done.
    """

    rank: int
    time: float
    error: str = ""
    signal: str = ""
    told: str = ""
    left: tuple[int, ...] = ()

    @property
    def killed(self) -> bool:
        """Whether something killed it other than the end of its partners."""
        return self.signal not in FOLLOWS


def number() -> int | None:
    """This process's rank; `None` if no launcher has started it."""
    return int(os.environ["RANK"]) if "RANK" in os.environ else None


def clear(scratch: Path) -> None:
    """Forget what an earlier attempt left."""
    for path in files(scratch):
        path.unlink(missing_ok=True)


def files(scratch: Path) -> list[Path]:
    """All that ranks and their launcher have left."""
    names = FAILURES, "failure-rank-*.json", "stand-rank-*.json", DONE.replace("{}", "*")
    return [path for name in names for path in scratch.glob(name)]


def report(scratch: Path, error: BaseException) -> None:
    """Write down how this rank failed."""
    rank = number() or 0
    text = "".join(traceback.format_exception(error))
    told = "".join(traceback.format_exception_only(error)).strip() if is_ours(error) else ""
    gone = tuple(one for one in left(scratch) if one != rank)
    _write(scratch / f"failure-rank-{rank}.json", asdict(Failure(rank, time.time(), text, told=told, left=gone)))


def done(scratch: Path, rank: int) -> None:
    """Write down that this rank's work is done, so that the end of its process is no surprise."""
    _write(scratch / DONE.format(rank), {})


def left(scratch: Path) -> list[int]:
    """Ranks of this host whose process has ended although they were neither done nor reported an error."""
    gone = []
    for path in scratch.glob("stand-rank-*.json"):
        said, rank = json.loads(path.read_text("utf-8")), int(path.stem.rpartition("-")[2])
        silent = not (scratch / DONE.format(rank)).exists() and not (scratch / f"failure-rank-{rank}.json").exists()
        if silent and said["host"] == platform.node() and not _alive(said["pid"]):
            gone.append(rank)
    return sorted(gone)


def _alive(process: int) -> bool:
    """Whether a process runs. One that is on its way out does not, also while its memory is still being freed."""
    if not Path("/proc/self/stat").exists():
        return True  # no Linux: nothing can be said
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    return state not in "ZX" and not int(fields[5]) & EXITING


def is_ours(error: BaseException) -> bool:
    """Whether this project raised it for people to read: its message says all there is to say."""
    return type(error).__module__.partition(".")[0] in OURS


def reported(scratch: Path) -> list[Failure]:
    """What ranks have reported, the earliest first."""
    return _read(scratch, "failure-rank-*.json")


def first(scratch: Path, failure: Failure, host: int) -> None:
    """Write down which rank of a host, by the host's number, failed first."""
    _write(scratch / FAILURES.replace("*", str(host)), asdict(failure))


def failure(scratch: Path) -> Failure | None:
    """The rank that failed first, if a launcher or a rank has said so; one that was killed counts before all others."""
    seen = _read(scratch, FAILURES)
    return next(iter([*(one for one in seen if one.killed), *reported(scratch), *seen]), None)


def _read(scratch: Path, pattern: str) -> list[Failure]:
    said = [json.loads(path.read_text("utf-8")) for path in scratch.glob(pattern)]
    found = [Failure(**{**one, "left": tuple(one["left"])}) for one in said]
    return sorted(found, key=lambda failure: failure.time)


class Stand(threading.Thread):
    """Writes down, once a second, where the main thread of this rank stands, if it has moved.

    Args:
        scratch: the stage's scratch folder.
        rank: this rank's number.
    """

    def __init__(self, scratch: Path, rank: int) -> None:
        super().__init__(daemon=True, name="stand")
        self.path = scratch / f"stand-rank-{rank}.json"
        self.random = random.Random(rank)  # the global one belongs to the stage
        self.last: tuple[Any, ...] | None = None
        self.moves = self.in_vain = 0

    def run(self) -> None:
        main = threading.main_thread().ident
        while True:
            self._look(main)
            time.sleep(LOOK_SECONDS)

    def _look(self, main: int | None) -> None:
        for _ in range(LOOKS if self.in_vain < MANY_LOOKS else MANY_LOOKS):
            frame = sys._current_frames().get(main or 0)
            stack = _stack(frame)
            if stack != self.last:
                self.last, self.moves, self.in_vain = stack, self.moves + 1, 0
                where = {"moves": self.moves, "where": _where(frame)}
                _write(self.path, {**where, "pid": os.getpid(), "host": platform.node()})
                return
            del frame  # it holds the locals of a function that may end
            self.in_vain += 1
            time.sleep(self.random.random() * LOOK_GAP_SECONDS)


def stands(scratch: Path) -> Mapping[int, tuple[int, str]]:
    """Where each rank stands: rank -> (how often it was seen to have moved, where it is now)."""
    found: dict[int, tuple[int, str]] = {}
    for path in scratch.glob("stand-rank-*.json"):
        said = json.loads(path.read_text("utf-8"))
        found[int(path.stem.rpartition("-")[2])] = said["moves"], said["where"]
    return dict(sorted(found.items()))


def _stack(frame: FrameType | None) -> tuple[tuple[CodeType, int], ...]:
    stack: list[tuple[CodeType, int]] = []
    while frame is not None:
        stack.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(stack)


def _where(frame: FrameType | None) -> str:
    """The line that a thread is in, and the line of ours that called it."""
    if frame is None:
        return "its end"
    ours: FrameType | None = frame
    while ours is not None and "pipeline" not in Path(ours.f_code.co_filename).parts[-PATH_PARTS:-1]:
        ours = ours.f_back
    inner = _line(frame)
    return inner if ours is None or ours is frame else f"{inner}, called from {_line(ours)}"


def _line(frame: FrameType) -> str:
    file = "/".join(Path(frame.f_code.co_filename).parts[-PATH_PARTS:])
    return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
