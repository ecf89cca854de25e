"""The runner's side: starts a process for each tracker, tells once what goes wrong with it, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import artifacts
from pipeline.files import durable
from pipeline.recipe import Recipe
from pipeline.runner.observer import Observer
from pipeline.schema import environment
from pipeline.schema.track import Track
from pipeline.tracking.mirror import FINISH_SECONDS, FOLDER, Progress
from rewards.parent import end_group, ending

RETRY_SECONDS = 300.0
"""After which a tracker that has failed is tried again, without another word if it fails again."""
INTERRUPTED_SECONDS = 10.0
"""How long trackers may take to end after Ctrl-C."""
LOCAL = (".log", ".txt", ".json", ".yaml")
"""How files end that are looked through for values that must not stand in them."""


class Mirrors:
    """The processes that mirror a run to the trackers of its recipe.

    Args:
        recipe: the recipe; its run is recorded already.
        run: the run's folder.
        observer: told when a tracker fails, once.
    """

    def __init__(self, recipe: Recipe, run: Path, observer: Observer) -> None:
        self.run, self.observer = run, observer
        configs = recipe.stages.values()
        self.hidden = {key: name for one in configs for key, name in environment.secrets(one, os.environ).items()}
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.failed: dict[str, float] = {}
        self.told: set[str] = set()
        self.specs = {spec.use: spec for spec in recipe.track}
        for spec in recipe.track:
            if self._wanted(spec):
                self._start(spec)

    def _wanted(self, spec: Track) -> bool:
        """Whether anything of the run is missing in a tracker."""
        fingerprints = [stage["fingerprint"] for stage in artifacts.record(self.run)["stages"]]
        try:
            return not Progress(self.run / FOLDER / f"{spec.use}.json").complete(fingerprints)
        except durable.DamageError as error:
            self._tell(spec.use, f"{error}: delete it, and {spec.use} gets the run anew")
            return False

    def _start(self, spec: Track) -> None:
        folder = self.run / FOLDER
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pipeline.tracking.mirror", str(self.run)]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        with self._log(spec.use).open("ab") as sink:
            started = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                text=True,
                start_new_session=True,
            )
        assert started.stdin is not None
        started.stdin.write(json.dumps({"track": environment.recorded(spec), "hidden": self.hidden}) + "\n")
        started.stdin.flush()
        self.running[spec.use] = started

    def look(self) -> None:
        """Tell of trackers that have failed, and try those again whose failure is some minutes old."""
        for name, process in list(self.running.items()):
            if (code := process.poll()) is not None:
                self._failed(name, ending(code))
        for name, since in list(self.failed.items()):
            if time.monotonic() - since > RETRY_SECONDS:
                del self.failed[name]
                self._start(self.specs[name])

    def close(self, interrupted: bool = False) -> None:
        """Have each tracker take what is there and end; one that does not in time is killed.

        Args:
            interrupted: whether somebody waits at the keyboard.
        """
        try:
            for process in self.running.values():
                assert process.stdin is not None
                process.stdin.close()
            seconds = INTERRUPTED_SECONDS if interrupted else FINISH_SECONDS + INTERRUPTED_SECONDS
            deadline = time.monotonic() + seconds
            for name, process in list(self.running.items()):
                try:
                    code = process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    code = -signal.SIGKILL
                if code != 0:
                    late = code in (-signal.SIGKILL, -signal.SIGALRM)
                    self._failed(name, f"did not end in {seconds:g} s" if late else ending(code))
        finally:
            for process in self.running.values():
                end_group(process.pid)
            for file in (self.run / FOLDER).rglob("*"):
                if file.suffix in LOCAL:
                    environment.scrub(file, self.hidden)

    @classmethod
    @contextlib.contextmanager
    def of(cls, recipe: Recipe, run: Path, observer: Observer) -> Iterator[Mirrors]:
        """Have the recipe's trackers follow the run; they get what is there also where it ends with an error."""
        mirrors, interrupted = cls(recipe, run, observer), False
        try:
            yield mirrors
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            mirrors.close(interrupted)

    def _failed(self, name: str, how: str) -> None:
        process = self.running.pop(name)
        end_group(process.pid)
        self.failed[name] = time.monotonic()
        environment.scrub(self._log(name), self.hidden)
        said = self._log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = f" ({said[-1].strip()})" if said and "did not end" not in how else ""
        more = f"its log is {self._log(name)}. Stages go on, and when the recipe runs again it gets what it misses"
        self._tell(name, f"{how}{why}; {more}")

    def _tell(self, name: str, text: str) -> None:
        if name not in self.told:
            self.told.add(name)
            self.observer.said(f"the tracker {name} {text}")

    def _log(self, name: str) -> Path:
        return self.run / FOLDER / f"{name}.log"
