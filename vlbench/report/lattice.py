"""How components go together: the lattice of a design, the Shapley waterfall, and a word for each component.

The lattice shows every cell's mean and, on every edge, what one component adds to that setting of the others. A square
and a cube are drawn as such; with other numbers of components, or where cells were not run, the edges stand in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vlbench.report import words
from vlbench.report.compare import LEVEL, Comparison, Row, orders
from vlbench.report.figures import COLOURS, INK, MUTED, PANEL_WIDTH, RULE, Panel, Plot, limits, short
from vlbench.report.frame import title_of
from vlbench.report.tables import Cell, Column, Table
from vlbench.stats.design import contrast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAIN, LOSS = COLOURS[0], COLOURS[1]  # blue and vermilion: apart for every colour vision, and the sign is printed too
EMPTY = "none"


@dataclass(frozen=True, slots=True)
class Edge:
    """What one component adds to a cell, in points. ``cell``: without the component; ``factor``: its index."""

    cell: str
    factor: int
    points: float
    low: float
    high: float

    @property
    def with_it(self) -> str:
        """The cell with the component."""
        return self.cell[: self.factor] + "1" + self.cell[self.factor + 1 :]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def edges(comparison: Comparison, metric: str) -> list[Edge]:
    """Every pair of cells that were run and differ in one component."""
    frame = comparison.frame
    cells = _cells(comparison)
    values = frame.values(metric, comparison.checkpoint)
    found = []
    for cell in sorted(cells):
        for factor, digit in enumerate(cell):
            other = cell[:factor] + "1" + cell[factor + 1 :]
            if digit == "1" or other not in cells:
                continue
            weights = {cells[other]: 1.0, cells[cell]: -1.0}
            measured = contrast(values, weights, clusters=frame.clusters_of(metric))
            low, high = measured.ci(LEVEL)
            found.append(Edge(cell, factor, 100 * measured.estimate, 100 * low, 100 * high))
    return found


def name_of(comparison: Comparison, cell: str) -> str:
    """``FRA + Bi-CMF``, or ``none``."""
    design = comparison.frame.design
    titles = [factor.title for factor in design.factors] if design else []
    return " + ".join(title for title, digit in zip(titles, cell, strict=True) if digit == "1") or EMPTY


def _cells(comparison: Comparison) -> dict[str, str]:
    """Cell -> arm, of those that have results."""
    design, arms = comparison.frame.design, {arm.name for arm in comparison.frame.arms}
    return {} if design is None else {cell: arm for cell, arm in design.cells.items() if arm in arms}


# --- the lattice ------------------------------------------------------------------------------------------------------


def cube(comparison: Comparison) -> Plot | None:
    """The lattice of every primary metric; None for a study that crosses no components."""
    cells = _cells(comparison)
    if len(cells) < 2:
        return None
    factors = len(next(iter(cells)))
    whole = len(cells) == 2**factors and factors in (2, 3)
    panels, table = [], []
    for metric in comparison.metrics:
        found = edges(comparison, metric)
        if not found:
            continue
        said = [
            f"{_titles(comparison)[edge.factor]} on {name_of(comparison, edge.cell)} {words.signed(edge.points)}"
            for edge in found
        ]
        size = (PANEL_WIDTH, 1.4 + 1.15 * factors) if whole else (PANEL_WIDTH, 1.0 + 0.24 * len(found))
        panels.append(
            Panel(
                f"lattice-{metric}",
                f"What each component adds to each setting of the others, {title_of(metric)}: {'; '.join(said)}.",
                size,
                partial(_drawn if whole else _listed, comparison=comparison, metric=metric, found=found),
            )
        )
        table += [
            {
                "metric": metric,
                "component": _titles(comparison)[edge.factor],
                "added_to": name_of(comparison, edge.cell),
                "points": edge.points,
                "low": edge.low,
                "high": edge.high,
                "mean_without": comparison.means[cells[edge.cell], metric].points,
                "mean_with": comparison.means[cells[edge.with_it], metric].points,
            }
            for edge in found
        ]
    if not panels:
        return None
    caption = (
        "What each component adds, in points, to every setting of the others. Blue: a gain. Orange: a loss. Solid: "
        "the 95% interval of this one edge leaves out zero, dashed: it does not. Edges are descriptive: the tests are "
        "those of the effects."
    )
    if whole:
        caption = f"Boxes: the cells with their means, the empty model below, the full one above. {caption}"
    return Plot("lattice", caption, tuple(panels), tuple(table))


def _titles(comparison: Comparison) -> list[str]:
    design = comparison.frame.design
    return [factor.title for factor in design.factors] if design else []


# where the cells stand: a square or a cube on its corner, the empty model below and the full one above
_PLACES = {
    2: {"00": (0.0, 0.0), "10": (-0.75, 1.0), "01": (0.75, 1.0), "11": (0.0, 2.0)},
    3: {
        "000": (0.0, 0.0),
        "100": (-1.0, 1.0),
        "010": (0.0, 1.0),
        "001": (1.0, 1.0),
        "110": (-1.0, 2.0),
        "101": (0.0, 2.0),
        "011": (1.0, 2.0),
        "111": (0.0, 3.0),
    },
}


def _drawn(axes: Axes, comparison: Comparison, metric: str, found: Sequence[Edge]) -> None:
    cells = _cells(comparison)
    factors = len(next(iter(cells)))
    places = _PLACES[factors]
    largest = max(abs(edge.points) for edge in found) or 1.0
    for edge in found:
        (x0, y0), (x1, y1) = places[edge.cell], places[edge.with_it]
        colour = GAIN if edge.points >= 0 else LOSS
        width = 0.9 + 2.6 * abs(edge.points) / largest
        axes.plot([x0, x1], [y0, y1], color=colour, lw=width, ls="-" if edge.clear else (0, (2, 1.2)), zorder=1)
        crosses = factors == 3 and y0 == 1 and x0 != x1  # two lines meet half way: their numbers stand below
        at = 0.31 if crosses else 0.5
        axes.text(
            x0 + at * (x1 - x0),
            y0 + at * (y1 - y0),
            words.signed(edge.points),
            color=colour,
            fontsize=7.5,
            fontweight="bold" if edge.clear else "normal",
            ha="center",
            va="center",
            zorder=3,
            bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none"},
        )
    for cell, arm in cells.items():
        named = "\n+ ".join(short(title) for title in name_of(comparison, cell).split(" + "))
        axes.text(
            *places[cell],
            f"{named}\n{words.points(comparison.means[arm, metric].points)}",
            fontsize=7.5,
            ha="center",
            va="center",
            linespacing=1.15,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.3", "fc": "white", "ec": INK, "lw": 0.8},
        )
    wide, high = max(x for x, _ in places.values()), max(y for _, y in places.values())
    axes.set_xlim(-wide - 0.45, wide + 0.45)
    axes.set_ylim(-0.25, high + 0.35)
    axes.set_axis_off()
    axes.set_title(title_of(metric))


def _listed(axes: Axes, comparison: Comparison, metric: str, found: Sequence[Edge]) -> None:
    """One line per edge, grouped by component."""
    titles = _titles(comparison)
    ordered = sorted(found, key=lambda edge: (edge.factor, edge.cell.count("1"), edge.cell))
    for place, edge in enumerate(ordered):
        y, colour = -float(place), GAIN if edge.points >= 0 else LOSS
        axes.plot([edge.low, edge.high], [y, y], color=colour, lw=1.6, ls="-" if edge.clear else (0, (2, 1.2)))
        axes.plot([edge.points], [y], "o", ms=4, color=colour)
    axes.axvline(0, color=INK, lw=0.9, zorder=0)
    axes.set_xlim(*limits([0.0, *(x for edge in found for x in (edge.low, edge.high))]))
    axes.set_ylim(-len(ordered) + 0.4, 0.6)
    labels = [f"{titles[edge.factor]} on {short(name_of(comparison, edge.cell))}" for edge in ordered]
    axes.set_yticks([-float(place) for place in range(len(ordered))], labels, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("gain, points")
    axes.set_title(title_of(metric))


# --- the waterfall ----------------------------------------------------------------------------------------------------


def _rows(comparison: Comparison, metric: str, kind: str) -> list[Row]:
    return [row for row in (*comparison.rows, *comparison.effects) if row.metric == metric and row.claim.kind == kind]


def waterfall(comparison: Comparison) -> Plot | None:
    """From the empty model to the full one by Shapley values; None without them."""
    cells = _cells(comparison)
    factors = len(next(iter(cells), ""))
    ends = ("0" * factors, "1" * factors)
    if not factors or any(end not in cells for end in ends):
        return None
    panels, table = [], []
    for metric in comparison.metrics:
        rows = _rows(comparison, metric, "shapley")
        if not rows:
            continue
        empty, full = (comparison.means[cells[end], metric].points for end in ends)
        said = [f"{_component(comparison, row)} {words.signed(row.points)}" for row in rows]
        panels.append(
            Panel(
                f"shapley-{metric}",
                f"From {words.points(empty)} to {words.points(full)} on {title_of(metric)}: {'; '.join(said)}.",
                (PANEL_WIDTH, 1.15 + 0.46 * (len(rows) + 2)),
                partial(_falls, comparison=comparison, metric=metric, rows=rows, ends=(empty, full)),
            )
        )
        table.append({"metric": metric, "step": "empty", "points": empty, "low": None, "high": None})
        table += [
            {
                "metric": metric,
                "step": _component(comparison, row),
                "points": row.points,
                "low": row.low,
                "high": row.high,
            }
            for row in rows
        ]
        table.append({"metric": metric, "step": "full", "points": full, "low": None, "high": None})
    if not panels:
        return None
    caption = (
        "From the model without any of the components to the one with all of them. Each step is a Shapley value: the "
        f"component's gain averaged over {orders(comparison.frame)} of building the model up, so the steps sum to the "
        "whole way. Thin bar: the 95% interval of the step."
    )
    return Plot("shapley", caption, tuple(panels), tuple(table))


def _component(comparison: Comparison, row: Row) -> str:
    return " x ".join(comparison.frame.title_of_component(name) for name in row.claim.components)


def _falls(axes: Axes, comparison: Comparison, metric: str, rows: Sequence[Row], ends: tuple[float, float]) -> None:
    empty, full = ends
    steps: list[tuple[str, float, float, Row | None]] = [("empty", empty, empty, None)]
    level = empty
    for row in rows:
        steps.append((_component(comparison, row), level, level + row.points, row))
        level += row.points
    steps.append(("full", full, full, None))
    reached = [empty, full]
    side = axes.get_yaxis_transform()
    for place, (name, start, end, step) in enumerate(steps):
        y = -float(place)
        if step is None:
            axes.plot([start], [y], "D", ms=6, color=INK, zorder=3)
            text = words.points(start)
        else:
            colour = GAIN if step.points >= 0 else LOSS
            axes.barh(y, end - start, left=start, height=0.34, color=colour, alpha=0.85, lw=0, zorder=2)
            axes.plot([start + step.low, start + step.high], [y, y], color=INK, lw=1.1, zorder=3)
            reached += [start + step.low, start + step.high, end]
            text = words.signed(step.points)
        if place + 1 < len(steps):
            axes.plot([end, end], [y - 0.2, y - 0.8], color=MUTED, lw=0.7, zorder=1)
        plate = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}
        axes.text(0, y + 0.2, short(name), transform=side, ha="left", va="bottom", fontsize=8.5, bbox=plate)
        axes.text(1, y + 0.2, text, transform=side, ha="right", va="bottom", fontsize=8.5)
    axes.set_xlim(*limits(reached))
    axes.set_ylim(-len(steps) + 0.5, 0.7)
    axes.set_yticks([])
    axes.set_xlabel("points")
    axes.set_title(title_of(metric))


# --- the words --------------------------------------------------------------------------------------------------------


def readings_table(comparison: Comparison, metric: str) -> Table | None:
    """The readings as a table; None without any."""
    components = [factor.name for factor in comparison.frame.design.factors] if comparison.frame.design else []
    found = [(name, reading) for name in components if (reading := comparison.reading(name, metric)) is not None]
    if not found:
        return None
    shapley = {row.claim.components: row.points for row in _rows(comparison, metric, "shapley")}
    shares = comparison.variance_shares(metric)
    columns = (
        Column("Component"),
        Column("First in", True, "what the component gains alone, put into the empty model; in points"),
        Column("Last in", True, "what the full model loses without it; in points"),
        Column("Shapley value", True, f"the gain averaged over {orders(comparison.frame)} of building the model up"),
        Column("Last - first", True, "above zero the component gains from the others"),
        Column("SE", True, "of last minus first, in points"),
        Column(
            "Reading",
            note="redundant: it gains less beside the others; synergistic: it gains more; additive: the two gains "
            "differ by no more than one standard error",
        ),
        Column("Share", True, "of the variance of the cells' means that is this component's own; chance is in it too"),
    )
    rows = tuple(
        (
            Cell(title := comparison.frame.title_of_component(name)),
            Cell(words.signed(reading.alone), reading.alone),
            Cell(words.signed(reading.last), reading.last),
            Cell(words.signed(shapley.get((name,))), shapley.get((name,))),
            Cell(words.signed(reading.last - reading.alone), reading.last - reading.alone),
            Cell(words.points(reading.se), reading.se),
            Cell(reading.word),
            Cell(f"{100 * shares[title]:.0f}%" if title in shares else words.NOTHING, shares.get(title)),
        )
        for name, reading in found
    )
    return Table(f"readings-{metric}", f"How the components go together on {title_of(metric)}.", columns, rows)
