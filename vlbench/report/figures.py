"""Figures as SVG, PNG and the numbers they show: how they are drawn, the difference plot and the learning curves.

A figure is one panel per primary metric, so that panels stand side by side on a wide page and below each other on a
narrow one. A panel is laid out and drawn once, and the page and both kinds of file are made from that. Nothing global
changes: matplotlib's settings hold inside a block, no window system is touched, and the same numbers give the same
bytes. Colours are those of Okabe and Ito (2008), told apart by most people with a colour vision
deficiency; line styles and words repeat them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from vlbench.report import words
from vlbench.report.compare import Comparison, Row, sign
from vlbench.report.frame import Curve, title_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK, MUTED, RULE, BAND = "#1b1f24", "#5b6570", "#cfd5db", "#e7ebef"  # the page replaces them by its own
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito; the baseline is ink
DASHES = ("-", "--", "-.", ":")
LABEL_LETTERS = 30
DOTS = 200  # per inch of a PNG
PANEL_WIDTH = 3.7  # inches: natural size on a narrow phone

STYLE = {
    "axes.edgecolor": MUTED,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 8.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and edited
    "svg.hashsalt": "vlbench",
    "text.color": INK,
    "text.parse_math": False,  # an arm's name is text, with dollar signs or without
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of a figure. ``alt``: what it shows, in a sentence with the numbers. size: inches."""

    key: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Axes], None]
    _drawn: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # what was made of it


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure: panels, a caption, and the rows of its CSV."""

    name: str
    caption: str
    panels: tuple[Panel, ...]
    rows: tuple[dict[str, Any], ...]


def plots(comparison: Comparison) -> list[Plot]:
    """Every figure of a study's report; without those that have nothing to show."""
    from vlbench.report import lattice, spread  # they draw with what is defined here

    found = (
        differences(comparison),
        lattice.cube(comparison),
        lattice.waterfall(comparison),
        spread.rainclouds(comparison),
        learning_curves(comparison),
        spread.variance_budget(comparison),
    )
    return [plot for plot in found if plot is not None]


# --- the difference plot ----------------------------------------------------------------------------------------------


def differences(comparison: Comparison) -> Plot:
    """Per primary metric: every arm's difference with its interval, the runs' own differences, and the margin."""
    frame = comparison.frame
    panels = []
    for metric in comparison.metrics:
        rows = [row for row in comparison.rows if row.metric == metric]
        said = [
            f"{row.name} {words.signed(row.points)} points, interval {words.interval(row.low, row.high)}, {_word(row)}"
            for row in rows
        ]
        size = (PANEL_WIDTH, 1.15 + 0.52 * len(rows))
        panels.append(
            Panel(
                f"differences-{metric}",
                f"Differences on {title_of(metric)}: {'; '.join(said)}.",
                size,
                partial(_forest, comparison=comparison, metric=metric),
            )
        )
    caption = (
        f"Differences in points, {comparison.checkpoint} checkpoint: {sign(comparison)}. Bar: 95% interval. Small "
        f"rings: the runs that carry one seed number. Band: the margin of ±{frame.margin:g} points."
    )
    table = [
        {
            "claim": row.name,
            "metric": row.metric,
            "plus": row.claim.plus,
            "minus": row.claim.minus,
            "mark": mark,
            "seed": seed,
            "points": value,
            "low": low,
            "high": high,
        }
        for row in comparison.rows
        for mark, seed, value, low, high in [
            ("difference", None, row.points, row.low, row.high),
            *(("seed", s, v, None, None) for s, v in zip(frame.seeds, row.by_seed, strict=True)),
        ]
    ]
    return Plot("differences", caption, tuple(panels), tuple(table))


def limits(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The ends of an axis: all values, and on each side this share of their range."""
    low, high = min(values), max(values)
    pad = share * (high - low) or 1.0
    return low - pad, high + pad


def short(name: str) -> str:
    """What fits into a panel; the tables and the text for screen readers have the whole name."""
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "…"


def _word(row: Row) -> str:
    return "" if row.verdict is None else row.verdict.word


def _forest(axes: Axes, comparison: Comparison, metric: str) -> None:
    rows = [row for row in comparison.rows if row.metric == metric]
    margin = comparison.frame.margin
    for place, row in enumerate(rows):
        y = -float(place)
        axes.fill_between([-margin, margin], y - 0.34, y + 0.16, color=BAND, lw=0, zorder=0)
        axes.plot([0, 0], [y - 0.34, y + 0.16], color=INK, lw=0.9, zorder=1)  # not through the names
        colour = colour_of(comparison, row.name) if row.claim.kind == "arm" else INK
        axes.plot([row.low, row.high], [y, y], color=colour, lw=2.4, solid_capstyle="butt", zorder=3)
        axes.plot(
            row.by_seed, [y - 0.2] * len(row.by_seed), "o", ms=3.2, mfc="none", mec=colour, mew=0.8, ls="none", zorder=4
        )
        axes.plot([row.points], [y], "D" if row.survives else "o", ms=6, color=colour, zorder=5)
        axes.text(
            0, y + 0.2, short(row.name), transform=axes.get_yaxis_transform(), ha="left", va="bottom", fontsize=8.5
        )
        axes.text(
            1,
            y + 0.2,
            f"{words.signed(row.points)}  {_word(row)}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8.5,
            fontweight="bold" if row.survives else "normal",
        )
    axes.set_ylim(-len(rows) + 0.55, 0.62)
    axes.set_yticks([])
    values = [0.0, -margin, margin, *(x for row in rows for x in (row.low, row.high, *row.by_seed))]
    axes.set_xlim(*limits(values))
    of = "with − without" if comparison.lattice else "arm − baseline" if comparison.frame.adds else "baseline − arm"
    single = comparison.frame.design is None
    whom = short(comparison.frame.component_title) if single else "the component"
    axes.set_xlabel(f"{of}, points: right of 0 for {whom}")
    axes.set_title(title_of(metric))


# --- learning curves --------------------------------------------------------------------------------------------------


def learning_curves(comparison: Comparison) -> Plot | None:
    """Per primary metric: the tune split's score by epoch, a thin line per run, bold the mean; and the total loss."""
    return curves_of(comparison.frame.arms, comparison.metrics)


class Trained(Protocol):
    """A run as far as its curve goes."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def curve(self) -> Curve:
        """Its curve up to now."""


class Curved(Protocol):
    """An arm as far as its curves go."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def runs(self) -> Sequence[Trained]:
        """Its runs."""


def curves_of(arms: Sequence[Curved], metrics: Sequence[str]) -> Plot | None:
    """The learning curves of finished or running arms; None where no event was kept."""
    height = 2.35 + 0.17 * len(arms)
    scored = [m for m in metrics if any(m in run.curve.tune for arm in arms for run in arm.runs)]
    panels = [
        Panel(
            f"curves-{metric}",
            f"Learning curves of {title_of(metric)} on the tune split, ending at: {_endings(arms, metric)}.",
            (PANEL_WIDTH, height),
            partial(_curves, arms=arms, metric=metric),
        )
        for metric in scored
    ]
    if any("total" in run.curve.losses for arm in arms for run in arm.runs):
        panels.append(
            Panel(
                "curves-loss",
                "Training loss by epoch, one line per run.",
                (PANEL_WIDTH, height),
                partial(_curves, arms=arms, metric=None),
            )
        )
    if not panels:
        return None
    caption = (
        "Learning curves. Thin: one run. Bold: the mean over seeds. Rings: the epoch whose weights were selected. "
        "The score is that of the tune split, in points; the reported queries are not looked at while training."
    )
    return Plot("curves", caption, tuple(panels), tuple(_curve_rows(arms)))


def _series(run: Trained, metric: str | None) -> tuple[Sequence[int], Sequence[float]]:
    """Epochs and tune scores of a metric, or the total loss for None."""
    if metric is None:
        return run.curve.epochs, run.curve.losses.get("total", ())
    return run.curve.tuned, run.curve.tune.get(metric, ())


def _curves(axes: Axes, arms: Sequence[Curved], metric: str | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    handles, labels = [], []
    for number, arm in enumerate(arms):
        colour, dash = _colour(number), DASHES[number % len(DASHES)]
        by_epoch: dict[int, list[float]] = {}
        for run in arm.runs:
            epochs, values = _series(run, metric)
            if not values:
                continue
            axes.plot(epochs, values, color=colour, lw=0.8, alpha=0.45, marker="." if len(values) == 1 else None)
            for epoch, value in zip(epochs, values, strict=True):
                by_epoch.setdefault(epoch, []).append(value)
                if metric is not None and epoch == run.curve.selected:
                    axes.plot([epoch], [value], "o", ms=5, mfc="none", mec=colour, mew=1.2, zorder=5)
        shared = [epoch for epoch in sorted(by_epoch) if len(by_epoch[epoch]) == len(arm.runs)]
        means = [math.fsum(by_epoch[epoch]) / len(by_epoch[epoch]) for epoch in shared]
        axes.plot(shared, means, color=colour, lw=2, ls=dash, zorder=4)
        handles.append(Line2D([], [], color=colour, lw=2, ls=dash))
        labels.append(short(f" {arm.name}" if arm.name.startswith("_") else arm.name))  # matplotlib hides these
    axes.set_title("Training loss, total" if metric is None else f"{title_of(metric)}, tune split")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.tick_params(axis="y", length=0)
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(-0.02, -0.26), borderaxespad=0, handlelength=2.6)


def _endings(arms: Sequence[Curved], metric: str) -> str:
    said = []
    for arm in arms:
        last = [run.curve.tune[metric][-1] for run in arm.runs if run.curve.tune.get(metric)]
        if last:
            said.append(f"{arm.name} {words.points(math.fsum(last) / len(last))}")
    return "; ".join(said)


def _curve_rows(arms: Sequence[Curved]) -> Iterator[dict[str, Any]]:
    for arm in arms:
        for run in arm.runs:
            curve = run.curve
            series = [(f"tune/{name}", curve.tuned, values) for name, values in curve.tune.items()]
            series += [(f"loss/{name}", curve.epochs, values) for name, values in curve.losses.items()]
            for name, epochs, values in series:
                for epoch, value in zip(epochs, values, strict=True):
                    yield {
                        "arm": arm.name,
                        "seed": run.seed,
                        "series": name,
                        "epoch": epoch,
                        "value": value if math.isfinite(value) else None,
                        "selected": epoch == curve.selected,
                    }


def colour_of(comparison: Comparison, arm: str) -> str:
    """The arm's colour in every figure; the baseline is ink."""
    return _colour([entry.name for entry in comparison.frame.arms].index(arm))


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)] if number else INK


# --- rendering --------------------------------------------------------------------------------------------------------


def to_svg(plot: Plot) -> str:
    """All panels in one file, side by side, on white."""
    width, height, parts = 0.0, 0.0, []
    for number, panel in enumerate(plot.panels, start=1):
        text = _svg(panel)
        wide, high = _box(text)
        inner = _renamed(_bare(text[: text.rindex("</svg>")]), f"panel-{number}")
        parts.append(f'<g transform="translate({width:g} 0)">\n{inner[inner.index(">") + 1 :].strip()}\n</g>')
        width, height = width + wide, max(height, high)
    head = (
        '<?xml version="1.0" encoding="utf-8" standalone="no"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1" '
        f'width="{width:g}pt" height="{height:g}pt" viewBox="0 0 {width:g} {height:g}">\n'
        '<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def to_png(plot: Plot) -> bytes:
    """All panels in one file, side by side, on white, 200 dots per inch."""
    import numpy as np
    from PIL import Image

    drawn = [_pixels(panel) for panel in plot.panels]
    height, width = max(len(one) for one in drawn), sum(one.shape[1] for one in drawn)
    whole, left = np.full((height, width, 3), 255, dtype=np.uint8), 0
    for one in drawn:
        whole[: one.shape[0], left : left + one.shape[1]] = one
        left += one.shape[1]
    stream = io.BytesIO()
    Image.fromarray(whole).save(stream, format="png", dpi=(DOTS, DOTS))
    return stream.getvalue()


def to_csv(plot: Plot) -> str:
    """The numbers that the figure shows, unrounded."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(plot.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in plot.rows)
    return stream.getvalue()


def inline(panel: Panel) -> str:
    """One panel as an SVG element: the page's own colours and font, no background, with a name for screen readers."""
    prefix = re.sub(r"[^a-z0-9]+", "-", panel.key.lower())
    text = _renamed(_bare(_svg(panel)), prefix)
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    text = re.sub(r"(font: (?:[a-z]+ )*(?:\d+ )?[0-9.]+px) [^;\"]+", r"\1 system-ui, sans-serif", text)
    numbered = [(colour, f"var(--c{number})") for number, colour in enumerate(COLOURS, start=1)]
    ours = [
        ("#ffffff", "var(--paper)"),
        (INK, "currentColor"),
        (MUTED, "var(--muted)"),
        (RULE, "var(--rule)"),
        (BAND, "var(--band)"),
    ]
    for colour, own in ours + numbered:
        text = text.replace(colour, own)
    wide, high = _box(text)
    opened = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {wide:g} {high:g}" role="img" '
        f'aria-labelledby="{prefix}-alt" style="width:100%;max-width:{1.35 * wide / 72 * 96:.0f}px">'
        f'<title id="{prefix}-alt">{_escaped(panel.alt)}</title>'
    )
    return opened + text[text.index(">") + 1 :].strip()


def _bare(text: str) -> str:
    """An SVG element without metadata, comments and rules, which would reach all that it is put into."""
    return re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)


def _renamed(text: str, prefix: str) -> str:
    """With names of its own, so that several can stand in one document."""
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)


def _box(text: str) -> tuple[float, float]:
    """Width and height of an SVG element in points."""
    found = re.search(r'viewBox="0 0 (\S+) (\S+)"', text)
    assert found is not None
    return float(found.group(1)), float(found.group(2))


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's defaults and this style, whatever the user's own settings are; restored afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        yield


def _figure(panel: Panel) -> Figure:
    """The panel laid out, without a background. Inside ``_settings``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if "figure" not in panel._drawn:
        engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = Figure(figsize=panel.size, layout=engine, facecolor="none")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        panel.draw(axes)
        FigureCanvasAgg(figure)
        engine.execute(figure)
        figure.set_layout_engine("none")
        # the solver of the layout differs in its last digits from run to run, and the names of clipping paths hash them
        left, bottom, wide, high = (round(side, 5) for side in axes.get_position().bounds)
        axes.set_position((left, bottom, wide, high))
        panel._drawn["figure"] = figure
    found: Figure = panel._drawn["figure"]
    return found


def _svg(panel: Panel) -> str:
    """The panel as an SVG element without a background."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas_of: Any = FigureCanvasSVG  # without annotations

    if "svg" not in panel._drawn:
        with _settings():
            stream = io.BytesIO()
            # no date and no version of the writer: the same numbers give the same bytes
            canvas_of(_figure(panel)).print_svg(stream, metadata={"Date": None, "Creator": None})
        text = stream.getvalue().decode("utf-8")
        panel._drawn["svg"] = text[text.index("<svg") :]
    found: str = panel._drawn["svg"]
    return found


def _pixels(panel: Panel) -> NDArray[np.uint8]:
    """The panel on white: (height, width, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _settings():
        figure = _figure(panel)
        figure.set_dpi(DOTS)
        figure.set_facecolor("white")
        canvas: Any = FigureCanvasAgg(figure)  # without annotations
        canvas.draw()
        figure.set_facecolor("none")
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
