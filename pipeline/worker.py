"""The process of one stage: `python -m pipeline.worker job.json`.

The runner writes the job and starts this, directly or through `accelerate launch`; the stage fills its output folder
and its metrics come back in `outcome.json`. If the runner dies, so does the stage: its checkpoints are what counts.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.context import StageContext
from pipeline.stages.registry import config_class, run_function

OUTCOME = "outcome.json"
LOCK = "lock"
ORPHAN_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a stage's process needs to know; lies as `job.json` in its scratch folder.

    Attributes:
        stage: the stage's name.
        config: its resolved config.
        inputs: stage name -> folder of its artifact.
        base: folder of the recipe.
        tasks: the recipe's task definitions.
        seed: seed of the stage.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    base: str
    tasks: Mapping[str, Mapping[str, Any]]
    seed: int


def main(argv: list[str] | None = None) -> None:
    """Run the stage of a job file."""
    path, runner = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup and in background jobs
    scratch = Path(path).parent
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with (scratch / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        _end_without(int(runner))
        _run(job, scratch, int(runner))


def await_ghosts(scratch: Path) -> None:
    """Wait until no process of an earlier attempt is alive: each holds the lock, and ends soon after its runner."""
    with (scratch / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def _run(job: Job, scratch: Path, runner: int) -> None:
    threading.Thread(target=_die_with, args=(runner,), daemon=True).start()
    config = config_class(str(job.config["kind"])).model_validate(job.config)
    context = StageContext(
        name=job.stage,
        config=config,
        inputs={name: Path(folder) for name, folder in job.inputs.items()},
        output=scratch / "output",
        scratch=scratch,
        base=Path(job.base),
        seed=job.seed,
        events=scratch / "events.jsonl",
        tasks=job.tasks,
    )
    outputs = run_function(config.kind)(context)
    if int(os.environ.get("RANK", "0")) == 0:
        device, packages = _surroundings()
        outcome = {"metrics": dict(outputs.metrics), "device": device, "packages": packages}
        partial = scratch / (OUTCOME + ".part")
        partial.write_text(json.dumps(outcome), encoding="utf-8")
        partial.rename(scratch / OUTCOME)


def _die_with(runner: int) -> None:
    """End this stage when the runner is gone, so that a resumed run never meets its own ghost.

    The runner gave the stage a process group of its own: what the stage has started (pools, engines) ends with it.
    """
    while _alive(runner):
        time.sleep(ORPHAN_POLL_SECONDS)
    _end_without(runner)


def _end_without(runner: int) -> None:
    """End this stage if its own runner is gone: by now `job.json` may be that of the next one."""
    if _alive(runner):
        return
    logging.getLogger(__name__).error("the runner is gone; stopping (the same command resumes this stage)")
    os.killpg(0, signal.SIGKILL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not Path(f"/proc/{process}").exists() or "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def _surroundings() -> tuple[str, dict[str, str]]:
    """The device that was used, and the versions of the packages that shape results."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", "vllm", "math-verify", "zero2r1"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    device = f"CPU {platform.machine()}, {os.cpu_count()} cores"
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return device, packages


if __name__ == "__main__":
    main()
