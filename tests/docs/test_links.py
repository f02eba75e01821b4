"""Links between pages lead to files, and to headings, that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for place in (ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "benchmarks").glob("*.md"))
    for path in place
)
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:[\w-]+/)+\w+\.py)`", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "peftkit")

    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"

    found = {(index.parent / target.partition("#")[0]).resolve() for target in targets(index)}

    assert set(index.parent.rglob("*.md")) - {index} <= found


def test_a_heading_is_linked_as_git_hosts_name_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What `fetch` brings, and why?\n\n[here](#what-fetch-brings-and-why) [not](#what) [no](no.md)\n")

    assert list(broken_links(page)) == ["#what", "no.md"]


def broken_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead to no file or to no heading."""
    for target in targets(page):
        name, _, heading = target.partition("#")
        there = page.parent / name if name else page
        if not there.exists() or (heading and heading not in headings(there)):
            yield target


def targets(page: Path) -> list[str]:
    """Where the relative links of a page lead."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def headings(page: Path) -> set[str]:
    """The names by which the headings of a page are linked."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in found}
