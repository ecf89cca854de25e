"""The server engine against vLLM's own server, its CPU build included: what goes over the wire is understood."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Finish, Sampling
from pipeline.rollout.transformers import TransformersEngine
from pipeline.rollout.vllm.server import VllmServerEngine
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

START_SECONDS = 240
"""Longest wait for the server, which imports vLLM in two processes; fifty seconds on two idle cores."""
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "64", "--gpu-memory-utilization", "0.1"]


@pytest.fixture(scope="module")
def reference(calculator: Path) -> TransformersEngine:
    return TransformersEngine(str(calculator), logprobs=True)


@pytest.fixture(scope="module")
def address(calculator: Path) -> Iterator[str]:
    """Where vLLM serves the calculator; the command `vllm serve` is none of its CPU build, which has another name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(calculator)]
    where = ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    server = subprocess.Popen([*serve, *where, *OPTIONS], start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while server.poll() is None and time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        assert server.poll() is None, "the server has ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # with the process that holds the engine
        server.wait()


@pytest.mark.timeout(START_SECONDS + 60)
def test_a_server_gives_what_transformers_gives(address: str, reference: TransformersEngine, calculator: Path) -> None:
    engine = open_engine(RolloutSpec(engine="vllm_server", server=address), str(calculator), 0, logprobs=True)
    texts = [f"User: {a} + {b} =\nAssistant:\n" for a, b in [(1, 2), (3, 3), (0, 4)]]
    prompts = reference.tokenizer(texts, add_special_tokens=False)["input_ids"]
    greedy = Sampling(n=1, max_tokens=10, temperature=0)
    for (ours,), (expected,) in zip(engine.generate(prompts, greedy), reference.generate(prompts, greedy), strict=True):
        assert (ours.token_ids, ours.finish) == (expected.token_ids, Finish.STOP)
        assert ours.text == expected.text
        assert ours.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    seeded = Sampling(n=4, max_tokens=3, top_p=0.9, top_k=5, min_p=0.01, seed=7)
    groups = engine.generate(prompts, seeded)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert {rollout.finish for group in groups for rollout in group} == {Finish.LENGTH}
    assert engine.generate(prompts, seeded) == groups
    with pytest.raises(RolloutError, match=r"answered 400: .*64"):
        engine.generate([[5] * 80], greedy)
    with pytest.raises(RolloutError, match="not /models/other"):
        VllmServerEngine("/models/other", address)
