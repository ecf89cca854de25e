"""The process that mirrors a run to one tracker: `python -m pipeline.tracking.mirror RUN`.

It reads what stages write into their `events.jsonl`, and remembers for each of their metrics the last step that the
tracker has had. A step that a stage repeats after a kill is older than that and is left out; so is everything that an
earlier process has passed on. What a tracker misses while it cannot be reached, it gets when the recipe runs again.

No tracker lets a value be taken back. So where an alarm takes a stage back (`health.on_alarm: rollback`), the steps
that it does anew are a series of their own, `zero-rollback-1/loss`, and those that it gave up stay where they are.

The runner says on standard input what to do, in a JSON line. The end of standard input is the end of the run, or of
the runner: what is there is passed on, and the process ends.
"""

from __future__ import annotations

import fcntl
import json
import math
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from pipeline import artifacts
from pipeline.files import durable
from pipeline.records.kept import ROLLBACK
from pipeline.runner.observer import NOTE
from pipeline.runner.process import EVENTS
from pipeline.schema import environment
from pipeline.schema.track import Track
from pipeline.tracking.trackers import Tracker, open_tracker

FOLDER = "track"
"""In the run's folder: what trackers write, what they have had, and their logs."""
LOOK_SECONDS = 1.0
FINISH_SECONDS = 60
"""How long a tracker may take to end: what it has still to upload is lost to it until the recipe runs again."""
FINAL = "final"
"""Name under which the numbers of a finished stage stand, once."""
VERSIONS = ("zero2r1", "torch", "transformers", "trl", "accelerate", "datasets", "vllm")
_SAID = {"step", "total", "time", NOTE}
_NOT_FINITE = ("nan", "inf", "-inf")


class Progress:
    """What a tracker has had of a run; lies in `track/<tracker>.json`.

    Args:
        path: the file.

    Attributes:
        key: names the tracker's run for ever.
        stages: fingerprint -> the stage's name there, how many of its notes, the last step of each metric, and the same
            after each rollback.

    Raises:
        durable.DamageError: it is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = durable.read_record(path) if path.exists() else {}
        self.key: str = found.get("key") or secrets.token_hex(6)
        self.stages: dict[str, dict[str, Any]] = found.get("stages", {})

    def of(self, name: str, fingerprint: str) -> dict[str, Any]:
        """That of a stage; one that runs anew with other settings has a name of its own, since its steps begin anew."""
        if fingerprint not in self.stages:
            taken = {stage["name"] for stage in self.stages.values()}
            called = f"{name}-{fingerprint[:6]}" if name in taken else name
            self.stages[fingerprint] = {"name": called, "notes": 0, "steps": {}}
        self.stages[fingerprint].setdefault("rollbacks", {})  # not there in records of older versions
        return self.stages[fingerprint]

    def complete(self, fingerprints: list[str]) -> bool:
        """Whether nothing of these stages is missing."""
        return all(FINAL in self.stages.get(one, {}).get("steps", {}) for one in fingerprints)

    def save(self) -> None:
        """Write it down."""
        durable.write_record(self.path, {"key": self.key, "stages": self.stages})


class Followed:
    """A stage whose events are passed on.

    Args:
        run: the run's folder.
        stage: its entry in the run's record.
        had: what the tracker has had of it; updated.
        hidden: values that must stand nowhere -> names.
    """

    def __init__(self, run: Path, stage: Mapping[str, Any], had: dict[str, Any], hidden: Mapping[str, str]) -> None:
        self.run, self.name, self.fingerprint = run, str(stage["name"]), str(stage["fingerprint"])
        self.had, self.hidden = had, hidden
        self.path = Path()
        self.read, self.notes, self.step, self.rollback = 0, 0, 0, 0

    def pass_on(self, tracker: Tracker) -> bool:
        """Give the tracker what it has not had; returns whether there was anything."""
        if FINAL in self.had["steps"]:
            return False
        folder = artifacts.folder(self.run, self.name, self.fingerprint)
        published = (folder / artifacts.MANIFEST).is_file()
        moved = False
        for event in self._events((folder if published else self._scratch()) / EVENTS):
            moved |= self._one(event, tracker)
        if published:
            metrics = durable.read_record(folder / artifacts.MANIFEST, hash_required=False).get("metrics", {})
            if values := dict(numbers(metrics, FINAL)):
                tracker.log(self.had["name"], self.step, time.time(), values)
            self.had["steps"][FINAL] = self.step
            moved = True
        return moved

    def _scratch(self) -> Path:
        return artifacts.scratch(self.run, self.name, self.fingerprint)

    def _events(self, path: Path) -> Iterator[Mapping[str, Any]]:
        """Whole lines since the last call; the file is read anew when it was published, restored or shortened."""
        try:
            with path.open("rb") as source:
                size = source.seek(0, 2)
                if path != self.path or size < self.read:
                    self.path, self.read, self.notes, self.rollback = path, 0, 0, 0
                source.seek(self.read)
                data = source.read(size - self.read)
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(environment.scrubbed(line, self.hidden))
            except ValueError:
                continue  # a line that a kill has cut; the runner goes on behind it
            if isinstance(event, dict):
                yield event

    def _one(self, event: Mapping[str, Any], tracker: Tracker) -> bool:
        step = event.get("step")
        if NOTE in event:
            self.notes += 1
            self.rollback = event.get(ROLLBACK, self.rollback)
            if self.notes <= self.had["notes"]:
                return False
            self.had["notes"] = self.notes
            back = f". From here its steps are {self._series()}" if ROLLBACK in event else ""
            tracker.note(self.had["name"], self.notes, f"{event[NOTE]}{back}")
            return True
        if not isinstance(step, int):
            return False
        self.step = max(self.step, step)
        steps = self.had["rollbacks"].setdefault(str(self.rollback), {}) if self.rollback else self.had["steps"]
        new = {name: value for name, value in measured(event).items() if step > steps.get(name, -1)}
        if new:
            tracker.log(self._series(), step, float(event.get("time") or time.time()), new)
            steps.update(dict.fromkeys(new, step))
        return bool(new)

    def _series(self) -> str:
        """What the stage's steps are called since it went back last."""
        return f"{self.had['name']}-rollback-{self.rollback}" if self.rollback else str(self.had["name"])


def measured(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event. Words that it has beside them, such as a task's name, come before their names."""
    found: dict[str, float] = {}
    words = [
        value
        for key, value in event.items()
        if isinstance(value, str) and key not in _SAID and value not in _NOT_FINITE
    ]
    for name, value in event.items():
        if name in _SAID or isinstance(value, bool):
            continue
        if isinstance(value, int | float) or value in _NOT_FINITE:
            found["/".join([*words, name])] = float(value)
    return found


def numbers(data: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every finite number in the metrics of a finished stage: `final/scores/zero/gsm8k/test/pass@1`."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from numbers(value, f"{name}/{key}")
    elif isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        yield name, float(data)


def about(run: Path) -> dict[str, Any]:
    """What a run is: its recipe as text and as settings, where its stages come from, and versions of packages.

    Values of environment variables stand in none of it: the run's own records have only their names.
    """
    record = artifacts.record(run)
    file = artifacts.recipe_file(run)
    recipe = "" if file is None else file.read_text(encoding="utf-8")
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    lineage = {
        stage["name"]: {key: stage[key] for key in ("kind", "fingerprint", "inputs")} for stage in record["stages"]
    }
    told = {"name": record["name"], "description": record.get("description", ""), "command": record.get("command", [])}
    settings = json.loads(json.dumps(yaml.safe_load(recipe), default=str)) or {}
    return {**told, "recipe": recipe, "settings": settings, "lineage": lineage, "versions": versions}


def mirror(run: Path, spec: Track, hidden: Mapping[str, str], ended: Callable[[], bool]) -> None:
    """Pass on what is there and what comes, until the run ends.

    Args:
        run: the run's folder.
        spec: the tracker.
        hidden: values that must stand nowhere -> names.
        ended: waits a moment, and returns whether the run has ended.
    """
    folder = run / FOLDER
    with (folder / f"{spec.use}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier one may still be uploading
        progress = Progress(folder / f"{spec.use}.json")
        progress.save()  # the key, before the tracker knows it
        stages = artifacts.record(run)["stages"]
        followed = [Followed(run, stage, progress.of(stage["name"], stage["fingerprint"]), hidden) for stage in stages]
        told = json.loads(environment.scrubbed(json.dumps(about(run)).encode(), hidden))
        tracker = open_tracker(spec, folder, told["name"], progress.key, told)
        over = False
        while not over:
            over = ended()
            moved = [one.pass_on(tracker) for one in followed]
            if any(moved):
                tracker.flush()
                progress.save()
        signal.alarm(FINISH_SECONDS)
        tracker.close(progress.complete([one.fingerprint for one in followed]))


def _ended() -> bool:
    """Wait a moment for the end of standard input."""
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
    return bool(ready) and not sys.stdin.read()


def main() -> None:
    """Mirror the run in the folder of the first argument, as the first line of standard input says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner says when it is over
    asked = json.loads(sys.stdin.readline())
    mirror(Path(sys.argv[1]), Track.model_validate(asked["track"]), asked["hidden"], _ended)


if __name__ == "__main__":
    main()
