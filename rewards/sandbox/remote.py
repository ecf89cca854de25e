"""Sandboxes on other machines, by explicit configuration: SandboxFusion-compatible servers, and E2B.

They run one Python program and return what it printed. Programs that read and print are sent as they are; lists of
calls are sent with the runner that makes them (`rewards.sandbox.inside.play`), which prints its results. Test suites
that question a solution in another process need the local sandbox.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.sandbox.bubblewrap import SandboxError
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.pool import Payload, read_records
from rewards.sandbox.worker import Ending, Outcome

REMOTE_WORKERS = 16
"""Requests at one time, unless said otherwise: they wait for the network, not for cores of this machine."""
SLACK_S = 30.0
"""Seconds that a server may take beyond the program's own time, for its queue."""

_INSIDE = Path(__file__).parent / "inside"
_HARNESSED = ("values", "play", "helpers", "questions")
"""What the server is sent of that, each after what it imports."""
_HARNESS = """
import json, os, sys, types
for name in ("rewards", "rewards.sandbox", "rewards.sandbox.inside"):
    sys.modules[name] = types.ModuleType(name)
for name, source in {sources!r}.items():
    module = types.ModuleType("rewards.sandbox.inside." + name)
    setattr(sys.modules["rewards.sandbox.inside"], name, module)
    sys.modules[module.__name__] = module
    exec(source, module.__dict__)
from rewards.sandbox.inside import play, questions
os.dup2(1, play.RESULTS_FD)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
play.complete_builtins()
play.play(json.loads({payload!r}), {{**play.KINDS, "rehearse": questions.rehearse}})
"""


class RemoteSandbox(ABC):
    """What remote sandboxes share: turning a job into one program, and its output into an outcome.

    Args:
        limits: what a job may use; the server may know only the time.
        workers: requests at one time.
    """

    def __init__(self, limits: Limits, workers: int | None = None) -> None:
        self.limits, self.workers = limits, workers or REMOTE_WORKERS

    @abstractmethod
    def execute(self, code: str, stdin: str) -> Outcome:
        """Run one program and give its exit code and output; `records` stay empty.

        Raises:
            OSError: the server cannot be reached, or failed.
        """

    def run(self, payload: Payload, solution: Payload | None = None) -> Outcome:
        """Run a job; see `Sandbox.run`."""
        if solution is not None:
            return Outcome(Ending.BROKEN, detail="test suites that stay whole need the local sandbox")
        nonce = secrets.token_hex(16)
        plain = payload["kind"] == "program"
        code = payload["code"] if plain else _harness({**payload, "nonce": nonce})
        try:
            outcome = self.execute(code, payload.get("stdin", "") if plain else "")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Outcome(Ending.BROKEN, detail=f"the remote sandbox failed: {type(error).__name__}: {error}")
        if plain or outcome.ending is not Ending.EXITED:
            return outcome
        records = read_records(outcome.stdout, nonce)
        return Outcome(Ending.EXITED, outcome.code, b"", records[1:] if records else None, outcome.ms)

    def close(self) -> None:  # noqa: B027  # for all of them
        """Nothing to end: every job has a sandbox of its own."""


class SandboxFusion(RemoteSandbox):
    """A server that speaks SandboxFusion's HTTP API (`POST /run_code`).

    Args:
        url: its address, such as `http://sandbox:8080`.
        limits: what a job may use.
        workers: requests at one time.
    """

    def __init__(self, url: str, limits: Limits, workers: int | None = None) -> None:
        super().__init__(limits, workers)
        if not url.startswith(("http://", "https://")):
            raise SandboxError(
                f"backend sandbox_fusion needs the url of a server, such as http://host:8080, not {url!r}"
            )
        self.url = url.rstrip("/") + "/run_code"

    def execute(self, code: str, stdin: str) -> Outcome:
        """Run one program there."""
        request: Mapping[str, Any] = {
            "language": "python",
            "code": code,
            "stdin": stdin,
            "run_timeout": self.limits.wall_s,
            "memory_limit_MB": self.limits.memory_mb,
        }
        call = urllib.request.Request(self.url, json.dumps(request).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=self.limits.wall_s + SLACK_S) as reply:
            answer = json.load(reply)
        run = answer.get("run_result")
        if answer.get("status") not in ("Success", "Failed") or run is None:
            raise OSError(f"status {answer.get('status')}: {answer.get('message')}")
        ending = Ending.WALL if run["status"] == "TimeLimitExceeded" else Ending.EXITED
        ms = 1000 * float(run.get("execution_time") or 0.0)
        return Outcome(ending, int(run.get("return_code") or 0), (run.get("stdout") or "").encode(), ms=ms)


class E2B(RemoteSandbox):
    """Sandboxes of e2b.dev, one a job, without internet access; the key is read from the variable E2B_API_KEY.

    Args:
        limits: what a job may use; E2B enforces the time, its template the rest.
        workers: sandboxes at one time.
    """

    def __init__(self, limits: Limits, workers: int | None = None) -> None:
        super().__init__(limits, workers)
        try:
            import e2b
        except ImportError as error:
            raise SandboxError("backend e2b needs its client: pip install 'e2b>=2.0'") from error
        self._e2b: Any = e2b

    def execute(self, code: str, stdin: str) -> Outcome:
        """Run one program in a fresh sandbox."""
        started = time.monotonic()
        try:
            with self._e2b.Sandbox.create(
                timeout=int(self.limits.wall_s + SLACK_S), allow_internet_access=False
            ) as box:
                box.files.write("/tmp/main.py", code)
                box.files.write("/tmp/stdin", stdin)
                end = box.commands.run("python3 /tmp/main.py < /tmp/stdin", timeout=self.limits.wall_s)
        except self._e2b.CommandExitException as error:  # it left with another exit code than 0
            end = error
        except self._e2b.TimeoutException:
            return Outcome(Ending.WALL, ms=(time.monotonic() - started) * 1000)
        except self._e2b.SandboxException as error:
            raise OSError(str(error)) from error
        return Outcome(Ending.EXITED, end.exit_code, end.stdout.encode(), ms=(time.monotonic() - started) * 1000)


def _harness(payload: Payload) -> str:
    sources = {name: (_INSIDE / f"{name}.py").read_text(encoding="utf-8") for name in _HARNESSED}
    return _HARNESS.format(sources=sources, payload=json.dumps(payload))
