"""Requests to a vLLM server over HTTP: how long its answers are waited for, and when it counts as lost."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from typing import Any

from pipeline.rollout.base import RolloutError
from pipeline.rollout.vllm.started import HERE, Started

RETRY_SECONDS = (0.5, 2.0, 8.0, 30.0, 60.0)
"""Waits before a request is sent again that a server has lost, or that came while there was none: one that is started
again takes a minute."""
TIMEOUT_SECONDS = 3600.0
"""Longest wait for one prompt's completions: long thoughts on a busy server take long."""
ANSWER_SECONDS = 60.0
"""Longest wait for what a server says of itself."""
LOOK_SECONDS = 1.0
"""Longest wait for its counters, between two looks at what it does."""
COUNTERS = ("vllm:generation_tokens", "vllm:prompt_tokens")
"""What a server that does something counts up."""
KEY = "VLLM_API_KEY"
"""Environment variable that vLLM's server has its key from, and that whoever asks it needs."""
AWAY = frozenset({502, 503, 504})
"""What a gateway answers when there is no server behind it, and vLLM when its engine is dead."""


class Api:
    """A server that is asked.

    Args:
        address: where it is, such as http://localhost:8000.
        started: its process, if it was started here.

    Attributes:
        patient: whether one that is away is waited for, as long as `RETRY_SECONDS` add up to. What is asked is seeded,
            so a second answer is the same; not if it has lost the weights that a trainer sent.
    """

    def __init__(self, address: str, started: Started | None = None) -> None:
        self.address, self.started, self.patient = address.rstrip("/"), started, False
        self._open = urllib.request.urlopen if started is None else HERE.open
        self._seen = ""

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server answers to a request, as JSON.

        Args:
            path: behind the address.
            body: what is posted; without it the request is a GET.

        Raises:
            RolloutError: it refuses, or does not answer.
            ServerLostError: it was started here, and has ended or lost its engine.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        if key := os.environ.get(KEY):
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # for no other server
        for pause in (*(RETRY_SECONDS if self.patient else ()), None):
            try:
                seconds = ANSWER_SECONDS if body is None else TIMEOUT_SECONDS
                with self._open(request, timeout=seconds) as response:
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                self._must_live()
                words = error.read(2000).decode(errors="replace")
                if error.code == HTTPStatus.UNAUTHORIZED:
                    words += f". Its key has to be in the environment variable {KEY}"
                if pause is None or error.code not in AWAY:
                    raise RolloutError(f"{self.address}{path} answered {error.code}: {words}") from error
            except (OSError, ValueError, HTTPException) as error:
                self._must_live()
                if pause is None or not _is_away(error):
                    raise RolloutError(f"{self.address}{path} does not answer as expected: {error}") from error
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def moves(self) -> bool:
        """Whether the server has done something since the last look: it counts its tokens."""
        if self.started is not None:
            self.started.check()
        request = urllib.request.Request(f"{self.address}/metrics")
        try:
            with self._open(request, timeout=LOOK_SECONDS) as response:
                told = response.read().decode()
        except (OSError, HTTPException):
            return False
        counters = "\n".join(line for line in told.splitlines() if line.startswith(COUNTERS))
        moved, self._seen = counters != self._seen, counters
        return moved

    def _must_live(self) -> None:
        """Tell a server of ours that has ended, or lost its engine, from one that refuses something."""
        if self.started is not None:
            self.started.check_health()


def _is_away(error: Exception) -> bool:
    """Whether asking again may help."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, ConnectionError | IncompleteRead)
