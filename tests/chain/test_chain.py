"""The shortened nano chain from nothing to its report, and what happens when it is asked for again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import artifacts
from pipeline.recipe import load
from pipeline.stages.base import KINDS

if TYPE_CHECKING:
    from tests.chain.conftest import Chain
    from tests.conftest import Timed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain"), pytest.mark.timeout(1500)]

AGAIN_SECONDS = 2.0


def manifests(chain: Chain) -> dict[str, dict[str, Any]]:
    found = artifacts.current(chain.path)
    assert None not in found.values()
    return {name: dict(artifact.manifest) for name, artifact in found.items() if artifact is not None}


def test_every_stage_of_the_paper_publishes(uninterrupted: Chain) -> None:
    published = manifests(uninterrupted)
    assert {"base", "zero", "cold_start", "dev1", "dev2", "dev3", "r1", "student", "score"} <= published.keys()
    kinds = {manifest["kind"] for manifest in published.values()}
    assert kinds == set(KINDS), "a new stage kind belongs into the shortened chain, see conftest.py"
    for name, manifest in published.items():
        artifact = artifacts.find(uninterrupted.path, name, manifest["fingerprint"])
        assert artifact is not None
        assert artifacts.verify(artifact) == []
        assert manifest["resumed"] == 0
        assert manifest["seconds"] > 0
        assert manifest["packages"]["torch"]
    assert not list((uninterrupted.path / "scratch").iterdir())


def test_the_second_fine_tuning_starts_from_the_base(uninterrupted: Chain) -> None:
    """R1's own order: SFT 2 takes what RL 1 wrote, but not its weights."""
    published = manifests(uninterrupted)
    assert published["dev3"]["config"]["model"] == "@base"
    assert set(published["dev3"]["inputs"]) >= {"base", "reasoning"}
    assert published["student"]["inputs"].keys() >= {"student_base", "lessons"}


def test_training_changed_every_model(uninterrupted: Chain) -> None:
    published = manifests(uninterrupted)
    weights = {
        name: manifest["files"]["model/model.safetensors"]["sha256"]
        for name, manifest in published.items()
        if manifest["kind"] in ("pretrain", "sft", "grpo", "distill")
    }
    assert len(weights) >= 8
    assert len(set(weights.values())) == len(weights), weights


def test_the_report_holds_the_numbers(uninterrupted: Chain) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "report", str(uninterrupted.path), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(told["stages"]) == set(manifests(uninterrupted))
    for stage in told["stages"].values():
        assert {"kind", "metrics", "seconds"} <= stage.keys()
    models = [reference[1:] for reference in load("nano/r1").stages["score"].models]
    assert set(told["table"]) == set(models)
    for by_task in told["table"].values():
        assert set(by_task) == {"chain/test", "requests/test"}
        for score in by_task.values():
            assert score["n"] > 0
            assert 0 <= score["low"] <= score["pass@1"] <= score["high"] <= 1
    page = (uninterrupted.path / "report.html").read_text(encoding="utf-8")
    assert "nano-r1" in page
    assert "<svg" in page


def test_a_finished_run_is_recognised_at_once_and_without_torch(
    uninterrupted: Chain, timed: Callable[..., Timed]
) -> None:
    stages = uninterrupted.path / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    told = timed(*uninterrupted.command())
    assert "0 to run" in told.output
    assert told.seconds <= AGAIN_SECONDS
    assert before == {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    log = timed(sys.executable, "-X", "importtime", *uninterrupted.command()).errors
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines()}
    assert "pipeline" in imported
    assert not imported & {"torch", "transformers", "trl", "datasets", "accelerate", "matplotlib"}


def test_the_exported_model_is_a_folder_that_transformers_loads(uninterrupted: Chain) -> None:
    """And it is the model that was trained: same weights, and a card that says where it comes from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = artifacts.current(uninterrupted.path)
    exported, trained = found["out"], found["r1"]
    assert exported is not None
    assert trained is not None
    (card,) = Path(exported.path).rglob("README.md")
    lineage = card.read_text(encoding="utf-8")
    assert all(f"| {stage} |" in lineage for stage in ("base", "zero", "cold_start", "dev3", "r1", "brought"))
    one = AutoModelForCausalLM.from_pretrained(card.parent)
    other = AutoModelForCausalLM.from_pretrained(trained.path / "model")
    assert AutoTokenizer.from_pretrained(card.parent).eos_token_id == one.generation_config.eos_token_id
    for (name, weight), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(weight, expected), name
