"""Decoding with little bookkeeping against vLLM's own: the same engine, asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.rollout import open_engine
from pipeline.rollout.base import Finish, Rollout, Sampling
from pipeline.stages.base import RolloutSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm import SamplingParams, TokensPrompt  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

from pipeline.rollout.steps import PlainSteps  # noqa: E402

BLOCK = 32
LENGTH = 200
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": LENGTH, "block_size": BLOCK}
PROMPTS = [[5, 6, 7] * 10, [8, 9, 10], [4] * BLOCK]


@pytest.fixture(scope="module")
def endless(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for long completions, most of which are: its weights are noise, and its end is one of 20."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("endless")
    config = AutoConfig.from_pretrained(calculator)
    config.max_position_embeddings = LENGTH
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(calculator).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[(True, False), (True, True), (False, True)], ids=str)
def engine(endless: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Once for: prefixes are kept in the cache or not; a step is scheduled while the one before it runs or not."""
    keeps, overlaps = request.param
    options = {**OPTIONS, "enable_prefix_caching": keeps}
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options)
    with pytest.MonkeyPatch.context() as patch:
        overlapping(overlaps, patch)
        made: Any = open_engine(spec, str(endless), seed=0, logprobs=True)
    assert made.llm.llm_engine.vllm_config.scheduler_config.async_scheduling is overlaps
    yield made
    made.close()


def overlapping(overlaps: bool, patch: pytest.MonkeyPatch) -> None:
    """Have steps overlap, as vLLM does by default on a GPU; its CPU backend switches that off, but can do it."""
    from vllm.platforms import current_platform

    check = current_platform.check_and_update_config

    def checked(config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = overlaps

    patch.setattr(type(current_platform), "check_and_update_config", staticmethod(checked))


def both_ways(engine: Any, ask: Callable[[], Any]) -> tuple[Any, Any]:
    """The answer with plain steps, and vLLM's own; nothing of the first is in the cache when the second is made."""
    answers = []
    for engine.steps.on in (True, False):
        engine.llm.reset_prefix_cache()
        answers.append(ask())
    engine.steps.on = True
    return answers[0], answers[1]


def tokens_vllm_saw(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each step that vLLM's own bookkeeping is given, from now on."""
    seen: list[int] = []
    update = engine.steps._update

    def spy(scheduled: Any, output: Any) -> Any:
        seen.append(len(scheduled.num_scheduled_tokens))
        return update(scheduled, output)

    monkeypatch.setattr(engine.steps, "_update", spy)
    return seen


def test_tokens_and_log_probabilities_are_the_same(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> list[list[Rollout]]:
        groups: list[list[Rollout]] = engine.generate(PROMPTS, Sampling(n=16, max_tokens=40, seed=3))
        return groups

    seen = tokens_vllm_saw(engine, monkeypatch)
    quick = ask()
    to_vllm = sum(seen)
    ours, own = both_ways(engine, ask)
    assert ours == own == quick
    rollouts = [rollout for group in own for rollout in group]
    assert {rollout.finish for rollout in rollouts} == {Finish.STOP, Finish.LENGTH}
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    assert tokens > 500
    assert to_vllm < tokens / 3, "a prompt and the end take the long way"


def test_the_longest_completion_ends_where_vllm_ends_it(engine: Any) -> None:
    for most in (1, 2, LENGTH - len(PROMPTS[0]), LENGTH):
        ours, own = both_ways(engine, lambda: engine.generate(PROMPTS[:1], Sampling(n=2, max_tokens=most, seed=1)))  # noqa: B023
        assert ours == own


@pytest.mark.parametrize("most", [1, 2, 3, 4, BLOCK + 2, 100])
def test_a_finished_completion_is_found_in_the_cache_as_before(engine: Any, most: int) -> None:
    """The blocks of a completion are hashed and filed in fewer steps, but all of them are."""

    def cached() -> list[int]:
        params = SamplingParams(max_tokens=most, temperature=0, ignore_eos=True)
        (first,) = engine.llm.generate([TokensPrompt(prompt_token_ids=PROMPTS[0])], params, use_tqdm=False)
        again = [*PROMPTS[0], *first.outputs[0].token_ids, 5]
        (second,) = engine.llm.generate(
            [TokensPrompt(prompt_token_ids=again)], SamplingParams(max_tokens=1), use_tqdm=False
        )
        return [len(first.outputs[0].token_ids), second.num_cached_tokens]

    ours, own = both_ways(engine, cached)
    assert ours == own
    if not engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching:
        assert own == [most, 0]
    elif most == 100:
        assert own == [most, 4 * BLOCK]


def test_what_needs_every_token_gets_every_token(engine: Any) -> None:
    """Streaming, stop words and vLLM's own log-probabilities."""
    core, prompt = engine.llm.llm_engine, TokensPrompt(prompt_token_ids=PROMPTS[1])
    every = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.CUMULATIVE)
    core.add_request("streamed", prompt, every)
    lengths = []
    while core.has_unfinished_requests():
        lengths += [len(output.outputs[0].token_ids) for output in core.step()]
    assert lengths == list(range(1, 41))

    plain = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    (whole,) = engine.llm.generate([prompt], plain, use_tqdm=False)
    words = whole.outputs[0].text.split()
    stopped = plain.clone()
    stopped.stop = [words[len(words) // 2]]
    ours, own = both_ways(engine, lambda: engine.llm.generate([prompt], stopped, use_tqdm=False)[0].outputs[0].text)
    assert ours == own
    assert len(ours) < len(whole.outputs[0].text)

    scored = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logprobs=1)
    (told,) = engine.llm.generate([prompt], scored, use_tqdm=False)
    assert len(told.outputs[0].logprobs) == 40


def test_a_vllm_that_counts_otherwise_is_left_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests have neither of the counters that we know."""
    seen = tokens_vllm_saw(engine, monkeypatch)
    monkeypatch.setattr("pipeline.rollout.steps.STALE", ("a_counter_to_come",))
    (group,) = engine.generate(PROMPTS[1:2], Sampling(n=4, max_tokens=20, seed=2))
    assert sum(seen) >= sum(len(rollout.token_ids) for rollout in group)
    monkeypatch.undo()
    assert engine.generate(PROMPTS[1:2], Sampling(n=4, max_tokens=20, seed=2)) == [group]


def test_what_is_given_up_leaves_nothing_behind(engine: Any) -> None:
    given_up = engine.generate(PROMPTS, Sampling(n=2, max_tokens=120, seed=1, enough=1))
    assert [rollout.finish for group in given_up for rollout in group].count(Finish.ABORT) == 4
    ours, own = both_ways(engine, lambda: engine.generate(PROMPTS, Sampling(n=2, max_tokens=50, seed=1)))
    assert ours == own
    assert not engine.steps._kept


def test_caches_of_other_kinds_are_left_to_vllm() -> None:
    """Sliding windows give blocks back while a sequence grows."""
    manager = SimpleNamespace(coordinator=SimpleNamespace(single_type_managers=[object()]), allocate_slots=len)
    scheduler = SimpleNamespace(kv_cache_manager=manager, num_lookahead_tokens=0, add_request=min)
    core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    PlainSteps(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)))
    assert (manager.allocate_slots, scheduler.add_request) == (len, min)
