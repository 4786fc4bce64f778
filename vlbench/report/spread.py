"""Where a difference's uncertainty comes from: rainclouds of the runs, and the budget of its variance.

The budget splits the variance of a difference into what comes from training runs alone, from queries alone and from
both together. More seeds shrink the first and the last, more queries the second and the last; so it says which of the
two is worth adding. It takes the variances of 2.4 as known and shows no interval of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlbench.report import words
from vlbench.report.compare import LEVEL, Comparison, Row
from vlbench.report.figures import INK, MUTED, PANEL_WIDTH, RULE, Panel, Plot, colour_of, limits, short
from vlbench.report.frame import ArmFrame, title_of
from vlbench.stats.design import contrast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOUD_SEEDS = 4  # fewer runs have no shape to draw
SOURCES = ("runs alone", "runs and queries together", "queries alone")
SHADES = ("#0072b2", "#b7d3e6", "#e69f00")  # blue, its tint, orange: apart for every colour vision


# --- rainclouds -------------------------------------------------------------------------------------------------------


def rainclouds(comparison: Comparison) -> Plot:
    """Per primary metric and arm: every run's mean, their density from four runs on, their mean with its interval."""
    arms = comparison.frame.arms
    panels = []
    for metric in comparison.metrics:
        said = []
        for arm in arms:
            runs, interval = _runs(comparison, arm, metric), _interval(comparison, arm, metric)
            between = f", interval {words.span(*interval)}" if interval else ""
            said.append(f"{arm.name} {words.listed([words.points(x) for x in runs])}{between}")
        panels.append(
            Panel(
                f"runs-{metric}",
                f"Means of the runs on {title_of(metric)}: {'; '.join(said)}.",
                (PANEL_WIDTH, 0.95 + 0.62 * len(arms)),
                partial(_rain, comparison=comparison, metric=metric),
            )
        )
    bar = (
        ""
        if comparison.one_seed
        else " Bar: the mean over runs and its 95% interval for training again; an arrow: it reaches further."
    )
    cloud = " Cloud: their density." if len(comparison.frame.seeds) >= CLOUD_SEEDS else ""
    caption = (
        f"Every run, {comparison.checkpoint} checkpoint, on the same queries. Rings: the means of single runs.{cloud}"
        f"{bar} Intervals of two arms that overlap do not mean that the arms are alike: the differences have "
        "intervals of their own."
    )
    rows = []
    for metric in comparison.metrics:
        for arm in arms:
            low, high = _interval(comparison, arm, metric) or (None, None)
            runs = _runs(comparison, arm, metric)
            rows.append(_row(arm, metric, "mean", None, math.fsum(runs) / len(runs), low, high))
            rows += [
                _row(arm, metric, "run", run.seed, value, None, None) for run, value in zip(arm.runs, runs, strict=True)
            ]
    return Plot("runs", caption, tuple(panels), tuple(rows))


def _row(
    arm: ArmFrame, metric: str, mark: str, seed: int | None, value: float, low: float | None, high: float | None
) -> dict[str, object]:
    return {"arm": arm.name, "metric": metric, "mark": mark, "seed": seed, "points": value, "low": low, "high": high}


def _runs(comparison: Comparison, arm: ArmFrame, metric: str) -> list[float]:
    """The mean of every run, in points."""
    values = comparison.frame.values(metric, comparison.checkpoint)[arm.name]
    return [100 * float(x) for x in values.mean(axis=1)]


def _interval(comparison: Comparison, arm: ArmFrame, metric: str) -> tuple[float, float] | None:
    """Of the mean, for training again on this benchmark; None for one seed."""
    values = comparison.frame.values(metric, comparison.checkpoint)[arm.name]
    if len(values) < 2:
        return None
    low, high = contrast({arm.name: values}, {arm.name: 1.0}, estimand="benchmark").ci(LEVEL)
    return 100 * low, 100 * high


def density(values: Sequence[float], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """A normal kernel density, scaled to a largest value of 1. Source: Silverman (1986), the normal reference rule."""
    runs = np.asarray(values, dtype=np.float64)
    width = 1.06 * float(runs.std(ddof=1)) * len(runs) ** -0.2
    if width <= 0:
        return np.zeros_like(at)
    heights = np.exp(-0.5 * ((at[:, None] - runs) / width) ** 2).sum(axis=1)
    return np.asarray(heights / heights.max(), dtype=np.float64)


def _rain(axes: Axes, comparison: Comparison, metric: str) -> None:
    arms = comparison.frame.arms
    every = [_runs(comparison, arm, metric) for arm in arms]
    between = [_interval(comparison, arm, metric) for arm in arms]
    # an interval of two or three runs can be far wider than the runs: the axis follows the runs, and arrows say so
    low, high = limits([x for runs in every for x in runs], 0.4)
    for place, (arm, runs, interval) in enumerate(zip(arms, every, between, strict=True)):
        y, colour = -float(place), colour_of(comparison, arm.name)
        if len(runs) >= CLOUD_SEEDS:
            grid = np.linspace(low, high, 160)
            axes.fill_between(grid, y, y + 0.3 * density(runs, grid), color=colour, alpha=0.28, lw=0)
        mean = math.fsum(runs) / len(runs)
        if interval is not None:
            shown = max(interval[0], low), min(interval[1], high)
            axes.plot(shown, [y, y], color=colour, lw=2.4, solid_capstyle="butt", zorder=3)
            for end, cut, mark in ((low, interval[0] < low, "<"), (high, interval[1] > high, ">")):
                if cut:
                    axes.plot([end], [y], mark, ms=5, color=colour, zorder=4, clip_on=False)
        axes.plot([mean], [y], "|", ms=11, mew=2.2, color=colour, zorder=5)
        axes.plot(runs, [y - 0.17] * len(runs), "o", ms=4, mfc="none", mec=colour, mew=1, ls="none", zorder=4)
        side = axes.get_yaxis_transform()
        axes.text(0, y + 0.33, short(arm.name), transform=side, ha="left", va="bottom", fontsize=8.5)
        sd = comparison.means[arm.name, metric].sd_seeds
        text = words.points(mean) + ("" if sd is None else f"  sd {words.points(sd)}")
        axes.text(1, y + 0.33, text, transform=side, ha="right", va="bottom", fontsize=8.5)
    axes.set_xlim(low, high)
    axes.set_ylim(-len(arms) + 0.65, 0.72)
    axes.set_yticks([])
    axes.grid(axis="x", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("mean of a run, points")
    axes.set_title(title_of(metric))


# --- the budget -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """What the variance of a difference is made of, as shares that sum to 1, and what would shrink it.

    seeds, queries: by how much its standard error shrinks with twice the seeds and with twice the queries, in [0, 1].
    """

    runs: float
    both: float
    query: float
    seeds: float
    queries: float

    @property
    def shares(self) -> tuple[float, float, float]:
        """In the order of ``SOURCES``."""
        return self.runs, self.both, self.query


def budget(row: Row) -> Budget | None:
    """The budget of a difference; None for one seed, where nothing varies, or where queries count as fixed."""
    found = row.contrast
    if row.shares is None or found.estimand != "general" or found.var_seed is None or found.var_overlap is None:
        return None
    total = found.se**2
    runs = max(found.var_seed - found.var_overlap, 0.0) / total
    query = max(found.var_query - found.var_overlap, 0.0) / total
    both = max(1.0 - runs - query, 0.0)
    return Budget(
        runs,
        both,
        query,
        seeds=1 - math.sqrt(runs / 2 + both / 2 + query),
        queries=1 - math.sqrt(runs + both / 2 + query / 2),
    )


def variance_budget(comparison: Comparison) -> Plot | None:
    """Per primary metric: every difference's variance, shared out."""
    rows = [(row, found) for row in comparison.rows if (found := budget(row)) is not None]
    if not rows:
        return None
    panels = []
    for metric in comparison.metrics:
        mine = [(row, found) for row, found in rows if row.metric == metric]
        if not mine:
            continue
        said = [
            f"{row.name} {words.listed([f'{_percent(x)} {name}' for x, name in zip(b.shares, SOURCES, strict=True)])}"
            for row, b in mine
        ]
        panels.append(
            Panel(
                f"budget-{metric}",
                f"Shares of the variance of the differences on {title_of(metric)}: {'; '.join(said)}.",
                (PANEL_WIDTH, 1.2 + 0.52 * len(mine)),
                partial(_budget, rows=mine, metric=metric),
            )
        )
    caption = (
        "What the variance of every difference is made of. More seeds shrink what comes from runs, more queries what "
        "comes from queries, and both shrink what comes from the two together."
    )
    table = [
        {
            "claim": row.name,
            "metric": row.metric,
            "runs": found.runs,
            "together": found.both,
            "queries": found.query,
            "narrower_with_twice_the_seeds": found.seeds,
            "narrower_with_twice_the_queries": found.queries,
        }
        for row, found in rows
    ]
    return Plot("budget", caption, tuple(panels), tuple(table))


def cheaper(comparison: Comparison) -> list[str]:
    """One sentence per metric: what twice the seeds and twice the queries would do, and which is worth adding."""
    sentences = []
    for metric in comparison.metrics:
        found = [(row, b) for row in comparison.rows if row.metric == metric and (b := budget(row)) is not None]
        if not found:
            continue
        by_seeds, by_queries = [b.seeds for _, b in found], [b.queries for _, b in found]
        runs = comparison.frame.total_runs
        spent = [run.seconds for arm in comparison.frame.arms for run in arm.runs if run.seconds is not None]
        time = f", about {words.duration(math.fsum(spent))} of training" if len(spent) == runs else ""
        sentences.append(
            f"{title_of(metric)}: twice the seeds ({words.counted(runs, 'more run')}{time}) would narrow the standard "
            f"error by {_range(by_seeds)}, twice the queries by {_range(by_queries)}. {_worth(by_seeds, by_queries)}"
        )
    return sentences


def _worth(by_seeds: Sequence[float], by_queries: Sequence[float]) -> str:
    seeds = [a > b for a, b in zip(by_seeds, by_queries, strict=True)]
    if all(seeds):
        return "Seeds are the cheaper thing to add: they narrow it more and need no annotation."
    if not any(seeds):
        return "More queries narrow it more than more seeds; they have to be annotated."
    return "It depends on the difference: see the bars."


def _range(shares: Sequence[float]) -> str:
    low, high = _percent(min(shares)), _percent(max(shares))
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _budget(axes: Axes, rows: Sequence[tuple[Row, Budget]], metric: str) -> None:
    from matplotlib.patches import Patch

    for place, (row, found) in enumerate(rows):
        y, start = -float(place), 0.0
        for share, shade in zip(found.shares, SHADES, strict=True):
            axes.barh(y - 0.12, share, left=start, height=0.3, color=shade, lw=0)
            start += share
        side = axes.get_yaxis_transform()
        axes.text(0, y + 0.1, short(row.name), transform=side, ha="left", va="bottom", fontsize=8.5)
        text = f"SE {words.points(100 * row.contrast.se)}"
        axes.text(1, y + 0.1, text, transform=side, ha="right", va="bottom", fontsize=8.5, color=MUTED)
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(rows) + 0.6, 0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.set_title(f"{title_of(metric)}: share of the variance")
    axes.spines["bottom"].set_color(INK)
    handles = [Patch(color=shade, lw=0) for shade in SHADES]
    axes.legend(handles, SOURCES, loc="upper left", bbox_to_anchor=(-0.02, -0.16), borderaxespad=0, handlelength=1.2)
