"""Chunks of a stage's sampling as files, made here or by another host that shares the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.context import Share
from pipeline.files import durable
from pipeline.files.rows import write_rows

logger = logging.getLogger(__name__)

AWAIT_SECONDS = 1.0
"""Between two looks for a chunk that another host makes; the runner ends this one if that host is lost."""

Sampled = TypeVar("Sampled")


def files(
    count: int,
    folder: Path,
    share: Share,
    sample: Callable[[int], Sampled],
    lines: Callable[[int, Sampled], Iterable[Mapping[str, Any]]],
    ahead: bool = False,
) -> Iterator[Path]:
    """The sealed files of all chunks in order, each once it is there: made here, or by the host whose turn it is.

    Args:
        count: how many there are.
        folder: of their files.
        share: whose turn it is: chunks go round among the hosts.
        sample: the first part of the work on a chunk, by its number.
        lines: the second part: the lines of the file, from what was sampled.
        ahead: whether the first part of this host's next chunk is done while a thread does the second part of one.
    """

    def write(number: int, sampled: Sampled) -> None:
        write_rows(paths[number], lines(number, sampled))
        durable.seal_file(paths[number])

    durable.make_folder(folder)
    paths = [folder / f"{number:05d}.jsonl" for number in range(count)]
    writing: dict[int, Future[None]] = {}
    own = share.number  # the next chunk that is made here
    with ThreadPoolExecutor(1) as writer:
        for number, path in enumerate(paths):
            while own < min(count, number + share.hosts + ahead):  # not later than others make theirs
                for done in [future for future in writing.values() if future.done()]:
                    done.result()  # what went wrong is told before more is sampled
                if not whole(paths[own]):
                    sampled = sample(own)
                    if ahead:
                        writing[own] = writer.submit(write, own, sampled)
                    else:
                        write(own, sampled)
                own += share.hosts
            if number in writing:
                writing.pop(number).result()
            elif number % share.hosts != share.number:
                while not (path.with_name(path.name + durable.SEAL).exists() and whole(path)):
                    time.sleep(AWAIT_SECONDS)
            yield path


def whole(path: Path) -> bool:
    """Whether a chunk is there as it was written; a damaged one is reported, and sampled again with the same seed."""
    fault = durable.file_damage(path)
    if fault is not None and (path.exists() or path.with_name(path.name + durable.SEAL).exists()):
        logger.warning("%s is damaged (%s): its prompts are sampled again", path, fault)
    return fault is None
