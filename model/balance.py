"""Load balancing of a model: the bias that follows the load, and how uneven the load is.

DeepSeek-V3 balances its experts without an auxiliary loss (Wang et al., arXiv 2408.15664): after every step the
selection bias of an overloaded expert sinks a little and that of an idle one rises.

    configure(model, Balance(BalanceLoss.SEQUENCE, alpha=1e-4))
    loss.backward()                    # the balance loss joins in inside the model
    update_bias(model, speed=1e-3)     # before or after optimizer.step(), on every rank
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.balance_loss import Balance
from model.routing import V3MoE, V3Router

BIAS_UPDATE_SPEED = 1e-3
"""γ of DeepSeek-V3, for all but the last 500B tokens of its pre-training (section 4.2)."""


def routers(model: nn.Module) -> dict[str, V3Router]:
    """The gates of a model by the layer they are in: `{"1": …, "2": …}`."""
    found: dict[str, V3Router] = {}
    for name, module in model.named_modules():
        if isinstance(module, V3MoE):
            layer = name.rpartition("layers.")[2].partition(".")[0]
            found[layer] = module.gate
    return found


def configure(model: nn.Module, balance: Balance) -> None:
    """Give all gates of a model one balance loss, and forget what they have counted."""
    for router in routers(model).values():
        router.balance, router.load_E = balance, None


@torch.no_grad()
def update_bias(
    model: nn.Module, speed: float = BIAS_UPDATE_SPEED, group: dist.ProcessGroup | None = None
) -> Mapping[str, Tensor]:
    """Move every selection bias by `speed` towards an even load, and start to count anew.

    b_i += speed · sign(mean load - load_i), with the load of all ranks since the last call. Every rank must call it.

    Args:
        model: a model with gates, wrapped or not.
        speed: γ; at 0 the biases stay, and the load is only counted. V2 gates have no bias and stay in any case.
        group: processes that share the batch; all of them if not given.

    Returns:
        Layer -> load_E, the tokens that chose each expert, summed over the ranks.
    """
    gates = routers(model)
    if not gates:
        return {}
    empty = {gate: torch.zeros(gate.num_experts, device=gate.weight.device) for gate in gates.values()}
    load_LE = torch.stack([empty[gate] if gate.load_E is None else gate.load_E for gate in gates.values()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(load_LE, group=group)
    for gate, load_E in zip(gates.values(), load_LE, strict=True):
        gate.load_E = None
        if gate.e_score_correction_bias is not None and speed:
            gate.e_score_correction_bias.add_(speed * (load_E.mean() - load_E).sign())
    return dict(zip(gates, load_LE.unbind(), strict=True))


def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio: how far the busiest expert is above the mean, as a share of the mean (arXiv 2408.15664, equation 4).

    0 is perfect balance, E/K - 1 the worst that can be; NaN if nothing was counted.
    """
    return load_E.max() / load_E.mean() - 1
