"""Rollouts by vLLM servers: token ids over the OpenAI-compatible completions API.

Start one with `vllm serve FOLDER --generation-config vllm`; vLLM's CPU build lacks that command, and has
`python -m vllm.entrypoints.openai.api_server --model FOLDER --generation-config vllm`. The server's `/v1/models` must
name the very model that is asked for: a score measured on another one would be a lie.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.rollout.base import Progress, Rollout, RolloutError, Sampling, derived_seed, finish_reason
from pipeline.rollout.stops import Stops

REQUESTS_AT_ONCE = 128
"""Prompts in flight: enough to fill a server, few enough for its connection limits."""
RETRY_SECONDS = (0.5, 2.0, 8.0)
"""Waits before a request whose connection was lost is sent again."""
TIMEOUT_SECONDS = 3600.0
"""Longest wait for one prompt's completions: long thoughts on a busy server take long."""


class VllmServerEngine:
    """A model behind a vLLM server. See `pipeline.rollout.base.Engine`.

    Args:
        path: folder or hub id that the server must be serving.
        server: its address, such as http://localhost:8000.
        logprobs: whether rollouts carry the log-probabilities of their tokens.

    Raises:
        RolloutError: the server does not answer, or serves something else.
    """

    def __init__(self, path: str, server: str, logprobs: bool = False) -> None:
        self.server, self.logprobs = server.rstrip("/"), logprobs
        served = self._ask("/v1/models")["data"]
        match = next((card for card in served if path in (card.get("root"), card["id"])), None)
        if match is None:
            names = ", ".join(str(card.get("root") or card["id"]) for card in served)
            raise RolloutError(
                f"{server} serves {names}, not {path}. Start: vllm serve {path} --generation-config vllm"
            )
        self.model = str(match["id"])
        self.tokenizer: Any = None

    def decode_with(self, tokenizer: Any) -> None:
        """Let texts be what the model's tokenizer makes of the tokens, as with every other engine.

        A server decodes prompt and completion together, and so keeps a space before the first word of a completion that
        other engines do not have.
        """
        self.tokenizer = tokenizer

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """One group of `sampling.n` rollouts a prompt; see `Engine.generate`."""
        lock, done = threading.Lock(), 0

        def one(index: int) -> list[Rollout]:
            nonlocal done
            group = self._group(prompts[index], sampling, derived_seed(sampling.seed, index))
            with lock:
                done += sampling.n
                if progress is not None:
                    progress(done, len(prompts) * sampling.n)
            return group

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(one, range(len(prompts))))

    def close(self) -> None:
        """Nothing to free: the server is not ours."""

    def _group(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> list[Rollout]:
        stops = Stops.of(self.tokenizer, sampling.stop)
        answer = self._ask(
            "/v1/completions",
            {
                "model": self.model,
                "prompt": list(prompt),
                "n": sampling.n,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "seed": seed,
                "stop": list(stops.texts) or None,
                "stop_token_ids": list(stops.ids) or None,
                "logprobs": 0 if self.logprobs else None,
                "return_token_ids": True,
                # A server may apply defaults of the model's folder to what is not said.
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != sampling.n or any(choice.get("token_ids") is None for choice in choices):
            raise RolloutError(f"{self.server} gave no token ids with its completions: it must be vLLM, 0.11 or newer")
        return [self._rollout(choice) for choice in choices]

    def _rollout(self, choice: Mapping[str, Any]) -> Rollout:
        logprobs = tuple(choice["logprobs"]["token_logprobs"]) if self.logprobs else None
        ids, text = tuple(choice["token_ids"]), choice["text"]
        if self.tokenizer is not None:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Rollout(text, ids, finish_reason(choice["finish_reason"]), logprobs)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data, {"Content-Type": "application/json"})
        for wait in (*RETRY_SECONDS, None):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                words = error.read(2000).decode(errors="replace")
                raise RolloutError(f"{self.server}{path} answered {error.code}: {words}") from error
            except (OSError, ValueError) as error:
                if wait is None or not _connection_lost(error):
                    raise RolloutError(f"{self.server}{path} does not answer as expected: {error}") from error
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _connection_lost(error: Exception) -> bool:
    """Whether asking again may help; what was asked is seeded, so a second answer is the same."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
