"""GPUs: what they do at most, what they hold, and what an hour of one costs. Data sheets' sparse rates are halved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rewards.registry import nearest


class HardwareError(ValueError):
    """No such GPU, or no number of them."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as `--gpus` has it.
        bf16, fp8: dense operations a second; `fp8` is 0 where there are none.
        bytes: memory as torch reports it, a little below the data sheet's.
        bandwidth: bytes a second from that memory.
        link: bytes a second to another GPU of the node, one way, as collectives reach it: 0.8 of the data sheet's.
        price: US dollars an hour, low and high; 0 where it is not known.
        priced: where the price is from.
    """

    name: str
    bf16: float
    fp8: float
    bytes: int
    bandwidth: float
    link: float
    price: tuple[float, float]
    priced: str

    @property
    def usd(self) -> float:
        """The middle of the price's range."""
        return sum(self.price) / 2


CPU = "CPU"
"""The name of a machine without a GPU, measured by `plan --cost --probe`."""
_RENTED = "mercatus-ai.com, May 2026"
_UNKNOWN = "not known here: --price"
_CONSUMER = "RunPod by deploybase.ai, March 2026"
_V3 = "arXiv 2412.19437, Table 1: assumed there"
SOURCE = "NVIDIA's data sheets, dense"
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("H800", 989e12, 1979e12, 85_000_000_000, 3.35e12, 160e9, (2.0, 2.0), _V3),
        Gpu("H100", 989e12, 1979e12, 85_000_000_000, 3.35e12, 360e9, (1.99, 5.0), _RENTED),
        Gpu("H200", 989e12, 1979e12, 150_100_000_000, 4.8e12, 360e9, (2.5, 7.0), _RENTED),
        Gpu("A100", 312e12, 0.0, 85_000_000_000, 2.0e12, 240e9, (0.8, 3.0), _RENTED),
        Gpu("A100-40GB", 312e12, 0.0, 42_300_000_000, 1.56e12, 240e9, (0.8, 3.0), _RENTED),
        Gpu("L40S", 362e12, 733e12, 47_700_000_000, 0.864e12, 20e9, (0.8, 2.0), "assumed: between A100 and RTX 4090"),
        Gpu("B200", 2250e12, 4500e12, 191_000_000_000, 8.0e12, 720e9, (0.0, 0.0), _UNKNOWN),
        Gpu("H20", 148e12, 296e12, 102_000_000_000, 4.0e12, 360e9, (0.0, 0.0), _UNKNOWN),
        Gpu("L40", 181e12, 362e12, 47_700_000_000, 0.864e12, 20e9, (0.0, 0.0), _UNKNOWN),
        Gpu("L4", 121e12, 242e12, 23_600_000_000, 0.3e12, 20e9, (0.0, 0.0), _UNKNOWN),
        Gpu("A10", 125e12, 0.0, 23_600_000_000, 0.6e12, 20e9, (0.0, 0.0), _UNKNOWN),
        Gpu("A6000", 155e12, 0.0, 47_500_000_000, 0.768e12, 20e9, (0.0, 0.0), _UNKNOWN),
        Gpu("RTX3090", 71e12, 0.0, 25_300_000_000, 0.936e12, 20e9, (0.0, 0.0), _UNKNOWN),
        Gpu("RTX4090", 165e12, 330e12, 25_300_000_000, 1.01e12, 20e9, (0.6, 0.6), _CONSUMER),
        Gpu("RTX5090", 209e12, 419e12, 33_700_000_000, 1.79e12, 40e9, (1.22, 1.22), _CONSUMER),
    )
}
"""Known GPUs. Of consumer cards the rates are those with 32-bit accumulation."""
MOST = 200_000
"""GPUs of a cluster: as many as the largest has."""
ALIASES: Mapping[str, str] = {
    "3090": "RTX3090",
    "4090": "RTX4090",
    "5090": "RTX5090",
    "RTXA6000": "A6000",
    "A100-80GB": "A100",
    "H100-80GB": "H100",
    "H100-SXM": "H100",
    "H200-SXM": "H200",
    "A100-SXM": "A100",
}
"""What people write, where it is not a name above."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many GPUs of one kind."""

    count: int
    gpu: Gpu

    def __str__(self) -> str:
        return f"{self.count}x{self.gpu.name}"


def cluster(text: str) -> Cluster:
    """`8xH100`, or `H100` for one.

    Raises:
        HardwareError: no such GPU, or no number; says what would do.
    """
    matched = re.fullmatch(r"(?:(\d+)\s*[xX×*])?\s*([A-Za-z0-9][\w -]*)", text.strip())
    if matched is None or not (matched[1] or "1").strip("0"):
        raise HardwareError(f"{text!r} is not a number of GPUs: write 8xH100, or H100 for one")
    if len(matched[1] or "") > len(str(MOST)) or (count := int(matched[1] or 1)) > MOST:
        raise HardwareError(f"{text[:40]!r} is more GPUs than there are in a cluster: {MOST:,} are the most")
    return Cluster(count, named(matched[2].strip(), text))


def named(name: str, text: str | None = None) -> Gpu:
    """A GPU by its name, however it is spelled: `h100`, `NVIDIA H200`, `RTX 4090`.

    Raises:
        HardwareError: there is no such GPU here; names the nearest.
    """
    wanted = re.sub(r"[^A-Z0-9]", "", name.upper())
    known = {re.sub(r"[^A-Z0-9]", "", each.upper()): each for each in (*GPUS, *ALIASES)}
    if wanted in known:
        return GPUS[ALIASES.get(known[wanted], known[wanted])]
    words = re.split(r"[^A-Z0-9]+", name.upper())
    device = next((known[word] for word in words if word in known), None)
    if text is None and device is not None:  # a driver's name, such as "NVIDIA H100 80GB HBM3"
        return GPUS[ALIASES.get(device, device)]
    hint = nearest(name, GPUS)
    raise HardwareError(f"there is no GPU {name!r} here{hint}. Known: {', '.join(GPUS)}")
