"""Hooks of `mkdocs build`: links from the pages to files of the repository lead to copies of these files in the site.

The pages link to code, results and root documents by relative paths, so that they can be read in the repository itself.
A site holds only `docs/`. Therefore every file that a page links to becomes a page under `source/`: Markdown as it is,
anything else as one block of code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS, COPIES = "docs", "source"
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh", ".json": "json", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a copy of every file outside of `docs/` that a page links to, and of those that such copies link to."""
    todo = [(_path(file.src_uri), file.content_string) for file in files.documentation_pages()]
    while todo:
        path, text = todo.pop()
        for match in LINK.finditer(FENCE.sub("", text)):
            target = _joined(path, match[1])
            uri = _uri(target)
            if not target.startswith(f"{DOCS}/") and (ROOT / target).is_file() and uri not in files.src_uris:
                text = (ROOT / target).read_text(encoding="utf-8")
                files.append(File.generated(config, uri, content=_copy(target, text)))
                if target.endswith(".md"):
                    todo.append((target, text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the page's links lead to the copies; links within `docs/` stay as they are."""
    here, at = _path(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        target = _joined(here, match[1])
        if target.startswith(f"{DOCS}/") and here.startswith(f"{DOCS}/"):
            return match[1]
        return posixpath.relpath(_uri(target), at or ".") if (ROOT / target).is_file() else match[1]

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(led, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(led, markdown[end:])])


def _path(uri: str) -> str:
    """The path in the repository of a page of the site."""
    if uri.startswith(f"{COPIES}/"):
        path = uri.removeprefix(f"{COPIES}/")
        return path if (ROOT / path).is_file() else path.removesuffix(".md")
    return f"{DOCS}/{uri}"


def _uri(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{COPIES}/{path}" if path.endswith(".md") else f"{COPIES}/{path}.md"


def _joined(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _copy(path: str, text: str) -> str:
    head = "---\nsearch: {exclude: true}\n---\n"
    if path.endswith(".md"):
        return head + text
    fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    return f"{head}# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n{fence}\n"
