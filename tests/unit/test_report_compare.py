"""Protects the judgement: numbers equal a direct computation, the sign is the component's, and words match numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.report_store import Scores, build_store, make_scores
from vlbench.errors import PlanError
from vlbench.report import words
from vlbench.report.compare import Comparison, compare, subject
from vlbench.report.frame import read
from vlbench.report.methods import advice
from vlbench.stats.correct import bh, holm
from vlbench.stats.design import contrast, difference

ARMS = {"baseline": 0.05, "without FRA": 0.0, "placebo": 0.045}
PLACEBO = "FRA against a placebo of equal size"
VIDEOS = [q // 2 for q in range(40)]


def judged(tmp_path, scores, **options) -> Comparison:
    study = options.setdefault("study", "ablate-fra")
    return compare(read(build_store(tmp_path, scores, **options), study))


def test_every_primary_number_equals_the_engine_on_the_raw_scores(tmp_path):
    scores = make_scores(ARMS)
    found = judged(tmp_path, scores)
    family = [(arm, metric) for arm in ("without FRA", "placebo") for metric in ("mr-map", "hd-map")]
    direct = {
        (arm, metric): difference(scores["baseline"][metric], scores[arm][metric], clusters=VIDEOS)
        for arm, metric in family
    }
    adjusted = dict(zip(family, holm([direct[key].p for key in family]), strict=True))
    assert [(row.name, row.metric) for row in found.rows] == family
    for row in found.rows:
        wanted = direct[row.name, row.metric]
        low, high = wanted.ci(0.95)
        assert row.points == pytest.approx(100 * wanted.estimate, abs=1e-5)
        assert (row.low, row.high) == pytest.approx((100 * low, 100 * high), abs=1e-4)
        assert row.p_adjusted == pytest.approx(adjusted[row.name, row.metric], rel=1e-4)
        assert row.standard_errors == pytest.approx(
            {
                "general": 100 * wanted.se_general,
                "benchmark": 100 * wanted.se_benchmark,
                "checkpoint": 100 * wanted.se_checkpoint,
            },
            abs=1e-5,
        )
        assert row.seeds == 3 and row.queries == 40 and row.contrast.clusters == 20
        z = scores["baseline"][row.metric].mean(axis=0) - scores[row.name][row.metric].mean(axis=0)
        assert (row.wins, row.ties, row.losses) == ((z > 1e-9).sum(), (abs(z) <= 1e-9).sum(), (z < -1e-9).sum())
        np.testing.assert_allclose(
            row.by_seed,
            100 * (scores["baseline"][row.metric].mean(axis=1) - scores[row.name][row.metric].mean(axis=1)),
            atol=1e-5,
        )


def test_means_and_their_intervals(tmp_path):
    scores = make_scores(ARMS)
    found = judged(tmp_path, scores)
    wanted = contrast({"a": scores["placebo"]["mr-map"]}, {"a": 1.0}, clusters=VIDEOS)
    mean = found.means["placebo", "mr-map"]
    assert mean.points == pytest.approx(100 * scores["placebo"]["mr-map"].mean(), abs=1e-5)
    assert (mean.low, mean.high) == pytest.approx(tuple(100 * x for x in wanted.ci()), abs=1e-4)
    assert mean.sd_seeds == pytest.approx(100 * scores["placebo"]["mr-map"].mean(axis=1).std(ddof=1), abs=1e-5)


def test_exploratory_metrics_use_their_population_and_their_own_correction(tmp_path):
    scores = make_scores(ARMS)
    found = judged(tmp_path, scores)
    rows = found.exploratory
    assert {row.metric for row in rows} == {"mr-r1@0.5", "mr-map-long"} and all(row.verdict is None for row in rows)
    long = found.row("without FRA", "mr-map-long")
    half = {arm: scores[arm]["mr-map-long"][:, ::2] for arm in ARMS}
    wanted = difference(half["baseline"], half["without FRA"], clusters=VIDEOS[::2])
    assert long.queries == 20 and long.points == pytest.approx(100 * wanted.estimate, abs=1e-5)
    assert long.p == pytest.approx(wanted.p, rel=1e-4)
    np.testing.assert_allclose([row.p_adjusted for row in rows], bh([row.p for row in rows]))


def test_the_sign_is_the_components_whether_arms_remove_or_add_it(tmp_path):
    removed = judged(tmp_path / "a", make_scores({"baseline": 0.1, "without FRA": 0.0}))
    added = judged(tmp_path / "b", make_scores({"baseline": 0.1, "with noise": 0.0}), adds=True, component="noise")
    assert removed.rows[0].points > 5 and (removed.rows[0].claim.plus, removed.rows[0].claim.minus) == (
        "baseline",
        "without FRA",
    )
    assert added.rows[0].points < -5 and (added.rows[0].claim.plus, added.rows[0].claim.minus) == (
        "with noise",
        "baseline",
    )
    assert removed.rows[0].verdict.word == "helps" and added.rows[0].verdict.word == "hurts"
    assert removed.rows[0].label == "baseline − without FRA" and added.rows[0].label == "with noise − baseline"


def test_the_answer_says_metric_size_interval_p_and_n(tmp_path):
    found = judged(tmp_path, make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=5), primary=["mr-map"])
    row = found.rows[0]
    assert row.p_adjusted < 1e-4
    assert found.answer == (
        f"FRA: helps on MR-mAP (+{row.points:.2f} points, 95% interval +{row.low:.2f} to +{row.high:.2f}, "
        "adjusted p < 0.0001); 5 seeds, 40 queries."
    )


def test_several_arms_get_a_sentence_each_with_what_could_have_been_seen(tmp_path):
    found = judged(tmp_path, make_scores(ARMS))
    assert list(found.answers) == ["without FRA", "placebo"]
    assert found.answers["without FRA"].startswith("FRA against nothing: helps on MR-mAP (+")
    assert found.answers["placebo"].startswith("FRA against a placebo: unresolved on MR-mAP (")
    assert f"could have seen {found.row('placebo', 'mr-map').verdict.mde:.2f}" in found.answers["placebo"]


def test_equivalent_arms_are_called_so(tmp_path):
    rng = np.random.default_rng(3)
    base = np.round(0.5 + rng.normal(0, 0.1, (5, 40)) * 0.001 + rng.normal(0, 0.1, 40), 5)
    other = np.round(base + rng.normal(0, 1e-3, base.shape), 5)
    found = judged(tmp_path, {"baseline": {"mr-map": base}, "without FRA": {"mr-map": other}}, primary=["mr-map"])
    assert found.rows[0].verdict.word == "equivalent"
    assert found.answer.startswith("FRA: equivalent within ±0.5 points on MR-mAP (")
    low, high = (100 * bound for bound in found.rows[0].contrast.ci(0.9))  # the interval that the word rests on
    assert f"90% interval {words.interval(low, high)}" in found.answer and -0.5 < low < high < 0.5


@pytest.mark.parametrize(
    ("component", "adds", "arms", "parameters", "wanted"),
    [
        ("fra", False, ["without FRA"], {}, ["FRA"]),
        ("fra", False, ["without FRA", "placebo"], {"placebo": 1_200_000}, ["FRA against nothing", PLACEBO]),
        ("fra", False, ["without fra", "one-way"], {}, ["fra against nothing", "fra against “one-way”"]),
        ("noise", True, ["with noise"], {}, ["noise, added"]),
        ("noise", True, ["with noise", "twice"], {}, ["noise, added", "noise in “twice”"]),
        ("a.b", False, ["without a.b", "without axb"], {}, ["a.b against nothing", "a.b against “without axb”"]),
        ("fra", False, ["without FRA", "WITHOUT fra"], {}, ["FRA against “without FRA”", "FRA against “WITHOUT fra”"]),
    ],
)
def test_a_verdict_names_what_it_is_about_in_the_words_of_the_plan(tmp_path, component, adds, arms, parameters, wanted):
    scores = make_scores(dict.fromkeys(["baseline", *arms], 0.0), seeds=2)
    found = judged(tmp_path, scores, component=component, adds=adds, parameters=parameters, question="Is it so?")
    assert [subject(found, claim) for claim in found.claims] == wanted
    assert [answer.split(":")[0] for answer in found.answers.values()] == wanted


def test_the_variance_is_shared_out_between_runs_and_queries(tmp_path):
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 0.1, 40)

    def scores(by_run: float, by_query: float) -> dict[str, Scores]:
        made = {}
        for arm in ("baseline", "without FRA"):
            runs = by_run * np.array([[-1], [1], [-1], [1]])
            queries = by_query * np.where(np.arange(40) % 4 < 2, 1, -1) * (1 if arm == "baseline" else -1)
            made[arm] = {"mr-map": np.clip(0.5 + hard + runs + queries + rng.normal(0, 1e-3, (4, 40)), 0, 1)}
        return made

    cases = {"runs": (0.05, 0.001), "queries": (0.0005, 0.05), "both": (0.02, 0.05)}
    told = {}
    for name, sizes in cases.items():
        found = judged(tmp_path / name, scores(*sizes), primary=["mr-map"])
        row = found.rows[0]
        runs, queries = row.shares
        c = row.contrast
        assert runs == pytest.approx(c.var_seed / c.se_general**2) and queries <= 1
        assert runs + queries >= 1 - 1e-9  # what both share counts twice
        told[name] = advice(found, "mr-map")
    assert "more seeds or steadier training help, more queries hardly" in told["runs"][-1]
    assert "more queries help, more seeds hardly" in told["queries"][-1]
    assert "more of either helps" in told["both"][-1]
    assert all("could have seen" in lines[0] and "no effect" not in " ".join(lines) for lines in told.values())


def test_one_seed_speaks_about_checkpoints_only(tmp_path):
    found = judged(tmp_path, make_scores({"baseline": 0.1, "without FRA": 0.0}, seeds=1))
    assert found.one_seed and found.estimand == "checkpoint"
    assert found.rows[0].standard_errors["general"] is None and found.rows[0].standard_errors["checkpoint"] > 0
    assert found.means["baseline", "mr-map"].sd_seeds is None
    assert found.answer.startswith("FRA, these checkpoints only: helps on MR-mAP (")
    assert found.answer.endswith("One seed: this is about these checkpoints, not about the method.")
    assert found.rows[0].shares is None


def test_a_primary_metric_that_was_not_measured_is_named_and_leaves_the_family(tmp_path):
    found = judged(tmp_path, make_scores(ARMS), primary=["mr-map", "hd-ap"])
    assert found.unavailable == {"hd-ap": "not measured"} and found.metrics == ("mr-map",) and len(found.rows) == 2
    with pytest.raises(PlanError, match=r"none of the primary metrics can be tested \(AP \(YouTube Highlights\): not"):
        judged(tmp_path / "b", make_scores(ARMS), primary=["hd-ap"])


def test_a_metric_without_a_population_is_not_tested(tmp_path):
    scores = make_scores(ARMS)
    for arm in scores:
        scores[arm]["mr-map-long"][:, 1:] = np.nan
    found = judged(tmp_path, scores)
    assert found.unavailable == {"mr-map-long": "1 query in its population, two are needed"}


def test_arms_in_which_nothing_varies_stay_in_the_family_without_a_verdict(tmp_path):
    scores = make_scores(ARMS)
    scores["baseline"] = {m: np.tile(values[:1], (3, 1)) for m, values in scores["baseline"].items()}
    scores["placebo"] = scores["baseline"]
    found = judged(tmp_path, scores, last_shift=0.0)
    row = found.row("placebo", "mr-map")
    assert row.contrast.constant and not row.survives and row.verdict.word == "unresolved"
    assert len(found.rows) == 4 and "nothing varies" in found.answers["placebo"]
    alone = holm([found.row("without FRA", m).p for m in found.metrics] + [1.0, 1.0])
    assert found.row("without FRA", "mr-map").p_adjusted == pytest.approx(alone[0])


def test_published_numbers_of_this_dataset_only(tmp_path):
    found = judged(tmp_path, make_scores(ARMS))
    assert [(x.arm, x.metric, x.value, x.split, x.source) for x in found.published] == [
        ("baseline", "mr-map", 43.38, "test", "arXiv v1, table II")
    ]


def test_the_last_checkpoint_stands_beside_the_selected_one(tmp_path):
    found = judged(tmp_path, make_scores(ARMS), last_shift=-0.02)
    (last,) = found.others
    assert found.checkpoint == "selected" and last.checkpoint == "last" and last.others == () and not found.optimistic
    assert last.row("without FRA", "mr-map").points == pytest.approx(
        found.row("without FRA", "mr-map").points - 2, abs=0.05
    )


def test_the_order_of_queries_moves_no_digit(tmp_path):
    scores = make_scores(ARMS)
    order = np.random.default_rng(1).permutation(40)
    shuffled = {arm: {m: values[:, order] for m, values in table.items()} for arm, table in scores.items()}
    one = judged(tmp_path / "a", scores, shared_videos=False)
    two = judged(tmp_path / "b", shuffled, shared_videos=False)
    assert [(r.points, r.low, r.p, r.p_adjusted) for r in one.rows] == [
        (r.points, r.low, r.p, r.p_adjusted) for r in two.rows
    ]
