"""The documentation as a site: it builds without a warning, needs no other host, and its links and search work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[2]
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "srcset"}
"""Elements that make a browser fetch something, and the attribute that says what."""


class Page(HTMLParser):
    """What a page loads, what it links to, and the anchors that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if "id" in known:
            self.anchors.add(known["id"])
        if known.get("rel") != "canonical" and LOADING.get(tag) in known:
            self.loads.append(known[LOADING[tag]])
        if tag == "a" and "href" in known:
            self.links.append(known["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: `--strict`, so that a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_nothing_is_loaded_from_another_host(pages: dict[Path, Page]) -> None:
    assert len(pages) > 50
    abroad = {(file.name, url) for file, page in pages.items() for url in page.loads if re.match(r"(https?:)?//", url)}
    assert not abroad
    local = {
        (file, (file.parent / url.partition("?")[0]).resolve()) for file, page in pages.items() for url in page.loads
    }
    assert not {f"{file.name}: {target}" for file, target in local if not target.is_file() and file.name != "404.html"}


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            target = (file.parent / name).resolve() if name else file
            if re.match(r"[a-z]+:", link) or file.name == "404.html":
                continue
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert not broken


def test_files_that_the_pages_link_to_are_shown(site: Path) -> None:
    shown = (site / "source" / "pipeline" / "training" / "grpo" / "objective.py.html").read_text(encoding="utf-8")
    assert "objective.py" in (site / "design" / "index.html").read_text(encoding="utf-8")
    assert "advantages" in shown


def test_the_search_knows_every_page_and_no_code(site: Path) -> None:
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert found >= {str(p.relative_to(ROOT / "docs").with_suffix(".html")) for p in (ROOT / "docs").rglob("*.md")}
    assert not [location for location in found if re.search(r"\.(py|json|yaml)\.html", location)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


def test_search_works_from_a_disk(site: Path, browser: webdriver.Chrome) -> None:
    browser.get((site / "start" / "first-task.html").as_uri() + "?q=decontaminate")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)"
    links = WebDriverWait(browser, 20).until(lambda b: b.execute_script(found))
    assert any("guides/data.html" in link for link in links)
