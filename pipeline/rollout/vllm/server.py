"""Rollouts by vLLM's own server: token ids over the OpenAI-compatible completions API.

A server is named by its address, or started here (`Started`). Either may serve a trainer, whose weights it takes: see
`transfer`. The server's `/v1/models` must name the very model that is asked for: a score measured on another one would
be a lie. One that is there already is started with `vllm serve FOLDER --generation-config vllm`, and for a trainer with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --generation-config vllm --logprobs-mode processed_logprobs \\
        --weight-transfer-config '{"backend": "nccl"}'

While weights are replaced, the server gives up what it is sampling and returns what it has written. That becomes part
of the prompt with which the rest is asked for: nothing is lost, each token is known to be of one version, and its keys
and values are computed anew with the weights that go on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import (
    Finish,
    Progress,
    Rollout,
    RolloutError,
    Sampling,
    Updatable,
    complete,
    derived_seed,
    finish_reason,
    spans,
)
from pipeline.rollout.stops import Stops
from pipeline.rollout.vllm.api import LOOK_SECONDS, Api
from pipeline.rollout.vllm.started import Started
from pipeline.rollout.vllm.transfer import Transfer

if TYPE_CHECKING:
    import torch

REQUESTS_AT_ONCE = 128
"""Requests in flight: enough to fill a server, few enough for its connection limits."""


@dataclass(slots=True)
class Partial:
    """A completion that is being sampled.

    Attributes:
        ids, logprobs: what there is of it.
        marks: (version, tokens so far) at each moment at which the weights were replaced.
        finish: why it ended, once it has.
        version: of the weights that sampled its last token.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    marks: list[tuple[int, int]] = field(default_factory=list)
    finish: Finish | None = None
    version: int = 0


@dataclass(slots=True)
class Asked:
    """A request that is being sampled: `groups` has the sequences of each prompt."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    stops: Stops
    progress: Progress | None
    groups: list[list[Partial]]
    finished: int = 0

    @property
    def answered(self) -> bool:
        """Whether enough groups are complete."""
        whole = sum(all(one.finish is not None for one in group) for group in self.groups)
        enough = self.sampling.enough
        return whole >= (len(self.groups) if enough is None else min(enough, len(self.groups)))


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request for some sequences of a prompt: all of a group, or one that goes on.

    Attributes:
        ticket, prompt: which request, and which of its prompts.
        members: which sequences.
    """

    ticket: int
    prompt: int
    members: tuple[int, ...]


class VllmServerEngine(Updatable):
    """A model behind a vLLM server. See `pipeline.rollout.base.Updatable`.

    Args:
        path: folder or hub id that the server must be serving.
        server: its address, such as http://localhost:8000, or one that was started here.
        logprobs: whether rollouts carry the log-probabilities of their tokens.
        for_trainer: whether they are at the temperature of sampling, which the server must have been started for; texts
            are left out then.

    Attributes:
        tokenizer: the model's, which decodes completions as with every other engine; texts are empty without it. The
            server would decode prompt and completion together, and keep a space before the first word.

    Raises:
        RolloutError: the server does not answer, serves something else, or is not set up for a trainer.
    """

    def __init__(self, path: str, server: str | Started, logprobs: bool = False, for_trainer: bool = False) -> None:
        self.api = Api(server.address, server) if isinstance(server, Started) else Api(server)
        self.model, self.logprobs = served_name(self.api, path), logprobs
        self.tokenizer: Any = None
        self.decodes = not for_trainer
        self.version, self.dtype = 0, ""
        self._asked: dict[int, Asked] = {}
        self._waiting: deque[Call] = deque()
        self._running: dict[Future[Any], Call] = {}
        self._transfer: Transfer | None = None
        if for_trainer:
            self._prepare_training()
        self.api.patient = not for_trainer

    def add(
        self, ticket: int, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> None:
        """See `Updatable`."""
        stops = Stops.of(self.tokenizer, sampling.stop)
        groups = [[Partial() for _ in range(sampling.n)] for _ in prompts]
        self._asked[ticket] = Asked(prompts, sampling, stops, progress, groups)
        self._waiting += (Call(ticket, at, tuple(range(sampling.n))) for at in range(len(prompts)))

    def step(self) -> dict[int, list[list[Rollout]]]:
        """Send what may be sent, and wait for an answer, for a while; see `Updatable`.

        Raises:
            RolloutError: the server refuses a request.
            RuntimeError: the server that was started here has ended.
        """
        while self._waiting and len(self._running) < REQUESTS_AT_ONCE:
            call = self._waiting.popleft()
            if call.ticket in self._asked:
                self._running[_in_background(self._complete, call)] = call
        if self._running:
            self._hear()
        ended = [ticket for ticket, asked in self._asked.items() if asked.answered]
        return {ticket: self._rollouts(self._asked.pop(ticket)) for ticket in ended}

    def give_up(self) -> None:
        """See `Updatable`; answers that are still to come are thrown away."""
        self._asked.clear()
        self._waiting.clear()
        self._running.clear()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Replace all weights; see `Updatable.load_weights`.

        Args:
            weights: a `pipeline.rollout.shared.Placed`.
            version: see `Updatable`.

        Raises:
            RolloutError: the engine is not one of a trainer, or the server refuses the weights.
        """
        if self._transfer is None:
            raise RolloutError("this engine was not opened for a trainer")
        self.api.ask("/pause?mode=abort", {})
        while self._running:  # each returns what it has
            if not self._hear(paused=True):  # one that has come behind the pause waits for its end, or for another one
                self.api.ask("/pause?mode=abort", {})
        for asked in self._asked.values():
            for one in (one for group in asked.groups for one in group if one.finish is None):
                one.marks.append((self.version, len(one.ids)))
        self._transfer.send(weights)
        self.api.ask("/resume", {})
        self.version = version

    def close(self) -> None:
        """End the server, if it was started here."""
        if self.api.started is not None:
            self.api.started.close()

    def _prepare_training(self) -> None:
        try:
            config = self.api.ask("/server_info?config_format=json")["vllm_config"]["model_config"]
        except RolloutError as error:
            raise RolloutError(f"{error}. A trainer needs a server with VLLM_SERVER_DEV_MODE=1") from error
        except (KeyError, TypeError) as error:
            raise RolloutError(f"{self.api.address} does not say how it is set up: {error}") from error
        if config["logprobs_mode"] != "processed_logprobs":
            raise RolloutError(
                f"{self.api.address} gives {config['logprobs_mode']}, and importance weights need the log-probabilities"
                " of what was sampled from: start it with --logprobs-mode processed_logprobs"
            )
        self.dtype = str(config["dtype"]).removeprefix("torch.")
        self._transfer = Transfer(self.api.ask, here=self.api.started is not None)

    def _complete(self, call: Call) -> list[Mapping[str, Any]]:
        """The choices of an HTTP request, in order."""
        asked = self._asked[call.ticket]
        sampling, group = asked.sampling, asked.groups[call.prompt]
        begun = group[call.members[0]].ids if len(call.members) < len(group) or len(group) == 1 else []
        seed = derived_seed(sampling.seed, call.prompt)
        if begun or len(call.members) < len(group):  # of a group that was given up, each goes on by itself
            seed = derived_seed(seed, call.members[0], len(begun))
        answered = self.api.ask(
            "/v1/completions",
            {
                "model": self.model,
                "prompt": [*asked.prompts[call.prompt], *begun],
                "n": len(call.members),
                "max_tokens": sampling.max_tokens - len(begun),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "seed": seed,
                "stop": list(asked.stops.texts) or None,
                "stop_token_ids": list(asked.stops.ids) or None,
                "logprobs": 0 if self.logprobs else None,
                "return_token_ids": True,
                # A server may apply defaults of the model's folder to what is not said.
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        )
        try:
            choices: list[Mapping[str, Any]] = sorted(answered["choices"], key=lambda choice: choice["index"])
            told = [len(choice["token_ids"]) for choice in choices]
            if self.logprobs:
                told = [len(choice["logprobs"]["token_logprobs"]) for choice in choices]
        except (KeyError, TypeError):  # what is there is none
            told = []
        if len(told) != len(call.members):
            raise RolloutError(
                f"{self.api.address} gave no token ids with its completions: it must be vLLM, 0.11 or newer"
            )
        return choices

    def _hear(self, paused: bool = False) -> bool:
        """Wait for an answer, for a while, and say whether there was one; a server that does nothing meanwhile gives no
        sign of life."""
        done, _ = wait(self._running, LOOK_SECONDS, FIRST_COMPLETED)
        self._take(done, paused)
        if done or self.api.moves():
            self.tick()
        return bool(done)

    def _take(self, done: Iterable[Future[Any]], paused: bool = False) -> None:
        """Add what came back to its sequences; those that were given up since the server was paused go on later."""
        for future in done:
            call = self._running.pop(future)
            asked = self._asked.get(call.ticket)
            if asked is None:
                continue
            for member, choice in zip(call.members, future.result(), strict=True):
                one = asked.groups[call.prompt][member]
                one.ids += choice["token_ids"]
                one.version = self.version
                if self.logprobs:
                    one.logprobs += choice["logprobs"]["token_logprobs"]
                one.finish = finish_reason(choice["finish_reason"])
                left = asked.sampling.max_tokens - len(one.ids)
                if one.finish is Finish.ABORT and paused and left > 0:
                    one.finish = None
                    self._waiting.appendleft(Call(call.ticket, call.prompt, (member,)))
                asked.finished += one.finish is not None
            if asked.progress is not None:
                asked.progress(asked.finished, len(asked.groups) * asked.sampling.n)

    def _rollouts(self, asked: Asked) -> list[list[Rollout]]:
        made = [[self._rollout(one, asked.stops) for one in group] for group in asked.groups]
        given_up = [Rollout("", (), Finish.ABORT, () if self.logprobs else None)] * asked.sampling.n
        return [group if complete(group) or asked.sampling.enough is None else given_up for group in made]

    def _rollout(self, one: Partial, stops: Stops) -> Rollout:
        length = len(one.ids) if not (one.marks and stops) else stops.length(one.ids) or len(one.ids)
        finish = Finish.STOP if length < len(one.ids) else one.finish or Finish.ABORT
        ids = tuple(one.ids[:length])
        decodes = self.decodes and self.tokenizer is not None
        text = self.tokenizer.decode(ids, skip_special_tokens=True) if decodes else ""
        logprobs = tuple(one.logprobs[:length]) if self.logprobs else None
        return Rollout(text, ids, finish, logprobs, spans(one.version, length, one.marks))


def served_name(api: Api, path: str) -> str:
    """What a server calls the model that is asked for.

    Raises:
        RolloutError: it does not answer, serves another model, or is no vLLM server.
    """
    try:
        served = {str(card["id"]): card.get("root") or card["id"] for card in api.ask("/v1/models")["data"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise RolloutError(f"{api.address} is no vLLM server: it does not say what it serves") from error
    match = next((name for name, root in served.items() if path in (name, root)), None)
    if match is None:
        names = ", ".join(map(str, served.values()))
        raise RolloutError(
            f"{api.address} serves {names}, not {path}. Start: vllm serve {path} --generation-config vllm"
        )
    return match


def _in_background(ask: Callable[[Call], Any], call: Call) -> Future[Any]:
    """What comes back, in a thread that nobody waits for: a pool's would keep a process that ends until it is there."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(ask(call))
        except Exception as error:  # noqa: BLE001 - carried over to the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
