"""What would go wrong later, found now: the environment, a model's tokenizer, a recipe's golds, a run's dead groups.

Every check returns findings; a finding that is not fine says what to do about it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipeline.conversion import folder
from pipeline.files import durable, hub
from pipeline.records.dead_groups import EQUAL, FAILED, Shares
from pipeline.schema import extras

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.report.run_data import Stage

RECENT_EVENTS = 20
"""Logged steps that a run's dead groups are averaged over."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


FOR_GPUS = (
    ("vllm", Level.WARNING, "rollouts will be slow"),
    ("liger-kernel", Level.OK, "efficiency.fused_kernels needs it"),
    ("torchao", Level.OK, "precision: fp8 needs it"),
)
"""Packages that only a GPU has a use for, how bad it is to lack one, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    message: str


def table(findings: Iterable[Finding]) -> Table:
    """Findings as a table for a terminal."""
    marks = {Level.OK: Text("✓", "green"), Level.WARNING: Text("!", "yellow"), Level.ERROR: Text("✗", "red")}
    rows = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        rows.add_row(marks[finding.level], Text(finding.subject), Text(finding.message))
    return rows


def environment() -> Iterator[Finding]:
    """Python, the packages that `zero2r1` needs, the device, vLLM, the sandbox's needs."""
    from packaging.requirements import Requirement

    yield Finding(Level.OK, "python", platform.python_version())
    try:
        needed = requires("zero2r1") or []
    except PackageNotFoundError:
        yield Finding(Level.WARNING, "zero2r1", "not installed: versions cannot be checked (pip install -e .)")
        needed = []
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is None:
            yield _package(requirement.name, str(requirement.specifier), requirement.specifier.contains)
    if importlib.util.find_spec("torch") is not None:
        yield from _device()
    if shutil.which("bwrap"):
        yield Finding(Level.OK, "bubblewrap", "found: code rewards run in a sandbox")
    else:
        yield Finding(
            Level.WARNING, "bubblewrap", "not found: code rewards need it (Debian: apt-get install bubblewrap)"
        )


def _package(name: str, wanted: str, fits: Any) -> Finding:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(Level.ERROR, name, f"not installed; zero2r1 needs {name}{wanted}")
    if not fits(installed, prereleases=True):
        return Finding(Level.ERROR, name, f"{installed} is installed; zero2r1 needs {wanted}")
    return Finding(Level.OK, name, installed)


def _device() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding(Level.OK, "device", "CPU only: enough for the nano recipes")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(Level.OK, f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    for name, level, without in FOR_GPUS:
        try:
            yield Finding(Level.OK, name, version(name))
        except PackageNotFoundError:
            yield Finding(level, name, f"not installed: {without} ({extras.install(name)})")


def model(path: str) -> Iterator[Finding]:
    """A model's tokenizer: a chat template, and a turn that ends with a token at which generation stops; whether the
    model has learnt to end turns so, which is tried; and whether vLLM's GPU kernels can serve its latent attention, if
    it is a DeepSeek-V3.

    A tokenizer whose EOS is not what the chat template ends a turn with makes every completion look truncated; rewards
    and loss masks then go wrong in silence (tokenizers loaded from GGUF files have it, for one).

    Args:
        path: a local folder or a hub id.
    """
    from transformers import AutoTokenizer, GenerationConfig

    if fault := hub.model_fault(path):
        yield Finding(Level.ERROR, "tokenizer", f"{path} cannot be loaded: {fault}")
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        yield Finding(Level.ERROR, "tokenizer", f"{path} cannot be loaded: {folder.unread(path, error)}")
        return
    if Path(path).is_dir() and (absent := folder.lacking(Path(path))):
        yield Finding(Level.ERROR, "model", f"{path} is not a whole model: it has no {', and no '.join(absent)}")
    yield from _attention(path)
    if tokenizer.eos_token_id is None:
        yield Finding(Level.ERROR, "eos", "the tokenizer has no end-of-sequence token: nothing would ever end")
        return
    if tokenizer.pad_token_id is None:
        yield Finding(Level.WARNING, "pad", "the tokenizer has no padding token: the EOS token will be used")
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(Level.WARNING, "pad", "padding and EOS are one token: losses that mask padding also mask the end")
    if tokenizer.chat_template is None:
        yield Finding(
            Level.WARNING, "chat template", "none: name one in the recipe (import_model: chat_template: r1_zero)"
        )
        return
    stops = {tokenizer.eos_token_id}
    try:
        configured = GenerationConfig.from_pretrained(path).eos_token_id
        stops |= set(configured if isinstance(configured, list) else [] if configured is None else [configured])
    except OSError:
        pass
    yield _turn_end(tokenizer, stops)
    yield from _ends_turns(path)


def _attention(path: str) -> Iterator[Finding]:
    from transformers import AutoConfig

    from model import presets

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):  # a tokenizer without a model
        return
    if config.model_type.startswith("deepseek_v") and (reason := presets.check_vllm(config)):
        yield Finding(Level.WARNING, "attention", reason)


def _turn_end(tokenizer: Any, stops: set[int]) -> Finding:
    question = [{"role": "user", "content": "1 + 1?"}]
    ids = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": "two"}], return_dict=False)
    spelled = [tokenizer.decode([token]) for token in ids]
    tail = [token for token, text in zip(ids, spelled, strict=True) if text.strip()][-1]
    names = ", ".join(repr(tokenizer.decode([stop])) for stop in sorted(stops))
    if tail in stops:
        return Finding(
            Level.OK, "chat template", f"a turn ends with {tokenizer.decode([tail])!r}, which stops generation"
        )
    return Finding(
        Level.ERROR,
        "chat template",
        f"a turn ends with {tokenizer.decode([tail])!r}, but generation stops only at {names}: every completion would "
        "look truncated. Set the tokenizer's eos_token to what ends a turn and save it again.",
    )


def _ends_turns(path: str) -> Iterator[Finding]:
    """Whether the model has learnt what its chat template ends a turn with; tried on a few questions."""
    from pipeline.prompts.messages import MessageError
    from pipeline.prompts.templates import TemplateError

    if (reason := _too_large(Path(path))) is not None:
        yield Finding(Level.OK, "end of turn", f"not tried whether the model has learnt it: {reason}")
        return
    from pipeline.rollout.turn_ends import probe_turn_ends

    try:
        tried = probe_turn_ends(path)
    except (MessageError, TemplateError, OSError, ValueError, RuntimeError) as error:
        yield Finding(Level.WARNING, "end of turn", f"could not be tried: {error}")
        return
    told = f"{tried.sampled:.0%} of short answers ended within {tried.tokens} tokens"
    told += f", and a complete one ends with a probability of {tried.answered:.2f}"
    if tried.learnt:
        yield Finding(Level.OK, "end of turn", told)
    else:
        yield Finding(
            Level.WARNING,
            "end of turn",
            f"{told}: the model has not learnt what this chat template ends a turn with, and completions will be cut"
            " off. Use the template that it was taught with (import_model without chat_template), fine-tune it first,"
            " or say in rollout.stop what else ends a completion",
        )


def _too_large(folder: Path) -> str | None:
    """Why a model is not loaded to be tried, if it is not: it is not here, or memory is too small for it."""
    import torch

    from pipeline.conversion.importing import weights

    if not any(folder.glob("*.safetensors")):
        return "its weights are not in a local folder"
    parameters, _ = weights(folder)
    if torch.cuda.is_available():
        free, width = torch.cuda.mem_get_info()[0], 2
    else:
        free, width = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 4
    if parameters * width > free:
        return f"it has {parameters:,} parameters, and {free / 2**30:.0f} GiB of memory are free"
    return None


def recipe(checked: Recipe, limit: int = 2000) -> Iterator[Finding]:
    """Every task of a recipe: does its grader accept the gold answers? Do reward functions of one's own score them? And
    does every stage fit the GPU that is here?

    Args:
        checked: the recipe.
        limit: at most so many problems of each task and split.
    """
    from pipeline.checks import needs
    from pipeline.commands.doctor_rewards import own_rewards
    from pipeline.schema.task import TaskSpec
    from pipeline.schema.walk import walk
    from pipeline.tasks.base import TaskError
    from pipeline.tasks.resolve import resolve

    for name, config in checked.stages.items():
        for loc, message in needs.beyond_tasks(config, checked.base):
            yield Finding(Level.ERROR, f"{name}: {'.'.join(map(str, loc))}", message)
    definitions = {name: definition.model_dump() for name, definition in checked.tasks.items()}
    seen: set[str] = set()
    for config in checked.stages.values():
        for leaf in walk(config):
            if not isinstance(leaf.value, TaskSpec) or leaf.value.model_dump_json() in seen:
                continue
            seen.add(leaf.value.model_dump_json())
            resolved = resolve(leaf.value, definitions, checked.base)
            try:
                problems = resolved.task.problems(leaf.value.split, leaf.value.problems, checked.seed)[:limit]
            except TaskError as error:
                yield Finding(Level.ERROR, resolved.label, str(error))
                continue
            refused = resolved.task.validate(problems)
            if left_out := resolved.task.left_out:
                message = f"{len(left_out)} rows are left out (bad_rows: skip), such as {left_out[0]}"
                yield Finding(Level.WARNING, resolved.label, message)
            if not problems:
                yield Finding(Level.ERROR, resolved.label, f"there are no problems in its split {leaf.value.split}")
            elif refused:
                problem, verdict = refused[0]
                example = f"{problem.id}: {problem.answer!r} ({verdict.status}: {verdict.detail})"
                level = Level.ERROR if len(refused) == len(problems) else Level.WARNING
                message = f"the grader refuses {len(refused)} of {len(problems)} golds, such as {example}"
                yield Finding(level, resolved.label, message)
            else:
                yield Finding(Level.OK, resolved.label, f"the grader accepts all {len(problems)} golds")
    yield from own_rewards(checked)
    yield from _fits(checked)


def _fits(checked: Recipe) -> Iterator[Finding]:
    """Whether the recipe's stages fit the GPUs that are here, as far as can be told before they run."""
    from pipeline.planner import fits

    for each, said in fits.on_this_machine(checked):
        yield Finding(Level.OK if each.fits else Level.WARNING, f"{each.work.stage}: memory", said)


def files(folder: Path) -> Iterator[Finding]:
    """A run's files: every finished stage as it was published, every checkpoint of the others as it was written."""
    from pipeline.report.run_data import read_run

    for stage in read_run(folder).stages.values():
        yield from _files(stage)


def run(folder: Path) -> Iterator[Finding]:
    """A run's RL stages: groups whose rewards are all equal teach nothing; says how many there are, and why."""
    from pipeline.report.run_data import events, health_of, read_run

    for stage in read_run(folder).stages.values():
        recent = [event for event in events(stage) if _both_known(event)][-RECENT_EVENTS:]
        if (groups := Shares.of(recent)) is not None:
            yield _dead_groups(stage.name, groups, len(recent), health_of(stage).dead_groups)


def _files(stage: Stage) -> Iterator[Finding]:
    """Whether a finished stage is what was published, or the checkpoints of an unfinished one what was written."""
    from pipeline.report.run_data import State
    from pipeline.training import checkpoints

    if stage.state is State.FINISHED and stage.folder is not None:
        files = stage.manifest["files"]
        if faults := durable.damage(stage.folder, files):
            mend = "put the file back, or delete the folder and run again: the stage is then made anew"
            yield Finding(Level.ERROR, stage.name, f"{durable.describe(faults)} in {stage.folder}: {mend}")
        else:
            size = sum(entry["bytes"] for entry in files.values())
            yield Finding(Level.OK, stage.name, f"{len(files)} files, {size / 1e6:,.1f} MB: as they were published")
    elif stage.folder is not None:
        for checkpoint in (*checkpoints.by_step(stage.folder / "checkpoints"), stage.folder / checkpoints.TRAINED):
            if (checkpoint / checkpoints.MARK).exists():
                faults = durable.damage_of(checkpoint, checkpoints.MARK)
                level, told = Level.OK, f"{checkpoint.name} is as it was written"
                if faults:
                    level, told = Level.WARNING, f"{checkpoint.name} is damaged ({durable.describe(faults)}); the stage"
                    told += " will go back to what is before it"
                yield Finding(level, stage.name, told)


def _both_known(event: Mapping[str, Any]) -> bool:
    from pipeline.report.text import finite

    return all(finite(event.get(name)) is not None for name in (FAILED, EQUAL))


def _dead_groups(stage: str, groups: Shares, steps: int, limit: float) -> Finding:
    message = f"{groups} in the last {steps} logged steps"
    if groups.dead < limit:
        return Finding(Level.OK, stage, message)
    return Finding(Level.WARNING, stage, f"{message}: {groups.cause}")
