"""The server engine against vLLM's own server, its CPU build included: what goes over the wire is understood."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Finish, Sampling
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.speculative import vllm_options
from pipeline.rollout.transformers import TransformersEngine
from pipeline.rollout.vllm.server import VllmServerEngine
from pipeline.rollout.vllm.started import flags
from pipeline.rollout.weights import official_weights
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec, SpeculativeSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

START_SECONDS = 240
"""Longest wait for the server, which imports vLLM in two processes; fifty seconds on two idle cores."""
ROUNDING = 5e-2 if torch.cuda.is_available() else 1e-3
"""Largest difference of log-probabilities that fp32 on two implementations makes, with room; TF32 on a GPU."""
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "64", "--gpu-memory-utilization", "0.1"]


def test_the_page_says_how_an_engine_spans_hosts() -> None:
    """Its commands, as vLLM's own parser reads them."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "rollouts.md").read_text()
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "--nnodes" in text]
    commands = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
    read = [parsed(words[2:]) for words in commands]
    assert [words[:2] for words in commands] == [["vllm", "serve"]] * 2
    assert [(args.node_rank, args.headless) for args in read] == [(0, False), (1, True)]
    for args in read:
        assert (args.model_tag, args.nnodes, args.master_addr) == ("MODEL", 2, "10.0.0.1")
        assert args.tensor_parallel_size * args.pipeline_parallel_size == 16
        assert (args.generation_config, args.logprobs_mode) == ("vllm", "processed_logprobs")


def test_a_server_of_ours_has_the_options_of_the_recipe() -> None:
    """As vLLM's own parser reads them: every switch, on and off, and values of each type."""
    from vllm.engine.arg_utils import EngineArgs

    known = vars(parsed([]))  # without those that vLLM sets itself
    fields = [field for field in dataclasses.fields(EngineArgs) if field.name in known]
    switches = [field.name for field in fields if field.type in (bool, bool | None)]
    assert len(switches) > 20
    for given in (True, False):
        options: dict[str, Any] = dict.fromkeys(switches, given)
        read = vars(parsed([*flags(options)]))
        assert {name: read[name] for name in options} == options
    options = {"max_num_seqs": 8, "dtype": "float32", "speculative_config": {"method": "mtp"}, "quantization": None}
    options |= {"cudagraph_capture_sizes": [1, 2, 4], "hf_overrides": {"use_cache": True}}
    read = vars(parsed([*flags(options)]))
    assert {name: read[name] for name in options} == options
    assert parsed([*flags(vllm_options(SpeculativeSpec()))]).disable_log_stats is False


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options of `vllm serve`; its parser has moved between vLLM's versions."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    names = [f"vllm.entrypoints.{room}.cli_args" for room in ("launchers", "openai")]
    name = next(name for name in names if importlib.util.find_spec(name) is not None)
    parser = importlib.import_module(name).make_arg_parser(FlexibleArgumentParser())
    found: argparse.Namespace = parser.parse_args([*words])
    return found


@pytest.fixture(scope="module")
def reference(calculator: Path) -> TransformersEngine:
    return TransformersEngine(str(calculator), logprobs=True)


@contextlib.contextmanager
def served(model: Path, *options: str, **env: str) -> Iterator[str]:
    """Where vLLM serves a model; the command `vllm serve` is none of its CPU build, which has another name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    where = ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    server = subprocess.Popen([*serve, *where, *OPTIONS, *options], start_new_session=True, env={**os.environ, **env})
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


@pytest.fixture(scope="module")
def address(calculator: Path) -> Iterator[str]:
    with served(calculator) as where:
        yield where


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
    with pytest.raises(RolloutError, match=r"server_info\S* answered 404.* needs a server with VLLM_SERVER_DEV_MODE=1"):
        VllmServerEngine(str(calculator), address, for_trainer=True)


@pytest.mark.timeout(3 * START_SECONDS)
def test_a_server_of_ours_takes_weights_in_the_middle_and_is_started_again_when_it_is_killed(calculator: Path) -> None:
    """Each token has the log-probability that the weights of its version give it, computed here by transformers."""
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}
    process = ProcessSpec(restarts=1)
    spec = RolloutSpec(engine="vllm_server", gpu_memory=0.1, engine_options=options, process=process)
    policies = [AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32) for _ in range(3)]
    with torch.no_grad():
        for version, policy in enumerate(policies):
            policy.model.layers[0].mlp.down_proj.weight.mul_(1 + 0.3 * version)
    prompts, sampling = [[7, 8, 9], [5], [6, 7]] * 4, Sampling(n=4, max_tokens=40, temperature=1.5, seed=3)
    before = sockets()
    engine = ProcessEngine(spec, str(calculator), 0, logprobs=True, for_trainer=True)
    try:
        assert engine.dtype == "float32"
        engine.push(official_weights(policies[1]), 1)
        ticket = engine.submit(prompts, sampling)
        engine.push(official_weights(policies[2]), 2)
        groups = engine.collect(ticket)
        for prompt, group in zip(prompts, groups, strict=True):
            for rollout in group:
                ids_1T = torch.tensor([[*prompt, *rollout.token_ids]])
                expected: list[float] = []
                for version, tokens in rollout.versions:
                    with torch.no_grad():
                        logits_TV = policies[version](ids_1T).logits[0, len(prompt) - 1 : -1] / 1.5
                    scores_T = logits_TV.log_softmax(-1).gather(-1, ids_1T[0, len(prompt) :, None])[:, 0]
                    expected += scores_T[len(expected) : len(expected) + tokens].tolist()
                assert rollout.logprobs == pytest.approx(expected, abs=ROUNDING)
                assert rollout.finish is not Finish.ABORT
        assert 2 in {version for group in groups for rollout in group for version, _ in rollout.versions}

        # Its engine, as the kernel does that is out of memory: the server answers 500 for a moment, and then ends.
        (core,) = [pid for pid in group_of(engine._process.pid) if "EngineCore" in command_of(pid)]
        os.kill(core, signal.SIGKILL)
        again = engine.generate(prompts, sampling)
        assert engine.restarts == 1
        assert {rollout.versions[0][0] for group in again for rollout in group} == {2}, "with the last weights"
    finally:
        pid = engine._process.pid
        engine.close()
    until = time.monotonic() + START_SECONDS
    while (left := group_of(pid)) and time.monotonic() < until:
        time.sleep(0.1)  # Python's resource trackers take away shared memory
    assert not left
    assert sockets() == before


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL sends from one GPU to another")
@pytest.mark.timeout(3 * START_SECONDS)
def test_a_server_by_address_gets_weights_by_nccl(calculator: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(calculator, dtype=torch.float32)
    prompts, sampling = [[7, 8, 9], [5], [6, 7]], Sampling(n=4, max_tokens=40, temperature=1.5, seed=3)
    asked = ["--logprobs-mode", "processed_logprobs", "--weight-transfer-config", '{"backend": "nccl"}']
    with served(calculator, *asked, CUDA_VISIBLE_DEVICES="1", VLLM_SERVER_DEV_MODE="1") as where:
        process = ProcessSpec(restarts=0, env={"CUDA_VISIBLE_DEVICES": "0"})
        spec = RolloutSpec(engine="vllm_server", server=where, process=process)
        engine = ProcessEngine(spec, str(calculator), 0, logprobs=True, for_trainer=True)
        try:
            for version in (1, 2):
                with torch.no_grad():
                    policy.model.layers[0].mlp.down_proj.weight.mul_(1.3)
                engine.push(official_weights(policy), version)
                for prompt, group in zip(prompts, engine.generate(prompts, sampling), strict=True):
                    for rollout in group:
                        ids_1T = torch.tensor([[*prompt, *rollout.token_ids]])
                        with torch.no_grad():
                            logits_TV = policy(ids_1T).logits[0, len(prompt) - 1 : -1] / 1.5
                        scores_T = logits_TV.log_softmax(-1).gather(-1, ids_1T[0, len(prompt) :, None])[:, 0]
                        assert rollout.versions == ((version, len(rollout.token_ids)),)
                        assert rollout.logprobs == pytest.approx(scores_T.tolist(), abs=ROUNDING)
        finally:
            engine.close()


def group_of(leader: int) -> list[int]:
    """The processes of a group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [int(stat.parent.name)] if int(group) == leader and state != "Z" else []
    return found


def sockets() -> set[Path]:
    """The sockets among temporary files, such as vLLM's processes make."""
    return {path for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket()}


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
