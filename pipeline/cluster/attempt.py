"""A stage's process on hosts of a cluster, as `subprocess.Popen` would show it.

A thread asks the agents for it, once a second, and so tells them that the runner is there. An agent that Ray reports as
dead, or that does not answer within the deadline, is lost; then, or when a process fails, the others are killed.

What is known of an attempt lies in the stage's scratch folder (`hosts.json`). A host that was lost may still have its
processes: the network may be down, and not the host. They end by themselves within the deadline, since nobody asks for
them any more. So the next attempt, of this runner or of another one, waits as long before it touches the folder.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cluster.agent import LOOKS_A_DEADLINE, Part, Place
from pipeline.files import durable
from pipeline.files.lease import this_host
from pipeline.files.locks import STAGE_LOCK
from pipeline.schema.launch import Launch

log = logging.getLogger(__name__)

HOSTS = "hosts.json"
"""In a stage's scratch folder: where its latest attempt runs, and whether all of its processes are known to be over."""
UNKNOWN: Mapping[str, Any] = {
    "attempt": "unknown",
    "hosts": [{"name": "an unknown host", "boot": ""}],
    "deadline": Launch().deadline,
    "over": False,
}
"""An attempt of which the record cannot be read."""
DEAD = re.compile(r"The actor (?:is dead|died) because (.+)")
"""The line of Ray's errors that says why."""
ASK_SECONDS = 0.5
"""Between two questions to the agents; at most a tenth of the deadline."""


class Attempt:
    """The processes of one attempt.

    Args:
        scratch: the stage's scratch folder.
        agents: handles of the actors, the first host's first.
        places: where they are.
        parts: what they start.
        deadline: seconds within which an agent answers.

    Attributes:
        returncode: how it ended, as that of the first process that failed; `None` while it runs.
        log: what the process has printed that failed first, or that of the first host.
        lost: which hosts were lost, in words that go on after the stage's name; empty if none was.
    """

    pid = -1
    """No process of this host."""

    def __init__(
        self, scratch: Path, agents: Sequence[Any], places: Sequence[Place], parts: Sequence[Part], deadline: float
    ) -> None:
        self.scratch, self.agents, self.places, self.parts = scratch, list(agents), list(places), list(parts)
        self.deadline, self.lost, self.log = deadline, "", self.parts[0].log
        self.returncode: int | None = None
        self._running = list(range(len(agents)))
        self._heard = [time.monotonic()] * len(agents)
        self._asked, self._silent = time.time(), 0.0  # not monotonic, which stands still while a machine sleeps
        self._failed: int | None = None
        self._over = threading.Event()
        self._id = uuid.uuid4().hex
        self._write(over=False)
        threading.Thread(target=self._run, daemon=True, name=f"attempt of {scratch.name}").start()

    def poll(self) -> int | None:
        """How it ended, or `None` while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most for a number of seconds. Raises subprocess.TimeoutExpired after them."""
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired("the processes of a stage", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to its processes, and to whatever they have started, on every host that has not ended."""
        for at in list(self._running):
            self.agents[at].signal.remote(int(number))

    def _run(self) -> None:
        try:
            self._meet()
            self._ask(lambda at: self.agents[at].start.remote(self.parts[at]), once=True)
            while self._running:
                codes = self._ask(lambda at: self.agents[at].poll.remote())
                for at, code in codes.items():
                    if code is not None:
                        self._ended(at, code)
                time.sleep(min(ASK_SECONDS, self.deadline / 10))
            if not self.lost:
                self._write(over=True)
        finally:
            self.returncode = -signal.SIGKILL if self.lost or self._running else self._failed or 0
            self._over.set()

    def _write(self, over: bool) -> None:
        """Write down what others have to know of it."""
        hosts = [
            {"name": place.name, "address": place.address, "node": place.node, "boot": place.boot}
            | {"gpus": [gpu.name for gpu in place.gpus]}
            for place in self.places
        ]
        said = {"attempt": self._id, "hosts": hosts, "deadline": self.deadline, "over": over}
        durable.write(self.scratch / HOSTS, json.dumps(said))

    def _meet(self) -> None:
        """Have the ranks of several hosts meet at a port that is free on the first one now."""
        if self.parts[0].meeting is None:
            return
        address = self.places[0].address
        port = self._ask(lambda at: self.agents[at].free_port.remote(address if at == 0 else ""), once=True).get(0, 0)
        self.parts = [replace(part, meeting=part.meeting and replace(part.meeting, port=port)) for part in self.parts]

    def _ask(self, question: Callable[[int], Any], once: bool = False) -> dict[int, Any]:
        """The answers of the agents that run. One that has not answered within the deadline is lost.

        Args:
            question: asks one, by its number.
            once: whether it cannot be asked again when the network has failed.
        """
        import ray

        self._silent, self._asked = max(self._silent, time.time() - self._asked), time.time()
        asked = {question(at): at for at in self._running}
        patience = self.deadline / (2 if once else LOOKS_A_DEADLINE)  # the other agents want to be asked as well
        ray.wait(list(asked), num_returns=len(asked), timeout=patience)
        answers: dict[int, Any] = {}
        for reference, at in asked.items():
            try:
                answers[at] = ray.get(reference, timeout=0)
                self._heard[at] = time.monotonic()
            except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
                if once or time.monotonic() - self._heard[at] > self.deadline - patience:
                    self._lose(at, f"has not answered for {time.monotonic() - self._heard[at]:.0f} s")
            except ray.exceptions.RayTaskError as error:  # it answers, and could not do what it was asked
                why = f"{type(error.cause).__name__}: {error.cause}"
                self._lose(at, why, f"cannot start on host {self.places[at].name}")
            except ray.exceptions.RayError as error:
                if self._silent > self.deadline:
                    why = f"this runner stood still for {self._silent:.0f} s, and launch.deadline is {self.deadline:g}"
                    self._lose(at, why, f"was ended by host {self.places[at].name}")
                else:
                    self._lose(at, _reason(error))
        return answers

    def _ended(self, at: int, code: int) -> None:
        self._running.remove(at)
        if code and self._failed is None:
            self._failed, self.log = code, self.parts[at].log
            self.signal(signal.SIGKILL)

    def _lose(self, at: int, why: str, how: str = "") -> None:
        self._running.remove(at)
        self.lost += f"{' and ' if self.lost else ''}{how or f'lost host {self.places[at].name}'}: {why}"
        self.signal(signal.SIGKILL)


class Fence:
    """How long the next attempt of a stage has to wait for processes of the latest one, which may be out of reach.

    Hosts whose kernel is this one's are left to the stage's lock, which every process of it holds.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[Path, str], float] = {}

    def left(self, scratch: Path) -> tuple[float, str]:
        """Seconds left, counted from the first question about an attempt, and for which hosts; (0, "") if for none."""
        said = read(scratch)
        away = [place["name"] for place in said.get("hosts", ()) if place["boot"] != this_host().boot]
        if said.get("over", True) or not away:
            return 0.0, ""
        since = self._since.setdefault((scratch, said["attempt"]), time.monotonic())
        return max(0.0, since + said["deadline"] - time.monotonic()), ", ".join(away)


def leave(scratch: Path) -> None:
    """Wait for what may be left of an attempt on a cluster, and forget its hosts: the next one runs on this host."""
    fence, told = Fence(), False
    while (found := fence.left(scratch))[0]:
        if not told:
            log.warning("waiting %.0f s: processes of an attempt on a cluster may still run on %s", *found)
            told = True
        time.sleep(min(1.0, found[0]))
    if found[1]:
        (scratch / STAGE_LOCK).unlink(missing_ok=True)  # a file server may keep a lost host's
    (scratch / HOSTS).unlink(missing_ok=True)


def read(scratch: Path) -> Mapping[str, Any]:
    """What is known of the latest attempt of a stage; empty if it ran on no cluster.

    Of a record that is damaged, or of another version, only this is: it may still run, on hosts that nobody knows.
    """
    try:
        found: Mapping[str, Any] = json.loads((scratch / HOSTS).read_text(encoding="utf-8"))
        if all(isinstance(place[key], str) for place in found["hosts"] for key in ("name", "boot")):
            return {**UNKNOWN, **found, "deadline": float(found["deadline"])}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError):
        pass
    return UNKNOWN


def gpu_names(places: Sequence[Place]) -> tuple[str, ...]:
    """The GPUs of an attempt, as `host:gpu`."""
    return tuple(f"{place.name}:{gpu.name}" for place in places for gpu in place.gpus)


def _reason(error: Exception) -> str:
    """Why an actor is gone, in the line of Ray's message that says so."""
    told = DEAD.search(str(error))
    line = told[1] if told else str(error).strip().partition("\n")[0] or type(error).__name__
    return line.partition(". ")[0].strip().removesuffix(".")
