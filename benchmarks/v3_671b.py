"""DeepSeek-V3's architecture at 671B on paper: memory a GPU and the time of a step by part (docs/results/v3-671b.md).

    python -m benchmarks.v3_671b                                          # prints the tables
    python -m benchmarks.v3_671b --write docs/results/v3-671b.md

No model is run. Operations and bytes follow from the shape (`pipeline.cost`); rates and links are those that others
have measured, each with its source. The pipeline is simulated micro-batch by micro-batch. Published totals are printed
beside the result, and enter none of it. Two published parts do: the trace's 129 ms of four layers, and the optimizer's
0.29 s, which is of the very run that the total is compared with.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pages
from pipeline.cost import deepseek, flops, memory, models, published
from pipeline.cost.hardware import GPUS
from pipeline.cost.published import Number

PAGE = "v3_671b"
"""What the markers of the tables are called."""
SHAPE = models.preset(deepseek.V3)
LENGTH = 4096
HOST = 8
"""GPUs of one."""

TRACE = "DeepSeek's public trace (profile-data, train.json)"
SERVICE = "DeepSeek-V3/R1 inference system overview, DeepSeek's open-infra-index"
FP8_RATE = Number(770e12, "matrices in FP8, operations a second", TRACE)
SCORES_FORWARD = Number(556e12, "attention, forward", TRACE)
SCORES_BACKWARD = Number(455e12, "attention, backward", TRACE)
LINK = Number(
    40e9,
    "bytes a second that a GPU's network card gives to all-to-all, low end of 40-58",
    f"{published.ISCA_PAPER}, Fig. 7",
)
NODES = Number(4, "nodes that a token's experts are on at most", f"{published.V3_PAPER}, section 3.2.2")
DISPATCHED = Number(
    1 + 4 / 128,
    "bytes a number on the way to the experts: FP8, a float of scale for 128",
    f"{published.V3_PAPER}, section 3.3.3",
)
COMBINED = Number(2, "bytes a number on the way back: BF16", f"{published.V3_PAPER}, section 3.3.3")
STEP = Number(19.926, "a step of 2,048 GPUs, s", f"{published.ISCA_PAPER}, Table 4")
BUBBLE = Number(2.06, "of it idle, s", f"{published.ISCA_PAPER}, Table 4")
TOKEN_FAST = Number(
    14.76e-3, "s a token by the network's speed alone, EP over 400 Gb/s", f"{published.ISCA_PAPER}, section 2.3.2"
)
TOKEN_SLOW = Number(1 / 21, "s a token at the service's 20-22 tokens a second", SERVICE)
ZERO_GPUS, ZERO_SECONDS = 512, 198 * 3600
ZERO_ROLLOUTS, ZERO_BATCH = 650, 8192
"""R1-Zero's rounds of sampling, and the responses of each: 10,400 steps of 512, 16 a round."""
ZERO_LIMIT = Number(32_768, "tokens of the longest response, until step 8,200", f"{published.R1_PAPER}, methods")
ENGINE_SHARE = 0.9
"""Of a GPU's memory, for vLLM: its own default."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Seconds of one MoE layer for one micro-batch (a sequence) on one GPU."""

    matrices: float
    scores: float
    other: float
    traffic: float

    @property
    def seconds(self) -> float:
        """Of a forward and a backward; traffic runs beside them, as far as it is shorter."""
        return max(self.matrices + self.scores + self.other, self.traffic)


def layer() -> Layer:
    """A forward and a backward of one MoE layer; what the trace takes beyond its kernels' rates is `other`."""
    each = flops.a_token(SHAPE, LENGTH)
    sparse, layers = SHAPE.sparse_layers, SHAPE.layers
    matrices = LENGTH * ((each.attention / layers) + (each.routed + each.shared) / sparse) * 3 / FP8_RATE.value
    one = LENGTH * each.scores / layers
    scores = one / SCORES_FORWARD.value + 2 * one / SCORES_BACKWARD.value
    measured = published.TRACE_SECONDS.value / 4
    away = NODES.value * (HOST - 1) / HOST  # of eight nodes one is the GPU's own
    there, back = SHAPE.hidden * DISPATCHED.value, SHAPE.hidden * COMBINED.value
    traffic = 2 * LENGTH * away * (there + back) / LINK.value
    return Layer(matrices, scores, measured - matrices - scores, traffic)


def one_forward_one_backward(stages: int, micro_batches: int, forward: float, backward: float) -> float:
    """Seconds of a step under 1F1B, simulated: a stage does what comes next in its order once what it needs is there.

    Args:
        stages: of the pipeline.
        micro_batches: of the step.
        forward, backward: seconds of each on every stage.
    """
    ended: dict[tuple[str, int, int], float] = {}
    orders = []
    for stage in range(stages):
        ahead = min(stages - stage - 1, micro_batches)
        order = [("F", number) for number in range(ahead)]
        for number in range(micro_batches - ahead):
            order += [("F", ahead + number), ("B", number)]
        orders.append([*order, *(("B", number) for number in range(micro_batches - ahead, micro_batches))])
    clocks, places = [0.0] * stages, [0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        for stage in range(stages):
            while places[stage] < len(orders[stage]):
                kind, number = orders[stage][places[stage]]
                before = _needed(kind, number, stage, stages)
                if before is not None and before not in ended:
                    break
                start = max(clocks[stage], 0.0 if before is None else ended[before])
                clocks[stage] = ended[kind, number, stage] = start + (forward if kind == "F" else backward)
                places[stage] += 1
    return max(clocks)


def _needed(kind: str, number: int, stage: int, stages: int) -> tuple[str, int, int] | None:
    """What has to be over before a micro-batch's forward or backward can begin on a stage."""
    if kind == "F":
        return None if stage == 0 else ("F", number, stage - 1)
    return ("F", number, stage) if stage == stages - 1 else ("B", number, stage + 1)


def pretraining() -> Iterator[Sequence[str]]:
    """The parts of a step of pre-training on 2,048 H800."""
    stages, gpus = round(published.V3_PIPELINE.value), round(published.V3_GPUS.value)
    micro_batches = round(published.V3_BATCH.value / (gpus / stages))
    one, layers = layer(), 4
    both = layers * one.seconds
    work = micro_batches * both
    plain = one_forward_one_backward(stages, micro_batches, both / 3, both * 2 / 3) - work
    idle = deepseek.bubble(stages) * both
    total = work + idle + published.TRACE_OPTIMIZER.value
    share = micro_batches * layers
    yield "matrices in FP8", f"{share * one.matrices:.2f}", "operations of the shape at the trace's 770 TFLOPS", ""
    yield "attention", f"{share * one.scores:.2f}", "the same at 556 and 455 TFLOPS", ""
    yield (
        "everything else on the GPU",
        f"{share * one.other:.2f}",
        "the trace's 129 ms for four layers, less the two above",
        "",
    )
    yield (
        "all-to-all",
        f"{share * one.traffic:.2f}, hidden",
        "at the low end of DeepEP's rates, beside the three above",
        "",
    )
    yield "idle in the pipeline, DualPipe", f"{idle:.2f}", "DeepSeek-V3, Table 2", f"{BUBBLE.value:g}"
    yield "the same with 1F1B", f"({plain:.2f})", "simulated, 16 stages, 120 micro-batches", ""
    yield "optimizer", f"{published.TRACE_OPTIMIZER.value:.2f}", "as published", f"{published.TRACE_OPTIMIZER.value:g}"
    off = total / STEP.value - 1
    yield (
        "**a step**",
        f"**{total:.1f}**",
        "a floor: perfect routing, stages that are even",
        f"{STEP.value:.1f} ({off:+.0%})",
    )


def training_memory() -> Iterator[Sequence[str]]:
    """Gigabytes of a GPU of the same."""
    parts = deepseek.v3_memory(SHAPE, round(published.V3_GPUS.value))
    for name, size in parts.items():
        yield name, f"{size / 1e9:.1f}"
    yield "**in all, of 85**", f"**{memory.total(parts) / 1e9:.1f}**"


def engine_weights() -> tuple[float, float]:
    """Bytes of an engine's weights in FP8, prediction blocks left out: experts, and everything else."""
    parameters = SHAPE.parameters
    matrices = parameters.attention + parameters.dense + parameters.shared
    rest = parameters.total - parameters.routed - matrices  # embedding, head, gates, norms: in BF16
    return parameters.routed * memory.FP8_BYTES, matrices * memory.FP8_BYTES + rest * 2.0


def engine_memory(gpus: int, name: str) -> dict[str, float]:
    """Bytes on each GPU of an engine: experts over its GPUs, everything else on each of them (vLLM's DP with EP)."""
    experts, other = engine_weights()
    share = ENGINE_SHARE * GPUS[name].bytes
    return {"experts": experts / gpus, "other": other, "cache": share - experts / gpus - other}


def fsdp() -> Iterator[Sequence[str]]:
    """Gigabytes of a GPU that trains all weights by FSDP alone, each layer computed again, one pass a step."""
    for gpus, name, tokens in ((256, "H200", 4096), (256, "H200", 16_384), (512, "H800", 4096), (512, "H800", 16_384)):
        parts = memory.training(SHAPE, memory.Setup(tokens, gpus, checkpointing=True, accumulates=False))
        states = parts["weights"] + parts["optimizer"] + parts.get("gradients", 0.0)
        rest = memory.total(parts) - states - parts["activations"] - parts["working"]
        sizes = (states, parts["activations"], parts["working"], rest, memory.total(parts))
        room = GPUS[name].bytes / 1e9
        fits = "fits" if sizes[-1] <= GPUS[name].bytes else "**does not fit**"
        yield f"{gpus} {name}", f"{tokens:,}", *(f"{size / 1e9:.1f}" for size in sizes), f"{fits} in {room:.0f}"


def engines() -> Iterator[Sequence[str]]:
    """Engines that hold the model in FP8."""
    cached = 2 * SHAPE.attention.cached * SHAPE.layers
    for gpus, name in ((8, "H200"), (16, "H200"), (16, "H800"), (32, "H800")):
        parts = engine_memory(gpus, name)
        fits = parts["cache"] > 0
        tokens = f"{parts['cache'] * gpus / cached / 1e6:.1f}M" if fits else "does not fit"
        sizes = [f"{size / 1e9:.1f}" for size in parts.values()]
        yield f"{gpus} {name}", f"{gpus // HOST}", *sizes, tokens


def reinforcement() -> Iterator[Sequence[str]]:
    """A round of R1-Zero: 8,192 responses sampled, 16 steps on them, on 512 H800."""
    tokens = ZERO_BATCH * published.R1_LENGTH.value
    each = flops.a_token(SHAPE, round(published.R1_LENGTH.value)).total * tokens / ZERO_GPUS
    fast = published.RATES["experts", "fp8"].middle
    slow = published.R1_SLOW_SHARE.value * published.H100_PEAK
    busy = tokens / (ZERO_GPUS * published.R1_TOKENS_A_SECOND.value)
    longest = [ZERO_LIMIT.value * one.value for one in (TOKEN_FAST, TOKEN_SLOW)]
    held = sum(engine_weights())
    sync = held / (HOST * LINK.value)
    parts = [
        ("sampling, if all GPUs were always full", busy, busy, "1,850 tokens a second and GPU, as the service"),
        ("until the longest response has ended", *longest, "32,768 tokens at 14.8 and 47.6 ms each"),
        ("reference", each / fast, each / slow, "a forward at 368 TFLOPS, or 20 % of the peak"),
        ("training", 3 * each / fast, 3 * each / slow, "forward and backward at the same"),
        (
            "weights to the engines, once",
            sync,
            sync,
            f"{held / 1e9:.0f} GB in FP8 to each host, by its 8 cards at 40 GB/s",
        ),
    ]
    for name, low, high, how in parts:
        yield name, f"{low:.0f}", f"{high:.0f}", how
    low, high = (sum(part[at] for part in parts[1:]) for at in (1, 2))
    took = ZERO_SECONDS / ZERO_ROLLOUTS
    yield (
        "**a round**, without the first line",
        f"**{low:.0f}**",
        f"**{high:.0f}**",
        f"published: 198 h for 650 rounds, {took:.0f} s",
    )


def assumptions() -> Iterator[Sequence[str]]:
    """Every number that is not computed."""
    numbers = (FP8_RATE, SCORES_FORWARD, SCORES_BACKWARD, published.TRACE_SECONDS, published.TRACE_OPTIMIZER, LINK)
    numbers += (NODES, DISPATCHED, COMBINED, published.V3_GPUS, published.V3_PIPELINE, published.V3_BATCH)
    numbers += (published.V3_LAYER_BYTES, published.R1_ROLLOUTS, published.R1_LENGTH, ZERO_LIMIT)
    numbers += (published.R1_TOKENS_A_SECOND, TOKEN_FAST, TOKEN_SLOW, published.R1_SLOW_SHARE)
    for number in numbers:
        yield _number(number.value), number.what, number.source
    fast = published.RATES["experts", "fp8"]
    yield _number(fast.middle), fast.what, fast.source
    yield f"{ENGINE_SHARE:g}", "of a GPU's memory for an engine", "vLLM's default"


def _number(value: float) -> str:
    """A number as people write it: `770e12`, `15,360`, `0.129`."""
    if value >= 1e9:
        power = 12 if value >= 1e12 else 9
        return f"{value / 10**power:g}e{power}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _table(header: str, rows: Iterator[Sequence[str]]) -> list[str]:
    names = header.split("|")
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def markdown() -> str:
    """All tables as the page has them."""
    lines = ["### A step of pre-training, 2,048 H800", ""]
    lines += _table("part|s|from|published", pretraining())
    lines += ["### Memory of a GPU in pre-training", "", *_table("part|GB", training_memory())]
    lines += ["### Engines in FP8", ""]
    lines += _table("engine|hosts|experts, GB a GPU|other weights|left for the cache|tokens in the cache", engines())
    lines += ["### All weights trained by FSDP alone", ""]
    lines += _table("GPUs|tokens a pass|weights, gradients, moments, GB|activations|a layer|rest|in all|", fsdp())
    lines += ["### A round of R1-Zero, 512 H800", "", *_table("part|s, low|s, high|from", reinforcement())]
    lines += ["### What is assumed", "", *_table("number|what|source", assumptions())]
    return "\n".join(lines).rstrip()


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a page with the markers that the tables go between")
    options = parser.parse_args()
    pages.tell(PAGE, markdown(), options.write)


if __name__ == "__main__":
    main()
