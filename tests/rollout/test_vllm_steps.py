"""Decoding with little bookkeeping against vLLM's own: the same engine, asked twice."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.rollout import open_engine, open_updatable
from pipeline.rollout.base import Finish, Rollout, Sampling
from pipeline.rollout.weights import official_weights
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm import SamplingParams, TokensPrompt  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

from pipeline.rollout.vllm.patches.scheduler import SchedulerFastPath, special  # noqa: E402

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
def kind(request: pytest.FixtureRequest) -> tuple[bool, bool]:
    """Whether prefixes are kept in the cache, and whether a step is scheduled while the one before it runs."""
    keeps, overlaps = request.param
    return keeps, overlaps


@pytest.fixture(scope="module")
def engine(endless: Path, kind: tuple[bool, bool]) -> Iterator[Any]:
    """With room for everything."""
    with opened(endless, *kind) as made:
        yield made


@pytest.fixture(scope="module")
def narrow(endless: Path, kind: tuple[bool, bool]) -> Iterator[Any]:
    """With room for some forty sequences at a time, and not for all that they become."""
    room = {"max_num_seqs": 44, "max_num_batched_tokens": 300, "num_gpu_blocks_override": 50}
    with opened(endless, *kind, **room) as made:
        yield made


@contextmanager
def opened(model: Path, keeps: bool, overlaps: bool, **others: Any) -> Iterator[Any]:
    """An engine of a kind, with further options."""
    options = {**OPTIONS, "enable_prefix_caching": keeps, **others}
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options)
    with pytest.MonkeyPatch.context() as patch:
        overlapping(overlaps, patch)
        made: Any = open_engine(spec, str(model), seed=0, logprobs=True)
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
    """The answer with the fast path, and vLLM's own; nothing of the first is in the cache when the second is made."""
    answers = []
    for engine.patched.fast_path.on in (True, False):
        engine.llm.reset_prefix_cache()
        answers.append(ask())
    engine.patched.fast_path.on = True
    return answers[0], answers[1]


def tokens_vllm_saw(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each step that vLLM's own bookkeeping is given, from now on."""
    seen: list[int] = []
    update = engine.patched.fast_path._update

    def spy(scheduled: Any, output: Any) -> Any:
        seen.append(len(scheduled.num_scheduled_tokens))
        return update(scheduled, output)

    monkeypatch.setattr(engine.patched.fast_path, "_update", spy)
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


class Seen:
    """Every step that a scheduler makes, with names and blocks numbered anew: vLLM numbers on from run to run."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Any] = []
        self.together = 0
        scheduler = engine.patched.fast_path._scheduler
        schedule = scheduler.schedule
        self.forget()

        def spy(*args: Any, **others: Any) -> Any:
            scheduled = schedule(*args, **others)
            self.steps.append(self._told(scheduled))
            step = getattr(scheduled, "decode_batch", None)
            self.together += 0 if step is None else len(step.names)
            return scheduled

        monkeypatch.setattr(scheduler, "schedule", spy)

    def forget(self) -> None:
        """Begin anew: whatever comes first is number 0."""
        self.steps, self.together = [], 0
        self._names: Any = defaultdict(count().__next__)
        self._blocks: Any = defaultdict(count().__next__)

    def _told(self, scheduled: Any) -> dict[str, Any]:
        """All fields of a step; none is known here by name but those that hold names or blocks."""
        told = {field.name: getattr(scheduled, field.name) for field in dataclasses.fields(scheduled)}
        for new in told.pop("scheduled_new_reqs"):
            told[f"new {self._names[new.req_id]}"] = (
                new.prompt_token_ids,
                new.num_computed_tokens,
                self._numbers(new.block_ids),
                getattr(new, "prefill_token_ids", None),
            )
        cached = told.pop("scheduled_cached_reqs")
        told["cached"] = [self._names[name] for name in cached.req_ids]
        told["blocks"] = [blocks and self._numbers(blocks) for blocks in cached.new_block_ids]
        told["computed"], told["outputs"] = list(cached.num_computed_tokens), list(cached.num_output_tokens)
        told["resumed"] = {self._names[name] for name in cached.resumed_req_ids}
        told["given"] = {self._names[name]: list(ids) for name, ids in cached.all_token_ids.items()}
        told["tokens"] = [(self._names[name], tokens) for name, tokens in told.pop("num_scheduled_tokens").items()]
        for name in ("finished_req_ids", "preempted_req_ids"):
            told[name] = {self._names[one] for one in told[name] or () if one in self._names}  # not of another run
        return told

    def _numbers(self, groups: Any) -> list[list[int]]:
        return [[self._blocks[block] for block in group] for group in groups]


MANY = [[5 + n, 6, 7] * (3 + n) for n in range(12)]
"""Prompts of a run in which sequences begin, wait, end one by one, find no room and start anew."""


def compare_steps(engine: Any, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Any], share: float) -> list[Any]:
    """Hold every step of a run, which counts this share of decoding together, against vLLM's own; returns these."""
    seen, told = Seen(engine, monkeypatch), []

    def asked() -> Any:
        seen.forget()
        answers = ask()
        told.append((seen.steps, seen.together))
        return answers

    ours, own = both_ways(engine, asked)
    monkeypatch.undo()
    (steps, together), (own_steps, none) = told
    assert ours == own
    assert none == 0
    assert together > share * sum(tokens == 1 for step in own_steps for _, tokens in step["tokens"])
    for at, (step, own_step) in enumerate(zip(steps, own_steps, strict=True)):
        assert step == own_step, f"step {at}"
    return own_steps


def test_every_step_is_the_one_that_vllm_makes(narrow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = compare_steps(
        narrow, monkeypatch, lambda: narrow.generate(MANY, Sampling(n=10, max_tokens=90, seed=4)), 0.4
    )
    assert any(step["preempted_req_ids"] for step in steps), "some are to find no room"


def test_what_ends_otherwise_is_counted_by_itself(narrow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that stop at tokens of their own, or whose log-probabilities vLLM passes on, among plain ones."""

    def ask() -> list[Any]:
        torch.manual_seed(0)
        params = [SamplingParams(max_tokens=60, n=10) for _ in MANY]
        params[7].stop_token_ids = [6, 9]
        params[10].logprobs = 1
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in MANY]
        outputs = narrow.llm.generate(prompts, params, use_tqdm=False)
        return [
            (sample.token_ids, sample.finish_reason, sample.stop_reason, len(sample.logprobs or ()))
            for output in outputs
            for sample in output.outputs
        ]

    compare_steps(narrow, monkeypatch, ask, 0.2)


def test_sequences_that_are_given_up_while_they_are_counted_together(
    narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, together = narrow.patched.fast_path._scheduler, []
    finish = scheduler.finish_requests

    def spy(*args: Any) -> Any:
        together.append(len(narrow.patched.fast_path._together.requests))
        return finish(*args)

    monkeypatch.setattr(scheduler, "finish_requests", spy)
    for enough in (1, 5):
        given_up = narrow.generate(MANY, Sampling(n=8, max_tokens=90, seed=2, enough=enough))
        assert [rollout.finish for group in given_up for rollout in group].count(Finish.ABORT) >= 5
        ours, own = both_ways(narrow, lambda: narrow.generate(MANY, Sampling(n=5, max_tokens=50, seed=1)))
        assert ours == own
    assert together[0] > 0, "they were counted together when they were given up"


@pytest.mark.parametrize(
    ("holder", "name", "value"),
    [
        ("", "connector", object()),
        ("", "ec_connector", object()),
        ("", "lora_config", object()),
        ("", "use_pp", True),
        ("", "num_spec_tokens", 1),
        ("", "needs_kv_cache_zeroing", True),
        ("kv_cache_manager", "watermark_blocks", 3),
        ("scheduler_config", "long_prefill_token_threshold", 8),
        ("scheduler_config", "policy", "priority"),
    ],
)
def test_schedulers_whose_steps_hold_more_are_left_alone(
    engine: Any, monkeypatch: pytest.MonkeyPatch, holder: str, name: str, value: Any
) -> None:
    scheduler = engine.patched.fast_path._scheduler
    assert not special(scheduler)
    monkeypatch.setattr(getattr(scheduler, holder) if holder else scheduler, name, value)
    assert special(scheduler)


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
    monkeypatch.setattr("pipeline.rollout.vllm.patches.scheduler.STALE", ("a_counter_to_come",))
    (group,) = engine.generate(PROMPTS[1:2], Sampling(n=4, max_tokens=20, seed=2))
    assert sum(seen) >= sum(len(rollout.token_ids) for rollout in group)
    monkeypatch.undo()
    assert engine.generate(PROMPTS[1:2], Sampling(n=4, max_tokens=20, seed=2)) == [group]


def test_what_is_given_up_leaves_nothing_behind(engine: Any) -> None:
    given_up = engine.generate(PROMPTS, Sampling(n=2, max_tokens=120, seed=1, enough=1))
    assert [rollout.finish for group in given_up for rollout in group].count(Finish.ABORT) == 4
    ours, own = both_ways(engine, lambda: engine.generate(PROMPTS, Sampling(n=2, max_tokens=50, seed=1)))
    assert ours == own
    assert not engine.patched.fast_path._kept


def test_caches_of_other_kinds_are_left_to_vllm() -> None:
    """Sliding windows give blocks back while a sequence grows."""
    manager = SimpleNamespace(coordinator=SimpleNamespace(single_type_managers=[object()]), allocate_slots=len)
    scheduler = SimpleNamespace(kv_cache_manager=manager, num_lookahead_tokens=0, add_request=min)
    core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    SchedulerFastPath(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)))
    assert (manager.allocate_slots, scheduler.add_request) == (len, min)


def test_weights_are_replaced_between_two_steps_that_overlap(endless: Path) -> None:
    """While sequences are counted together, wait for their first step, or are put off; each token is its version's."""
    policies = [AutoModelForCausalLM.from_pretrained(endless, dtype=torch.float32) for _ in range(3)]
    with torch.no_grad():
        for version, policy in enumerate(policies):
            policy.model.layers[0].mlp.down_proj.weight.mul_(1 + 3 * version)
    options = {**OPTIONS, "max_num_seqs": 44, "max_num_batched_tokens": 300, "num_gpu_blocks_override": 50}
    with pytest.MonkeyPatch.context() as patch:
        overlapping(True, patch)
        spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options)
        engine: Any = open_updatable(spec, str(endless), 0, logprobs=True, for_trainer=True)
    assert engine.llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    try:
        engine.add(7, PROMPTS, Sampling(n=16, max_tokens=60, seed=3))
        engine.add(8, PROMPTS, Sampling(n=16, max_tokens=60, seed=4))
        answers: dict[int, list[list[Rollout]]] = {}
        for version in (1, 2):
            for _ in range(25):
                answers |= engine.step()
            assert engine.patched.fast_path._together.requests, "some are counted together"
            engine.load_weights(official_weights(policies[version]), version)
        while not engine.idle:
            answers |= engine.step()
    finally:
        engine.close()
    assert set(answers) == {7, 8}
    rollouts = [pair for ticket in (7, 8) for pair in zip(PROMPTS, answers[ticket], strict=True)]
    assert any(len(rollout.versions) == 3 for _, group in rollouts for rollout in group)
    for prompt, group in rollouts:
        for rollout in group:
            assert sum(tokens for _, tokens in rollout.versions) == len(rollout.token_ids)
            ids_1T = torch.tensor([[*prompt, *rollout.token_ids]])
            at = 0
            for version, tokens in rollout.versions:
                with torch.no_grad():
                    logits_TV = policies[version](ids_1T).logits[0, len(prompt) - 1 : -1]
                scores_T = logits_TV.log_softmax(-1).gather(-1, ids_1T[0, len(prompt) :, None])[:, 0]
                assert rollout.logprobs is not None
                expected = pytest.approx(scores_T[at : at + tokens].tolist(), abs=1e-3)
                assert list(rollout.logprobs[at : at + tokens]) == expected
                at += tokens
