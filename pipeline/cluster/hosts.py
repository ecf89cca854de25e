"""The hosts of a cluster: what they have, and whether a run can rely on them.

Before a run starts, every host must see the run's folder and the recipe as this one does, and have the same versions of
what shapes results, and a clock that agrees. A difference found now is one line; found later it is a wrong number, or a
collective that hangs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import platform
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import pipeline
from pipeline.files import durable, formats
from pipeline.runner.graph import content_hash
from pipeline.schema import extras
from rewards.sandbox.connection import CONNECT_SECONDS, connect

log = logging.getLogger(__name__)
T = TypeVar("T")

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "vllm", "torchao"),
    *("bitsandbytes", "liger-kernel", "math-verify", "sympy", "ray", "zero2r1"),
)
"""What must have the same version on all hosts, beside Python."""
OURS = ("pipeline", "rewards", "model", "configs")
"""Folders of zero2r1 whose files must be the same: checkouts of one version differ."""
HOSTS = "cluster.json"
"""In the run's folder: the hosts that were up when a stage last asked for some."""
CLOCK_SECONDS = 5.0
"""By how much clocks may differ: times of logs and artifacts are compared, and those count in seconds."""
LOOK_SECONDS = 10.0
"""Between two looks whether the head of the cluster still answers."""
ANSWER_SECONDS = 120.0
"""How long a host may take to answer: Ray starts a process there, on a cold file system."""
SEEN_SECONDS = 15.0
"""How long a new file may take to appear on another host: network file systems remember what was not there."""


class ClusterError(RuntimeError):
    """The cluster cannot be reached, or its hosts are not alike; a line for each fault."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host that is up.

    Attributes:
        node: Ray's number of it.
        name: its host name, with the beginning of that number where several have the same name.
        address: its IP address.
        cpus, gpus: how many Ray may give away.
    """

    node: str
    name: str
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a host is to look for.

    Attributes:
        token: a file that was written just now.
        content: what is in it.
        recipe: the recipe's file.
        files: files, folders and patterns that its stages read.
    """

    token: Path
    content: str
    recipe: Path
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host says of itself.

    Attributes:
        sees: whether it can read the token.
        writes: whether it can write beside it.
        same: name -> value; what all hosts must have in common.
        time: its clock, in seconds since the epoch.
    """

    sees: bool
    writes: bool
    same: Mapping[str, str]
    time: float


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster.

    Raises:
        ClusterError: there is none at this address, or this machine is not part of it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(f"--cluster needs the package ray, which is not installed here: {extras.install('ray')}")
    try:
        connect(address)
    except ConnectionError as error:
        raise ClusterError(f"--cluster {address}: {error}") from error
    import ray

    over = threading.Event()
    threading.Thread(target=_watch, args=(ray.get_runtime_context().gcs_address, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        ray.shutdown()


def _watch(head: str, over: threading.Event) -> None:
    """Say that a cluster's head is gone: Ray ends this process after a minute without one, and says nothing of runs."""
    host, _, port = head.rpartition(":")
    told = False
    while not over.wait(LOOK_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            told = False
        except OSError as error:
            if not told:
                log.error(
                    "the head of the cluster, %s, does not answer (%s). If it stays away for a minute, Ray ends this"
                    " run: start Ray again, and the same command goes on from the last checkpoints",
                    head,
                    error,
                )
            told = True


def up() -> list[Host]:
    """The hosts that are up, sorted by address."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = [node["NodeManagerHostname"] for node in nodes]
    found = [
        Host(
            node["NodeID"],
            name if names.count(name) == 1 else f"{name} ({node['NodeID'][:6]})",
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node, name in zip(nodes, names, strict=True)
    ]
    return sorted(found, key=lambda host: (host.address, host.node))


def check(hosts: Sequence[Host], run: Path, recipe: Path, files: Sequence[Path] = ()) -> list[Host]:
    """Compare every host with this one; see `differences`. Returns those that are still up.

    A host that is lost just now, perhaps with the runner before this one, is no host that differs.

    Raises:
        ClusterError: says what is wrong, a line for each host and fault.
    """
    found = differences(hosts, run, recipe, files)
    left = {host.node for host in up()}
    for host in hosts:
        if host.node not in left:
            log.warning("host %s (%s) was lost while hosts were compared: it has no part", host.name, host.address)
    if wrong := [fault for node, told in found.items() if node in left for fault in told]:
        raise ClusterError("\n".join(("nothing was started: the hosts of the cluster are not alike", *wrong)))
    return [host for host in hosts if host.node in left]


def differences(hosts: Sequence[Host], run: Path, recipe: Path, files: Sequence[Path] = ()) -> dict[str, list[str]]:
    """What is wrong with hosts, beside this one, by Ray's number of those that have a fault.

    Args:
        hosts: see `up`.
        run: the run's folder; it is there.
        recipe: the recipe's file.
        files: files, folders and patterns that its stages read.
    """
    token = run.resolve() / f".seen-{uuid.uuid4().hex}"
    there = tuple(path if path.is_absolute() else Path.cwd() / path for path in files)  # hosts have other current ones
    asked = Asked(token, uuid.uuid4().hex, recipe.resolve(), there)
    token.write_text(asked.content, encoding="utf-8")
    try:
        here = facts(asked)
        answers = _ask(hosts, facts, asked)
    finally:
        token.unlink()
    found = {}
    for host in hosts:
        said, before = answers[host.node], time.time()
        if isinstance(said, Facts):  # its process is there now: that it took a while to start says nothing of its clock
            now = _ask([host], clock)[host.node]
            said = now if isinstance(now, str) else replace(said, time=now)
        found[host.node] = list(faults(host, said, here, run, before, time.time()))
    return {node: told for node, told in found.items() if told}


def facts(asked: Asked) -> Facts:
    """What this host says of itself."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not (sees := _holds(asked.token, asked.content)) and time.monotonic() < deadline:
        time.sleep(0.5)
    mark = asked.token.with_name(f"{asked.token.name}-{uuid.uuid4().hex}")
    writes = sees
    try:
        mark.touch()
        mark.unlink()
    except OSError:
        writes = False
    return Facts(sees, writes, same((asked.recipe, *asked.files)), time.time())


def same(files: Iterable[Path]) -> dict[str, str]:
    """What all hosts of a run must have in common, as this one has it: versions, zero2r1's code, and some files."""
    found = {"Python": platform.python_version(), "bubblewrap": "there" if shutil.which("bwrap") else "missing"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found[f"zero2r1's code ({', '.join(OURS)})"] = _code(Path(pipeline.__path__[0]).parent)
    for path in files:
        try:
            found[str(path)] = content_hash(path, times=False)[:12] if formats.matching(path) else "missing"
        except OSError as error:
            found[str(path)] = f"not readable ({error.strerror})"
    return found


def unlike(name: str, said: Mapping[str, str], me: str, here: Mapping[str, str]) -> Iterator[str]:
    """What a host has otherwise than another one, a line each."""
    for what, value in here.items():
        if said.get(what) != value:
            yield f"{name}: {what} is {said.get(what)}, and on {me} {value}: make them alike"


def _code(root: Path) -> str:
    """A hash of the files of zero2r1 itself, whose version does not change with each of them."""
    digest = hashlib.sha256()
    for path in sorted(path for name in OURS for kind in ("*.py", "*.yaml") for path in (root / name).rglob(kind)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == content
    except OSError:
        return False


def clock() -> float:
    """This host's clock, in seconds since the epoch."""
    return time.time()


def _ask(hosts: Sequence[Host], question: Callable[..., T], *given: object) -> dict[str, T | str]:
    """What each host says, by Ray's number; or why it says nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    remote = ray.remote(question)
    references = {
        host.node: remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=On(node_id=host.node, soft=False)
        ).remote(*given)
        for host in hosts
    }
    ray.wait(list(references.values()), num_returns=len(references), timeout=ANSWER_SECONDS)
    answers: dict[str, T | str] = {}
    for node, reference in references.items():
        try:
            answers[node] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            answers[node] = f"has not answered for {ANSWER_SECONDS:g} s"
        except ray.exceptions.RayError as error:
            answers[node] = str(error).strip().splitlines()[-1]
    return answers


def faults(host: Host, said: Facts | str, here: Facts, run: Path, before: float, after: float) -> Iterator[str]:
    """What is wrong with a host, a line each.

    Args:
        host: which.
        said: its facts, or why there are none.
        here: those of this host.
        run: the run's folder.
        before, after: this host's clock when the other's was asked for, and when it was there.
    """
    me = socket.gethostname()
    if isinstance(said, str):
        yield f"{host.name} ({host.address}): {said}"
        return
    if not said.sees:
        yield (
            f"{host.name}: does not see {run.resolve()}, which {me} has just written to: set --runs to a folder that"
            " all hosts share under the same path"
        )
    elif not said.writes:
        yield f"{host.name}: cannot write in {run.resolve()}"
    yield from unlike(host.name, said.same, me, here.same)
    ahead = said.time - min(max(said.time, before), after)
    if abs(ahead) > CLOCK_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        yield f"{host.name}: its clock is {abs(ahead):.0f} s {way} that of {me}: synchronise them (chrony, ntpd)"


def record(hosts: Sequence[Host], run: Path) -> None:
    """Keep the hosts in the run's folder, for `status`."""
    durable.write(run / HOSTS, json.dumps([asdict(host) for host in hosts]))


def recorded(run: Path) -> list[Host]:
    """The hosts that were up when a stage last asked for some; none, and a line, if that cannot be read."""
    path = run / HOSTS
    if not path.exists():
        return []
    try:
        return [Host(**said) for said in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:  # damaged, or of another version
        log.warning(
            "%s does not say which hosts there were (%s): the next run on a cluster writes it anew", path, error
        )
        return []
