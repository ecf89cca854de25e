"""A balance loss in GRPO is that of a micro-batch, however many passes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model import balance
from pipeline.schema.efficiency import STOCK, Efficiency
from pipeline.schema.routing import PolicyRouting
from pipeline.training import experts
from tests.training import replay
from tests.training.replay import distance, history_of, trainer_of

PROMPTS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2


def equal(completion_ids: Any, **columns: Any) -> list[float]:
    """A reward from which nothing is learnt: all gradients are the balance loss's."""
    return [0.0] * len(completion_ids)


def test_gradients_and_load_do_not_depend_on_the_size_of_passes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were cut off are left out of passes here."""
    monkeypatch.setattr(replay, "launched", lambda: True)  # our class of the model, as a stage has it
    counted: list[Mapping[str, list[float]]] = []

    def counting(model: Any, speed: float) -> Any:
        found = balance.update_bias(model, speed)
        counted.append({layer: load_E.tolist() for layer, load_E in found.items()})
        return found

    monkeypatch.setattr(experts, "update_bias", counting)
    gradients = []
    same = {"merge_micro_batches": False, "background_rewards": False, "drop_dead_groups": False}
    for switches in (STOCK, *(Efficiency(tokens_per_pass=tokens, **same) for tokens in (120, 40))):
        fields = {"max_steps": 1, "max_grad_norm": 0.0, "mask_truncated_completions": True}
        trainer = trainer_of(models / "v3", tmp_path, switches, PROMPTS, equal, **fields)
        experts.balance(trainer, PolicyRouting(balance="sequence", balance_alpha=1.0))
        gradients += history_of(trainer).gradients
    assert gradients[0].norm() > 0.1
    assert all(distance(gradients[0], other) < 1e-6 for other in gradients[1:])
    assert len(counted) == 3 and all(load == counted[0] for load in counted)
