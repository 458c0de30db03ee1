"""The site in a real browser: sorting, filters, links that keep the view, keyboard, phone width, accessibility."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.performance.board import invented, place, predictions, with_value
from neurobench.leaderboard_site import build_leaderboard
from tests.browser import Browser, find_browser

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def axe() -> str:
    """Return axe-core's script, from where npm has put it; .ci/run installs it."""
    folders = [os.environ.get("NEUROBENCH_AXE", ""), str(ROOT / ".axe" / "node_modules" / "axe-core" / "axe.min.js")]
    for name in folders:
        if name and Path(name).is_file():
            return Path(name).read_text(encoding="utf-8")
    pytest.skip("axe-core is not there: npm install --prefix .axe axe-core, or set NEUROBENCH_AXE to its axe.min.js")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    """A board of every kind of row, ranked and not, and one shown apart, served to this machine only."""
    folder = tmp_path_factory.mktemp("board")
    truth = 10 + 3 * np.random.default_rng(0).standard_normal(60)
    rows = {
        "mamba · roi": ("pretrained", 0.6),
        "mamba · random": ("pretrained", 1.5),
        "transformer · roi": ("pretrained", 2.0),
        "transformer · random": ("pretrained", 4.5),
        "mamba · untrained": ("untrained", 2.4),
        "connectome": ("baseline", 1.4),
        "mean": ("baseline", 4.0),
    }
    for task in ("age", "iq"):
        for n, (row, (kind, error)) in enumerate(rows.items()):
            held_out, value = predictions(truth, error, n)
            record = with_value(invented(row, kind, task=task, above_chance=error < 3), value)
            place(folder / "results", record, held_out if task == "age" else None)
    place(folder / "results", invented("mamba · roi", "pretrained", protocol__split="within-recording"))
    place(folder / "results", invented("mamba · roi", "pretrained", dataset="clinic", data__source="real"))
    build_leaderboard(folder / "results")
    handler = functools.partial(_Quiet, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser(find_browser())
    yield found
    found.close()


AGE = "boards/invented--simulated--parcels--age.html"
ROWS = "[...document.querySelectorAll('#table-1 table.rows tbody tr')]"
NAMES = ROWS + ".map(r => r.querySelector('th a')?.textContent.trim())"


def hash_of(browser: Browser) -> str:
    return str(browser.evaluate("decodeURIComponent(location.hash.slice(1))"))


def click(browser: Browser, what: str) -> None:
    browser.evaluate(f"document.querySelector({what!r}).click()")
    browser.evaluate("new Promise(done => setTimeout(done, 60))")


def say(browser: Browser, what: str, value: str) -> None:
    script = f"{{ const e = document.querySelector({what!r}); e.value = {value!r};"
    browser.evaluate(script + " e.dispatchEvent(new Event('input', { bubbles: true })); }")


def test_sorting_by_any_column_both_ways(site: str, browser: Browser):
    browser.window(1280)
    browser.open(site + AGE)
    start = browser.evaluate(NAMES)
    assert start[0] == "mamba · roi"
    click(browser, "#table-1 th[data-key=row]")
    assert browser.evaluate(NAMES) == sorted(start)
    assert hash_of(browser) == "sort=row:asc"
    assert browser.evaluate("document.querySelector('#table-1 th[data-key=row]').ariaSort") == "ascending"
    click(browser, "#table-1 th[data-key=row]")
    assert browser.evaluate(NAMES) == sorted(start, reverse=True)
    click(browser, "#table-1 th[data-key=row]")
    assert browser.evaluate(NAMES) == start, "the third click is the order of the build"
    assert hash_of(browser) == ""
    click(browser, "#table-1 th[data-key=score]")
    assert browser.evaluate(NAMES) == start, "of an error the least comes first"
    click(browser, "#table-1 th[data-key=parameters]")
    assert set(browser.evaluate(NAMES)[-2:]) == {"connectome", "mean"}, "what has no parameters comes last"


def test_sorting_with_the_keyboard_alone(site: str, browser: Browser):
    browser.window(1280)
    browser.open(site + AGE)
    start = browser.evaluate(NAMES)
    reach = "document.activeElement.closest('th')?.dataset.key === 'row'"
    browser.evaluate("document.querySelector('#view-csv').focus()")
    for _ in range(8):
        browser.press("Tab", 9)
        if browser.evaluate(reach):
            break
    assert browser.evaluate(reach), "the column's head can be reached with Tab"
    browser.press("Enter", 13)
    browser.evaluate("new Promise(done => setTimeout(done, 80))")
    assert browser.evaluate(NAMES) == sorted(start)
    assert hash_of(browser) == "sort=row:asc"


def test_filters_and_search_say_how_much_is_left(site: str, browser: Browser):
    browser.window(1280)
    browser.open(site + AGE)
    status = "document.getElementById('status').textContent"
    assert browser.evaluate(status) == "8 rows", "seven, and one shown apart"
    click(browser, "input[value=baseline]")
    assert not {"connectome", "mean"} & set(browser.evaluate(NAMES))
    assert browser.evaluate(status) == "6 of 8 rows"
    click(browser, "input[value=baseline]")
    say(browser, "select[data-filter=backbone]", "mamba")
    left = browser.evaluate(NAMES)
    assert "connectome" in left, "what a row has to beat stays"
    assert "transformer · roi" not in left
    click(browser, "#reset")
    say(browser, "select[data-filter=signal]", "no")
    assert set(browser.evaluate(NAMES)) == {"transformer · random", "mean"}
    click(browser, "#reset")
    say(browser, "#q", "connec")
    assert browser.evaluate(NAMES) == ["connectome"]
    say(browser, "#q", "zzz")
    assert "No row is left" in browser.evaluate("document.querySelector('#table-1 tbody').textContent")


def test_a_link_shows_the_same_view_again(site: str, browser: Browser):
    browser.window(1280)
    browser.open(site + AGE)
    say(browser, "#q", "m")
    click(browser, "input[value=baseline]")
    say(browser, "select[data-filter=mask]", "roi")
    click(browser, "#table-1 th[data-key=row]")
    click(browser, "#table-1 th[data-key=row]")
    seen, link = browser.evaluate(NAMES), browser.evaluate("location.href")
    assert seen == ["transformer · roi", "mamba · untrained", "mamba · roi"]
    browser.open(link)
    assert browser.evaluate(NAMES) == seen
    assert browser.evaluate("document.querySelector('input[value=baseline]').checked") is False
    assert browser.evaluate("document.querySelector('#q').value") == "m"
    assert browser.evaluate("location.href") == link
    # A link that asks for what is not there shows everything.
    browser.open(site + AGE + "#sort=nothing:up&backbone=none&q=")
    assert len(browser.evaluate(NAMES)) == 7
    assert browser.errors == []
    # One with markup in it is text.
    browser.open(site + AGE + "#q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert browser.evaluate("document.images.length") == 0


def test_a_place_on_the_page_is_no_view(site: str, browser: Browser):
    browser.open(site + AGE + "#table-2")
    assert len(browser.evaluate(NAMES)) == 7
    assert hash_of(browser) == "table-2"


def pages(site: str) -> list[str]:
    folder = ["index.html", AGE, AGE.replace("age", "iq")]
    return [site + name for name in folder]


def a_row(site: str, browser: Browser) -> str:
    browser.open(site + AGE)
    return str(browser.evaluate("document.querySelector('#table-1 tbody th a').href"))


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_fails_and_nothing_leaves_the_page(site: str, browser: Browser, dark: bool):
    browser.window(1280, dark=dark)
    for address in [*pages(site), a_row(site, browser)]:
        browser.open(address)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.errors == []
        assert browser.console == []
        assert browser.requests
        assert not [r for r in browser.requests if not r.startswith((site, "data:"))]
        assert browser.evaluate("document.querySelectorAll('script[src]').length") >= 2


def test_it_opens_from_a_folder_too(browser: Browser):
    browser.window(1280)
    browser.open((ROOT / "leaderboard" / "site" / "index.html").as_uri())
    assert browser.errors == []
    assert browser.evaluate("document.getElementById('status').textContent").endswith(" boards")
    assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "flex"


@pytest.mark.parametrize(("width", "phone"), [(390, True), (768, False), (1280, False)])
def test_no_page_scrolls_sideways(site: str, browser: Browser, width: int, phone: bool):
    browser.window(width, phone=phone)
    for address in [*pages(site), a_row(site, browser)]:
        browser.open(address)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [width, width], address


def test_on_a_phone_every_row_fits_and_can_be_sorted(site: str, browser: Browser):
    browser.window(390, phone=True)
    browser.open(site + AGE)
    inside = "[...document.querySelectorAll('table.rows tbody td, table.rows tbody th')]"
    inside += ".filter(c => c.offsetParent && c.getBoundingClientRect().right > innerWidth).length"
    assert browser.evaluate(inside) == 0
    start = browser.evaluate(NAMES)
    say(browser, "#sort", "row:asc")
    assert browser.evaluate(NAMES) == sorted(start)
    assert hash_of(browser) == "sort=row:asc"


def test_the_theme_is_the_systems_until_somebody_chooses(site: str, browser: Browser):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.window(1280, dark=True)
    browser.open(site + "index.html")
    dark = browser.evaluate(paper)
    browser.window(1280, dark=False)
    light = browser.evaluate(paper)
    assert dark != light
    click(browser, "#theme")
    click(browser, "#theme")
    assert browser.evaluate(paper) == dark
    browser.open(site + AGE)
    assert browser.evaluate(paper) == dark, "the next page keeps it"
    click(browser, "#theme")
    assert browser.evaluate(paper) == light


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_axe_finds_nothing(site: str, browser: Browser, width: int, phone: bool, dark: bool):
    script = axe()
    browser.window(width, dark=dark, phone=phone)
    for address in [*pages(site), a_row(site, browser)]:
        browser.open(address)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        browser.evaluate(script + "; 0")
        found = browser.evaluate(
            "axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)"
            " + ' · ' + n.failureSummary.slice(0, 160)).join(' | ')))"
        )
        assert found == [], address


def test_without_scripts_the_tables_are_whole(site: str, browser: Browser):
    browser.window(1280)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=site + AGE)
        browser.loaded = False
        while not browser.loaded:
            browser._next()
        text = browser.send("Runtime.evaluate", expression="document.body.innerText", returnByValue=True)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert "connectome" in text["result"]["value"]
    assert "Without scripts the table is whole" in text["result"]["value"]
    assert "Reset" not in text["result"]["value"], "what needs a script is not shown"


def test_the_published_board_is_sound(browser: Browser, tmp_path: Path):
    """Every page of the committed board loads without an error, on a phone too."""
    shutil.copytree(ROOT / "leaderboard" / "site", tmp_path / "site")
    browser.window(390, phone=True)
    for page in sorted((tmp_path / "site").rglob("*.html")):
        browser.open(page.as_uri())
        assert browser.errors == [], page.name
        assert browser.evaluate("document.documentElement.scrollWidth") == 390, page.name
