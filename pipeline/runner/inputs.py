"""A stage starts only from what was published: one flipped bit in an input trains another model, in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.files import durable

Look = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of the last change of content and of anything (which nobody can set) of every file."""


class Inputs:
    """Verifies artifacts of a run: once, and again only when a size or a time has changed since."""

    def __init__(self) -> None:
        self._seen: dict[Path, Look] = {}

    def trust(self, artifact: Artifact) -> None:
        """Take an artifact as verified: it was hashed just now, when it was published."""
        self._seen[artifact.path] = _look(artifact)

    def fault(self, stage: str, inputs: Iterable[str], done: Mapping[str, Artifact]) -> str | None:
        """Why a stage cannot start, in a line; `None` if all of its inputs are what was published."""
        for name in inputs:
            artifact = done[name]
            if self._seen.get(artifact.path) == (look := _look(artifact)):
                continue
            if faults := artifacts.damage(artifact):
                return (
                    f"stage {stage!r} cannot start: its input @{name} is damaged ({durable.describe(faults)}). Put the"
                    f" file back, or delete {artifact.path} and run again: the stage {name!r} is then made anew"
                )
            self._seen[artifact.path] = look
        return None


def _look(artifact: Artifact) -> Look:
    found = []
    for name in artifact.manifest["files"]:
        try:
            stat = (artifact.path / name).stat()
        except OSError:  # told by `artifacts.damage`
            continue
        found.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
