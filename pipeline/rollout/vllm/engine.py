"""Rollouts by vLLM inside this process: the engine for GPUs.

The engine core runs in this very process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): nothing is spawned, and seeding the
random generators before a call makes that call reproducible without a generator for each request, which is slow.
`generation_config="vllm"` keeps sampling defaults of the model's folder out; its end-of-sequence tokens still count.
Texts are decoded here, all at once: vLLM would decode token by token, in Python, which is what a small model waits for.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.rollout.base import Finish, Progress, Rollout, RolloutError, Sampling, Tick, finish_reason
from pipeline.rollout.speculative import counted_by_vllm
from pipeline.rollout.stops import Stops
from pipeline.rollout.vllm import patches
from pipeline.rollout.vllm.options import check_options
from pipeline.rollout.vllm.patches.cpu_weights import keep_weights_loadable
from pipeline.rollout.weights import load_weights
from pipeline.schema.pieces import RolloutSpec

if TYPE_CHECKING:
    from model.speculative import Speculation


class VllmEngine:
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

    tick: Tick = staticmethod(lambda: None)

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
        if for_trainer:
            keep_weights_loadable()
            settings["logprobs_mode"] = "processed_logprobs"
        self.decodes = not for_trainer
        self.llm = vllm.LLM(model=path, seed=seed, **settings)
        self.logprobs = logprobs
        self.patched = patches.install(self.llm, scheduler_fast_path, logprobs)
        self.tokenizer = self.llm.get_tokenizer()
        self.dtype = str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Rollout]]:
        """One group of `sampling.n` rollouts a prompt; see `Engine.generate`.

        Raises:
            RolloutError: vLLM refuses the prompts, such as one beyond its context, or this way of sampling.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stops = Stops.of(self.tokenizer, sampling.stop)
        with refusals():
            params = SamplingParams(
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
        _seed_everything(sampling.seed)
        taken = self.patched.logprobs if self.patched is not None else None
        with taken or nullcontext():
            done = self._run(prompts, params, sampling.enough, progress)
        samples = [sample for output in done.values() for sample in output.outputs]
        ids = [sample.token_ids for sample in samples]
        texts: Iterable[str] = (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True) if self.decodes else repeat("")
        )
        logprobs: Iterable[Any] = repeat(None)
        if taken is not None:
            asked = [number for index in done for number in range(index * sampling.n, (index + 1) * sampling.n)]
            logprobs = map(tuple, taken.of(ids, asked))
        elif self.logprobs:
            logprobs = map(tuple, map(sampled_logprobs, samples))
        rollouts = map(_rollout, samples, texts, logprobs)
        groups = {index: list(islice(rollouts, sampling.n)) for index in done}
        given_up = [Rollout("", (), Finish.ABORT, () if self.logprobs else None)] * sampling.n
        return [groups.get(index, given_up) for index in range(len(prompts))]

    @property
    def speculation(self) -> Speculation | None:
        """What speculative decoding brought, if it is on."""
        if self.llm.llm_engine.vllm_config.speculative_config is None:
            return None
        return counted_by_vllm(self.llm.get_metrics())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, under their official names; see `Updatable.load_weights`."""
        load_weights(self.llm, weights)

    def close(self) -> None:
        """Stop the engine and give its GPU memory back."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        destroy_model_parallel()  # the next engine's model may want other groups: experts have one of their own
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Any, enough: int | None, progress: Progress | None
    ) -> dict[int, Any]:
        """vLLM's outputs of the prompts whose group was completed, by the number of the prompt.

        This is the loop of `LLM.generate`, which shows no sign of life before a group is complete and gives none up.
        """
        from vllm import TokensPrompt

        engine = self.llm.llm_engine
        done: dict[int, Any] = {}
        names = [str(index) for index in range(len(prompts))]
        try:
            with refusals():
                for name, prompt in zip(names, prompts, strict=True):
                    engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompt)), params)
            while engine.has_unfinished_requests() and (enough is None or len(done) < enough):
                self.tick()
                finished = {int(output.request_id): output for output in engine.step() if output.finished}
                done |= finished
                if finished and progress is not None:
                    progress(len(done) * params.n, len(prompts) * params.n)
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(names)
        return dict(sorted(done.items()))


def _rollout(sample: Any, text: str, logprobs: tuple[float, ...] | None) -> Rollout:
    return Rollout(text, tuple(sample.token_ids), finish_reason(sample.finish_reason), logprobs)


def sampled_logprobs(sample: Any) -> list[float]:
    """The log-probabilities of the tokens of one of vLLM's completions, which was asked for them (`logprobs=0`)."""
    return [choices[token].logprob for choices, token in zip(sample.logprobs, sample.token_ids, strict=True)]


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
