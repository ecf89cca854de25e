"""The in-process vLLM engine against the transformers engine; runs where vLLM is installed, be it the CPU build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.templates import encode, prompt_template, render
from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Engine, Finish, Sampling
from pipeline.rollout.transformers import TransformersEngine
from pipeline.stages.base import RolloutSpec

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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_modl_len": 8}, "did you mean 'max_model_len'"), ({"max_num_seqs": "many"}, "'max_num_seqs' wants int")],
)
def test_an_option_that_vllm_lacks_is_refused_before_anything_is_loaded(
    calculator: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RolloutError, match=message):
        open_engine(RolloutSpec(engine="vllm", engine_options=options), str(calculator), 0)
