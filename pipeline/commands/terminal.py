"""What commands share: consoles, JSON, and the folder of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.completion import runs
from pipeline.commands.generate import fail

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]
RunArgument = Annotated[Path, typer.Argument(help="A run's folder, such as runs/nano-r1.", autocompletion=runs)]
LOG_WIDTH = 120
"""Columns of tables where the output is no terminal."""


def run_folder(run: Path, recipe: bool = False) -> Path:
    """The folder of a run, checked; with the recipe that it keeps, where that is used."""
    from pipeline.artifacts import RUN_RECORD, RecordError, no_run, record
    from pipeline.report.run_data import read_run

    if not (run / RUN_RECORD).is_file():
        fail(no_run(str(run)), code=2)
    try:
        if recipe:
            read_run(run)
        else:
            record(run)
    except RecordError as error:
        fail(str(error), code=2)
    return run


def plain_console(json: bool = False) -> Console:
    """What output is written to, without markup; lines are not wrapped where it is JSON."""
    from rich.console import Console

    class Plain(Console):
        """Text is text, also where it looks like rich's markup; a reader that has gone is an error, as elsewhere."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if sys.stdout.isatty() else LOG_WIDTH
    return Plain(width=width, highlight=False, markup=False, soft_wrap=json)


def print_json(value: object) -> None:
    """JSON on standard output."""
    from json import dumps

    typer.echo(dumps(value, indent=1, ensure_ascii=False))
