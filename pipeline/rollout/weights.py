"""A policy's weights, carried from the trainer into a vLLM engine; an adapter comes merged into them.

    load_weights(engine.llm, official_weights(policy))

`official_weights` names every tensor as the published checkpoint of its architecture does, one expert at a time, with
the buffers that vLLM needs; `load_weights` runs vLLM's own layer-wise reload, which makes anew what the engine derived
from the old weights (absorbed projections of latent attention, packed experts, quantised copies). Loading into the
engine's model directly, as TRL does, leaves all of those stale.

On a CPU, vLLM packs linear layers and experts into formats that no new weight gets into: call
`pipeline.rollout.vllm.patches.cpu_weights.keep_weights_loadable` before such an engine is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.rollout.adapted import BASE, Read, base_of, parameters, whole
from pipeline.rollout.base import RolloutError

WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod)\.")
"""What activation checkpointing and torch.compile put into names."""
LAYER = re.compile(r"\.layers\.(\d+)\.")
"""The number of a decoder layer in a name."""


def official_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """A policy's weights under the names of its published checkpoints, one layer at a time.

    Experts that transformers keeps in one tensor come apart, tied weights come once, persistent buffers come too. No
    more than one layer is held besides the model. Sharded parameters (FSDP2) are gathered one tensor at a time; that is
    collective, so every process has to run through the whole iterator, in step with the others. A base with an adapter
    comes as the model that both make together, computed beside it (see `pipeline.rollout.adapted`).

    Args:
        model: a transformers model, plain or sharded, or PEFT's around one.
        dtype: what parameters are cast to; their own type if not given. Buffers always keep theirs, such as the fp32
            `e_score_correction_bias`, whose updates of 0.001 bf16 would swallow.

    Yields:
        (name, tensor without gradient). Tensors may be views of the model: use them before it is trained further.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_of(model)
    tensors = sorted(_tensors(model), key=lambda item: _layer(item[0]))  # stable, and nothing is gathered yet
    for _, members in groupby(tensors, key=lambda item: _layer(item[0])):
        yield from revert_weight_conversion(base, {name: read(dtype) for name, read in members}).items()


def weights_of_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model's folder under their names there, one layer at a time, as the CPU reads them."""
    from safetensors import safe_open

    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        places = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 - it is no mapping
        for name, file in sorted(places, key=lambda place: _layer(place[0])):
            yield name, file.get_tensor(name)


def load_weights(llm: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Replace the weights of an in-process vLLM engine, those of its MTP layers included, and forget cached prefixes.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
        weights: what `official_weights` yields; consumed one by one. For a tensor-parallel engine, whose workers are
            processes that each read all of them and keep their part, something that can be pickled (`shared.Placed`).

    Raises:
        RolloutError: the engine has weights that were not given, or is still sampling: its answers would be those of a
            mixture.
        ValueError: a weight was given that the engine does not know.
    """
    try:
        missing = llm.collective_rpc(reload, args=(weights,))[0]
    except RuntimeError as error:
        if llm.llm_engine.vllm_config.parallel_config.world_size == 1:
            raise
        raise RolloutError(str(error)) from error  # all that a worker's executor tells of what it raised
    if missing:
        raise RolloutError(f"{len(missing)} weights of the engine were not synchronised, such as {missing[0]}")
    if not llm.reset_prefix_cache():
        raise RolloutError("the engine is still sampling: what it has cached of prompts would be the old weights'")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Read]]:
    """Names and readers: of parameters, and of persistent buffers, which keep their type."""
    for name, read in parameters(model):
        yield WRAPPERS.sub("", name), read
    for prefix, module in base_of(model).named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                full = f"{prefix}.{name}".replace(BASE, "")
                yield WRAPPERS.sub("", full), partial(_as_it_is, buffer)


def _as_it_is(buffer: Tensor, _: torch.dtype | None) -> Tensor:
    return whole(buffer)


def _layer(name: str) -> int:
    """Number of the decoder layer that a tensor belongs to; -1 for those outside of layers."""
    found = LAYER.search(name)
    return -1 if found is None else int(found[1])


@torch.no_grad()
def reload(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Run in vLLM's worker: load a policy, and what belongs to the layers behind its last into the MTP drafter.

    Returns:
        The weights of the engine that were not among them.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    config, model = worker.vllm_config, worker.model_runner.get_model()
    models = [model]
    if config.speculative_config is not None and config.speculative_config.method == "mtp":
        models.append(worker.model_runner.get_draft_model())
    layers = config.model_config.hf_text_config.num_hidden_layers
    drafted: list[tuple[str, Tensor]] = []

    def kept() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if _layer(name) < layers:
                yield name, tensor
            elif len(models) > 1:
                drafted.append((name, tensor))

    with set_current_vllm_config(config):
        wanted = {name for name, _ in model.named_parameters()}
        for each in models:
            _repack_experts(each)
            initialize_layerwise_reload(each)
        wanted &= {name for name, _ in model.named_parameters()}  # those that are made from others are gone now
        loaded = model.load_weights(kept())
        for each in models[1:]:
            each.load_weights(drafted)
        for each in models:
            finalize_layerwise_reload(each, config.model_config)
    return sorted(wanted - (loaded or wanted)) if config.model_config.quantization is None else []


def _repack_experts(model: nn.Module) -> None:
    """Have the CPU backend pack experts at this reload as it did at the first load, instead of leaving out the step."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None and next(module.parameters()).device.type == "cpu":
            method.moe_kernel = None
