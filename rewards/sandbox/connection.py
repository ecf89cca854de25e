"""Connecting this process to a Ray cluster, or saying in a line why that cannot be."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import rewards

AUTO = "auto"
"""Instead of an address: that of the cluster that this host is part of."""
SILENCE = {"RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*", "RAY_SCHEDULER_EVENTS": "0"}
"""Variables that keep Ray from printing logs of its hosts between our lines; read when it is imported."""
CONNECT_SECONDS = 10.0
"""How long the head may take to accept a connection."""
MISMATCH = "Version mismatch"
"""How Ray begins to say that its or Python's version is another one on the head."""
START = "start Ray on every host (`ray start --head`, then `ray start --address=HEAD:6379`), this one included"


def connect(address: str) -> None:
    """Connect this process to a cluster; the package ray is there.

    Args:
        address: `HOST:PORT` of its head, or `auto`.

    Raises:
        ConnectionError: there is no cluster there, it has other versions, or this host is not part of it.
    """
    os.environ.update(SILENCE)
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

    head = _remembered() if address == AUTO else address
    if head is not None:
        _listens(head)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if head is not None:
            GcsClient(address=head)  # where something else listens, it gives up after 40 s, and `ray.init` never does
        # Workers import from the current folder before everything else: it must not be one of the user's. Nothing else
        # of this process relies on it meanwhile: the lease's path is absolute.
        with contextlib.chdir(Path(rewards.__path__[0]).parent):
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ray.exceptions.RayError as error:
        raise ConnectionError(f"no head of a Ray cluster answers at {head} ({_reason(error)}): {START}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = _reason(error)
        fix = "install the same versions on all hosts" if reason.startswith(MISMATCH) else START
        raise ConnectionError(f"{reason}: {fix}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put in one of its own


def _remembered() -> str | None:
    """The head that `auto` stands for, which may be gone; `None` if Ray knows of none."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(AUTO)
    except (ConnectionError, ValueError):  # `ray.init` says why
        return None
    return None if found in (None, AUTO) else str(found)


def _listens(address: str) -> None:
    """Find out whether somebody listens at an address; Ray itself tries for minutes. Raises ConnectionError."""
    try:
        where = urlsplit(f"//{address}")
        host, port = where.hostname, where.port
    except ValueError:
        host = port = None
    if not host or port is None or where.netloc != address:
        raise ConnectionError(
            f"{address!r} is neither auto nor the HOST:PORT of a cluster's head, such as 10.0.0.1:6379. Run zero2r1 on"
            " a host of the cluster: through a proxy, stages would not end with their run"
        )
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers there ({address}: {error}): {START}") from error


def _reason(error: Exception) -> str:
    """Why Ray refuses, in one line; two sets of versions take it several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mismatch = lines and lines[0].startswith(MISMATCH)
    return " ".join(lines if mismatch else lines[:1]).removesuffix(".") or type(error).__name__
