"""Protects the self-test: it passes, it can fail, and it fails for every wrong statistic that is handed to it."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.report_store import build_store, make_scores
from vlbench.cli import app
from vlbench.errors import VlbenchError
from vlbench.runs.store import Store
from vlbench.stats import correct, design, factorial, intervals, paired, power, runs, selection, sequential, student
from vlbench.stats import verdict as words
from vlbench.stats.design import Contrast
from vlbench.streams import stream
from vlbench.testing import selftest as module
from vlbench.testing.selftest import HITS, WORLDS, Check, Tools, band, selftest
from vlbench.testing.simulate import Residuals, studies


def broken(checks: Iterator[Check]) -> Check | None:
    """The first promise that is not kept; later ones are not even simulated."""
    return next((check for check in checks if check.ok is False), None)


# --- the engine -------------------------------------------------------------------------------------------------------


def with_variance(variance: Callable[[Contrast], float]) -> Callable[..., Contrast]:
    def engine(*args: object, **options: object) -> Contrast:
        found = design.contrast(*args, **options)
        se = math.sqrt(variance(found))
        return replace(found, se=se, t=found.estimate / se, p=student.two_sided(found.estimate / se, found.df))

    return engine


def with_estimate(estimate: Callable[[Contrast], float]) -> Callable[..., Contrast]:
    def engine(*args: object, **options: object) -> Contrast:
        found = design.contrast(*args, **options)
        t = estimate(found) / found.se
        return replace(found, estimate=estimate(found), t=t, p=student.two_sided(t, found.df))

    return engine


WRONG_ENGINES = {
    "no seed part": with_variance(lambda own: own.var_query),
    "no query part": with_variance(lambda own: own.var_seed),
    "overlap counted twice": with_variance(lambda own: own.var_seed + own.var_query),
    "sd with divisor n": with_variance(lambda own: own.se**2 * (1 - 1 / min(own.seeds.values()))),
    "estimate too large by a tenth": with_estimate(lambda own: 1.1 * own.estimate),
    "estimate shifted": with_estimate(lambda own: own.estimate + 0.01),
}


@pytest.mark.parametrize("name", WRONG_ENGINES)
def test_a_wrong_engine_is_caught_by_the_default_version(name: str) -> None:
    groups = ["planted effects"] if name.startswith("estimate") else None
    found = broken(selftest(engine=WRONG_ENGINES[name], groups=groups))
    assert found is not None
    assert found.group == ("planted effects" if groups else "equal arms")
    assert found.value is not None
    assert not found.low <= found.value <= found.high


def test_a_wrong_engine_is_caught_by_residuals_of_the_store(workspace) -> None:
    scores = make_scores({"baseline": 0.0, "without FRA": 0.0}, seeds=5, queries=80)
    for seed, gain in enumerate((-0.03, 0.01, 0.04, -0.02, 0.0)):  # runs that differ by more than their queries say
        for arm in scores.values():
            arm["mr-map"][seed] += gain
    store = build_store(workspace / "s", scores, shared_videos=False)
    (kept,) = [check for check in selftest(store=store, groups=["this store"]) if check.ok is not None]
    assert kept.ok
    assert kept.name == "residuals: ablate-fra, mr-map, 5 seeds"
    found = broken(selftest(engine=WRONG_ENGINES["no seed part"], store=store, groups=["this store"]))
    assert found is not None
    assert found.value > 2 * kept.high


# --- the other statistics ---------------------------------------------------------------------------------------------


def narrow(*args: object, **options: object) -> intervals.Bootstrap:
    own = intervals.bootstrap(*args, **options)
    return replace(own, draws=own.estimate + 0.7 * (own.draws - own.estimate))


def dependent(values: np.ndarray, **options: object) -> intervals.Bootstrap:
    own = intervals.bootstrap(values, **options)
    return replace(own, draws=own.draws + 1e-12 * float(np.ravel(values)[0]))


def raw_max_t(*args: object, **options: object) -> correct.MaxT:
    own = correct.max_t(*args, **options)
    return replace(own, step_down=own.raw)


def unspent(seeds: tuple[int, ...]) -> tuple[sequential.Look, ...]:
    """Every look at 5 %."""
    return tuple(replace(look, p=0.05) for look in sequential.plan_looks(seeds))


def flattering(scores: np.ndarray, selecting: np.ndarray, fold_of: np.ndarray) -> selection.Crossfit:
    best = selection.best(scores)
    return selection.Crossfit(np.full(int(fold_of.max()) + 1, best.chosen), best.scores)


def eager(a: np.ndarray, b: np.ndarray) -> tuple[sequential.Step, ...]:
    return tuple(replace(step, e_value=30 * step.e_value) for step in sequential.e_process(a, b))


def one_sided(*args: object, **options: object) -> paired.Permutation:
    own = paired.sign_flip(*args, **options)
    return replace(own, two_sided=min(own.greater, own.less))


SEVERAL, OTHER, SEQUENTIAL, RESAMPLED = (
    "several tests at once",
    "tests beside the engine",
    "adding seeds",
    "resampling and choice",
)
WRONG_TOOLS = {
    "holm corrects nothing": (SEVERAL, Tools(holm=np.asarray)),
    "holm is bonferroni": (SEVERAL, Tools(holm=correct.bonferroni)),
    "bh corrects nothing": (SEVERAL, Tools(bh=np.asarray)),
    "max-t without the maximum": (SEVERAL, Tools(max_t=raw_max_t)),
    "max-t without clusters": (SEVERAL, Tools(max_t=lambda d, clusters, **kw: correct.max_t(d, **kw))),
    "sign-flip one-sided": (OTHER, Tools(sign_flip=one_sided)),
    "sign-flip without clusters": (OTHER, Tools(sign_flip=lambda d, clusters=None, **kw: paired.sign_flip(d, **kw))),
    "welch with pooled spread": (
        SEQUENTIAL,
        Tools(welch=lambda a, b: student.t_test(runs.welch(a, b).estimate, 0.3, 8)),
    ),
    "looks that spend nothing": (SEQUENTIAL, Tools(plan_looks=unspent)),
    "e-values too large": (SEQUENTIAL, Tools(e_process=eager)),
    "conditional power of no drift": (
        SEQUENTIAL,
        Tools(conditional_power=lambda *args, drift: sequential.conditional_power(*args, drift=0.0)),
    ),
    "bootstrap too narrow": (RESAMPLED, Tools(bootstrap=narrow)),
    "epoch chosen and scored at once": (RESAMPLED, Tools(crossfit=flattering)),
    "a bootstrap that minds the order": ("invariance", Tools(bootstrap=dependent)),
    "power by the normal distribution": ("planted effects", Tools(power_of=lambda d, n: power.power_of(d, 4 * n))),
    "plan without query noise": (
        "planted effects",
        Tools(plan=lambda *args, **kw: power.plan(*args, **{**kw, "sd_variant_query": 0.0, "sd_run_query": 0.0})),
    ),
    "equivalence within twice the margin": ("verdicts", Tools(tost=lambda own, margin: words.tost(own, 2 * margin))),
    "pooled effects halved": (
        OTHER,
        Tools(run_contrast=lambda runs, w: replace(own := factorial.run_contrast(runs, w), se=own.se / 1.4)),
    ),
}


@pytest.mark.parametrize("name", WRONG_TOOLS)
def test_a_wrong_statistic_is_caught_by_the_default_version(name: str) -> None:
    group, tools = WRONG_TOOLS[name]
    assert broken(selftest(tools=tools, groups=[group])) is not None


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_bands_are_the_published_ones() -> None:
    assert [band(n) for n in (200, 1000, 2000)] == [(2, 21), (29, 74), (69, 133)]


def test_a_check_does_not_depend_on_the_others() -> None:
    together = [
        check for check in selftest(groups=["adding seeds", "verdicts"], studies=60) if check.group == "verdicts"
    ]
    assert list(selftest(groups=["verdicts"], studies=60)) == together
    assert list(selftest(groups=["verdicts"], studies=60, seed=1)) != together


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(VlbenchError, match='"verdict" is not a group of checks; did you mean "verdicts"'):
        list(selftest(groups=["verdict"]))


def test_simulated_studies_have_the_variances_they_say() -> None:
    world, seeds, queries = WORLDS[3], 4, 50
    drawn = list(studies(stream(0, "test"), 3000, world, seeds=seeds, queries=queries))
    gaps = np.array([one[0].mean() - one[1].mean() for one in drawn])
    seed, query, overlap = world.parts(seeds, queries)
    assert gaps.mean() == pytest.approx(0, abs=4 * gaps.std() / math.sqrt(len(gaps)))
    assert gaps.var() == pytest.approx(seed + query - overlap, rel=4 * math.sqrt(2 / len(gaps)))


def test_equal_arms_of_a_benchmark_are_equal_on_its_queries() -> None:
    world = replace(WORLDS[0], run=0.0, run_query=0.0)
    (one,) = studies(stream(0, "test"), 1, world, seeds=2, queries=30, estimand="benchmark")
    assert one[0].mean() == pytest.approx(one[1].mean(), abs=1e-12)
    assert np.ptp(one[0] - one[1]) > 0.1


def test_hits_have_the_moments_they_say() -> None:
    rng = stream(0, "test")
    better, worse = HITS.study(rng, 300, 2000)
    assert better.mean() - worse.mean() == pytest.approx(HITS.effect, abs=0.015)
    noise = np.mean([design.anova(own).resid for own in (better, worse)])
    assert math.sqrt(noise) == pytest.approx(HITS.sd_noise, rel=0.01)
    assert np.std(better.mean(axis=0) - worse.mean(axis=0), ddof=1) == pytest.approx(
        math.sqrt(HITS.sd_difference**2 + 2 * HITS.sd_noise**2 / 300), rel=0.05
    )


def test_residuals_keep_the_components_of_the_measured_study() -> None:
    world, seeds, queries = WORLDS[3], 6, 400
    (one,) = studies(stream(0, "measured"), 1, world, arms=3, seeds=seeds, queries=queries)
    residuals = Residuals.of({str(number): own for number, own in enumerate(one)}, None)
    rng = stream(0, "resampled")
    again = [residuals.study(rng)[0] for _ in range(200)]
    resid = np.mean([design.anova(own).resid for study in again for own in study])
    assert math.sqrt(resid) == pytest.approx(world.run_query, rel=0.03)
    shared = np.mean([np.var(study[0].mean(axis=0) - study[1].mean(axis=0), ddof=1) for study in again])
    assert shared == pytest.approx(2 * world.variant_query**2 + 2 * resid / seeds, rel=0.1)
    gaps = np.array([study[0].mean() - study[1].mean() for study in again])
    assert gaps.mean() == pytest.approx(0, abs=4 * gaps.std() / math.sqrt(len(gaps)))


def test_clusters_are_resampled_whole() -> None:
    clusters = ["a", "b", "b", "c", "c", "c"]
    profile = np.array([1.0, 2.0, 2.5, 3.0, 3.5, 3.9])
    values = {name: np.tile(profile, (2, 1)) for name in ("x", "y")}
    residuals, rng = Residuals.of(values, clusters), stream(0, "test")
    whole = [[1.0], [2.0, 2.5], [3.0, 3.5, 3.9]]
    for _ in range(20):
        (first, _), labels = residuals.study(rng)
        assert len(np.unique(labels)) == 3
        for label in np.unique(labels):
            assert first[0, labels == label].round(6).tolist() in whole


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_default_version_passes_and_says_so(workspace) -> None:
    build_store(workspace / ".vlbench", make_scores({"baseline": 0.0, "without FRA": 0.02}, seeds=4))
    build_store(workspace / ".vlbench", make_scores({"baseline": 0.0, "other": 0.0}, seeds=1), study="single")
    result = CliRunner().invoke(app, ["selftest", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0, [check for check in found["checks"] if check["ok"] is False]
    assert found["failed"] == 0
    assert {check["group"] for check in found["checks"]} == set(module.GROUPS)
    judged = [check for check in found["checks"] if check["of"] and check["ok"] is not None]
    assert len(judged) > 40
    assert all(check["low"] <= check["value"] <= check["high"] for check in judged)
    by_name = {check["name"]: check for check in found["checks"] if check["group"] == "this store"}
    assert by_name["single"]["found"] == "one seed per arm"
    assert by_name["residuals: ablate-fra, mr-map, 4 seeds"]["ok"]
    assert by_name["runs of one arm in halves: ablate-fra, mr-map"]["ok"] is None
    assert "equal arms: " in result.stderr


def test_an_empty_store_is_no_failure(workspace) -> None:
    (check,) = selftest(store=Store(workspace / ".vlbench"), groups=["this store"])
    assert check.ok is None
    assert check.found == "nothing to resample"


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (None, 0), (False, 1)])
def test_the_exit_status_is_the_verdict(workspace, monkeypatch, ok: bool | None, status: int) -> None:
    check = Check("equal arms", "toy", "29 to 74 of 1000", "99 (9.9%)", ok, 29, 74, 99, 1000)
    monkeypatch.setattr(module, "selftest", lambda **_: iter([check]))
    result = CliRunner().invoke(app, ["selftest"], standalone_mode=False)
    assert result.return_value == status
    assert ("FAILS" in result.stdout) is (ok is False)
    assert "29 to 74 of 1000" in result.stdout
