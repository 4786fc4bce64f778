"""Protects the retention of a benefit: the interaction by hand, its words, and that the fits are the same ones."""

import json

import numpy as np
import pytest

from tests.unit.report_store import build_store, make_scores
from vlbench.errors import PlanError
from vlbench.report import transfer


def both(root, effect_here, effect_there, seeds=4):
    """Two studies of the same fits: the component is worth these effects on mr-map."""
    for study, effect, salt in (("own", effect_here, 7), ("there", effect_there, 11)):
        arms = {"baseline": effect, "without FRA": 0.0}
        store = build_store(
            root, make_scores(arms, seeds=seeds, salt=salt, queries=120), study=study, extra={"dataset": study}
        )
    plan = store.load_plan("there")
    for arm, own in zip(plan["arms"], store.load_plan("own")["arms"], strict=True):
        for cell, mine in zip(arm["cells"], own["cells"], strict=True):
            cell["fit"] = mine["fit"]
    store.save_plan("there", plan)
    return store


def test_a_benefit_that_is_gone_is_smaller_there(tmp_path):
    found = transfer.retained(both(tmp_path, 0.15, 0.0), "own", "there")
    row = next(row for row in found.rows if row.metric == "mr-map")
    assert row.gap.estimate == pytest.approx(row.other.estimate - row.own.estimate, abs=1e-9)
    assert row.gap.estimate == pytest.approx(-0.15, abs=0.03) and row.p_adjusted < 0.05
    assert row.statement == "its benefit is smaller there" and abs(row.retention) < 0.2
    assert row.gap.var_query == pytest.approx(row.own.var_query + row.other.var_query, rel=0.03)


def test_a_benefit_that_stays_is_not_called_smaller_and_a_share_needs_a_benefit(tmp_path):
    found = transfer.retained(both(tmp_path / "1", 0.15, 0.15), "own", "there")
    assert all(row.verdict.word in ("unresolved", "equivalent") for row in found.rows)
    assert "% of it" in transfer.sentences(found)[0]
    nothing = transfer.retained(both(tmp_path / "2", 0.0, 0.15), "own", "there")
    assert nothing.rows[0].retention is None and "% of it" not in transfer.sentences(nothing)[0]
    assert nothing.rows[0].statement == "its benefit is larger there"


def test_studies_of_other_fits_are_refused(tmp_path):
    store = both(tmp_path, 0.1, 0.1)
    plan = store.load_plan("there")
    cells = plan["arms"][1]["cells"]
    cells[0]["fit"], cells[1]["fit"] = cells[1]["fit"], cells[0]["fit"]
    store.save_plan("there", plan)
    with pytest.raises(PlanError, match="same fits"):
        transfer.retained(store, "own", "there")


def test_every_form_has_the_same_numbers(tmp_path):
    store = both(tmp_path / "store", 0.15, 0.05)
    found = transfer.retained(store, "own", "there")
    paths = {path.name: path for path in transfer.write(store, found, tmp_path / "out")}
    rows = json.loads(paths["results.json"].read_text())["rows"]
    assert np.isclose(rows[0]["interaction"], rows[0]["other"] - rows[0]["own"])
    for name in ("index.html", "report.md"):
        assert found.rows[0].statement in paths[name].read_text()
    assert len(paths["transfer.csv"].read_text().splitlines()) == 1 + len(rows)
