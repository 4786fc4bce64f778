"""Protects the figures of a design and of the variance: edges, steps, shares and words are those of the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.report_lattice import lattice_arms, lattice_plan
from tests.unit.report_store import build_store, make_scores
from vlbench.report import figures, lattice, spread
from vlbench.report.compare import compare
from vlbench.report.frame import read
from vlbench.stats.design import difference


def judged(root, components, gains, *, seeds=4, cells=None, **options):
    arms = lattice_arms(components)
    kept = {cell: arm for cell, arm in arms.items() if cells is None or cell in cells}
    effects = {arm: gains(cell) for cell, arm in kept.items()}
    extra = lattice_plan(components)
    extra["design"]["cells"] = kept
    extra["claims"] = [claim for claim in extra["claims"] if claim["weights"].keys() <= effects.keys()]
    extra |= options
    store = build_store(root, make_scores(effects, seeds=seeds), extra=extra, parameters=dict.fromkeys(effects, 9))
    return compare(read(store, "ablate-fra"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    gains = {"111": 0.1, "110": 0.12, "101": 0.08, "100": 0.09, "011": 0.02, "010": 0.03, "001": -0.03, "000": 0.0}
    return judged(tmp_path_factory.mktemp("three"), ["fra", "bicmf", "unijfm"], gains.get)


@pytest.mark.parametrize(("components", "edges"), [(["a"], 1), (["a", "b"], 4), (["a", "b", "c", "d"], 32)])
def test_every_pair_that_differs_in_one_component_is_an_edge(tmp_path, components, edges):
    found = judged(tmp_path, components, lambda cell: 0.02 * cell.count("1"), seeds=2)
    assert len(lattice.edges(found, "mr-map")) == edges
    plot = lattice.cube(found)
    assert len(plot.rows) == 2 * edges and figures.to_png(plot).startswith(b"\x89PNG")


def test_an_edge_is_the_difference_of_its_two_cells(three):
    cells = three.frame.design.cells
    values = three.frame.values("mr-map", "selected")
    for edge in lattice.edges(three, "mr-map"):
        assert edge.with_it != edge.cell and edge.with_it[edge.factor] == "1"
        wanted = difference(
            values[cells[edge.with_it]], values[cells[edge.cell]], clusters=three.frame.clusters_of("mr-map")
        )
        low, high = wanted.ci(0.95)
        assert (edge.points, edge.low, edge.high) == pytest.approx((100 * wanted.estimate, 100 * low, 100 * high))
        assert edge.clear == (low > 0 or high < 0)


def test_the_cube_names_its_cells_and_prints_every_edge(three):
    plot = lattice.cube(three)
    svg = figures.to_svg(plot)
    assert "FRA" in svg and "+ UNIJFM" in svg and "none" in svg
    for edge in lattice.edges(three, "mr-map"):
        assert f"{edge.points:+.2f}".replace("-", "−") in svg
    assert "Blue: a gain. Orange: a loss." in plot.caption
    assert plot.panels[0].alt.count(" on ") == 12


def test_a_design_with_holes_lists_the_edges_it_has(tmp_path):
    found = judged(tmp_path, ["a", "b", "c"], lambda cell: 0.0, cells=["111", "011", "101", "110"], kind="ablation")
    plot = lattice.cube(found)
    assert {row["component"] for row in plot.rows} == {"A", "B", "C"} and len(plot.rows) == 2 * 3
    assert lattice.waterfall(found) is None


def test_the_steps_of_the_waterfall_reach_the_full_model(three):
    plot = lattice.waterfall(three)
    for metric in three.metrics:
        steps = [row for row in plot.rows if row["metric"] == metric]
        assert [step["step"] for step in steps] == ["empty", "FRA", "BICMF", "UNIJFM", "full"]
        assert sum(step["points"] for step in steps[:-1]) == pytest.approx(steps[-1]["points"], abs=1e-9)
        assert all(step["low"] < step["points"] < step["high"] for step in steps[1:-1])
    assert figures.inline(plot.panels[0]).startswith("<svg")


def test_a_study_of_arms_has_neither(tmp_path):
    found = compare(read(build_store(tmp_path, make_scores({"baseline": 0.1, "without FRA": 0.0})), "ablate-fra"))
    assert lattice.cube(found) is None and lattice.waterfall(found) is None
    assert lattice.readings_table(found, "mr-map") is None
    assert [plot.name for plot in figures.plots(found)] == ["differences", "runs", "curves", "budget"]


def test_the_words_are_those_of_the_readings(three):
    table = lattice.readings_table(three, "mr-map")
    for row, name in zip(table.rows, ("fra", "bicmf", "unijfm"), strict=True):
        reading = three.reading(name, "mr-map")
        assert row[0].text == name.upper() and row[6].text == reading.word
        assert (row[1].value, row[2].value) == (reading.alone, reading.last)
    assert {row[6].text for row in table.rows} <= {"redundant", "synergistic", "additive"}


# --- every run, and the budget ----------------------------------------------------------------------------------------


def test_every_run_is_drawn_with_its_mean(three):
    plot = spread.rainclouds(three)
    values = three.frame.values("hd-map", "selected")
    for arm in three.frame.arms:
        runs = [
            row["points"]
            for row in plot.rows
            if (row["arm"], row["metric"], row["mark"]) == (arm.name, "hd-map", "run")
        ]
        assert runs == pytest.approx(list(100 * values[arm.name].mean(axis=1)))
        (mean,) = [r for r in plot.rows if (r["arm"], r["metric"], r["mark"]) == (arm.name, "hd-map", "mean")]
        assert mean["points"] == pytest.approx(np.mean(runs)) and mean["low"] < mean["points"] < mean["high"]
    assert "density" in plot.caption


def test_one_seed_has_runs_and_no_interval_and_no_budget(tmp_path):
    store = build_store(tmp_path, make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=1))
    found = compare(read(store, "ablate-fra"))
    plot = spread.rainclouds(found)
    assert all(row["low"] is None for row in plot.rows) and "interval for training again" not in plot.caption
    assert spread.variance_budget(found) is None and spread.cheaper(found) == []
    assert figures.to_svg(plot)


def test_a_density_is_highest_where_the_runs_are():
    at = np.linspace(0, 10, 101)
    heights = spread.density([4.9, 5.0, 5.1, 5.0], at)
    assert heights.max() == 1 and at[heights.argmax()] == pytest.approx(5)
    assert not spread.density([5.0, 5.0, 5.0, 5.0], at).any()


def test_the_budget_shares_out_the_whole_variance(three):
    for row in three.rows:
        found = spread.budget(row)
        assert sum(found.shares) == pytest.approx(1) and min(found.shares) >= 0
        contrast = row.contrast
        assert found.runs + found.both <= contrast.var_seed / contrast.se**2 + 1e-9
        twice = contrast.se**2 * (found.runs / 2 + found.both / 2 + found.query)
        assert found.seeds == pytest.approx(1 - math.sqrt(twice) / contrast.se)


@pytest.mark.parametrize(
    ("by_seeds", "by_queries", "says"),
    [
        ([0.29, 0.2], [0.01, 0.1], "Seeds are the cheaper"),
        ([0.01, 0.02], [0.2, 0.3], "More queries narrow it more"),
        ([0.2, 0.1], [0.1, 0.2], "It depends"),
    ],
)
def test_what_to_add_follows_from_what_narrows_more(by_seeds, by_queries, says):
    assert spread._worth(by_seeds, by_queries).startswith(says)


def test_the_sentence_says_what_twice_the_seeds_cost(three):
    (first, _) = spread.cheaper(three)
    assert first.startswith("MR-mAP: twice the seeds (32 more runs, about ") and "twice the queries by" in first
