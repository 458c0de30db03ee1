"""What may carry the star of the best row."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench.assembly import _best
from neurobench.paired import difference_of


def scored(
    row: str, error: float, above_chance: bool | None, *, apart: tuple[str, ...] = (), n: int = 80
) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    table = pd.DataFrame({"participant_id": [f"s{i:02d}" for i in range(n)], "fold": 0, "truth": truth})
    table = table.assign(prediction=truth + error * rng.normal(size=n), train_mean=0.0)
    metric = SimpleNamespace(value=float(np.abs(table["prediction"] - truth).mean()), higher_is_better=False)
    protocol = SimpleNamespace(split="subjects", transductive=False)
    record = SimpleNamespace(
        row=row,
        status="ok",
        headline="mae",
        metrics={"mae": metric},
        protocol=protocol,
        above_chance=above_chance,
        apart=apart,
    )
    return SimpleNamespace(record=record, predictions=table, held_out=table)


@pytest.mark.parametrize(("above", "star"), [(True, True), (None, True), (False, False)])
def test_a_row_without_signal_is_never_the_best(above: bool | None, star: bool) -> None:
    first, second = scored("first", 1.0, above), scored("second", 3.0, False)
    assert _best([second, first]) is (first if star else None)  # type: ignore[list-item]


def test_a_row_outside_the_common_budget_is_neither_the_best_nor_in_the_way() -> None:
    exempt = scored("exempt", 0.5, True, apart=("mask budget",))
    first, second = scored("a", 1.0, True), scored("b", 3.0, True)
    assert _best([second, exempt, first]) is first  # type: ignore[list-item]


def test_an_interval_over_five_people_is_no_star() -> None:
    # Of five, all on one side, every draw is on that side too; of the 32 exchanges two reach it.
    first, second = scored("first", 1.0, True, n=5), scored("second", 3.0, True, n=5)
    found = difference_of("mae", first.held_out, second.held_out)
    assert found["high"] < 0
    assert found["p"] > 0.05
    assert _best([first, second]) is None  # type: ignore[list-item]
