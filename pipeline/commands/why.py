"""The command `why`: words in, words out. What happens behind it lives in `pipeline.why`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.completion import models
from pipeline.commands.generate import fail
from pipeline.commands.terminal import JsonOption, plain_console


def why(
    stage: Annotated[
        str,
        typer.Argument(
            autocompletion=models, help="RUN@STAGE, such as runs/nano-r1@zero: a stage in which there was an alarm."
        ),
    ],
    step: Annotated[
        int | None, typer.Option(min=1, help="Step of the alarm; the first that was kept if not given.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Replay the batch that raised an alarm with one thing changed at a time, and name what makes the symptom go."""
    from pipeline.why.case import WhyError, find

    try:
        case = find(stage, step)
        from pipeline.training import setup

        setup.prepare()
        from pipeline.why import finding, table

        found = finding.explain(case)
    except WhyError as error:
        fail(str(error), code=2)
    if json:
        from json import dumps

        typer.echo(dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    out = plain_console()
    for line in table.heading(found):
        out.print(line, soft_wrap=True)
    out.print(table.table(found))
    out.print(found.conclusion, soft_wrap=True)
