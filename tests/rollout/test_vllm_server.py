"""The server engine, against a server that speaks vLLM's protocol; the options of the in-process one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Finish, Sampling, derived_seed
from pipeline.rollout.shared import Placed, WeightFile
from pipeline.rollout.vllm import api, transfer
from pipeline.rollout.vllm import server as vllm_server
from pipeline.rollout.vllm import started as vllm_started
from pipeline.rollout.vllm.api import Api
from pipeline.rollout.vllm.server import VllmServerEngine
from pipeline.rollout.vllm.started import ServerLostError, Started
from pipeline.schema.pieces import RolloutSpec

MODELS = b'{"data": [{"id": "policy", "root": "/models/zero"}]}'
CHOICE = b'{"choices": [{"index": 0, "token_ids": [7], "finish_reason": "stop"}]}'
CUT = b'{"choices": '
"""The beginning of an answer whose rest never comes."""
SECONDS = 120
"""Longest wait for a process that is about to end."""


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


Speaks = Callable[[Callable[[str], bytes | int]], str]
"""Starts a server that answers each path with the body, or the status, that a function gives; returns its address."""


@pytest.fixture
def speaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Speaks]:
    monkeypatch.setattr(api, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    with contextlib.ExitStack() as servers:

        def start(answer: Callable[[str], bytes | int]) -> str:
            class Answers(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    said = answer(self.path)
                    body = said if isinstance(said, bytes) else b""
                    self.send_response(200 if isinstance(said, bytes) else said)
                    self.send_header("Content-Length", str(len(body) + (said is CUT)))
                    self.end_headers()
                    self.wfile.write(body)

                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers["Content-Length"]))
                    self.do_GET()

                def log_message(self, format: str, *args: Any) -> None:
                    """Quiet."""

            made = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
            made.daemon_threads = True  # so that closing waits for no answer
            servers.enter_context(made)
            threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
            servers.callback(made.shutdown)
            return f"http://127.0.0.1:{made.server_address[1]}"

        yield start


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


@pytest.mark.parametrize(
    ("models", "completions", "words"),
    [
        (b"[]", b"", "is no vLLM server"),
        (b"{}", b"", "is no vLLM server"),
        (b"", b"", "is no vLLM server"),
        (b'{"data": ["policy"]}', b"", "is no vLLM server"),
        (b"<html>", b"", "/v1/models does not answer as expected"),
        (CUT, b"", "/v1/models does not answer as expected"),
        (MODELS, CUT, "/v1/completions does not answer as expected"),
        (MODELS, b"null", "must be vLLM"),
        (MODELS, b'{"error": "?"}', "must be vLLM"),
        (MODELS, b'{"choices": []}', "must be vLLM"),
        (MODELS, b'{"choices": [{"index": 0, "token_ids": [1], "logprobs": null}]}', "must be vLLM"),
    ],
)
def test_what_speaks_otherwise_is_told(models: bytes, completions: bytes, words: str, speaks: Speaks) -> None:
    """Another program's server, and one that dies in the middle of its answer."""
    address = speaks(lambda path: completions if path == "/v1/completions" else models)
    with pytest.raises(RolloutError, match=f"{address}.*{words}"):
        VllmServerEngine("/models/zero", address, logprobs=True).generate([[1, 2]], Sampling(max_tokens=4))


def test_one_that_goes_and_comes_back_is_waited_for(speaks: Speaks) -> None:
    """Dead in the middle of an answer, a gateway without a server behind it, gone; and then there again."""
    answers = iter([CUT, 503, CUT, CHOICE])
    address = speaks(lambda path: MODELS if path == "/v1/models" else next(answers))
    ((rollout,),) = VllmServerEngine("/models/zero", address).generate([[1, 2]], Sampling(max_tokens=4))
    assert rollout.token_ids == (7,)


def test_one_that_hangs_shows_no_sign_of_life(speaks: Speaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it should sample, nor while it should give back what it has, for new weights."""
    hangs, tokens, ticks = threading.Event(), [0, 5, 9, *[9] * 100], []

    def answer(path: str) -> bytes | int:
        if path == "/metrics":
            return f"vllm:generation_tokens_total {tokens.pop(0)}".encode()
        return MODELS if path == "/v1/models" else hangs.wait() and CHOICE

    monkeypatch.setattr(vllm_server, "LOOK_SECONDS", 0.01)
    engine = VllmServerEngine("/models/zero", speaks(answer))
    engine.tick = lambda: ticks.append(len(tokens))
    engine.add(0, [[1, 2]], Sampling(max_tokens=4))
    for _ in range(5):
        assert engine.step() == {}
    for _ in range(5):
        engine._hear(paused=True)
    assert ticks == [102, 101, 100]
    hangs.set()
    while not (answers := engine.step()):
        pass
    assert answers[0][0][0].token_ids == (7,)


class Paused(ThreadingHTTPServer):
    """A server as vLLM 0.32 is while it is paused: what comes then waits, until it is resumed, or aborted by another
    pause. Completions arrive here only behind the first pause."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PausedHandler)
        self.changed = threading.Condition()
        self.pauses, self.paused, self.arrived = 0, False, 0
        self.seeds: list[int] = []


class PausedHandler(BaseHTTPRequestHandler):
    server: Paused

    def do_GET(self) -> None:
        self.answer(json.loads(MODELS) if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, ids, why = self.server, [7], "stop"
        with server.changed:
            if self.path == "/v1/completions":
                server.changed.wait_for(lambda: server.pauses)
                before, server.arrived = server.pauses, server.arrived + 1
                server.changed.notify_all()
                server.changed.wait_for(lambda: server.pauses > before or not server.paused)
                if server.pauses > before:
                    ids, why = [], "abort"
                else:
                    server.seeds.append(body["seed"])
            elif self.path.startswith("/pause"):
                if server.pauses == 1:
                    server.changed.wait_for(lambda: server.arrived == GROUPS)
                server.pauses, server.paused = server.pauses + 1, True
            elif self.path == "/resume":
                server.paused = False
            server.changed.notify_all()
        choices = [{"index": at, "token_ids": ids, "finish_reason": why} for at in range(body.get("n", 0))]
        self.answer({"choices": choices, "results": [[]]})

    answer, log_message = Handler.answer, Handler.log_message


GROUPS, EACH = 3, 4
"""Prompts, and completions of each."""


def test_requests_that_arrive_behind_a_pause_neither_hold_the_weights_up_nor_sample_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_server, "LOOK_SECONDS", 0.01)
    with Paused() as paused:
        threading.Thread(target=paused.serve_forever, args=(0.01,), daemon=True).start()
        engine = VllmServerEngine("/models/zero", f"http://127.0.0.1:{paused.server_address[1]}")
        engine._transfer = transfer.Transfer(engine.api.ask, here=True)
        engine.add(0, [[1], [2], [3]], Sampling(EACH, 16, seed=5))
        assert engine.step() == {}
        engine.load_weights(Placed(WeightFile(), ()), 1)
        assert paused.pauses >= 2
        while not (answers := engine.step()):
            pass
        paused.shutdown()
    assert {rollout.versions for group in answers[0] for rollout in group} == {((1, 1),)}
    assert len(set(paused.seeds)) == len(paused.seeds) == GROUPS * EACH


def test_a_server_of_ours_without_an_engine_is_lost_and_a_busy_one_is_not(
    speaks: Speaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_started, "HEALTH_SECONDS", 0.2)
    ours = Started.__new__(Started)  # without vLLM: what is asked is another server
    done = threading.Event()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ours._process = process
        ours.address = speaks(lambda path: b"")
        ours.check_health()
        ours.address = speaks(lambda path: str(done.wait()).encode())
        ours.check_health()
        done.set()
        for lost in (speaks(lambda path: 503), "http://127.0.0.1:9"):
            ours.address = lost
            with pytest.raises(ServerLostError, match="has lost its engine"):
                ours.check_health()
            with pytest.raises(ServerLostError):  # a refusal of a server that has none is no refusal
                Api(lost, ours).ask("/v1/completions", {})
    with pytest.raises(ServerLostError, match="ended with exit code"):
        ours.check()


def test_a_trainer_does_not_wait_since_its_weights_would_be_lost(speaks: Speaks) -> None:
    api = Api(speaks(lambda path: 503))
    with pytest.raises(RolloutError, match="answered 503"):
        api.ask("/v1/completions", {})


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (b'{"version": "0.26.0"}', "is vLLM 0.26.0, and this environment has 0.27.1"),
        (b'{"version": "0.25.9"}', "0.26 or newer"),
        (b'{"version": "main"}', "does not say which version"),
        (b"{}", "does not say which version"),
        (b"null", "does not say which version"),
    ],
)
def test_a_trainer_asks_for_its_own_version(
    version: bytes, words: str, speaks: Speaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = b'{"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.bfloat16"}}}'
    told = {"/v1/models": MODELS, "/version": version, "/server_info?config_format=json": setup}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(transfer, "installed", lambda _: "0.25.9" if words.startswith("0.26") else "0.27.1")
    with pytest.raises(RolloutError, match=words):
        VllmServerEngine("/models/zero", speaks(told.__getitem__), for_trainer=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RolloutError, match="by NCCL, from a GPU of the trainer's, and there is none here"):
        VllmServerEngine("/models/zero", speaks(told.__getitem__), for_trainer=True)
    told["/server_info?config_format=json"] = b"{}"
    with pytest.raises(RolloutError, match="does not say how it is set up"):
        VllmServerEngine("/models/zero", speaks(told.__getitem__), for_trainer=True)


def test_a_process_ends_while_a_server_still_works_for_it(speaks: Speaks) -> None:
    """One prompt is refused, and the others take long: the stage fails now, and not when they are done."""
    done = threading.Event()

    def answer(path: str) -> bytes | int:
        if path == "/v1/models":
            return MODELS
        return 400 if first.acquire(blocking=False) else done.wait() and CHOICE

    first = threading.Semaphore(1)
    program = (
        "from pipeline.rollout.base import Sampling; from pipeline.rollout.vllm.server import VllmServerEngine\n"
        f"VllmServerEngine('/models/zero', '{speaks(answer)}').generate([[1], [2], [3]], Sampling(max_tokens=4))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS)
    done.set()
    assert "answered 400" in ended.stderr


def test_seeds_of_parts_are_stable_and_apart() -> None:
    seeds = [derived_seed(seed, *part) for seed in (0, 1) for part in (("a", 1), ("a", 2), ("a1",), ("a", "1", 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(0, "a", 1) == derived_seed(0, "a", "1") == 1495152192


@pytest.mark.parametrize("key", ["", "sk-1"])
def test_a_server_that_wants_a_key_gets_that_of_the_environment_and_no_other_server_does(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(api.KEY, key)
    seen: list[str | None] = []

    class Guarded(Handler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            if self.path == "/elsewhere":
                self.answer({"elsewhere": True})
            elif seen[-1] != "Bearer sk-1":
                self.answer({"error": "Unauthorized"}, 401)
            else:
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

    with Server() as made:
        made.RequestHandlerClass = Guarded
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        if key:
            assert Api(made.address).ask("/v1/models") == {"elsewhere": True}
            assert seen == ["Bearer sk-1", None]
        else:
            with pytest.raises(RolloutError, match=r"answered 401: .*in the environment variable VLLM_API_KEY"):
                Api(made.address).ask("/v1/models")
        made.shutdown()


def test_a_server_of_this_machine_is_asked_without_a_proxy(speaks: Speaks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # made at the first request, and kept with its proxies
    ours = Started.__new__(Started)  # without vLLM: what is asked is another server
    ours.address = speaks(lambda path: MODELS)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ours._process:
        ours.check_health()
        assert vllm_server.served_name(Api(ours.address, ours), "policy") == "policy"
    with pytest.raises(RolloutError, match="refused"):  # which goes by the proxy
        Api(ours.address).ask("/v1/models")
