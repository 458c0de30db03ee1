"""A contributor's first hour: what `neurobench new` writes works and checks itself; a broken plugin hurts nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neurobench.checks import check_component, checks_of
from neurobench.cli import app
from neurobench.commands import KINDS
from neurobench.contracts import Backbone
from neurobench.new import new_plugin
from neurobench.plugins import load_registry

pytest_plugins = ["pytester"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_every_check(kind: str, tmp_path: Path) -> None:
    files = new_plugin(kind, "first_try", tmp_path / "it", load_registry())
    source = files[0].read_text(encoding="utf-8")
    assert "{{" not in source
    registry = load_registry([files[0]])
    results = check_component(registry.get(kind, "first_try"), registry=registry)  # type: ignore[arg-type]
    assert [r for r in results if not r.ok] == []
    project = tomllib.loads((tmp_path / "it" / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]["neurobench"]
    assert points == {f"{kind}-first_try": "neurobench_first_try.first_try"}


def test_a_backbone_is_about_forty_lines(tmp_path: Path) -> None:
    (plugin, *_) = new_plugin("backbone", "short", tmp_path / "it", load_registry())
    assert len(plugin.read_text(encoding="utf-8").splitlines()) <= 42


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbon", "x"], "did you mean: backbone"),
        (["backbone", "My Net"], "did you mean: my_net"),
        (["backbone", "mamba"], "neurobench-fm provides it"),
        (["backbone", "masks"], "neurobench_masks in a distribution neurobench-masks, and that is there already"),
        (["mask", "fm"], "distribution neurobench-fm, and that is there already"),
    ],
)
def test_what_cannot_be_is_answered(arguments: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["new", *arguments])
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("backbone", "none"), ("task", "true"), ("figure", "drawing"), ("dataset", "finding"), ("mask", "class")],
)
def test_names_that_mean_something_in_python_make_plugins(kind: str, name: str, tmp_path: Path) -> None:
    (plugin, *_) = new_plugin(kind, name, tmp_path / "it", load_registry())
    registry = load_registry([plugin])
    found = registry.get(kind, name)  # type: ignore[arg-type]
    results = check_component(found, registry=registry, only="metadata" if kind != "figure" else "legible")
    assert [r for r in results if not r.ok] == []


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(app, ["new", "mask", "my_mask"])
    assert first.exit_code == 0, first.output
    assert (tmp_path / "neurobench-my-mask" / "neurobench_my_mask" / "my_mask.py").is_file()
    assert "neurobench check my_mask" in first.output
    again = CliRunner().invoke(app, ["new", "mask", "my_mask"])
    assert again.exit_code == 2
    assert "is there already" in again.output


# ---------------------------------------------------------------- the pytest plugin


def test_one_line_runs_every_check_of_the_named_components(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nneurobench_components = time_block")
    pytester.makepyfile("def test_contract(contract_check):\n    contract_check()")
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-v")
    counts = result.parseoutcomes()
    assert counts.get("failed", 0) == 0
    assert counts["passed"] >= 8
    result.stdout.fnmatch_lines(["*test_contract?mask-time_block-equal-budget? PASSED*"])


def test_a_wrong_name_and_a_project_without_plugins_are_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_contract(contract_check):\n    contract_check()")
    pytester.makepyprojecttoml('[project]\nname = "nothing-here"')
    result = pytester.runpytest_inprocess()
    said = result.stdout.str() + result.stderr.str()
    assert "'nothing-here' provides no component" in said
    assert "_hookexec" not in said, "no traceback of pytest's own before it"
    pytester.makeini("[pytest]\nneurobench_components = no_such_thing")
    result = pytester.runpytest_inprocess()
    assert "nothing called 'no_such_thing' is registered" in result.stdout.str() + result.stderr.str()


# ---------------------------------------------------------------- as a wheel, beside a broken one

BROKEN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "neurobench-broken"
version = "0.1.0"

[project.entry-points.neurobench]
backbone-broken = "neurobench_broken"
""",
    "neurobench_broken.py": 'raise RuntimeError("this plugin breaks on import")\n',
}


def run(site: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The sitting repository must not lend its folder: what is imported is what the wheel holds.
    environment = {**os.environ, "PYTHONPATH": str(site), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_wheel_of_it_is_found_checked_and_run_beside_a_broken_one(tmp_path: Path) -> None:
    new_plugin("backbone", "first_try", tmp_path / "good", load_registry())
    (tmp_path / "broken").mkdir()
    for name, text in BROKEN.items():
        (tmp_path / "broken" / name).write_text(text, encoding="utf-8")
    site = tmp_path / "site"
    for which in ("good", "broken"):
        built = run(site, "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(tmp_path / which), cwd=tmp_path)
        assert built.returncode == 0, built.stdout + built.stderr
    wheels = sorted(map(str, (tmp_path / "dist").glob("*.whl")))
    assert len(wheels) == 2
    put = run(site, "pip", "install", "--quiet", "--no-deps", "--target", str(site), *wheels, cwd=tmp_path)
    assert put.returncode == 0, put.stderr

    checked = run(site, "neurobench", "check", "first_try", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = run(site, "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "good"), cwd=tmp_path / "good")
    assert tested.returncode == 0, tested.stdout
    assert f"{len(checks_of(Backbone))} passed" in tested.stdout

    listed = run(site, "neurobench", "plugins", cwd=tmp_path)
    assert listed.returncode == 0
    assert "this plugin breaks on import" in listed.stdout
    asked = run(site, "neurobench", "run", "--backbone", "broken", "--mask", "roi", cwd=tmp_path)
    assert asked.returncode == 2
    assert "this plugin breaks on import" in asked.stderr

    options = ["--mask", "roi", "--dataset", "adhd200", "--task", "age", "--steps", "3", "--n-subjects", "24"]
    ran = run(site, "neurobench", "run", "--backbone", "first_try", *options, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "first_try · roi" in ran.stdout
