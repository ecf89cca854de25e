"""What users install: complete, quick to start, and light until there is work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

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
PACKAGES = {"pipeline", "rewards", "model", "configs", "recipes"}


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
    said = "import sys; import pipeline.runner.worker, pipeline.runner.runner; "
    said += "from pipeline.stages.registry import KINDS, config_class;"
    said += "[config_class(kind) for kind in KINDS]; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(told.split())


def test_the_wheel_holds_our_packages_whole_and_nothing_else(repository: Path, installed: Installed) -> None:
    """Code, type markers, recipes, configs, and the page of the report with its parts."""
    found = {path.relative_to(installed.site).as_posix() for path in installed.site.rglob("*") if path.is_file()}
    assert {name for name in found if name.partition("/")[0] in PACKAGES} == ours(repository)
    assert {"pipeline/py.typed", "rewards/py.typed", "model/py.typed", "pipeline/report/page.html"} <= found
    others = {name.partition("/")[0] for name in found} - PACKAGES - {"bin"}
    assert all(re.fullmatch(r"zero2r1-[^/]+\.dist-info", name) for name in others), others


def test_the_source_distribution_holds_what_a_build_wants(repository: Path, tmp_path: Path) -> None:
    hatchling("build", "-t", "sdist", "-d", str(tmp_path), cwd=repository)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    constraints = {path.relative_to(repository).as_posix() for path in (repository / "constraints").iterdir()}
    papers = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO", ".gitignore"}
    assert found == ours(repository) | constraints | papers


def ours(repository: Path) -> set[str]:
    """The files of our packages."""
    return {
        path.relative_to(repository).as_posix()
        for package in PACKAGES
        for path in (repository / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of our settings with a file a package, outside of any repository."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(repository / name, folder / name)
    for package in PACKAGES:
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    return folder


def hatchling(*words: str, cwd: Path) -> str:
    """Run the build backend."""
    command = [sys.executable, "-m", "hatchling", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout.strip()


def test_the_version_is_the_tag(project: Path, tmp_path: Path) -> None:
    """Also without tags, without git, and in a source distribution."""

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
        subprocess.run(["git", *who, *words], check=True, capture_output=True, cwd=project)

    assert hatchling("version", cwd=project) == "0.1.0.dev0"
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert Version(hatchling("version", cwd=project)).is_devrelease
    git("tag", "v0.3.0")
    assert hatchling("version", cwd=project) == "0.3.0"
    hatchling("build", "-t", "sdist", "-d", str(tmp_path), cwd=project)
    with tarfile.open(tmp_path / "zero2r1-0.3.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert hatchling("version", cwd=tmp_path / "zero2r1-0.3.0") == "0.3.0"
    git("commit", "--allow-empty", "-m", "second")
    later = Version(hatchling("version", cwd=project))
    assert later.is_devrelease and later > Version("0.3.0")


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
