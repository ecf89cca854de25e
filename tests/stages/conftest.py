"""Stages driven by hand: a context without a runner, and models small enough to train in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.base import Outputs, StageContext, config_class, run_function

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


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """Runs stages one after another in one folder: `chain("sft", {...})`; `@name` refers to an earlier one."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "corpus.py").write_text(CORPUS)
    done: dict[str, Path] = {}

    def drive(name: str, config: dict[str, Any], seed: int = 7) -> tuple[Path, Outputs]:
        context = context_of(folder, name, config, done, seed)
        outputs = run_function(config["kind"])(context)
        manifest = {"stage": name, "kind": config["kind"], "fingerprint": f"{len(done):064x}", "config": config}
        manifest |= {"inputs": {}, "metrics": json.loads(json.dumps(dict(outputs.metrics)))}
        (context.output / "manifest.json").write_text(json.dumps(manifest))
        done[name] = context.output
        return context.output, outputs

    drive.folder = folder  # type: ignore[attr-defined]
    drive.done = done  # type: ignore[attr-defined]
    return drive


@pytest.fixture(scope="session")
def base(chain: Drive) -> Path:
    """A tiny model, pre-trained on sums for a few steps; its folder in the chain is `@base`."""
    config = {
        "kind": "pretrain",
        "model": TINY,
        "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
        "corpus": {"use": "corpus.py:Sums", "documents": 400},
        "length": 32,
        "trainer": {"max_steps": 30, "learning_rate": 5e-3, "warmup_steps": 0},
    }
    return chain("base", config)[0]
