"""`zero2r1 report`: the page of a run, the comparison of several, or a page that follows a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.completion import runs as completed
from pipeline.commands.generate import fail
from pipeline.commands.terminal import JsonOption, plain_console, print_json, run_folder


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="A run's folder, such as runs/nano-r1; several are compared.", autocompletion=completed
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and its samples; the run's own if not given.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine, and follow the run until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port for --watch: 8021 if not given; 0 for any free one.")
    ] = None,
    json: JsonOption = False,
    open: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the report of a run as a page that opens offline, compare several, or print the numbers with --json."""
    folders = [run_folder(run, recipe=True) for run in runs]
    if watch:
        if len(folders) > 1 or json or out is not None:
            fail("--watch serves the page of one run: give neither a second run nor --out or --json", code=2)
        _serve(folders[0], port, open)
        return
    if port is not None:
        fail("--port is for --watch", code=2)
    if len(folders) > 1:
        _compare(folders, out, json, open)
        return
    from pipeline.report import summary

    if json:
        print_json(summary.summarise(folders[0]))
        return
    from pipeline.report.page import write_report

    try:
        page = write_report(folders[0], out)
    except OSError as error:
        fail(f"the report cannot be written: {error}", code=1)
    console = plain_console()
    console.print(summary.terminal_table(folders[0]))
    _tell(page, open)


def _compare(folders: list[Path], out: Path | None, json: bool, open: bool) -> None:
    if out is None and not json:
        fail("several runs are compared: say where the page goes with --out FOLDER, or take --json", code=2)
    from pipeline.report.comparison import compare

    try:
        found = compare(folders)
    except ValueError as error:
        fail(str(error), code=2)
    if json:
        print_json(found.to_dict())
    if out is None:
        return
    from pipeline.report.compare_page import write_comparison

    try:
        page = write_comparison(folders, out)
    except OSError as error:
        fail(f"the report cannot be written: {error}", code=1)
    if not json:
        plain_console().print("\n".join(found.words()).replace("`", ""))
        _tell(page, open)


def _tell(page: Path, open: bool) -> None:
    plain_console().print(f"report: {page}", soft_wrap=True)
    if open:
        typer.launch(str(page))


def _serve(folder: Path, port: int | None, open: bool) -> None:
    """Serve until Ctrl-C or a signal to end."""
    import signal

    from pipeline.report import live

    wanted = live.PORT if port is None else port
    try:
        server = live.Server(folder, wanted)
    except OSError as error:
        told = f"port {wanted} of {live.ADDRESS}: {error.strerror}"
        fail(f"{told}; take another with --port, or any free one with --port 0")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        try:
            typer.echo(f"{folder} is served at {server.url} until Ctrl-C")
            if open:
                typer.launch(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")
