"""The house's own rules, checked by the tools that know them: format, lint, types, directions of imports, size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGES = ("pipeline", "rewards", "model")
LINES_PER_MODULE = 400
TOOLS: dict[str, Sequence[str]] = {
    "ruff format": ("ruff", "format", "--check", "."),
    "ruff check": ("ruff", "check", "."),
    "mypy": ("mypy",),
    "import-linter": ("lint-imports",),
}
FORBIDDEN = {
    # Written as patterns so that this file does not contain what it looks for.
    "the host of a package index": r"py[p]i\.org|pythonhoste[d]|download\.pytorc[h]|/opt/(whee[l]|pyp[i])",
    "a path of one machine": r"/wor[k]/|/root/ven[v]|/hom[e]/\w+/|/User[s]/\w+/",
}


def tracked(repository: Path) -> list[Path]:
    """The files of the project: everything that git knows, or would add."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True).stdout
    return [repository / name for name in names.split("\0") if name and (repository / name).is_file()]


@pytest.mark.parametrize("tool", TOOLS)
def test_tool(tool: str, repository: Path) -> None:
    program, *arguments = TOOLS[tool]
    command = [str(Path(sys.executable).parent / program), *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_scripts_parse_and_can_be_run(repository: Path) -> None:
    scripts = [*(repository / "scripts").glob("*.sh"), repository / ".ci" / "run"]
    assert len(scripts) > 1
    for script in scripts:
        assert os.access(script, os.X_OK), script
        shell = "bash" if script.read_text().startswith("#!/usr/bin/env bash") else "sh"
        assert subprocess.run([shell, "-n", str(script)]).returncode == 0, script


def test_types_are_checked_strictly_in_every_package(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert set(settings["packages"]) == set(PACKAGES)


def test_modules_are_short(repository: Path) -> None:
    lengths = {
        path.relative_to(repository): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (repository / package).rglob("*.py")
    }
    assert lengths, "no modules found"
    assert not {str(path): lines for path, lines in lengths.items() if lines > LINES_PER_MODULE}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_name_no(what: str, repository: Path) -> None:
    found = []
    for path in tracked(repository):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(repository)}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(lines, 1)
            if re.search(FORBIDDEN[what], line)
        ]
    assert not found, "\n".join(found)
