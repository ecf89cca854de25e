"""What a step learns and logs is the same however it is divided into micro-batches, passes and ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from model import factory, presets
from pipeline.stages.registry import run_function
from tests.rewards import tiny
from tests.stages.driving import TINY, context_of
from tests.training.ranks import RANK_SECONDS, RANKS, join, started

pytestmark = pytest.mark.timeout(RANK_SECONDS + 300)  # whichever test comes first waits for the ranks

ROWS = 4
"""Rows of a step."""
WORDS = "User: Assistant: <think> </think> <answer> </answer> what is 1 2 3 4 5 6 7 8"
FILES = """
from pipeline.data.corpus import Corpus
from pipeline.tasks.base import Problem, Task

class Counts(Corpus):
    def documents(self, n, seed):
        return [" ".join("12345678"[: 1 + number * 3 % 8]) for number in range(n)]

class Counting(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(str(n), f"what is {n}", str(n)) for n in range(1, 9)]

def shape(completion):
    return len(set(completion.split())) / 10 + len(completion.split()) % 3
"""
BALANCED = {"routing": {"balance": "sequence", "balance_alpha": 0.1, "bias_update_speed": 0.0}}
FOLLOWED = {"mtp": {"weight": 1.0, "final_weight": 1.0, "detach": False}}
MIXTURE = {"model": "base", **BALANCED, **FOLLOWED}
"""A mixture of experts with prediction blocks."""
KINDS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "kind": "pretrain",
        "model": {**TINY, "num_nextn_predict_layers": 2},
        "tokenizer": "base",
        "corpus": {"use": "files.py:Counts", "documents": 60},
        "length": 12,
        **BALANCED,
        **FOLLOWED,
    },
    "sft": {"kind": "sft", "data": ["answers.jsonl"], **MIXTURE},
    "packed sft": {"kind": "sft", "data": ["more.jsonl"], "packing": True, "max_length": 20, **MIXTURE},
    "on-policy distillation": {
        "kind": "distill",
        "teacher": "teacher",
        "tasks": ["files.py:Counting"],
        "rollout": {"max_tokens": 12},
        **MIXTURE,
    },
    "reward model": {"kind": "reward_model", "model": "dense", "data": ["pairs.jsonl"]},
    "process reward model": {"kind": "reward_model", "learns": "steps", "model": "dense", "data": ["steps.jsonl"]},
    "grpo": {
        "kind": "grpo",
        "tasks": ["files.py:Counting"],
        "rewards": ["files.py:shape"],
        "rollout": {"max_tokens": 12},
        "samples": 0,
        **MIXTURE,
        "trainer": {"num_generations": 2, "beta": 0.1},
    },
}
TRAINER = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0, "bf16": False}
"""Plain gradient descent shows the gradient itself."""
DIVISIONS = {"whole": (ROWS, 1), "halves": (ROWS // 2, 2), "rows": (1, ROWS)}
"""Rows of a micro-batch, and micro-batches of a step."""
ARRANGED = re.compile("(step_)?time|packing/fill|.*per_second|seconds/.*")
"""Metrics of how the work is arranged."""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and rows of very uneven length: in the second step there is one less."""
    folder = tmp_path_factory.mktemp("divided")
    tokenizer = tiny.save(folder / "dense", WORDS)
    shape = presets.load({**TINY, "num_nextn_predict_layers": 2})
    for seed, name in enumerate(("base", "teacher")):
        model = factory.build(shape, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "files.py").write_text(FILES)
    counts = [["1", "2", "3", "4", "5", "6", "7", "8"][: 1 + number * 3 % 8] for number in range(2 * ROWS - 1)]
    texts = [" ".join(count) for count in counts]
    answers = [{"prompt": "what", "completion": " " + text} for text in texts]
    write(folder / "answers.jsonl", answers)
    write(folder / "more.jsonl", [{**row, "prompt": f"what is {n}"} for n in range(1, 5) for row in answers])
    write(folder / "pairs.jsonl", [{"prompt": "what", "chosen": text, "rejected": text + " is"} for text in texts])
    labels = [[0.9 if number % 2 else 0.1 for number in range(len(count))] for count in counts]
    rows = [{"prompt": "what", "completions": c, "labels": of} for c, of in zip(counts, labels, strict=True)]
    write(folder / "steps.jsonl", rows)
    return folder


def prepared(folder: Path, kind: str, name: str, rows: int, accumulated: int, steps: int, greedy: bool = False) -> Any:
    """The context of a stage that divides its steps so. Ranks draw other random numbers than one process."""
    config = {**KINDS[kind], "dtype": "float32"}
    size = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
    config["trainer"] = {**TRAINER, **config.get("trainer", {}), **size, "max_steps": steps, "logging_steps": steps}
    if greedy and "rollout" in config:
        config["rollout"] = {**config["rollout"], "top_k": 1}
    return context_of(folder, f"{kind}: {name}", config, {})


def found(context: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What a run logged, in one line, and the weights that it published."""
    events = [json.loads(line) for line in context.events.read_text().splitlines()]
    (logged,) = [event for event in events if "loss" in event]
    numbers = {n: v for n, v in logged.items() if isinstance(v, int | float) and not ARRANGED.fullmatch(n)}
    return numbers, load_file(context.output / "model" / "model.safetensors")


def compare(one: Any, other: Any, start: dict[str, torch.Tensor]) -> None:
    """The same metrics and weights, up to the order of sums."""
    (logged, weights), (told, others) = found(one), found(other)
    assert told == pytest.approx(logged, rel=1e-4, abs=1e-6)
    for name, weight in weights.items():
        moved = (weight - start[name]).abs().max() if name in start else 1.0
        assert (weight - others[name]).abs().max() <= 2e-4 * moved + 1e-7, name


def start_of(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    model = KINDS[kind]["model"]
    return load_file(folder / model / "model.safetensors") if isinstance(model, str) else {}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_neither_weights_nor_metrics(folder: Path, kind: str) -> None:
    runs = [prepared(folder, kind, name, *division, steps=2) for name, division in DIVISIONS.items()]
    for context in runs:
        run_function(KINDS[kind]["kind"])(context)
    start = start_of(folder, kind)
    for other in runs[1:]:
        compare(runs[0], other, start)
    if "base" in (KINDS[kind]["model"], KINDS[kind].get("tokenizer")):
        logged, weights = found(runs[0])
        assert {"mtp/loss_2", "mtp/acceptance_1", "routing/max_violation/3"} <= logged.keys()
        for layer in (2, 3):
            name = f"model.layers.{layer}.eh_proj.weight"
            assert name not in start or (weights[name] - start[name]).abs().max() > 1e-4, "the blocks are trained"


def rank(number: int, port: int, contexts: list[Any]) -> None:
    """One of two processes: each kind's step."""
    join(number, port, sharded=False)
    for context in contexts:
        run_function(context.config.kind)(context)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict[str, Any]:
    """Each kind's first step as two ranks take it, a row at a time."""
    contexts = {kind: prepared(folder, kind, "ranks", 1, ROWS // RANKS, steps=1, greedy=True) for kind in KINDS}
    started(rank, get_free_port(), list(contexts.values()))
    return contexts


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_change_neither_weights_nor_metrics(folder: Path, ranks: dict[str, Any], kind: str) -> None:
    alone = prepared(folder, kind, "alone", ROWS, 1, steps=1, greedy=True)
    run_function(KINDS[kind]["kind"])(alone)
    compare(alone, ranks[kind], start_of(folder, kind))
