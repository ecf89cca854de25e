"""What the stages of a recipe need of the machine, asked before the first of them runs.

A recipe may be planned where it does not run, so a package that is missing here is no fault of the recipe: `run`
refuses to start, and `plan` says so. Data files are read through as well: a broken row of the last stage costs no day
of training.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import gpus, placement
from pipeline.checks import model_arguments
from pipeline.checks.launch import accelerate_config
from pipeline.checks.whole_recipe import input_files
from pipeline.context import exists
from pipeline.conversion import folder, publishing
from pipeline.data.corpora import CorpusSpec
from pipeline.data.mixture import DataSource
from pipeline.files import compiled, formats, hub, source
from pipeline.files.adapter_folders import base_folder, is_adapter
from pipeline.files.rows import RowError
from pipeline.recipe import Recipe
from pipeline.sampling import harness
from pipeline.schema import extras
from pipeline.schema.adapter import AdapterSpec
from pipeline.schema.hub import HubSource, Publish
from pipeline.schema.pieces import Fault, Product, Ref, RewardSpec, RolloutSpec, StageConfig
from pipeline.schema.task import TaskSpec
from pipeline.schema.walk import walk
from pipeline.tasks import base as tasks
from pipeline.tasks.resolve import merged, passing, repository, resolve
from rewards import registry
from rewards.registry import located

TRACKERS = {
    "azure_ml": "azureml",
    "flyte": "flytekit",
}
"""Trackers whose package has another name."""
OPTIMIZERS = {
    "bnb": "bitsandbytes",
    "paged": "bitsandbytes",
    "torch_8bit": "torchao",
    "torch_4bit": "torchao",
    "8bit": "bitsandbytes",
    "lion": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "galore": "galore_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "apollo": "apollo_torch",
    "stable_adamw": "optimi",
    "anyprecision": "torchdistx",
}
"""Part of an optimizer's name -> the package it comes from; the first that fits counts."""
CLUSTER = "ray"
"""The package that `--cluster` needs."""
PACKAGES = ("pipeline", "rewards", "model", "configs", "recipes")
"""The packages that zero2r1 consists of."""
GENERATED = "reasoning_gym"
"""A task and a reward that need the package of that name."""
SOURCES = (CorpusSpec, DataSource)
PARTS: Mapping[str | int, tuple[str, ...]] = {"tokenizer": ("tokenizer",), "draft": ("config.json", "weights")}
"""Fields that need only some parts of the model that they name."""
READ_BYTES = 256 * 2**20
"""Largest data file that is read through before a run: a few seconds."""

Need = tuple[tuple[str | int, ...], str]
"""Where in a stage's config something is asked for, and the package that it needs."""


BACKENDS = (("options", "backend"), ("grader_options", "backend"))
"""How the place of a code reward's sandbox ends: among its own options, or those of a task that it grades."""
SANDBOX_PACKAGES = {"e2b": "e2b", "cluster": "ray"}
"""Sandbox of the code reward -> the package that it needs."""


def packages(config: StageConfig, base: Path) -> Iterator[Need]:
    """What a stage needs beyond what zero2r1 always brings along."""
    trainer: dict[str, Any] = getattr(config, "trainer", {})
    reported = trainer.get("report_to") or []
    for name in [reported] if isinstance(reported, str) else reported:
        if name not in ("none", "all", "kubeflow"):
            yield ("trainer", "report_to"), TRACKERS.get(name, name)
    for part, package in OPTIMIZERS.items():
        if part in str(trainer.get("optim", "")):
            yield ("trainer", "optim"), package
            break
    if trainer.get("deepspeed"):
        yield ("trainer", "deepspeed"), "deepspeed"
    if (getattr(config, "adapter", None) or AdapterSpec()).quantize != "none":
        yield ("adapter", "quantize"), "bitsandbytes"
    if trainer.get("use_liger_kernel"):
        yield ("trainer", "use_liger_kernel"), "liger_kernel"
    if getattr(getattr(config, "efficiency", None), "fused_kernels", False):
        yield ("efficiency", "fused_kernels"), "liger_kernel"
    if getattr(config, "precision", None) == "fp8" and config.kind != "export" and gpus.of_driver():
        yield ("precision",), "torchao"  # a CPU simulates it
    if config.launch.nodes > 1:
        yield ("launch", "nodes"), CLUSTER
    if config.launch.accelerate is not None and (file := accelerate_config(config.launch.accelerate, base)) is not None:
        said = source.read(file).data
        if isinstance(said, dict) and str(said.get("distributed_type")).upper() == "DEEPSPEED":
            yield ("launch", "accelerate"), "deepspeed"
    if getattr(config, "harness", None):
        yield ("harness",), harness.PACKAGE
    for leaf in walk(config):
        if isinstance(leaf.value, RolloutSpec) and leaf.value.needs_vllm:
            yield (*leaf.loc, "engine"), "vllm"
        elif isinstance(leaf.value, RewardSpec | TaskSpec) and leaf.value.use == GENERATED:
            yield (*leaf.loc, "use"), GENERATED
        elif isinstance(leaf.value, str) and leaf.loc[-2:] in BACKENDS and leaf.value in SANDBOX_PACKAGES:
            yield leaf.loc, SANDBOX_PACKAGES[leaf.value]
        elif isinstance(leaf.value, str) and leaf.value.endswith(".gguf") and leaf.marker(Ref):
            yield leaf.loc, "gguf"


def missing(config: StageConfig, base: Path, here: bool = True) -> Iterator[Fault]:
    """What a stage needs and this machine lacks; of GPUs only if the stage is to run `here`, and not on a cluster."""
    for loc, package in dict.fromkeys(packages(config, base)):
        if importlib.util.find_spec(package) is None:
            yield loc, _lacks(package)
    if here and (why := compiled.fault(config.launch.env)) is not None:
        yield ("launch", "env", compiled.FOLDER), why
    if here and not gpus.of_driver():
        without = "needs a GPU, and there is none here: set it to {}, or leave it out"
        if (getattr(config, "adapter", None) or AdapterSpec()).quantize != "none":
            yield ("adapter", "quantize"), without.format("none")
        if getattr(getattr(config, "efficiency", None), "fused_kernels", False):
            yield ("efficiency", "fused_kernels"), without.format("false")
    for leaf in walk(config):
        if here and leaf.value == "cluster" and leaf.loc[-2:] in BACKENDS:
            yield leaf.loc, "runs programs on the hosts of a Ray cluster: run it with --cluster, or leave it out"
        runs_code = isinstance(leaf.value, RewardSpec) and leaf.value.use == "code"
        if runs_code and leaf.value.options.get("backend", "local") == "local" and shutil.which("bwrap") is None:
            how = "apt-get install bubblewrap"
            yield (*leaf.loc, "use"), f"needs bubblewrap (the command bwrap), which is not installed here: {how}"


def _lacks(package: str) -> str:
    return f"needs the package {package}, which is not installed here: {extras.install(package)}"


def hides_a_package(use: str) -> str | None:
    """What is said of a file of one's own that is named as a package of ours is; `None` if none is named."""
    stem = Path(use.rpartition(".py:")[0]).name
    if ".py:" not in use or stem not in PACKAGES:
        return None
    return (
        f"{stem}.py has the name of the package `{stem}` of zero2r1: Python run in this folder imports it instead of"
        f" the package. Rename it, to my_{stem}.py for one"
    )


def broken_models(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Folders that a stage takes for a model and that lack a part of one, or hold a part of a file."""
    for leaf in walk(config):
        if (marker := leaf.marker(Ref)) is None or marker.product is not Product.MODEL:
            continue
        path = located(str(leaf.value), base)
        if path.is_dir() and (lacks := _of_need(leaf.loc[-1], folder.lacking(path))):
            yield leaf.loc, f"{path} is not a whole model: it has no {', and no '.join(lacks)}"
        elif path.is_dir():
            under = base_folder(path) if is_adapter(path) else None
            for each in (path, *([under] if under is not None else [])):
                yield from ((leaf.loc, fault) for fault in folder.cut_off(each))


def broken_code(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Rewards of files that cannot be imported; a recipe's check only reads their functions."""
    for leaf in walk(config):
        if isinstance(leaf.value, RewardSpec) and ".py:" in leaf.value.use:
            try:
                registry.find(leaf.value.use, base)
            except registry.RewardError as error:
                yield (*leaf.loc, "use"), str(error)


def broken_data(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Data files of a stage that cannot be read through, or hold no row."""
    asked = {leaf.loc for leaf in walk(config) if (ref := leaf.marker(Ref)) and ref.product is Product.DATASET}
    for loc, path in input_files(config, base):
        if loc in asked and (found := formats.matching(path)) and sum(map(_bytes, found)) <= READ_BYTES:
            try:
                if sum(1 for _ in formats.read(path)) == 0:
                    yield loc, f"{path} holds no rows"
            except RowError as error:
                yield loc, str(error)


def _bytes(path: Path) -> float:
    """Bytes of a file, or of all in a folder; infinitely many if some may not be looked at."""
    try:
        return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    except OSError:
        return math.inf


def unfound(recipe: Recipe, config: StageConfig) -> Iterator[Fault]:
    """Data sets on the hub that are not there, may not be read, or have no such revision."""
    definitions = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    for leaf in walk(config):
        sought = leaf.value if isinstance(leaf.value, HubSource) else None
        if isinstance(leaf.value, TaskSpec):
            sought = repository(leaf.value, definitions, recipe.base)
        try:
            if sought is not None:
                hub.commit(sought)
        except hub.HubError as error:
            yield leaf.loc, str(error)


def _models(config: StageConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a stage names models that it loads itself, and their names."""
    for leaf in walk(config):
        if (marker := leaf.marker(Ref)) is not None and marker.product is Product.MODEL and isinstance(leaf.value, str):
            yield leaf.loc, leaf.value
        elif isinstance(leaf.value, RewardSpec) and leaf.value.use in placement.REWARD_MODELS:
            yield (*leaf.loc, "options", "model"), str(leaf.value.options.get("model", "@"))


def _of_need(field: str | int, parts: list[str]) -> list[str]:
    """Those parts of a model that a field needs."""
    needed = PARTS.get(field)
    return parts if needed is None else [part for part in parts if part.startswith(needed)]


def broken_sources(config: StageConfig, base: Path, download: bool = True) -> Iterator[Fault]:
    """Sources with a row that training cannot read: a wrong field, configuration or split.

    Files of up to `READ_BYTES` are looked through; of others, the first row.
    """
    from pipeline.data import corpora, mixture

    def locate(name: str) -> Path:
        return located(name, base).resolve()

    for leaf in walk(config):
        source = getattr(leaf.value, "source", None) if isinstance(leaf.value, SOURCES) else None
        if source is None or (isinstance(source, str) and source.startswith("@")):
            continue
        if isinstance(source, HubSource) and not download:
            continue
        try:
            if isinstance(leaf.value, corpora.CorpusSpec):
                next(corpora.documents(leaf.value, locate), None)
            else:
                small = isinstance(source, str) and sum(map(_bytes, formats.matching(locate(source)))) <= READ_BYTES
                mixture.check(leaf.value, locate, getattr(config, "row_keys", ()), small)
        except mixture.DataError as error:
            yield (*leaf.loc, "from"), str(error)


def unpublishable(config: StageConfig) -> Iterator[Fault]:
    """Models that cannot be published where the recipe says; asks the hub."""
    for leaf in walk(config):
        if isinstance(leaf.value, Publish) and (why := publishing.fault(leaf.value)) is not None:
            yield leaf.loc, why


def unknown_harness(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Tasks of lm-evaluation-harness that it does not have."""
    folder = getattr(config, "harness_folder", None)
    named = getattr(config, "harness", None) or ()
    if (why := harness.fault(named, None if folder is None else located(folder, base).resolve())) is not None:
        yield ("harness",), why


def beyond_tasks(config: StageConfig, base: Path) -> list[Fault]:
    """What is missing or broken, packages, models and data files; tasks and Python files aside."""
    return [*missing(config, base), *broken_models(config, base), *broken_data(config, base)]


def broken_tasks(recipe: Recipe, config: StageConfig, download: bool = True) -> Iterator[Fault]:
    """Tasks whose data files cannot be read, or hold too few problems. Tasks of the recipe's own are left to it."""
    definitions = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    seed = recipe.seed if config.seed is None else config.seed
    for leaf in walk(config):
        if not isinstance(leaf.value, TaskSpec):
            continue
        spec: TaskSpec = leaf.value
        use, options, _ = merged(spec, definitions)
        if use not in tasks.BUILTIN:
            continue
        try:
            resolved = resolve(spec, definitions, recipe.base)
            task = resolved.task
            in_files = any(options.get(name) for name in task.path_options)
            if not in_files and (task.repository is None or not download):
                continue
            problems = task.problems(spec.split, None if spec.filter else spec.problems, seed)
            if not problems:
                source = next((options[name] for name in task.path_options if options.get(name)), task.repository)
                share = options.get("test_share")
                more = f", and test_share {share} of that is held out" if share and in_files else ""
                yield leaf.loc, f"there are no problems in its split {spec.split} (it reads {source}{more})"
            elif spec.filter is not None and spec.filter.source is None:
                passing(resolved, [resolved.row(problem) for problem in problems])
        except (tasks.TaskError, RowError) as error:
            yield leaf.loc, str(error)


def unmet(recipe: Recipe, stages: list[str], run: bool = False, here: bool = True) -> list[str]:
    """Every need of these stages that is not met, a line each: `stages.sft.trainer.report_to: needs …`.

    Args:
        recipe: the recipe.
        stages: those that are to run.
        run: whether they are about to; only then the recipe's Python files are imported, and data on the hub is read.
        here: whether they run on this host's GPUs, and not on a cluster's.
    """
    asked = placement.unmet(recipe, stages, gpus.visible(os.environ)) if here else ()
    told = [f"{'.'.join(map(str, ('stages', name, *loc)))}: {message}" for name, (loc, message) in asked]
    told += [
        f"track: {_lacks(one.use)}" for one in recipe.track if stages and importlib.util.find_spec(one.use) is None
    ]
    if here and stages and (why := compiled.fault(os.environ)) is not None:
        told.append(f"{compiled.FOLDER}: {why}")
    for name in stages:
        config = recipe.stages[name]
        found = [*missing(config, recipe.base, here), *unfound(recipe, config)]
        unread = [*broken_models(config, recipe.base), *broken_data(config, recipe.base)]
        if not found:
            found += unknown_harness(config, recipe.base)
            if run:
                found += [*broken_code(config, recipe.base), *unpublishable(config)]
                found += model_arguments.faults(recipe, config, ask=True)
            found += broken_tasks(recipe, config, run)
            if not unread:
                found += broken_sources(config, recipe.base, run)
        for loc, message in (*found, *unread):
            told.append(f"{'.'.join(map(str, ('stages', name, *loc)))}: {message}")
    return told


def unfound_models(recipe: Recipe, stages: list[str]) -> list[str]:
    """Models of these stages that are no folder here, and that the hub does not have or give whole, a line each."""
    told = []
    ask = lru_cache(_faulty)
    for name in stages:
        config = recipe.stages[name]
        for loc, model in _models(config):
            if not model.startswith("@") and not exists(located(model, recipe.base)):
                revision = getattr(config, "revision", None) if loc == ("model",) else None
                if fault := ask(model, revision, loc[-1]):
                    told.append(f"{'.'.join(map(str, ('stages', name, *loc)))}: {model} cannot be loaded: {fault}")
    return told


def _faulty(model: str, revision: str | None, field: str | int) -> str:
    """Why a field cannot have a model of the hub; empty if it can."""
    try:
        files = [file for file in hub.model_files(model, revision) if "/" not in file]
    except hub.HubError as error:
        return str(error)
    lacks = _of_need(field, folder.absent(files))
    return f"it has no {', and no '.join(lacks)}, on the hub or in its copy here" if lacks else ""
