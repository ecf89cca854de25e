"""Mistakes in the words of a command: one line, as every other error is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from pipeline.commands.completion import answer_shells

UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""What typer raises for a command, an option or an argument that is unknown, missing or wrong."""
UNREAD = 141
"""Exit code where nobody reads the output any more, as a shell has it of SIGPIPE."""
OF_RUNS = {"status": "run", "report": "runs", "why": "stage", "generate": "model", "eval": "model", "export": "model"}
"""Command -> its argument that is a run, or a model of one."""


class OneLine(TyperGroup):
    """Commands whose usage errors are a line that begins with `zero2r1:` and says where to read on."""

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Run the command that the words choose, and end the process as it did; or answer a shell that asks."""
        answer_shells()
        if not settings.pop("standalone_mode", True):
            return super().main(args, standalone_mode=False, **settings)
        try:
            code = super().main(args, standalone_mode=False, **settings)
            sys.stdout.flush()
        except UsageError as error:
            words = sys.argv[1:] if args is None else args
            _tell(error, next((word for word in words[:1] if word in self.commands), ""))
            sys.exit(2)
        except typer.Abort:
            typer.echo("zero2r1: no answer, so nothing was done", err=True)
            sys.exit(1)
        except BrokenPipeError:
            _stop_unread()
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # what typer makes of it
                _stop_unread()
            raise
        sys.exit(code or 0)


def unread() -> None:
    """Standard output goes nowhere from here on: otherwise Python complains about it at the end."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_unread() -> NoReturn:
    unread()
    typer.echo("zero2r1: nobody reads the output any more: stopped", err=True)
    sys.exit(UNREAD)


def _tell(error: Any, command: str) -> None:
    said = str(error.format_message()).strip().rstrip(".").replace("Value error, ", "")
    if getattr(error, "param", None) is not None:
        said = " ".join(said.split())  # the words to choose from have a line each
    if "\n" in said:  # a group without a command: its help
        error.show()
        return
    where = f"zero2r1 {command}".strip() if error.ctx is None else error.ctx.command_path
    typer.echo(f"zero2r1: {said[0].lower()}{said[1:]} (see {where} --help){_runs(error, command)}", err=True)


def _runs(error: Any, command: str) -> str:
    """The runs that are here, if what is missing is one of them, or a model of one."""
    if command not in OF_RUNS or getattr(getattr(error, "param", None), "name", "") != OF_RUNS[command]:
        return ""
    from pipeline.artifacts import runs_here

    return f". {runs_here()}"
