"""Nothing from outside is run, no name is anything but text, no path leaves its folder: what docs/security.md says."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.text import Text
from typer.testing import CliRunner

from benchmarks.fuzz.pages import HOSTILE, named, only_text, pages_of, report_of, usual_pages, usual_report
from benchmarks.fuzz.results import cohort_page
from benchmarks.fuzz.samples import filled
from benchmarks.performance.board import invented
from neurobench import console, upkeep
from neurobench.cli import app
from neurobench.config import load_suite
from neurobench.errors import ConfigError, DataError, StoreError
from neurobench.evidence import Evidence, read_cohort
from neurobench.export import model_card
from neurobench.options import RunConfig
from neurobench.parsing import parse_json, parse_yaml
from neurobench.report import Report
from neurobench.report_writing import _markdown_table, write_report
from neurobench.results import load_predictions, read_record, record_text
from neurobench.tables import TextTable
from neurobench_backbones._weights import read_weights
from neurobench_datasets._atlases import find_atlas, read_names
from neurobench_datasets._meg_sidecars import noise_file
from neurobench_datasets._tables import read_json
from neurobench_tasks._embeddings import read_embeddings
from neurobench_tasks.stimulus import Stimulus

ROOT = Path(__file__).parents[1]
EVIL = "<script>alert(1)</script>"


# ---------------------------------------------------------------- no code of this project

CALLS = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
"""What reads pickles unless it is told not to; ruff's rules S know the other ways of running what was read."""


@pytest.mark.parametrize("folder", ["neurobench", "plugins", "benchmarks", "docs"])
def test_no_reader_may_unpickle(folder: str) -> None:
    n = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"load\(|_pickle", text) else ():
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in CALLS:
                key, wanted = CALLS[name]
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get(key) == str(wanted), f"{path}:{node.lineno}: {name} without {key}={wanted}"
                n += 1
            elif isinstance(node, ast.Call):
                last = ast.unparse(node.func).split(".")[-1]
                assert last not in ("read_pickle", "to_pickle", "unsafe_load", "full_load"), f"{path}:{node.lineno}"
    assert n or folder == "docs"


# ---------------------------------------------------------------- text of YAML and JSON

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "repeats a part"),
        ("a: &a [*a]", "repeats a part"),
        ("[" * 20_000, "nested too deeply"),
        ("- " * 3_000, "nested too deeply"),
        ("...\n" * 3_000 + "[" * 20_000, "nested too deeply"),
        ("!!python/object/apply:os.system ['touch x']", "constructor"),
        ("a: !!int ''", "out of range"),
        ("a: !!timestamp x", "groupdict"),
        ("a: 2001-99-99", "month"),
        ("a: 0x" + "f" * 5000, "digits"),
        ('a: "\\ud800"', "surrogates"),
        ("a: \x00", "special characters"),
    ],
)
def test_yaml_is_plain_values_or_one_kind_of_error(text: str, says: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=says):
        parse_yaml(text)
    (tmp_path / "x.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="is no YAML"):
        load_suite(tmp_path / "x.yaml")
    assert time.process_time() - started < 5


def test_yaml_that_people_write_is_read() -> None:
    text = "---\nbackbones: [mamba, 'hybrid[layout=MA]']\ndata_dirs:\n  parcels: here\nseeds:\n- 0\n- 1\nratio: .5\n"
    expected = {"backbones": ["mamba", "hybrid[layout=MA]"], "data_dirs": {"parcels": "here"}, "seeds": [0, 1]}
    assert parse_yaml(text) == expected | {"ratio": 0.5}


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"", b"9" * 5000])
def test_json_is_a_value_or_one_kind_of_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match="is not a record"):
        read_record(tmp_path / "x.json")
    with pytest.raises(DataError):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "gives 'c' two values"),
        ('{"a": 1, "a": true}', "gives 'a' two values"),
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": ' + "9" * 301 + "}", "a number of 301 digits"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('{"a": "\\uD83D"}', "surrogates"),
        (b'{"a": "\xed\xa0\x80"}', "decode"),
    ],
)
def test_json_that_says_two_things_or_nothing_that_can_be_used_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_json_that_others_write_is_read(tmp_path: Path) -> None:
    # Converters of scans repeat a name with its value, and write NaN; a whole character may be written as two halves.
    text = '{"a": [1, 2.5], "a": [1, 2.5], "b": NaN, "b": NaN, "c": "\\ud83d\\ude00", "d": ' + "9" * 300 + "}"
    found = parse_json(b"\xef\xbb\xbf" + text.encode())
    assert (found["a"], found["c"], found["d"]) == ([1, 2.5], "😀", int("9" * 300))
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "x.json")["a"] == [1, 2.5]
    (tmp_path / "x.json").write_text('{"RepetitionTime": 2, "RepetitionTime": 0.8}', encoding="utf-8")
    with pytest.raises(DataError, match="gives 'RepetitionTime' two values"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "x\0"])
def test_paths_that_cannot_be_are_said(name: str) -> None:
    # Python raises errors of its own for homes of people who are unknown, and for names that are too long.
    with pytest.raises(DataError, match="does not exist"):
        read_weights(name)
    with pytest.raises(DataError, match="does not exist"):
        find_atlas(name, "adhd200")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_embeddings(f"{name}.npz", ["face"])
    with pytest.raises(ConfigError, match="does not exist"):
        Stimulus.named_files({"embeddings": f"{name}.npz"})


def test_a_suite_may_name_the_home_of_somebody_who_is_unknown_here(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("backbones: [mamba]\ndata_dirs: {parcels: ~nobody-of-this-name/x}\n", encoding="utf-8")
    assert load_suite(path).data_dirs == {"parcels": tmp_path / "~nobody-of-this-name/x"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"card": {"title": "x"}}, "card.modality: Field required"),
        ({"card": None}, "card: Input should be"),
        ({"findings": [{"code": "x", "level": "fatal", "n": 1, "example": ""}]}, "findings.0.level"),
        ({"columns": {"age": {"n": 1, "mean": 2.0}}}, "a spread has mean, sd, low and high"),
        ({"sites": [{"site": "A", "n": 1, "age": None}]}, "sites.0.age"),
        ({"fingerprint": "../1"}, "it is of another cohort"),
    ],
)
def test_a_page_of_a_cohort_that_lacks_what_reports_take_from_it_is_said(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    place = tmp_path / "cohorts" / "0"
    place.mkdir(parents=True)
    (place / "cohort.json").write_bytes(cohort_page())
    assert read_cohort(tmp_path, "0")["card"]["title"] == "x"
    (place / "cohort.json").write_text(json.dumps(json.loads(cohort_page()) | change), encoding="utf-8")
    with pytest.raises(DataError, match=f"cohort.json cannot be read: .*{re.escape(says)}"):
        read_cohort(tmp_path, "0")


def test_predictions_that_are_damaged_are_said(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        load_predictions(tmp_path, "0")


def test_half_a_character_in_a_record_is_said(tmp_path: Path) -> None:
    plain = json.loads(record_text(invented("net · roi", "pretrained")))
    plain["data"]["licence"] = "\ud800"
    (tmp_path / "x.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(StoreError):
        read_record(tmp_path / "x.json")
    plain["data"]["licence"], plain["backbone"]["parameters"]["\ud800"] = "none", 1
    (tmp_path / "x.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(StoreError):
        read_record(tmp_path / "x.json")


def test_a_number_that_is_infinite_is_no_suite(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("ratio: .inf\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds what no suite can"):
        load_suite(tmp_path / "x.yaml")


# ---------------------------------------------------------------- nothing is run


def test_a_suite_does_not_have_code_run(tmp_path: Path) -> None:
    plugin, suite = tmp_path / "mine.py", tmp_path / "suite.yaml"
    plugin.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n", encoding="utf-8")
    suite.write_text("masks: roi\nplugin_files: mine.py\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"needs the plugin .*mine\.py, which is code.*--plugin"):
        RunConfig.from_options(suite=suite)
    found = CliRunner().invoke(app, ["run", "--suite", str(suite), "--out", str(tmp_path / "out"), "--dry-run"])
    assert found.exit_code == 2
    assert not (tmp_path / "ran").exists()
    assert RunConfig.from_options(suite=suite, plugin_files=plugin).plugin_files == (plugin,)


def test_an_atlas_table_declares_no_entities(tmp_path: Path) -> None:
    text = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a><label><index>1</index><name>&b;</name></label></a>'
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "x.xml").write_text(text, encoding=encoding)
        with pytest.raises(DataError, match="declares entities"):
            read_names(tmp_path / "x.xml")


def test_an_atlas_table_of_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text('<?xml version="1.0" encoding="F-8"?><atlas></atlas>', encoding="utf-8")
    with pytest.raises(DataError, match="unknown encoding: F-8"):
        read_names(tmp_path / "x.xml")


def test_a_label_that_is_infinite_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label,name\n1e999,a\n2,b\n", encoding="utf-8")
    assert read_names(tmp_path / "x.csv")["name"].to_dict() == {2: "b"}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "e.npz", "e.parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\xff" * 18, b"PK\x03\x04" + b"\x00" * 40, b"\x80\x02c"])
def test_damaged_tensors_are_said(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    if name.startswith("w"):
        with pytest.raises(DataError, match=r"cannot be read as weights|holds more than tensors"):
            read_weights(tmp_path / name)
    else:
        with pytest.raises(ConfigError, match="embeddings cannot be read"):
            read_embeddings(str(tmp_path / name), ["face"])


def test_an_array_of_objects_is_not_read(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, "x", "X", "simulated", "fmri", "parcels", pd.DataFrame(), {"fingerprint": "0"})
    folder = tmp_path / "evidence" / "0"
    folder.mkdir(parents=True)
    np.savez(folder / "traces.npz", allow_pickle=True, r2=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"traces\.npz cannot be read: Object arrays cannot be loaded"):
        evidence.arrays("0", "traces")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "0.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        evidence.predictions("0")


# ---------------------------------------------------------------- names are text

NAMES = ["\x1b[2Jgone", "\x1b]0;title\x07", "[red]no[/red]", "a\rb", "\u202egnp.exe", "\x9b2J", "\ud800", "tab\there"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_does_nothing_to_a_terminal(name: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    screen = console.make_console()
    console.print_table(screen, ("name",), [(name,), (Text(name),)], title=name)
    console.print_error(DataError(name, allowed=name, likely=name, next_step=name), screen)
    screen.print(f"{name} failed", markup=False)
    shown = capsysbinary.readouterr().out.decode("utf-8")
    assert not console.UNPRINTABLE.search(shown)
    if name.startswith("["):
        assert shown.count(name) == 8, "no markup"


def test_json_is_written_and_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json(console.make_console(), {"rows": NAMES})
    shown = capsys.readouterr().out
    assert not console.UNPRINTABLE.search(shown)
    assert json.loads(shown) == {"rows": NAMES}


def test_a_report_of_hostile_names_is_text(tmp_path: Path) -> None:
    quoted = f'"><img src=x onerror=alert(1)>{EVIL}'
    grid = TextTable([EVIL, "score"], [[quoted, "1 < 2"]])
    report = Report(
        *(EVIL, "today", "0", [], [quoted], [(EVIL, quoted)], grid, ["javascript:alert(1)", quoted], [EVIL]),
        restricted=[quoted],
        failed=[EVIL],
        partial=[quoted],
    )
    table = pd.DataFrame({"row": ["=cmd|'/c calc'!A1", "@x", "net"], "score": [-1.5, 2.0, 3.0], "record": ["", "", ""]})
    html, markdown, csv = write_report(report, table, tmp_path)
    text = html.read_text(encoding="utf-8")
    assert text.count("<script") == 0
    assert "<img" not in text
    assert 'href="javascript' not in text
    assert "&lt;script&gt;" in text
    text = markdown.read_text(encoding="utf-8").replace("\\<", "")
    assert not [x for x in text.splitlines() if not x.startswith("    ") and ("<script" in x or "<img" in x)]
    assert "1 < 2" in _markdown_table(grid)
    again = pd.read_csv(csv)
    assert again["row"].tolist() == ["'=cmd|'/c calc'!A1", "'@x", "net"]
    assert again["score"].tolist() == [-1.5, 2.0, 3.0]


# ---------------------------------------------------------------- paths stay inside


def _member(kind: bytes, name: str = "neurobench.json", to: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    "member",
    [
        _member(tarfile.LNKTYPE),
        _member(tarfile.SYMTYPE, to="../../x"),
        _member(tarfile.CHRTYPE),
        _member(tarfile.FIFOTYPE),
        _member(tarfile.REGTYPE, "store/../../x"),
    ],
    ids=["hard link", "link", "device", "pipe", "up"],
)
def test_a_tar_file_holds_plain_files_only(member: tarfile.TarInfo, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(StoreError, match="which is no file inside it"):
        upkeep.merge(tmp_path / "out", [tmp_path / "x.tar"])
    assert not (tmp_path / "x").exists()


def test_a_tar_file_that_fills_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("neurobench.json")
    info.size = 5000
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(bytes(5000)))
    usage = shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr(upkeep.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="unpacks to more than there is room for"):
        upkeep.merge(tmp_path / "out", [tmp_path / "x.tar"])


def test_a_folder_in_an_entry_cannot_be_a_link_out_of_it(tmp_path: Path) -> None:
    from neurobench.store import Store

    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret", encoding="utf-8")
    identity = {"a": 1}
    with Store(tmp_path / "theirs").write("baseline", identity, "x") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "key").write_text("secret", encoding="utf-8")
    entry = next((tmp_path / "theirs" / "store" / "baseline").iterdir())
    shutil.rmtree(entry / "deep")
    (entry / "deep").symlink_to(tmp_path / "secret")
    (merged,) = upkeep.merge(tmp_path / "mine", [tmp_path / "theirs"])
    assert ["is no file inside it" in text for text in merged.damaged] == [True]


def test_a_sidecar_names_no_file_outside_its_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "sub-01" / "meg"
    folder.mkdir(parents=True)
    recording = folder / "sub-01_task-rest_meg.fif"
    for path in (tmp_path / "other.fif", tmp_path / "data" / "room.fif", recording):
        path.touch()

    def named(text: Any) -> Path | None:
        recording.with_suffix(".json").write_text(json.dumps({"AssociatedEmptyRoom": text}), encoding="utf-8")
        return noise_file(recording)

    assert named("room.fif") == tmp_path / "data" / "room.fif"
    for text in ("../other.fif", "bids::../other.fif", str(tmp_path / "other.fif"), "x" * 5000, "\x00", 7, [[]]):
        assert named(text) is None


@pytest.mark.skipif(os.name == "nt", reason="rights are told otherwise on Windows")
def test_a_traceback_is_for_its_user_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("neurobench.plugins.load_registry", lambda *_: 1 / 0)
    assert CliRunner().invoke(app, ["plugins"]).exit_code == 1
    (written,) = tmp_path.iterdir()
    assert "ZeroDivisionError" in written.read_text(encoding="utf-8")
    assert written.stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- names in everything that is shown

QUOTED = f'"><img src=x onerror=alert(1)>{EVIL}[x](javascript:alert(1))|'
"""What opens a tag, ends an attribute, makes a link and opens a column."""


def _tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(html)
    return found


def test_every_text_of_a_report_is_text(tmp_path: Path) -> None:
    # Names of datasets, sites, columns, classes, regions, suites, plugins and notes all come to one of these fields.
    report = filled(Report, QUOTED)
    # Anchors are neurobench's own: they are numbers.
    report = replace(report, sections=[replace(s, anchor="cohort-1") for s in report.sections])
    html, markdown, _ = write_report(report, pd.DataFrame({"row": [QUOTED], "record": [""]}), tmp_path)
    tags = _tags(html.read_text(encoding="utf-8"))
    assert not [t for t, _ in tags if t in ("script", "iframe", "object", "base", "link")]
    assert not [a for _, a in tags if any(k.startswith("on") for k in a)]
    assert all((a["src"] or "").startswith("data:image/png;base64,") for t, a in tags if t == "img")
    assert not [a for _, a in tags if (a.get("href") or "").strip().startswith("javascript")]
    lines = markdown.read_text(encoding="utf-8").replace("\\<", "").splitlines()
    assert not [x for x in lines if not x.startswith("    ") and re.search(r"<(script|img)", x)]


MARKUP = st.lists(
    st.sampled_from(
        [*"<>\"'&/=`{}|[]()! \n", "<b>", "</p>", "<img src=x onerror=alert(1)>", "<!--", "javascript:", "&lt;"]
    )
    | st.sampled_from([h.decode() for h in HOSTILE])
    | st.text(max_size=4),
    min_size=1,
    max_size=5,
).map("".join)


@settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
@given(name=MARKUP)
def test_no_text_of_a_record_or_a_report_opens_a_tag(name: str) -> None:
    # Every text field of two records, and every name that they may have of their own; every text of a report.
    with tempfile.TemporaryDirectory() as folder:
        pages = pages_of(named(name), Path(folder))
    pages.append(report_of(name))
    only_text(pages, [*usual_pages(), usual_report()])
    for tag in re.findall(r"<[a-z]\w*[^<>]*[\s=][^<>]*>", name):
        assert not [page for page in pages if tag in page], "as it was written, on a page"


def test_every_text_of_a_record_is_said_on_a_board(tmp_path: Path) -> None:
    # Otherwise the test above would say nothing.
    index, *others = pages_of(named("xyzzy"), tmp_path)
    assert index.count("xyzzy") >= 4
    assert all(page.count("xyzzy") > 20 for page in others)
    assert report_of("xyzzy").count("xyzzy") > 50


def test_every_text_of_a_record_is_text_in_a_card(tmp_path: Path) -> None:
    names = {"task": f"target:{QUOTED}", "dataset": QUOTED, "best_baseline": QUOTED, "data__title": QUOTED}
    record = invented(f"{QUOTED} · roi", "pretrained", **names)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"{record.id}.json").write_text(record_text(record), encoding="utf-8")
    _, head, body = model_card(tmp_path).split("---\n", 2)
    (model,) = yaml.safe_load(head)["model-index"]
    assert model["name"] == f"{QUOTED} · roi"
    assert model["results"][0]["dataset"]["type"] == f"{QUOTED}-simulated"
    assert not re.search(r"(?<!\\)<", body)
    assert not re.search(r"(?<!\\)\]\(", body)
    (row,) = (line for line in body.splitlines() if "img" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 12, "a name opens no column"


def test_every_text_of_a_verdict_is_text_in_a_pull_request() -> None:
    spec = importlib.util.spec_from_file_location("judge", ROOT / "leaderboard" / "judge.py")
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    evil = f"{QUOTED}\n\n# heading\n- @everybody"
    finding = dict.fromkeys(("level", "code", "message", "fix", "subject", "path"), evil)
    record = dict.fromkeys(("id", "row", "task", "dataset", "source"), evil) | {"level": "declared"}
    told = judge.report(evil, {"verdict": evil, "findings": [finding], "records": [record]})
    for line in told:
        assert "\n" not in line
        assert not re.search(r"(?<!\\)[<@]", line), line
        assert not re.search(r"(?<!\\)\]\(", line), line


# ---------------------------------------------------------------- temporary files are their user's

PUBLIC = ("mktemp", "gettempdir", "gettempdirb", "gettempprefix")
"""What of tempfile names a place that others may have made before."""


@pytest.mark.parametrize("folder", ["neurobench", "plugins", "benchmarks", "leaderboard"])
def test_temporary_files_are_made_by_tempfile_and_under_no_known_name(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"temp|umask|chmod|/tmp|TMPDIR|/dev/shm", text):
            continue
        for node in ast.walk(ast.parse(text)):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tempfile":
                assert node.attr not in PUBLIC, where
            elif isinstance(node, ast.ImportFrom):
                assert node.module != "tempfile", f"{where}: say tempfile.…, so that this test sees it"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"/(var/)?tmp(/|$)", node.value), where
                assert node.value not in ("TMPDIR", "TEMP"), where
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("chmod", "umask"):
                raise AssertionError(f"{where}: who may read a file is tempfile's to say")


@pytest.mark.skipif(os.name == "nt", reason="rights are told otherwise on Windows")
def test_what_tempfile_makes_is_private(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder, tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert Path(file.name).stat().st_mode & 0o777 == 0o600
