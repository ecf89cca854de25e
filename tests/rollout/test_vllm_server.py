"""The server engine, against a server that speaks vLLM's protocol; the options of the in-process one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Finish, Sampling, derived_seed
from pipeline.rollout.vllm.server import VllmServerEngine
from pipeline.schema.pieces import RolloutSpec


class Server(ThreadingHTTPServer):
    """Answers each prompt with its last token, repeated once more for each completion; keeps the requests."""

    request_queue_size = 64  # more than the engine sends at once; the default of 5 makes the kernel reset connections

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.token_ids = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "policy", "root": "/models/zero"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        if body["prompt"] == [0]:
            self.answer({"error": {"message": "the prompt is too long"}}, 400)
            return
        choices = []
        for index in range(body["n"]):
            ids = [body["prompt"][-1]] * (index + 1)
            choices.append(
                {
                    "index": index,
                    "text": " ".join(map(str, ids)),
                    "finish_reason": ["stop", "length", "abort"][index % 3],
                    "token_ids": ids if self.server.token_ids else None,
                    "logprobs": {"token_logprobs": [-0.5] * len(ids)} if body["logprobs"] is not None else None,
                }
            )
        self.answer({"choices": choices[::-1]})

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_prompts_go_out_and_groups_come_back_in_order(server: Server) -> None:
    engine = VllmServerEngine("/models/zero", server.address + "/", logprobs=True)
    seen: list[tuple[int, int]] = []
    prompts = [[5, number] for number in range(1, 40)]
    groups = engine.generate(
        prompts, Sampling(3, 16, 0.7, 0.9, 20, 0.1, seed=11), lambda done, total: seen.append((done, total))
    )
    for (_, last), group in zip(prompts, groups, strict=True):
        assert [rollout.token_ids for rollout in group] == [(last,), (last, last), (last, last, last)]
        assert [rollout.finish for rollout in group] == [Finish.STOP, Finish.LENGTH, Finish.ABORT]
        assert group[1].logprobs == (-0.5, -0.5)
    assert seen == [(3 * number, 117) for number in range(1, 40)]
    assert all(rollout.versions == ((0, len(rollout.token_ids)),) for group in groups for rollout in group)

    sent = {tuple(request["prompt"]): request for request in server.requests}
    for index, prompt in enumerate(prompts):
        request = sent[tuple(prompt)]
        assert request["seed"] == derived_seed(11, index)
        wanted = {"model": "policy", "n": 3, "max_tokens": 16, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
        wanted |= {"min_p": 0.1, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        assert {name: request[name] for name in wanted} == wanted


def test_a_server_of_another_model_is_refused(server: Server) -> None:
    with pytest.raises(RolloutError, match=r"serves /models/zero, not /models/base"):
        open_engine(RolloutSpec(server=server.address), "/models/base", 0)


def test_errors_name_the_server_and_its_words(server: Server) -> None:
    engine = VllmServerEngine("policy", server.address)
    with pytest.raises(RolloutError, match=r"answered 400: .*the prompt is too long"):
        engine.generate([[1], [0]], Sampling())
    server.token_ids = False
    with pytest.raises(RolloutError, match="gave no token ids"):
        engine.generate([[1]], Sampling())
    with pytest.raises(RolloutError, match=r"127.0.0.1:9/v1/models does not answer"):
        VllmServerEngine("policy", "http://127.0.0.1:9")


def test_seeds_of_parts_are_stable_and_apart() -> None:
    seeds = [derived_seed(seed, *part) for seed in (0, 1) for part in (("a", 1), ("a", 2), ("a1",), ("a", "1", 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(0, "a", 1) == derived_seed(0, "a", "1") == 1495152192
