"""Equal budgets: what a strategy hides and what of it is scored."""

from __future__ import annotations

import numpy as np
import pytest

from neurobench.contracts import MaskingStrategy
from neurobench.errors import ConfigError
from neurobench.masking import budget, draw, mask_generator
from neurobench.records import UnitTable, WindowTable


def window(valid: np.ndarray) -> WindowTable:
    n = len(valid)
    names = tuple(f"u{i}" for i in range(n))
    return WindowTable(UnitTable.from_groups(names, ("",) * n), np.arange(n), valid)


class Fixed(MaskingStrategy):
    """Yields the elements it was given."""

    name = "fixed"
    summary = "for tests"

    def __init__(self, *elements: list[int]) -> None:
        self._elements = elements

    def elements(self, window, n_hidden, rng):
        for e in self._elements:
            yield np.array(e, np.int64)


@pytest.mark.parametrize(
    ("n_valid", "ratio", "expected"),
    [(0, 0.5, 0), (1, 0.5, 0), (2, 0.5, 1), (10, 0.75, 8), (10, 0.001, 1), (10, 0.999, 9)],
)
def test_budget_leaves_something_on_either_side(n_valid: int, ratio: float, expected: int) -> None:
    valid = np.zeros((2, 5), bool)
    valid.ravel()[:n_valid] = True
    assert budget(window(valid), ratio) == expected


def test_the_last_element_is_hidden_whole_and_scored_in_part() -> None:
    drawn = draw(Fixed([0, 1, 2], [4, 5, 6], [8]), window(np.ones((3, 4), bool)), 4 / 12, np.random.default_rng(0))
    assert np.flatnonzero(drawn.hidden).tolist() == [0, 1, 2, 4, 5, 6]
    assert drawn.scored.ravel()[:3].all()
    assert drawn.scored.sum() == 4


def test_the_part_that_is_scored_is_not_a_fixed_corner() -> None:
    whole = [Fixed([4, 5, 6, 7]), window(np.ones((3, 4), bool)), 1 / 12]
    places = {int(np.flatnonzero(draw(*whole, np.random.default_rng(i)).scored)[0]) for i in range(40)}
    assert places == {4, 5, 6, 7}


def test_invalid_and_repeated_tokens_do_not_count() -> None:
    valid = np.ones((3, 4), bool)
    valid[0] = False
    drawn = draw(Fixed([0, 1, 4, 4], [4, 5]), window(valid), 2 / 8, np.random.default_rng(0))
    assert np.flatnonzero(drawn.hidden).tolist() == [4, 5]
    assert (drawn.scored == drawn.hidden).all()


def test_something_stays_visible_and_what_is_hidden_stays_contiguous() -> None:
    drawn = draw(Fixed(list(range(12))), window(np.ones((3, 4), bool)), 8 / 12, np.random.default_rng(0))
    assert sorted(drawn.hidden.sum(1)) == [0, 4, 4]
    assert drawn.scored.sum() == 8


def test_too_few_elements_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'fixed' hid 2 of the 6 tokens.*at least 6 of 12 valid.*Lower --ratio"):
        draw(Fixed([0, 1]), window(np.ones((3, 4), bool)), 0.5, np.random.default_rng(0))


def test_an_exempt_strategy_may_hide_less() -> None:
    class Exempt(Fixed):
        budgeted = False

    assert draw(Exempt([0, 1]), window(np.ones((3, 4), bool)), 0.5, np.random.default_rng(0)).scored.sum() == 2


def test_generators_differ_by_every_axis_and_by_nothing_else() -> None:
    axes = [(0, 0, "a", "w"), (1, 0, "a", "w"), (0, 1, "a", "w"), (0, 0, "b", "w"), (0, 0, "a", "v")]
    draws = {int(mask_generator(*a).integers(2**62)) for a in axes}
    assert len(draws) == len(axes)
    assert mask_generator(*axes[0]).integers(2**62) == mask_generator(*axes[0]).integers(2**62)
