"""Every block of the README and of every page of the docs does what it says, pasted in the order in which it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.exceptions import TyperException

from tests.house.walking import BLOCK, ROOT, Reader, parsed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = re.compile(r"(tests|pipeline|rewards|model|benchmarks|scripts|configs|recipes)/[\w./-]+")
LEFT_OUT = re.compile(r"Missing (parameter|argument)|requires an argument")
"""What the text may leave out when it names a command."""
PROSE = {page: BLOCK.sub("", page.read_text(encoding="utf-8")) for page in [*PAGES, *ROOT.glob("*.md")]}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, no network, and nobody's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_can_be_pasted(page: Path, alone: Path) -> None:
    Reader(alone).page(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_that_the_text_names_are_there(page: Path) -> None:
    faults = []
    for span in re.findall(r"`([^`\n]+)`", PROSE[page]):
        if OURS.fullmatch(span) and not (ROOT / span).exists():
            faults.append(f"{span}: no such file")
        if re.match(r"zero2r1 [a-z]", span) and "…" not in span:
            try:
                parsed(shlex.split(span)[1:])
            except TyperException as error:
                if not LEFT_OUT.search(str(error)):
                    faults.append(f"{span}: {error}")
    assert not faults
