"""Commands that run a single stage outside of any recipe: `zero2r1 eval` and `zero2r1 export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands.generate import (
    ModelArgument,
    PrefillOption,
    StopOption,
    TemplateKwargsOption,
    fail,
    model_folder,
    stops,
    unused,
)
from pipeline.commands.terminal import JsonOption, plain_console

if TYPE_CHECKING:
    from collections.abc import Mapping


def evaluate(
    command: typer.Context,
    model: ModelArgument,
    tasks: Annotated[list[str], typer.Argument(help="Tasks: gsm8k/test, countdown, path/task.py:Class.")],
    samples: Annotated[int, typer.Option("--samples", "-k", min=1, help="Completions a problem.")] = 1,
    problems: Annotated[int | None, typer.Option("--problems", "-n", min=1, help="Problems of each task.")] = None,
    options: Annotated[list[str] | None, typer.Option("--option", "-o", help="Task options: path=data/gsm8k")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template; the task's own if not given.")] = None,
    prefill: PrefillOption = None,
    template_kwargs: TemplateKwargsOption = None,
    engine: Annotated[str, typer.Option(help="auto, transformers, vllm or vllm_server.")] = "auto",
    stop: StopOption = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the completions and verdicts; must not exist.")] = None,
    json: JsonOption = False,
) -> None:
    """Score a model on tasks, outside of any run."""
    from pipeline.files import source
    from pipeline.tasks.resolve import parse

    unused(out)
    rollout = {"engine": engine, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    rollout |= {"stop": stops(stop)}
    given = {"problems": problems, "template": template, "options": source.assignments(options or [])}
    try:
        specs = [{**parse(task, "test"), **{k: v for k, v in given.items() if v}} for task in tasks]
    except ValueError as error:
        fail(str(error), code=2)
    stage = {
        "kind": "evaluate",
        "models": [model_folder(model, command)],
        "samples": samples,
        "tasks": specs,
        "rollout": rollout,
    }
    if template_kwargs:
        stage["chat_template_kwargs"] = source.assignments(template_kwargs)
    if prefill is not None:
        stage["prefill"] = prefill
    _once(stage, seed, out, json)


def export(
    command: typer.Context,
    model: ModelArgument,
    folder: Annotated[
        Path | None, typer.Argument(help="Where the Hugging Face folder goes; must not exist. Not needed with --push.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; as it is if not given.")] = None,
    push: Annotated[
        str | None, typer.Option(help="Publish it on the hub as owner/name, with HF_TOKEN or `hf auth login`.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: all may see it; private if not given.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --push: a new commit in place of other files that are there.")
    ] = False,
    target: Annotated[
        Literal["huggingface", "torchtitan", "adapter"],
        typer.Option("--format", help="torchtitan writes its checkpoint, adapter the trained adapter alone."),
    ] = "huggingface",
    origin: Annotated[
        Literal["huggingface", "torchtitan"],
        typer.Option("--from", help="torchtitan reads its checkpoint; config and tokenizer lie beside it."),
    ] = "huggingface",
) -> None:
    """Write a stage's model as a Hugging Face folder with a model card, or publish it on the hub."""
    if folder is None and push is None:
        fail("say where the model goes: a FOLDER, or --push owner/name", code=2)
    if push is None and (public or replace):
        fail("--public and --replace are for --push owner/name", code=2)
    if origin == "torchtitan" and (folder is None or push is not None or target != "huggingface"):
        fail("--from torchtitan writes a Hugging Face FOLDER: publish or convert that", code=2)
    if folder is not None:
        unused(folder)
    if origin == "torchtitan":
        brought = {"kind": "import_model", "model": str(Path(model).absolute()), "format": origin}
        _once({**brought, **({"dtype": dtype} if dtype else {})}, 0, folder, json=False, part="model")
        return
    stage: dict[str, object] = {
        "kind": "export",
        "model": model_folder(model, command),
        "format": target,
        **({"dtype": dtype} if dtype else {}),
    }
    if push is not None:
        stage |= {"publish": {"hub": push, "private": not public, "replace": replace}, "name": push.partition("/")[2]}
    _once(stage, 0, folder, json=False, part="model")


def _once(stage: Mapping[str, object], seed: int, out: Path | None, json: bool, part: str = "") -> None:
    """Run a single stage outside of any recipe and print its numbers; its files, or a part of them, go to `out`."""
    import shutil
    import tempfile

    from pipeline import recipe
    from pipeline.commands import display
    from pipeline.files import hub, source
    from pipeline.report import summary
    from pipeline.runner import runner

    shown, kind = plain_console(json), str(stage["kind"])
    data = {"name": kind, "seed": seed, "stages": {kind: stage}}
    where = Path.cwd() / "command line"
    try:
        checked = recipe.check(source.Source(where, data, {}))
    except recipe.RecipeError as error:
        fail(str(error).replace(str(where), where.name), code=2)
    name = str(stage.get("model") or stage["models"][0])  # type: ignore[index]
    if fault := hub.model_fault(name):
        fail(f"{name} cannot be loaded: {fault}", code=2)
    beside = None if out is None else out.absolute().parent  # on the same file system
    if beside is not None:
        try:
            beside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"the folder {beside} cannot be made: {error.strerror}", code=2)
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        try:
            with display.observer(plain_console(json=True) if json else shown, json) as observer:
                artifact = runner.execute(checked, Path(folder), observer).artifacts[kind]
        except (runner.RunError, runner.StageError) as error:
            fail(str(error))
        if (published := artifact.manifest["metrics"].get("published")) is not None:
            shown.print(f"published: {published['hub']} at {published['commit']}", soft_wrap=True)
        if out is not None:
            shutil.move(artifact.path / part, out)
            shown.print(f"written: {out}", soft_wrap=True)
        elif not json:
            shown.print(summary.terminal_table(Path(folder)))
