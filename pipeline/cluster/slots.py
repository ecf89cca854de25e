"""Which stage runs where on a cluster: a placement group of Ray's for each, and an agent on every bundle of it.

A bundle is a stage's share of one host: `launch.gpus` over `launch.nodes`, and a core. Bundles are spread over hosts
where there are enough; where a host was lost, those that are left take two of them if they have the GPUs. Ray keeps a
group that does not fit waiting until something is free, or a host comes (back).
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import artifacts, gpus
from pipeline.cluster import attempt, hosts
from pipeline.cluster.agent import Agent, Part, Place, Rendezvous, portable
from pipeline.cluster.attempt import Attempt, Fence
from pipeline.cluster.hosts import Host
from pipeline.files import durable
from pipeline.files.locks import STAGE_LOCK
from pipeline.placement import SPANNING, Placed, Wanted, of_engine, placed, wanted
from pipeline.recipe import Recipe
from pipeline.runner.graph import Node, files_of
from pipeline.runner.observer import NOTE, Observer
from pipeline.runner.process import LOG, StageProcess
from pipeline.runner.starting import JOB, prepare, variables_of
from pipeline.runner.worker import SHARED, Job
from pipeline.schema import environment
from pipeline.schema.pieces import StageConfig

log = logging.getLogger(__name__)

NODE = "ray.io/node-id"
"""The label by which Ray knows a host."""
PATIENCE_SECONDS = 5.0
"""Wait for a host of which nothing is said."""


@dataclass(slots=True)
class Claim:
    """What a stage has asked Ray for.

    Attributes:
        group: the placement group.
        ready: answered when all of it is there.
        agents: the actors, once it is.
        asked: their answers to where they are.
        since: when they were asked.
        places: those answers, once all have come.
    """

    group: Any
    ready: Any
    agents: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    since: float = 0.0
    places: list[Place] = field(default_factory=list)


class ClusterSlots:
    """The same as `pipeline.runner.slots.Slots`, for the hosts of a cluster.

    Args:
        nodes: the stages.
        recipe: the recipe.
        run: the run's folder.
        observer: told where stages are, and what they wait for.
        address: of the cluster, or `auto`.

    Attributes:
        wanted: the GPUs that each stage wants.
    """

    there: tuple[gpus.Gpu, ...] = ()
    """GPUs of this host that stages may have: none, since Ray gives them away."""

    def __init__(self, nodes: Mapping[str, Node], recipe: Recipe, run: Path, observer: Observer, address: str) -> None:
        self.recipe, self.run, self.observer, self.address = recipe, run, observer, address
        self.wanted: dict[str, Wanted] = {name: wanted(node.config, recipe.base) for name, node in nodes.items()}
        self._claims: dict[str, Claim] = {}
        self._waiting: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._unfit: set[str] = set()
        self._read: list[Path] = []
        self._fence = Fence()

    @contextlib.contextmanager
    def connected(self, stages: Sequence[str]) -> Iterator[None]:
        """Be connected to the cluster, for these stages, if there are any.

        Raises:
            ClusterError: it cannot be reached, its hosts are not alike, or a stage does not fit on them.
        """
        if not stages:
            yield
            return
        with hosts.connected(self.address):
            self._read = sorted({path for stage in stages for path in files_of(self.recipe, self.recipe.stages[stage])})
            there = hosts.check(hosts.up(), self.run, self.recipe.path, self._read)
            if unfit := list(unmet(self.recipe, stages, there)):
                raise hosts.ClusterError("\n".join(("nothing was started:", *unfit)))
            hosts.record(there, self.run)
            self._names = {host.node: host.name for host in there}
            yield

    def take(self, node: Node) -> bool:
        """Ask for a stage's share of hosts, unless it was asked for; whether its agents are there now."""
        import ray

        left, whose = self._fence.left(self._scratch(node))
        if left:
            text = f"waits up to {left:.0f} s: processes of an earlier attempt may still run on {whose}"
            self._wait(node, lambda: text)
            return False
        if whose:
            (self._scratch(node) / STAGE_LOCK).unlink(missing_ok=True)  # a file server may keep a lost host's
        claim = self._claims.get(node.name) or self._claim(node)
        if not claim.agents and ray.wait([claim.ready], timeout=0)[0]:
            self._start_agents(node, claim)
        if claim.agents and not claim.places:
            self._hear(node, claim)
        if claim.places:
            self._waiting.pop(node.name, None)
            return True
        self._wait(node, lambda: f"waits for {self._said(node)}; the cluster has {_free()} free")
        return False

    def start(self, node: Node, scratch: Path, job_of: Callable[[Placed], Job], count: int) -> StageProcess:
        """Start the processes of a stage that has its hosts.

        Args:
            node: the stage.
            scratch: its scratch folder.
            job_of: what it is to do, by which of its processes see which GPUs.
            count: 1 for its first attempt.
        """
        claim, config = self._claims[node.name], node.config
        many, first = len(claim.places), claim.places[0]
        shares = [placed(_on_host(config, at), self.recipe.base, place.gpus) for at, place in enumerate(claim.places)]
        names = attempt.gpu_names(claim.places)
        seen, secrets = prepare(node, scratch, job_of(shares[0]), names)
        parts = []
        for at, (place, mine) in enumerate(zip(claim.places, shares, strict=True)):
            job = job_of(mine if config.shared else shares[0])  # GPUs have other names on other hosts
            path = scratch / (JOB if at == 0 else f"job-{at}.json")
            durable.write(path, json.dumps(environment.names_only(asdict(job))))
            variables = portable(variables_of(node, job, (), mine if place.gpus else None), config.launch.env)
            part = Part(
                job=path.resolve(),
                log=(scratch / (LOG if at == 0 else f"log-{at}.txt")).resolve(),
                variables=variables | ({"RANK": str(at), SHARED: str(many)} if many > 1 and config.shared else {}),
                visible=",".join(mine.own),
                accelerate=config.launch.accelerate,
                base=self.recipe.base,
                folder=Path.cwd(),
                ranks=max(1, len(mine.own)) if many > 1 else mine.ranks,
                meeting=Rendezvous(many, at, first.address) if many > 1 and config.launch.accelerate else None,
            )
            parts.append(part)
        popen = Attempt(scratch, claim.agents, claim.places, parts, config.launch.deadline)
        return StageProcess(node, scratch, popen, time.time(), count, seen, secrets, names)

    def foreseen(self, node: Node, leaving: Collection[str]) -> tuple[tuple[gpus.Gpu, ...], Placed | None] | None:
        """Nothing is started early on a cluster."""
        return None

    def tell(self, node: Node) -> None:
        """Say where a stage runs."""
        places = self._claims[node.name].places
        names = dict.fromkeys(place.name for place in places)
        given = ", ".join(attempt.gpu_names(places))
        self._say(node, f"on {', '.join(names)}{f', GPUs {given}' if given else ''}")

    def release(self, stage: str) -> None:
        """Give a stage's share of hosts back, its agents included."""
        from ray.util.placement_group import remove_placement_group

        if (claim := self._claims.pop(stage, None)) is not None:
            remove_placement_group(claim.group)

    def close(self) -> None:
        """Give all back."""
        for stage in list(self._claims):
            self.release(stage)

    def _claim(self, node: Node) -> Claim:
        from ray.util.placement_group import placement_group

        there = self._fit()
        hosts.record(there, self.run)  # one may have been lost since
        many, each = share(node.config, self.recipe.base, there)
        bundle = {"CPU": 1.0, **({"GPU": float(each)} if each else {})}
        elsewhere = [{NODE: f"!in({','.join(sorted(self._unfit))})"}] * many if self._unfit else None
        strategy = "SPREAD" if many > 1 else "STRICT_PACK"
        group = placement_group([bundle] * many, strategy=strategy, bundle_label_selector=elsewhere)
        claim = self._claims[node.name] = Claim(group, group.ready())
        return claim

    def _start_agents(self, node: Node, claim: Claim) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

        actor, deadline = ray.remote(Agent), node.config.launch.deadline
        claim.since = time.monotonic()
        for at, bundle in enumerate(claim.group.bundle_specs):
            where = In(placement_group=claim.group, placement_group_bundle_index=at)
            wants = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0)}
            agent = actor.options(**wants, scheduling_strategy=where, max_restarts=0).remote(deadline)
            claim.agents.append(agent)
            claim.asked.append(agent.place.remote())

    def _hear(self, node: Node, claim: Claim) -> None:
        """Take the answers of a stage's agents if all are there; if one will not come, ask Ray for other hosts."""
        import ray

        answered = len(ray.wait(claim.asked, num_returns=len(claim.asked), timeout=0)[0]) == len(claim.asked)
        late = time.monotonic() - claim.since > node.config.launch.deadline
        try:
            found = ray.get(claim.asked) if answered else []
        except ray.exceptions.RayError:  # a host was lost just now
            found, late = [], True
        if new := {place.node for place in found} - self._names.keys():
            self._meet(new)
        if (late and not found) or self._unfit & {place.node for place in found}:
            self.release(node.name)
            return
        claim.places = [replace(place, name=self._names.get(place.node, place.name)) for place in found]

    def _meet(self, nodes: Collection[str]) -> None:
        """Compare hosts that have come since with this one. What differs has no part in this run, and that is said."""
        there = hosts.up()
        come = [host for host in there if host.node in nodes]
        for number, told in hosts.differences(come, self.run, self.recipe.path, self._read).items():
            self._unfit.add(number)
            log.warning("a host that has joined the cluster has no part in this run: %s", "; ".join(told))
        self._names |= {host.node: host.name for host in there if host.node in nodes}
        hosts.record(self._fit(), self.run)

    def _fit(self) -> list[Host]:
        """The hosts that are up, by their names in this run, without those that differ from this one."""
        there = [host for host in hosts.up() if host.node not in self._unfit]
        return [replace(host, name=self._names.get(host.node, host.name)) for host in there]

    def _said(self, node: Node) -> str:
        return said(*share(node.config, self.recipe.base, self._fit()))

    def _scratch(self, node: Node) -> Path:
        return artifacts.scratch(self.run, node.name, node.fingerprint)

    def _wait(self, node: Node, text: Callable[[], str]) -> None:
        """Say what a stage waits for, once."""
        since = self._waiting.setdefault(node.name, time.monotonic())
        if time.monotonic() - since >= PATIENCE_SECONDS:
            self._waiting[node.name] = float("inf")
            self._say(node, text())

    def _say(self, node: Node, text: str) -> None:
        self.observer.event(node, {"step": 0, "total": None, NOTE: text})


def share(config: StageConfig, base: Path, there: Sequence[Host]) -> tuple[int, int]:
    """How many bundles a stage wants, and how many GPUs each of them has; none where there are none, unless it asks.

    Hosts that share the sampling may be fewer than asked for: what they sample is the same.
    """
    many, want = config.launch.nodes, wanted(config, base)
    most = sorted((host.gpus for host in there), reverse=True)[:many]
    if not (config.launch.gpus or any(most)):
        each = 0
    elif want.count is None:  # all that there are
        each = min(most, default=0)
    else:
        each = want.count // many if config.launch.gpus else want.count
    return (max(1, min(many, _room(each, there))) if config.shared else many), each


def _room(each: int, there: Sequence[Host]) -> int:
    """How many bundles with so many GPUs hosts could hold."""
    return sum(min(host.cpus, host.gpus // each if each else host.cpus) for host in there)


def unmet(recipe: Recipe, stages: Sequence[str], there: Sequence[Host]) -> Iterator[str]:
    """What keeps stages from running on a cluster, a line each."""
    for name in stages:
        config = recipe.stages[name]
        want, (many, each) = wanted(config, recipe.base), share(config, recipe.base, there)
        have = ", ".join(f"{host.name} has {host.gpus} GPUs and {host.cpus} cores" for host in there)
        if want.names:
            yield (
                f"stages.{name}: names GPUs {', '.join(want.names)}, and on a cluster Ray chooses them: set launch.gpus"
                " alone, in which rollout.process.devices are counted from 0"
            )
        elif _room(each, there) < many:
            spans = max((host.gpus for host in there), default=0) < of_engine(config)
            fix = f": {SPANNING}" if spans and each else ""
            yield f"stages.{name}.launch: needs {said(many, each)}, and {have}{fix}"


def _on_host(config: StageConfig, at: int) -> StageConfig:
    """The config of a stage of several hosts as one of them has it; engines in processes are on the first one."""
    launch = config.launch
    if launch.nodes == 1:
        return config
    each = launch.gpus // launch.nodes if isinstance(launch.gpus, int) else launch.gpus
    changed: dict[str, Any] = {"launch": launch.model_copy(update={"gpus": each, "nodes": 1})}
    rollout = getattr(config, "rollout", None)
    if at and not config.shared and rollout is not None and rollout.process is not None:
        changed["rollout"] = rollout.model_copy(update={"process": None})
    return config.model_copy(update=changed)


def said(many: int, each: int) -> str:
    """What a stage wants, in words."""
    what = f"{each} GPU{'s' if each > 1 else ''}" if each else "a core"
    return f"{many} × {what}, each on one host" if many > 1 else f"{what} on one host"


def _free() -> str:
    import ray

    free = ray.available_resources()
    return f"{int(free.get('GPU', 0))} GPUs and {int(free.get('CPU', 0))} cores"
