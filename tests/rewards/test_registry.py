"""What a reward is asked before it is built: whether it can be called, and has every option that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

import rewards
from rewards import registry

OWN = """\
async def later(completions, **columns):
    return [1.0 for _ in completions]


def trained(completions, trainer_state, log_metric):
    return [0.0] * len(completions)


def lenient(completions, log_metric=None, **more):
    return [0.0] * len(completions)


class Strict:
    def __init__(self, level, *, unit, soft=False, **more):
        pass

    def verify(self, items):
        return []
"""


def test_what_would_fail_only_when_it_is_built_or_called_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    registry.check("own.py:later", {}, tmp_path)  # a coroutine, which is awaited
    with pytest.raises(registry.RewardError, match="needs 'level' and 'unit'"):
        registry.check("own.py:Strict", {"soft": True}, tmp_path)
    with pytest.raises(registry.RewardError, match="needs 'unit' among"):
        registry.check("own.py:Strict", {"level": 1}, tmp_path)
    registry.check("own.py:Strict", {"level": 1, "unit": "m", "other": 2}, tmp_path)
    with pytest.raises(registry.RewardError, match="'cosine_length' needs 'max_tokens'"):
        registry.check("cosine_length", {})


def test_a_function_that_needs_a_trainer_is_refused_where_none_calls_it(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    registry.check("own.py:trained", {}, tmp_path)
    registry.check("own.py:lenient", {}, tmp_path, in_trainer=False)
    needs = r"trained' asks for trainer_state and log_metric.*give them the default None"
    with pytest.raises(registry.RewardError, match=needs):
        registry.check("own.py:trained", {}, tmp_path, in_trainer=False)
    with pytest.raises(registry.RewardError, match=needs):
        rewards.load("cosine_length", max_tokens=9, correct=f"{file}:trained").prepare()
    with pytest.raises(registry.RewardError, match=needs):
        rewards.load("pipeline.tasks.grading:Accuracy", graders={"t": {"use": f"{file}:trained"}}).prepare()
    with pytest.raises(registry.RewardError, match=needs):
        rewards.verify(f"{file}:trained", [("7", "7")])
