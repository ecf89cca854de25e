"""How a training stage balances the experts of a DeepSeek-V3 model; other models are trained as they are.

    base: {kind: pretrain, routing: {bias_update_speed: 1.0e-3, balance: sequence, balance_alpha: 1.0e-4}}

Pre-training has DeepSeek-V3's settings (arXiv 2412.19437, section 4.2). Fine-tuning leaves the selection biases where
pre-training put them, as the last 500B tokens of DeepSeek-V3's did, so that small and narrow data does not drag them
along; its sequence-wise loss stays. Reinforcement learning has neither: rollouts, old and new log-probabilities and the
reference must choose the same experts, and where no reward says anything, nothing should be learnt.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.schema.strict import Strict

Speed = Annotated[float, Field(ge=0)]


class Routing(Strict):
    """How experts are balanced. The load is logged in any case, as `routing/max_violation`.

    Attributes:
        bias_update_speed: how much an expert's selection bias moves after each step; 0 leaves the biases alone.
        balance: the balance loss: DeepSeek-V3's over each `sequence`, the `switch` Transformer's over the batch, or
            `none`.
        balance_alpha: weight of the balance loss, so small that it hardly disturbs the main one.
    """

    bias_update_speed: Speed = 1e-3
    balance: Literal["sequence", "switch", "none"] = "sequence"
    balance_alpha: Speed = 1e-4


class FinetuneRouting(Routing):
    """`Routing`, with the defaults of fine-tuning."""

    bias_update_speed: Speed = 0.0


class PolicyRouting(Routing):
    """`Routing`, with the defaults of training on a model's own samples."""

    bias_update_speed: Speed = 0.0
    balance: Literal["sequence", "switch", "none"] = "none"
