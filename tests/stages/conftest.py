"""A chain of stages that the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Outputs
from pipeline.stages.registry import run_function
from tests.stages.driving import CORPUS, TINY, Drive, context_of


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
