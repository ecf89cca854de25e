"""The cookbook of algorithms (docs/guides/algorithms.md): its recipes are read as they stand there, and train."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.context import StageContext
from pipeline.recipe import Recipe, load
from pipeline.stages.registry import run_function
from pipeline.training.grpo import objective
from tests.stages.driving import TINY, context_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "algorithms.md"
RECIPES = {
    re.findall(r"^name: (.+)$", block, re.MULTILINE)[0]: block
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
}
EXPECTED = {"grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "on-policy-distillation"}
LINES = 15
STEPS = 2
SHORT = (f"max_steps={STEPS}", f"save_steps={STEPS}", "per_device_train_batch_size=32", "logging_steps=1")
"""What a stage is cut down to, in place of its own numbers."""
PARITY = """
def even(completion, completion_ids) -> float:
    return float(sum(completion_ids) % 2 == 0)
"""
"""A reward that differs within every group, in place of `accuracy`: a model of a few steps is never right."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the recipes start from; the teacher has seen more than the base."""
    folder = tmp_path_factory.mktemp("cookbook")
    (folder / "parity.py").write_text(PARITY)
    for name, steps in (("nano-base", 4), ("nano-teacher", 8)):
        config = {
            "kind": "pretrain",
            "model": TINY,
            "vocabulary": {"kind": "words"},
            "corpus": {"use": "chain", "documents": 300},
            "length": 64,
            "trainer": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": 0},
        }
        run_function("pretrain")(context_of(folder, f"made-{name}", config, {}))
        shutil.copytree(folder / f"made-{name}" / "model", folder / name)
    return folder


def recipe(folder: Path, name: str, *overrides: str) -> Recipe:
    file = folder / f"{name}.yaml"
    file.write_text(RECIPES[name], encoding="utf-8")
    return load(str(file), overrides)


def test_every_algorithm_has_a_short_recipe() -> None:
    assert RECIPES.keys() == EXPECTED
    assert max(len(block.splitlines()) for block in RECIPES.values()) <= LINES


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_recipe_trains(name: str, folder: Path) -> None:
    (stage,) = [stage for stage in recipe(folder, name).stages if stage != "score"]
    overrides = [f"stages.{stage}.trainer.{setting}" for setting in SHORT]
    overrides.append(f"stages.{stage}.tasks=[{{use: chain, problems: 64}}]")
    if stage == "zero":
        overrides.append("stages.zero.rewards.0=parity.py:even")
    config = recipe(folder, name, *overrides).stages[stage]
    output, scratch = folder / name, folder / f"{name}-scratch"
    output.mkdir(), scratch.mkdir()
    context = StageContext(name, config, {}, output, scratch, folder, 0, scratch / "events.jsonl")
    outputs = run_function(config.kind)(context)
    assert outputs.metrics["steps"] == STEPS
    before, after = (load_file(where / "model.safetensors") for where in (folder / "nano-base", output / "model"))
    assert any(not torch.equal(before[key], after[key]) for key in after), "nothing was learnt"
    events = [json.loads(line) for line in (scratch / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("loss" in event for event in events) == STEPS


def test_rloo_is_what_the_page_says_of_it() -> None:
    """The sum of a rollout's token weights times its advantage, against each reward less the mean of the others."""
    group, longest = 4, 16
    rewards_B = torch.rand(3 * group, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantages_B = objective.advantages(rewards_B[:, None], torch.ones(1), group, "none")
    baseline_B = (rewards_B.view(-1, group).sum(1, keepdim=True) - rewards_B.view(-1, group)).flatten() / (group - 1)
    weights_BC = objective.token_weights("dr_grpo", torch.ones(3 * group, longest), longest, 0.0, 1)
    ours_BC = advantages_B[:, None] * weights_BC * len(rewards_B)
    rloo_B = rewards_B - baseline_B
    torch.testing.assert_close(ours_BC, (rloo_B * (group - 1) / (group * longest))[:, None].expand_as(ours_BC).clone())
