"""The GPUs of this host: which of them a run may use, and which are taken.

Each GPU has a lock of the kernel (`flock`), shared by the runner that gave it to a stage and by every process of that
stage. So it is free when the last of them has ended, in whatever way, and runners of one host never give it twice.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.schema.launch import VISIBLE

LOCKS = Path("/tmp/zero2r1-gpus")
"""Folder of the locks; fixed, since runners with different `TMPDIR`s share the GPUs."""
HELD = "ZERO2R1_GPU_LOCKS"
"""Variable in which a stage's processes get the locks that they are to hold."""
UUID_BYTES = 96
"""What NVML wants for a UUID, the end of the string included."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as `CUDA_VISIBLE_DEVICES` has it: a number, or a UUID.
        key: what tells it from every other GPU of the host: its UUID where the driver says it, or the name.
    """

    name: str
    key: str


def visible(environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that a process with this environment may use, in its order.

    As in CUDA, a list ends at the first entry that names none. Where there is no driver, the list is taken at its word.
    """
    uuids = of_driver()
    listed = environment.get(VISIBLE)
    names = map(str, range(len(uuids))) if listed is None else listed.split(",")
    found: dict[str, Gpu] = {}
    for name in map(str.strip, names):
        if (key := _key(name, uuids)) is None:
            break
        found.setdefault(key, Gpu(name, key))
    return tuple(found.values())


def named(names: Iterable[str]) -> tuple[Gpu, ...]:
    """GPUs that a recipe names; one that the driver does not know is taken at its word."""
    uuids = of_driver()
    found = {key: Gpu(name, key) for name in names if (key := _key(name, uuids) or name)}
    return tuple(found.values())


@cache
def of_driver() -> tuple[str, ...]:
    """The UUIDs of the host's GPUs, as the driver numbers them; empty where there is none. Asks without using any."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return tuple(_uuid(nvml, index) for index in range(count.value))
    finally:
        nvml.nvmlShutdown()


def _uuid(nvml: ctypes.CDLL, index: int) -> str:
    handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(UUID_BYTES)
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return text.value.decode() if nvml.nvmlDeviceGetUUID(handle, text, UUID_BYTES) == 0 else str(index)


def _key(name: str, uuids: Sequence[str]) -> str | None:
    """What a GPU is, by a name of it; `None` if there is none."""
    if name.isdecimal():
        if not uuids:
            return str(int(name))
        return uuids[int(name)] if int(name) < len(uuids) else None
    if name.startswith("MIG-") or (name.startswith("GPU-") and not uuids):
        return name  # a part of a GPU, of which nothing is known
    meant = [uuid for uuid in uuids if name.startswith("GPU-") and uuid.startswith(name)]
    return meant[0] if len(meant) == 1 else None


class Lease:
    """GPUs that are taken until `release`, and as long as a process holds their locks.

    Attributes:
        gpus: which.
        paths: their locks.
    """

    def __init__(self, gpus: Sequence[Gpu], descriptors: Sequence[int]) -> None:
        self.gpus, self._descriptors = tuple(gpus), list(descriptors)
        self.paths = tuple(lock_path(gpu) for gpu in gpus)

    def release(self) -> None:
        """Let go of them; who else holds their locks still has them."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def take(candidates: Sequence[Gpu], count: int) -> Lease | None:
    """Take so many GPUs, the first of the candidates that are free; `None`, and nothing is held, if there are too few.

    Raises:
        OSError: the folder of the locks cannot be made or read.
    """
    gpus: list[Gpu] = []
    descriptors: list[int] = []
    for gpu in candidates:
        if len(gpus) == count:
            break
        descriptor = _open(lock_path(gpu))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared with the stage; another may have come first
        except BlockingIOError:
            os.close(descriptor)
            continue
        gpus.append(gpu)
        descriptors.append(descriptor)
    lease = Lease(gpus, descriptors)
    if len(gpus) == count:
        return lease
    lease.release()
    return None


def keep() -> None:
    """Hold the GPUs that the runner gave to the stage of this process for as long as the process lives."""
    for path in filter(None, os.environ.get(HELD, "").split(os.pathsep)):
        fcntl.flock(_open(Path(path)), fcntl.LOCK_SH)


def lock_path(gpu: Gpu) -> Path:
    """The lock of a GPU."""
    return LOCKS / "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in gpu.key)


def _open(path: Path) -> int:
    """A descriptor of a lock, which is made if it is not there; any user of the host may hold it."""
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    with suppress(FileExistsError):
        path.parent.mkdir()
        path.parent.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO | stat.S_ISVTX)
    return os.open(path, os.O_RDONLY | os.O_CREAT, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
