"""Chunks of a stage's sampling as files, made here or by another host that shares the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.context import Share
from pipeline.files import durable

logger = logging.getLogger(__name__)

AWAIT_SECONDS = 1.0
"""Between two looks for a chunk that another host makes; the runner ends this one if that host is lost."""


def made(number: int, chunks: int, folder: Path, share: Share, make: Callable[[int, Path], None]) -> Path:
    """The file of a chunk, once it is there: made here, or by the host whose turn it is.

    Args:
        number: the chunk's.
        chunks: how many there are.
        folder: of their files.
        share: whose turn it is: chunks go round among the hosts.
        make: makes one, by its number, as a sealed file.
    """
    path = folder / f"{number:05d}.jsonl"
    mine = number + (share.number - number) % share.hosts  # not later than others make this one
    ahead = folder / f"{mine:05d}.jsonl"
    if mine < chunks and not whole(ahead):
        make(mine, ahead)
    while mine != number and not (path.with_name(path.name + durable.SEAL).exists() and whole(path)):
        time.sleep(AWAIT_SECONDS)
    return path


def whole(path: Path) -> bool:
    """Whether a chunk is there as it was written; a damaged one is reported, and sampled again with the same seed."""
    fault = durable.file_damage(path)
    if fault is not None and (path.exists() or path.with_name(path.name + durable.SEAL).exists()):
        logger.warning("%s is damaged (%s): its prompts are sampled again", path, fault)
    return fault is None
