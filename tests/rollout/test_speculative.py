"""`rollout.speculative` in the engines: the same completions, drafted; and what it is in vLLM's words."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.rollout import open_engine, sampling
from pipeline.rollout.base import RolloutError
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.speculative import counted_by_vllm, facts, vllm_options
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec, SpeculativeSpec

PROMPTS = [[5, 6], [7], [8, 9, 10]]


def spec(temperature: float = 0.0, **speculative: object) -> RolloutSpec:
    drafting = SpeculativeSpec(**speculative) if speculative else None  # type: ignore[arg-type]
    return RolloutSpec(engine="transformers", max_tokens=12, temperature=temperature, speculative=drafting)


def tokens(path: Path, rollout: RolloutSpec) -> tuple[list[list[tuple[int, ...]]], dict[str, float]]:
    """Token ids of two completions a prompt, and what speculation brought."""
    engine = open_engine(rollout, str(path), seed=0)
    groups = engine.generate(PROMPTS, sampling(rollout, 2, seed=1))
    told = facts(engine.speculation)  # type: ignore[attr-defined]
    engine.close()
    return [[rollout.token_ids for rollout in group] for group in groups], told


@pytest.fixture(scope="module")
def foreseeing(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3 with one block, untrained, with the calculator's tokenizer."""
    from model import V3Config, V3ForCausalLM
    from tests.model.test_mtp import SHAPE

    folder = tmp_path_factory.mktemp("foreseeing")
    tokenizer = AutoTokenizer.from_pretrained(calculator)
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    V3ForCausalLM(V3Config(**shape, num_nextn_predict_layers=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_blocks_draft_what_is_said_anyway(foreseeing: Path) -> None:
    plain, nothing = tokens(foreseeing, spec())
    drafted, told = tokens(foreseeing, spec(tokens=2))
    assert drafted == plain and not nothing
    assert 0 <= told["acceptance"] < 1 and told["tokens_per_pass"] >= 1
    sampled, _ = tokens(foreseeing, spec(temperature=1.0, tokens=2))
    assert all(len(ids) <= 12 for group in sampled for ids in group) and sampled != plain


def test_an_engine_in_a_process_of_its_own_tells_what_drafts_brought(foreseeing: Path) -> None:
    """Of all its requests, also when it was lost and started again in between."""
    own = spec(tokens=2).model_copy(update={"process": ProcessSpec()})
    here, there = open_engine(spec(tokens=2), str(foreseeing), 0), open_engine(own, str(foreseeing), 0)
    assert isinstance(there, ProcessEngine)
    try:
        for request in range(2):
            asked = sampling(own, 2, seed=request)
            assert there.generate(PROMPTS, asked) == here.generate(PROMPTS, asked)
            assert there.speculation == here.speculation  # type: ignore[attr-defined]
            os.kill(there._process.pid, signal.SIGKILL)
    finally:
        there.close()


def test_another_model_drafts_what_is_said_anyway(calculator: Path) -> None:
    plain, _ = tokens(calculator, spec())
    drafted, told = tokens(calculator, spec(tokens=3, draft=str(calculator)))
    assert drafted == plain
    assert told["acceptance"] > 0.8 and told["tokens_per_pass"] > 2  # it drafts for itself, past the end now and then


def test_what_cannot_draft_is_refused(calculator: Path) -> None:
    with pytest.raises(RolloutError, match="no blocks of multi-token prediction"):
        open_engine(RolloutSpec(engine="transformers", speculative=SpeculativeSpec()), str(calculator), seed=0)


def test_vllm_is_told_in_its_own_words() -> None:
    assert vllm_options(None) == {}
    assert vllm_options(SpeculativeSpec())["speculative_config"] == {"method": "mtp"}
    assert vllm_options(SpeculativeSpec(tokens=3, draft="small"))["speculative_config"] == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 3,
    }


def test_vllms_counters_are_read() -> None:
    @dataclass
    class Counter:
        name: str
        value: int

    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    metrics = [Counter(f"vllm:spec_decode_{name}", value) for name, value in zip(names, (10, 20, 15), strict=True)]
    assert facts(counted_by_vllm([Counter("vllm:other", 3), *metrics])) == {"acceptance": 0.75, "tokens_per_pass": 2.5}


def test_new_weights_reach_the_blocks(foreseeing: Path) -> None:
    """And an engine that does not draft takes them too."""
    from model import V3ForCausalLM

    model = V3ForCausalLM.from_pretrained(foreseeing)
    with torch.no_grad():
        model.model.layers[2].eh_proj.weight.add_(1.0)
    for rollout in (spec(), spec(tokens=1)):
        engine = open_engine(rollout, str(foreseeing), seed=0)
        from transformers.core_model_loading import revert_weight_conversion

        engine.load_weights(revert_weight_conversion(model, dict(model.state_dict())).items())  # type: ignore[attr-defined]
        held = engine.model.model.layers[2].eh_proj.weight  # type: ignore[attr-defined]
        assert held.equal(model.model.layers[2].eh_proj.weight)
        assert engine.generate(PROMPTS, sampling(rollout, 1, seed=1))
        engine.close()
