"""Protects the kinds of error: every annotated moment and every window that counts has exactly one, by worked cases."""

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.metrics.anatomy import OF_MOMENTS, OF_WINDOWS, anatomy
from vlbench.metrics.moments import pack


def kinds(gold, windows, *, mode="strict", **options):
    """Windows best first -> the kinds of the moments and of the windows of one query."""
    scored = [[*window, 1 - 0.05 * rank] for rank, window in enumerate(windows)]
    packed = pack([[np.array(gold, dtype=float).reshape(-1, 2)]], [[np.array(scored).reshape(-1, 3)]], mode=mode)
    found = anatomy(packed, **options)
    return (
        [OF_MOMENTS[kind] for kind in found.moments[0] if kind >= 0],
        [OF_WINDOWS[kind] for kind in found.windows[0] if kind >= 0],
    )


ONE, TWO = [[0, 10]], [[0, 10], [50, 60]]


@pytest.mark.parametrize(
    ("gold", "windows", "moments", "of_windows"),
    [
        (ONE, [[0, 10]], ["found"], ["hit"]),
        (ONE, [[0, 7]], ["found"], ["hit"]),  # IoU of exactly 0.7
        (ONE, [[90, 99], [0, 10]], ["mis-ranked"], ["elsewhere", "hit"]),
        (ONE, [[0, 6]], ["boundary-only"], ["loose"]),
        (ONE, [[0, 3]], ["boundary-only"], ["loose"]),  # IoU of exactly 0.3
        (ONE, [[0, 2.9]], ["missed"], ["elsewhere"]),
        (ONE, [[90, 99], [0, 6]], ["missed"], ["elsewhere", "loose"]),  # neither order nor borders alone
        (ONE, [[0, 6], [0, 10]], ["mis-ranked"], ["loose", "hit"]),  # another order would do
        (ONE, [[0, 10], [0, 9]], ["found"], ["hit", "duplicate"]),
        (ONE, [], ["missed"], []),
        (TWO, [[0, 10], [50, 60]], ["found", "found"], ["hit", "hit"]),
        (TWO, [[50, 60], [0, 10]], ["found", "found"], ["hit", "hit"]),
        (TWO, [[0, 10], [0, 9], [50, 60]], ["found", "mis-ranked"], ["hit", "duplicate", "hit"]),
        (TWO, [[0, 10], [50, 55]], ["found", "boundary-only"], ["hit", "loose"]),
        (TWO, [[0, 10]], ["found", "missed"], ["hit"]),
        ([[0, 10], [10, 20]], [[0, 20]], ["missed", "boundary-only"], ["loose"]),  # one window answers one moment
        ([], [[0, 10]], [], []),
        (ONE, [[10, 0]], ["missed"], ["elsewhere"]),  # ends before its start
        (ONE, [[float("nan"), 10], [0, 10]], ["mis-ranked"], ["elsewhere", "hit"]),
    ],
)  # fmt: skip
def test_a_worked_case(gold, windows, moments, of_windows):
    assert kinds(gold, windows) == (moments, of_windows)


def test_thresholds_are_arguments():
    assert kinds(ONE, [[0, 6]], tight=0.6) == (["found"], ["hit"])
    assert kinds(ONE, [[0, 3]], loose=0.5) == (["missed"], ["elsewhere"])
    for loose, tight in ((0.7, 0.7), (0.0, 0.7), (0.3, 1.1)):
        with pytest.raises(DataError, match="loose < tight"):
            kinds(ONE, [[0, 6]], tight=tight, loose=loose)


def test_only_the_windows_that_count_are_sorted():
    windows = [[90, 99]] * 10 + [[0, 10]]
    assert kinds(ONE, windows) == (["missed"], ["elsewhere"] * 10)


@pytest.mark.parametrize("mode", ["compatible", "strict"])
def test_every_moment_and_window_has_one_kind_and_hits_agree_with_recall(mode):
    rng = np.random.default_rng(5)
    gold, predicted = [], []
    for _ in range(300):
        starts = np.sort(rng.choice(15, size=rng.integers(0, 5), replace=False)) * 10.0
        gold.append([np.column_stack([starts, starts + rng.integers(1, 10, size=len(starts))])])
        near = np.repeat(gold[-1][0], 2, axis=0) + rng.normal(scale=1.5, size=(2 * len(starts), 2))
        near = np.column_stack([np.sort(near, axis=1), rng.uniform(0.5, 1, size=len(near))])
        begin = rng.uniform(0, 140, size=rng.integers(0, 10))
        far = np.column_stack([begin, begin + rng.uniform(0, 20, size=len(begin)), rng.random(len(begin))])
        predicted.append([np.concatenate([near, far])])
    packed = pack(gold, predicted, mode=mode)
    found = anatomy(packed)
    assert ((found.moments >= 0) == packed.gold_mask).all()
    assert ((found.windows >= 0) == packed.ranked_mask & packed.asked[:, None]).all()
    assert (found.moment_counts.sum(1) == packed.gold_mask.sum(1)).all()
    tight = found.moment_counts[:, :2].sum(1)  # found or mis-ranked: a window of its own
    assert (tight == found.window_counts[:, OF_WINDOWS.index("hit")]).all()
    full = packed.ap_at((0.7,))[:, 0] == 1.0  # a perfect ranking at 0.7 finds every moment
    assert (found.moment_counts[full, 0] == packed.gold_mask[full].sum(1)).all()
    assert full.any() and (found.moment_counts.sum(0) > 0).all()
