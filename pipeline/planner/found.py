"""The GPUs of this machine, as the driver tells them: without torch, which takes seconds to import."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from pipeline.cost.hardware import Cluster, Gpu, named
from pipeline.gpus import visible
from pipeline.schema.launch import VISIBLE

DRIVER_SECONDS = 10.0
"""A driver that takes longer is taken for none."""
COLUMNS = 4
RESERVED = 0.985
"""Share of the driver's total that torch sees: the rest is the driver's own."""


@dataclass(frozen=True, slots=True)
class Found:
    """GPUs of this machine: how many, what the driver calls them, and bytes of the smallest."""

    count: int
    name: str
    bytes: int

    def cluster(self) -> Cluster:
        """The same with what is known of such a GPU.

        Raises:
            HardwareError: nothing is.
        """
        known = named(self.name)
        gpu = Gpu(known.name, known.bf16, known.fp8, self.bytes, known.bandwidth, known.link, known.price, known.priced)
        return Cluster(self.count, gpu)


def gpus() -> Found | None:
    """The GPUs that a process here would see; `None` if there are none, or no driver that answers."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == COLUMNS and row[2].isdecimal()]
    if VISIBLE in os.environ:
        keys = {gpu.key for gpu in visible(os.environ)}
        rows = [row for row in rows if keys & {row[0], row[1]}]
    if not rows:
        return None
    smallest = min(int(row[2]) for row in rows)
    return Found(len(rows), rows[0][3], round(smallest * 2**20 * RESERVED))
