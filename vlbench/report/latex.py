"""LaTeX for a paper: booktabs tables of a comparison, ready to be input.

Bold marks every arm that is not significantly worse than the best one, which is what a reader takes bold for; an
asterisk marks a difference that survives its correction. The caption says what stands behind the plus-minus sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from vlbench.report import words
from vlbench.report.compare import ALPHA, Comparison, Row, effect_of, sign
from vlbench.report.frame import title_of
from vlbench.report.methods import population
from vlbench.report.tables import KINDS, explained
from vlbench.stats.correct import holm
from vlbench.stats.design import PHRASES, contrast
from vlbench.stats.sequential import plan_looks

Spread = Literal["sd", "se", "ci"]
SPREADS: Mapping[str, str] = {
    "sd": "±: standard deviation of the means of the runs (n - 1)",
    "se": "±: standard error of the mean, for {population}",
    "ci": "±: half of the 95% confidence interval of the mean, for {population}",
}


def to_latex(comparison: Comparison, spread: Spread = "sd") -> str:
    """The arms with their means and differences; of a lattice, the cells and then the effects.

    Args: spread: what follows ± after a mean; with one seed there is no standard deviation, and none is printed.
    """
    lead = "% needs \\usepackage{booktabs}\n"
    if comparison.lattice:
        return lead + _arms(comparison, spread, differences=False) + "\n" + _effects(comparison)
    return lead + _arms(comparison, spread, differences=True)


def as_good_as_the_best(comparison: Comparison, metric: str) -> set[str]:
    """The arm with the highest mean and all that are not significantly worse, Holm over the comparisons with it; for
    the population and, at a declared look, at the level of the verdicts.
    """
    frame = comparison.frame
    level = (
        next((look.p for look in plan_looks(frame.looks) if look.seeds == frame.look), ALPHA) if frame.look else ALPHA
    )
    values = frame.values(metric, comparison.checkpoint)
    best = max(frame.arms, key=lambda arm: comparison.means[arm.name, metric].points).name
    others = [arm.name for arm in frame.arms if arm.name != best]
    clusters = frame.clusters_of(metric)
    gaps = [
        contrast(values, {best: 1.0, name: -1.0}, clusters=clusters, estimand=comparison.estimand) for name in others
    ]
    # where nothing varies there is no p: equal arms are tied, and arms that differ by a constant are not
    raw = [(1.0 if gap.estimate == 0 else 0.0) if gap.constant else gap.p for gap in gaps]
    return {best, *(name for name, p in zip(others, holm(raw) if raw else (), strict=True) if p > level)}


def _arms(comparison: Comparison, spread: Spread, *, differences: bool) -> str:
    frame = comparison.frame
    published = {(x.arm, x.metric): x for x in comparison.published}
    judged = {claim.name for claim in comparison.claims}
    groups = []
    for metric in comparison.metrics:
        columns = ["Mean"] + (["$\\Delta$", "95\\% interval", "$p$"] if differences else [])
        groups.append((metric, columns + (["Rep."] if _has(comparison, metric) else [])))
    rows = []
    ties = {metric: as_good_as_the_best(comparison, metric) for metric in comparison.metrics}
    for arm in frame.arms:
        cells = [tex(arm.name), tex(words.count(arm.parameters)), str(len(arm.runs))]
        for metric, columns in groups:
            cells.append(_mean(comparison, arm.name, metric, spread, strong=arm.name in ties[metric]))
            if differences:
                cells += _difference(comparison.row(arm.name, metric)) if arm.name in judged else ["", "", ""]
            if columns[-1] == "Rep.":
                known = published.get((arm.name, metric))
                cells.append("" if known is None else tex(words.points(known.value)))
        rows.append(cells)
    heads = ["Arm", "Params", "Seeds"]
    return _table(
        caption=_caption(comparison, spread, differences=differences),
        label=_label(comparison),
        heads=heads,
        groups=[(title_of(metric), columns) for metric, columns in groups],
        rows=rows,
    )


def _effects(comparison: Comparison) -> str:
    """One row per effect of a lattice, one group of columns per metric."""
    frame = comparison.frame
    found = (*comparison.rows, *comparison.effects)
    columns = ["$\\Delta$", "95\\% interval", "$p$"]
    rows = []
    for claim in dict.fromkeys(row.claim.name for row in found):
        mine = {row.metric: row for row in found if row.claim.name == claim}
        first = next(iter(mine.values())).claim
        of = effect_of(frame, first).replace(" x ", " × ")
        cells = [tex(KINDS[first.kind][0]), tex(of)]
        for metric in comparison.metrics:
            cells += _difference(mine[metric])
        rows.append(cells)
    said = explained(frame, list(dict.fromkeys(row.claim.kind for row in found)))
    caption = (
        f"{frame.question} Effects in points. {said}. Brackets: 95% confidence intervals (Student's t) for "
        f"{population(comparison)}, not corrected. p: {_corrected(comparison)} within the effects of one kind. "
        f"*: survives this correction (p at most {ALPHA:g})."
    )
    return _table(
        caption=tex(caption),
        label=f"{_label(comparison)}-effects",
        heads=["Effect", "Of"],
        groups=[(title_of(metric), columns) for metric in comparison.metrics],
        rows=rows,
    )


def _table(
    *,
    caption: str,
    label: str,
    heads: Sequence[str],
    groups: Sequence[tuple[str, Sequence[str]]],
    rows: Sequence[Sequence[str]],
) -> str:
    """heads: columns of text before the groups; every group has a title over its columns of numbers."""
    rules, start = [], len(heads) + 1
    for _, columns in groups:
        rules.append(f"\\cmidrule(lr){{{start}-{start + len(columns) - 1}}}")
        start += len(columns)
    titles = [f"\\multicolumn{{{len(columns)}}}{{c}}{{{tex(title)}}}" for title, columns in groups]
    kinds = "".join("l" if head in ("Arm", "Effect", "Of") else "r" for head in heads)
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{{kinds}{''.join('r' * len(columns) for _, columns in groups)}}}",
        "\\toprule",
        " & ".join([*[""] * len(heads), *titles]) + " \\\\",
        " ".join(rules),
        " & ".join([*heads, *(column for _, columns in groups for column in columns)]) + " \\\\",
        "\\midrule",
        *(" & ".join(cells) + " \\\\" for cells in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _label(comparison: Comparison) -> str:
    return f"tab:{re.sub('[^a-zA-Z0-9]+', '-', comparison.frame.study).strip('-')}"


def _mean(comparison: Comparison, arm: str, metric: str, spread: Spread, *, strong: bool) -> str:
    mean = comparison.means[arm, metric]
    text = tex(words.points(mean.points))
    text = f"\\textbf{{{text}}}" if strong else text
    size = _spread(comparison, arm, metric, spread)
    return text if size is None else f"{text} $\\pm$ {tex(words.points(size))}"


def _spread(comparison: Comparison, arm: str, metric: str, spread: Spread) -> float | None:
    mean = comparison.means[arm, metric]
    if spread == "sd":
        return mean.sd_seeds
    if spread == "ci":
        return (mean.high - mean.low) / 2
    frame = comparison.frame
    values = frame.values(metric, comparison.checkpoint)[arm]
    return 100 * contrast({arm: values}, {arm: 1.0}, clusters=frame.clusters_of(metric)).se


def _difference(row: Row) -> list[str]:
    difference = tex(words.signed(row.points)) + ("*" if row.survives else "")
    if row.contrast.constant:
        return [difference, "--", "--"]
    between = f"[{tex(words.signed(row.low))}, {tex(words.signed(row.high))}]"
    return [difference, between, tex(words.p(row.p_adjusted))]


def _has(comparison: Comparison, metric: str) -> bool:
    return any(x.metric == metric for x in comparison.published)


def _corrected(comparison: Comparison) -> str:
    return "Holm" if comparison.frame.look is None else "at the level of the look, scaled to 5%, shared out evenly"


def _caption(comparison: Comparison, spread: Spread, *, differences: bool) -> str:
    frame = comparison.frame
    clustered = "" if frame.clusters is None else f", clustered by {len(set(frame.clusters))} source videos"
    chosen = "without a choice" if comparison.checkpoint == "last" else frame.selection
    sentences = [
        frame.question,
        f"Dataset {frame.dataset}, split {frame.split}, {words.counted(len(frame.queries), 'query')}{clustered}, "
        f"{words.counted(len(frame.seeds), 'seed')}; {comparison.checkpoint} checkpoint ({chosen}; "
        "one look at the reporting split).",
    ]
    if any(_spread(comparison, arm, metric, spread) is not None for arm, metric in comparison.means):
        # at a declared look verdicts are about runs alone, and means still about runs and queries
        estimands = {mean.estimand for mean in comparison.means.values()}
        sentences.append(
            SPREADS[spread].format(population=words.listed([PHRASES[name] for name in sorted(estimands)])) + "."
        )
    sentences.append(
        "Bold: the best mean of a column and all that are not significantly worse (two-sided, Holm, "
        + (f"{ALPHA:g})." if frame.look is None else f"{ALPHA:g} spent over the looks).")
    )
    if differences:
        sentences.append(
            f"Δ in points: {sign(comparison)}. Brackets: 95% confidence intervals of the difference (Student's t) for "
            f"{population(comparison)}, not corrected. p: {_corrected(comparison)} over "
            f"{words.counted(len(comparison.rows), 'test')}. *: the difference survives this correction (p at most "
            f"{ALPHA:g})."
        )
    if comparison.one_seed:
        sentences.append("One seed: about these checkpoints, not about the method.")
    if frame.unplanned is not None:
        sentences.append(f"Exploratory: {frame.unplanned}.")
    if frame.holes:
        total = len(frame.planned) * (len(frame.arms) + len(frame.left_out))
        missing = "; ".join(f"{hole.arm}, seed {hole.seed}" for hole in frame.holes)
        sentences.append(f"{len(frame.holes)} of {total} planned runs missing: {missing}.")
    used = {(x.split, x.source) for x in comparison.published if x.metric in comparison.metrics}
    if used:
        named = "; ".join(f"{source}, {split}" for split, source in sorted(used))
        sentences.append(f"Rep.: printed by a paper ({named}), not measured here.")
    return tex(" ".join(sentences))


_TEX: Mapping[str, str] = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "\\textbar{}",
    words.MINUS: "$-$",
    words.NOTHING: "--",
    "Δ": "$\\Delta$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "≤": "$\\le$",
    "→": "$\\rightarrow$",
    "·": "$\\cdot$",
    "“": "``",
    "”": "''",
}


def tex(text: str) -> str:
    """Names are text, never commands."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))
