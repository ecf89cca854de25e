"""An adapter that vLLM applies itself, loaded in place before every step, against the trainer's log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from benchmarks import adapter_sync, weight_sync  # noqa: E402


def test_an_adapter_alone_is_the_trainers_after_every_sync(tmp_path: Path) -> None:
    """Each round has another adapter, without which the engine would say something else."""
    weight_sync.random_model("llama", tmp_path)
    found = adapter_sync.measure("alone", str(tmp_path), adapter_sync.smoke())
    assert len(found["largest_apart"]) == 3
    assert max(found["largest_apart"]) < 1e-4
    assert min(found["apart_without_adapter"]) > 100 * max(found["mean_apart"])
