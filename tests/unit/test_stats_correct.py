"""Protects corrections for several hypotheses: the size of the family, NaN, clustering and the step-down maximum."""

import math
from itertools import product

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats import correct
from vlbench.stats.paired import sign_flip


@pytest.mark.parametrize("method", correct.METHODS)
@pytest.mark.parametrize("broken", [[0.1, math.nan], [0.1, 1.2], [-0.1], [], [[0.1, 0.2]]])
def test_a_broken_family_is_refused_and_never_shortened(method: str, broken: list) -> None:
    with pytest.raises(DataError):
        correct.adjust(broken, method)


def test_the_message_names_the_hypothesis() -> None:
    with pytest.raises(DataError, match=r"numbers \[1\]"):
        correct.holm([0.1, math.nan, 0.3])


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="known: bonferroni"):
        correct.adjust([0.1], "holmes")


def test_holm_and_hommel_by_hand() -> None:
    assert correct.holm([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    # Hommel's closed test: the pair (.02, .04) has Simes .04, the triple min(3 x .01, 1.5 x .02, .04) = .03
    assert correct.hommel([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert correct.bh([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.03])


def test_one_column_of_max_t_is_the_sign_flip_test() -> None:
    d = np.array([0.1, -0.2, 0.3, 0.05, 0.4, -0.01])
    own = correct.max_t(d[:, None], studentized=False)
    assert own.draws is None
    assert own.raw[0] == own.single_step[0] == own.step_down[0] == pytest.approx(sign_flip(d).two_sided)


def test_clusters_flip_together() -> None:
    rng = np.random.default_rng(5)
    d, labels = rng.normal(0.1, 0.2, (9, 2)), np.array(list("aabbbcdde"))
    sums = np.array([d[labels == name].sum(axis=0) for name in "abcde"])
    patterns = np.array(list(product([-1, 1], repeat=5)))
    flipped = np.abs(patterns @ sums)
    bar = np.abs(sums.sum(axis=0)) - 1e-12
    own = correct.max_t(d, clusters=labels, studentized=False)
    assert own.raw.tolist() == pytest.approx((flipped >= bar).mean(axis=0).tolist())
    assert own.single_step.tolist() == pytest.approx((flipped.max(axis=1)[:, None] >= bar).mean(axis=0).tolist())
    studentized = correct.max_t(d, clusters=labels)
    spread = 5 / 4 * ((sums - np.outer([2, 3, 1, 2, 1], d.mean(axis=0))) ** 2).sum(axis=0) / 81
    assert studentized.statistics.tolist() == pytest.approx((np.abs(d.mean(axis=0)) / np.sqrt(spread)).tolist())


def test_drawn_signs_agree_with_all_signs_and_never_give_zero() -> None:
    d = np.random.default_rng(2).normal(0.12, 0.2, (14, 3))
    exact, drawn = correct.max_t(d), correct.max_t(d, exact_up_to=0, draws=9999)
    assert drawn.draws == 9999
    for name in ("raw", "single_step", "step_down"):
        p, own = getattr(exact, name), getattr(drawn, name)
        assert np.all(np.abs(own - p) <= 4 * np.sqrt(p * (1 - p) / 9999) + 1e-4)
    certain = correct.max_t(np.ones((40, 1)) * 0.5 + d[:1, :1] * 0, draws=99)
    assert certain.raw[0] == pytest.approx(1 / 100)


def test_order_of_queries_and_columns_leaves_drawn_p_alone() -> None:
    rng = np.random.default_rng(8)
    d = rng.normal(0.05, 0.2, (30, 3))
    shuffled = d[rng.permutation(30)][:, [2, 0, 1]]
    own, other = correct.max_t(d, draws=500), correct.max_t(shuffled, draws=500)
    assert own.step_down[[2, 0, 1]].tobytes() == other.step_down.tobytes()


def test_step_down_is_never_above_single_step() -> None:
    own = correct.max_t(np.random.default_rng(4).normal(0.1, 0.3, (10, 5)))
    assert np.all(own.raw <= own.step_down)
    assert np.all(own.step_down <= own.single_step)


@pytest.mark.parametrize("d", [[[0.1, 0.0], [0.2, 0.0]], [[0.1, 0.2]], [[0.1, math.nan], [0.1, 0.2]]])
def test_max_t_refuses_what_cannot_be_tested(d: list) -> None:
    with pytest.raises(DataError):
        correct.max_t(d)
