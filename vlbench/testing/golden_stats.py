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
from vlbench.stats import (
    aggregate,
    bayes,
    correct,
    design,
    factorial,
    intervals,
    order,
    paired,
    power,
    ranks,
    robustness,
    runs,
    sequential,
    sweep,
    verdict,
)
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

    Returns: one result per case; a file whose topic has no public function gives one result that is not ok."""
    results: list[CaseResult] = []
    for file in sorted(Path(path).glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") == FORMAT:
            results += check_file(file.stem, content)
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
    except Exception as cause:  # one case of an unforeseen form must not keep the others from being checked
        return CaseResult(label, False, "", math.inf, 0.0, f"{type(cause).__name__}: {cause}")
    inputs = {"id", "input"} if "input" in case else set(case) - set(ours)
    wanted = case["expected"] if "expected" in case else {key: case[key] for key in case if key not in inputs}
    wanted = wanted if isinstance(wanted, Mapping) else {"": wanted}
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
    elif isinstance(want, list) and want and isinstance(want[0], Mapping):
        if not isinstance(got, list) or len(got) != len(want):
            got = [_MISSING] * len(want)
        for number, value in enumerate(want):
            yield from _leaves(f"{path}[{number}]", value, got[number])
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


def _factorial(case: Case) -> Fields:
    given, want = case["input"], case["expected"]
    names = given["components"]
    k = len(names)
    table: dict[str, list[float]] = {}
    for row in given["rows"]:
        table.setdefault("".join(str(round(level)) for level in row[:k]), []).append(row[-1])
    means = {cell: float(np.mean(values)) for cell, values in table.items()}
    mse, df = factorial.pooled_variance(table)

    def label(chosen: tuple[int, ...], mark: str = "") -> str:
        return ":".join(names[i] + mark for i in chosen)

    def value(weights: Mapping[str, float]) -> float:
        return factorial.run_contrast(table, weights).estimate

    effects: Fields = {}
    for chosen in factorial.subsets(k):
        test = factorial.run_contrast(table, factorial.effect(k, chosen))
        effects[label(chosen)] = {
            "difference_of_differences": test.estimate,
            "doe_effect": test.estimate / 2 ** (len(chosen) - 1),
            "se_difference_of_differences": test.se,
            "se": test.se,
            "t": test.t,
            "p": test.p,
            "df": test.df,
        }
    shares = {name: factorial.run_contrast(table, factorial.shapley(k, i)) for i, name in enumerate(names)}
    fields: Fields = {
        "cell_means": means,
        "effects": effects,
        "leave_one_out": {name: value(factorial.leave_one_out(k, i)) for i, name in enumerate(names)},
        "add_one_in": {name: value(factorial.add_one_in(k, i)) for i, name in enumerate(names)},
        "shapley": {name: _t(test) | {"value": test.estimate, "se": test.se} for name, test in shares.items()},
        "shapley_sum": sum(test.estimate for test in shares.values()),
        "banzhaf": {name: value(factorial.effect(k, [i])) for i, name in enumerate(names)},
        "shapley_interaction_index": {
            label((i, j)): value(factorial.shapley_interaction(k, i, j)) for i in range(k) for j in range(i + 1, k)
        },
        "mse_resid": mse,
        "df": df,
    }
    if "anova_type2_sum_sq" in want:
        sums = {label(chosen, "_c"): square for chosen, square in factorial.sums_of_squares(table).items()}
        fields["anova_type2_sum_sq"] = sums | {"Residual": mse * df}
    if "sobol_total_variance" in want:
        fields["sobol_first_and_interaction_share"] = {
            label(chosen): share for chosen, share in factorial.variance_shares(means).items()
        }
        fields["sobol_total_variance"] = sum(factorial.walsh_squares(means).values())
    return fields


def _looks(case: Case) -> Fields:
    given, fields = case["input"], {}
    for key in case["expected"]:
        kind, gamma = _spending(key)
        looks = sequential.plan_looks(given["looks_seeds_per_arm"], spending=kind, gamma=gamma, alpha=given["alpha"])
        fields[key] = {
            "z": [look.z for look in looks],
            "nominal_two_sided_p": _Within([look.p for look in looks], 1e-4),
            "cumulative_alpha": _Within([look.spent for look in looks], 1e-9),
        }
    return fields


def _spending(key: str) -> tuple[sequential.Spending, float]:
    if key.startswith("hwang_shih_decani_gamma_"):
        return "hwang-shih-decani", float(key.removeprefix("hwang_shih_decani_gamma_"))
    return ("obrien-fleming", 0.0) if key.endswith("obf") else ("pocock", 0.0)


def _classical(row: Case) -> Fields:
    pocock = sequential.classical(row["K"], "pocock", alpha=row["alpha"])
    obf = sequential.classical(row["K"], "obrien-fleming", alpha=row["alpha"])
    return {
        "pocock_C": pocock[-1],
        "pocock_published": pocock[-1],
        "obrien_fleming_C": obf[-1],
        "obrien_fleming_published": obf[-1],
        "obf_z": obf,
    }


def _four_looks(case: Case) -> Fields:
    """The published tables, for four equally spaced looks."""
    out: Fields = {}
    for key in ("obf", "pocock"):
        out[key] = [look.z for look in sequential.plan_looks([5, 10, 15, 20], spending=_spending(key)[0])]
    return out


def _e_process(case: Case) -> Fields:
    given = case["input"]
    path = sequential.e_process(given["a"], given["b"], g=given["prior_var_g"])
    return {"": [{"n_per_arm": s.runs, "t": _Within(s.t, 1e-8), "e_value": _rel(s.e_value, 1e-9)} for s in path]}


def _rel(value: float, share: float) -> _Within:
    return _Within(value, share * abs(value))


def _mixture(row: Case) -> Fields:
    radius = sequential.mixture_radius(row["n"], rho2=row["rho2"], alpha=row["alpha"])
    return {"radius_in_sd_units": _rel(radius, 1e-10)}


def _bayes(case: Case) -> Fields:
    given, want = case["input"], case["expected"]
    d, rope = np.array(given["b"]) - given["a"], given["rope"]
    test = bayes.correlated_t(d, runs=given["runs"])
    fields: Fields = {
        "mean": test.estimate,
        "var": test.se**2,
        "df": test.df,
        "probs_left_rope_right": _rope(verdict.rope(test, rope), rope),
        "sign_probs_sd": FOREIGN,
        "signed_rank_probs_sd": FOREIGN,
    }
    for key, sampled in (("sign", bayes.bayes_sign), ("signed_rank", bayes.bayes_signed_rank)):
        own = sampled(d, rope=rope, draws=10 * DRAWS, decimals=None)  # the reference compares unrounded differences
        # a probability near zero may show no spread in the reference: then a few draws in its 600,000 are allowed
        limits = [max(4 * sd, 4e-5) for sd in want.get(f"{key}_probs_sd", [])]
        fields[f"{key}_probs_mean_of_12x50k"] = _Within(_rope(own, rope), limits)
    return fields


def _rope(own: verdict.Rope, rope: float) -> list[float]:
    return [own.below, own.inside, own.above] if rope > 0 else [own.below, own.above]


def _nadeau_bengio(case: Case) -> Fields:
    given = case["input"]
    plain = paired.paired_t(given["diffs"])
    own = bayes.corrected_t(given["diffs"], n_train=given["n_train"], n_test=given["n_test"])
    return {"t_naive": plain.t, "p_naive": plain.p, "t_corrected": own.t, "p_corrected": own.p, "df": own.df}


def _t_e_value(row: Case) -> Fields:
    value = sequential.t_e_value(row["t"], row["n_a"], row["n_b"], g=row["prior_var_g"])
    return {"e_value": value, "by_quadrature": value}


def _sweep(case: Case) -> Fields:
    trials = case["expected"]["n"]
    own = sweep.expected_best(case["input"]["trial_values"], trials)
    return {
        "n": trials,
        "expected_max_with_replacement": own.biased,
        "sd_of_max_with_replacement": own.biased_sd,
        "expected_max_without_replacement": own.unbiased,
    }


def _expected_max(row: Case) -> Fields:
    return {"expected_max_std_normal": _Within(sweep.expected_max(row["k"]), 1e-6)}


def _robustness(case: Case) -> Fields:
    given = case["input"]
    if "levels" in given:
        own = robustness.robustness(
            given["variant_scores"],
            given["variant_clean"],
            baseline=given["baseline_scores"],
            baseline_clean=given["baseline_clean"],
            levels=given["levels"],
        )
        return {
            "ce": own.ce,
            "mce": own.mce,
            "relative_ce": own.relative_ce,
            "relative_mce": own.relative_mce,
            "relative_degradation": own.degradation.tolist(),
            "mean_relative_degradation": float(own.degradation.mean()),
            "normalised_auc": own.area,
            "mean_normalised_auc": float(own.area.mean()),
            "mean_corrupted_score": own.mean_score,
        }
    arrays = (given["A_clean"], given["A_corrupt"], given["B_clean"], given["B_corrupt"])
    differences = robustness.lost_less(*arrays)
    test, kept = paired.paired_t(differences), robustness.retention(*arrays)
    return {
        "did_mean": test.estimate,
        "did_se": test.se,
        "t": test.t,
        "p_two_sided": test.p,
        "signflip_exact": _flips(paired.sign_flip(differences)),
        "log_retention_ratio": kept.estimate,
        "log_retention_ratio_se_delta": kept.se_delta,
        "log_retention_ratio_se_jackknife": kept.se_jackknife,
    }


def _ranks(case: Case) -> Fields:
    names, own = case["input"]["columns"], ranks.friedman(case["input"]["scores"])
    unrounded = ranks.friedman(case["input"]["scores"], decimals=None)  # the reference ranks unrounded differences here
    mean_ranks = dict(zip(names, own.mean_ranks.tolist(), strict=True))
    fields: Fields = {
        "mean_ranks": mean_ranks,
        "friedman_chi2_tie_corrected": own.chi2,
        "friedman_p": own.p,
        "friedman_chi2_no_tie_correction": own.chi2_plain,
        "iman_davenport_F_from_uncorrected": own.f_plain,
        "iman_davenport_p_from_uncorrected": own.f_plain_p,
        "iman_davenport_F_from_corrected": own.f,
        "iman_davenport_p_from_corrected": own.f_p,
        "q_alpha_05": _Within(own.q, 1e-3),
        "nemenyi_critical_difference_05": _Within(own.critical_difference, 1e-3),
        "nemenyi_p": own.nemenyi.tolist(),
        "conover_holm_p": own.conover_holm.tolist(),
        "pairwise_order": [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]],
        "wilcoxon_p": unrounded.wilcoxon,
        "wilcoxon_holm_p": unrounded.wilcoxon_holm,
    }
    for key, printed in case["expected"].items():
        if key.startswith("published"):
            fields[key] = {
                "mean_ranks": {name: _Within(rank, 5e-4) for name, rank in mean_ranks.items()},
                "friedman_chi2": _Within(own.chi2_plain, 5e-3),
                "iman_davenport_F": _Within(own.f_plain, 5e-3),
                f"q_alpha_05_k{len(names)}": _Within(own.q, 5e-4),
                "nemenyi_cd": _Within(own.critical_difference, 5e-3),
                f"bonferroni_dunn_q05_k{len(names)}": FOREIGN,  # compares with one control, which nothing here does
            }
        elif key.startswith("autorank"):
            fields[key] = {
                "omnibus": printed["omnibus"],
                "pvalue": own.p,
                "cd": _Within(own.critical_difference, 1e-3),
                "mean_ranks": mean_ranks,
            }
    return fields


def _aso(case: Case) -> Fields:
    given, want = case["input"], case["expected"]
    own = order.stochastic_order(given["a"], given["b"], confidence=given["confidence_level"], draws=DRAWS // 5)
    spread = want.get("deepsig_eps_min_sd", 0.0)
    return {
        "violation_ratio_exact_integral": own.violation,
        "violation_ratio_grid_dt_0_005_deepsig": _Within(own.violation, 0.02),
        "deepsig_eps_min_mean_of_20_seeds": _Within(own.bound, 4 * spread),
        "deepsig_eps_min_sd": FOREIGN,
        "reverse_exact": order.violation_ratio(given["b"], given["a"]),
    }


def _aggregate(case: Case) -> Fields:
    given, want = case["input"], case["expected"]
    own = [aggregate.aggregate(given["X"], of, draws=DRAWS) for of in ("mean", "median", "iqm", "optimality_gap")]
    better = aggregate.improvement(given["X"], given["Y"], draws=DRAWS)
    spread = {key: want.get(key, []) for key in ("ci95_low_sd", "ci95_high_sd", "poi_ci95_sd")}
    limits = {key: [4 * sd for sd in listed] for key, listed in spread.items()}
    return {
        "order": want.get("order"),
        "point": _Within([item.estimate for item in own], 1e-12),
        "ci95_low_mean_of_8": _Within([item.low for item in own], limits["ci95_low_sd"]),
        "ci95_high_mean_of_8": _Within([item.high for item in own], limits["ci95_high_sd"]),
        "probability_of_improvement": _Within(better.estimate, 1e-12),
        "poi_ci95_mean_of_4": _Within([better.low, better.high], limits["poi_ci95_sd"]),
        "performance_profile": _Within(aggregate.profile(given["X"], given["tau"]), 1e-12),
        **dict.fromkeys(spread, FOREIGN),
    }


def _betting(case: Case) -> Fields:
    given = case["input"]
    own = sequential.bet(given["diff"], alpha=given["alpha"], theta=given["theta"])
    return {"lambdas_positive": own.bets, "capital": own.capital}


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
    "factorial": _Topic({"cases": _factorial}, abs=1e-8),
    "sequential": _Topic(
        {
            "cases": _looks,
            "classical": _classical,
            "e_process": _e_process,
            "normal_mixture_cs": _mixture,
            "lan_demets_4_looks_check": _four_looks,
        },
        abs=1e-3,
    ),
    "bayes": _Topic(
        {"cases": _bayes, "nadeau_bengio": _nadeau_bengio, "gaussian_prior_t_e_value": _t_e_value}, rel=1e-8
    ),
    "sweep": _Topic({"cases": _sweep, "expected_max_of_normals": _expected_max}, abs=1e-9),
    "robustness": _Topic({"cases": _robustness}, abs=1e-9),
    "ranks": _Topic({"cases": _ranks}, abs=1e-6),
    "aso": _Topic({"cases": _aso}, abs=1e-9),
    "aggregate_rliable": _Topic({"cases": _aggregate}, abs=1e-12),
    "betting": _Topic({"cases": _betting}, rel=1e-8),
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
    "full factorial of components: main effects, interactions, leave-one-out, add-one-in, Shapley": "factorial",
    "sequential addition of seeds": "sequential",
    "Bayesian comparisons, Nadeau-Bengio correction, t-test e-value (Gaussian effect prior, "
    "right-Haar nuisance)": "bayes",
    "sweep reporting: expected best validation score after n trials; optimism of taking a maximum": "sweep",
    "robustness summaries and paired robustness differences": "robustness",
    "rank-based comparison of k variants over n blocks (datasets or benchmark cells)": "ranks",
    "almost stochastic order (violation ratio and its upper bound)": "aso",
    "aggregate metrics over runs x tasks (rliable)": "aggregate_rliable",
    "betting e-process for bounded paired differences (predictable plug-in bets)": "betting",
}
