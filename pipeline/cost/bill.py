"""What a bill is made of: parts, assumptions with their sources, and published figures beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.cost.flops import Flops
from pipeline.cost.hardware import Cluster
from pipeline.cost.published import Number

HOUR = 3600.0
TRILLION = 1e12


class CostError(ValueError):
    """What was asked for cannot be computed; says why in one line."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """A line of the output: something that the result rests on, and where it comes from."""

    what: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the bill, in GPU-hours.

    Attributes:
        hours: the estimate.
        low, high: between which other routes lie.
        published: what was published, for comparison alone.
        how: what it rests on.
    """

    hours: float
    low: float
    high: float
    how: str
    published: Number | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A published figure beside what the arithmetic gives.

    Attributes:
        what: of what.
        published: as printed.
        ours: as computed: a figure, a range, or the part of it that is explained.
        status: whether the two agree, and how: in what bounds, or that nothing is derived.
    """

    what: str
    published: str
    ours: str
    status: str
    source: str


@dataclass(frozen=True, slots=True)
class Bill:
    """What `zero2r1 cost` tells."""

    cluster: Cluster
    tokens: float
    precision: str
    price: float
    a_token: Flops
    parts: dict[str, Part]
    routes: dict[str, float]
    memory: dict[str, float]
    assumptions: list[Assumption]
    claims: list[Claim] = field(default_factory=list)

    @property
    def hours(self) -> float:
        """GPU-hours in all."""
        return sum(part.hours for part in self.parts.values())

    @property
    def days(self) -> float:
        """Days on the whole cluster."""
        return self.hours / self.cluster.count / 24

    @property
    def usd(self) -> float:
        """Money in all."""
        return self.hours * self.price


def gpu_hours(operations: float, rate: float) -> float:
    """Hours of a GPU for so many operations, at so many a second."""
    return operations / rate / HOUR
