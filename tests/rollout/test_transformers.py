"""The transformers engine against plain `generate`, one prompt at a time and without padding."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.prompts.templates import encode, prompt_template, render
from pipeline.rollout import RolloutError, engine_name, open_engine
from pipeline.rollout.base import Finish, Sampling
from pipeline.rollout.transformers import TransformersEngine
from pipeline.schema.pieces import RolloutSpec


@pytest.fixture(scope="module")
def engine(calculator: Path) -> Iterator[TransformersEngine]:
    made = TransformersEngine(str(calculator), batch_size=4, logprobs=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def prompts(engine: TransformersEngine) -> list[list[int]]:
    """Of different lengths, unsorted."""
    questions = ["1 + 2 =", "4 =", "3 + 3 + 1 + 0 =", "2 + 2 =", "", "0 + 4 ="]
    return encode(engine.tokenizer, render(engine.tokenizer, [prompt_template("plain")(q) for q in questions]))


def alone(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """Plain greedy decoding: no batch, no padding, no engine."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    ids = torch.tensor([prompt])
    return list(model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :])


def test_greedy_is_what_each_prompt_gives_alone(
    engine: TransformersEngine, calculator: Path, prompts: list[list[int]]
) -> None:
    groups = engine.generate(prompts, Sampling(n=1, max_tokens=10, temperature=0))
    assert len({len(prompt) for prompt in prompts}) > 2
    for prompt, (rollout,) in zip(prompts, groups, strict=True):
        assert list(rollout.token_ids) == alone(calculator, prompt, 10)
    assert groups[0][0].text.endswith("<answer> 3 </answer>")
    assert groups[0][0].finish is Finish.STOP
    assert groups[0][0].token_ids[-1] == engine.tokenizer.eos_token_id


def test_a_seed_decides_the_whole_call_and_leaves_the_global_generator_alone(
    engine: TransformersEngine, prompts: list[list[int]]
) -> None:
    before = torch.random.get_rng_state()
    first = engine.generate(prompts, Sampling(n=5, max_tokens=10, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert engine.generate(prompts, Sampling(n=5, max_tokens=10, seed=1)) == first
    assert engine.generate(prompts, Sampling(n=5, max_tokens=10, seed=2)) != first
    assert [len(group) for group in first] == [5] * len(prompts)
    assert len({rollout.token_ids for rollout in first[0]}) > 1


def test_logprobs_are_those_of_the_untempered_model(
    engine: TransformersEngine, calculator: Path, prompts: list[list[int]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(calculator)
    groups = engine.generate(prompts[:3], Sampling(n=2, max_tokens=6, temperature=0.5, top_p=0.9))
    for prompt, group in zip(prompts, groups, strict=False):
        for rollout in group:
            ids = torch.tensor([[*prompt, *rollout.token_ids]])
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)
            expected = [float(logprobs[0, len(prompt) + at - 1, token]) for at, token in enumerate(rollout.token_ids)]
            assert rollout.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 2}, {"min_p": 0.3}, {"top_p": 0.9, "top_k": 3}])
def test_for_a_trainer_logprobs_are_those_of_what_was_sampled_from(
    calculator: Path, prompts: list[list[int]], cut: dict[str, float]
) -> None:
    """As vLLM's `processed_logprobs`: at the temperature, and over the tokens that the truncations leave."""
    engine = TransformersEngine(str(calculator), batch_size=4, logprobs=True, tempered=True)
    groups = engine.generate(prompts[:2], Sampling(n=3, max_tokens=5, temperature=0.7, seed=5, **cut))
    for prompt, group in zip(prompts, groups, strict=False):
        for rollout in group:
            ids = torch.tensor([[*prompt, *rollout.token_ids]])
            with torch.no_grad():
                probabilities_TV = (engine.model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).softmax(-1)
            for token, logprob, p_V in zip(rollout.token_ids, rollout.logprobs or (), probabilities_TV, strict=True):
                ranked = sorted(p_V.tolist(), reverse=True)[: cut.get("top_k")]
                ranked = [p / sum(ranked) for p in ranked]
                left = [p for at, p in enumerate(ranked) if sum(ranked[:at]) < cut.get("top_p", 1.0)]
                left = [p for p in left if p >= cut.get("min_p", 0.0) * ranked[0]]
                share = sum(sorted(p_V.tolist(), reverse=True)[: len(left)])
                assert logprob == pytest.approx(float(p_V[token].log()) - math.log(share), abs=1e-4)


def test_a_completion_that_reaches_the_limit_says_so(engine: TransformersEngine, prompts: list[list[int]]) -> None:
    seen: list[tuple[int, int]] = []
    groups = engine.generate(prompts, Sampling(n=1, max_tokens=2), lambda done, total: seen.append((done, total)))
    assert all(rollout.finish is Finish.LENGTH and len(rollout.token_ids) == 2 for (rollout,) in groups)
    assert seen == [(4, 6), (6, 6)]


def test_sampling_follows_the_models_probabilities_and_truncations(
    engine: TransformersEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "batch_size", 400)
    monkeypatch.setattr(engine, "logprobs", False)
    think = engine.tokenizer.convert_tokens_to_ids("<think>")
    (group,) = engine.generate([prompts[0]], Sampling(n=400, max_tokens=1, seed=3))
    assert 0.55 < sum(rollout.token_ids[0] == think for rollout in group) / 400 < 0.8
    for truncated in (Sampling(200, 1, top_k=1), Sampling(200, 1, top_p=0.5), Sampling(200, 1, min_p=0.9)):
        (group,) = engine.generate([prompts[0]], truncated)
        assert {rollout.token_ids[0] for rollout in group} == {think}


def test_sampling_defaults_in_the_models_folder_are_not_applied_but_its_end_tokens_are(
    calculator: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(calculator, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    think, eos = tokenizer.convert_tokens_to_ids("<think>"), tokenizer.eos_token_id
    hidden = {"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "eos_token_id": [eos, think]}
    (folder / "generation_config.json").write_text(json.dumps(hidden))
    engine = TransformersEngine(str(folder))
    (group,) = engine.generate([prompts[0]], Sampling(n=64, max_tokens=8))
    firsts = {rollout.token_ids[0] for rollout in group}
    assert len(firsts) > 1, "top_k=1 of the folder would give one"
    assert all(len(r.token_ids) == 1 and r.finish is Finish.STOP for r in group if r.token_ids[0] == think)


def test_the_engine_is_chosen_by_what_is_there(calculator: Path) -> None:
    wanted = engine_name(RolloutSpec())
    assert wanted == ("vllm" if torch.cuda.is_available() else "transformers")
    assert engine_name(RolloutSpec(server="http://localhost:1")) == "vllm_server"
    if find_spec("vllm") is None:
        with pytest.raises(RolloutError, match=r"name a running server in rollout\.server"):
            open_engine(RolloutSpec(engine="vllm_server"), str(calculator), 0)


def test_the_log_names_what_the_engine_that_auto_has_chosen_does_not_read(
    calculator: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pipeline.rollout"):
        open_engine(RolloutSpec(batch_size=3, gpu_memory=0.9), str(calculator), seed=0).close()
    assert [record.getMessage() for record in caplog.records if "read by" in record.getMessage()] == [
        f"rollout.{name} is not read by the engine {engine_name(RolloutSpec())}"
        for name in (["batch_size"] if engine_name(RolloutSpec()) == "vllm" else ["gpu_memory"])
    ]
