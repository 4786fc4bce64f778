"""How the numbers were made, in words: the same sentences for the page, the Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlbench.report import checkpoints, oddities, words
from vlbench.report.compare import ALPHA, Comparison, Row, sign
from vlbench.report.frame import Frame, title_of
from vlbench.stats.design import PHRASES

CLAIM_SEEDS = 5  # fewer screen, they do not support a claim
SE_NAMES = {
    "general": ("SE, general", PHRASES["general"]),
    "benchmark": ("SE, benchmark", PHRASES["benchmark"]),
    "checkpoint": ("SE, checkpoint", PHRASES["checkpoint"]),
}


def setting(comparison: Comparison) -> str:
    """``planted-quick · report: val · 5 seeds · 300 queries from 210 source videos``."""
    frame = comparison.frame
    queries = words.counted(len(frame.queries), "query")
    if frame.clusters is not None:
        queries += f" from {words.counted(len(set(frame.clusters)), 'source video')}"
    return " · ".join([frame.dataset, frame.split, words.counted(len(frame.seeds), "seed"), queries])


def cautions(comparison: Comparison) -> list[str]:
    """What has to be read before any number."""
    frame, found = comparison.frame, []
    if comparison.one_seed:
        found.append(
            "One seed: every number is about these checkpoints, not about the method. Training again could change the "
            "sign. Run at least two seeds to test, five for a claim."
        )
    elif len(frame.seeds) < CLAIM_SEEDS:
        found.append(
            f"{words.counted(len(frame.seeds), 'seed').capitalize()}: enough to screen, not for a claim. "
            f"{CLAIM_SEEDS} are the minimum for one, 10 for a final table."
        )
    if 2 * frame.ends_selected >= frame.total_runs:
        found.append(
            f"The last epoch was the best one in {frame.ends_selected} of {words.counted(frame.total_runs, 'run')}: "
            "longer training may change the answer."
        )
    if frame.holes:
        total = len(frame.planned) * (len(frame.arms) + len(frame.left_out))
        text = f"Incomplete: {len(frame.holes)} of {words.counted(total, 'planned run')} missing"
        text += f". The numbers use {words.counted(len(frame.seeds), 'seed')} that every arm shown has"
        if frame.left_out:
            text += f"; left out without any result: {words.listed(frame.left_out)}"
        if frame.unsaid:
            text += f"; not said for want of them: {words.listed(frame.unsaid)}"
        found.append(f"{text}. To complete it: {frame.command}")
    if frame.unplanned is not None:
        found.append(
            f"Exploratory: {frame.unplanned}. The error rates hold only for choices made beforehand. Looks can be "
            "declared beforehand with --until-decided."
        )
    found += [
        f"{title_of(metric)} is a primary metric and could not be tested: {comparison.unavailable[metric]}."
        for metric in frame.primary
        if metric in comparison.unavailable
    ]
    return found


def population(comparison: Comparison) -> str:
    """What the verdicts speak about."""
    return PHRASES[comparison.estimand]


def notes(comparison: Comparison) -> list[str]:
    """The plan's notes, and what the scoring of the runs warned of, a line per kind."""
    return [*comparison.frame.notes, *oddities.lines(comparison)]


def advice(comparison: Comparison, metric: str) -> list[str]:
    """What an unresolved metric could have shown, and what would settle it, as far as the variances tell."""
    rows = [row for row in comparison.rows if row.metric == metric and row.verdict and row.verdict.word == "unresolved"]
    said = [f"{row.name}: {_could(row, comparison)}" for row in rows]
    shares = [row.shares for row in rows if row.shares is not None]
    return said + ([_remedy(shares)] if shares else [])


def _could(row: Row, comparison: Comparison) -> str:
    assert row.verdict is not None
    if row.contrast.constant:
        return "nothing varies, so nothing can be tested"
    text = f"saw {words.points(abs(row.points))} points, could have seen {words.points(row.verdict.mde)}"
    if row.low > 0 or row.high < 0:
        family = words.counted(len(comparison.rows), "test")
        text += f"; the interval leaves out zero, but not after correction over {family}"
        text += "" if comparison.frame.look is None else " and the looks"
    if row.seeds == 1:
        return f"{text}; to decide: more seeds"
    margin = comparison.frame.margin
    larger = abs(row.points) >= margin or row.verdict.mde <= margin
    aim = "what was seen" if larger else f"the margin of {margin:g} points"
    if row.verdict.seeds_needed is None:
        return f"{text}; no number of seeds finds {aim}, that takes more queries"
    return f"{text}; to find {aim} takes about {row.verdict.seeds_needed} seeds per arm"


MOSTLY = 0.75  # of the variance: from here on one source is named as the one to reduce


def _remedy(shares: Sequence[tuple[float, float]]) -> str:
    """shares: (of runs, of queries) in [0, 1], one pair per arm."""
    runs, queries = ([pair[side] for pair in shares] for side in (0, 1))
    told = f"{_percent(runs)} of the variance comes from training runs"
    if min(runs) >= MOSTLY and max(queries) <= 1 - MOSTLY:
        return f"{told}: more seeds or steadier training help, more queries hardly"
    if min(queries) >= MOSTLY and max(runs) <= 1 - MOSTLY:
        return f"{told}: more queries help, more seeds hardly"
    return f"{told}, {_percent(queries)} from queries, some of it from both: more of either helps"


def _percent(shares: Sequence[float]) -> str:
    low, high = (math.floor(100 * share) for share in (min(shares), max(shares)))
    if low >= 99:
        return "over 99%"
    return f"{low}%" if low == high else f"{low} to {high}%"


def _crossfitted(frame: Frame) -> str:
    if "crossfit" not in frame.rules:
        return ""
    return (
        ", and so do cross-fitted epochs: the source videos are divided into folds, and every fold is scored by the "
        "epoch that the other folds choose"
    )


def methods(comparison: Comparison) -> list[tuple[str, str]]:
    """(term, explanation) pairs: everything needed to say what a number of the report means."""
    frame = comparison.frame
    claims, family = len(comparison.claims), len(comparison.rows)
    primary = words.listed([title_of(metric) for metric in comparison.metrics])
    clustered = "queries of one source video vary together (cluster-robust)"
    each = "every query varies on its own" if frame.clusters is None else clustered
    modes = sorted({run.mode for arm in frame.arms for run in arm.runs if run.mode})
    first = comparison.rows[0]
    entries = [
        ("Data", f"{setting(comparison)}." + (f" Evaluation: {words.listed(modes)} mode." if modes else "")),
        (
            "Checkpoint",
            f"Selected: {frame.selection}; the reported queries play no part in it. The last epoch is scored too and "
            f"stands beside it as a check{_crossfitted(frame)}. "
            f"The verdicts are about the {comparison.checkpoint} checkpoint.",
        ),
        (
            "Difference",
            f"In points (100 x the score), {sign(comparison)}; for example {first.label}.",
        ),
        (
            "What is claimed",
            f"“{PHRASES[comparison.estimand]}”: "
            + (
                "only the queries count as random, because one seed says nothing about training again."
                if comparison.one_seed
                else "training runs count as random; the queries, which were all there from the first look on, do not."
                if comparison.estimand == "benchmark"
                else "training runs and queries both count as random."
            ),
        ),
        (
            "Interval and p",
            "Welch's t on the means of the runs. Runs of different arms are not paired. Intervals are 95% for one "
            "difference at one look: corrected neither for the family nor for the looks before."
            if comparison.estimand == "benchmark"
            else "Student's t with Satterthwaite degrees of freedom on the crossed table of runs and queries; "
            f"{each}. Runs of different arms are not paired. Intervals are 95% for one difference, not corrected.",
        ),
        (
            "Three standard errors",
            f"General: {PHRASES['general']}. Benchmark: {PHRASES['benchmark']}. Checkpoint: {PHRASES['checkpoint']}. "
            f"The verdict uses “{comparison.estimand}”.",
        ),
        (
            "Correction",
            f"{_correction(comparison)} over the declared family of {words.counted(family, 'test')} "
            f"({words.counted(claims, 'claim')} x {primary}), family-wise error {100 * ALPHA:g}%. All other metrics "
            "are exploratory: Benjamini-Hochberg q-values, no verdict.",
        ),
        (
            "Verdict",
            f"helps, hurts: adjusted p at most {ALPHA:g}. equivalent: the 90% interval lies inside ±{frame.margin:g} "
            "points, the margin set before the runs. unresolved: neither; the table then says what difference would "
            "have been seen with power 80% "
            + (
                "(one test at 5%; the correction asks for somewhat more)."
                if frame.look is None
                else "at the level of this look; the interval of an equivalent row is that of one look."
            ),
        ),
        (
            "Means",
            "The interval of a mean includes how hard the queries are, which cancels in a difference: two means whose "
            "intervals overlap can still differ. Read the difference.",
        ),
        (
            "Seeds",
            f"Planned: {', '.join(map(str, frame.planned))}. Used: {', '.join(map(str, frame.seeds))}. A seed fixes "
            "initial weights, order of batches and dropout.",
        ),
    ]
    if (said := checkpoints.ledger(frame)) is not None:
        entries.append(("Looks", said))
    if comparison.published:
        entries.append(
            (
                "Reported",
                "Numbers that a paper printed, for the same dataset, with its split and source. They were not measured "
                "here and enter no test.",
            )
        )
    return entries


def _correction(comparison: Comparison) -> str:
    frame = comparison.frame
    if frame.look is None:
        return "Holm"
    looks = words.listed([str(look) for look in frame.looks])
    return (
        f"Looks were declared at {looks} seeds per arm; each spends a part of the error (Hwang, Shih and DeCani, "
        f"gamma = -2), this is the look at {frame.look}. A printed p is scaled so that it is compared with {ALPHA:g}. "
        "The error is shared out evenly (Bonferroni)"
    )
