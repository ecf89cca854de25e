"""`accelerate launch` for the ranks of a stage, without its footer.

Called as `python -m pipeline.runner.launcher SCRATCH ARGUMENTS…`.

When a rank fails, torch's launcher ends the others and prints a table of exit codes over the error. Here the failure is
written down for the runner, which shows the error itself (see `pipeline.runner.ranks`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.hosts import same, unlike
from pipeline.runner import ranks
from pipeline.runner.ranks import Failure
from pipeline.runner.worker import DISK_FULL

UNLIKE = os.EX_CONFIG
"""Exit code on a host that has other versions or files than the first one of its stage."""


def main() -> None:
    """Start the ranks, wait for them, and end with 1 if one of them failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    scratch, arguments = Path(sys.argv[1]), launch_command_parser().parse_args(sys.argv[2:])
    if arguments.machine_rank and (told := differences(scratch)):
        sys.stderr.write("\n".join((*told, "")))
        sys.exit(UNLIKE)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        ranks.first(scratch, first(error.failures, ranks.reported(scratch)), arguments.machine_rank or 0)
        full = any(failure.exitcode == DISK_FULL for failure in error.failures.values())
        sys.exit(DISK_FULL if full else 1)


def differences(scratch: Path) -> list[str]:
    """What this host has otherwise than the first one of a stage, a line each."""
    here: dict[str, str] = json.loads((scratch / "job.json").read_text(encoding="utf-8")).get("alike", {})
    files = (Path(name) for name in here if name.startswith("/"))
    return list(unlike(socket.gethostname(), same(files), "the first host", here)) if here else []


def first(failures: Mapping[int, Any], reported: list[Failure]) -> Failure:
    """The failure behind the others.

    Args:
        failures: rank -> torch's `ProcessFailure`, of every rank that had failed when the launcher looked.
        reported: what ranks said themselves, the earliest first. One that was killed said nothing.
    """
    told = {failure.rank for failure in reported}
    silent = [
        Failure(rank, one.timestamp, signal=signal.Signals(-one.exitcode).name if one.exitcode < 0 else "")
        for rank, one in sorted(failures.items())
        if rank not in told
    ]
    killed = [failure for failure in silent if failure.killed]
    left = [failure for failure in silent if not failure.signal]  # what follows another's end reports or is signalled
    return (killed or left or reported or silent)[0]


if __name__ == "__main__":
    main()
