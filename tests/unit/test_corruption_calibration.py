"""Protects calibration: rows that fit stay, others are scaled until level 5 costs 40 to 70 percent, and what is not
possible is said.
"""

import math

import pytest

from vlbench.corrupt.calibrate import LEAST, MOST, calibrate
from vlbench.corrupt.severities import Severities

TABLE = Severities.read()


def measure_of(half):
    """A baseline that loses 1 - 2 ** -(amount / half) of its score."""
    calls = []

    def measure(family, amounts):
        calls.append(family)
        return [1.0 - 2.0 ** -(amount / half) if math.isfinite(amount) else 1.0 for amount in amounts]

    return measure, calls


@pytest.mark.parametrize("half", [2.0, 0.05, 40.0])
def test_the_last_level_costs_what_it_should_and_the_others_follow(half):
    measure, calls = measure_of(half)
    table, (found,) = calibrate(measure, TABLE, ["gauss"])
    assert found.reached and LEAST <= found.lost[-1] <= MOST and len(calls) <= 10
    ratios = [new / old for new, old in zip(found.row, found.before, strict=True)]
    assert max(ratios) / min(ratios) < 1.02
    if half == 2.0:
        assert table is TABLE and found.row == found.before
    else:
        assert table.version == TABLE.version + 1 and table.digest != TABLE.digest
        assert table.row("gauss") == found.row and table.row("jitter") == TABLE.row("jitter")


def test_shares_stay_shares():
    table, (found,) = calibrate(measure_of(5.0)[0], TABLE, ["clip_drop"])  # all clips cost 13%
    assert not found.reached and found.row == found.before and table is TABLE
    assert "no amount that it can have" in found.note
    _, (found,) = calibrate(measure_of(1.1)[0], TABLE, ["clip_drop"])
    assert found.reached and found.row[-1] <= 1.0


def test_windows_stay_windows_that_divide_each_other():
    _, (found,) = calibrate(measure_of(40.0)[0], TABLE, ["shuffle"])
    assert found.row == (2.0, 4.0, 8.0, 16.0, 32.0) and found.reached
    _, (found,) = calibrate(measure_of(1000.0)[0], TABLE, ["shuffle"])
    assert found.row == TABLE.row("shuffle") and found.note


@pytest.mark.parametrize("family", ["wrong_query", "query_blank", "modality_drop", "head_const"])
def test_what_is_all_of_it_by_definition_is_never_scaled(family):
    table, (found,) = calibrate(measure_of(0.01)[0], TABLE, [family])
    assert table is TABLE and found.row == found.before and "by definition" in found.note


def test_a_score_that_falls_to_a_floor_is_met_in_the_middle_and_not_on_the_floor():
    """A baseline that loses 65 percent of its score and no more: the farthest amount would flatten every level."""

    def measure(family, amounts):
        return [0.65 * (1 - 2.0 ** -(amount / 5.0)) for amount in amounts]

    _, (found,) = calibrate(measure, TABLE, ["gauss"])
    assert found.reached and abs(found.lost[-1] - 0.55) <= 0.06 and found.lost[0] < 0.2
