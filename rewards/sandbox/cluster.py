"""The sandboxes of all hosts of a Ray cluster as one: a job runs on whichever host has a core free.

Each host has an actor with a local sandbox, which has to prove there that it isolates before anything runs. A job whose
host is lost is done on another one. The actors end with the process that has made them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import threading
from dataclasses import dataclass
from itertools import zip_longest
from queue import Queue
from typing import Any

from rewards.sandbox.bubblewrap import SandboxError
from rewards.sandbox.connection import connect
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.pool import LocalSandbox, Payload
from rewards.sandbox.worker import Ending, Outcome

log = logging.getLogger(__name__)

CLUSTER = "ZERO2R1_CLUSTER"
"""Variable with the address of the cluster that a stage runs on."""
START_SECONDS = 120.0
"""How long a host may take until its sandbox is there: Ray starts a process on a cold file system."""
SLACK_SECONDS = 60.0
"""How long a host may take to answer, beyond twice a job's own time: its sandbox tries a job twice."""
RANKS = "WORLD_SIZE"
"""Variable that says how many ranks a stage has; each judges its own rollouts, at the same time as the others."""
TRIES = 3
"""Hosts that one job may lose before it counts as one that cannot be run."""


class OnHost:
    """The actor: the local sandbox of a host."""

    def __init__(self) -> None:
        self._sandbox: LocalSandbox | None = None
        self._runs, self._counting = 0, threading.Lock()

    def open(self, limits: Limits, workers: int) -> str:
        """Open the sandbox. Returns why it cannot be had; empty if it can."""
        try:
            self._sandbox = LocalSandbox(limits, workers)
        except SandboxError as error:
            return str(error)
        return ""

    def run(self, payload: Payload, solution: Payload | None) -> Outcome:
        """Run a job; see `Sandbox.run`."""
        assert self._sandbox is not None
        with self._counting:
            self._runs += 1
        return self._sandbox.run(payload, solution)

    def runs(self) -> int:
        """How many jobs have begun so far."""
        return self._runs

    def close(self) -> None:
        """End the sandbox's processes; a later job starts them again."""
        if self._sandbox is not None:
            self._sandbox.close()


@dataclass(eq=False, slots=True)
class Host:
    """A host and its actor; `lost` once it did not answer."""

    name: str
    workers: int
    actor: Any
    lost: bool = False


class ClusterSandbox:
    """Jobs on all hosts of a Ray cluster that have cores.

    Args:
        address: `HOST:PORT` of the cluster, or `auto`; that of the run's own cluster if empty.
        limits: what a job may use.
        workers: jobs at one time on each host; if not given, the cores that Ray may give away there, of which each rank
            of the stage takes its part.

    Attributes:
        hosts: the hosts, lost ones included.
        workers: jobs at one time on all of them.

    Raises:
        SandboxError: there is no cluster, or a host has no sandbox that isolates; the message names the host.
    """

    def __init__(self, address: str, limits: Limits, workers: int | None = None) -> None:
        self.limits = limits
        join(address or os.environ.get(CLUSTER, ""))
        self.hosts = _opened(limits, workers)
        self.workers = sum(host.workers for host in self.hosts)
        turns = zip_longest(*([host] * host.workers for host in self.hosts))
        self._free: Queue[Host | None] = Queue()
        for host in (host for turn in turns for host in turn if host is not None):
            self._free.put(host)
        self._losing = threading.Lock()

    def run(self, payload: Payload, solution: Payload | None = None) -> Outcome:
        """Run a job; see `Sandbox.run`. One whose host is lost runs again on another host."""
        import ray

        lost: list[str] = []
        while len(lost) < TRIES:
            host = self._free.get()
            if host is None:
                self._free.put(None)  # for whoever waits next
                return Outcome(Ending.BROKEN, detail="every host of the cluster is lost")
            if host.lost:
                continue
            try:
                asked = host.actor.run.remote(payload, solution)
                outcome: Outcome = ray.get(asked, timeout=2 * self.limits.wall_s + SLACK_SECONDS)
            except ray.exceptions.RayError as error:
                lost.append(host.name)
                self._lose(host, error)
            else:
                self._free.put(host)
                return outcome
        return Outcome(Ending.BROKEN, detail=f"lost {len(lost)} hosts in the middle of this job: {', '.join(lost)}")

    def close(self) -> None:
        """End the processes of all sandboxes; a later job starts them again."""
        import ray

        for host in self.hosts:
            with contextlib.suppress(ray.exceptions.RayError):
                if not host.lost:
                    ray.get(host.actor.close.remote(), timeout=SLACK_SECONDS)

    def _lose(self, host: Host, error: Exception) -> None:
        with self._losing:
            if host.lost:
                return
            host.lost = True
            left = [other.name for other in self.hosts if not other.lost]
            log.warning("lost host %s (%s): its programs run on %s", host.name, _reason(error), left or "no host")
            if not left:
                self._free.put(None)


def join(address: str) -> None:
    """Connect this process to a cluster, if it is not connected already.

    Raises:
        SandboxError: there is no cluster there.
    """
    if not address:
        raise SandboxError(
            "backend cluster runs programs on the hosts of a Ray cluster: start the run with --cluster, or give the"
            " cluster's address (url: auto, or HOST:PORT)"
        )
    if importlib.util.find_spec("ray") is None:
        raise SandboxError("backend cluster needs the package ray: pip install 'ray>=2.54'")
    import ray

    if ray.is_initialized():
        return
    try:
        connect(address)
    except ConnectionError as error:
        raise SandboxError(f"backend cluster, url {address}: {error}") from error


def _opened(limits: Limits, workers: int | None) -> list[Host]:
    """The hosts that answer, each with a sandbox that isolates."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    hosts = []
    actor = ray.remote(OnHost)
    for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):
        cores = int(node["Resources"].get("CPU", 0))
        if node["Alive"] and cores:
            many = workers or max(1, cores // int(os.environ.get(RANKS, "1")))
            how = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": many + 1}
            where = On(node_id=node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"
            hosts.append(Host(name, many, actor.options(**how, scheduling_strategy=where).remote()))
    asked = {host: host.actor.open.remote(limits, host.workers) for host in hosts}
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=START_SECONDS)
    there, faults = [], []
    for host, answer in asked.items():
        try:
            why = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:  # lost just now, or it does not answer
            log.warning("host %s has no part in judging: %s", host.name, _reason(error))
        else:
            there.append(host)
            faults += [f"{host.name}: {why}"] if why else []
    if faults:
        raise SandboxError("backend cluster: no sandbox on a host of the cluster\n" + "\n".join(faults))
    if not there:
        raise SandboxError(f"backend cluster: no host of the cluster that {socket.gethostname()} is part of can judge")
    return there


def _reason(error: Exception) -> str:
    """The first line of an error of Ray's; the whole of it runs over many."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
