"""The reference model: when it follows the policy, how far, and where it is off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.schema.efficiency import STOCK
from pipeline.stages.grpo import trainer_defaults
from pipeline.stages.registry import config_class
from tests.training.replay import history_of, trainer_of

PROMPTS = ["what is 2", "hello", "what four you are", "you are kind"] * 2


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_it_follows_as_trls_does(models: Path, tmp_path: Path, share: float) -> None:
    synced = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": share}
    found = []
    for efficiency in (None, STOCK):
        trainer = trainer_of(models / "dense", tmp_path, efficiency, PROMPTS, beta=0.1, max_steps=5, **synced)
        before = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
        history_of(trainer)
        found.append(dict(trainer.ref_model.named_parameters()))
        assert not all(torch.equal(before[name], weight) for name, weight in found[-1].items())
        policy = dict(trainer.model.named_parameters())
        assert not all(torch.equal(policy[name], weight) for name, weight in found[-1].items()), "step 5 is no multiple"
    theirs, ours = found
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.items())


def test_the_defaults_are_those_of_r1() -> None:
    recipe = {"kind": "grpo", "model": "m", "tasks": ["gsm8k"]}
    fields = trainer_defaults(config_class("grpo").model_validate(recipe))
    assert (fields["sync_ref_model"], fields["ref_model_sync_steps"], fields["ref_model_mixup_alpha"]) == (True, 400, 1)
    without = config_class("grpo").model_validate({**recipe, "trainer": {"beta": 0.0}})
    assert trainer_defaults(without)["sync_ref_model"] is False
