"""How many GPUs a stage gets, and which of its processes sees which of them.

    launch: {accelerate: fsdp2-1node, gpus: 4}      # four, two of them for engines
    rollout: {process: {devices: [2, 3]}}

Without `gpus` a stage takes what it would use: as many as its accelerate config starts processes, one where it trains
or samples in a single process, those that it names itself, and none for stages that neither train nor sample.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checks.launch import accelerate_config, settings
from pipeline.gpus import Gpu, named, of_driver, visible
from pipeline.schema.launch import ALL, VISIBLE, ProcessSpec
from pipeline.schema.pieces import Fault, RewardSpec, RolloutSpec, StageConfig, TrainingConfig
from pipeline.schema.walk import walk

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

REWARD_MODELS = ("preference", "process")
"""Rewards that are models, on a GPU where there is one."""
NO_GPU = "-1"
"""An entry of `rollout.process.devices` for an engine that computes on the CPU."""
SPANNING = (
    "an engine over several hosts is a server: start `vllm serve` with --nnodes on each of them"
    " (docs/guides/rollouts.md), and name the first by rollout.server"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The GPUs that a stage wants.

    Attributes:
        count: how many; `None` for all that there are.
        names: which, where the recipe says so.
    """

    count: int | None
    names: tuple[str, ...] = ()

    def candidates(self, there: Sequence[Gpu]) -> tuple[Gpu, ...]:
        """Those that will do."""
        return named(self.names) if self.names else tuple(there)

    def number(self, there: Sequence[Gpu]) -> int:
        """How many, where so many are there."""
        if self.names:
            return len(named(self.names))
        return len(there) if self.count is None else self.count

    @property
    def said(self) -> int | str | list[str]:
        """The same for machines: a number, `all`, or names."""
        return list(self.names) or (ALL if self.count is None else self.count)

    def __str__(self) -> str:
        """In words, for tables."""
        return ",".join(self.names) or str(self.said)


@dataclass(frozen=True, slots=True)
class Placed:
    """Which processes of a stage see which GPUs.

    Attributes:
        own: those of the stage's process, or of the ranks that a launcher starts.
        engines: those of each engine in a process of its own, as `CUDA_VISIBLE_DEVICES` has them.
        ranks: how many processes the launcher starts; as its config says for `None`.
    """

    own: tuple[str, ...]
    engines: tuple[str, ...] = ()
    ranks: int | None = None

    def config(self, config: StageConfig) -> StageConfig:
        """The stage's config with the GPUs of its engines."""
        rollout = getattr(config, "rollout", None)
        if not self.engines or rollout is None:
            return config
        process = (rollout.process or ProcessSpec()).model_copy(update={"devices": list(self.engines)})
        return config.model_copy(update={"rollout": rollout.model_copy(update={"process": process})})


def wanted(config: StageConfig, base: Path) -> Wanted:
    """The GPUs that a stage wants; `base` is the recipe's folder."""
    asked, devices = config.launch.gpus, _devices(config)
    engines = _split(devices)
    if pinned := _pinned(config, base):
        return Wanted(None, tuple(dict.fromkeys((*pinned, *engines))))
    if asked is not None:
        return Wanted(None if asked == ALL else int(asked))
    if VISIBLE in config.launch.env or not _computes(config):
        return Wanted(0)
    if isinstance(config, TrainingConfig):
        least = _of_rewards(config)
        return Wanted(None if engines else _ranks(config, base, least))
    if engines:
        return Wanted(None, tuple(dict.fromkeys(engines)))
    return Wanted(max(0 if devices else of_engine(config), _of_rewards(config)))


def of_recipe(recipe: Recipe) -> dict[str, Wanted]:
    """What every stage wants; empty where there are no GPUs and no stage asks for any."""
    if visible(os.environ) or of_driver() or any(config.launch.gpus for config in recipe.stages.values()):
        return {name: wanted(config, recipe.base) for name, config in recipe.stages.items()}
    return {}


def placed(config: StageConfig, base: Path, gpus: Sequence[Gpu]) -> Placed:
    """Divide the GPUs that a stage was given among its processes."""
    names, devices = [gpu.name for gpu in gpus], _devices(config)
    if _pinned(config, base):
        return Placed(tuple(_pinned(config, base)))
    if config.launch.gpus is None and not isinstance(config, TrainingConfig):
        return Placed(tuple(names))
    if not devices and not isinstance(config, TrainingConfig):
        each = of_engine(config)
        several = each and len(names) > each
        groups = [",".join(names[at : at + each]) for at in range(0, len(names), each)] if several else []
        return Placed(tuple(names), tuple(groups))
    engines = [",".join(_by_place(one, names, config) for one in device.split(",")) for device in devices]
    taken = set(_split(engines))
    taken |= {gpu.key for gpu in named(taken)}  # by its other name
    own = [gpu.name for gpu in gpus if taken.isdisjoint((gpu.name, gpu.key))] or names
    alone = config.launch.accelerate is None
    if alone and config.launch.gpus in (None, ALL):
        own = own[: max(1, _of_rewards(config))]
    given = config.launch.gpus is not None and not alone
    return Placed(tuple(own), tuple(engines), (len(own) or None) if given else None)


def faults(config: StageConfig, base: Path) -> Iterator[Fault]:
    """What is wrong with the GPUs that a stage asks for, wherever it runs."""
    asked, hosts = config.launch.gpus, config.launch.nodes
    yield from _several(config)
    if asked is None or (isinstance(asked, int) and asked % hosts):
        return
    asked = asked // hosts if isinstance(asked, int) else asked  # those of one host
    if twice := list(_said_twice(config, base)):
        yield from twice
    elif asked != 0 and not _computes(config):
        why = "completions come from a server" if "rollout" in type(config).model_fields else "it computes on the CPU"
        yield ("launch", "gpus"), f"has no effect on this stage: {why}. Leave it out, or set it to 0"
    elif isinstance(config, TrainingConfig):
        yield from _idle(config, base, None if asked == ALL else int(asked))
    if asked not in (0, ALL):
        yield from _too_few(config, int(asked))


def unmet(recipe: Recipe, stages: Sequence[str], there: Sequence[Gpu]) -> Iterator[tuple[str, Fault]]:
    """Stages that ask for more GPUs than there are, and would never start; or for a GPU that is not there."""
    for name in stages:
        config = recipe.stages[name]
        want, asked = wanted(config, recipe.base), config.launch.gpus
        have = f"there are {len(there)} here" if there else "there are none here"
        if config.launch.nodes > 1:
            how = "run it with --cluster, or leave it out"
            yield name, (("launch", "nodes"), f"asks for {config.launch.nodes} hosts, and this is one: {how}")
        elif lost := [one for one in want.names if not _known([one])]:
            where = ("launch", "env", VISIBLE) if VISIBLE in config.launch.env else ("rollout", "process", "devices")
            yield name, (where, f"names GPU {', '.join(lost)}, which is not here: there are {len(of_driver())}, from 0")
        elif hidden := _hidden(config, there):
            fix = "name those, or set launch.gpus, among which they are then counted from 0"
            exported = f"{VISIBLE} exports {os.environ[VISIBLE] or 'none'}"
            yield name, (("rollout", "process", "devices"), f"names GPU {', '.join(hidden)}, and {exported}: {fix}")
        elif isinstance(asked, int) and asked > len(there):
            fix = f"set it to {len(there)} or less, or to {ALL}" if there else f"leave it out, or set it to {ALL}"
            yield name, (("launch", "gpus"), f"asks for {asked} GPUs, and {have} ({VISIBLE} counted): {fix}")
        elif there and not want.names:
            if want.number(there) > len(there):
                yield name, (("launch",), f"{want.count} GPUs are wanted, and {have} ({VISIBLE} counted)")
            elif asked == ALL:
                for fault in _too_few(config, len(there)):
                    yield name, fault


def _several(config: StageConfig) -> Iterator[Fault]:
    """What is wrong with the hosts that a stage asks for."""
    asked, hosts = config.launch.gpus, config.launch.nodes
    if hosts == 1:
        return
    if not config.distributed and not config.shared:
        yield ("launch", "nodes"), f"the stage kind {config.kind} runs on one host: leave it out"
    elif config.distributed and config.launch.accelerate is None:
        yield (
            ("launch", "nodes"),
            "several hosts need launch.accelerate (ddp, fsdp2-1node), which starts their processes",
        )
    elif isinstance(asked, int) and asked % hosts:
        yield ("launch", "gpus"), f"{asked} GPUs do not divide among {hosts} hosts: set a multiple of {hosts}"


def _known(names: Sequence[str]) -> tuple[Gpu, ...]:
    """Those of some GPUs that are there; all of them where no driver can be asked."""
    uuids = set(of_driver())
    return tuple(gpu for gpu in named(names) if not uuids or gpu.key in uuids or gpu.key.startswith("MIG-"))


def _hidden(config: StageConfig, there: Sequence[Gpu]) -> list[str]:
    """Engines' GPUs that this host has and `CUDA_VISIBLE_DEVICES` does not export: somebody else's, perhaps."""
    if config.launch.gpus is not None or VISIBLE not in os.environ or not of_driver():
        return []
    exported, known = {gpu.key for gpu in there}, set(of_driver())
    return [gpu.name for gpu in named(_split(_devices(config))) if gpu.key in known - exported]


def _too_few(config: StageConfig, count: int) -> Iterator[Fault]:
    """Engines that would have no GPU of so many, or part of what they want; GPUs that would have no engine."""
    devices = _devices(config)
    for place, device in enumerate(devices):
        if by_name := [one for one in _split([device]) if not one.isdecimal()]:
            yield (
                ("rollout", "process", "devices", place),
                f"names {by_name[0]}, and with launch.gpus engines' GPUs are counted from 0 among the stage's own",
            )
        beyond = [int(one) for one in _split([device]) if one.isdecimal() and int(one) >= count]
        if beyond:
            yield (
                ("rollout", "process", "devices", place),
                f"names GPU {beyond[0]} of the {count} that the stage has, which are counted from 0: give it more by"
                f" launch.gpus ({beyond[0] + 1} at least), those of its engines included",
            )
    used = len(set(_split(devices)))
    if devices and not isinstance(config, TrainingConfig) and not _of_rewards(config) and used < count:
        fix = "give them engines by rollout.process.devices, or leave it out for one on each"
        yield ("launch", "gpus"), f"{count - used} of {count} GPUs would have no engine: {fix}"
    if not devices and not isinstance(config, TrainingConfig) and count % (each := of_engine(config) or 1):
        fix = SPANNING if count < each and config.launch.nodes > 1 else f"set a multiple of {each}"
        where = " of each host" if config.launch.nodes > 1 else ""
        yield ("launch", "gpus"), f"{count} GPUs{where} do not divide into engines of {each}: {fix}"


def _said_twice(config: StageConfig, base: Path) -> Iterator[Fault]:
    rollout: RolloutSpec | None = getattr(config, "rollout", None)
    if VISIBLE in config.launch.env:
        yield ("launch", "gpus"), f"and launch.env.{VISIBLE} both say which GPUs the stage has: leave one out"
    elif _pinned(config, base):
        yield ("launch", "gpus"), "and `gpu_ids` of the accelerate config both say which GPUs it has: leave one out"
    elif rollout is not None and rollout.process is not None and VISIBLE in rollout.process.env:
        fix = "name the engine's by rollout.process.devices, counted from 0 among those of the stage"
        yield ("rollout", "process", "env", VISIBLE), f"names a GPU beside launch.gpus: {fix}"


def _idle(config: TrainingConfig, base: Path, count: int | None) -> Iterator[Fault]:
    """GPUs that no process of a training stage would use; `count` is `None` for all that there are."""
    engines = set(_split(_devices(config)))
    own = None if count is None else len({str(place) for place in range(count)} - engines) or count
    if config.launch.accelerate is None:
        spread = "device_map" in (config.trainer.get("model_init_kwargs") or {})
        if not spread and ((own is None and not engines) or (own or 0) > max(1, _of_rewards(config))):
            yield (
                ("launch", "gpus"),
                f"{own or ALL} GPUs for one process, which trains on one: set launch.accelerate (ddp, fsdp2-1node) for"
                " a process on each, or give some to engines (rollout.process.devices)",
            )
        return
    file = accelerate_config(config.launch.accelerate, base)
    sizes = {} if file is None else settings(file).get("parallelism_config") or {}
    together = math.prod(size for name, size in sizes.items() if name.endswith("_size") and isinstance(size, int))
    if own is not None and own % together:
        yield (
            ("launch", "gpus"),
            f"{own} processes do not divide into the groups of {together} that {config.launch.accelerate} makes: set"
            f" a multiple of {together}",
        )


def _computes(config: StageConfig) -> bool:
    """Whether a stage uses a GPU where there is one: it trains, samples with an engine of its own, or judges on one."""
    rollout = getattr(config, "rollout", None)
    if isinstance(config, TrainingConfig):
        return True
    return rollout is not None and (of_engine(config) > 0 or _of_rewards(config) > 0)


def of_engine(config: StageConfig) -> int:
    """GPUs of an engine of a stage that samples; 0 for a server by address, which has its own."""
    rollout: RolloutSpec | None = getattr(config, "rollout", None)
    return 0 if rollout is None or rollout.server is not None else rollout.gpus_together


def _of_rewards(config: StageConfig) -> int:
    """GPUs that reward models of a stage name (`device: cuda:1`), or 1 for one that takes what there is."""
    specs = [leaf.value for leaf in walk(config) if isinstance(leaf.value, RewardSpec)]
    devices = [str(spec.options.get("device", "cuda")) for spec in specs if spec.use in REWARD_MODELS]
    return max((int(device.partition(":")[2] or 0) + 1 for device in devices if device.startswith("cuda")), default=0)


def _ranks(config: TrainingConfig, base: Path, least: int) -> int | None:
    """Processes that a stage's launcher starts on this host, one a GPU; `None` for one on each that there is."""
    if config.launch.accelerate is None:
        return max(1, least)
    file = accelerate_config(config.launch.accelerate, base)
    said: Mapping[str, Any] = {} if file is None else settings(file)
    processes, hosts = said.get("num_processes"), said.get("num_machines")
    if not isinstance(processes, int):
        return None
    return max(1, processes // hosts if isinstance(hosts, int) and hosts > 0 else processes)


def _pinned(config: StageConfig, base: Path) -> tuple[str, ...]:
    """GPUs of the stage's process that its recipe names: in its environment, or in an accelerate config."""
    if VISIBLE in config.launch.env:
        return tuple(_split([config.launch.env[VISIBLE]]))
    file = accelerate_config(config.launch.accelerate, base) if config.launch.accelerate is not None else None
    ids = None if file is None else settings(file).get("gpu_ids")
    return () if ids is None or ids == ALL else tuple(_split([str(ids)]))


def _devices(config: StageConfig) -> list[str]:
    rollout: RolloutSpec | None = getattr(config, "rollout", None)
    return [] if rollout is None or rollout.process is None else rollout.process.devices


def _split(devices: Sequence[str]) -> list[str]:
    """The GPUs that such entries name."""
    return [name.strip() for device in devices for name in device.split(",") if name.strip() not in ("", NO_GPU)]


def _by_place(device: str, names: Sequence[str], config: StageConfig) -> str:
    """The GPU that an entry of `devices` means: by its place among the stage's where `launch.gpus` is given."""
    device = device.strip()
    if config.launch.gpus is None or not device.isdecimal() or int(device) >= len(names):
        return device
    return names[int(device)]
