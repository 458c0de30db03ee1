"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import neurobench
from neurobench import planning
from neurobench.cli import app
from neurobench.errors import DataError
from neurobench.planning import Plan, PlanItem, RowCost
from neurobench.plugins import Registry, load_registry

PLUGIN = """
import pandas as pd

from neurobench import Backbone, Dataset, DatasetCard, Listing, MaskingStrategy, RecordingFile, SignalSpec, Task
from neurobench import DataError, Finding, RawRecording, UnitTable, hookimpl


class Net(Backbone):
    name = "net"
    summary = "a backbone of a test"
    reference = "doi:10.1000/1"

    def __init__(self, spec, *, layout: str = "MA", both: bool = False):
        super().__init__(spec)

    def forward(self, signal, hidden, table):
        return signal


class Stripes(MaskingStrategy):
    name = "stripes"
    summary = "a mask of a test"

    def elements(self, window, n_hidden, rng):
        yield from ()


class People(Dataset):
    name = "people"
    summary = "a dataset of a test"
    default_grid = True
    twin_subjects = 4
    signal = "parcels"
    modality = "fmri"
    card = DatasetCard(
        title="People", modality="fmri", licence="CC0", access="open", apply_at="here", citation="none", doi="",
        revision="1", may_leave="all", traps=("few", "simulated"),
    )
    spec = SignalSpec(window_s=10.0, patch_s=2.0)

    def list_recordings(self, root):
        files = sorted(root.glob("*.txt"))
        people = pd.DataFrame({"age": [20.0 + i for i in range(len(files))]}, index=[f.stem for f in files])
        found = (Finding("warning", "odd", "is odd", fix="look at it", subject="s1"),)
        return Listing(people, tuple(RecordingFile(f.stem, f, 0.5) for f in files), found)

    def read(self, file):
        raise DataError("cannot be read")


@hookimpl
def register_backbones():
    return [Net]


@hookimpl
def register_masks():
    return [Stripes]


@hookimpl
def register_datasets():
    return [People]
"""

Invoke = Callable[..., Any]


@pytest.fixture(scope="module")
def plugin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "own.py"
    file.write_text(PLUGIN, encoding="utf-8")
    return file


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, plugin_file: Path) -> Invoke:
    """Call the command line with one plugin file and no built-ins."""
    monkeypatch.setenv("NEUROBENCH_BLOCK_PLUGINS", "neurobench-fm")
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: str | Path, plugin: bool = True) -> Any:
        extra = ["--plugin", str(plugin_file)] if plugin else []
        return CliRunner().invoke(app, [*map(str, words), *extra])

    return call


TABLE = pd.DataFrame(
    [
        {
            "dataset": "people", "source": "simulated", "task": "age", "row": "net · stripes", "kind": "pretrained",
            "seed": 0, "metric": "mae", "unit": "years", "higher_is_better": False, "score": 5.0, "low": 4.0,
            "high": 6.0, "chance": 15.0, "n_subjects": 9, "skill": 0.1, "best_baseline": "mean", "p_value": 0.01,
            "above_chance": True, "best": True, "learned": True, "apart": "", "n_parameters": 1000, "seconds": 1.0,
            "status": "ok", "error": "",
        }
    ]
)  # fmt: skip


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the runner by one that remembers what it was asked for."""
    calls = SimpleNamespace(grid=None, failed=(), error=None)

    def execute(grid: Any, registry: Registry, *, progress: Any = None) -> Any:
        calls.grid = grid
        if calls.error is not None:
            raise calls.error
        return SimpleNamespace(
            table=TABLE, failed=calls.failed, out=Path("results"), seconds=61.0, n_computed=3, n_stored=2, notes=("a",)
        )

    def plan(grid: Any, registry: Registry) -> Any:
        items = (
            PlanItem("cohort", "prepare people", "stored", "", 0.0, "measured here"),
            PlanItem("pretraining", "net", "stale", "ratio differs", 90.0, "probe"),
        )
        rows = (RowCost("people", "net · stripes", 60.0, None, "unknown"), RowCost("people", "net", 0.0, 90.0, "table"))
        return Plan(items, rows, 1.5, ("a note",))

    monkeypatch.setattr(planning, "plan", plan)
    fake = SimpleNamespace(execute=execute)
    import neurobench

    monkeypatch.setitem(sys.modules, "neurobench.runner", fake)
    monkeypatch.setattr(neurobench, "runner", fake, raising=False)
    return calls


RUN = ("run", "--backbone", "net", "--mask", "stripes")


# ---------------------------------------------------------------- start


def test_help_answers_before_anything_heavy_is_loaded() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom neurobench.cli import app\n"
        "for words in (['--help'], ['run', '--help'], ['data', '--help']):\n"
        "    result = CliRunner().invoke(app, words)\n    assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'pandas', 'numpy', 'mne', 'pluggy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_versions_are_told_from_metadata_alone() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom neurobench.cli import app\n"
        "asked = (['--version'], ['-V'], ['-V', 'run', '--no-such'])\n"
        "told = {CliRunner().invoke(app, words).output for words in asked}\n"
        "assert len(told) == 1, told\nprint(told.pop(), end='')\n"
        "heavy = {'torch', 'pandas', 'numpy', 'mne', 'pluggy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    versions = {name: metadata.version(name) for name in ("neurobench-fm", "torch")}
    expected = (
        f"neurobench-fm {versions['neurobench-fm']}, Python {platform.python_version()}, torch {versions['torch']}"
    )
    assert result.stdout == f"{expected}\n"


def test_versions_of_a_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = CliRunner().invoke(app, ["-V"])
    assert found.exit_code == 0
    assert f"neurobench-fm {neurobench.__version__} (not installed)" in found.output
    assert "torch not installed" in found.output


def test_listing_components_loads_torch_and_pandas_and_nothing_else_that_is_large() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom neurobench.cli import app\n"
        "result = CliRunner().invoke(app, ['list'])\nassert result.exit_code == 0, result.output\n"
        "assert 'roi' in result.output and 'tangent' in result.output, result.output\n"
        "late = {'timm', 'nilearn', 'nibabel', 'sklearn', 'statsmodels', 'matplotlib', 'jinja2', 'mne_bids'}\n"
        "late |= {'scipy.signal', 'scipy.stats', 'scipy.sparse', 'scipy.ndimage', 'scipy.cluster'}\n"
        "late |= {'mne.preprocessing', 'mne.viz', 'neurobench.runner'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NEUROBENCH_BLOCK_PLUGINS"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr


def test_completion_names_components_without_importing_them() -> None:
    code = (
        "import sys\nfrom neurobench.commands import complete\n"
        "assert complete('mask')('ro') == ['roi'], complete('mask')('ro')\n"
        "assert complete('mask')('roi,ti') == ['roi,time_block']\n"
        "assert {'mamba', 'roi', 'camcan'} <= set(complete('')(''))\n"
        "assert not {'torch', 'pluggy'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_python_m_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "neurobench", "-h"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "plugins" in result.stdout


# ---------------------------------------------------------------- run


def test_options_reach_the_grid(invoke: Invoke, runner: Any, tmp_path: Path) -> None:
    result = invoke(
        "run", "--backbone", "net[layout=A],net", "-b", "net[both=true]", "--mask", "stripes", "--seed", "0,4",
        "--ratio", ".75", "--steps", "9", "--profile", "cpu", "--data-dir", f"people={tmp_path}",
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    grid = runner.grid
    assert [b.label for b in grid.backbones] == ["net[layout=A]", "net", "net[both=true]"]
    assert (grid.seeds, grid.config.ratio, grid.profile.name, grid.profile.n_steps) == ((0, 4), 0.75, "cpu", 9)
    assert grid.data_dirs == {"people": tmp_path}
    assert grid.config.out == tmp_path / "o"


def test_a_run_prints_its_table(invoke: Invoke, runner: Any) -> None:
    result = invoke(*RUN)
    assert result.exit_code == 0
    for part in ("SIMULATED", "net · stripes", "5.0 ★", "· a", "3 steps computed, 2 found stored, 1 min 1 s"):
        assert part in result.stdout
    quiet = invoke(*RUN, "--quiet").stdout
    assert "5.0 ★" in quiet
    assert "steps computed" not in quiet


def test_json_is_nothing_but_json(invoke: Invoke, runner: Any) -> None:
    found = json.loads(invoke(*RUN, "--json").stdout)
    assert found["table"][0]["score"] == 5.0
    assert found["table"][0]["best"] is True
    assert (found["n_computed"], found["failed"]) == (3, [])
    planned = json.loads(invoke(*RUN, "--json", "--dry-run").stdout)
    assert planned["items"][1]["why"] == "ratio differs"
    assert [r["seconds"] for r in planned["rows"]] == [None, 90.0]
    assert planned["rows"][0]["source"] == "unknown"


def test_a_failed_row_makes_the_exit_code_1(invoke: Invoke, runner: Any) -> None:
    runner.failed = ("net · stripes on people, age",)
    result = invoke(*RUN)
    assert result.exit_code == 1
    assert "5.0 ★" in result.stdout
    assert "1 row failed" in result.stderr


def test_a_dry_run_shows_what_is_to_do_and_does_nothing(invoke: Invoke, runner: Any) -> None:
    result = invoke(*RUN, "--dry-run")
    assert result.exit_code == 0
    assert runner.grid is None
    assert "ratio differs" in result.stdout
    known = "1 step to do, about 2 min 30 s, without what is not known of 1 row; 1 stored. Nothing was started."
    assert known in result.stdout
    assert "a note" in result.stdout
    assert "a note" not in invoke(*RUN, "--dry-run", "--quiet").stdout


def test_a_wrong_run_says_everything_and_starts_nothing(invoke: Invoke, runner: Any) -> None:
    result = invoke("run", "--backbone", "nett", "--mask", "stripes[x=1]", "--ratio", "2")
    assert result.exit_code == 2
    assert runner.grid is None
    assert result.stdout == ""
    assert "3 problems; nothing was started." in result.stderr
    assert "did you mean: net" in result.stderr
    assert "has no parameter 'x'" in result.stderr


def test_a_suite_is_read_and_options_go_over_it(invoke: Invoke, runner: Any, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("backbones: [net]\nmasks: [stripes]\nratio: 0.25\nfolds: 3\n", encoding="utf-8")
    assert invoke("run", "--suite", file, "--ratio", "0.6").exit_code == 0
    assert (runner.grid.config.ratio, runner.grid.profile.n_folds) == (0.6, 3)


def test_errors_of_the_data_are_not_errors_of_the_command(invoke: Invoke, runner: Any) -> None:
    runner.error = DataError("no recording.", next_step="Look at it.")
    result = invoke(*RUN)
    assert result.exit_code == 1
    assert result.stderr == "Error: no recording.\n   next: Look at it.\n"


def test_what_nobody_expected_is_one_line_and_a_file(invoke: Invoke, runner: Any, tmp_path: Path) -> None:
    runner.error = RuntimeError("two\nlines [x]")
    result = invoke(*RUN)
    assert result.exit_code == 1
    assert "Unexpected RuntimeError: two lines [x]." in " ".join(result.stderr.split())
    name = next(w for w in result.stderr.split() if w.endswith((".txt;", ".txt"))).rstrip(";")
    text = Path(name).read_text(encoding="utf-8")
    Path(name).unlink()
    assert "Traceback" in text
    assert "RuntimeError: two" in text
    assert "Traceback" in invoke(*RUN, "-v").stderr


def test_ctrl_c_says_how_to_go_on(invoke: Invoke, runner: Any) -> None:
    runner.error = KeyboardInterrupt()
    result = invoke(*RUN)
    assert result.exit_code == 130
    assert "run the same command again to go on" in " ".join(result.stderr.split()).lower()


def test_ctrl_c_while_the_command_line_is_loaded_shows_no_traceback() -> None:
    # What it imports first interrupts, as somebody does who has seen a typo.
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from neurobench.__main__ import main\nmain()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('what is wrong')", 1, "what is wrong"),
        ("raise RuntimeError('a defect')", 1, "RuntimeError: a defect"),
        ("pass", 0, ""),
    ],
)
def test_a_program_ends_as_it_would_without_tidying_up_libraries(
    end: str, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "ended.py").write_text(
        "import atexit, sys, threading, time\n"
        "import neurobench.cli\n"
        "from neurobench.__main__ import program\n"
        "def late():\n    time.sleep(0.3)\n    print('a thread')\n"
        "def app():\n"
        "    atexit.register(lambda: print('at exit'))\n"
        "    threading.Thread(target=late).start()\n"
        "    print('x' * 100_000)\n"
        f"    {end}\n"
        "neurobench.cli.app = app\nprogram()\n",
        encoding="utf-8",
    )
    found = subprocess.run([sys.executable, "-m", "ended"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == code
    assert found.stdout == "x" * 100_000 + "\na thread\nat exit\n", "what is still to be done and written is"
    assert found.stderr.strip().endswith(said)


def test_a_tool_that_began_before_a_program_has_its_turn(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(
        "import atexit\natexit.register(lambda: print('measured'))\n"
        "import neurobench.cli\nfrom neurobench.__main__ import program\n"
        "neurobench.cli.app = lambda: None\nprogram()\n",
        encoding="utf-8",
    )
    found = subprocess.run([sys.executable, "-m", "measured"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "measured\n"


def test_status_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "neurobench.json").write_text('{"format": 1}', encoding="utf-8")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom neurobench.cli import app\n"
        f"result = CliRunner().invoke(app, ['status', {str(tmp_path)!r}])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_detach_and_dry_run_exclude_each_other(invoke: Invoke, runner: Any) -> None:
    result = invoke(*RUN, "--detach", "--dry-run")
    assert result.exit_code == 2
    assert "Leave --detach out" in result.stderr


# ---------------------------------------------------------------- components


def test_list_shows_all_kinds_or_one(invoke: Invoke) -> None:
    every = invoke("list").stdout
    assert "a backbone of a test" in every
    assert "layout=MA (str), both=false (bool)" in every
    masks = invoke("list", "masks").stdout
    assert "stripes" in masks
    assert "a backbone" not in masks
    wrong = invoke("list", "maks")
    assert wrong.exit_code == 2
    assert "did you mean: mask" in wrong.stderr


def test_info_shows_parameters_and_where_the_code_is_from(invoke: Invoke) -> None:
    shown = invoke("info", "net").stdout
    for part in ("backbone net", "a backbone of a test", "layout=MA (str)", "doi:10.1000/1", "file:own", "sha256 "):
        assert part in shown
    wrong = invoke("info", "nte")
    assert wrong.exit_code == 2
    assert "did you mean: net" in wrong.stderr


def test_plugins_shows_state_and_reason(invoke: Invoke, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0\n", encoding="utf-8")
    result = invoke("plugins")
    assert result.exit_code == 0
    for part in ("file:own", "backbone net, mask stripes, dataset people", "available", "blocked"):
        assert part in result.stdout
    named = invoke("plugins", "--plugin", bad)
    assert named.exit_code == 2
    assert "ZeroDivisionError: division by zero" in named.stderr


def test_check_reports_every_contract_check(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_component(cls: Any, *, registry: Registry, full: bool) -> list[Any]:
        failed = SimpleNamespace(check="equal_budget", outcome="failed", message="hid 3 [x]", ok=False)
        return [failed, SimpleNamespace(check="names", outcome="passed", message="", ok=True)][not full :]

    monkeypatch.setitem(sys.modules, "neurobench.checks", SimpleNamespace(check_component=check_component))
    good = invoke("check", "stripes")
    assert good.exit_code == 0
    assert "1 check, none failed" in good.stdout
    bad = invoke("check", "stripes", "--full")
    assert bad.exit_code == 1
    assert "failed  equal_budget" in bad.stdout
    assert "hid 3 [x]" in bad.stdout
    assert "2 checks, 1 failed" in bad.stdout


def test_the_built_ins_are_listed() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "NEUROBENCH_BLOCK_PLUGINS"}
    words = [sys.executable, "-m", "neurobench", "list"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    registry = load_registry()
    for kind in ("backbone", "mask", "dataset", "task", "baseline"):
        for name in registry.of(kind):
            assert f" {name} " in result.stdout


# ---------------------------------------------------------------- data


def test_data_check_reports_what_is_there(invoke: Invoke, tmp_path: Path) -> None:
    for name in ("s1", "s2", "s3"):
        (tmp_path / f"{name}.txt").touch()
    result = invoke("data", "check", "people", "--data-dir", tmp_path)
    assert result.exit_code == 0, result.output
    for part in ("3 subjects, 3 recordings", "age", "20–22", "warning odd × 1", "next: look at it"):
        assert part in result.stdout
    deep = invoke("data", "check", "people", "--data-dir", tmp_path, "--deep")
    assert deep.exit_code == 2
    assert "error unreadable × 3" in deep.stdout
    without = invoke("data", "check", "people")
    assert without.exit_code == 2
    assert "--data-dir PATH" in without.stderr


def test_data_card(invoke: Invoke) -> None:
    shown = invoke("data", "card", "people").stdout
    assert shown.startswith("People")
    for part in ("licence", "CC0", "may leave", "few", "simulated"):
        assert part in shown
