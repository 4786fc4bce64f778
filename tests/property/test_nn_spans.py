"""Protects the two forms of a span and their overlap: round trips, symmetry, range, agreement with clip counting."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlbench.nn.spans import giou, logit, to_cw, to_se

ends = st.tuples(st.integers(0, 64), st.integers(1, 64)).map(lambda p: (p[0] / 128, (p[0] + p[1]) / 128))
spans = st.lists(ends, min_size=1, max_size=8)


@given(spans)
def test_round_trip(pairs: list[tuple[float, float]]) -> None:
    se = torch.tensor(pairs)
    torch.testing.assert_close(to_se(to_cw(se)), se)
    torch.testing.assert_close(to_cw(to_se(se)), se)  # any pair of numbers is a span of either form


@given(ends, ends)
def test_overlap_is_symmetric_and_bounded(first: tuple[float, float], second: tuple[float, float]) -> None:
    a, b = torch.tensor([first]), torch.tensor([second])
    value = giou(a, b).item()
    assert abs(value - giou(b, a).item()) < 1e-6
    assert -1 <= value <= 1
    assert (value == 1) == (first == second)


@given(ends, ends)
def test_overlap_agrees_with_counting(first: tuple[float, float], second: tuple[float, float]) -> None:
    sets = [set(range(round(s * 128), round(e * 128))) for s, e in (first, second)]
    union, hull = sets[0] | sets[1], set(range(min(sets[0] | sets[1]), max(sets[0] | sets[1]) + 1))
    expected = len(sets[0] & sets[1]) / len(union) - (len(hull) - len(union)) / len(hull)
    assert abs(giou(torch.tensor([first]), torch.tensor([second])).item() - expected) < 1e-5


@given(st.floats(0.002, 0.998))
def test_logit_inverts_the_logistic_function(fraction: float) -> None:
    assert abs(logit(torch.tensor([fraction])).sigmoid().item() - fraction) < 1e-5
