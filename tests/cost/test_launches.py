"""Kernels of a layer, counted as torch dispatches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from model import factory, presets
from pipeline.cost import launches, models
from pipeline.training.lora_linear import lighten


class _Launched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func is not torch.ops.aten._unsafe_view.default
        return func(*args, **(kwargs or {}))


def _launched(model: Any) -> int:
    ids_BT = torch.ones(2, 16, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16), _Launched() as launched:
        model.train()(input_ids=ids_BT, labels=ids_BT)
    return launched.count


def _a_layer(make: Callable[[int], Any]) -> float:
    """What a layer adds to a pass."""
    return (_launched(make(4)) - _launched(make(2))) / 2


def _grouped(layers: int) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model("qwen2", num_hidden_layers=layers, vocab_size=64, **sizes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def _latent(layers: int, dense: int) -> Any:
    more = {"q_lora_rank": 32, "num_hidden_layers": layers, "first_k_dense_replace": dense}
    return factory.build(presets.load({"preset": "nano", **more}), 64, 2, 2, seed=0)


def test_kernels_of_a_layer_are_what_torch_dispatches() -> None:
    """Versions of torch and transformers differ by a few of them."""
    assert _a_layer(_grouped) == pytest.approx(launches.GROUPED, rel=0.1)
    dense = launches.GROUPED + launches.LATENT
    assert _a_layer(lambda layers: _latent(layers, layers)) == pytest.approx(dense, rel=0.1)
    assert _a_layer(lambda layers: _latent(layers, 1)) == pytest.approx(dense + launches.EXPERTS, rel=0.1)


def _adapted(layers: int) -> Any:
    model = get_peft_model(_grouped(layers), LoraConfig(r=4, target_modules="all-linear"))
    lighten(model)
    return model


def test_kernels_of_adapters_are_what_torch_dispatches() -> None:
    assert _a_layer(_adapted) - _a_layer(_grouped) == pytest.approx(7 * launches.ADAPTER, rel=0.1)


def test_layers_count_by_what_they_launch() -> None:
    plain = models.known("Qwen/Qwen2.5-0.5B")
    assert plain is not None and launches.layers(plain) == plain.layers == 24
    assert launches.layers(plain, adapted=True) == pytest.approx(24 * (59 + 7 * 4) / 59)
    small = models.preset({"preset": "small", "num_nextn_predict_layers": 1}, 256)
    assert launches.layers(small) == pytest.approx((11 * 88 + 10 * 40) / 59)
    assert launches.layers(small, mtp=True) == pytest.approx((12 * 88 + 11 * 40) / 59)
