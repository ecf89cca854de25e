"""The command `generate`, and what other commands share with it: models, options of prompts, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.commands.completion import models

MOST_TOKENS = 1024
"""Of an answer, where the model's context has room for them."""
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="Text at which an answer ends; a number is a token id.")
]
PrefillOption = Annotated[
    str | None, typer.Option(help="What every answer begins with, such as <think>; the model's own if not given.")
]
TemplateKwargsOption = Annotated[
    list[str] | None,
    typer.Option("--chat-template-kwargs", help="Arguments of the model's chat template: enable_thinking=false"),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="RUN@STAGE (runs/nano-r1@zero), one of its checkpoints (…@zero:step-200), a folder, a hub id.",
        autocompletion=models,
    ),
]


def generate(
    command: typer.Context,
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask once and leave; a chat if not given.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template around each question.")] = "plain",
    prefill: PrefillOption = None,
    template_kwargs: TemplateKwargsOption = None,
    stop: StopOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Longest answer, in tokens; {MOST_TOKENS}, or what the model's context leaves, if not given."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Chat with a checkpoint."""
    from pipeline.commands.chat import Conversation
    from pipeline.conversion import folder
    from pipeline.files import hub, source
    from pipeline.prompts.templates import TemplateError
    from pipeline.rollout.base import RolloutError, Sampling

    most = max_tokens or MOST_TOKENS
    sampling = Sampling(max_tokens=most, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stops(stop)))
    try:
        kwargs = source.assignments(template_kwargs) if template_kwargs else None
        found = model_folder(model, command)
        if fault := hub.model_fault(found):
            fail(f"{model} cannot be loaded: {fault}", code=2)
        conversation = Conversation(found, template, sampling, kwargs, prefill, shorten=max_tokens is None)
    except OSError as error:
        fail(f"{model} cannot be loaded: {folder.unread(model, error)}", code=2)
    except (TemplateError, RolloutError, ValueError) as error:
        fail(str(error), code=2)
    if prompt is None:
        typer.echo("An empty line starts over; Ctrl-D ends.", err=True)
    for question in [prompt] if prompt is not None else _questions():
        if not question:
            conversation.forget()
            continue
        try:
            for piece in conversation.ask(question):
                typer.echo(piece, nl=False)
        except (TemplateError, RuntimeError) as error:
            fail(str(error), code=2)
        typer.echo()


def stops(given: list[str] | None) -> list[str | int]:
    """What the option `--stop` says: a number is a token id."""
    return [int(one) if one.isdecimal() else one for one in given or []]


def _questions() -> Iterator[str]:
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return


def model_folder(name: str, command: typer.Context) -> str:
    """The folder or hub id of what a user calls a model; that of a checkpoint is there until the command ends."""
    from pipeline.commands.chat import opened_model

    try:
        return command.with_resource(opened_model(name))
    except LookupError as error:
        fail(str(error), code=2)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say in one line what is wrong, and leave."""
    typer.echo(f"zero2r1: {message}", err=True)
    raise typer.Exit(code)


def unused(out: Path | None) -> None:
    """Leave if there is something already where a result is to go."""
    if out is not None and out.exists():
        fail(f"{out} exists already", code=2)
