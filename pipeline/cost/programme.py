"""What a pre-training costs: GPU-hours, money and days from a shape and from rates that were measured on other runs.

Of DeepSeek-V3 the whole bill is computed, context extension included. The rule, fixed before the answer was looked at:
plan with the newest measurement by others of this kind of model and precision, show other routes as the range. So
nothing here is fitted to the bill. Speed is transferred from a run of the same shape; no first principles give it.
"""

from __future__ import annotations

import re

from pipeline.cost import deepseek, flops, memory, published
from pipeline.cost.bill import Assumption, Bill, CostError, Part, gpu_hours
from pipeline.cost.hardware import SOURCE, Cluster
from pipeline.cost.published import Rate
from pipeline.cost.shape import Shape

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def tokens_of(text: str) -> float:
    """`14.8T`, `300B`, `20M` or a plain number, as a number of tokens.

    Raises:
        CostError: it is no such thing.
    """
    matched = re.fullmatch(r"(\d+(?:[._]\d+)*)\s*([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        value = float(matched[1].replace("_", "")) * UNITS[matched[2].upper()] if matched else 0.0
    except ValueError:
        value = 0.0
    if value < 1:
        raise CostError(f"{text!r} is not a number of tokens: write 14.8T, 300B, 20M, or the number itself")
    return value


def bill(
    shape: Shape,
    cluster: Cluster,
    tokens: float,
    length: int = 4096,
    precision: str | None = None,
    price: float | None = None,
    name: str = "",
) -> Bill:
    """The bill of a pre-training.

    Args:
        shape: the model.
        cluster: what it is trained on.
        tokens: to train on.
        length: tokens a sequence.
        precision: `bf16` or `fp8`; FP8 for experts where the GPU has it, if not given.
        price: US dollars a GPU-hour; the middle of the GPU's range if not given.
        name: the preset's, of which published figures may be known.

    Raises:
        CostError: there is no measured rate for such a model, or the GPU lacks the precision.
    """
    kind = "dense" if shape.experts is None else "experts"
    chosen = precision or ("fp8" if kind == "experts" and cluster.gpu.fp8 else "bf16")
    if chosen == "fp8" and not cluster.gpu.fp8:
        raise CostError(f"{cluster.gpu.name} has no FP8: --precision bf16")
    if (rate := published.RATES.get((kind, chosen))) is None:
        raise CostError(f"no pre-training of a {kind} model in {chosen} has been measured that we know of")
    each = flops.a_token(shape, length, mtp=True)
    scale = cluster.gpu.bf16 / published.H100_PEAK
    cost = price if price is not None else cluster.gpu.usd
    if price is None and not cost:
        raise CostError(f"what an hour of {cluster.gpu.name} costs is not known here: give --price")

    def hours(at: float) -> float:
        return gpu_hours(3 * each.total * tokens, at * scale)

    routes = {"planned": hours(rate.middle)}
    if rate.low != rate.high:
        routes |= {"fast end of the rate": hours(rate.high), "slow end of the rate": hours(rate.low)}
    known = name == deepseek.V3 and chosen == "fp8" and length == 4096
    whole = known and tokens == published.V3_TOKENS
    if known:
        routes |= {route: each_hours * tokens / scale for route, each_hours in deepseek.v3_routes(each).items()}
    parts = {"pretraining": Part(routes["planned"], min(routes.values()), max(routes.values()), _route_text(rate))}
    if known:
        parts = deepseek.v3_parts(shape, rate.middle * scale, tokens, parts["pretraining"])
    fits_layout = known and cluster.count % (published.V3_PIPELINE.value * published.V3_EXPERT_RANKS) == 0
    held = deepseek.v3_memory(shape, cluster.count) if fits_layout else _sharded(shape, cluster.count, length)
    lines = _assumptions(shape, each, cluster, length, chosen, rate, cost, price is None)
    if known:
        lines += deepseek.v3_assumptions(whole)
    claims = []
    if known:
        claims = [*deepseek.v3_claims(shape, parts, tokens, cost), *deepseek.v2_claims()]
    elif name == deepseek.V2:
        own = parts["pretraining"].hours / tokens if chosen == "bf16" else None
        claims = deepseek.v2_claims(own)
    return Bill(cluster, tokens, chosen, cost, each, parts, routes, held, lines, claims)


def _route_text(rate: Rate) -> str:
    return f"{rate.middle / 1e12:.0f} TFLOPS a GPU: {rate.what}"


def _sharded(shape: Shape, gpus: int, length: int) -> dict[str, float]:
    """Bytes a GPU where weights, gradients and optimizer are divided among all (FSDP), a sequence on each."""
    return memory.training(shape, memory.Setup(length, gpus, checkpointing=True, accumulates=False, fused_head=False))


def fewest_gpus(shape: Shape, cluster: Cluster, length: int) -> int | None:
    """The least power of two of GPUs on which the model fits so; `None` where what is not divided is too large."""
    counts = (2**power for power in range(17))
    return next((n for n in counts if memory.total(_sharded(shape, n, length)) <= cluster.gpu.bytes), None)


def _assumptions(
    shape: Shape,
    each: flops.Flops,
    cluster: Cluster,
    length: int,
    precision: str,
    rate: Rate,
    price: float,
    ranged: bool,
) -> list[Assumption]:
    gpu = cluster.gpu
    utilisation = rate.middle / published.H100_PEAK
    planned = rate.middle * gpu.bf16 / published.H100_PEAK
    lines = [
        Assumption("operations", f"{3 * each.total / 1e9:.1f} GF a token", f"the shape at {length:,} tokens, causal"),
        Assumption("rate of a GPU", f"{planned / 1e12:.0f} TFLOPS", f"{rate.what}: {rate.source}"),
        Assumption("MFU", f"{utilisation:.1%} of the BF16 peak", "the rate over the peak"),
        Assumption("BF16 peak", f"{gpu.bf16 / 1e12:.0f} TFLOPS", SOURCE),
        Assumption("precision", precision, "--precision, or FP8 for experts where the GPU has it"),
    ]
    if precision == "fp8":
        share = f"{each.low_precision / each.total:.1%} of operations"
        lines.append(Assumption("FP8 share", share, f"matrices but head and gate: {published.V3_PAPER}, section 3.3.1"))
    span = f"range {gpu.price[0]:g}-{gpu.price[1]:g}; " if ranged and gpu.price[0] != gpu.price[1] else ""
    lines.append(Assumption("price", f"{price:g} $/GPU-hour", f"{span}{gpu.priced}" if ranged else "--price"))
    if gpu.name == "H800":
        lines.append(Assumption("transfer", "H100's rate on H800", "assumed: NVLink has 400 instead of 900 GB/s"))
    elif gpu.name != "H100":
        lines.append(
            Assumption("transfer", "the same share of the peak", f"assumed: measured on H100, not on {gpu.name}")
        )
    if shape.mtp:
        lines.append(Assumption("multi-token prediction", f"{shape.mtp} block", "counted in operations"))
    return lines
