"""What must run, and in what order: the stages of a recipe as a graph of fingerprints.

A stage's *fingerprint* is a hash of its kind, the version of that kind, its resolved config, the tasks it names, the
content of the files it reads, and the fingerprints of the stages whose products it uses. Equal fingerprints mean equal
artifacts, so a stage is *fresh* when an artifact with its fingerprint is there, and changing one leaf of a recipe makes
exactly the stages downstream of it stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.checks import whole_recipe
from pipeline.files import durable, formats, hub
from pipeline.recipe import Recipe, TaskDefinition
from pipeline.runner import longer
from pipeline.schema.environment import recorded
from pipeline.schema.hub import HubSource
from pipeline.schema.pieces import StageConfig
from pipeline.schema.task import TaskSpec
from pipeline.schema.walk import replaced, walk
from pipeline.tasks.resolve import repository

WHOLE_FILE_LIMIT = 64 * 2**20
"""Bytes up to which a file's content is hashed; larger ones (weights) count by size and modification time."""


@dataclass(frozen=True, slots=True)
class Node:
    """A stage in the graph.

    Attributes:
        name: the stage's name.
        config: its config, with the seed it will run with.
        inputs: stages whose products it uses -> their fingerprints.
        after: every stage that must be finished before it starts (inputs included).
        fingerprint: what decides fresh or stale; 64 hexadecimal digits.
        identity: what the fingerprint was made from, for explaining why a stage is stale.
    """

    name: str
    config: StageConfig
    inputs: Mapping[str, str]
    after: tuple[str, ...]
    fingerprint: str
    identity: Mapping[str, Any]


class State(StrEnum):
    """Whether a stage has to run."""

    FRESH = "fresh"
    INTERRUPTED = "interrupted"
    """It was started and did not finish, or a shorter training was; it goes on from its last checkpoint."""
    STALE = "stale"
    """It ran before, with other settings or inputs."""
    NEW = "new"
    DAMAGED = "damaged"
    """It is finished, but a file is not what was published: no stage starts from it. Found by `plan(verify=True)`."""


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the plan: a stage, whether it runs, and why."""

    node: Node
    state: State
    reason: str


class Order:
    """Which stages can start: those that wait for nothing that is not done, in the order of the recipe.

    Args:
        nodes: the stages.
        names: of all, as the recipe has them.
        done: those that need not run.

    Attributes:
        ready: stages that can start; whoever starts one takes it out.
    """

    def __init__(self, nodes: Mapping[str, Node], names: Sequence[str], done: Container[str]) -> None:
        self._sorter: TopologicalSorter[str] = TopologicalSorter({name: node.after for name, node in nodes.items()})
        self._sorter.prepare()
        self._names, self._done = names, done
        self.ready: list[str] = []
        self.finish([])

    def finish(self, names: Sequence[str]) -> None:
        """These have ended well: what waited for them is ready, or done already, with all that waited for that."""
        self._sorter.done(*names)
        while found := self._sorter.get_ready():
            self.ready += [name for name in found if name not in self._done]
            self._sorter.done(*(name for name in found if name in self._done))
        self.ready.sort(key=self._names.index)

    def again(self, name: str) -> None:
        """A stage that was started is to be started once more."""
        self.ready.append(name)
        self.ready.sort(key=self._names.index)

    def left(self) -> bool:
        """Whether a stage has not ended yet."""
        return self._sorter.is_active()


def build(recipe: Recipe) -> dict[str, Node]:
    """The stages as nodes, in an order in which they can run (the file's order wherever that is possible).

    Data sets on the hub stand in them at the commit that they have now; see `pinned`.
    """
    recipe = pinned(recipe)
    inputs = {
        name: sorted({target for _, target, _ in whole_recipe.references(config)})
        for name, config in recipe.stages.items()
    }
    waits = {name: [*inputs[name], *config.after] for name, config in recipe.stages.items()}
    nodes: dict[str, Node] = {}
    for name in TopologicalSorter(waits).static_order():
        config = recipe.stages[name]
        seed = recipe.seed if config.seed is None else config.seed
        config = config.model_copy(update={"seed": seed})
        used = {target: nodes[target].fingerprint for target in inputs[name]}
        identity = _identity(recipe, config, used)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        nodes[name] = Node(name, config, used, tuple(dict.fromkeys(waits[name])), digest, identity)
    return nodes


def pinned(recipe: Recipe) -> Recipe:
    """A recipe in which every data set on the hub has the commit that its revision stands for now.

    One that cannot be found stays as it is: `pipeline.checks.needs` says why before anything runs.
    """
    definitions = {name: definition.model_dump() for name, definition in recipe.tasks.items()}

    def change(value: Any) -> Any:
        try:
            if isinstance(value, HubSource):
                return value if (found := hub.pinned(value)) == value else found
            if isinstance(value, TaskSpec) and (source := repository(value, definitions, recipe.base)) is not None:
                options = {**value.options, "revision": hub.commit(source)}
                return value if options == value.options else value.model_copy(update={"options": options})
        except hub.HubError:
            return value
        return value

    return replace(recipe, stages={name: replaced(config, change) for name, config in recipe.stages.items()})


def plan(nodes: Mapping[str, Node], run: Path, verify: bool = False) -> list[Step]:
    """For every stage: does it run, and why.

    Args:
        nodes: see `build`.
        run: the run's folder.
        verify: whether to compare every file of finished stages with its hash, which reads all of them.
    """
    steps: list[Step] = []
    running: set[str] = set()
    for name, node in nodes.items():
        if (artifact := artifacts.find(run, name, node.fingerprint)) is not None:
            faults = artifacts.damage(artifact) if verify else {}
            reason = f"{durable.describe(faults)} in {artifact.path}" if faults else "finished"
            steps.append(Step(node, State.DAMAGED if faults else State.FRESH, reason))
            continue
        running.add(name)
        if artifacts.scratch(run, name, node.fingerprint).exists():
            steps.append(Step(node, State.INTERRUPTED, "goes on from its last checkpoint"))
        elif (shorter := longer.find(run, name, node.config, node.identity)) is not None:
            state = State.INTERRUPTED if shorter.anew is None else State.STALE
            steps.append(Step(node, state, str(shorter)))
        elif (last := artifacts.latest(run, name)) is not None:
            steps.append(Step(node, State.STALE, ", ".join(_differences(last.manifest, node, running)) or "changed"))
        else:
            steps.append(Step(node, State.NEW, "has not run yet"))
    return steps


def _identity(recipe: Recipe, config: StageConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    definitions = _definitions(recipe, config)
    read = {_as_written(path, recipe.base): content_hash(path) for path in files_of(recipe, config)}
    return {
        "kind": config.kind,
        "version": type(config).version,
        "config": recorded(config, exclude={"launch", "after", "keep_state"}),
        "tasks": {name: definition.model_dump(mode="json") for name, definition in definitions.items()},
        "inputs": dict(inputs),
        "files": read,
    }


def files_of(recipe: Recipe, config: StageConfig) -> list[Path]:
    """The files, folders and patterns outside the run that a stage reads, as far as there is something."""
    return [
        path
        for settings in (config, *_definitions(recipe, config).values())
        for _, path in whole_recipe.input_files(settings, recipe.base)
        if formats.matching(path)
    ]


def _definitions(recipe: Recipe, config: StageConfig) -> dict[str, TaskDefinition]:
    """The tasks of a recipe's own that a stage names."""
    named = {leaf.value.use for leaf in walk(config) if isinstance(leaf.value, TaskSpec)}
    return {name: recipe.tasks[name] for name in sorted(named) if name in recipe.tasks}


def _as_written(path: Path, base: Path) -> str:
    """A file as the recipe names it, so that a recipe can move together with its files."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def content_hash(path: Path, times: bool = True) -> str:
    """Hash of a file, of all files that a pattern fits, or of everything in a folder.

    Files beyond `WHOLE_FILE_LIMIT` count by size and time, or by size alone: copies on several hosts have other times.
    """
    digest = hashlib.sha256()
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else formats.matching(path)
    for file in found:
        stat = file.stat()
        digest.update(f"{file.relative_to(path) if path.is_dir() else file.name}\0{stat.st_size}\0".encode())
        if stat.st_size <= WHOLE_FILE_LIMIT:
            digest.update(file.read_bytes())
        elif times:
            digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()


def _differences(manifest: Mapping[str, Any], node: Node, running: set[str]) -> Iterator[str]:
    """What changed since an artifact was made, in words: leaves of the config first, then inputs."""
    before, now = manifest.get("identity", {}), node.identity
    if before.get("version") != now["version"]:
        yield f"stage kind {now['kind']} is version {now['version']}, was {before.get('version')}"
    old, new = (dict(_leaves({k: side.get(k, {}) for k in ("config", "tasks")})) for side in (before, now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key.removeprefix('config.')} {_short(old.get(key))} → {_short(new.get(key))}"
    for name in sorted(before.get("files", {}).keys() | now["files"].keys()):
        if before.get("files", {}).get(name) != now["files"].get(name):
            yield f"file {name} changed"
    for name, fingerprint in now["inputs"].items():
        if before.get("inputs", {}).get(name) != fingerprint:
            yield f"input @{name} {'runs again' if name in running else 'changed'}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{at}")
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
