"""Completion in a real shell: commands, recipes, runs and the models of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import completion
from pipeline.recipe import shipped

PROGRAM = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a recipe, two runs and something that looks like one."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    for run, stages in {"runs/one": ["base", "zero"], "runs/two": ["base"]}.items():
        Path(run).mkdir(parents=True)
        Path(run, "run.json").write_text(json.dumps({"stages": [{"name": name} for name in stages]}))
    Path("runs/[odd]").mkdir()
    Path("runs/[odd]/run.json").write_text("{")


def asked(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    env = {**os.environ, "PATH": f"{PROGRAM}:{os.environ['PATH']}"}
    script = (
        'eval "$(zero2r1 completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' _zero2r1_completion "$1"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], env=env, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_and_recipes() -> None:
    assert {"run", "plan", "new", "doctor", "completion"} <= set(asked("zero2r1", ""))
    assert asked("zero2r1", "run", "nano/r") == ["nano/r1", "nano/r1-zero"]
    assert asked("zero2r1", "report", "") == ["runs/[odd]", "runs/one", "runs/two"]


def test_recipes_are_those_that_are_shipped_and_files_here() -> None:
    assert completion.recipes("") == sorted([*shipped(), "mine.yaml", "runs/"])
    assert completion.recipes("m") == ["mine.yaml"]
    assert completion.recipes("nothing") == []


def test_models_are_stages_of_runs_and_folders() -> None:
    assert completion.models("runs/o") == ["runs/one@base", "runs/one@zero", "runs/one/"]
    assert completion.models("runs/one@z") == ["runs/one@zero"]
    assert completion.models("runs/[") == ["runs/[odd]/"], "what is no run is a folder"
    assert completion.models("elsewhere@") == []


@pytest.mark.parametrize("shell", completion.Shell)
def test_every_shell_asks_by_the_same_variable(shell: completion.Shell, capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(shell)
    said = capsys.readouterr().out
    assert f"{completion.VARIABLE}=complete_{shell}" in said


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "plan", "none"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("zero2r1: none: there is no such file or shipped recipe. Shipped recipes: ")
