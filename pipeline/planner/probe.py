"""A minute of measurements on this machine, whose times then replace those of an H200.

Four numbers are measured: products of large matrices (the peak that is there), reading memory, the forward and backward
pass of a few decoder layers (which share of the peak training reaches), and the same on a handful of tokens (how long
the processor takes to launch a layer). What only an engine could tell, its scheduler's time a token, is taken to be
slower or faster as launching is. On a machine without a GPU the same is measured on its processor.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from pipeline.cost import flops, speed
from pipeline.cost.bill import Assumption
from pipeline.cost.config import from_config
from pipeline.cost.hardware import CPU, Cluster, Gpu, HardwareError
from pipeline.cost.shape import Shape
from pipeline.cost.speed import Speed
from pipeline.planner.found import Found

SECONDS = 4.0
"""How long each of the measurements goes on."""
LEAST_ROUNDS = 3
SHORTEST = 1e-7
"""Seconds: what a clock cannot tell from nothing."""
DEPTHS = (4, 12)
"""Layers of the models that are measured."""
TINY_TOKENS = 8
"""So few that a pass waits for the processor alone."""
CPU_LINK = 10e9
"""Bytes a second between processes of one machine, about; only ranks of a CPU would use it."""


def measured(found: Found | None, say: Callable[[str], None]) -> tuple[Cluster, Speed, list[Assumption]]:
    """Measure this machine.

    Args:
        found: its GPUs, as the driver tells them.
        say: prints a line, for people who wait.

    Returns:
        The machine as a cluster, its efficiencies, and what was measured.

    Raises:
        HardwareError: there is a GPU, but torch cannot use it.
    """
    import torch

    if found is not None and not torch.cuda.is_available():
        raise HardwareError(f"{found.name} is here, but torch {torch.__version__} cannot use it: see zero2r1 doctor")
    device = torch.device("cuda" if found is not None else "cpu")
    say(f"measuring {found.name if found is not None else 'this processor'} …")
    peak, bandwidth = _peak(device), _bandwidth(device)
    share, layer_s = _layers(device, peak)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for whatever runs next to this process
    was = speed.MEASURED
    host = layer_s / was.layer_s if found is not None else 1.0
    rates = replace(
        was,
        products=share,
        padded=share * was.padded / was.products,
        experts=share * was.experts / was.products,
        layer_s=layer_s,
        token_s=was.token_s * host,
        plain_token_s=was.plain_token_s * host,
        bandwidth=1.0,  # what is read is measured, and no data sheet's
    )
    cluster = _cluster(found, peak, bandwidth)
    here = "measured on this machine"
    return (
        cluster,
        rates,
        [
            Assumption("products", f"{peak / 1e12:.3g} TFLOPS", f"{here}: large matrices"),
            Assumption("memory", f"{bandwidth / 1e9:.3g} GB/s", f"{here}: copying"),
            Assumption("training", f"{share:.0%} of that", f"{here}: layers, forward and backward"),
            Assumption("launching", f"{layer_s * 1e3:.2g} ms a layer", f"{here}: a few tokens, two depths"),
            Assumption("scheduler", f"{rates.token_s * 1e6:.3g} us a token", "assumed: as much slower as launching"),
        ],
    )


def _cluster(found: Found | None, peak: float, bandwidth: float) -> Cluster:
    if found is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Cluster(1, Gpu(CPU, peak, 0.0, memory, bandwidth, CPU_LINK, (0.0, 0.0), "one's own: --price"))
    try:
        known = found.cluster().gpu
        price, priced, link = known.price, known.priced, known.link
    except HardwareError:
        price, priced, link = (0.0, 0.0), "not known: --price", CPU_LINK
    return Cluster(found.count, Gpu(found.name, peak, 0.0, found.bytes, bandwidth, link, price, priced))


def _seconds(device: Any, work: Callable[[], object]) -> float:
    """Seconds of a call, the median of many: clocks and neighbours make single ones too short or too long."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < LEAST_ROUNDS or time.perf_counter() < until:
        taken.append(once())
    return max(statistics.median(taken), SHORTEST)


def _peak(device: Any) -> float:
    """Operations a second of a product of matrices, in what training multiplies in: BF16 on a GPU, FP32 elsewhere."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(device, lambda: left @ right)


def _bandwidth(device: Any) -> float:
    """Bytes a second that are read and written, together."""
    import torch

    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _seconds(device, lambda: target.copy_(source))


def _layers(device: Any, peak: float) -> tuple[float, float]:
    """The share of the peak that training reaches, and seconds of a layer's forward pass on a few tokens.

    A pass also embeds, builds a mask and computes a loss; a deeper model tells what a layer adds to that.
    """
    gpu = device.type == "cuda"
    (step, shape), (deeper, _) = (_model(device, depth) for depth in DEPTHS)
    tokens = 8192 if gpu else 512
    operations = flops.training(shape, [tokens]).total
    share = operations / _seconds(device, step(tokens, backward=True)) / peak
    shallow, deep = (_seconds(device, each(TINY_TOKENS, backward=False)) for each in (step, deeper))
    return min(1.0, share), max(SHORTEST, (deep - shallow) / (DEPTHS[1] - DEPTHS[0]))


class _Step(Protocol):
    def __call__(self, length: int, backward: bool) -> Callable[[], object]: ...


def _model(device: Any, layers: int) -> tuple[_Step, Shape]:
    """Passes of a model with so many layers over so many tokens, to be called; and its shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    gpu = device.type == "cuda"
    wide = {"hidden_size": 2048, "intermediate_size": 8192} if gpu else {"hidden_size": 256, "intermediate_size": 1024}
    heads = {"num_attention_heads": 16 if gpu else 4, "num_key_value_heads": 4}
    sizes: dict[str, Any] = {**wide, **heads, "num_hidden_layers": layers, "vocab_size": 1024}
    config = AutoConfig.for_model("qwen2", **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device)

    def step(length: int, backward: bool) -> Callable[[], object]:
        ids_BT = torch.ones(1, length, dtype=torch.long, device=device)

        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                loss = model(input_ids=ids_BT, labels=ids_BT).loss
            if backward:
                loss.backward()
                model.zero_grad()

        return run

    return step, from_config(config.to_dict())
