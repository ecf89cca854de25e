"""The command line: words in, words out. What happens behind each command lives in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.completion import completion, recipes
from pipeline.commands.cost import (
    Asked,
    CompletionOption,
    GpusOption,
    LikeOption,
    PassRateOption,
    PriceOption,
    ProbeOption,
    PromptOption,
    cost,
    plan_cost,
    plan_options,
    say_what_does_not_fit,
)
from pipeline.commands.generate import (
    fail,
    generate,
)
from pipeline.commands.new import new
from pipeline.commands.once import evaluate, export
from pipeline.commands.report import report
from pipeline.commands.rewards import app as rewards_app
from pipeline.commands.terminal import JsonOption, RunArgument, plain_console, print_json, run_folder
from pipeline.commands.usage import UNREAD, OneLine, unread
from pipeline.commands.why import why

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.recipe import Recipe

app = typer.Typer(
    name="zero2r1",
    cls=OneLine,
    help="Turn a base model into a reasoning model: the DeepSeek-R1 recipe in stages to read, stop and resume.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(rewards_app, name="rewards")

RecipeArgument = Annotated[str, typer.Argument(help="A file, or a shipped recipe: nano/r1.", autocompletion=recipes)]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Overrides: stages.zero.trainer.learning_rate=5e-7", metavar="[KEY=VALUE]...")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder under which every run has its own folder.")]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Stages that may run at once.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Run the stages on a Ray cluster: auto, or its head's HOST:PORT.", metavar="auto|ADDRESS"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Keep copies of artifacts and checkpoints there, and go on from them: s3://bucket/prefix."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a recipe, or go on with it: only stages that are not finished run."""
    from pipeline.runner import runner

    checked = _load(recipe, overrides)
    folder = _folder(checked, runs)
    console = plain_console(json)
    try:
        _execute(checked, folder, jobs, cluster, store, console, json)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command goes on from here ({folder})", code=130)
    except BrokenPipeError:
        unread()
        fail(f"nobody reads the output any more: stopped; the same command goes on from here ({folder})", code=UNREAD)
    except (runner.RunError, runner.StageError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror}; what is finished is kept ({folder})")


def _execute(
    recipe: Recipe,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    store: str | None,
    console: Console,
    json: bool,
) -> None:
    import signal

    from pipeline.commands import display
    from pipeline.planner import fits
    from pipeline.report import summary
    from pipeline.runner import runner

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with display.observer(console, json, {} if json else fits.step_seconds(recipe)) as observer:
        done = runner.execute(recipe, folder, observer, jobs, cluster, store)
    if done.ran or not (folder / "report.html").exists():
        from pipeline.report.page import write_report  # brings matplotlib along: not for a run with nothing to do

        write_report(folder)
    if not json:
        console.print(summary.terminal_table(folder))
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the files of finished stages with their hashes.")
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Show what every stage would take: memory, time, money.")
    ] = False,
    gpus: GpusOption = None,
    probe: ProbeOption = False,
    prompt_tokens: PromptOption = None,
    completion_tokens: CompletionOption = None,
    pass_rate: PassRateOption = None,
    like: LikeOption = None,
    price: PriceOption = None,
    json: JsonOption = False,
) -> None:
    """Show which stages of a recipe would run, and why; with --cost, what they would take."""
    from pipeline import placement
    from pipeline.checks import needs
    from pipeline.runner import graph

    asked = plan_options(cost, Asked(gpus, probe, prompt_tokens, completion_tokens, pass_rate, like, price))
    checked = _load(recipe, overrides)
    if asked is not None:
        plan_cost(checked, _folder(checked, runs), asked, json)
        return
    steps = graph.plan(graph.build(checked), _folder(checked, runs), verify)
    cards = placement.of_recipe(checked)
    if json:
        print_json(
            [
                {
                    "stage": step.node.name,
                    "kind": step.node.config.kind,
                    "state": step.state.value,
                    "reason": step.reason,
                    "fingerprint": step.node.fingerprint,
                    **({"gpus": cards[step.node.name].said} if cards else {}),
                }
                for step in steps
            ]
        )
    else:
        from pipeline.commands.display import plan_table

        plain_console().print(plan_table(steps, cards))
    waiting = [step.node.name for step in steps if step.state is not graph.State.FRESH]
    for need in needs.unmet(checked, waiting):
        typer.echo(f"zero2r1: before it can run here: {need}", err=True)
    say_what_does_not_fit(checked, waiting)
    if any(step.state is graph.State.DAMAGED for step in steps):
        raise typer.Exit(1)


@app.command()
def status(run: RunArgument, json: JsonOption = False) -> None:
    """Show how far a run is: every stage with its state, time and main numbers, and where on a cluster it runs."""
    from pipeline.commands import status

    folder = run_folder(run)
    rows = status.status(folder)
    if json:
        print_json(rows)
        return
    plain_console().print(status.status_table(rows))
    if (hosts := status.cluster_table(folder, rows)) is not None:
        plain_console().print(hosts)
    if (works := status.runner(folder)) is not None:
        plain_console().print(status.runner_line(works), soft_wrap=True, markup=False, highlight=False)


app.command()(report)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Option(help="Check the golds of a recipe's tasks, and whether it fits the GPU here.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Check a model's tokenizer and ends of turns: folder or hub id.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Compare a run's files with their hashes, and look for groups of its RL that teach nothing."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find what would go wrong later: the environment, and a recipe, model or run if named."""
    from dataclasses import asdict

    from pipeline.commands import doctor as checks

    findings = list(checks.environment())
    if model is not None:
        findings += checks.model(model)
    if recipe is not None:
        findings += checks.recipe(_load(recipe, None))
    if run is not None:
        folder = run_folder(run, recipe=True)
        findings += [*checks.files(folder), *checks.run(folder)]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        plain_console().print(checks.table(findings))
    if any(finding.level is checks.Level.ERROR for finding in findings):
        raise typer.Exit(1)


for command in (new, generate, cost, completion, export, why):
    app.command()(command)
app.command("eval")(evaluate)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from pipeline.recipe import RecipeError, load

    try:
        checked = load(recipe, overrides or [])
    except RecipeError as error:
        fail(str(error), code=2)
    for notice in checked.notices:
        typer.echo(f"zero2r1: {notice}", err=True)
    return checked


def _folder(recipe: Recipe, runs: Path) -> Path:
    from pipeline.runner import runner

    try:
        return runner.run_folder(recipe, runs)
    except runner.RunError as error:
        fail(f"--runs: {error}", code=2)


def main() -> None:
    """Entry point of the command `zero2r1`."""
    app()


if __name__ == "__main__":
    main()
