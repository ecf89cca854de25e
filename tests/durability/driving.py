"""Nano stages that are killed, cut off from power and damaged, and what they should have come to."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import artifacts
from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.stages.registry import config_class, run_function
from tests.stages.driving import CORPUS, PRELOAD, PRETRAIN, SUMS

FINGERPRINT = "0123456789abcdef" * 4
STAGE = "stage"
SECONDS = 240
"""Longest life of a child, on a machine that is busy with other tests."""
BASE = {
    **PRETRAIN,
    "trainer": {"max_steps": 4, "warmup_steps": 0},
}
ROWS = [
    {"prompt": f"User: {a} + {b} = Assistant:", "completion": f" <answer> {a + b} </answer>"}
    for a in range(5)
    for b in range(5)
]
OFTEN = {"learning_rate": 1e-3, "logging_steps": 1, "save_steps": 2}
STAGES: Mapping[str, Mapping[str, Any]] = {
    # Checkpoints, and examples that are tokenised once
    "sft": {"kind": "sft", "model": "@base", "data": ["rows.jsonl"], "trainer": {**OFTEN, "max_steps": 8}},
    # A queue of groups in its checkpoints, and samples that grow beside them
    "grpo": {
        "kind": "grpo",
        "model": "@base",
        "tasks": ["sums.py:Sums"],
        "rewards": ["sums.py:rare"],
        "rollout": {"max_tokens": 6},
        "sample_every": 1,
        "samples": 2,
        "efficiency": {"dynamic_sampling_rounds": 1},
        "trainer": {
            **OFTEN,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "beta": 0.0,
            "max_steps": 6,
        },
    },
    # Sampled chunks
    "evaluate": {
        "kind": "evaluate",
        "model": "@base",
        "tasks": ["sums.py:Sums"],
        "samples": 2,
        "rollout": {"engine": "transformers", "max_tokens": 6},
    },
}
CHUNK = 8
"""Sequences a chunk: seven chunks in an evaluation."""


def prepare(folder: Path) -> None:
    """Data, tasks and a base model."""
    (folder / "corpus.py").write_text(CORPUS)
    (folder / "sums.py").write_text(SUMS)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run_through(folder, BASE, [folder / "made"])
    artifacts.folder(folder / "made", STAGE, FINGERPRINT).rename(folder / "base")


def child(shared: Path, config: Mapping[str, Any], runs: Sequence[Path]) -> BaseProcess:
    """Start a process that brings one run after another to its end, as the runner and its worker do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "pipeline.stages.evaluate"])
    process = context.Process(target=_work, args=(shared, dict(config), list(runs)))
    process.start()
    return process


def run_through(shared: Path, config: Mapping[str, Any], runs: Sequence[Path]) -> None:
    """Bring runs to their ends."""
    process = child(shared, config, runs)
    process.join(SECONDS)
    assert process.exitcode == 0, [(run / "log.txt").read_text()[-3000:] for run in runs if (run / "log.txt").exists()]


def outcome(run: Path) -> dict[str, Any]:
    """What a run has come to: the hashes of what its stage published, and its numbers, without times."""
    artifact = artifacts.find(run, STAGE, FINGERPRINT)
    assert artifact is not None
    assert artifacts.verify(artifact) == []
    assert not artifacts.scratch(run, STAGE, FINGERPRINT).exists()
    hashes = {name: entry["sha256"] for name, entry in artifact.manifest["files"].items() if name != "events.jsonl"}
    events = (json.loads(line) for line in (artifact.path / "events.jsonl").read_text().splitlines())
    losses = {event["step"]: event["loss"] for event in events if "loss" in event}
    numbers = {name: value for name, value in artifact.manifest["metrics"].items() if name != "tokens_per_second"}
    return {**hashes, "losses": losses, "metrics": numbers}


def log_of(run: Path) -> str:
    """What was said in all attempts of a run."""
    return (run / "log.txt").read_text(encoding="utf-8", errors="replace")


def _work(shared: Path, config: dict[str, Any], runs: list[Path]) -> None:
    from pipeline.sampling import sampler

    sampler.CHUNK_SEQUENCES = MappingProxyType({"transformers": CHUNK})
    for run in runs:
        durable.make_folder(run)
        handler = logging.FileHandler(run / "log.txt", delay=True)
        logging.getLogger().addHandler(handler)
        logging.getLogger("pipeline").setLevel(logging.INFO)
        try:
            _stage(shared, config, run)
        except Exception:
            logging.getLogger(__name__).exception("the stage has failed")
            raise
        logging.getLogger().removeHandler(handler)
        handler.close()


def _stage(shared: Path, config: dict[str, Any], run: Path) -> None:
    """What the runner and its worker do with a stage, in one process, which may end at any moment."""
    if (artifact := artifacts.find(run, STAGE, FINGERPRINT)) is not None:
        artifacts.clean(run, STAGE, artifact)
        return
    scratch = artifacts.scratch(run, STAGE, FINGERPRINT)
    durable.make_folder(scratch)
    shutil.rmtree(scratch / "output", ignore_errors=True)
    (scratch / "output").mkdir()
    events = scratch / "events.jsonl"
    events.touch()
    durable.whole_lines(events)
    checked = config_class(config["kind"]).model_validate(config)
    inputs = {"base": shared / "base"}
    context = StageContext(STAGE, checked, inputs, scratch / "output", scratch, shared, 7, events)
    outputs = run_function(config["kind"])(context)
    shutil.copyfile(events, scratch / "output" / "events.jsonl")
    manifest = {"fingerprint": FINGERPRINT, "metrics": json.loads(json.dumps(dict(outputs.metrics)))}
    artifacts.publish(scratch / "output", artifacts.folder(run, STAGE, FINGERPRINT), manifest)
    shutil.rmtree(scratch)


def digest(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
