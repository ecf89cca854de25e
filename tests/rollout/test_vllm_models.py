"""Several models in one vLLM engine, one after another: each answers as in an engine of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.rollout import open_engine
from pipeline.rollout.base import Rollout, Sampling
from pipeline.sampling.engines import Engines
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

SPEC = RolloutSpec(
    engine="vllm",
    gpu_memory=0.1,
    engine_options={"dtype": "float32", "enforce_eager": True, "max_model_len": 64},
)
PROMPTS = [[7, 8, 9], [5], [6, 7], [9, 9, 5, 4]] * 4
SAMPLING = Sampling(n=4, max_tokens=20, temperature=1.3, seed=3)


@pytest.fixture(scope="module")
def other(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(calculator, folder)
    policy = AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            weight.mul_(1.2 if "proj" in name else 1.0)
    policy.save_pretrained(folder)
    return folder


def answers(engine: Any) -> list[list[Rollout]]:
    groups: list[list[Rollout]] = engine.generate(PROMPTS, SAMPLING)
    return groups


@pytest.mark.parametrize("process", [None, ProcessSpec()], ids=["here", "in a process"])
def test_models_answer_as_in_engines_of_their_own(process: ProcessSpec | None, calculator: Path, other: Path) -> None:
    spec = SPEC.model_copy(update={"process": process})
    engines = Engines(spec, seed=0)
    try:
        first, second, again = (answers(engines.of(str(model))) for model in (calculator, other, calculator))
        assert engines.started == 1
    finally:
        engines.close()
    fresh = open_engine(spec, str(other), seed=0)
    try:
        assert texts(answers(fresh)) == texts(second) != texts(first) == texts(again)
    finally:
        fresh.close()


def test_models_that_one_engine_serves_need_no_other_process(calculator: Path, other: Path) -> None:
    assert not Engines(SPEC, seed=0, models=[str(calculator), str(other), str(calculator)]).rollout.separate_process


def texts(groups: list[list[Rollout]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [[(rollout.text, rollout.token_ids) for rollout in group] for group in groups]


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_a_model_that_ends_otherwise_has_an_engine_of_its_own(
    known: bool, calculator: Path, other: Path, tmp_path: Path
) -> None:
    """Its tokens that end a completion lie in the engine, and not in the weights.

    If it is known beforehand, both engines have processes of their own: on a GPU, the first one would leave too little
    memory to a second one in the same process.
    """
    folder = ending_otherwise(other, tmp_path)
    engines = Engines(SPEC, seed=0, models=[str(calculator), str(folder)] if known else [])
    assert engines.rollout.separate_process == known
    try:
        answers(engines.of(str(calculator)))
        ends = answers(engines.of(str(folder)))
        assert engines.started == 2
    finally:
        engines.close()
    assert any(rollout.token_ids[-1] == 9 for group in ends for rollout in group)


def ending_otherwise(model: Path, tmp_path: Path) -> Path:
    """A copy whose completions also end with token 9."""
    folder = tmp_path / "ends"
    shutil.copytree(model, folder)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": [0, 9]}))
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's memory is kept by graphs")
def test_engines_one_after_another_each_have_most_of_the_gpu(calculator: Path, other: Path, tmp_path: Path) -> None:
    """With compiled graphs, as a recipe has them."""
    models = [str(calculator), str(ending_otherwise(other, tmp_path))]
    spec = SPEC.model_copy(update={"gpu_memory": 0.85, "engine_options": {"max_model_len": 64}})
    engines = Engines(spec, seed=0, models=models)
    try:
        assert all(answers(engines.of(model)) for model in models)
        assert engines.started == 2
    finally:
        engines.close()
