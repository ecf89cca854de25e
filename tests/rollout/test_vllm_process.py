"""vLLM in a process of its own: killed, with new weights, and without the tail."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.rollout.base import Finish, Rollout, RolloutError, Sampling, complete
from pipeline.rollout.engine_pool import EnginePool
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.weights import official_weights
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # vLLM takes minutes to start on a busy machine

OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}
PROMPTS = [[7, 8, 9], [5], [6, 7], [9, 9, 5, 4]]
SAMPLING = Sampling(n=4, max_tokens=40, temperature=1.5, seed=3)
ATTEMPTS = 10
"""Of meeting a moment on a busy machine."""
ROUNDING = 5e-2 if torch.cuda.is_available() else 1e-3
"""Largest difference of log-probabilities that fp32 on two implementations makes, with room; TF32 on a GPU."""


@pytest.fixture(scope="module")
def engine(calculator: Path) -> Iterator[ProcessEngine]:
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=OPTIONS, process=ProcessSpec(restarts=1))
    made = ProcessEngine(spec, str(calculator), seed=0, logprobs=True, for_trainer=True)
    yield made
    made.close()


def test_a_killed_engine_is_replaced_with_the_pushed_weights(engine: ProcessEngine, calculator: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32)
    first = engine.generate(PROMPTS, SAMPLING)
    with torch.no_grad():
        policy.model.layers[0].mlp.down_proj.weight.mul_(1.3)
    engine.push(official_weights(policy, getattr(torch, engine.dtype)))
    second = engine.generate(PROMPTS, SAMPLING)
    assert second != first
    for prompt, group in zip(PROMPTS, second, strict=True):
        for rollout in group:
            assert rollout.logprobs == pytest.approx(scored(policy, prompt, rollout), abs=ROUNDING)

    many = PROMPTS * 256  # so many that it is at work when it is killed, however late that is on a busy machine
    second = engine.generate(many, SAMPLING)

    def kill() -> None:
        steps = engine._heartbeat.read()[0]
        while engine._heartbeat.read()[0] < steps + 2:
            time.sleep(0.001)
        os.kill(engine._process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    again = engine.generate(many, SAMPLING)
    killer.join()
    assert engine.restarts == 1
    assert [[rollout.token_ids for rollout in group] for group in again] == [
        [rollout.token_ids for rollout in group] for group in second
    ]


def test_new_weights_in_the_middle_keep_what_was_written(engine: ProcessEngine, calculator: Path) -> None:
    """Each token has the log-probability that the weights of its version give it, computed here by transformers."""
    policies = [AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32) for _ in range(3)]
    with torch.no_grad():
        for version, policy in enumerate(policies):
            policy.model.layers[0].mlp.down_proj.weight.mul_(1 + 0.3 * version)
    prompts = PROMPTS * 8
    for first_version in range(0, 3 * ATTEMPTS, 3):  # on a busy machine weights may come after the last token
        rollouts = sampled_through(engine, policies, prompts, first_version)
        if any(len(rollout.versions) == 3 for _, rollout in rollouts):
            break
    found = {version for _, rollout in rollouts for version, _ in rollout.versions}
    assert found == set(range(first_version, first_version + 3))
    assert any(len(rollout.versions) == 3 for _, rollout in rollouts), "one that went on twice"
    for prompt, rollout in rollouts:
        by_version = {
            version: scored(policies[version - first_version], prompt, rollout) for version, _ in rollout.versions
        }
        of_token = [version for version, tokens in rollout.versions for _ in range(tokens)]
        expected = [by_version[version][at] for at, version in enumerate(of_token)]
        assert rollout.logprobs == pytest.approx(expected, abs=ROUNDING)


def sampled_through(
    engine: ProcessEngine, policies: list[Any], prompts: list[list[int]], first_version: int
) -> list[tuple[list[int], Rollout]]:
    """Prompts with rollouts, in the middle of which the engine was given the weights of one policy after another."""
    engine.push(official_weights(policies[0]), first_version)
    first = engine.submit(prompts, SAMPLING)
    second = engine.submit(prompts, SAMPLING)
    for version, policy in enumerate(policies[1:], first_version + 1):
        engine.has_loaded()
        steps = engine._heartbeat.read()[0]
        while engine._heartbeat.read()[0] < steps + 4 and not engine.is_ready(second):
            time.sleep(0.001)
        engine.push(official_weights(policy), version)
    groups = engine.collect(second) + engine.collect(first)
    return [(prompt, rollout) for prompt, group in zip(prompts * 2, groups, strict=True) for rollout in group]


def scored(policy: Any, prompt: list[int], rollout: Rollout) -> list[float]:
    """The log-probabilities that transformers gives a rollout's tokens."""
    ids_1T = torch.tensor([[*prompt, *rollout.token_ids]])
    with torch.no_grad():
        logits_TV = policy(ids_1T).logits[0, len(prompt) - 1 : -1] / SAMPLING.temperature
    found: list[float] = logits_TV.log_softmax(-1).gather(-1, ids_1T[0, len(prompt) :, None])[:, 0].tolist()
    return found


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two workers need two GPUs, or a CPU build of vLLM")
def test_a_tensor_parallel_engine_gets_its_parts_of_new_weights(calculator: Path) -> None:
    """Two workers read the same memory, and each keeps what is its own; what is missing is told in words."""
    env = {"VLLM_CPU_OMP_THREADS_BIND": "0|0"} if torch.cuda.device_count() < 2 else {}
    options = {**OPTIONS, "tensor_parallel_size": 2}
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options, process=ProcessSpec(restarts=0, env=env))
    made = ProcessEngine(spec, str(calculator), seed=0, logprobs=True, for_trainer=True)
    policy = AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32)
    try:
        for version in (1, 2):
            with torch.no_grad():
                policy.model.layers[0].mlp.down_proj.weight.mul_(1.3)
                policy.model.layers[1].self_attn.q_proj.weight.mul_(1.3)
            made.push(official_weights(policy), version)
            for prompt, group in zip(PROMPTS, made.generate(PROMPTS, SAMPLING), strict=True):
                for rollout in group:
                    assert rollout.versions == ((version, len(rollout.token_ids)),)
                    assert rollout.logprobs == pytest.approx(scored(policy, prompt, rollout), abs=ROUNDING)
        made.push((name, weight) for name, weight in official_weights(policy) if "input_layernorm" not in name)
        with pytest.raises(RolloutError, match=r"2 weights of the engine .* model\.layers\.0\.input_layernorm"):
            made.generate(PROMPTS, SAMPLING)
    finally:
        made.close()


def test_the_tail_is_given_up_and_the_next_request_is_whole(engine: ProcessEngine) -> None:
    every = engine.generate(PROMPTS, SAMPLING)
    some = engine.generate(PROMPTS, Sampling(4, 40, 1.5, seed=3, enough=2))
    kept = [at for at, group in enumerate(some) if complete(group)]
    assert 2 <= len(kept) < len(PROMPTS)
    assert [some[at] for at in kept] == [every[at] for at in kept]
    given_up = [rollout for at, group in enumerate(some) if at not in kept for rollout in group]
    assert {rollout.finish for rollout in given_up} == {Finish.ABORT}
    assert engine.generate(PROMPTS, SAMPLING) == every


def test_grpo_trains_one_batch_ahead_with_it(engine: ProcessEngine, calculator: Path, tmp_path: Path) -> None:
    from tests.training.engine_runs import Run  # imports TRL, which imports vLLM

    run = Run(calculator, tmp_path, engine, max_staleness=1, spare=0.5, max_steps=3)
    assert run.logged("rollout/staleness") == [0, 1, 1]
    first, *later = run.logged("sampling/sampling_logp_difference/max")
    assert first < ROUNDING
    assert all(difference > ROUNDING for difference in later), "the policy has moved on"
    assert all(share in (0.0, 1 / 3) for share in run.logged("rollout/groups_given_up"))


def test_two_engines_on_one_device_sample_with_the_policys_weights(calculator: Path, tmp_path: Path) -> None:
    """They start one after another, share every batch, and have the weights of each step."""
    from tests.training.engine_runs import Run

    process = ProcessSpec(devices=["0", "0"], restarts=0)
    spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=OPTIONS, process=process)
    pool = EnginePool(spec, str(calculator), seed=0, logprobs=True, for_trainer=True)
    try:
        run = Run(calculator, tmp_path, pool, max_staleness=0, spare=0.0, max_steps=3)
    finally:
        pool.close()
    assert run.logged("rollout/staleness") == [0, 0, 0]
    assert all(difference < ROUNDING for difference in run.logged("sampling/sampling_logp_difference/max"))
