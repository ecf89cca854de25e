"""Rollouts by vLLM inside this process: the engine for GPUs.

The engine core runs in this very process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): nothing is spawned, and seeding the
random generators before a call makes that call reproducible without a generator for each request, which is slow.
`generation_config="vllm"` keeps sampling defaults of the model's folder out; its end-of-sequence tokens still count.
Texts are decoded here, all at once: vLLM would decode token by token, in Python, which is what a small model waits for.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.files.compiled import stable_name
from pipeline.rollout.base import (
    Finish,
    Progress,
    Rollout,
    RolloutError,
    Sampling,
    Updatable,
    finish_reason,
    spans,
)
from pipeline.rollout.speculative import counted_by_vllm
from pipeline.rollout.stops import Stops
from pipeline.rollout.vllm import patches
from pipeline.rollout.vllm.options import check_options
from pipeline.rollout.vllm.patches.cpu_weights import keep_weights_loadable
from pipeline.rollout.vllm.patches.logprobs import StepLogprobs
from pipeline.rollout.weights import load_weights
from pipeline.schema.pieces import RolloutSpec

if TYPE_CHECKING:
    from model.speculative import Speculation


ALL = sys.maxsize
"""More tokens than a sequence has."""


class VllmEngine(Updatable):
    """A model held by vLLM in this process. See `pipeline.rollout.base.Engine`.

    Args:
        path: folder or hub id.
        seed: seed of the engine.
        gpu_memory: share of the GPU's memory for weights and KV cache.
        logprobs: whether rollouts carry the log-probabilities of their tokens, as the model gave them before
            temperature and truncation; costs speed.
        options: further fields of vLLM's `EngineArgs`, such as `max_model_len` or `dtype`.
        for_trainer: whether log-probabilities are at the temperature of sampling, weights will be replaced, and texts
            are left out: the trainer decodes what it needs.
        scheduler_fast_path: see `RolloutSpec`.

    Raises:
        RolloutError: vLLM has no such option, or it is set elsewhere.
    """

    def __init__(
        self,
        path: str,
        seed: int = 0,
        gpu_memory: float = 0.3,
        logprobs: bool = False,
        options: Mapping[str, Any] | None = None,
        for_trainer: bool = False,
        scheduler_fast_path: bool = True,
    ) -> None:
        check_options(options or {})
        vllm = imported()
        settings = {"gpu_memory_utilization": gpu_memory, "generation_config": "vllm", **(options or {})}
        keep_weights_loadable()
        if for_trainer:
            settings["logprobs_mode"] = "processed_logprobs"
        self.decodes = not for_trainer
        with ExitStack() as held:
            settings |= _compiled_alike(path, settings)
            self.llm: Any = vllm.LLM(model=held.enter_context(stable_name(path)), seed=seed, **settings)
            self._held = held.pop_all()
        self.logprobs = logprobs
        self.patched = patches.install(self.llm, scheduler_fast_path, logprobs)
        self.tokenizer = self.llm.get_tokenizer()
        self.dtype = str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")
        self.version = 0
        self._asked: dict[int, _Asked] = {}

    def add(
        self, ticket: int, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> None:
        """See `Updatable`; all requests are sampled together, the sequences of earlier ones first.

        Raises:
            RolloutError: as `generate`.
        """
        from vllm import TokensPrompt

        engine, requests = self.llm.llm_engine, self._scheduler.requests
        params = self._params(sampling)
        _seed_everything(sampling.seed)
        asked = self._asked[ticket] = _Asked(sampling, len(prompts), progress)
        try:
            with nullcontext() if self._taken is None else self._taken.reading(), refusals():
                for index, prompt in enumerate(prompts):
                    engine.add_request(f"{ticket}/{index}", TokensPrompt(prompt_token_ids=list(prompt)), params)
                    asked.names.append(list(islice(reversed(requests), sampling.n))[::-1])
        except RolloutError:
            self._forget(ticket)
            raise

    def step(self) -> dict[int, list[list[Rollout]]]:
        """See `Updatable`: a token of each running sequence.

        This and `add` are the loop of `LLM.generate`, which shows no sign of life before a group is complete, gives
        none up, and takes no new weights.
        """
        self.tick()
        engine = self.llm.llm_engine
        for output in engine.step() if engine.has_unfinished_requests() else ():
            ticket, index = map(int, output.request_id.split("/"))
            asked = self._asked.get(ticket)
            if asked is not None and output.finished:
                asked.done[index] = output
                if asked.progress is not None:
                    asked.progress(len(asked.done) * asked.sampling.n, asked.count * asked.sampling.n)
        ended = [ticket for ticket, asked in self._asked.items() if len(asked.done) >= asked.enough]
        return {ticket: self._answer(ticket) for ticket in ended}

    def give_up(self) -> None:
        """See `Updatable`."""
        for ticket in list(self._asked):
            self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        asked = self._asked.pop(ticket)
        if left := [f"{ticket}/{index}" for index in range(asked.count) if index not in asked.done]:
            self.llm.llm_engine.abort_request(left)
        if self._taken is not None:
            self._taken.forget(chain.from_iterable(asked.names))

    def _answer(self, ticket: int) -> list[list[Rollout]]:
        """The groups of a request of which enough are complete; the others are given up."""
        asked = self._asked[ticket]
        n, order = asked.sampling.n, sorted(asked.done)
        names = [name for index in order for name in asked.names[index]]
        samples = [sample for index in order for sample in asked.done[index].outputs]
        ids = [tuple(sample.token_ids) for sample in samples]
        texts: Iterable[str] = (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True) if self.decodes else repeat("")
        )
        logprobs: Iterable[Any] = repeat(None)
        if self._taken is not None:
            logprobs = map(tuple, self._taken.taken(dict(zip(names, ids, strict=True))))
        elif self.logprobs:
            logprobs = map(tuple, map(sampled_logprobs, samples))
        reasons = [finish_reason(sample.finish_reason) for sample in samples]
        versions = [
            spans(self.version, len(one), asked.marks.get(name, ())) for name, one in zip(names, ids, strict=True)
        ]
        rollouts = map(Rollout, texts, ids, reasons, logprobs, versions)
        groups = {index: list(islice(rollouts, n)) for index in order}
        self._forget(ticket)
        given_up = [Rollout("", (), Finish.ABORT, () if self.logprobs else None)] * n
        return [groups.get(index, given_up) for index in range(asked.count)]

    def _params(self, sampling: Sampling) -> Any:
        """vLLM's words for how to sample."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stops = Stops.of(self.tokenizer, sampling.stop)
        with refusals():
            return SamplingParams(
                n=sampling.n,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                stop=list(stops.texts),
                stop_token_ids=list(stops.ids),
                logprobs=0 if self.logprobs else None,
                flat_logprobs=True,  # no object for every token, also where they stay empty
                detokenize=bool(stops.texts),  # in which they are looked for, token by token
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

    @property
    def speculation(self) -> Speculation | None:
        """See `Engine`."""
        if self.llm.llm_engine.vllm_config.speculative_config is None:
            return None
        return counted_by_vllm(self.llm.get_metrics())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Replace all weights, under their official names; see `Updatable.load_weights`.

        Keys and values of what is being sampled are those of the old weights. They are computed anew, as vLLM does
        after its own weight updates: every token is then sampled as the weights of its version would.
        """
        if self._asked:
            self.llm.reset_prefix_cache(reset_running_requests=True)
            for asked in self._asked.values():
                asked.mark(self.version, self._scheduler.requests)
        load_weights(self.llm, weights)
        self.version = version

    def close(self) -> None:
        """Stop the engine and give its GPU memory back; nothing happens where it is closed already."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self._held.close()
        destroy_model_parallel()  # the next engine's model may want other groups: experts have one of their own
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _taken(self) -> StepLogprobs | None:
        """Where log-probabilities are, if vLLM's own outputs do not have them."""
        return None if self.patched is None else self.patched.logprobs

    @property
    def _scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler


@dataclass(slots=True)
class _Asked:
    """A request that is being sampled.

    Attributes:
        sampling: how.
        count: prompts.
        progress: see `Engine.generate`.
        names: vLLM's names of the sequences of each prompt.
        done: vLLM's outputs of the prompts whose groups are complete, by number.
        marks: (version of the weights, tokens so far) of a sequence at each moment at which they were replaced.
        ended: sequences that had come to their end at such a moment.
    """

    sampling: Sampling
    count: int
    progress: Progress | None
    names: list[list[str]] = field(default_factory=list)
    done: dict[int, Any] = field(default_factory=dict)
    marks: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    ended: set[str] = field(default_factory=set)

    @property
    def enough(self) -> int:
        """Complete groups that are an answer."""
        return self.count if self.sampling.enough is None else min(self.count, self.sampling.enough)

    def mark(self, version: int, requests: Mapping[str, Any]) -> None:
        """Note that the weights are replaced, with vLLM's sequences that have not ended."""
        for name in chain.from_iterable(self.names):
            if name not in self.ended:
                request = requests.get(name)
                if request is None:
                    self.ended.add(name)
                self.marks[name].append((version, ALL if request is None else request.num_output_tokens))


def sampled_logprobs(sample: Any) -> list[float]:
    """The log-probabilities of the tokens of one of vLLM's completions, which was asked for them (`logprobs=0`)."""
    return [choices[token].logprob for choices, token in zip(sample.logprobs, sample.token_ids, strict=True)]


def _compiled_alike(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that put back what training leaves in a model's config, which vLLM's key of compiled graphs has."""
    config = Path(path) / "config.json"
    if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("use_cache", True):
        return {}
    return {"hf_overrides": {"use_cache": True, **(settings.get("hf_overrides") or {})}}


def check_sampling(spec: RolloutSpec) -> None:
    """Refuse what vLLM does not sample with, such as a temperature above 2 (from 0.32 on), before a model is loaded.

    Raises:
        RolloutError: with vLLM's own words.
    """
    imported()
    from vllm import SamplingParams

    with refusals():
        SamplingParams(temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k, min_p=spec.min_p)


@contextmanager
def refusals() -> Iterator[None]:
    """Pass on what vLLM refuses as a `RolloutError`; what it raises was a `ValueError` once, and is none any more."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except (ValueError, VLLMValidationError) as error:
        raise RolloutError(f"vLLM: {error}") from error


def imported() -> Any:
    """vLLM, imported with what it reads from the environment; that takes many seconds the first time."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    return importlib.import_module("vllm")


def _seed_everything(seed: int) -> None:
    """Seed every generator that vLLM's samplers draw from: torch's, or NumPy's in the newer model runner."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
