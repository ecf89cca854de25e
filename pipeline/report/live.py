"""A report that is served on this machine alone, and follows its run: `zero2r1 report --watch RUN`.

The page asks every two seconds whether there is something new, and is written anew only if files of the run have
changed. Drawing takes at most a tenth of the time, because the run wants the processor.

Other websites must not read it. A name of theirs that points to this machine (DNS rebinding) is refused by the `Host`
that the browser sends; a script of theirs that loads a file of samples, by `Sec-Fetch-Site` and by the resource policy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from pipeline.artifacts import RUN_RECIPE, RUN_RECORD, RecordError
from pipeline.report.page import write_report
from pipeline.report.store import FOLDER

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
PORT = 8021
HOSTS = frozenset({ADDRESS, "localhost", "[::1]"})
"""Names under which a browser may ask, with any port: `ssh -L` changes it."""
LEAST_PAUSE, SHARE = 2.0, 0.1
"""Seconds between two writings at least, and the share of the time that they may take."""
WATCHED = (
    RUN_RECORD,
    RUN_RECIPE,
    "stages/*/*/manifest.json",
    "scratch/*/job.json",
    "scratch/*/events.jsonl",
    "scratch/*/log.txt",
    "scratch/*/samples.jsonl",
)
SAMPLES = re.compile(rf"/{FOLDER}/((?:index|texts)-[0-9a-f]{{16}}\.js)")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class LiveReport:
    """The report of a run in a folder of its own, written anew when it is asked for and the run has gone on.

    Args:
        run: folder of the run.
        folder: where the report is written.
        clock: tells seconds.

    Attributes:
        share: of the time, that writing may take.
    """

    def __init__(self, run: Path, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.folder, self._clock, self.share = run, folder, clock, SHARE
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] = ()
        self._next = 0.0
        self.page = b""
        self.version = ""
        self.written = ""
        self.trouble = ""

    def refresh(self) -> None:
        """Write the report anew if the run has gone on, and the last time is long enough ago."""
        with self._lock:
            if self._clock() < self._next or (now := self._signature()) == self._seen:
                return
            started = self._clock()
            try:
                self.page = write_report(self.run, self.folder, live=True).read_bytes()
            except (
                OSError,
                RecordError,
            ) as error:  # a stage is being published, or the record written: soon it is there
                self.trouble = f"the run cannot be read: {error}"
                log.warning("%s", self.trouble)
            else:
                self._seen, self.trouble = now, ""
                self.version = hashlib.sha256(self.page).hexdigest()[:16]
                self.written = time.strftime("%H:%M:%S")
            took = self._clock() - started
            self._next = self._clock() + max(LEAST_PAUSE, took / self.share)

    def _signature(self) -> tuple[Any, ...]:
        found = []
        for pattern in WATCHED:
            for path in sorted(self.run.glob(pattern)):
                try:
                    known = path.stat()
                except FileNotFoundError:  # published meanwhile
                    continue
                found.append((str(path), known.st_size, known.st_mtime_ns))
        return tuple(found)


class Server(ThreadingHTTPServer):
    """Serves a live report on the loopback address.

    Args:
        run: folder of the run.
        port: where; 0 for any free one.

    Attributes:
        url: the page's address.

    Raises:
        OSError: the port is taken, or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, run: Path, port: int = PORT) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self._folder = tempfile.TemporaryDirectory(prefix="zero2r1-report-")
        self.report = LiveReport(run, Path(self._folder.name))
        self.url = f"http://{ADDRESS}:{self.server_port}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server_close()
        self._folder.cleanup()


class _Handler(BaseHTTPRequestHandler):
    """Answers for the page, its state and its samples, to this machine's own browser."""

    server: Server
    server_version, sys_version = "zero2r1", ""

    def do_GET(self) -> None:
        """Answer a request."""
        if (refused := self._refusal()) is not None:
            self._answer(HTTPStatus.FORBIDDEN, refused.encode(), "text/plain; charset=utf-8")
            return
        path, report = urlsplit(self.path).path, self.server.report
        if path in ("/", "/report.html"):
            report.refresh()
            self._answer(HTTPStatus.OK, report.page, "text/html; charset=utf-8")
        elif path == "/state":
            report.refresh()
            state = {"version": report.version, "written": report.written, "trouble": report.trouble}
            self._answer(HTTPStatus.OK, json.dumps(state).encode(), "application/json")
        elif (named := SAMPLES.fullmatch(path)) and (file := report.folder / FOLDER / named[1]).is_file():
            self._answer(HTTPStatus.OK, file.read_bytes(), "text/javascript; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"no such page\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET

    def _refusal(self) -> str | None:
        """Why a request is not answered: it was made for another website."""
        host = self.headers.get("Host", "").lower()
        if host.removesuffix(f":{_port(host)}") not in HOSTS:
            return "this report is served to this machine alone, as 127.0.0.1 or localhost\n"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "another website asked for this\n"
        return None

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line every two seconds is no news."""


def _port(host: str) -> str:
    found = re.search(r":(\d+)$", host)
    return found[1] if found else ""
