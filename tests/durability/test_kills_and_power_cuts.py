"""Thirty kills and thirty power cuts at random moments: all ends equal, to the bit, those of runs left in peace.

A power cut is a copy of the image of a mounted file system, taken while the stage works: what was written and not
synced is in the memory of the kernel, and not in the image. The file system is made as forgetful as it can be: names
are committed every second, without the contents that they stand for. That it forgets is tested, too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.durability.conftest import Bench
from tests.durability.driving import STAGES, child, log_of, outcome, run_through

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = CUTS = 10
"""Of each of the three stages."""
KILLS_IN_A_ROW = 5
IMAGE_BYTES = 32 * 2**20
FORGETFUL = "loop,data=writeback,noauto_da_alloc,commit=1"


@pytest.mark.parametrize("stage", STAGES)
def test_kills(stage: str, bench: Bench, tmp_path: Path) -> None:
    rng, kills, number = random.Random(f"kills {stage}"), 0, 0
    while kills < KILLS:
        run, number = tmp_path / str(number), number + 1
        longest = 0.5  # seconds, at first: what is killed at once gets nowhere
        for _ in range(min(KILLS_IN_A_ROW, KILLS - kills)):
            process = child(bench.shared, STAGES[stage], [run])
            process.join(rng.uniform(0.1, longest))
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
                kills += 1
            process.join()
            longest *= 1.7
        run_through(bench.shared, STAGES[stage], [run])
        assert outcome(run) == bench.untouched[stage], log_of(run)


def _cannot() -> str | None:
    """Why no power can be cut here; `None` where it can."""
    if os.geteuid() != 0:
        return "needs root, to mount an image"
    if shutil.which("mkfs.ext4") is None:
        return "needs mkfs.ext4 (Debian: apt-get install e2fsprogs)"
    with _scratch() as folder:
        image = _make_image(folder)
        found = subprocess.run(
            ["mount", "-o", FORGETFUL, str(image), str(folder / "mnt")], capture_output=True, text=True
        )
        if found.returncode != 0:
            return f"images cannot be mounted here: {found.stderr.strip()}"
        subprocess.run(["umount", str(folder / "mnt")], check=True)
    return None


@contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * CUTS * IMAGE_BYTES
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        (Path(folder) / "mnt").mkdir()
        yield Path(folder)


def _make_image(folder: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix="image-")  # a new one: a loop device may linger on an old one
    os.ftruncate(handle, IMAGE_BYTES)
    os.close(handle)
    image = Path(name)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    return image


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-o", FORGETFUL, str(image), str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _cut(image: Path, copy: Path) -> None:
    """Copy an image as it is at one moment: twice the same, so nothing was written meanwhile."""
    again = copy.with_suffix(".again")
    for target in (copy, again):
        subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)
    while subprocess.run(["cmp", "-s", str(copy), str(again)]).returncode != 0:
        copy.unlink()
        again.rename(copy)
        subprocess.run(["cp", "--sparse=always", str(image), str(again)], check=True)
    again.unlink()


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder for images, with a place to mount them at."""
    if (reason := _cannot()) is not None:
        pytest.skip(reason)
    with _scratch() as folder:
        yield folder


def test_the_file_system_forgets_what_was_not_synced(disk: Path) -> None:
    """Otherwise the next test would prove nothing: a mark is there, and the file that it vouches for is empty."""
    image = _make_image(disk)
    with _mounted(image, disk / "mnt") as folder:
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 400)
        (folder / "complete").touch()
        time.sleep(2.5)
        _cut(image, disk / "cut")
    with _mounted(disk / "cut", disk / "mnt") as folder:
        assert (folder / "complete").exists()
        assert (folder / "model.safetensors").read_bytes() != bytes(range(256)) * 400


@pytest.mark.parametrize("stage", STAGES)
def test_power_cuts(stage: str, bench: Bench, disk: Path, tmp_path: Path) -> None:
    rng, cuts = random.Random(f"cuts {stage}"), list[Path]()
    while len(cuts) < CUTS:
        image = _make_image(disk)
        with _mounted(image, disk / "mnt") as folder:
            process = child(bench.shared, STAGES[stage], [folder / "run"])
            while process.exitcode is None and len(cuts) < CUTS:
                process.join(rng.uniform(0.05, 0.6))
                cuts.append(disk / f"{stage}-{len(cuts)}")
                _cut(image, cuts[-1])
            process.join()
            assert process.exitcode == 0
        image.unlink()
    for cut in cuts:
        with _mounted(cut, disk / "mnt") as folder:
            run_through(bench.shared, STAGES[stage], [folder / "run"])
            assert outcome(folder / "run") == bench.untouched[stage], log_of(folder / "run")
        cut.unlink()
