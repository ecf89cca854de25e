"""`zero2r1 rewards`: list, show, try and audit rewards. Words in, words out; the logic is in `rewards`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.generate import fail

app = typer.Typer(no_args_is_help=True, help="List, show, try and audit rewards.")


def _no_grader(name: str) -> str:
    if name == "accuracy":
        told = (
            "accuracy is what a recipe calls the grader of a stage's own tasks: name that grader, such as math or exact"
        )
        fail(told, code=2)
    return name


_NAME = "A reward: a name, package.module:attribute, or file.py:attribute."
Name = Annotated[str, typer.Argument(help=_NAME, callback=_no_grader)]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="Constructor argument of the reward, as key=value.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_rewards(as_json: Json = False) -> None:
    """Rewards that can be used by name."""
    from rewards.registry import RewardError, find, names

    lines = []
    for name, where in sorted(names().items()):
        try:
            summary = find(name).summary
        except RewardError as error:
            summary = f"cannot be imported: {error}"
        lines.append({"name": name, "summary": summary, "from": where})
    _print_table(lines, as_json)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """What a reward does and which options it takes."""
    import inspect

    from rewards.registry import find

    found = _checked(find, name)
    parameters = inspect.signature(found.target).parameters if found.is_verifier else {}
    options = {p.name: None if p.default is p.empty else p.default for p in parameters.values()}
    doc = inspect.getdoc(found.target) or "It has no description."
    if as_json:
        typer.echo(json.dumps({"name": found.name, "description": doc, "options": options}, default=str))
        return
    typer.echo(f"{found.name}\n\n{doc}")


@app.command("try")
def try_reward(
    name: Name,
    completion: Annotated[str, typer.Option(help="What the model wrote; @file reads it from a file.")],
    answer: Annotated[str | None, typer.Option(help="The gold answer.")] = None,
    prompt: Annotated[str, typer.Option(help="The prompt, for rewards that look at it.")] = "",
    column: Annotated[list[str] | None, typer.Option(help="A further data column, as name=value.")] = None,
    option: Options = None,
    as_json: Json = False,
) -> None:
    """Judge one completion. The exit status is 0 if it scored 1, 1 if it scored less, 2 if it could not be judged."""
    from rewards import verify

    text = _text(Path(completion[1:])) if completion.startswith("@") else completion
    item = {**_pairs(column), "completion": text, "prompt": prompt}
    if answer is not None:
        item["answer"] = answer
    verdict = _checked(lambda: verify(name, [item], **_pairs(option))[0])
    line = {
        "status": verdict.status.value,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        "ms": round(verdict.ms, 3),
    }
    if as_json:
        typer.echo(json.dumps(line))
    else:
        _print_table([line], False)
    raise typer.Exit(2 if verdict.score is None else 0 if verdict.score >= 1.0 else 1)


@app.command()
def audit(
    name: Name,
    data: Annotated[Path, typer.Argument(help="Data rows, as .jsonl or .json; the gold is in `answer` or `solution`.")],
    limit: Annotated[int | None, typer.Option(help="Look at the first so many rows only.", min=1)] = None,
    option: Options = None,
    as_json: Json = False,
) -> None:
    """Examine a reward on a data set. The exit status is 0 if it may be trusted with it."""
    from rewards.audit import audit as run

    rows = _rows(data)[:limit]
    report = _checked(lambda: run(name, rows, **_pairs(option)))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), default=str))
    else:
        lines = [dict(zip(("check", "result", "cases", "example"), line, strict=True)) for line in report.table()]
        _print_table(lines, False, f"{name} on {data.name}: {report.rows} rows, {report.seconds:.1f} s")
    raise typer.Exit(0 if report.ok else 1)


def _checked(call: Any, *arguments: Any) -> Any:
    """Call, and turn a reward's own errors into a usage error without a traceback."""
    from rewards.registry import RewardError

    try:
        return call(*arguments)
    except RewardError as error:
        fail(str(error), code=2)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"--completion: {path}: {error.strerror}", code=2)
    except UnicodeDecodeError as error:
        fail(f"--completion: {path} is not UTF-8 text: {error.reason} at byte {error.start}", code=2)


def _pairs(texts: list[str] | None) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are read as JSON where they are JSON."""
    result: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            fail(f"{text!r} is not key=value", code=2)
        try:
            result[key] = json.loads(value)
        except json.JSONDecodeError:
            result[key] = value
    return result


def _rows(path: Path) -> list[dict[str, Any]]:
    from pipeline.files.rows import RowError, read_rows

    if not path.is_file():
        fail(f"there is no file {path}", code=2)
    try:
        if path.suffix == ".jsonl":
            return [row for _, row in read_rows(path)]
        rows = json.loads(path.read_text(encoding="utf-8"))
    except RowError as error:
        fail(str(error), code=2)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        fail(f"{path} is not JSON: {error}", code=2)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        fail(f"{path} does not hold a list of rows", code=2)
    return rows


def _print_table(lines: list[dict[str, Any]], as_json: bool, title: str | None = None) -> None:
    if as_json:
        typer.echo(json.dumps(lines))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(lines[0] if lines else ()), title=title, title_justify="left")
    for line in lines:
        table.add_row(*(Text("" if value is None else str(value)) for value in line.values()))
    Console().print(table)
