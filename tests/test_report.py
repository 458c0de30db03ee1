"""The report of a small simulated run: one file that needs no other, true to the records, readable in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import neurobench
from neurobench import runs
from neurobench.cli import app
from neurobench.report_cohort import _alike
from neurobench.results import load_results, read_record
from tests.browser import Browser, find_browser


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    neurobench.run(
        backbone="transformer",
        mask="roi,random_tube",
        dataset="parcels",
        n_subjects=40,
        n_steps=4,
        task="age,diagnosis,reconstruction",
        attribution=True,
        out=folder,
    )
    found = CliRunner().invoke(app, ["report", str(folder)])
    assert found.exit_code == 0, found.output
    assert "simulated" in found.output
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, its anchors, and pictures without an alternative text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.blind = 0
        self.pictures = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.refers += [v for k in ("src", "href") if (v := given.get(k))]
        self.ids += [v for k in ("id",) if (v := given.get(k))]
        self.pictures += tag == "img"
        self.blind += tag == "img" and not given.get("alt")


@pytest.mark.slow
def test_one_file_that_needs_no_other(out: Path):
    text = (out / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.pictures >= 10
    assert page.blind == 0
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in page.refers)
    assert {r[1:] for r in page.refers if r.startswith("#")} <= set(page.ids)
    assert "http://" not in text
    assert "https://" not in text


def test_numbers_are_those_of_the_records(out: Path):
    text = (out / "report" / "report.html").read_text(encoding="utf-8")
    table = load_results(out)
    for r in table[table["task"] == "diagnosis"].to_dict("records"):
        assert f'<th scope="row">{r["row"]}' in text
        assert f"{r['score']:.2f}" in text
    csv = pd.read_csv(out / "report" / "report.csv")
    assert len(csv) == len(table)
    assert "record" not in csv, "the paths of this machine stay out"
    assert csv["score"].tolist() == pytest.approx(table["score"].tolist())


def test_what_a_reviewer_asks_for(out: Path):
    text = re.sub(r"<[^>]+>", " ", (out / "report" / "report.html").read_text(encoding="utf-8"))
    text = " ".join(text.split())
    record = read_record(next((out / "records").glob("*.json")))
    for what in (
        "SIMULATED",
        "These recordings are simulated",
        "held out by subject",
        "Nothing separates",
        "subjects would be needed",
        "power of .8",
        "partial r given all covariates",
        "site told from the features",
        record.data.licence,
        record.protocol.fold_fingerprint[:12],
        record.environment["torch"],
        record.task.digest[:12],
        "Nadeau",
        "left out nobody",
        "scored age 40 subjects",
        "Paired: masks",
        "Whether the attributions can be believed",
        "Zeiler",
        "Abnar",
        "Abraham et al. 2014",
        "Paszke et al. 2019",
    ):
        assert what in text, what


def test_markdown_and_its_pictures(out: Path):
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(pictures) >= 10
    assert all((out / "report" / p).is_file() for p in pictures)
    assert set(pictures) == {f"figures/{p.name}" for p in (out / "report" / "figures").iterdir()}
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_confounds_are_in_every_record_of_a_task_on_subjects(out: Path):
    table = load_results(out)
    for r in table[(table["task"] == "age") & (table["row"] != "mean")].to_dict("records"):
        found = read_record(Path(r["record"])).confounds
        assert "partial_r[all]" in found, r["row"]
        assert ("site_leak" in found) == (r["row"] != "covariates")
        assert ("over_covariates" in found) == (r["row"] != "covariates")


def test_attribution_stands_beside_its_controls(out: Path):
    table = load_results(out)
    row = table[(table["task"] == "age") & (table["row"] == "transformer · roi")].iloc[0]
    found = pd.read_parquet(out / "evidence" / row["id"] / "attribution.parquet")
    assert set(found["control"]) == {"", "labels"}
    assert (found["low"] <= found["high"]).all()
    untrained = table[(table["task"] == "age") & (table["kind"] == "untrained")].iloc[0]
    assert (out / "evidence" / untrained["id"] / "attribution.parquet").is_file()


def test_what_is_drawn_on_stands_beside_the_untrained(out: Path):
    table = load_results(out)
    rows = table[table["task"] == "reconstruction"]
    for row in ("transformer · roi", "transformer · untrained"):
        found = pd.read_parquet(out / "evidence" / rows[rows["row"] == row].iloc[0]["id"] / "importance.parquet")
        assert found["value"].mean() == pytest.approx(1, abs=0.05)
        assert not found["expected"].any(), "no response is expected anywhere in fMRI"
    names = {p.name for p in (out / "report" / "figures").iterdir()}
    assert any("importance-transformer" in n for n in names)
    assert any("age-attribution-map" in n for n in names)


def test_lines_that_differ_in_a_share_are_one():
    lines = ["a: 3% of a recording left out", "b", "a: 38% of a recording left out", "a: 0% of a recording left out"]
    assert _alike(lines) == ["a: 0 to 38 % of a recording left out", "b"]


@pytest.mark.slow
def test_a_broken_figure_costs_itself_only(out: Path, tmp_path: Path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from neurobench import Figure, hookimpl\n"
        "class Broken(Figure):\n"
        "    name, summary = 'broken', 'breaks'\n"
        "    def draw(self, evidence):\n"
        "        raise RuntimeError('no ink')\n"
        "@hookimpl\n"
        "def register_figures():\n"
        "    return [Broken]\n"
    )
    found = CliRunner().invoke(app, ["report", str(out), "--to", str(tmp_path / "to"), "--plugin", str(plugin)])
    assert found.exit_code == 0
    assert "Figure broken failed: RuntimeError: no ink" in " ".join(found.output.split())
    assert Page((tmp_path / "to" / "report.html").read_text(encoding="utf-8")).pictures >= 10


def test_nothing_to_report_is_said(tmp_path: Path):
    found = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert found.exit_code == 1
    assert "holds no records" in found.output
    now = time.time()
    runs.write_state(tmp_path, runs.State("r", "", "elsewhere", 1, "", "", started=now, heard=now, n_rows=9))
    found = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "run r is still under way; the records of 0 of its 9 rows are written" in " ".join(found.output.split())
    assert "neurobench status" in found.output


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_sideways_scrolling(out: Path, tmp_path: Path, width: int):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "framed.html"
    # In a frame of the width of a phone: a browser's own window cannot be that narrow.
    source = (out / "report" / "report.html").read_text(encoding="utf-8")
    probe = (
        "<script>const d=document.documentElement;"
        "document.title=JSON.stringify({scroll:d.scrollWidth,client:d.clientWidth,"
        "images:[...document.images].map(i=>[i.naturalWidth,i.parentElement.clientWidth,i.clientWidth])})</script></body>"
    )
    (tmp_path / "page.html").write_text(source.replace("</body>", probe), encoding="utf-8")
    page.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:900px;border:0'></iframe>"
        "<script>f.onload=()=>{document.body.insertAdjacentHTML('beforeend','<pre>'+f.contentDocument.title+'</pre>')}</script>"
    )
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    command += ["--virtual-time-budget=20000", "--window-size=1400,1000", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<pre>(\{.*\})</pre>", shown)
    assert found is not None, shown[-500:]
    measured = json.loads(found[1].replace("&quot;", '"'))
    assert measured["scroll"] <= measured["client"], "the page is wider than the window"
    assert len(measured["images"]) >= 10
    # On a phone a picture keeps the size at which its type is read, and moves in a frame that fits.
    assert all(natural > 0 and frame <= width and own >= 500 for natural, frame, own in measured["images"])


@pytest.mark.slow
def test_at_night_and_on_paper(out: Path):
    browser = Browser(find_browser())
    try:
        browser.window(720, dark=True)
        browser.open((out / "report" / "report.html").as_uri())
        light = "(e => getComputedStyle(e).{}.match(/\\d+/g).reduce((a, b) => a + +b, 0) / 3)({})"
        assert browser.evaluate(light.format("backgroundColor", "document.body")) < 60
        assert browser.evaluate(light.format("color", "document.body")) > 180
        # Pictures are drawn on paper, of which some have none of their own.
        assert browser.evaluate(light.format("backgroundColor", "document.querySelector('figure img')")) == 255
        browser.send("Emulation.setEmulatedMedia", media="print", features=[])
        assert browser.evaluate(light.format("color", "document.body")) < 60
        # Nothing can be opened or moved sideways there.
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tables = browser.evaluate("[...document.querySelectorAll('details table')].map(t => t.offsetHeight)")
        assert tables
        assert min(tables) > 0
        assert not browser.evaluate("[...document.querySelectorAll('table')].some(t => t.offsetWidth > innerWidth)")
    finally:
        browser.close()
