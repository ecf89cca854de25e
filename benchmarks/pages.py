"""Tables that a benchmark writes into a page of the docs, between two markers of its own."""

from __future__ import annotations

from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """What stands before and behind the table of a benchmark."""
    return f"<!-- benchmarks.{name} -->", f"<!-- /benchmarks.{name} -->"


def placed(page: str, name: str, table: str) -> str:
    """A page with a table in place of the one between the markers.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = markers(name)
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the page has no place for this table: put {begin} and {end} where it belongs")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def fault(page: Path, name: str) -> str:
    """Why a page cannot take the table of a benchmark; empty if it can."""
    try:
        placed(page.read_text(encoding="utf-8"), name, "")
    except (OSError, ValueError) as error:
        return f"{page}: {error}"
    return ""


def tell(name: str, table: str, page: Path | None) -> None:
    """Print a table, or write it into a page."""
    if page is None:
        print(table)
    else:
        page.write_text(placed(page.read_text(encoding="utf-8"), name, table), encoding="utf-8")
