"""The Dockerfiles: linted, and their steps carried out as far as no daemon is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[2]
FILES = {"cpu": "core", "cuda": "vllm"}
"""Dockerfile -> its file under `constraints/`."""
PYTHONS = ("3.11", "3.12")
"""Those that the constraints are tested for."""
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


@dataclass(frozen=True)
class Step:
    """An instruction with what follows it."""

    instruction: str
    value: str


def steps(name: str) -> list[Step]:
    """The instructions of a Dockerfile."""
    path = ROOT / "docker" / f"{name}.Dockerfile"
    with path.open("rb") as file:
        return [
            Step(found["instruction"], found["value"])
            for found in DockerfileParser(fileobj=file).structure
            if found["instruction"] != "COMMENT"
        ]


def run_lines(name: str) -> list[str]:
    return [step.value for step in steps(name) if step.instruction == "RUN"]


@pytest.mark.skipif(HADOLINT is None, reason="there is no hadolint for this platform")
@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run([str(HADOLINT), ROOT / "docker" / f"{name}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_the_versions_of_its_constraints(name: str) -> None:
    first = steps(name)[0]
    assert first.instruction == "FROM"
    python = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", first.value)
    assert python is not None and python[1] in PYTHONS
    (install,) = [line for line in run_lines(name) if "pip install" in line]
    assert install.endswith(f" -c constraints/{FILES[name]}.txt")
    assert f"PIP_BUILD_CONSTRAINT=constraints/{FILES[name]}.txt" in install


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_shell(name: str) -> None:
    for line in run_lines(name):
        subprocess.run(["sh", "-n", "-c", line], check=True)


@pytest.mark.parametrize("name", FILES)
def test_the_sandbox_of_the_code_reward_is_installed(name: str) -> None:
    (line,) = [line for line in run_lines(name) if "apt-get install" in line]
    assert "bubblewrap" in line.split()


@pytest.mark.parametrize("name", FILES)
def test_its_steps_lead_to_a_command_that_works(name: str, tmp_path: Path) -> None:
    """What is copied is enough to build from, and the entry point of what is installed answers: another user has
    written no file of the checkout. Requirements are not installed anew: pip is told to leave them out."""
    context, prefix = tmp_path / "context", tmp_path / "prefix"
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for step in steps(name):
        if step.instruction == "COPY":
            *sources, target = step.value.split()
            for source in sources:
                assert source in sent, f"{source} is left out by .dockerignore"
                copied = context / target / source if target.endswith("/") else context / target
                copied.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, copied, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copyfile(ROOT / source, copied)
    quiet = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_PREFIX": str(prefix)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **quiet, "PIP_IGNORE_INSTALLED": "1", "PATH": path, "VERSION": "7.8.9"}
    (install,) = [line for line in run_lines(name) if "pip install" in line]
    done = subprocess.run(["sh", "-e", "-c", install], cwd=context, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(prefix.rglob("zero2r1-7.8.9.dist-info")), done.stdout + str(list(prefix.rglob("*.dist-info")))

    by = {step.instruction: step.value for step in steps(name)}
    entry, words = json.loads(by["ENTRYPOINT"]), json.loads(by["CMD"])
    (site,) = (path.parent for path in prefix.rglob("zero2r1-7.8.9.dist-info"))
    env = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{prefix / 'bin'}:{path}"}
    for arguments in (words, ["plan", "nano/r1"]):
        done = subprocess.run([*entry, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
