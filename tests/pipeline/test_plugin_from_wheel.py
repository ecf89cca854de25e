"""A reward, a task and a corpus in a file beside a recipe, with zero2r1 installed from a wheel: a real run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Installed

RECIPE = """\
name: mine
stages:
  base:
    kind: pretrain
    model: {hidden_size: 16, intermediate_size: 32, moe_intermediate_size: 8, num_hidden_layers: 2,
            num_attention_heads: 2, n_routed_experts: 4, num_experts_per_tok: 2, kv_lora_rank: 8,
            qk_nope_head_dim: 8, qk_rope_head_dim: 8, v_head_dim: 8, max_position_embeddings: 64}
    vocabulary: {kind: words}
    corpus: {use: "letters.py:Letters", documents: 200}
    length: 32
    trainer: {max_steps: 5, per_device_train_batch_size: 4}
  zero:
    kind: grpo
    model: "@base"
    tasks: [{use: "letters.py:NextLetter", problems: 16}]
    rewards: [accuracy, {use: "letters.py:brevity", weight: 0.5}]
    rollout: {engine: transformers, max_tokens: 8}
    trainer: {max_steps: 2, num_generations: 4, per_device_train_batch_size: 8, gradient_accumulation_steps: 1}
"""
LETTERS = """\
import random
from pathlib import Path

import pipeline
from pipeline.data.corpus import Corpus
from pipeline.tasks.base import Problem, Task
from rewards import reward

ALPHABET = "abcdefghij"


class Letters(Corpus):
    def documents(self, n, seed):
        rng = random.Random(seed)
        for _ in range(n):
            start = rng.randrange(9)
            yield f"{ALPHABET[start]} then {ALPHABET[start + 1]}"


class NextLetter(Task):
    grader = "letters.py:next_letter"

    def problems(self, split, n=None, seed=0):
        return [Problem(f"{i}", ALPHABET[i % 9], ALPHABET[i % 9 + 1]) for i in range(n or 9)]


@reward("next_letter")
def next_letter(completion: str, answer: str) -> float:
    return float(answer in completion.split())


@reward("brevity")
def short(completion: str) -> float:
    Path(__file__).with_name("used").write_text(pipeline.__file__)
    return 1.0 if len(completion) < 12 else 0.0
"""


@pytest.mark.slow
def test_a_reward_by_path_from_an_installed_wheel(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "letters.py").write_text(LETTERS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = os.path.relpath(tmp_path / "recipe.yaml", elsewhere)
    installed.run("-m", "pipeline.cli", "run", recipe, "--runs", "runs", cwd=elsewhere)

    assert Path((tmp_path / "used").read_text()).is_relative_to(installed.site)
    run = elsewhere / "runs" / "mine"
    told = installed.run("-m", "pipeline.cli", "report", run, "--json", cwd=tmp_path).stdout
    stages = json.loads(told)["stages"]
    assert [stages[name]["kind"] for name in ("base", "zero")] == ["pretrain", "grpo"]
    assert stages["zero"]["metrics"]["steps"] == 2
    (events,) = (run / "stages" / "zero").glob("*/events.jsonl")
    last = json.loads(events.read_text().splitlines()[-1])
    assert any("brevity" in name for name in last), sorted(last)
    assert (run / "report.html").is_file()
