"""What processes share: values, signs of life, weights and locks, in files without a name.

The files are made with `memfd_create` and handed on as open descriptors. Nothing of them lies in a folder, so nothing
stays behind whichever process is killed, and the small `/dev/shm` of containers does not limit them. Linux only.
"""

from __future__ import annotations

import fcntl
import logging
import math
import mmap
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import Sampling
from pipeline.schema.pieces import RolloutSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ALIGNMENT = 64
"""Bytes at whose multiples tensors begin: a cache line, and enough for every type."""


MICROSECONDS = 1_000_000
"""Of a second."""


class SharedFile:
    """A file without a name.

    Args:
        fd: descriptor of one that the parent made; a new one if not given.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create(f"zero2r1-{type(self).__name__}") if fd is None else fd

    def close(self) -> None:
        """Give this process's descriptor back."""
        os.close(self.fd)


class SharedValue(SharedFile):
    """One value at a time that one process leaves for another. Only who trusts the other may share one: pickle."""

    def put(self, value: Any) -> None:
        """Replace the value."""
        with open(self.fd, "wb", closefd=False) as file:
            file.truncate(0)
            file.seek(0)
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)

    def get(self) -> Any:
        """What was put last."""
        with open(self.fd, "rb", closefd=False) as file:
            file.seek(0)
            return pickle.load(file)


class Heartbeat(SharedFile):
    """Signs of life: the number of steps taken, the sequences finished and asked for, and the time without work."""

    def __init__(self, fd: int | None = None) -> None:
        super().__init__(fd)
        numbers = 4
        os.ftruncate(self.fd, numbers * 8)
        self._numbers = memoryview(mmap.mmap(self.fd, numbers * 8)).cast("q")

    def tick(self) -> None:
        """A step was taken."""
        self._numbers[0] += 1

    def progress(self, finished: int, total: int) -> None:
        """So many sequences are finished, of so many."""
        self._numbers[1], self._numbers[2] = finished, total

    def idle(self, seconds: float) -> None:
        """There was nothing to do for so long."""
        self._numbers[3] += round(seconds * MICROSECONDS)

    @property
    def idle_seconds(self) -> float:
        """How long there was nothing to do, so far."""
        return self._numbers[3] / MICROSECONDS

    def read(self) -> tuple[int, int, int]:
        """Steps, sequences finished, sequences in all."""
        steps, finished, total, _ = self._numbers
        return steps, finished, total


class FileLock(SharedFile):
    """A lock that processes take one after another. The kernel frees it when its holder ends, in whatever way."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)


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


class WeightFile(SharedFile):
    """All weights of a model, one after another.

    The first time they are written, the file grows with them. From then on they go through memory that is mapped once,
    and, where there is a GPU, pinned: it then copies straight into it, and out of it.
    """

    def __init__(self, fd: int | None = None) -> None:
        super().__init__(fd)
        self._bytes: torch.Tensor | None = None
        self._pinned = False

    def write(self, weights: Iterable[tuple[str, torch.Tensor]]) -> tuple[Place, ...]:
        """Write weights over what is there, from any device, one at a time.

        Returns:
            What the other side needs to know to read them.
        """
        import torch

        held, places, offset = self._mapped(), [], 0
        for name, tensor in weights:
            flat = tensor.detach().contiguous().flatten().view(torch.uint8)
            places.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
            if held is not None and offset + flat.numel() <= held.numel():
                held[offset : offset + flat.numel()].copy_(flat, non_blocking=True)
            else:
                self._append(flat, offset)
            offset += -(-flat.numel() // ALIGNMENT) * ALIGNMENT
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies, before anybody is told of them
        return tuple(places)

    def read(self, places: Iterable[Place]) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they lie there, without a copy: only until they are written over."""
        import torch

        held = self._mapped()
        for place in places:
            dtype: torch.dtype = getattr(torch, place.dtype)
            size = math.prod(place.shape) * dtype.itemsize
            if held is None or place.offset + size > held.numel():
                raise ValueError(f"{place.name} lies beyond the end of the file")
            yield place.name, held[place.offset : place.offset + size].view(dtype).view(place.shape)

    def close(self) -> None:
        """Give this process's descriptor and its memory back."""
        self._forget()
        super().close()

    def _append(self, flat: torch.Tensor, offset: int) -> None:
        data, written = flat.cpu().numpy().data, 0
        while written < len(data):  # one call writes 2 GiB at most
            written += os.pwrite(self.fd, data[written:], offset + written)

    def _mapped(self) -> torch.Tensor | None:
        """The whole file as bytes; `None` as long as it is empty."""
        import torch

        size = os.fstat(self.fd).st_size
        if self._bytes is not None and self._bytes.numel() != size:
            self._forget()
        if self._bytes is None and size:
            self._bytes = torch.frombuffer(mmap.mmap(self.fd, size), dtype=torch.uint8)
        if self._bytes is not None and not self._pinned and torch.cuda.is_available():
            self._pinned = int(_cuda().cudaHostRegister(self._bytes.data_ptr(), size, 0)) == 0
            if not self._pinned:
                log.warning("CUDA does not pin the memory of weights: pushing them will be slower")
        return self._bytes

    def _forget(self) -> None:
        """Let go of the mapped memory; what was read from it keeps it alive."""
        if self._pinned:
            assert self._bytes is not None
            _cuda().cudaHostUnregister(self._bytes.data_ptr())
        self._bytes, self._pinned = None, False


class Placed:
    """Weights that lie in a file. What is pickled is where they are: a process that this one started reads them there.

    Args:
        file: has them.
        places: where.
        tick: called at each.
    """

    def __init__(self, file: WeightFile, places: tuple[Place, ...], tick: Callable[[], None] = lambda: None) -> None:
        self._file, self.places, self._tick = file, places, tick

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for weight in self._file.read(self.places):
            self._tick()
            yield weight

    def __reduce__(self) -> tuple[Any, ...]:
        return placed, (self.path, self.places)

    @property
    def path(self) -> str:
        """Where other processes of this user find the file, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._file.fd}"


def placed(path: str, places: tuple[Place, ...]) -> Placed:
    """Weights that lie in the file of another process; see `Placed.path`."""
    return Placed(_opened(path), places)


@lru_cache(maxsize=2)  # which take turns; mapping and pinning them takes longer than reading
def _opened(path: str) -> WeightFile:
    return WeightFile(os.open(path, os.O_RDWR))


def _cuda() -> Any:
    """CUDA's runtime."""
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights that were pushed.

    Attributes:
        number: 1 for the first push, and so on.
        places: where they lie in the file of this number.
        version: what rollouts call them.
    """

    number: int
    places: tuple[Place, ...]
    version: int = 0


class PushedWeights:
    """Weights for engines in other processes.

    They take turns in two files: those that an engine may still read stay as they are while the next ones are written.

    Attributes:
        files: both of them.
        told: the weights pushed last, as engines read it: with many experts, more than goes into a pipe at once.
        last: the same here, if any were pushed.
    """

    def __init__(self) -> None:
        self.files, self.told = (WeightFile(), WeightFile()), SharedValue()
        self.last: Snapshot | None = None

    @property
    def number(self) -> int:
        """How often weights were pushed."""
        return 0 if self.last is None else self.last.number

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Keep a copy of weights; those of the last push but one are gone."""
        number = self.number + 1
        self.last = Snapshot(number, self.files[number % 2].write(weights), version)
        self.told.put(self.last)

    def close(self) -> None:
        """Give this process's descriptors and memory back."""
        for file in (*self.files, self.told):
            file.close()


@dataclass(frozen=True, slots=True)
class Opening:
    """What the process opens; see `pipeline.rollout.open_engine`."""

    spec: RolloutSpec
    path: str
    seed: int
    logprobs: bool
    for_trainer: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A request: what `Engine.generate` takes."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
