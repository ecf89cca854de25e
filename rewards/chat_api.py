"""Questions to an OpenAI-compatible chat endpoint, many at once, each with a time limit that holds.

A socket's timeout starts anew with every byte, so a server that drips can hold a caller for ever. Here the clock runs
over whole requests and over the whole batch, and what is late is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

FIRST_PAUSE_S = 0.25
"""Wait before the first retry; it doubles with each one."""
LONGEST_PAUSE_S = 8.0
_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reply, in one sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refusal(Failure):
    """The endpoint works, but not with this prompt: it is too long for it, say, or not allowed."""


class ChatApi:
    """One endpoint and how to ask it.

    Args:
        url: the endpoint, up to and with `/v1`.
        fields: fields of each request beside the messages: `model`, `temperature`, ….
        key: bearer token.
        concurrency: requests at once.
        timeout_s: seconds for one request.
        retries: further attempts where the endpoint is busy, breaks or is late.
        deadline_s: seconds for a whole batch.

    Raises:
        ValueError: a number that makes no sense.
    """

    def __init__(
        self,
        url: str,
        fields: Mapping[str, Any],
        key: str | None = None,
        concurrency: int = 32,
        timeout_s: float = 60.0,
        retries: int = 3,
        deadline_s: float = 300.0,
    ) -> None:
        if concurrency < 1 or retries < 0 or timeout_s <= 0 or deadline_s <= 0:
            raise ValueError("concurrency, timeout_s and deadline_s are positive, and retries is not negative")
        self.url, self.fields, self.key = url.rstrip("/"), dict(fields), key
        self.concurrency, self.timeout_s, self.retries, self.deadline_s = concurrency, timeout_s, retries, deadline_s

    def ask(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply, or the reason why there is none, for each prompt, in order; from any thread."""
        if not prompts:
            return []
        # A thread of its own: the caller's may already run an event loop (a notebook, a server).
        with ThreadPoolExecutor(1, thread_name_prefix="chat-api") as thread:
            return thread.submit(asyncio.run, self._ask_all(prompts)).result()

    async def _ask_all(self, prompts: Sequence[str]) -> list[str | Failure]:
        import httpx

        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=self.concurrency)
        free = asyncio.Semaphore(self.concurrency)
        end = asyncio.get_running_loop().time() + self.deadline_s

        async def one(prompt: str) -> str | Failure:
            try:
                async with asyncio.timeout_at(end), free:
                    return await self._ask(client, prompt)
            except TimeoutError:
                return Failure(f"no reply within the {self.deadline_s:g} s for the whole batch")

        async with httpx.AsyncClient(timeout=None, limits=limits, headers=headers) as client:
            return list(await asyncio.gather(*map(one, prompts)))

    async def _ask(self, client: Any, prompt: str) -> str | Failure:
        """Ask until there is a reply or nothing to hope for."""
        text = prompt.encode("utf-8", "replace").decode()  # halves of characters, which no request can hold
        body = {**self.fields, "messages": [{"role": "user", "content": text}]}
        reason, pause = "", FIRST_PAUSE_S
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            reply = await self._attempt(client, body)
            if not isinstance(reply, _Transient):
                return reply
            reason = reply.reason
        return Failure(f"{reason} ({self.retries + 1} attempts)")

    async def _attempt(self, client: Any, body: Mapping[str, Any]) -> str | Failure:
        import httpx

        try:
            async with asyncio.timeout(self.timeout_s):
                response = await client.post(f"{self.url}/chat/completions", json=body)
        except TimeoutError:
            return _Transient(f"no reply within {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Transient(self._without_key(f"{type(error).__name__}: {error}"))
        if response.status_code in _TRANSIENT or response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _Transient(f"status {response.status_code}")
        if response.status_code != HTTPStatus.OK:
            kind = Refusal if response.status_code in _REFUSED else Failure
            return kind(self._without_key(f"status {response.status_code}: {response.text}")[:200])
        try:
            message = response.json()["choices"][0]["message"]
            content = message.get("content") or ""  # none, where all tokens were spent on thinking
        except (ValueError, LookupError, TypeError, AttributeError):
            content = None
        if isinstance(content, str):
            return content
        return Failure(f"not a chat completion: {self._without_key(response.text)[:200]!r}")

    def _without_key(self, text: str) -> str:
        """What an endpoint says, without the key that it may repeat."""
        return text.replace(self.key, "(the key)") if self.key else text


class _Transient(Failure):
    """A failure that may pass."""
