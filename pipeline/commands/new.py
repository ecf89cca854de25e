"""`zero2r1 new`: four questions, or the options that answer them, and a recipe that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.generate import fail, unused


class Goal(StrEnum):
    """What a recipe is for."""

    RL = "rl"
    """Reinforcement learning with answers that can be checked."""
    SFT = "sft"
    """Fine-tuning on examples."""
    SCORE = "score"
    """Only an evaluation."""


QUESTIONS = {
    "model": "Model (hub id or folder)",
    "data": "Data (a .jsonl file, or a task such as gsm8k)",
    "hardware": "Hardware (cpu, or how many GPUs)",
    "goal": f"Goal ({', '.join(Goal)})",
}
FIELDS = {"question": ("question", "problem", "prompt", "instruction"), "answer": ("answer", "solution", "response")}
"""What the fields of a data file are called, the likeliest first."""
INSTRUCTED = re.compile(r"instruct|chat|-it\b|r1", re.IGNORECASE)
"""Names of models that have a chat template of their own."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known when a recipe is written."""

    model: str
    data: str
    gpus: int
    goal: Goal

    @property
    def is_file(self) -> bool:
        """Whether the data are a file."""
        return self.data.endswith((".jsonl", ".json"))


def new(
    file: Annotated[Path, typer.Argument(help="Where the recipe goes; must not exist.")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help=QUESTIONS["model"])] = None,
    data: Annotated[str | None, typer.Option(help=QUESTIONS["data"])] = None,
    hardware: Annotated[str | None, typer.Option(help=QUESTIONS["hardware"])] = None,
    goal: Annotated[str | None, typer.Option(help=QUESTIONS["goal"])] = None,
) -> None:
    """Write a recipe: asks for model, data, hardware and goal, or takes them as options."""
    from pipeline.recipe import RecipeError, load

    unused(file)
    given = {"model": model, "data": data, "hardware": hardware, "goal": goal}
    usual = {"model": "Qwen/Qwen2.5-0.5B", "data": "gsm8k", "hardware": "cpu", "goal": Goal.RL.value}
    said = {name: value or _asked(name, usual[name]) for name, value in given.items()}
    if said["goal"] not in list(Goal):
        fail(f"--goal: {said['goal']!r} is not one of {', '.join(Goal)}", code=2)
    if said["hardware"] != "cpu" and not said["hardware"].isdecimal():
        fail(f"--hardware: {said['hardware']!r} is neither cpu nor a number of GPUs", code=2)
    gpus = 0 if said["hardware"] == "cpu" else int(said["hardware"])
    answers = Answers(said["model"], said["data"], gpus, Goal(said["goal"]))
    if answers.goal is Goal.SFT and not answers.is_file:
        fail(f"--data: fine-tuning needs a .jsonl file of examples, and {answers.data!r} is not one", code=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe(answers, file.parent), encoding="utf-8")
    try:
        load(file)
    except RecipeError as error:
        file.unlink()
        fail(str(error), code=2)
    typer.echo(f"written: {file}\nnext:    zero2r1 plan {file}\n         zero2r1 run {file}")


def _asked(name: str, usual: str) -> str:
    try:
        return str(typer.prompt(QUESTIONS[name], default=usual))
    except typer.Abort:
        typer.echo()  # ends the line of the question
        fail(f"--{name}: no answer: give it as an option, such as --{name} {usual}", code=2)


def recipe(answers: Answers, base: Path) -> str:
    """The recipe as text; `base` is the folder that its paths are read against."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{Path(answers.model).name}-{answers.goal}").strip("-").lower()
    lines = [f"name: {name}"]
    if answers.goal is not Goal.SFT:
        lines += _task(answers, base)
    if not answers.gpus:
        lines += ["launch:", "  env: {OMP_WAIT_POLICY: passive}"]
    template = "" if _has_template(answers.model, base) else "\n    chat_template: r1_zero    # a base model has none"
    lines += ["stages:", f"  base:\n    kind: import_model\n    model: {json.dumps(answers.model)}{template}"]
    models = '["@base"]'
    if answers.goal is Goal.RL:
        lines.append(_rl(answers))
        models = '["@base", "@zero"]'
    if answers.goal is Goal.SFT:
        lines.append(_sft(answers))
    else:
        lines.append(f"  score:\n    kind: evaluate\n    models: {models}\n    rollout: {_rollout(answers)}")
    return "\n".join(lines) + "\n"


def _task(answers: Answers, base: Path) -> list[str]:
    """The task that all stages share."""
    if not answers.is_file:
        return [f"task: {answers.data}"]
    row = _first_row(base / answers.data)
    options: dict[str, Any] = {"path": answers.data}
    options |= {key: next((name for name in names if name in row), names[0]) for key, names in FIELDS.items()}
    if "####" in str(row.get(options["answer"], "")):
        options["answer_after"] = "####"
    return ["task: mine", "tasks:", f"  mine: {{use: jsonl, options: {json.dumps(options, ensure_ascii=False)}}}"]


def _first_row(path: Path) -> Mapping[str, Any]:
    from pipeline.files.rows import RowError, read_rows

    try:
        return next((row for _, row in read_rows(path)), {})
    except (OSError, RowError) as error:
        fail(f"--data: {error}", code=2)


def _has_template(model: str, base: Path) -> bool:
    """Whether a model has a chat template: its folder says so, or its name."""
    if not (folder := base / Path(model).expanduser()).is_dir():
        return INSTRUCTED.search(model) is not None
    config = folder / "tokenizer_config.json"
    inside = config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
    return inside or (folder / "chat_template.jinja").is_file()


def _rollout(answers: Answers) -> str:
    return "{engine: vllm, max_tokens: 1024}" if answers.gpus else "{engine: transformers, max_tokens: 256}"


def _launch(answers: Answers) -> str:
    return f"\n    launch: {{gpus: {answers.gpus}, accelerate: ddp}}" if answers.gpus > 1 else ""


def _rl(answers: Answers) -> str:
    rows, accumulated, steps = (16, 8, 100) if answers.gpus else (32, 1, 20)
    return f"""  zero:
    kind: grpo
    model: "@base"{_launch(answers)}
    rewards: [accuracy, {{use: think_format, weight: 0.1, gate: accuracy}}]
    rollout: {_rollout(answers)}
    trainer:                  # every field of TRL's GRPOConfig, by its own name
      num_generations: {16 if answers.gpus else 8}
      per_device_train_batch_size: {rows}
      gradient_accumulation_steps: {accumulated}
      learning_rate: 1e-6
      max_steps: {steps}
      save_steps: 10"""


def _sft(answers: Answers) -> str:
    return f"""  tuned:
    kind: sft
    model: "@base"{_launch(answers)}
    data: [{json.dumps(answers.data)}]
    trainer:                  # every field of TRL's SFTConfig, by its own name
      num_train_epochs: 1
      learning_rate: 1e-5"""
