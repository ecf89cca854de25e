"""Stages driven by hand: contexts without a runner, tiny models, and children that may die in the middle."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.context import Outputs, StageContext
from pipeline.stages.registry import config_class, run_function

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,
}
"""A DeepSeek-V3 of some thirty thousand parameters."""

CORPUS = """
import random
from pipeline.data.corpus import Corpus

class Sums(Corpus):
    def documents(self, n, seed):
        rng = random.Random(seed)
        for _ in range(n):
            a, b = rng.randrange(5), rng.randrange(5)
            yield f"User: {a} + {b} = Assistant: <think> {a} {b} </think> <answer> {a + b} </answer>"
"""

SUMS = """
from pipeline.tasks.base import Problem, Task

class Sums(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(5) for b in range(5)]

def shape(completion):
    return completion.count("<think>") + len(set(completion.split())) / 10

def rare(completion):
    return float(completion.count("<think>") == 1)
"""
"""The problems of that text, and two rewards."""

PRETRAIN = {
    "kind": "pretrain",
    "model": TINY,
    "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
    "corpus": {"use": "corpus.py:Sums", "documents": 60},
    "length": 16,
}
"""A stage that trains it on that text, written to `corpus.py`."""

Drive = Callable[..., tuple[Path, Outputs]]


def context_of(folder: Path, name: str, config: dict[str, Any], inputs: dict[str, Path], seed: int = 7) -> StageContext:
    """A context such as the runner makes; what is in the scratch folder already stays."""
    output = folder / name
    output.mkdir(parents=True)
    scratch = folder / f"{name}-scratch"
    scratch.mkdir(exist_ok=True)
    checked = config_class(config["kind"]).model_validate(config)
    again = type(checked).model_validate(json.loads(checked.model_dump_json(by_alias=True)))
    return StageContext(name, again, inputs, output, scratch, folder, seed, scratch / "events.jsonl")


PRELOAD = [
    "pipeline.training.fit",
    "pipeline.training.trainers.sft",
    "pipeline.training.grpo.trainer",
    "pipeline.tasks.grading",
]
"""What every child needs; imported once, by the server that children are forked from."""
CHILD_SECONDS = 120


def start(folder: Path, name: str, config: dict[str, Any], die: tuple[str, int] | None = None) -> int | None:
    """Run a stage in a process of its own, as the runner does: with an emptied output folder.

    Args:
        die: `("step", n)`: SIGKILL when step n is logged; `("save", n)`: when the nth checkpoint is written but not yet
            marked complete; `None`: live.

    Returns:
        The exit code; minus the signal's number if it was killed.
    """
    shutil.rmtree(folder / name, ignore_errors=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_child, args=(folder, name, config, die))
    process.start()
    process.join(CHILD_SECONDS)
    return process.exitcode


def _child(folder: Path, name: str, config: dict[str, Any], die: tuple[str, int] | None) -> None:
    context = context_of(folder, name, config, {"base": folder / "base"})
    if die is not None and die[0] == "step":
        context = _Doomed(**vars(context), last_step=die[1])
    if die is not None and die[0] == "save":
        _die_while_saving(die[1])
    run_function(config["kind"])(context)


@dataclasses.dataclass(frozen=True)
class _Doomed(StageContext):
    last_step: int = 0

    def log(self, step: int, total: int | None = None, **metrics: float | int | str) -> None:
        super().log(step, total, **metrics)
        if step >= self.last_step:
            os.kill(os.getpid(), signal.SIGKILL)


def _die_while_saving(nth: int) -> None:
    from pipeline.training import checkpoints

    whole, calls = checkpoints.mark_complete, []

    def mark_complete(checkpoint: Path) -> None:
        calls.append(checkpoint)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(checkpoint)

    checkpoints.mark_complete = mark_complete
