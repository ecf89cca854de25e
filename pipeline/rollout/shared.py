"""Memory that two processes share: values, signs of life, and weights, in files without a name.

The files are made with `memfd_create` and handed on as open descriptors. Nothing of them lies in a folder, so nothing
stays behind whichever process is killed, and the small `/dev/shm` of containers does not limit them. Linux only.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64
"""Bytes at whose multiples tensors begin: a cache line, and enough for every type."""


class Box:
    """One value at a time that one process leaves for another. Only those who trust each other may share one: pickle.

    Args:
        fd: descriptor of a box that the parent made; a new one if not given.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("zero2r1-box") if fd is None else fd

    def put(self, value: Any) -> None:
        """Replace what is in it."""
        with open(self.fd, "wb", closefd=False) as file:
            file.truncate(0)
            file.seek(0)
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)

    def get(self) -> Any:
        """What was put last."""
        with open(self.fd, "rb", closefd=False) as file:
            file.seek(0)
            return pickle.load(file)

    def close(self) -> None:
        """Give this process's descriptor back."""
        os.close(self.fd)


class Board:
    """Signs of life: the number of steps taken, and the sequences finished and asked for.

    Args:
        fd: descriptor of a board that the parent made; a new one if not given.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("zero2r1-board") if fd is None else fd
        numbers = 3
        os.ftruncate(self.fd, numbers * 8)
        self._numbers = memoryview(mmap.mmap(self.fd, numbers * 8)).cast("q")

    def tick(self) -> None:
        """A step was taken."""
        self._numbers[0] += 1

    def progress(self, finished: int, total: int) -> None:
        """So many sequences are finished, of so many."""
        self._numbers[1], self._numbers[2] = finished, total

    def read(self) -> tuple[int, int, int]:
        """Steps, sequences finished, sequences in all."""
        steps, finished, total = self._numbers
        return steps, finished, total

    def close(self) -> None:
        """Give this process's descriptor back."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a `WeightFile`.

    Attributes:
        name: of the weight.
        dtype: its type, such as `bfloat16`.
        shape: its shape.
        offset: its first byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class WeightFile:
    """All weights of a model, one after another.

    Args:
        fd: descriptor of a file that the parent made; a new one if not given.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("zero2r1-weights") if fd is None else fd

    def write(self, weights: Iterable[tuple[str, torch.Tensor]]) -> tuple[Place, ...]:
        """Write weights over what is there, from any device, one at a time.

        Returns:
            What the other side needs to know to read them.
        """
        import torch

        places, offset = [], 0
        for name, tensor in weights:
            data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
            places.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
            written = 0
            while written < len(data):  # one call writes 2 GiB at most
                written += os.pwrite(self.fd, data[written:], offset + written)
            offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
        return tuple(places)

    def read(self, places: Iterable[Place]) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they lie there, without a copy: only until they are written over."""
        import torch

        memory = mmap.mmap(self.fd, 0)
        for place in places:
            dtype: torch.dtype = getattr(torch, place.dtype)
            flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(place.shape), offset=place.offset)
            yield place.name, flat.view(place.shape)

    def close(self) -> None:
        """Give this process's descriptor back."""
        os.close(self.fd)
