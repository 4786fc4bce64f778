"""Protects results from what must not matter: order of queries and variants, names of clusters, units, the side."""

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbench.stats import correct, design, factorial
from vlbench.stats.tables import table

seeds_and_queries = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 25), st.integers(0, 2**32 - 1))
families = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def scores_of(shape: tuple[int, int, int, int]) -> tuple[dict[str, np.ndarray], np.random.Generator]:
    runs_a, runs_b, queries, seed = shape
    rng = np.random.default_rng(seed)
    return {"a": np.round(rng.random((runs_a, queries)), 4), "b": np.round(rng.random((runs_b, queries)), 4)}, rng


def bytes_of(contrast: design.Contrast) -> str:
    return json.dumps(asdict(contrast), sort_keys=True)  # repr of a float is exact


@given(seeds_and_queries, st.booleans())
def test_order_of_queries_seeds_and_variants_leaves_the_bytes_alone(
    shape: tuple[int, int, int, int], grouped: bool
) -> None:
    scores, rng = scores_of(shape)
    queries = shape[2]
    labels = ["left", "right", *rng.choice(["left", "right", "middle"], queries - 2)] if grouped else None
    own = design.contrast(scores, {"a": 1.0, "b": -1.0}, clusters=labels)
    order = rng.permutation(queries)
    moved = {name: scores[name][:, order][rng.permutation(len(scores[name]))] for name in ("b", "a")}
    again = design.contrast(
        moved, {"b": -1.0, "a": 1.0}, clusters=None if labels is None else [labels[q] + " side" for q in order]
    )
    assert bytes_of(own) == bytes_of(again)


@given(seeds_and_queries)
def test_percent_and_fractions_leave_the_bytes_alone(shape: tuple[int, int, int, int]) -> None:
    scores, _ = scores_of(shape)
    percent = {name: table(values * 100, name, unit="percent") for name, values in scores.items()}
    weights = {"a": 1.0, "b": -1.0}
    assert bytes_of(design.contrast(percent, weights)) == bytes_of(design.contrast(scores, weights))


@given(seeds_and_queries)
def test_the_other_side_sees_the_same_with_the_sign_turned(shape: tuple[int, int, int, int]) -> None:
    scores, _ = scores_of(shape)
    own, other = design.difference(scores["a"], scores["b"]), design.difference(scores["b"], scores["a"])
    assert own.estimate == -other.estimate
    np.testing.assert_allclose([own.se, own.p], [other.se, other.p], rtol=1e-12)


@given(seeds_and_queries, st.floats(-0.5, 0.5), st.floats(0.1, 10))
def test_a_shift_moves_the_estimate_and_a_scale_scales_it(
    shape: tuple[int, int, int, int], shift: float, scale: float
) -> None:
    scores, _ = scores_of(shape)
    own = design.difference(scores["a"], scores["b"])
    moved = design.difference(scores["a"] * scale + shift, scores["b"] * scale)
    np.testing.assert_allclose(moved.estimate, own.estimate * scale + shift, atol=1e-9)
    np.testing.assert_allclose(moved.se, own.se * scale, atol=1e-9)


@given(families, st.sampled_from(sorted(correct.METHODS)))
def test_corrections_keep_the_order_and_only_add(p: list[float], method: str) -> None:
    adjusted = correct.adjust(p, method)
    assert np.all(adjusted >= np.array(p) - 1e-12)
    assert np.all((adjusted >= 0) & (adjusted <= 1))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= -1e-12)
    np.testing.assert_array_equal(correct.adjust(p[::-1], method)[::-1], adjusted)


@given(families)
def test_stronger_corrections_are_stronger(p: list[float]) -> None:
    ladder = [correct.adjust(p, name) for name in ("hommel", "hochberg", "holm", "bonferroni")]
    for sharper, blunter in pairwise(ladder):
        assert np.all(sharper <= blunter + 1e-12)
    assert np.all(correct.bh(p) <= correct.hommel(p) + 1e-12)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_shares_of_a_lattice_add_up(components: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = {cell: float(rng.random()) for cell in factorial.cells(components)}
    total = sum(
        weight * means[cell] for i in range(components) for cell, weight in factorial.shapley(components, i).items()
    )
    np.testing.assert_allclose(total, means["1" * components] - means["0" * components], atol=1e-12)
    squares = factorial.walsh_squares(means)
    np.testing.assert_allclose(sum(squares.values()), np.var(list(means.values())), atol=1e-12)
