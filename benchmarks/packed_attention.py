"""Packed rows through every attention that torch has: which of them gives numbers that are not finite, or wrong ones?

    python -m benchmarks.packed_attention --out benchmarks/results/packed-attention-h200.json      # a minute on a GPU
    python -m benchmarks.packed_attention --device cpu --dtype float32 --trials 2 --tokens 256     # tries the script

Fine-tuning on packed rows once destroyed a student of 0.5B on an H200 after some thirty good steps: a gradient became
NaN. Attention then had a block-diagonal mask of tokens x tokens, for which torch chooses among several kernels. Here
random sequences fill a row, and outputs and gradients of each kernel with that mask, and of the variable-length kernel
that trains today (`pipeline.training.varlen`), are held against one call a sequence in float64.

On an H200 every number of every kernel was finite, for rows of 40 to 65,536 tokens, and as near to float64 as those of
the others: that mask was not what made the NaN.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.sampling import installed
from pipeline.training import varlen

HEADS, GROUPS, WIDTH = 14, 2, 64
"""Qwen2.5-0.5B: query heads, key heads, width of a head."""
SHORTEST, MEAN_LOG, SPREAD = 2, 5.3, 0.8
"""Tokens of a sequence: at least so many, and log-normal around exp(5.3) = 200 like answers to school problems."""
LARGE = 30.0
"""Queries of every other trial are this much larger: trained models attend to single tokens."""


def lengths(tokens: int, rng: random.Random) -> list[int]:
    """Sequences that fill a row of so many tokens."""
    found: list[int] = []
    while sum(found) < tokens:
        found.append(min(max(SHORTEST, int(rng.lognormvariate(MEAN_LOG, SPREAD))), tokens - sum(found)))
    return found


def block_diagonal(row: list[int], device: str) -> torch.Tensor:
    """Mask (1, 1, tokens, tokens): a token sees itself and what is before it in its own sequence."""
    numbers_T = torch.repeat_interleave(torch.arange(len(row), device=device), torch.tensor(row, device=device))
    same_TT = numbers_T[:, None] == numbers_T[None]
    return same_TT.tril()[None, None]


def masked(backend: SDPBackend | None, row: list[int], query: Any, key: Any, value: Any) -> torch.Tensor:
    """What transformers does with a packed row by itself; `None` leaves the choice of the kernel to torch."""
    key, value = (part.repeat_interleave(HEADS // GROUPS, dim=1) for part in (key, value))
    mask = block_diagonal(row, query.device.type)
    if backend is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def bounded(row: list[int], query: Any, key: Any, value: Any) -> torch.Tensor:
    """What trains today."""
    told = varlen.boundaries(row, query.device)
    out, _ = varlen.attention(None, query, key, value, None, **{k: v for k, v in told.items() if k.endswith("_q")})
    return out.transpose(1, 2)


def ways(device: str) -> dict[str, Callable[..., torch.Tensor]]:
    """Name -> attention over a packed row."""
    found: dict[str, Callable[..., torch.Tensor]] = {"variable-length": bounded}
    backends = [None, SDPBackend.MATH]
    if device == "cuda":
        backends += [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for backend in backends:
        found["mask, torch's choice" if backend is None else f"mask, {backend.name}"] = partial(masked, backend)
    return found


def tried(way: Callable[..., torch.Tensor], row: list[int], parts: list[Any], toward: Any) -> list[torch.Tensor]:
    """Output and gradients of query, key and value."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    out = way(row, *leaves)
    (out.float() * toward).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def trial(number: int, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One random row through every way: numbers that are not finite, and the largest distance from float64."""
    rng = random.Random(number)
    torch.manual_seed(number)
    row = lengths(asked.tokens - rng.randrange(8), rng)
    shape, make = (sum(row), WIDTH), partial(torch.randn, device=asked.device)
    query = make(1, HEADS, *shape) * (LARGE if number % 2 else 1.0)
    key, value, toward = make(1, GROUPS, *shape), make(1, GROUPS, *shape), make(1, HEADS, *shape)
    parts = [part.to(getattr(torch, asked.dtype)) for part in (query, key, value)]
    exact = tried(bounded, row, [part.double() for part in parts], toward)
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways(asked.device).items():
        try:
            results = tried(way, row, parts, toward)
        except RuntimeError as error:  # a kernel that does not take this shape says so
            found[name] = {"refused": str(error).splitlines()[0]}
            continue
        bad = sum(int((~result.isfinite()).sum()) for result in results)
        pairs = zip(results, exact, strict=True)
        apart = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
        found[name] = {"not_finite": bad, "relative_distance": apart}
    return {name: {**entry, "tokens": sum(row), "sequences": len(row)} for name, entry in found.items()}


def main() -> None:
    """Try, print a line a way, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a row")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    trials = [trial(number, asked) for number in range(asked.trials)]
    summary: dict[str, dict[str, Any]] = {}
    for name in trials[0]:
        entries = [found[name] for found in trials]
        counted = [entry for entry in entries if "refused" not in entry]
        summary[name] = {
            "trials": len(counted),
            "refused": len(entries) - len(counted),
            "trials_not_finite": sum(entry["not_finite"] > 0 for entry in counted),
            "largest_distance": max((entry["relative_distance"] for entry in counted), default=None),
        }
        print(f"{name}: {summary[name]}", flush=True)
    result = {
        "summary": summary,
        "trials": trials,
        "settings": {"device": asked.device, "dtype": asked.dtype, "tokens": asked.tokens, "trials": asked.trials},
        "versions": {**installed(), "cudnn": torch.backends.cudnn.version()},
        "gpu": torch.cuda.get_device_name(0) if asked.device == "cuda" else None,
        "command": shlex.join(["python", "-m", "benchmarks.packed_attention", *sys.argv[1:]]),
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
