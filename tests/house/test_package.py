"""What users install: complete, quick to start, and light until there is work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Installed, Timed

HELP_SECONDS = 0.3
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "vllm",
    "datasets",
    "accelerate",
    "sympy",
    "math_verify",
    "matplotlib",
    "numpy",
}
DATA = ("recipes", "configs")


def test_help_is_quick(timed: Callable[..., Timed]) -> None:
    told = timed(str(Path(sys.executable).parent / "zero2r1"), "--help", limit=HELP_SECONDS)
    assert "run" in told.output
    assert told.seconds <= HELP_SECONDS


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", *arguments]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines()}
    assert "typer" in imported
    assert not HEAVY & imported


def test_a_recipe_is_read_without_anything_heavy() -> None:
    """Of any stage kind: its config is checked, and its process is started, long before anything is computed."""
    said = (
        "import sys; import pipeline.worker, pipeline.runner; from pipeline.stages.registry import KINDS, config_class;"
    )
    said += "[config_class(kind) for kind in KINDS]; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(told.split())


def test_the_wheel_holds_every_recipe_and_config(repository: Path, installed: Installed) -> None:
    script = (
        "from importlib.resources import files; from pathlib import Path\n"
        f"for name in {DATA}:\n"
        "    root = Path(str(files(name)))\n"
        "    print(*sorted(f'{name}/{p.relative_to(root)}' for p in root.rglob('*') if p.is_file()), sep='\\n')\n"
    )
    shipped = installed.run("-c", script, cwd=installed.site.parent).stdout.split()
    expected = sorted(
        str(path.relative_to(repository))
        for name in DATA
        for path in (repository / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert expected
    assert sorted(shipped) == expected


def test_the_wheel_holds_the_page_and_the_type_markers(installed: Installed) -> None:
    for name in ("pipeline/py.typed", "rewards/py.typed", "model/py.typed", "pipeline/report/page.html"):
        assert (installed.site / name).is_file(), name


def test_an_installed_copy_works_from_any_folder(installed: Installed, tmp_path: Path) -> None:
    where = "import pipeline, rewards, model; print(pipeline.__file__, rewards.__file__, model.__file__, sep='\\n')"
    for file in installed.run("-c", where, cwd=tmp_path).stdout.split():
        assert Path(file).is_relative_to(installed.site)
    listed = installed.run("-m", "pipeline.cli", "plan", "nano/r1", cwd=tmp_path).stdout
    assert "pretrain" in listed


def shipped_recipes() -> list[str]:
    from pipeline.recipe import shipped

    return list(shipped())


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    from pipeline.recipe import load

    recipe = load(name)
    assert recipe.stages
    assert recipe.description, "say in a sentence what the recipe does"
