"""What newcomers do wrong in their first hour: each time one line that names the place and the fix."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner, Result

from pipeline.checks import needs
from pipeline.cli import app
from pipeline.commands import doctor
from pipeline.recipe import load
from pipeline.schema import extras

ROOT = Path(__file__).parents[2]
RECIPE = """name: first
task: {task}
tasks:
  mine: {{use: jsonl, options: {{path: problems.jsonl, test_share: 0{options}}}}}
stages:
  zero:
    kind: grpo
    model: {model}
    rewards: [accuracy]
    trainer: {{num_generations: 4}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(task: str = "countdown", options: str = "", model: str = "some/model") -> str:
    Path("recipe.yaml").write_text(RECIPE.format(task=task, options=options, model=model), encoding="utf-8")
    Path("problems.jsonl").touch()
    return "recipe.yaml"


def said(*arguments: str, code: int = 2) -> str:
    """The one line with which a command ends."""
    done: Result = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("zero2r1: ")]
    assert done.stderr == f"{line}\n", "one line, and no traceback"
    return line.removeprefix("zero2r1: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.zeroo.trainer.learning_rate=1", "there is no stage 'zeroo' (did you mean 'zero'?). Stages: zero"),
        ("stages.zero.learning_rate=1e-6", "belongs in trainer: write `trainer: {learning_rate: …}`"),
        ("stages.zero.max_tokens=64", "belongs in rollout: write `rollout: {max_tokens: …}`"),
    ],
)
def test_a_setting_in_the_wrong_place_is_told_the_right_one(override: str, message: str) -> None:
    line = said("plan", recipe(), override)
    assert line.startswith(f"override '{override}': ")
    assert message in line


def test_a_prompt_template_that_a_task_is_given_among_its_options() -> None:
    line = said("plan", recipe(options=", template: chatml"))
    assert "recipe.yaml:4: tasks.mine: there is no prompt template 'chatml'. Known: boxed, plain" in line


def test_a_tab_is_told_as_such() -> None:
    Path("tabs.yaml").write_text("name: x\nstages:\n\tbase: {kind: import_model}\n")
    assert said("plan", "tabs.yaml").endswith("tabs.yaml:3: not YAML: the line begins with a tab: indent with spaces")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "zero.tasks.0: there are no problems in its split train"),
        ('{"q": "1 + 1", "a": "2"}\n', "problems.jsonl:1: there is no field question; the row has: q, a"),
        ('{"question": "1 + 1", "answer": "2"\n', "problems.jsonl:1 is not JSON"),
    ],
)
def test_data_that_cannot_be_used_is_told_by_plan_and_by_doctor(content: str, message: str) -> None:
    path = recipe("mine")
    Path("problems.jsonl").write_text(content)
    line = said("plan", path, code=0)
    assert message in line and "problems.jsonl" in line
    findings = doctor.recipe(load(path))
    assert any(f.level is doctor.Level.ERROR and message.rpartition(": ")[2] in f.message for f in findings)


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ([], "no config.json, and no weights (*.safetensors), and no tokenizer (tokenizer.json)"),
        (["config.json", "tokenizer.json"], "no weights (*.safetensors)"),
        (["config.json", "model.safetensors"], "no tokenizer (tokenizer.json)"),
        (["tokenizer.model", "model-1.safetensors"], "no config.json"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_told_by_every_command(files: list[str], lacks: str) -> None:
    Path("half").mkdir()
    for name in files:
        Path("half", name).write_text("{}")
    ending = f"half is not a whole model: it has {lacks}"
    assert said("plan", recipe(model="./half"), code=0).endswith(ending)
    assert said("generate", "half", "--prompt", "1 + 1?") == ending
    assert said("eval", "half", "countdown") == ending
    assert said("export", "half", "out") == ending
    findings = list(doctor.recipe(load("recipe.yaml", ["tasks={}"])))
    assert any(f.level is doctor.Level.ERROR and f.message.endswith(ending) for f in findings)


def run_folder(path: str) -> None:
    """A run of one stage that has not finished."""
    Path(path).mkdir(parents=True)
    stage = {"name": "zero", "kind": "grpo", "fingerprint": "0" * 16}
    Path(path, "run.json").write_text(json.dumps({"name": "x", "stages": [stage]}))


def test_a_run_in_place_of_a_model_and_a_run_that_is_elsewhere() -> None:
    run_folder("runs/x")
    assert (
        said("generate", "runs/x", "-p", "?") == "runs/x is a run; write runs/x@STAGE for one of its models: none yet"
    )
    assert said("generate", "x@zero", "-p", "?") == "there is no run x: did you mean runs/x@zero?"
    assert said("eval", "runs/y@zero", "countdown") == "there is no run runs/y. Runs here: runs/x"
    assert said("generate", "runs/x@zeroo", "-p", "?").endswith("(did you mean 'zero'?). Stages: zero")


@pytest.mark.parametrize(
    "command", ["status RUN", "report RUN", "doctor --run RUN", "eval RUN@zero x", "export RUN@zero o"]
)
def test_a_run_that_was_moved_or_renamed(command: str) -> None:
    """Every command that reads a run says which ones are here, and takes the one that is meant by its new name."""
    run_folder("runs/x")

    def asked(run: str) -> str:
        return said(*command.replace("RUN", run).split())

    suffix = "@zero" if "@" in command else ""
    assert asked("x") == f"there is no run x: did you mean runs/x{suffix}?"
    assert asked("runs/y") == "there is no run runs/y. Runs here: runs/x"
    assert asked("runs") == "runs is not the folder of a run (it has no run.json). Runs here: runs/x"
    Path("runs/x").rename("elsewhere")
    assert asked("runs/x") == "there is no run runs/x. Runs here: elsewhere"
    if "@" in command:
        assert asked("elsewhere") == "the stage 'zero' of elsewhere has not published a model"
    elif command == "status RUN":
        assert CliRunner().invoke(app, ["status", "elsewhere"]).exit_code == 0


@pytest.mark.parametrize("stages", [[{"name": "zero"}], ["zero"], [None]])
@pytest.mark.parametrize("command", ["status", "report", "generate"])
def test_a_record_whose_stages_lack_something(command: str, stages: list[object]) -> None:
    Path("x").mkdir()
    Path("x/run.json").write_text(json.dumps({"name": "x", "stages": stages}))
    line = said(command, "x")
    assert line.startswith(
        "x/run.json is empty or broken (stage 1 has not all of fingerprint, kind, name): run the recipe"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("plann x.yaml", "no such command 'plann'. Did you mean 'plan'? (see zero2r1 --help)"),
        ("rewards tyr math", "no such command 'tyr'. Did you mean 'try'? (see zero2r1 rewards --help)"),
        ("status", "missing argument 'run' (see zero2r1 status --help). Runs here: none"),
        ("export", "missing argument 'model' (see zero2r1 export --help). Runs here: none"),
        ("eval x", "missing argument 'tasks' (see zero2r1 eval --help)"),
        ("cost", "missing argument 'model' (see zero2r1 cost --help)"),
        ("eval a/b chains", "command line: stages.evaluate.tasks.0: there is no task 'chains'"),
        ("completion", "missing argument 'shell'. Choose from: bash, zsh, fish (see zero2r1 completion --help)"),
        (
            "completion sh",
            "invalid value for 'shell': 'sh' is not one of 'bash', 'zsh', 'fish' (see zero2r1 completion",
        ),
        ("run nano/r1 --store", "option '--store' requires an argument (see zero2r1 run --help)"),
        ("cost v3-671b", "missing option '--tokens' (see zero2r1 cost --help)"),
        ("run nano/r1 --job 2", "no such option: --job (Possible options: --jobs, --json) (see zero2r1 run --help)"),
        ("status a b", "got unexpected extra argument(s) (b) (see zero2r1 status --help)"),
        (
            "rewards show accuracy",
            "accuracy is what a recipe calls the grader of a stage's own tasks: name that grader,",
        ),
        ("rewards try math --completion @gone", "--completion: gone: No such file or directory"),
        ("new --data gsm8k", "--model: no answer: give it as an option, such as --model Qwen/Qwen2.5-0.5B"),
    ],
)
def test_words_that_are_no_command(words: str, line: str) -> None:
    told = said(*words.split())
    assert told.startswith(line) and ("Runs here" in told) == ("Runs here" in line)


def test_a_run_in_place_of_a_recipe() -> None:
    Path("run.json").touch()
    assert said("plan", ".") == ".: is the folder of a run: give the recipe that it was started with"


@pytest.mark.parametrize(
    "command", ["--help", "rewards list", "plan nano/r1 --json", "cost v3-671b --tokens 1T --gpus 8xH800"]
)
def test_a_reader_that_leaves_ends_any_command_in_a_line(command: str) -> None:
    """`zero2r1 COMMAND | head -1`: written by rich or by typer, at once or at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [Path(sys.executable).parent / "zero2r1", *command.split()], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "zero2r1: nobody reads the output any more: stopped\n")


@pytest.mark.parametrize("command", ["generate MODEL -p ?", "eval MODEL countdown", "export MODEL out"])
def test_a_model_that_is_neither_here_nor_to_be_had(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = said(*command.replace("MODEL", "nobody/has-this").split())
    assert line.startswith("nobody/has-this cannot be loaded: there is no such folder here, and the hub cannot be")


@pytest.mark.parametrize("task", ["../problems.jsonl", "problems.jsonl/test", "data/x.json", "x.csv"])
def test_a_data_file_in_place_of_a_task(task: str) -> None:
    line = said("eval", "some/model", task)
    path = task.removesuffix("/test")
    assert line.startswith(f"{path} is a data file, and no task: the task jsonl reads it.")
    assert line.endswith(f"on the command line `jsonl -o path={path}`")


def test_a_reward_that_raises_is_one_line() -> None:
    Path("mine.py").write_text("def brief(completion):\n    raise KeyError('boom')\n")
    line = said("rewards", "try", "mine.py:brief", "--completion", "4")
    assert line.startswith("reward 'mine.py:brief' raised KeyError: 'boom' (")
    assert "mine.py:2)" in line


def test_doctor_without_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (finding,) = doctor.model("nobody/has-this")
    assert finding.level is doctor.Level.ERROR
    assert finding.message == (
        "nobody/has-this cannot be loaded: there is no such folder here, and the hub cannot be reached:"
        " download it first, or name a local folder"
    )


def test_a_file_named_like_a_package_is_told_with_another_name() -> None:
    Path("rewards.py").write_text("def brief(completion) -> float:\n    return 1.0\n")
    findings = doctor.recipe(load(recipe(), ["stages.zero.rewards=[accuracy, {use: rewards.py:brief}]"]))
    (told,) = [f.message for f in findings if f.level is doctor.Level.WARNING]
    assert told.startswith("rewards.py has the name of the package `rewards`")
    assert told.endswith("Rename it, to my_rewards.py for one")
    assert needs.hides_a_package("my_rewards.py:brief") is None
    assert needs.hides_a_package("rewards.math:MathVerifier") is None


def test_nothing_says_to_install_what_no_index_has() -> None:
    """Every `pip install '…'` names a requirement of `pyproject.toml`, or extras of a checkout: no index has ours."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {line for extra in declared["optional-dependencies"].values() for line in extra}
    sources = [path for room in ("pipeline", "rewards", "model") for path in (ROOT / room).rglob("*.py")]
    shipped = [path for room in ("recipes", "docker", "scripts") for path in (ROOT / room).rglob("*") if path.is_file()]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for path in (*sources, *pages, *(path for path in shipped if path.suffix != ".pyc")):
        text = path.read_text(encoding="utf-8")
        for named in re.findall(r"pip install (?:-\S+ )*['\"]([^'\"{}$]+)['\"]", text):
            assert named in known or named.startswith("."), f"{path}: {named}"
    assert extras.install("clearml") == "pip install clearml", "no requirement of ours"
    assert re.fullmatch(r"pip install .wandb>=[\d.]+.", extras.install("wandb"))
    assert re.fullmatch(r"pip install 'liger-kernel>=[\d.]+'", extras.install("liger_kernel"))
    assert extras.install("azureml") == "pip install azureml-mlflow"
