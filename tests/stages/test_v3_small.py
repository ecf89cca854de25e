"""The chain on a DeepSeek-V3 of our own: every stage of `v3-small/r1`, with tiny models and little to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import presets
from pipeline.recipe import load
from pipeline.runner import graph
from pipeline.stages.registry import run_function
from tests.stages.driving import TINY, context_of

TRAINED = {"max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1}
SAMPLED = ("cold_start", "reasoning", "general", "lessons")
LITTLE = (
    f"stages.base.model={json.dumps({**TINY, 'num_nextn_predict_layers': 1})}",
    f"stages.student_base.model={json.dumps(TINY)}",
    f"stages.dense_base.model={json.dumps({**TINY, 'first_k_dense_replace': 2})}",
    "defaults.pretrain.length=64",
    "defaults.grpo.rollout={max_tokens: 8}",
    "defaults.grpo.trainer.num_generations=4",
    "defaults.rejection_sample.rollout={max_tokens: 8}",
    "defaults.evaluate.rollout={max_tokens: 8}",
    *(f"stages.{stage}.corpus.documents=400" for stage in ("base", "student_base", "dense_base")),
    # Models that have learnt nothing solve nothing: what they say is kept anyhow.
    *(f"stages.{stage}.require=[]" for stage in SAMPLED),
    *(f"stages.{stage}.tasks=[{{use: chain, problems: 8}}]" for stage in ("cold_start", "reasoning")),
    "stages.general.tasks=[{use: requests, problems: 8}]",
    "stages.lessons.tasks=[{use: chain, problems: 8}, {use: requests, problems: 4}]",
    "stages.score.tasks=[{use: chain, problems: 4}, {use: requests, problems: 2}]",
)


def test_the_models_are_those_of_the_mission() -> None:
    """A base with all of DeepSeek-V3's parts, a smaller one, and one without experts; vLLM's GPU kernels serve them."""
    stages = load("v3-small/r1").stages
    shapes = {name: presets.load(stages[name].model) for name in ("base", "student_base", "dense_base")}  # type: ignore[attr-defined]
    base, student, dense = shapes.values()
    assert base.n_shared_experts and base.n_routed_experts and base.num_nextn_predict_layers and base.q_lora_rank
    assert stages["base"].routing.bias_update_speed > 0  # type: ignore[attr-defined]
    assert student.first_k_dense_replace < student.num_hidden_layers < base.num_hidden_layers
    assert dense.first_k_dense_replace == dense.num_hidden_layers
    assert not [fault for shape in shapes.values() if (fault := presets.check_vllm(shape))]
    sampling = [config for config in stages.values() if config.kind in ("grpo", "rejection_sample", "evaluate")]
    assert {config.rollout.engine for config in sampling} == {"vllm"}  # type: ignore[attr-defined]


def test_every_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a base that is made to a table of twelve models; the load of experts is logged wherever there are any."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kinds = {name: config.kind for name, config in load("v3-small/r1").stages.items()}
    trained = [name for name, kind in kinds.items() if kind in ("pretrain", "sft", "grpo", "distill")]
    little = [f"stages.{name}.trainer.{field}={value}" for name in trained for field, value in TRAINED.items()]
    recipe = load("v3-small/r1", [*LITTLE, *little])
    tasks = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    done: dict[str, Path] = {}
    metrics: dict[str, Any] = {}
    loads = set()
    for name in graph.build(recipe):
        config = recipe.stages[name]
        context = context_of(tmp_path, name, json.loads(config.model_dump_json(by_alias=True)), done, recipe.seed)
        metrics[name] = run_function(config.kind)(replace(context, tasks=tasks)).metrics
        done[name] = context.output
        if name in trained and "routing/max_violation" in (context.scratch / "events.jsonl").read_text():
            loads.add(name)
    assert metrics["base"]["parameters"] > metrics["base"]["active_parameters"]
    assert metrics["dense_base"]["parameters"] == metrics["dense_base"]["active_parameters"]
    assert loads == set(trained) - {"dense_base", "dense", "dense_rl"}
    scores = metrics["score"]["scores"]
    assert set(scores) == {*trained} and all(set(of) == {"chain/test", "requests/test"} for of in scores.values())
