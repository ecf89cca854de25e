"""Prompts that vLLM has seen before: what it has cached of them is the old weights', and gone after a sync."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from pipeline.rollout.weights import load_weights, official_weights  # noqa: E402
from tests.rollout import test_vllm_weights as weights  # noqa: E402

BLOCK = 32
"""Tokens of a block of the cache; a shorter prompt is never found in it."""
PROMPTS = [[3 + (7 * place + number) % 60 for place in range(BLOCK + 8)] for number in range(3)]


def test_cached_prompts_do_not_outlive_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(weights, "PROMPTS", PROMPTS)
    torch.manual_seed(0)
    pair = weights.Pair(weights.llama(False), tmp_path, enable_prefix_caching=True, block_size=BLOCK)
    try:
        scheduler = pair.llm.llm_engine.engine_core.engine_core.scheduler
        assert pair.difference() < weights.ROUNDING
        assert pair.difference() < weights.ROUNDING
        assert scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block, "prompts are cached at all"
        for step in range(2):
            pair.train(step)
            assert pair.difference() > 0.5
            load_weights(pair.llm, official_weights(pair.policy))
            assert pair.difference() < weights.ROUNDING
    finally:
        pair.close()
