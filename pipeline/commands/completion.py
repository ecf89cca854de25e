"""Completion in shells: `zero2r1 completion bash` prints what the shell reads, and Tab then asks `zero2r1` itself.

Nothing heavy is imported, since somebody waits after each Tab.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from glob import escape, glob
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

VARIABLE = "_ZERO2R1_COMPLETE"
"""Set by the shell when it asks."""
RECORD = "run.json"


class Shell(StrEnum):
    """A shell that can be told how to complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the completion script of a shell: eval "$(zero2r1 completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # public, but not in __all__

    typer.echo(get_completion_script(prog_name="zero2r1", complete_var=VARIABLE, shell=shell.value))


def answer_shells() -> None:
    """Make ready for a shell that asks, which it does through the environment; otherwise do nothing."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes, and YAML files and folders here."""
    root = Path(str(files("recipes")))
    shipped = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in [*shipped, *_here(incomplete, "*.yaml", "*/")] if name.startswith(incomplete))


def runs(incomplete: str) -> list[str]:
    """Folders of runs, at most one level further down than what is typed."""
    folders = (folder.rstrip("/") for folder in _here(incomplete, "*/", "*/*/"))
    return sorted(folder for folder in folders if Path(folder, RECORD).is_file())


def models(incomplete: str) -> list[str]:
    """Folders, and `RUN@STAGE` of runs."""
    run, at, _ = incomplete.partition("@")
    names = [f"{folder}@{stage}" for folder in ([run] if at else runs(run)) for stage in _stages(Path(folder))]
    return [name for name in (*names, *_here(incomplete, "*/")) if name.startswith(incomplete)]


def _stages(run: Path) -> list[str]:
    try:
        return [str(stage["name"]) for stage in json.loads((run / RECORD).read_text(encoding="utf-8"))["stages"]]
    except (OSError, ValueError, KeyError, TypeError):  # no run, or a damaged one, which the command itself tells
        return []


def _here(incomplete: str, *endings: str) -> list[str]:
    """Paths that begin with what is typed and end like one of these patterns."""
    return [path for ending in endings for path in glob(escape(incomplete) + ending)]  # noqa: PTH207 — may be absolute
