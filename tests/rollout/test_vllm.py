"""The in-process vLLM engine against the transformers engine; runs where vLLM is installed, be it the CPU build."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.prompts.templates import encode, prompt_template, render
from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Engine, Finish, Sampling
from pipeline.rollout.transformers import TransformersEngine
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}


@pytest.fixture(scope="module")
def reference(calculator: Path) -> TransformersEngine:
    return TransformersEngine(str(calculator), logprobs=True)


@pytest.fixture(scope="module")
def engine(calculator: Path) -> Iterator[Engine]:
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=OPTIONS)
    made = open_engine(spec, str(calculator), seed=0, logprobs=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def prompts(reference: TransformersEngine) -> list[list[int]]:
    questions = ["1 + 2 =", "3 + 3 =", "2 + 2 =", "0 + 4 =", "4 + 1 ="]
    return encode(reference.tokenizer, render(reference.tokenizer, [prompt_template("plain")(q) for q in questions]))


def test_greedy_is_what_transformers_gives(
    engine: Engine, reference: TransformersEngine, prompts: list[list[int]]
) -> None:
    seen: list[tuple[int, int]] = []
    greedy = Sampling(n=1, max_tokens=10, temperature=0)
    ours = engine.generate(prompts, greedy, lambda done, total: seen.append((done, total)))
    for (rollout,), (expected,) in zip(ours, reference.generate(prompts, greedy), strict=True):
        assert (rollout.text, rollout.token_ids, rollout.finish) == (expected.text, expected.token_ids, Finish.STOP)
        assert rollout.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert seen[-1] == (5, 5)


def test_a_seed_decides_the_whole_call(engine: Engine, prompts: list[list[int]]) -> None:
    first = engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=5))
    assert [len(group) for group in first] == [8] * 5
    assert engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=5)) == first
    assert engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=6)) != first
    assert len({rollout.token_ids for rollout in first[0]}) > 1
    (cut,) = engine.generate(prompts[:1], Sampling(n=2, max_tokens=2))
    assert {rollout.finish for rollout in cut} == {Finish.LENGTH}


def raw(engine: Any, prompts: list[list[int]], how: Sampling) -> list[tuple[tuple[int, ...], list[float]]]:
    """What vLLM itself says: tokens and their log-probabilities, sequence by sequence."""
    from vllm import SamplingParams

    random.seed(how.seed)
    np.random.seed(how.seed)
    torch.manual_seed(how.seed)
    params = SamplingParams(n=how.n, max_tokens=how.max_tokens, logprobs=0, flat_logprobs=True, detokenize=False)
    outputs = engine.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [(tuple(one.token_ids), list(one.logprobs.logprobs)) for output in outputs for one in output.outputs]


def test_log_probabilities_are_those_that_vllm_would_give(engine: Engine, prompts: list[list[int]]) -> None:
    how = Sampling(n=3, max_tokens=10, seed=7)
    ours = [(one.token_ids, list(one.logprobs or ())) for group in engine.generate(prompts, how) for one in group]
    assert ours == raw(engine, prompts, how)
    assert len({len(logprobs) for _, logprobs in ours}) > 1


def test_completions_end_at_stops_as_with_transformers(
    engine: Engine, reference: TransformersEngine, prompts: list[list[int]]
) -> None:
    ids = reference.tokenizer.convert_tokens_to_ids("</think>")
    for stop in (("</think>",), ("think> <answer>", "nowhere"), (ids,), ("<eos>", "</answer>")):
        greedy = Sampling(max_tokens=12, temperature=0.0, stop=stop)
        for (rollout,), (expected,) in zip(
            engine.generate(prompts, greedy), reference.generate(prompts, greedy), strict=True
        ):
            assert (rollout.text, rollout.token_ids, rollout.finish) == (expected.text, expected.token_ids, Finish.STOP)
            assert rollout.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    for group in engine.generate(prompts, Sampling(n=6, max_tokens=4, seed=3, stop=("</answer>",))):
        for rollout in group:
            assert len(rollout.logprobs or ()) == len(rollout.token_ids)
            ended = rollout.text.endswith("</answer>") or rollout.token_ids[-1] == reference.tokenizer.eos_token_id
            assert ended == (rollout.finish is Finish.STOP)


def test_a_prompt_beyond_the_context_is_refused_and_harms_no_other(engine: Engine, prompts: list[list[int]]) -> None:
    greedy = Sampling(n=1, max_tokens=5, temperature=0)
    expected = engine.generate(prompts[:1], greedy)
    with pytest.raises(RolloutError, match=r"vLLM: .*64"):
        engine.generate([prompts[0], [5] * 70], greedy)
    assert engine.generate(prompts[:1], greedy) == expected


# Closing an engine ends the process groups of every engine of this process: this comes behind those that share one.
def test_log_probabilities_survive_that_sequences_are_put_off(calculator: Path, reference: TransformersEngine) -> None:
    """With room for a few sequences only, vLLM throws out some that have begun, and computes them anew."""
    options = {**OPTIONS, "block_size": 32, "num_gpu_blocks_override": 9, "enable_prefix_caching": False}
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options)
    small: Any = open_engine(spec, str(calculator), seed=0, logprobs=True)
    scheduler = small.llm.llm_engine.engine_core.engine_core.scheduler
    put_off, preempt = [], scheduler._preempt_request
    scheduler._preempt_request = lambda *args, **kwargs: (put_off.append(args), preempt(*args, **kwargs))
    prompt = [5, 6, 7] * 10  # two more tokens fill a block
    try:
        groups = small.generate([prompt] * 2, Sampling(n=4, max_tokens=30, seed=1))
    finally:
        small.close()
    assert put_off
    for rollout in (one for group in groups for one in group):
        ids = torch.tensor([[*prompt, *rollout.token_ids]])
        with torch.no_grad():
            logprobs_TV = reference.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs_TV.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
        assert rollout.logprobs == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_modl_len": 8}, "did you mean 'max_model_len'"), ({"max_num_seqs": "many"}, "'max_num_seqs' has to be int")],
)
def test_an_option_that_vllm_lacks_is_refused_before_anything_is_loaded(
    calculator: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RolloutError, match=message):
        open_engine(RolloutSpec(engine="vllm", engine_options=options), str(calculator), 0)


def test_what_vllm_does_not_sample_with_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RolloutError, match="vLLM: temperature must be"):
        open_engine(RolloutSpec(engine="vllm", temperature=float("inf")), "no/such/model", 0)
