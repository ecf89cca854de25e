"""Models made from shapes: configs, random weights, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import V3Config, config_class
from model.modeling import DeepseekV3ForCausalLM, model_class
from model.presets import Shape, fields


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many weights a model has.

    Attributes:
        total: all of the model's, without `mtp`, as published figures count them.
        active: those that one token meets: everything but the routed experts it is not sent to.
        mtp: those of the blocks of multi-token prediction, which share the model's embedding and head.
    """

    total: int
    active: int
    mtp: int


def config(shape: Shape, vocab_size: int, eos_token_id: int, pad_token_id: int) -> V3Config:
    """The config of a shape, written so that vLLM can serve the saved model."""
    tokens = {"vocab_size": vocab_size, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    return config_class(shape.topk_method)(**fields(shape), **tokens)


def build(shape: Shape, vocab_size: int, eos_token_id: int, pad_token_id: int, seed: int) -> DeepseekV3ForCausalLM:
    """A randomly initialised model in float32; the same seed gives the same weights."""
    torch.manual_seed(seed)
    described = config(shape, vocab_size, eos_token_id, pad_token_id)
    return model_class(described.model_type)(described)


def count(shape: Shape, vocab_size: int) -> Parameters:
    """Count the weights of a shape without allocating them."""
    described = config(shape, vocab_size, eos_token_id=0, pad_token_id=0)
    with torch.device("meta"):
        model = model_class(described.model_type)(described)
    ahead = [f"model.layers.{shape.num_hidden_layers + block}." for block in range(shape.num_nextn_predict_layers)]
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    main = {name: size for name, size in sizes.items() if not name.startswith(tuple(ahead))}
    total = sum(main.values())
    routed = sum(size for name, size in main.items() if ".mlp.experts." in name)
    idle = routed * (shape.n_routed_experts - shape.num_experts_per_tok) // shape.n_routed_experts
    return Parameters(total, total - idle, sum(sizes.values()) - total)
