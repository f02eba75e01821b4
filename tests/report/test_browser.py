"""The pages in a real browser: wide and narrow, light and dark, on paper, without scripts, and for screen readers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest

from peftkit.report.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# a machine that only runs the tests of a GPU need not have them
axe_core_python = pytest.importorskip("axe_core_python")
sync_api = pytest.importorskip("playwright.sync_api")

Scheme = Literal["light", "dark"]
SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")
CHROMIUM = shutil.which("chromium")
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=["run", "comparison", "runs"])
def place(request: pytest.FixtureRequest, runs: dict[str, Path], compared: Path, tmp_path: Path) -> Path:
    """A page of each kind."""
    chosen = {"run": [runs["lora"]], "comparison": [compared], "runs": list(runs.values())}[request.param]
    return write_report(chosen, tmp_path / "page.html")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_fits_loads_nothing_says_nothing_and_is_accessible(
    browser: Browser, place: Path, width: int, scheme: Scheme
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))

    page.goto(place.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    shown, room = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    page.evaluate(AXE)
    violations = page.evaluate("axe.run().then(found => found.violations.map(each => each.id))")
    context.close()

    assert requests == [place.as_uri()]
    assert messages == []
    assert shown <= room
    assert violations == []
    assert place.stat().st_size < 1_000_000


def test_a_page_is_whole_without_scripts(browser: Browser, place: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()

    page.goto(place.as_uri())
    heading, pictures = page.locator("h1").inner_text(), page.locator("svg[role=img]").count()
    first = page.locator("table").first.is_visible()
    context.close()

    assert heading
    assert pictures >= 2
    assert first


def test_colours_follow_the_scheme(browser: Browser, place: Path) -> None:
    colours = []
    for scheme in SCHEMES:
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(place.as_uri())
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()

    assert colours == ["rgb(253, 253, 252)", "rgb(21, 23, 26)"]


def test_paper_has_what_is_folded_on_the_screen(browser: Browser, compared: Path) -> None:
    page = browser.new_page()

    page.goto(write_report([compared]).as_uri())
    on_screen = page.locator("details figure").first.is_visible()
    page.emulate_media(media="print")
    on_paper = page.locator("details figure").first.is_visible()
    page.close()

    assert not on_screen
    assert on_paper


def test_the_first_tab_leads_past_the_head(browser: Browser, place: Path) -> None:
    page = browser.new_page()

    page.goto(place.as_uri())
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.getAttribute('href')")
    page.close()

    assert focused == "#content"
