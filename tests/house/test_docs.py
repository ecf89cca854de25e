"""The documents: there, and every relative link in them leads somewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from benchmarks import figures, nano

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
README_WORDS = 900
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown document's headings get."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE)
    bare = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings)
    return {heading.strip().lower().replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    broken = []
    for match in LINK.finditer(FENCE.sub("", document.read_text(encoding="utf-8"))):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_documents_that_people_look_for_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").split()) > 50, f"{name} says next to nothing"


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


@pytest.mark.parametrize("theme", figures.THEMES)
def test_the_picture_is_that_of_the_committed_results(theme: str) -> None:
    drawn = (ROOT / "docs" / "images" / f"stages-{theme}.svg").read_text(encoding="utf-8")
    assert drawn == figures.picture(figures.THEMES[theme]), "run python -m benchmarks.figures"
    assert f"docs/images/stages-{theme}.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [nano.scores, nano.claims, nano.curves])
def test_the_tables_of_nano_are_those_of_the_committed_results(
    table: Callable[[Sequence[nano.Run]], Iterator[str]],
) -> None:
    page = (ROOT / "docs" / "results" / "nano.md").read_text(encoding="utf-8")
    assert "\n".join(table(nano.read())) in page, "run python -m benchmarks.nano"


def test_a_change_in_nano_counts_where_the_intervals_lie_apart() -> None:
    """By hand: 20 to 30 and 25 to 40 overlap, 31 to 40 lies above, 10 to 19 below."""

    def found(low: float, high: float) -> int:
        table = {
            "zero": {"chain/test": {"low": 0.20, "high": 0.30}},
            "dev2": {"chain/test": {"low": low, "high": high}},
        }
        return nano.Claim("", "chain/test", "zero", "dev2", 1, "").found({"table": table})

    assert [found(0.25, 0.40), found(0.31, 0.40), found(0.10, 0.19), found(0.21, 0.22)] == [0, 1, -1, 0]


def test_the_changelog_begins_with_what_comes_and_knows_the_versions() -> None:
    """The version of a copy without tags is before the newest of them."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["fallback-version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert first == "Unreleased"
    assert sorted(map(Version, versions), reverse=True) == list(map(Version, versions))
    assert Version(version).base_version == versions[0]


def test_the_citation_names_what_a_citation_needs() -> None:
    """Those of the schema 1.2.0 (`cffconvert --validate`)."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0"
    for entry in (found, *found["references"]):
        assert entry["title"] and entry["type"]
        assert all(set(author) & {"name", "family-names"} for author in entry["authors"])
    assert found["message"] and found["type"] == "software"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["license"] == project["license"]


def test_the_readme_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys() - {"dev"}
    install = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[2]
    assert extras == set(re.findall(r"^\| `(\w+)` \|", install, re.MULTILINE))


def test_the_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make nano\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", readme, re.MULTILINE)
