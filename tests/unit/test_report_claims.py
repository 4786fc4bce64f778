"""Protects claims beyond an arm against its baseline: effects of a lattice, declared looks, and choices made late."""

import itertools

import numpy as np
import pytest

from tests.unit.report_store import build_store, make_scores
from vlbench.errors import PlanError
from vlbench.report.compare import compare
from vlbench.report.formats import as_json, to_csv, to_latex, to_markdown
from vlbench.report.frame import read
from vlbench.report.latex import as_good_as_the_best
from vlbench.report.methods import cautions, methods
from vlbench.report.page import Report, study_page
from vlbench.report.tables import effects_table, means_table, metric_table
from vlbench.report.write import write
from vlbench.stats import factorial
from vlbench.stats.correct import holm
from vlbench.stats.design import contrast, difference
from vlbench.stats.power import mde, seeds_needed
from vlbench.stats.sequential import plan_looks

NAMES = {"111": "all", "110": "without C", "101": "without B", "100": "only A",
         "011": "without A", "010": "only B", "001": "only C", "000": "none"}  # fmt: skip


def _claim(name, kind, components, weights):
    used = {NAMES[cell]: weight for cell, weight in weights.items() if weight}
    return {"name": name, "kind": kind, "components": components, "plus": "with", "minus": "without", "weights": used}


def lattice_plan():
    letters = "abc"
    claims = [_claim(x.upper(), "main", [x], factorial.effect(3, [i])) for i, x in enumerate(letters)]
    for i, j in itertools.combinations(range(3), 2):
        claims.append(
            _claim(f"{letters[i]} x {letters[j]}", "interaction", [letters[i], letters[j]], factorial.effect(3, [i, j]))
        )
    claims += [_claim(f"{x}, Shapley", "shapley", [x], factorial.shapley(3, i)) for i, x in enumerate(letters)]
    claims += [_claim(f"{x}, last", "one-out", [x], factorial.leave_one_out(3, i)) for i, x in enumerate(letters)]
    claims += [_claim(f"{x}, first", "one-in", [x], factorial.add_one_in(3, i)) for i, x in enumerate(letters)]
    claims.append(_claim("all together", "total", list(letters), {"111": 1.0, "000": -1.0}))
    factors = [{"name": x, "title": x.upper()} for x in letters]
    return {"claims": claims, "design": {"kind": "factorial", "factors": factors, "cells": NAMES}}


@pytest.fixture
def lattice(tmp_path):
    effects = {
        arm: 0.08 * (cell[0] == "1") + 0.03 * (cell[1] == "1") - 0.02 * (cell[:2] == "11")
        for cell, arm in NAMES.items()
    }
    scores = make_scores(effects, seeds=3)
    store = build_store(tmp_path, scores, extra=lattice_plan(), parameters=dict.fromkeys(NAMES.values(), 10))
    return compare(read(store, "ablate-fra")), scores


def test_a_lattice_is_judged_by_its_main_effects(lattice):
    found, scores = lattice
    assert [row.name for row in found.rows] == ["A", "A", "B", "B", "C", "C"] and found.lattice
    arms = {arm: np.asarray(table["mr-map"]) for arm, table in scores.items()}
    clusters = found.frame.clusters_of("mr-map")
    wanted = contrast(arms, {NAMES[c]: w for c, w in factorial.effect(3, [0]).items()}, clusters=clusters)
    row = found.row("A", "mr-map")
    assert row.points == pytest.approx(100 * wanted.estimate) and row.p == pytest.approx(wanted.p)
    assert [r.p_adjusted for r in found.rows] == pytest.approx(list(holm([r.p for r in found.rows])))
    assert row.verdict.word == "helps" and row.hedges_g is None and row.improvement is None
    z = sum(w * arms[NAMES[c]].mean(axis=0) for c, w in factorial.effect(3, [0]).items())
    assert (row.wins, row.losses) == (int((z > 1e-9).sum()), int((z < -1e-9).sum()))


def test_every_kind_of_claim_is_a_family_of_its_own(lattice):
    found, _ = lattice
    for kind in ("interaction", "shapley", "total"):
        rows = [row for row in found.effects if row.claim.kind == kind]
        assert rows and [r.p_adjusted for r in rows] == pytest.approx(list(holm([r.p for r in rows])))
    assert len(found.effects) == 2 * (3 + 3 + 3 + 3 + 1)


def test_shapley_values_sum_to_the_full_model_minus_the_empty_one(lattice):
    found, _ = lattice
    for metric in found.metrics:
        shares = [row.points for row in found.effects if row.claim.kind == "shapley" and row.metric == metric]
        full, empty = (found.means[arm, metric].points for arm in ("all", "none"))
        assert sum(shares) == pytest.approx(full - empty, abs=1e-9)
        assert found.row("all together", metric).points == pytest.approx(full - empty, abs=1e-9)


def test_a_lattice_is_rendered_in_every_format(lattice):
    found, _ = lattice
    table = effects_table(found, "mr-map")
    assert [row[0].text for row in table.rows].count("Main effect") == 3
    assert {row[1].text for row in table.rows} >= {"A", "A x B", "A x B x C"}
    cells = means_table(found, "mr-map")
    assert [row[1].text for row in cells.rows] == ["yes"] * 4 + ["no"] * 4
    page = study_page(Report(found, ()))
    assert "A, averaged over the settings of the others" in page and "Shapley value" in page
    assert "| Main effect | A |" in to_markdown(found) and "\\begin{tabular}" in to_latex(found)
    content = as_json(found)
    assert content["design"]["cells"] == NAMES
    assert {row["what"] for row in content["checkpoints"]["selected"]["effects"]} == {
        "interaction", "shapley", "one-out", "one-in", "total",
    }  # fmt: skip
    lines = to_csv(found).splitlines()
    assert sum(",interaction," in line for line in lines) == 2 * 2 * 3  # checkpoints, metrics, pairs


def test_a_component_that_is_worth_less_among_others_is_redundant(lattice):
    found, scores = lattice
    means = {arm: 100 * float(np.mean(table["mr-map"])) for arm, table in scores.items()}
    reading = found.reading("a", "mr-map")
    assert reading.alone == pytest.approx(means["only A"] - means["none"], abs=1e-4)
    assert reading.last == pytest.approx(means["all"] - means["without A"], abs=1e-4)
    assert (reading.word == "additive") == (abs(reading.last - reading.alone) <= reading.se)
    shares = found.variance_shares("mr-map")
    assert sum(shares.values()) == pytest.approx(1) and max(shares, key=shares.get) == "A"


def test_half_of_a_lattice_names_both_interactions_of_a_sum(tmp_path):
    letters = "abcd"
    names = {cell: f"cell {cell}" for cell in factorial.cells(4) if cell.count("0") % 2 == 0}
    mains, pair = factorial.effect(4, [0]), factorial.effect(4, [0, 1])
    claims = [
        {"name": name, "kind": kind, "components": list(of), "plus": "with", "minus": "without",
         "weights": {names[cell]: 2 * weight for cell, weight in weights.items() if cell in names}}
        for name, kind, of, weights in (("A", "main", "a", mains), ("A x B + C x D", "interaction", "ab", pair))
    ]  # fmt: skip
    factors = [{"name": x, "title": x.upper()} for x in letters]
    design = {"kind": "fractional", "factors": factors, "cells": names}
    scores = make_scores(dict.fromkeys(names.values(), 0.0))
    found = compare(read(build_store(tmp_path, scores, extra={"claims": claims, "design": design}), "ablate-fra"))
    of = [row[1].text for row in effects_table(found, "mr-map").rows]
    assert of == ["A", "A x B + C x D"] and "A $\\times$ B + C $\\times$ D" in to_latex(found)


# --- looks ------------------------------------------------------------------------------------------------------------


def sequential(tmp_path, effect, seeds, looks, *, spread=0.0, salt=7):
    scores = make_scores({"baseline": effect, "without FRA": 0.0}, seeds=seeds, salt=salt)
    store = build_store(tmp_path, scores, primary=["mr-map"], extra={"looks": looks}, shared_videos=False)
    return compare(read(store, "ablate-fra")), scores


def test_a_look_is_compared_with_its_own_level(tmp_path):
    found, scores = sequential(tmp_path, 0.004, 4, [4, 8])
    level = plan_looks([4, 8])[0].p
    a, b = (scores[arm]["mr-map"] for arm in ("baseline", "without FRA"))
    raw = difference(a, b, estimand="benchmark").p
    (row,) = found.rows
    assert row.contrast.estimand == "benchmark" and found.frame.look == 4
    assert row.p_adjusted == pytest.approx(min(1.0, raw * 0.05 / level))
    assert row.survives == (raw <= level)
    assert "Looks were declared at 4 and 8 seeds" in dict(methods(found))["Correction"]


def test_what_was_rejected_at_a_look_stays_rejected(tmp_path):
    rng = np.random.default_rng(1)
    base = 0.5 + rng.normal(0, 0.1, 40) + np.zeros((8, 1))
    arm = base - 0.05 + rng.normal(0, 0.001, (8, 1))
    arm[4:] += rng.normal(0.05, 0.15, (4, 1))  # later runs hide what the first four showed
    scores = {"baseline": {"mr-map": base + rng.normal(0, 0.001, (8, 1))}, "without FRA": {"mr-map": arm}}
    scores = {name: {"mr-map": np.clip(np.round(t["mr-map"], 5), 0, 1)} for name, t in scores.items()}
    kwargs = {"primary": ["mr-map"], "shared_videos": False}
    store = build_store(tmp_path, scores, extra={"looks": [4, 8]}, **kwargs)
    found = compare(read(store, "ablate-fra"))
    assert found.rows[0].p > 0.05 and found.rows[0].survives


def test_a_rejection_does_not_lend_its_word_to_the_other_sign(tmp_path):
    """The first look was clearly above zero; by the second the difference is below: it is not called a loss."""
    rng = np.random.default_rng(2)
    base = 0.5 + rng.normal(0, 0.1, 40) + np.zeros((8, 1))
    arm = base - 0.02 + rng.normal(0, 0.001, (8, 1))
    arm[4:] += 0.08 + rng.normal(0, 0.04, (4, 1))
    both = {"baseline": base + rng.normal(0, 0.001, (8, 1)), "without FRA": arm}
    scores = {name: {"mr-map": np.clip(np.round(table, 5), 0, 1)} for name, table in both.items()}
    kwargs = {"primary": ["mr-map"], "shared_videos": False}
    first = {name: {"mr-map": table["mr-map"][:4]} for name, table in scores.items()}
    early = compare(read(build_store(tmp_path / "early", first, extra={"looks": [4, 8]}, **kwargs), "ablate-fra"))
    assert early.rows[0].verdict.word == "helps"
    found = compare(read(build_store(tmp_path / "late", scores, extra={"looks": [4, 8]}, **kwargs), "ablate-fra"))
    assert found.rows[0].points < 0 and found.rows[0].verdict.word == "unresolved"


def test_what_a_look_could_have_seen_is_at_its_own_level(tmp_path):
    found, _ = sequential(tmp_path, 0.001, 4, [4, 8])
    (row,) = found.rows
    first, last = plan_looks([4, 8])
    assert row.verdict.mde == pytest.approx(100 * mde(row.contrast, alpha=first.p))
    assert row.verdict.mde > 100 * mde(row.contrast)
    aim = max(abs(row.points), found.frame.margin) / 100
    assert row.verdict.seeds_needed == seeds_needed(row.contrast, aim, alpha=last.p)


def test_a_look_is_about_runs_and_says_so(tmp_path):
    found, _ = sequential(tmp_path, 0.001, 4, [4, 8])
    said = dict(methods(found))
    assert "queries, which were all there from the first look on, do not" in said["What is claimed"]
    assert "Welch's t" in said["Interval and p"] and "level of this look" in said["Verdict"]
    titles = [column.title for column in metric_table(found, "mr-map").columns]
    assert "p (look)" in titles and "p (Holm)" not in titles


def test_bold_at_a_look_is_for_the_population_and_level_of_the_verdicts(tmp_path):
    rng = np.random.default_rng(5)
    query = rng.normal(0, 0.3, 40)  # arms differ from query to query, and hardly from run to run
    base = 0.5 + np.zeros((4, 40)) + rng.normal(0, 0.001, (4, 1))
    arms = {"baseline": base + 0.01, "without FRA": np.clip(0.5 + (query - query.mean()) + base - 0.5, 0, 1)}
    scores = {name: {"mr-map": np.round(table, 5)} for name, table in arms.items()}
    kwargs = {"primary": ["mr-map"], "shared_videos": False}
    found = compare(read(build_store(tmp_path, scores, extra={"looks": [4, 8]}, **kwargs), "ablate-fra"))
    assert found.rows[0].survives and len(as_good_as_the_best(found, "mr-map")) == 1
    assert "0.05 spent over the looks" in to_latex(found)
    assert "re-training, on new queries like these" in to_latex(found, "se")


def test_a_study_is_decided_when_no_look_can_change_it(tmp_path):
    clear, _ = sequential(tmp_path / "a", 0.2, 4, [4, 8])
    assert clear.decided
    open_, _ = sequential(tmp_path / "b", 0.003, 4, [4, 8])
    assert not open_.rows[0].survives and not open_.decided
    last, _ = sequential(tmp_path / "c", 0.003, 4, [2, 4])
    assert last.decided  # the last declared look ends it, whatever was found


# --- choices made late ------------------------------------------------------------------------------------------------


def test_seeds_added_after_a_look_make_a_study_exploratory(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path, scores)
    store.note_look("ablate-fra", 4, 0.5)
    assert compare(read(store, "ablate-fra")).frame.unplanned is None
    store.note_look("ablate-fra", 2, 0.5)
    found = compare(read(store, "ablate-fra"))
    assert "changed to 4 after results with 2 seeds were seen" in found.frame.unplanned
    assert not found.rows[0].planned and "exploratory" in study_page(Report(found, ()))
    assert any(caution.startswith("Exploratory") for caution in cautions(found))
    assert found.answers["without FRA"].endswith("were seen.")


def test_declared_looks_are_not_late_choices_and_others_are(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path, scores, extra={"looks": [2, 4, 8]})
    store.note_look("ablate-fra", 2, 0.5)
    assert read(store, "ablate-fra").unplanned is None
    odd = build_store(tmp_path / "odd", scores, extra={"looks": [3, 8]})
    assert "declared looks are at 3 and 8" in read(odd, "ablate-fra").unplanned


def test_a_margin_chosen_after_results_is_said(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path, scores, margin=2.0)
    store.note_look("ablate-fra", 4, 0.5)
    assert "margin was changed from 0.5 to 2 points" in read(store, "ablate-fra").unplanned


def test_looks_declared_after_results_are_said(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    late = build_store(tmp_path / "late", scores, extra={"looks": [4, 8]})
    late.note_look("ablate-fra", 4, 0.5, [], ["mr-map", "hd-map"])  # shown as a study of four seeds
    assert "plan was changed from one look to looks at 4 and 8 seeds" in read(late, "ablate-fra").unplanned
    back = build_store(tmp_path / "back", scores)
    back.note_look("ablate-fra", 4, 0.5, [4, 8], ["mr-map", "hd-map"])  # the stricter level of a first look
    assert "from looks at 4 and 8 seeds to one look after results with 4 seeds" in read(back, "ablate-fra").unplanned
    same = build_store(tmp_path / "same", scores, extra={"looks": [4, 8]})
    same.note_look("ablate-fra", 4, 0.5, [4, 8], ["mr-map", "hd-map"])
    assert read(same, "ablate-fra").unplanned is None


def test_primary_metrics_chosen_after_results_are_said(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path, scores, primary=["mr-r1@0.5"])
    store.note_look("ablate-fra", 4, 0.5, [], ["mr-map", "hd-map"])
    assert "primary metrics were changed from MR-mAP and HD-mAP to" in read(store, "ablate-fra").unplanned


def test_a_report_notes_what_was_declared_when_it_was_shown(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path / "store", scores, extra={"looks": [4, 8]})
    write(store, "ablate-fra", tmp_path / "out", format="json")
    assert store.looks("ablate-fra") == [
        {"seeds": 4, "margin": 0.5, "schedule": [4, 8], "primary": ["mr-map", "hd-map"]}
    ]


def test_seeds_with_a_hole_are_not_an_earlier_look(tmp_path):
    scores = make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=4)
    store = build_store(tmp_path, scores, extra={"looks": [3, 4]}, skip=[("without FRA", 1)])
    found = compare(read(store, "ablate-fra", allow_missing=True))
    assert found.frame.seeds == (0, 2, 3) and "3 of 4 seeds" in found.frame.unplanned


def test_a_lattice_with_a_hole_says_what_it_cannot_say(tmp_path):
    """Main effects need every cell: what is left of the plan is not what it was planned to judge."""
    scores = make_scores(dict.fromkeys(NAMES.values(), 0.0))
    failed = {("without C", seed): "out of memory" for seed in range(3)}
    store = build_store(tmp_path, scores, extra=lattice_plan(), failed=failed)
    found = compare(read(store, "ablate-fra", allow_missing=True))
    assert "A" in found.frame.unsaid and "c, last" in found.frame.unsaid
    assert {row.claim.kind for row in found.rows} == {"one-out"} and not any(row.planned for row in found.rows)
    assert "needs arms without any result (without C)" in found.frame.unplanned
    assert any("not said for want of them: A, B, C" in caution for caution in cautions(found))


def test_without_any_claim_left_there_is_nothing_to_compare(tmp_path):
    plan = lattice_plan()
    plan["claims"] = [claim for claim in plan["claims"] if claim["kind"] == "main"]
    scores = make_scores(dict.fromkeys(NAMES.values(), 0.0))
    store = build_store(tmp_path, scores, extra=plan, skip=[("without C", seed) for seed in range(3)])
    with pytest.raises(PlanError, match="no claim of the plan has results for all of its arms"):
        read(store, "ablate-fra", allow_missing=True)
