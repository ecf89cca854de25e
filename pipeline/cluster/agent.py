"""What runs on a host for a stage: an actor of Ray that starts our own process there, and ends it with itself.

Two ways lead to its end, so that no process writes on after the runner has given it up. Ray ends an actor with the
process that made it; and an agent that has not heard from its runner for as long as the stage's `launch.deadline` ends
the stage's process group and itself. The latter needs neither Ray nor the network.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import gpus
from pipeline.checks.launch import accelerate_config
from pipeline.files.lease import this_host
from pipeline.gpus import Gpu
from pipeline.schema.launch import VISIBLE
from rewards.parent import end_group
from rewards.sandbox.cluster import CLUSTER

LOOKS_A_DEADLINE = 20
"""How often an agent looks at its clock within a deadline."""
OWN = frozenset({"CUDA_VISIBLE_DEVICES", "HOSTNAME", "TMPDIR"})
"""Variables that are a host's own; all others come from the environment of the runner, as under Slurm."""
RAYS = "RAY_"
"""How the names of variables begin that are Ray's."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that say by which network interface ranks talk to each other."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a stage runs.

    Attributes:
        node: Ray's number of the host.
        name: its host name, made unique in the cluster by the runner.
        address: its IP address.
        boot: tells a running kernel from every other one.
        gpus: the GPUs that Ray has given to this part.
    """

    node: str
    name: str
    address: str
    boot: str
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of several hosts meet, and who this host is among them.

    Attributes:
        hosts: how many there are.
        rank: this host's number.
        address: of the first host.
        port: a port that is free there; asked for when the ranks start.
    """

    hosts: int
    rank: int
    address: str
    port: int = 0

    def arguments(self, ranks: int) -> list[str]:
        """The same for `accelerate launch`, which divides the number of processes by that of hosts."""
        said = {
            "num_processes": ranks * self.hosts,
            "num_machines": self.hosts,
            "machine_rank": self.rank,
            "main_process_ip": self.address,
            "main_process_port": self.port,
            "rdzv_backend": "static",
        }
        return [*(word for name, value in said.items() for word in (f"--{name}", str(value))), "--same_network"]


@dataclass(frozen=True, slots=True)
class Part:
    """What an agent starts: the process of a stage, or the launcher of its ranks on this host.

    Attributes:
        job: the job file.
        log: the file that it prints to, at the end.
        variables: its environment, as far as that is not the host's own.
        visible: the GPUs of the process, or of its ranks, as `CUDA_VISIBLE_DEVICES` has them.
        accelerate: the accelerate config; plain Python without.
        base: the recipe's folder, against which that is read.
        folder: the runner's current one, which the process has as well if it is there.
        ranks: how many ranks the launcher starts here; as the config says for `None`.
        meeting: where ranks of several hosts meet; `None` for one host.
    """

    job: Path
    log: Path
    variables: Mapping[str, str]
    visible: str
    accelerate: str | None
    base: Path
    folder: Path
    ranks: int | None
    meeting: Rendezvous | None


class Agent:
    """The actor.

    Args:
        deadline: seconds without a word from the runner after which it ends, and with it what it has started.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline, self._heard = deadline, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._gpus: tuple[Gpu, ...] = ()
        self._cluster = ""

    def place(self) -> Place:
        """Where it is."""
        import ray

        context = ray.get_runtime_context()
        self._cluster = context.gcs_address
        self._gpus = gpus.visible({VISIBLE: ",".join(context.get_accelerator_ids().get("GPU", []))})
        address = ray.util.get_node_ip_address()
        return Place(context.get_node_id(), socket.gethostname(), address, this_host().boot, self._gpus)

    def free_port(self, address: str) -> int:
        """A port that is free on this host."""
        with socket.socket() as free:
            free.bind((address, 0))
            return int(free.getsockname()[1])

    def start(self, part: Part) -> int:
        """Start the process; returns its number. From here on the runner is missed when it is silent."""
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, daemon=True, name="deadline").start()
        own = {name: value for name, value in os.environ.items() if _own(name)}
        locks = os.pathsep.join(str(gpus.lock_path(gpu)) for gpu in self._gpus)
        env = {**own, **part.variables, VISIBLE: part.visible, gpus.HELD: locks, CLUSTER: self._cluster}
        if part.meeting is not None:
            env |= interface(part.meeting.address, env)
        words = command(part, os.getpid())
        with part.log.open("ab") as sink:
            blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it while a method runs
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=part.folder if part.folder.is_dir() else None,
                start_new_session=True,
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code of the process, if it has ended; then nothing that it has started is left either."""
        self._heard = time.monotonic()
        if self._process is None or (code := self._process.poll()) is None:
            return None
        end_group(self._process.pid)
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the process and to whatever it has started."""
        self._heard = time.monotonic()
        if self._process is not None and self._process.poll() is None:
            end_group(self._process.pid, signal.Signals(number))

    def _watch(self) -> None:
        while time.monotonic() - self._heard < self.deadline:
            time.sleep(self.deadline / LOOKS_A_DEADLINE)
        if self._process is not None:
            end_group(self._process.pid)
        os._exit(1)


def portable(variables: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is a host's own; what a recipe gives stays."""
    return {name: value for name, value in variables.items() if name in given or not _own(name)}


def _own(name: str) -> bool:
    return name in OWN or name.startswith(RAYS)


def command(part: Part, runner: int) -> list[str]:
    """The command of a part; `runner` is the process with which it ends."""
    worker = ["-m", "pipeline.runner.worker", str(part.job), str(runner)]
    if part.accelerate is None:
        return [sys.executable, *worker]
    config = accelerate_config(part.accelerate, part.base)
    launcher = [sys.executable, "-m", "pipeline.runner.launcher", str(part.job.parent), "--config_file", str(config)]
    if part.meeting is not None:
        launcher += part.meeting.arguments(part.ranks or 1)
    elif part.ranks is not None:
        launcher += ["--num_processes", str(part.ranks)]
    return [sys.executable, "-m", "rewards.parent", str(runner), *launcher, *worker]


def interface(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The network interface by which a host reaches an address, for ranks that are not told one.

    Otherwise gloo asks what the host's own name means, and many hosts say 127.0.1.1.
    """
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        mine = probe.getsockname()[0]
    found = [name for name, has in psutil.net_if_addrs().items() if mine in {one.address for one in has}]
    return {name: found[0] for name in INTERFACES if found and name not in environment}
