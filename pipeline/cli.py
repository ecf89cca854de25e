"""The command line: words in, words out. What happens behind each command lives in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.recipe import Recipe

app = typer.Typer(
    name="zero2r1",
    help="Turn a base model into a reasoning model: the DeepSeek-R1 recipe in stages to read, stop and resume.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a shipped recipe such as nano/r1.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Overrides: stages.zero.trainer.learning_rate=5e-7", metavar="[KEY=VALUE]...")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder under which every run has its own folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]
RunArgument = Annotated[Path, typer.Argument(help="A run's folder, such as runs/nano-r1.")]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Stages that may run at once.")] = None,
    json: JsonOption = False,
) -> None:
    """Run a recipe, or go on with it: only stages that are not finished run."""
    from pipeline import runner

    checked = _load(recipe, overrides)
    folder = runner.run_folder(checked, runs)
    console = _console(json)
    try:
        _execute(checked, folder, jobs, console, json)
    except KeyboardInterrupt:
        _fail(f"interrupted; the same command goes on from here ({folder})", code=130)
    except (runner.RunError, runner.StageError) as error:
        _fail(str(error))


def _execute(recipe: Recipe, folder: Path, jobs: int | None, console: Console, json: bool) -> None:
    import signal

    from pipeline import display, runner
    from pipeline.report import summary
    from pipeline.report.page import write_report

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with display.observer(console, json) as observer:
        done = runner.execute(recipe, folder, observer, jobs)
    if done.ran or not (folder / "report.html").exists():
        write_report(folder)
    if not json:
        console.print(summary.terminal_table(folder))
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Show which stages of a recipe would run, and why."""
    from pipeline import graph, runner

    checked = _load(recipe, overrides)
    steps = graph.plan(graph.build(checked), runner.run_folder(checked, runs))
    if json:
        _print_json(
            [
                {
                    "stage": step.node.name,
                    "kind": step.node.config.kind,
                    "state": step.state.value,
                    "reason": step.reason,
                    "fingerprint": step.node.fingerprint,
                }
                for step in steps
            ]
        )
    else:
        from pipeline.display import plan_table

        _console().print(plan_table(steps))


@app.command()
def status(run: RunArgument, json: JsonOption = False) -> None:
    """Show how far a run is: every stage with its state, time and main numbers."""
    from pipeline import inspection

    rows = inspection.status(_run_folder(run))
    if json:
        _print_json(rows)
    else:
        _console().print(inspection.status_table(rows))


@app.command()
def report(
    run: RunArgument,
    json: JsonOption = False,
    open: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the report of a run as one HTML page, or print its numbers with --json."""
    from pipeline.report import summary

    folder = _run_folder(run)
    if json:
        _print_json(summary.summarise(folder))
        return
    from pipeline.report.page import write_report

    page = write_report(folder)
    console = _console()
    console.print(summary.terminal_table(folder))
    console.print(f"report: {page}", soft_wrap=True)
    if open:
        typer.launch(str(page))


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Option(help="Check the gold answers of a recipe's tasks.")] = None,
    model: Annotated[str | None, typer.Option(help="Check the tokenizer of a model: folder or hub id.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Check the RL stages of a run for groups that teach nothing.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find what would go wrong later: the environment, and a recipe, model or run if named."""
    from dataclasses import asdict

    from pipeline import doctor as checks

    findings = list(checks.environment())
    if model is not None:
        findings += checks.model(model)
    if recipe is not None:
        findings += checks.recipe(_load(recipe, None))
    if run is not None:
        findings += checks.run(_run_folder(run))
    if json:
        _print_json([asdict(finding) for finding in findings])
    else:
        _console().print(checks.table(findings))
    if any(finding.level is checks.Level.ERROR for finding in findings):
        raise typer.Exit(1)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from pipeline.recipe import RecipeError, load

    try:
        return load(recipe, overrides or [])
    except RecipeError as error:
        _fail(str(error), code=2)


def _run_folder(run: Path) -> Path:
    from pipeline.artifacts import RUN_RECORD

    if not (run / RUN_RECORD).is_file():
        _fail(f"{run} is not the folder of a run (it has no {RUN_RECORD})", code=2)
    return run


def _console(json: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=False, highlight=False, soft_wrap=json)


def _print_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value, indent=1, ensure_ascii=False))


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"zero2r1: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the command `zero2r1`."""
    app()


if __name__ == "__main__":
    main()
