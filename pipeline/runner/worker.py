"""The process of one stage: `python -m pipeline.runner.worker job.json`.

The runner writes the job and starts this, directly or through `accelerate launch`; the stage fills its output folder
and its metrics come back in `outcome.json`. If the runner dies, so does the stage: its checkpoints are what counts.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import gpus
from pipeline.artifacts import MANIFEST
from pipeline.context import Share, StageContext
from pipeline.files import durable
from pipeline.files.lease_folder import end_without
from pipeline.files.locks import stage_lock
from pipeline.runner import ranks
from pipeline.schema import environment
from pipeline.schema.pieces import StageConfig
from pipeline.schema.task import TaskSpec
from pipeline.stages.registry import config_class, preload, run_function
from rewards.parent import end_with_parent, guard_group

OUTCOME = "outcome.json"
SHARED = "ZERO2R1_HOSTS"
"""Variable that says how many hosts share a stage's sampling; `RANK` says which of them this is."""
AWAIT_SECONDS = 0.1
EXIT_SECONDS = 60.0
"""For which a stage's process may stay when its work is done: engines and trackers end in seconds."""
DISK_FULL = os.EX_IOERR
"""Exit code of a stage that ended because its disk, or its user's quota, is full."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a stage's process needs to know; lies as `job.json` in its scratch folder.

    The file has no values of environment variables; those are in the process's own environment.

    Attributes:
        stage: the stage's name.
        config: its resolved config.
        inputs: stage name -> folder of its artifact.
        base: folder of the recipe.
        tasks: the recipe's task definitions.
        seed: seed of the stage.
        evaluated: the tasks that the recipe scores.
        awaited: those of the inputs that are still being published.
        lease: the file of the runner's lease of the run; see `pipeline.files.lease_folder`.
        alike: what further hosts must have in common with this one, if ranks of theirs take part without a cluster;
            see `pipeline.cluster.hosts.same`.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    base: str
    tasks: Mapping[str, Mapping[str, Any]]
    seed: int
    evaluated: Sequence[Mapping[str, Any]] = ()
    awaited: Sequence[str] = ()
    lease: str = ""
    alike: Mapping[str, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> None:
    """Run the stage of a job file.

    One that is started early has two arguments more: a copy of the job, and the path of a sign to wait for first.
    """
    path, runner, *early = sys.argv[1:] if argv is None else argv
    _bind(int(runner))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup and in background jobs
    scratch = Path(path).absolute().parent  # a reward, say, may change the folder in which this process works
    if early:
        copy, sign = map(Path, early)
        _wait(copy, sign, scratch / "log.txt")
    job = Job(**environment.restored(json.loads(Path(path).read_text(encoding="utf-8")), os.environ))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with stage_lock(scratch):
        gpus.keep()
        _end_without(int(runner))
        if job.lease:
            end_without(Path(job.lease).absolute())
        if (rank := ranks.number()) is not None:
            sys.excepthook = lambda kind, error, trace: _leave(scratch, error)
            ranks.Stand(scratch, rank).start()
        try:
            _run(job, scratch)
            end_within(EXIT_SECONDS)
            if rank is not None:
                ranks.done(scratch, rank)
        except Exception as error:
            if not durable.disk_full(error):
                if rank is None and ranks.is_ours(error):
                    ranks.report(scratch, error)
                raise
            logging.getLogger(__name__).error("%s", error, exc_info=error)
            sys.exit(DISK_FULL)


def end_within(seconds: float) -> None:
    """End this process, whose work is done, if threads that a reward, say, has left behind keep it from its end."""

    log = logging.getLogger(__name__)

    def end() -> None:
        left = [one.name for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
        named = f", with the threads {', '.join(left)}" if left else ""
        log.warning("the work is done, and this process has not ended in %g s; it ends now%s", seconds, named)
        os._exit(0)

    last = threading.Timer(seconds, end)
    last.daemon = True
    last.start()


def _bind(runner: int) -> None:
    """End with the process that started this one: the runner, or a launcher that ends with it; and so the group."""
    end_with_parent(os.getppid())
    _end_without(runner)
    if os.getpgrp() == os.getpid():
        guard_group()


def load(job: Path) -> None:
    """Import the libraries that the stage of a job needs."""
    config = json.loads(job.read_text(encoding="utf-8"))["config"]
    preload(config_class(str(config["kind"])).model_validate(config))


def _wait(job: Path, sign: Path, log: Path) -> None:
    """Load what the stage of a job needs, wait for the sign, and go on in the stage's own log."""
    load(job)
    while not sign.exists():
        time.sleep(AWAIT_SECONDS)
    with log.open("ab") as sink:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(sink.fileno(), stream.fileno())


def _run(job: Job, scratch: Path) -> None:
    config = config_class(str(job.config["kind"])).model_validate(job.config)
    number, hosts = ranks.number() or 0, int(os.environ.get(SHARED, "1"))
    mine = f"-{number}" if hosts > 1 and number else ""  # what another host than the first leaves is only its own
    output = scratch / f"output{mine}"
    if mine:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
    context = StageContext(
        name=job.stage,
        config=config,
        inputs={name: Path(folder) for name, folder in job.inputs.items()},
        output=output,
        scratch=scratch,
        base=Path(job.base),
        seed=job.seed,
        events=scratch / f"events{mine}.jsonl",
        tasks=job.tasks,
        evaluated=[TaskSpec.model_validate(spec) for spec in job.evaluated],
        share=Share(number, hosts) if hosts > 1 else Share(),
    )
    run = run_function(config.kind)
    if job.awaited:
        _await([context.inputs[name] for name in job.awaited], config)
    try:
        outputs = run(context)
    except SystemExit as error:  # of a reward, task or corpus: it would look like an end that went well
        raise RuntimeError(f"code that the stage called left by sys.exit({error.code!r})") from error
    if int(os.environ.get("RANK", "0")) == 0:
        device, packages = _surroundings()
        work = round(context.work.seconds, 3)
        outcome = {"metrics": dict(outputs.metrics), "device": device, "packages": packages, "work": work}
        outcome["memory"] = _memory()
        durable.write(scratch / OUTCOME, json.dumps(outcome))


def _await(artifacts: Sequence[Path], config: StageConfig) -> None:
    """Wait for artifacts that are being hashed, and meanwhile load what takes longest: the libraries."""
    preload(config)
    while not all((artifact / MANIFEST).is_file() for artifact in artifacts):
        time.sleep(AWAIT_SECONDS)


def _leave(scratch: Path, error: BaseException) -> None:
    """End a rank that has raised an error, without waiting for others at its exit as communicators do."""
    ranks.report(scratch, error)
    traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


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


def _memory() -> dict[str, int]:
    """The most memory that this process has had, in bytes: of the machine (`host`), and of its GPU (`gpu`)."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = {"host": kilobytes * (1 if sys.platform == "darwin" else 1024)}
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        most["gpu"] = torch.cuda.max_memory_reserved()
    return most


if __name__ == "__main__":
    main()
