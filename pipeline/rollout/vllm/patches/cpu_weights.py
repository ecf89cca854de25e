"""Linear layers of vLLM's CPU backend whose weights can be replaced."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_weights_loadable() -> None:
    """Make vLLM's CPU backend keep the weights of linear layers as they are, so that `load_weights` can replace them.

    The backend otherwise packs each into a format of its own and throws the weight away. To be called before an engine
    is made; does nothing where vLLM is not the CPU build. Costs speed on large models, and is meant for tests.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        utils.dispatch_cpu_unquantized_gemm = _plain_linear


def _plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = nn.functional.linear  # called with the layer's weight of the moment
