"""Figures of two things side by side: what each query scores in A and in B, and both learning curves."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from vlbench.report import words
from vlbench.report.diff import CellDiff, QueryDiff, Scatter, points_of
from vlbench.report.figures import COLOURS, INK, LABEL_LETTERS, MUTED, PANEL_WIDTH, RULE, Panel, Plot
from vlbench.report.frame import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_DOT = 120.0  # points^2: queries with equal values share a dot, whose area is their number
SMALLEST_DOT = 7.0


def scatter_plot(diff: QueryDiff) -> Plot:
    """A panel per metric: B over A, a dot per pair of values."""
    panels = tuple(
        Panel(
            f"queries-{scatter.metric}",
            f"{title_of(scatter.metric)} of {words.counted(len(scatter.qids), 'query')} in B over A: B is above on "
            f"{scatter.wins}, equal on {scatter.ties}, below on {scatter.losses}.",
            (PANEL_WIDTH, PANEL_WIDTH + 0.45),
            partial(_scatter, scatter=scatter, names=diff.names),
        )
        for scatter in diff.scatters
    )
    caption = (
        f"Every query, in points: {diff.names[1]} (B) over {diff.names[0]} (A). Above the line B is better. Queries "
        "with equal values share a dot; its area is their number."
    )
    return Plot("queries", caption, panels, tuple(_scatter_rows(diff)))


def curve_plot(diff: CellDiff) -> Plot | None:
    """A panel per series that both sides have; None without any."""
    if not diff.series:
        return None
    panels = tuple(
        Panel(
            f"curves-{name}",
            f"{_series_title(name)} by epoch, A and B.",
            (PANEL_WIDTH, 2.6),
            partial(_curves, diff=diff, name=name),
        )
        for name in diff.series
    )
    caption = (
        f"Learning curves. A, solid: {diff.names[0]}. B, dashed: {diff.names[1]}. Rings: the epoch that was selected."
    )
    return Plot("curves", caption, panels, tuple(_curve_rows(diff)))


def _scatter(axes: Axes, scatter: Scatter, names: tuple[str, str]) -> None:
    dots = Counter(zip((100 * scatter.a).round(6).tolist(), (100 * scatter.b).round(6).tolist(), strict=True))
    most = max(dots.values())
    x, y = [at[0] for at in dots], [at[1] for at in dots]
    sizes = [max(SMALLEST_DOT, LARGEST_DOT * number / most) if most > 1 else SMALLEST_DOT for number in dots.values()]
    colours = [COLOURS[0] if b > a else COLOURS[1] if b < a else MUTED for a, b in dots]
    axes.plot([0, 100], [0, 100], color=RULE, lw=1, zorder=1)
    axes.scatter(x, y, s=sizes, c=colours, alpha=0.55, linewidths=0, zorder=3)
    axes.set_xlim(-4, 104)
    axes.set_ylim(-4, 104)
    axes.set_aspect("equal")
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel(f"A: {_clipped(names[0])}")
    axes.set_ylabel(f"B: {_clipped(names[1])}")
    axes.set_title(title_of(scatter.metric))
    said = f"B above {scatter.wins} · equal {scatter.ties} · below {scatter.losses}"
    axes.text(1, 1.015, said, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5, color=MUTED)


def _scatter_rows(diff: QueryDiff) -> Iterator[dict[str, Any]]:
    for scatter in diff.scatters:
        for qid, a, b, change in zip(scatter.qids, scatter.a, scatter.b, scatter.changes, strict=True):
            yield {
                "metric": scatter.metric,
                "qid": qid,
                "a": 100 * float(a),
                "b": 100 * float(b),
                "change": float(change),
            }


def _curves(axes: Axes, diff: CellDiff, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    for side, letter, colour, dash in ((diff.a, "A", INK, "-"), (diff.b, "B", COLOURS[0], "--")):
        epochs, values = points_of(side.curve, name)
        axes.plot(epochs, values, color=colour, ls=dash, lw=1.6, label=letter, marker="." if len(values) == 1 else None)
        chosen = [(e, v) for e, v in zip(epochs, values, strict=True) if e == side.curve.selected and name != "loss"]
        for epoch, value in chosen:
            axes.plot([epoch], [value], "o", ms=5, mfc="none", mec=colour, mew=1.2, zorder=5)
    axes.set_title(_series_title(name))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="best", handlelength=2.6)


def _curve_rows(diff: CellDiff) -> Iterator[dict[str, Any]]:
    for name in diff.series:
        for letter, side in (("a", diff.a), ("b", diff.b)):
            for epoch, value in zip(*points_of(side.curve, name), strict=True):
                yield {
                    "series": name,
                    "side": letter,
                    "epoch": epoch,
                    "value": value if math.isfinite(value) else None,
                    "selected": epoch == side.curve.selected,
                }


def _series_title(name: str) -> str:
    return "Training loss, total" if name == "loss" else f"{title_of(name)}, tune split"


def _clipped(name: str) -> str:
    name = re.sub(r"(\.preds)?\.jsonl(\.gz)?$", "", name)
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "…"
