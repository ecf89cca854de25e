"""The scratch folder of a stage: made ready for an attempt, and published once an attempt has succeeded."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.files import durable
from pipeline.files.locks import await_ghosts
from pipeline.records import kept
from pipeline.runner import longer, ranks, recording
from pipeline.runner.graph import Node
from pipeline.runner.process import EVENTS, LOGS, StageProcess
from pipeline.runner.worker import OUTCOME

log = logging.getLogger(__name__)


def prepare(run: Path, node: Node) -> tuple[Path, int]:
    """Make the scratch folder of a stage ready for an attempt, once no process of an earlier one is left.

    Returns:
        The folder, and the number of the attempt, from 1.
    """
    folder = artifacts.scratch(run, node.name, node.fingerprint)
    _take_over(run, node, folder)
    durable.make_folder(folder)
    await_ghosts(folder, node.name)
    longer.remember(folder, node.identity)
    shutil.rmtree(folder / "output", ignore_errors=True)
    (folder / "output").mkdir(parents=True)
    (folder / OUTCOME).unlink(missing_ok=True)
    ranks.clear(folder)
    attempt = count_attempt(folder / "attempts")
    durable.whole_lines(folder / EVENTS)
    return folder, attempt


def _take_over(run: Path, node: Node, folder: Path) -> None:
    """Have a longer training go on from what a shorter one has left, if it may."""
    shorter = None if folder.exists() else longer.find(run, node.name, node.config, node.identity)
    if shorter is not None and shorter.anew is None and shorter.folder is not None:
        await_ghosts(shorter.folder, node.name)
        longer.take_over(shorter, folder)


def count_attempt(counter: Path) -> int:
    """One more than the attempts that a stage's scratch folder counts."""
    text = counter.read_text(encoding="utf-8", errors="replace") if counter.exists() else "0"
    if not text.isdecimal():
        log.warning("%s is empty or broken: attempts are counted from 1 again", counter)
    attempt = 1 + (int(text) if text.isdecimal() else 0)
    durable.write(counter, str(attempt))
    return attempt


def publish(process: StageProcess, run: Path, check: Callable[[], None]) -> Artifact:
    """Make an artifact of what an attempt has left; hashes gigabytes.

    Args:
        process: the attempt; it has ended well.
        run: the run's folder.
        check: raises if the run has been taken over.
    """
    check()
    node, finished = process.node, time.time()
    outcome = json.loads((process.scratch / OUTCOME).read_text(encoding="utf-8"))
    output = process.scratch / "output"
    for path in (process.scratch / EVENTS, *process.scratch.glob(LOGS)):
        if path.exists():
            shutil.copy2(path, output / path.name)
    kept.publish(process.scratch, run)
    target = artifacts.folder(run, node.name, node.fingerprint)
    artifact = artifacts.publish(output, target, recording.manifest(process, outcome, finished), check)
    longer.keep(run, node.name, node.fingerprint)
    shutil.rmtree(process.scratch, ignore_errors=True)  # what is left, `artifacts.clean` removes
    return artifact
