"""Reference cases for the statistics: files of format ``vlbench-golden-stats/1``, checked against the public functions.

Each topic is one function from a case to the fields that vlbench computes, in the layout of the file. A field of the
file that nothing computes fails its case, unless the topic names it as another package's own number (``FOREIGN``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbench.errors import VlbenchError
from vlbench.stats import correct, design, intervals, paired, power, runs, verdict
from vlbench.stats.student import TTest
from vlbench.testing import CaseResult

FORMAT = "vlbench-golden-stats/1"
DRAWS = 20_000  # for the Monte-Carlo quantities; their tolerances follow from it

Fields = dict[str, Any]
Case = Mapping[str, Any]


class _Foreign:
    """Marks a number that is another package's own, such as its random draws or its pooled variances."""


FOREIGN = _Foreign()


@dataclass(frozen=True, slots=True)
class _Within:
    """A value with a tolerance of its own (absolute)."""

    value: Any
    tolerance: float | Sequence[float]


@dataclass(frozen=True, slots=True)
class _Topic:
    """How a file is checked: section -> function from a case to fields; default tolerances; keys that are remarks."""

    sections: Mapping[str, Callable[[Case], Fields]]
    rel: float = 0.0
    abs: float = 0.0


def check_directory(path: Path) -> list[CaseResult]:
    """Run every file of the format found in a directory, in the order of names.

    Returns: one result per case; a file whose topic has no public function gives one result that is not ok.
    Raises: VlbenchError if there is no such file.
    """
    results: list[CaseResult] = []
    for file in sorted(Path(path).glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") == FORMAT:
            results += check_file(file.stem, content)
    if not results:
        raise VlbenchError(f"no file of format {FORMAT}", where=str(path))
    return results


def check_file(name: str, content: Mapping[str, Any]) -> list[CaseResult]:
    """Check the parsed content of one file; ``name`` is its stem and begins every case's name."""
    topic = TOPICS.get(TITLES.get(str(content.get("topic")), name))
    if topic is None:
        return [CaseResult(name, False, "", math.inf, 0.0, "no public function for this topic yet")]
    results = []
    for section, entries in content.items():
        if section in ("format", "topic", "tolerance", "sources", "traps"):
            continue
        if section not in topic.sections:
            results.append(
                CaseResult(f"{name}/{section}", False, section, math.inf, 0.0, "no function for this section")
            )
            continue
        for number, case in enumerate(_cases(entries)):
            label = f"{name}/{case.get('id', f'{section}[{number}]')}"
            results.append(_check(label, case, topic.sections[section], topic))
    return results


def _cases(entries: Any) -> list[Case]:
    """The cases of a section: a list, the rows of an object, or the object itself."""
    if isinstance(entries, list):
        return entries
    return list(entries["rows"]) if "rows" in entries else [entries]


def _check(label: str, case: Case, compute: Callable[[Case], Fields], topic: _Topic) -> CaseResult:
    try:
        ours = compute(case)
    except VlbenchError as cause:
        return CaseResult(label, False, "", math.inf, 0.0, f"refused: {cause}")
    inputs = {"id", "input"} if "input" in case else set(case) - set(ours)
    wanted = case["expected"] if "expected" in case else {key: case[key] for key in case if key not in inputs}
    worst, ratio, deviation, tolerance, missing = "", -1.0, 0.0, 0.0, []
    for field, want, got in _leaves("", wanted, ours):
        if got is _MISSING:
            missing.append(field)
            continue
        off, allowed = _distance(want, got, topic)
        share = off / allowed if allowed > 0 else (0.0 if off == 0 else math.inf)
        if share > ratio:
            worst, ratio, deviation, tolerance = field, share, off, allowed
    detail = f"nothing computes {', '.join(missing)}" if missing else ""
    return CaseResult(label, ratio <= 1 and not missing and bool(worst), worst, deviation, tolerance, detail)


_MISSING = object()


def _leaves(path: str, want: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of reference and own leaf; remarks and foreign numbers are left out."""
    if got is FOREIGN:
        return
    if isinstance(want, Mapping) and not isinstance(got, _Within) and got is not _MISSING:
        for key, value in want.items():
            if key not in ("note", "axes", "direction", "antisymmetry"):
                yield from _leaves(f"{path}.{key}" if path else key, value, got.get(key, _MISSING))
    else:
        yield path, want, got


def _distance(want: Any, got: Any, topic: _Topic) -> tuple[float, float]:
    """Largest deviation of a leaf and what is allowed there."""
    own = got.tolerance if isinstance(got, _Within) else None
    got = got.value if isinstance(got, _Within) else got
    if isinstance(want, list) or isinstance(got, list | tuple | np.ndarray):
        if not isinstance(want, list) or len(want) != len(got):
            return math.inf, 0.0
        limits = own if isinstance(own, Sequence) else [own] * len(want)
        pairs = [
            _distance(w, g if limit is None else _Within(g, limit), topic)
            for w, g, limit in zip(want, got, limits, strict=True)
        ]
        return max(
            pairs, key=lambda item: item[0] / item[1] if item[1] else (math.inf if item[0] else 0.0), default=(0.0, 0.0)
        )
    if want in ("inf", "-inf"):
        want = float(want)
    if want is None or got is None or isinstance(want, bool | str):
        return (0.0 if want == got else math.inf), 0.0
    allowed = float(own) if isinstance(own, float | int) else max(topic.abs, topic.rel * abs(want))
    return (0.0 if want == got else abs(float(got) - want)), allowed


def _crossed(case: Case) -> Fields:
    a, b = np.array(case["input"]["A"]), np.array(case["input"]["B"])
    scores, want = {"a": a, "b": b}, case["expected"]
    own = design.difference(a, b)
    inside = design.difference(a, b, paired_seeds=True)
    parts, d = {"A": design.anova(a), "B": design.anova(b)}, design.anova(a - b)
    fields: Fields = {
        "diff": own.estimate,
        "var_seed": own.var_seed,
        "var_query": own.var_query,
        "var_overlap": own.var_overlap,
        "var_total": own.se**2,
        "se": own.se,
        "df": own.df,
        "t": own.t,
        "p_two_sided": own.p,
        "ci95": own.ci(),
        "welch_runs_p": design.difference(a, b, estimand="benchmark").p,
        "paired_query_t_p": design.difference(a, b, estimand="checkpoint").p,
        "paired_seeds": {
            "MS_seed": d.ms_seed,
            "MS_query": d.ms_query,
            "MS_resid": d.ms_resid,
            "se": inside.se,
            "df_satterthwaite": inside.df,
            "t": inside.t,
            "p_two_sided": inside.p,
        },
        "statsmodels_twoway_cluster_se_no_correction": design.cluster_robust_se(a - b),
        "lme4_REML": {name: _reml(table) for name, table in (*parts.items(), ("D", d))}
        | {"two_arm": FOREIGN, "two_arm_vc": FOREIGN},
    }
    for name, table in parts.items():
        fields[f"anova_{name}"] = {"MS_seed": table.ms_seed, "MS_query": table.ms_query, "MS_resid": table.ms_resid}
        fields[f"anova_components_{name}"] = {"seed": table.seed, "query": table.query, "resid": table.resid}
    assert own.var_overlap is not None
    if own.var_query > own.var_overlap and all(table.seed > 0 for table in parts.values()):
        # nothing is cut off at zero, so REML has the same answer
        fields["lme4_REML"]["two_arm"] = {
            "diff": _Within(own.estimate, 1e-7),
            "se": _Within(own.se, 1e-6 * own.se),
            "df": FOREIGN,  # pools variances over arms
            "p": FOREIGN,
        }
    if "pigeonhole_bootstrap" in want:
        drawn = intervals.crossed_bootstrap(scores, lambda means: means["a"] - means["b"], draws=DRAWS)
        reference = want["pigeonhole_bootstrap"]["se"]
        fields["pigeonhole_bootstrap"] = {
            "B": FOREIGN,
            "se": _Within(drawn.se, reference * (4 / math.sqrt(2 * DRAWS) + 0.002)),
            "percentile95": _Within(drawn.percentile(), 1.2 * _quantile_noise(reference, DRAWS)),
        }
    return fields


def _reml(table: design.Anova) -> Any:
    """Variance components as restricted maximum likelihood has them, where none is cut off at zero."""
    parts = {"seed": table.seed, "query": table.query, "resid": table.resid}
    if min(parts.values()) <= 0:
        return FOREIGN
    se = math.sqrt(table.seed / table.runs + table.query / table.queries + table.resid / (table.runs * table.queries))
    return {name: _Within(value, 1e-4 * value) for name, value in (parts | {"se": se}).items()}


def _quantile_noise(se: float, draws: int, level: float = 0.95) -> float:
    """Four standard deviations of the end of a percentile interval from ``draws`` near-normal draws."""
    from vlbench.stats.student import normal_quantile

    z = normal_quantile(0.5 + level / 2)
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return 4 * se * math.sqrt((1 - level * level) / 4 / draws) / density


def _contrast(case: Case) -> Fields:
    given = case["input"]
    fields: Fields = {}
    for name, weights in given["weights"].items():
        own = design.contrast(given["cells"], weights)
        fields[name] = {
            "estimate": own.estimate,
            "var_seed": own.var_seed,
            "var_query": own.var_query,
            "var_overlap": own.var_overlap,
            "se": own.se,
            "df": own.df,
            "t": own.t,
            "p_two_sided": own.p,
            "ci95": own.ci(),
            "lme4_pooled_variances": {"est": _Within(own.estimate, 1e-7), "se": FOREIGN, "df": FOREIGN, "p": FOREIGN},
        }
    return fields


def _multiplicity(case: Case) -> Fields:
    p = case["input"]["p"]
    fields: Fields = {name: correct.adjust(p, name) for name in correct.METHODS}
    return fields | {"scipy_bh": fields["bh"]}


def _max_t(case: Case) -> Fields:
    fields: Fields = {}
    for name, studentized in (("studentized", True), ("mean_statistic", False)):
        own = correct.max_t(case["input"]["D"], studentized=studentized)
        fields[name] = {
            "raw": own.raw,
            "single_step_maxT": own.single_step,
            "step_down_maxT": own.step_down,
            "statistics": own.statistics,
        }
    first = fields["studentized"]
    reference = {"raw": first["raw"], "adj": first["step_down_maxT"], "t": first["statistics"]}
    return fields | {key: reference for key in case["expected"] if key.startswith("R_multtest")}


def _t(test: TTest) -> Fields:
    return {
        "statistic": test.t,
        "t": test.t,
        "df": test.df,
        "p": test.p,
        "p_two_sided": test.p,
        "p_greater": test.greater,
        "p_less": test.less,
        "ci95": test.ci(),
    }


def _flips(test: paired.Permutation) -> Fields:
    return {"two_sided": test.two_sided, "greater": test.greater, "less": test.less}


def _paired(case: Case) -> Fields:
    a, b = np.array(case["input"]["a"]), np.array(case["input"]["b"])
    d = a - b
    test, effects, flip = paired.paired_t(d), paired.paired_effects(a, b), paired.sign_flip(d)
    ranked: Fields = {}
    if "nonzero_exact_conditional_two_sided" in case["expected"].get("wilcoxon", {}):  # costly for many queries
        ranked["nonzero_exact_conditional_two_sided"] = paired.wilcoxon_exact(d).two_sided
    forms: dict[tuple[str, bool], paired.Wilcoxon] = {}
    methods: tuple[paired.ZeroMethod, ...] = ("wilcox", "pratt", "zsplit")
    for method in methods:
        for correction in (False, True):
            form = forms[method, correction] = paired.wilcoxon(d, zero_method=method, correction=correction)
            ranked[f"{method}_asymptotic_correction_{correction}"] = {
                "statistic": form.statistic,
                "p_two_sided": form.two_sided,
                "p_greater": form.greater,
            }
    fields: Fields = {
        "mean_diff": test.estimate,
        "sd_diff": test.se * math.sqrt(d.size),
        "se_mean_diff": test.se,
        "t": _t(test),
        "signflip_exact": _flips(flip),
        "signflip_scipy_two_sided": min(1.0, 2 * min(flip.greater, flip.less)),
        "wilcoxon": ranked,
        "effect_sizes": {
            "cohen_dz": effects.d_z,
            "cohen_dav": effects.d_av,
            "hedges_gav_pingouin": effects.g_av,
            "cohen_dav_pingouin": effects.d_av,
            "cliffs_delta": effects.cliffs_delta,
            "matched_rank_biserial": effects.matched_rank_biserial,
            "cles_pingouin": effects.cles,
            "akinshin_gamma_autorank": effects.gamma,
            "win_tie_loss": [effects.wins, effects.ties, effects.losses],
        },
    }
    for key in case["expected"]:
        if key.startswith("R_"):
            fields[key] = {
                "wilcox_V": forms["wilcox", False].positive,
                "wilcox_p_no_correction": forms["wilcox", False].two_sided,
                "wilcox_p_correction": forms["wilcox", True].two_sided,
                "coin_pratt_p": forms["pratt", False].two_sided,
                "coin_pratt_z": forms["pratt", False].z,
                "t_p": test.p,
            }
    if "mcnemar" in case["expected"]:
        table = paired.mcnemar(a, b)
        fields["mcnemar"] = {
            "n10": table.only_a,
            "n01": table.only_b,
            "exact_p": table.exact,
            "chi2_p": table.chi2,
            "chi2_cc_p": table.chi2_corrected,
            "midp": table.mid_p,
        }
    return fields


def _bootstrap(case: Case) -> Fields:
    given, want = case["input"], case["expected"]
    level = given["confidence"]
    if "diff" in given:
        own = intervals.bootstrap(given["diff"], draws=DRAWS)
    else:
        own = intervals.bootstrap(
            np.column_stack([given["clean"], given["corrupted"]]), lambda m: 1 - m[:, 1] / m[:, 0], draws=DRAWS
        )
    drift = 0.004 + 4 * 1.26 / math.sqrt(DRAWS)  # of z0

    def ends(kind: str) -> Any:
        listed = want.get(f"scipy_{kind}_B9999_sd_over_40_seeds")
        if listed:
            return [4 * sd * math.sqrt(9999 / DRAWS) for sd in listed]
        return [2 * _quantile_noise(own.se, DRAWS, level)] * 2

    fields: Fields = {
        "mean": _Within(own.estimate, 1e-12),
        "value": _Within(own.estimate, 1e-12),
        "acceleration_jackknife": own.acceleration,
        "z0": _Within(own.z0, drift),
        "bca_levels": _Within(own.bca_levels(level), 0.13 * drift),
        "percentile95": _Within(own.percentile(level), ends("percentile")),
        "basic95": _Within(own.basic(level), ends("basic")),
        "bca95": _Within(own.bca(level), ends("BCa")),
    }
    if "diff" in given:
        fields["se_bootstrap_exact"] = _Within(intervals.bootstrap_se(given["diff"]), 1e-12 * own.se)
    for key in want:
        if key.startswith(("scipy_", "arch_")):
            fields[key] = FOREIGN  # other draws of the same intervals
        elif key.startswith("R_boot"):
            wide = [2 * _quantile_noise(own.se, DRAWS, level)] * 2
            fields[key] = {
                "perc": FOREIGN,
                "basic": FOREIGN,
                "bca": FOREIGN,
                "stud": _Within(own.studentized(level), wide),
            }
    return fields


def _runs(case: Case) -> Fields:
    a, b = case["input"]["a"], case["input"]["b"]
    test, permuted, ranked, effects = (
        runs.welch(a, b),
        runs.permute_runs(a, b),
        runs.mann_whitney(a, b),
        runs.run_effects(a, b),
    )
    ties = len({*a, *b}) < len(a) + len(b)
    return {
        "welch": _t(test),
        "student": _t(runs.pooled_t(a, b)),
        "exact_permutation_mean_diff": {
            "n_perms": math.comb(len(a) + len(b), len(a)),
            "p_two_sided_abs": permuted.two_sided,
            "p_greater": permuted.greater,
        },
        "scipy_permutation_two_sided_2min": min(1.0, 2 * min(permuted.greater, permuted.less)),
        "mannwhitney": {
            "U": ranked.u,
            "p_asymptotic_no_cc": ranked.p_normal,
            "p_exact_no_ties": None if ties else ranked.exact.two_sided,
        },
        "prob_improvement": effects.improvement,
        "brunner_munzel_p": runs.brunner_munzel(a, b),
        "cohen_d_pooled": effects.cohen_d,
        "hedges_g_gamma_exact": effects.hedges_g,
        "R": {
            "welch_p": test.p,
            "welch_df": test.df,
            "exactRankTests_perm_p": permuted.two_sided,
            "exactRankTests_wilcox_exact_with_ties_p": ranked.exact.two_sided,
        },
    }


def _noether(row: Case) -> Fields:
    n = runs.noether_pairs(row["gamma"], alpha=row["alpha"], power=1 - row["beta"])
    return {"n_pairs": n, "n_ceil": math.ceil(n)}


def _clustered(case: Case) -> Fields:
    d, labels = case["input"]["diff"], case["input"]["cluster"]
    own, count = paired.clustering(d, labels), len(set(labels))
    drawn = intervals.bootstrap(d, clusters=labels, draws=DRAWS)
    reference = case["expected"].get("cluster_bootstrap_se", drawn.se)
    return {
        "mean": own.robust.estimate,
        "se_iid": own.se_iid,
        "se_cluster_statsmodels_corrected": own.robust.se,
        "se_cluster_statsmodels_uncorrected": own.robust.se * math.sqrt((count - 1) / count),
        "se_cluster_C_over_Cminus1": own.robust.se,
        "t": own.robust.t,
        "p_t_df_C_minus_1": own.robust.p,
        "design_effect": own.design_effect,
        "icc_anova": own.icc,
        "cluster_bootstrap_se": _Within(drawn.se, reference * (4 / math.sqrt(2 * DRAWS) + 0.01)),
        "cluster_bootstrap_percentile95": _Within(drawn.percentile(), 1.2 * _quantile_noise(reference, DRAWS)),
        "cluster_signflip_on_sums_exact": _flips(paired.sign_flip(d, clusters=labels)),
    }


def _equivalence(case: Case) -> Fields:
    given = case["input"]
    inside = case["id"].startswith("paired")
    test = paired.paired_t(np.array(given["a"]) - given["b"]) if inside else runs.welch(given["a"], given["b"])
    own = verdict.tost(test, given["margin"])
    return {
        "p": own.p,
        "p_lower": own.p_lower,
        "p_upper": own.p_upper,
        "df": test.df,
        "ci90": test.ci(0.9),
        "equivalent_at_05": own.equivalent(0.05),
    }


def _power(case: Case) -> Fields:
    given = case["input"]
    n, d, alpha = given["n_per_arm"], given["effect_d"], given["alpha"]
    two, one = power.power_of(d, n, alpha=alpha), power.power_of(d, n, alpha=alpha, paired=True)
    return {
        "power_two_sample": two,
        "power_paired": one,
        "mde_d_two_sample_80": power.detectable_d(n, alpha=alpha),
        "R_power_two_sample": two,
        "R_power_paired": one,
    }


def _needed(row: Case) -> Fields:
    n = power.seeds_for(row["d"], power=row["power"])
    return {"n_per_arm": n, "n_ceil": math.ceil(n)}


def _planned(case: Case) -> Fields:
    given = case["input"]
    own = power.plan(
        given["S"],
        given["Q"],
        sd_run=given["sigma_seed_points"] / 100,
        sd_variant_query=given["sigma_variant_query"],
        sd_run_query=given["sigma_seed_query"],
        power=given["power"],
        alpha=given["alpha"],
    )
    return {"se_points": 100 * own.se, "df": own.df, "mde_points_approx": 100 * own.mde}


TOPICS: Mapping[str, _Topic] = {
    "crossed": _Topic({"cases": _crossed}, rel=1e-8),
    "contrast": _Topic({"cases": _contrast}, rel=1e-9),
    "multiplicity": _Topic({"cases": _multiplicity, "maxT_cases": _max_t}, abs=1e-9),
    "paired": _Topic({"cases": _paired}, rel=1e-7, abs=1e-9),
    "bootstrap": _Topic({"cases": _bootstrap}, rel=1e-9),
    "runs": _Topic({"cases": _runs, "noether_sample_size": _noether}, rel=1e-7, abs=1e-9),
    "clustered": _Topic({"cases": _clustered}, abs=1e-9),
    "equivalence": _Topic({"cases": _equivalence}, abs=1e-9),
    "power": _Topic({"cases": _power, "needed_seeds": _needed, "crossed_mde": _planned}, rel=1e-5),
}

# A file may be renamed; its topic line stays.
TITLES: Mapping[str, str] = {
    "crossed seeds x queries inference": "crossed",
    "any linear contrast of variant means under crossed seeds x queries (main effect, interaction, leave-one-out, "
    "add-one-in, Shapley)": "contrast",
    "multiplicity: p-value adjustment and max-T sign-flip step-down (Westfall-Young)": "multiplicity",
    "paired per-query comparison of two variants": "paired",
    "bootstrap intervals for a mean difference and for a ratio": "bootstrap",
    "run-level (seed-level) comparison of two variants, unpaired": "runs",
    "queries clustered by source video": "clustered",
    "equivalence (two one-sided tests)": "equivalence",
    "power and minimum detectable effect": "power",
}
