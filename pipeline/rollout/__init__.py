"""Sampling completions: one protocol, three engines.

engine = open_engine(RolloutSpec(engine="auto", max_tokens=512), "path/to/model", seed=0)
groups = engine.generate([[1, 2, 3]], sampling(RolloutSpec(max_tokens=512), n=4, seed=0))
engine.close()
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.rollout.base import Engine, RolloutError, Sampling, Updatable
from pipeline.rollout.speculative import vllm_options
from pipeline.schema import extras, idle
from pipeline.schema.pieces import RolloutSpec

if TYPE_CHECKING:
    from pipeline.rollout.engine_pool import EnginePool
    from pipeline.rollout.process import ProcessEngine

log = logging.getLogger(__name__)

TRANSFORMERS, VLLM, VLLM_SERVER = "transformers", "vllm", "vllm_server"


def engine_name(spec: RolloutSpec) -> str:
    """The engine that a spec means on this machine: `auto` is vLLM where it and a GPU are there."""
    if spec.engine != "auto":
        return spec.engine
    if spec.server is not None:
        return VLLM_SERVER
    import torch

    return VLLM if torch.cuda.is_available() and find_spec("vllm") is not None else TRANSFORMERS


def open_engine(spec: RolloutSpec, model_path: str, seed: int, logprobs: bool = False) -> Engine:
    """Load a model into the engine that a spec asks for. Close it when done.

    Args:
        spec: see `RolloutSpec`.
        model_path: folder or hub id.
        seed: seed of the engine; each call has its own besides (`Sampling.seed`).
        logprobs: whether rollouts carry the log-probabilities of their tokens.

    Raises:
        RolloutError: the engine is not installed, has no such option, or a server does not serve this model.
    """
    if spec.process is None:
        return open_updatable(spec, model_path, seed, logprobs)
    return open_processes(spec, model_path, seed, logprobs)


def open_processes(
    spec: RolloutSpec, model_path: str, seed: int, logprobs: bool = False, for_trainer: bool = False
) -> ProcessEngine | EnginePool:
    """Load a model into an engine in a process of its own, or into several; at once, in the background.

    Args:
        spec, model_path, seed, logprobs, for_trainer: see `open_updatable`.
    """
    from pipeline.rollout.engine_pool import EnginePool
    from pipeline.rollout.process import ProcessEngine

    several = spec.process is not None and spec.process.devices
    return (EnginePool if several else ProcessEngine)(spec, model_path, seed, logprobs, for_trainer)


def preload(spec: RolloutSpec) -> None:
    """Import vLLM, if that is what a spec means: it takes many seconds, and nobody else has to wait for it."""
    if engine_name(spec) == VLLM and find_spec("vllm") is not None:
        from pipeline.rollout.vllm.engine import imported

        imported()


def open_updatable(
    spec: RolloutSpec, model_path: str, seed: int, logprobs: bool = False, for_trainer: bool = False
) -> Updatable:
    """Load a model into an engine of this very process, or of a server that is asked here; its weights can be replaced.

    Args:
        spec, model_path, seed, logprobs: see `open_engine`.
        for_trainer: whether log-probabilities are at the temperature of sampling instead of 1, and weights replaced.

    Raises:
        RolloutError: the engine is not installed, or has no such option.
    """
    engine = engine_name(spec)
    for name in idle.unread(spec, engine):
        log.info("rollout.%s is not read by the engine %s", name, engine)
    if engine == TRANSFORMERS:
        from pipeline.rollout.transformers import TransformersEngine

        return TransformersEngine(
            model_path, spec.batch_size, logprobs, tempered=for_trainer, speculative=spec.speculative
        )
    if engine == VLLM_SERVER:
        return _open_server(spec, model_path, seed, logprobs, for_trainer)
    if find_spec("vllm") is None:
        raise RolloutError(f"vLLM is not installed: {extras.install('vllm')}, or choose `engine: transformers`")
    from pipeline.rollout.vllm.engine import VllmEngine, check_sampling

    check_sampling(spec)
    options = {**vllm_options(spec.speculative), **spec.engine_options}
    return VllmEngine(model_path, seed, spec.gpu_memory, logprobs, options, for_trainer, spec.scheduler_fast_path)


def _open_server(spec: RolloutSpec, model_path: str, seed: int, logprobs: bool, for_trainer: bool) -> Updatable:
    """A vLLM server: the one that is named, or one that is started."""
    from transformers import AutoTokenizer

    from pipeline.rollout.vllm.options import check_options
    from pipeline.rollout.vllm.server import VllmServerEngine
    from pipeline.rollout.vllm.started import Started

    server: str | Started
    if spec.server is None:
        if find_spec("vllm") is None:
            raise RolloutError("there is no vLLM to start a server with: name a running server in rollout.server")
        check_options(spec.engine_options)
        options = {**vllm_options(spec.speculative), **spec.engine_options}
        server = Started(model_path, seed, spec.gpu_memory, options, for_trainer)
    else:
        server = spec.server
    engine = VllmServerEngine(model_path, server, logprobs, for_trainer)
    engine.tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
    return engine


def sampling(spec: RolloutSpec, n: int, seed: int) -> Sampling:
    """What a spec says about sampling, for groups of `n` and with this seed."""
    return Sampling(
        n, spec.max_tokens, spec.temperature, spec.top_p, spec.top_k, spec.min_p, seed, stop=tuple(spec.stop)
    )
