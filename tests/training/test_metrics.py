"""Metrics of training passes are those of all passes and processes together, however their tokens were divided."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.training.metrics import Metrics


def of_processes(*parts: list[list[float]]) -> dict[str, float]:
    """What the first process reads where each has passes of these importance weights."""
    each = [Metrics() for _ in parts]
    for metrics, passes in zip(each, parts, strict=True):
        for weights in passes:
            metrics.effective("size", torch.tensor(weights))
            metrics.total("mean", sum(weights), len(weights))
    flat: list[torch.Tensor] = []

    def gather(row: torch.Tensor) -> torch.Tensor:
        flat.append(row)
        return torch.cat(flat)

    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), gather=gather)
    return [metrics.read(accelerator) for metrics in each][-1]


def test_the_effective_sample_size_is_that_of_all_tokens_of_all_processes() -> None:
    """Kish: (Σw)² / Σw² samples, as a share of n; 1 for equal weights, 1/n where one token has all the weight."""
    weights = [0.5, 1.0, 2.0, 1.0, 0.25, 3.0]
    expected = sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))
    for parts in ([[weights]], [[weights[:2], weights[2:]]], [[weights[:1]], [weights[1:4], weights[4:]], [[]]]):
        found = of_processes(*parts)
        assert found["size"] == pytest.approx(expected)
        assert found["mean"] == pytest.approx(sum(weights) / len(weights))
        assert set(found) == {"size", "mean"}
    assert of_processes([[0.7] * 5])["size"] == pytest.approx(1)
    assert of_processes([[1.0, 0.0, 0.0, 0.0]])["size"] == pytest.approx(1 / 4)
    assert math.isnan(of_processes([[]])["size"])
