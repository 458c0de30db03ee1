"""What is printed: every number with what one must know to believe it, at any width."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from neurobench import console
from neurobench.checks import CheckResult
from neurobench.errors import ConfigError, ConfigErrors, DataError
from neurobench.progress import TimeLeft
from neurobench.records import Finding
from neurobench.tables import count, decimals, duration, metric_name


def row(row: str = "net · roi", kind: str = "pretrained", **changes: Any) -> dict[str, Any]:
    return {
        "dataset": "people",
        "source": "real",
        "task": "age",
        "row": row,
        "kind": kind,
        "seed": 0,
        "metric": "mae",
        "unit": "years",
        "higher_is_better": False,
        "score": 5.34,
        "low": 4.9,
        "high": 5.8,
        "chance": 15.0,
        "n_subjects": 90,
        "skill": 0.12,
        "best_baseline": "connectome",
        "p_value": 0.001,
        "above_chance": True,
        "best": False,
        "learned": True,
        "apart": "",
        "n_parameters": 51234,
        "seconds": 74.0,
        "status": "ok",
        "error": "",
    } | changes


def screen(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def printed(rows: list[dict[str, Any]], width: int = 100, notes: tuple[str, ...] = ()) -> str:
    out = screen(width)
    console.print_results(pd.DataFrame(rows), out, notes)
    return text(out)


def line_of(shown: str, start: str) -> str:
    (line,) = [x for x in shown.splitlines() if x.strip().startswith(start)]
    return line


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "< 0.1 s"), (9.9, "9.9 s"), (12.4, "12 s"), (74, "1 min 14 s"), (1200, "20 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_numbers_and_names() -> None:
    counts = [count(n) for n in (850, 1200, 51234, 7_600_000, float("nan"), None)]
    assert counts == ["850", "1.2 k", "51 k", "7.6 M", "", ""]
    names = [metric_name(n) for n in ("mae", "r2", "auroc", "balanced_accuracy")]
    assert names == ["MAE", "R²", "AUROC", "balanced accuracy"]
    assert decimals([4.9], [5.8]) == 2
    assert decimals([0.55], [0.61]) == 3
    assert decimals([float("nan")], [float("nan")]) == 2


# ---------------------------------------------------------------- results


def test_a_table_says_what_it_measures_and_groups_its_rows() -> None:
    rows = [
        row("mean", "baseline", score=15.0, low=14.0, high=16.0, above_chance=False, skill=None, learned=None),
        row("net · block", score=6.1, low=5.2, high=7.0),
        row(best=True),
        row("net · untrained", "untrained", score=9.0, low=8.0, high=10.0, learned=None),
        row("connectome", "baseline", score=7.0, low=6.0, high=8.0, skill=None, learned=None, n_parameters=None),
    ]
    shown = printed(rows)
    assert "age on people\nMAE in years · lower is better · chance 15 · n = 90 · skill over connectome\n" in shown
    order = ["pretrained", "net · roi", "net · block", "untrained (control)", "net · untrained", "baselines"]
    order += ["connectome", "mean"]
    lines = [x.strip() for x in shown.splitlines()]
    places = [next(i for i, x in enumerate(lines) if x.startswith(o)) for o in order]
    assert places == sorted(places)
    assert line_of(shown, "net · roi").split("  ")[-1] == "1 min 14 s"
    for part in ("5.3 ★", "4.9 to 5.8", "+0.12", "51 k"):
        assert part in line_of(shown, "net · roi")
    assert "no signal" in line_of(shown, "mean")
    assert "★ ahead of the next row" in shown
    assert "SIMULATED" not in shown


def test_two_classes_show_balanced_accuracy_and_what_holds_within_sites() -> None:
    shown = printed([row(metric="auroc", metric_balanced_accuracy=0.71, metric_within_site_auroc=0.66)])
    assert {"balanced accuracy", "within sites"} <= set(re.split(r"\s{2,}", shown))
    assert {"0.71", "0.66"} <= set(line_of(shown, "net · roi").split())
    # Where it is the headline it stands there once.
    shown = printed([row(metric="balanced_accuracy", metric_balanced_accuracy=0.71)])
    assert shown.count("balanced accuracy") == 2, "the facts and the column of the headline"


def test_nothing_is_called_best_that_is_not() -> None:
    shown = printed([row(), row("net · block", score=5.3)])
    assert "★" not in shown


def test_simulated_results_are_called_so_and_mixed_ones_too() -> None:
    shown = printed([row(source="simulated"), row(task="sex")])
    assert "SIMULATED: measures the software, not the model" in shown
    assert "age on people (simulated)" in shown
    assert "sex on people\n" in shown


def test_a_mask_outside_the_common_budget_is_marked() -> None:
    shown = printed([row(apart="mask budget"), row("net · block")])
    assert "net · roi ‡" in shown
    assert "net · block ‡" not in shown
    assert "‡ not ranked with the others: its mask is outside the common budget" in shown
    assert "‡" not in printed([row()])


def test_a_pretraining_that_learned_nothing_is_marked() -> None:
    shown = printed([row(learned=False), row("net · block")])
    assert "net · roi †" in shown
    assert "net · block †" not in shown
    assert "† pretraining did not reach the best trivial filler" in shown


def test_a_failed_row_shows_its_error_and_no_number() -> None:
    failed = row("net · local", status="failed", error="RuntimeError: no [memory]", score=None, low=None, high=None)
    shown = printed([row(), failed])
    (in_table,) = [x for x in shown.splitlines() if x.strip().startswith("net · local ") and ":" not in x]
    assert "failed" in in_table
    assert "net · local: RuntimeError: no [memory]" in shown
    only = printed([failed])
    assert "RuntimeError: no [memory]" in only


def test_several_seeds_become_one_row_with_the_widest_limits() -> None:
    shown = printed([row(seed=s, score=5.0 + s, low=4.0 + s, high=6.0 + s) for s in (0, 1)])
    line = line_of(shown, "net · roi")
    assert "5.5" in line
    assert "4.0 to 7.0" in line
    assert "mean over 2 seeds" in shown


def test_reconstruction_has_one_column_a_mask() -> None:
    rows = [
        row(task="fill", metric="r2", unit="", higher_is_better=True, score=0.44, low=0.42, high=0.46)
        | {"metric_r2[roi]": 0.31, "metric_r2[block]": 0.52},
        row("ridge", "filler", task="fill", metric="r2", unit="", higher_is_better=True, score=0.4, low=0.38, high=0.42)
        | {"metric_r2[roi]": 0.30, "metric_r2[block]": np.nan},
    ]
    shown = printed(rows)
    (head,) = [x for x in shown.splitlines() if "95 % interval" in x]
    assert "roi" in head
    assert "block" in head
    assert "0.31" in line_of(shown, "net · roi")
    assert "0.52" in line_of(shown, "net · roi")
    assert "trivial fillers" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_what_is_dropped_is_said(width: int) -> None:
    rows = [row("hybrid[layout=MMAA] · roi[rule=pure]"), row("net · block", n_subjects=80)]
    rows = [r | {f"metric_r2[{m}]": 0.5 for m in ("roi", "random", "random_tube", "time_block")} for r in rows]
    shown = printed(rows, width)
    assert max(len(x) for x in shown.splitlines()) <= width
    assert "5.34" in shown or "5.3" in shown
    assert ("not shown for lack of width" in " ".join(shown.split())) == (width < 140)


def test_notes_are_printed_below() -> None:
    assert printed([row()], notes=("people: task sex left out",)).rstrip().endswith("· people: task sex left out")


# ---------------------------------------------------------------- the rest


def test_json_is_pure_and_has_no_nan() -> None:
    out = screen()
    console.print_json(
        out, {"a": np.float64("nan"), "b": [np.int64(3), float("inf"), None, True, ""], "c": "×", "d": np.bool_(False)}
    )
    assert json.loads(text(out)) == {"a": None, "b": [3, None, None, True, ""], "c": "×", "d": False}


def test_errors_show_their_four_parts() -> None:
    out = screen()
    error = DataError("no file [x].", allowed="a, b", likely="a", next_step="Give --data-dir.")
    console.print_error(error, out)
    assert text(out).splitlines() == [
        "Error: no file [x].",
        "   did you mean: a",
        "   allowed: a, b",
        "   next: Give --data-dir.",
    ]
    out = screen()
    console.print_error(ConfigErrors([ConfigError("one."), ConfigError("two.", allowed="x")]), out)
    assert "2 problems; nothing was started." in text(out)
    assert "1. one." in text(out)
    assert "2. two.\n   allowed: x" in text(out)


def test_findings_are_grouped_and_the_worst_come_first() -> None:
    out = screen()
    findings = [Finding("info", "note", "all is well")]
    findings += [Finding("error", "no-file", f"run {i} is missing", fix="copy it", subject=f"s{i}") for i in range(5)]
    console.print_findings(out, findings)
    lines = text(out).splitlines()
    assert lines[0] == "error no-file × 5"
    assert lines[1] == "   s0: run 0 is missing"
    assert lines[4:6] == ["   and 2 more", "   next: copy it"]
    assert lines[-2:] == ["info note × 1", "   all is well"]


def test_time_left_learns_from_what_was_computed_only() -> None:
    now = 0.0
    left = TimeLeft(100.0, clock=lambda: now)

    def words() -> str:
        return console.time_left(left.seconds(), learned=left.learned)

    assert words() == "about 1 min 40 s, first guess"
    left.step(40.0, False)
    assert left.seconds() == 60.0
    now = 20.0
    left.step(10.0, True)
    # 10 estimated seconds took 20, so the 50 that are left take 100.
    assert left.seconds() == 100.0
    assert words() == "about 1 min 40 s left"
    now = 30.0
    assert left.seconds() == 90.0
    now = 500.0
    assert words() == "longer than expected"
    left.step(50.0, True)
    assert words() == ""


def test_a_first_step_that_waited_for_a_process_does_not_promise_days() -> None:
    now = 0.0
    left = TimeLeft(100.0, clock=lambda: now)
    now = 60.0
    left.step(0.01, True)
    assert left.seconds() == pytest.approx(99.99 * 65 / 5, rel=0.01), "20 minutes, not a week"


def test_without_a_terminal_what_failed_and_what_has_to_be_known_are_lines() -> None:
    out = Console(file=io.StringIO(), width=20, force_terminal=False)
    lines = console.Lines(out)
    with lines.grid(10.0) as done, lines.stage("a stage"):
        done(10.0, True)
        lines.at_work(["another"])
        lines.failed("age · net", "DataError: no [table]")
        lines.note("no worker is there, and the run waits for one.")
    assert text(out).splitlines() == [
        "failed: age · net: DataError: no [table]",
        "no worker is there, and the run waits for one.",
    ]


def test_names_between_colons_are_no_pictures() -> None:
    out = console.make_console()
    out.file = io.StringIO()
    console.Lines(out).failed("age", "KeyError: 'site:100:one'")
    out.print("[b]:ok:", markup=False)
    assert text(out).splitlines() == ["failed: age: KeyError: 'site:100:one'", "[b]:ok:"]


def test_what_has_no_end_has_no_share() -> None:
    out = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with console.Terminal(out) as progress, progress.stage("waits"):
        progress.at_work(["elsewhere"])
        progress._bars.refresh()
    assert "%" not in text(out)


def test_progress_shows_the_innermost_stage() -> None:
    out = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with console.Terminal(out) as progress, progress.grid(10.0) as done:
        with progress.stage("outer [x]"), progress.stage("inner") as advance:
            advance(1, 4)
            visible = [t.description for t in progress._bars.tasks if t.visible]
            assert visible == ["all", "inner"]
            assert [t.percentage for t in progress._bars.tasks if t.description == "inner"] == [25.0]
        done(10.0, True)
        progress.note("said once")
    assert "said once" in text(out)


def test_rows_that_all_failed_alike_are_told_once_and_lead_nowhere() -> None:
    lost = [
        row(name, task=task, status="failed", error="DataError: no table", score=None, low=None, high=None)
        for task in ("age", "sex")
        for name in ("net · roi", "net · block")
    ]
    shown = printed(lost)
    assert shown.count("DataError: no table") == 1
    assert "age, sex on" in shown
    out = screen()
    console.print_summary(out, out="folder", seconds=1.0, n_computed=0, n_stored=0, scored=False)
    assert "neurobench compare" not in text(out)


def test_one_error_of_several_checks_is_told_once() -> None:
    out = screen()
    found = [CheckResult("net", name, "failed", "raised TypeError: no") for name in ("output", "reach")]
    console.print_checks(out, "backbone net", [*found, CheckResult("net", "builds", "passed", "")])
    assert "failed  output, reach" in text(out)
    assert text(out).count("TypeError") == 1
    assert "3 checks, 2 failed" in text(out)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_stops_nothing(stream: str) -> None:
    """As `2>&1 | head -1` does: the lines after it are lost, and nothing that is computed."""
    code = (
        "import pathlib, sys\n"
        "from neurobench.console import Lines, make_console\n"
        f"console = make_console(stderr={stream == 'stderr'})\n"
        "Lines(console).note('one')\n"
        "Lines(console).failed('two', 'three')\n"
        f"print('four', file=sys.{stream}, flush=True)\n"
        "sys.exit(7)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], **{stream: writer}, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 7
