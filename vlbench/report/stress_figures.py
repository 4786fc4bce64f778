"""The figures of a stress study: severity curves with bands, a heat map of families and variants, who loses less."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from vlbench.report import words
from vlbench.report.figures import BAND, COLOURS, DASHES, INK, PANEL_WIDTH, RULE, Panel, Plot, limits, short
from vlbench.report.frame import title_of
from vlbench.report.stress import LESS_TO_LOSE, MORE_TO_LOSE, OVERALL, Judged, Point
from vlbench.studies.stress import Stressor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOM = 1.35  # how far above the highest mean a band is drawn
IN_A_ROW = 4  # panels of one file
MARKERS = "osD^vP"
ORANGE = COLOURS[1]


def plots(judged: Judged) -> list[Plot]:
    """Every figure; without those that have nothing to show."""
    found = [*curves(judged), heat_map(judged), differences(judged)]
    return [plot for plot in found if plot is not None]


def label(key: str) -> str:
    """A stressor as people read it."""
    family, _, encoder = key.partition(":")
    said = "all families" if family == OVERALL else family.replace("_", " ")
    return f"{said}, {encoder}" if encoder else said


# --- severity curves --------------------------------------------------------------------------------------------------


def curves(judged: Judged) -> list[Plot]:
    """Per primary metric, as many files as it takes: a panel per stressor with several levels."""
    stress = judged.stress
    ones = [one for one in stress.stressors if len(one.levels) > 1]
    found = []
    for metric in stress.primary:
        panels = []
        for one in ones:
            points = [point for point in judged.points if (point.key, point.metric) == (one.key, metric)]
            if not points or stress.untouched(one.key, metric):
                continue
            said = "; ".join(f"{arm} {_ends(judged, points, arm, metric)}" for arm in stress.arms)
            panels.append(
                Panel(
                    f"curve-{metric}-{one.key}",
                    f"{title_of(metric)} under {label(one.key)}, from clean to level {one.levels[-1]}: {said}.",
                    (PANEL_WIDTH, 2.5 + 0.16 * len(stress.arms)),
                    partial(_curve, judged=judged, one=one, metric=metric),
                )
            )
        for start in range(0, len(panels), IN_A_ROW):
            keys = [panel.key.removeprefix(f"curve-{metric}-") for panel in panels[start : start + IN_A_ROW]]
            rows = tuple(
                {"arm": p.arm, "stressor": p.key, "level": p.level, "metric": metric, "points": 100 * p.mean,
                 "lost": 100 * p.lost, "low": 100 * p.low, "high": 100 * p.high}
                for p in judged.points if p.metric == metric and p.key in keys
            )  # fmt: skip
            name = f"curves-{metric}" + (f"-{start // IN_A_ROW + 1}" if len(panels) > IN_A_ROW else "")
            found.append(Plot(name, _caption(judged), tuple(panels[start : start + IN_A_ROW]), rows))
    return found


def _caption(judged: Judged) -> str:
    draws = words.counted(judged.stress.draws, "draw")
    return (
        f"Points by level, 0 being clean; mean over runs and {draws}. Band: 95% interval of what is lost since level "
        "0, pointwise, of the same runs and queries; it may go on beyond the frame."
    )


def _ends(judged: Judged, points: Sequence[Point], arm: str, metric: str) -> str:
    mine = [point for point in points if point.arm == arm]
    if not mine:
        return "not measured"
    clean = 100 * float(judged.stress.scores(metric, arm).mean())
    return f"{words.points(clean)} to {words.points(100 * mine[-1].mean)}"


def _curve(axes: Axes, judged: Judged, one: Stressor, metric: str) -> None:
    for place, arm in enumerate(judged.stress.arms):
        mine = [p for p in judged.points if (p.arm, p.key, p.metric) == (arm, one.key, metric)]
        if not mine:
            continue
        clean = float(judged.stress.scores(metric, arm).mean())
        colour = colour_of(place)
        x = [0, *(point.level for point in mine)]
        low = [clean, *(clean - point.high for point in mine)]
        high = [clean, *(clean - point.low for point in mine)]
        axes.fill_between(x, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.16, lw=0)
        axes.plot(
            x,
            [100 * clean, *(100 * point.mean for point in mine)],
            DASHES[place % len(DASHES)],
            color=colour,
            lw=1.6,
            marker=MARKERS[place % len(MARKERS)],
            ms=3.6,
            label=short(arm),
        )
    axes.set_title(label(one.key))
    axes.set_xticks([0, *one.levels])
    axes.set_xlabel("level")
    axes.set_ylabel(title_of(metric))
    axes.spines["left"].set_visible(True)
    means = [100 * float(judged.stress.scores(metric, arm).mean()) for arm in judged.stress.arms]
    means += [100 * point.mean for point in judged.points if (point.key, point.metric) == (one.key, metric)]
    top = max(means)  # few runs have bands that are wider than the scale: they would flatten the curves
    axes.set_ylim(1.05 * min(0.0, *means), 1.08 * min(axes.dataLim.intervaly[1], ROOM * top) if top > 0 else 1.0)
    if len(judged.stress.arms) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.22), borderaxespad=0, handlelength=2.6)


def colour_of(place: int) -> str:
    """The first variant is ink."""
    return COLOURS[(place - 1) % len(COLOURS)] if place else INK


# --- heat map ---------------------------------------------------------------------------------------------------------


def heat_map(judged: Judged) -> Plot | None:
    """Per primary metric: families down, variants across, the area that each keeps."""
    stress = judged.stress
    keys = [one.key for one in stress.stressors if any(stress.has(arm, one.key) for arm in stress.arms)]
    if not keys:
        return None
    panels = []
    for metric in stress.primary:
        said = "; ".join(
            f"{label(key)} {words.listed([_share(judged, arm, key, metric) for arm in stress.arms])}" for key in keys
        )
        letters = max(len(line) for arm in stress.arms for line in _folded(arm).split("\n"))
        size = (1.6 + max(0.8, 0.1 + 0.075 * letters) * len(stress.arms), 1.2 + 0.27 * len(keys))
        panels.append(
            Panel(
                f"heat-{metric}",
                f"Share of {title_of(metric)} that is kept, variants {words.listed(stress.arms)}: {said}.",
                size,
                partial(_heat, judged=judged, keys=keys, metric=metric),
            )
        )
    rows = tuple(
        {"arm": a.arm, "stressor": a.key, "metric": a.metric, "kept": kept(judged, a.arm, a.key, a.metric)}
        for a in judged.areas
        if a.key != OVERALL
    )
    caption = (
        "Area under the severity curve as a share of the clean score, or what is left at the level of those that have "
        "one alone: 1 loses nothing. The darker, the more is lost."
    )
    return Plot("heat-map", caption, tuple(panels), rows)


def kept(judged: Judged, arm: str, key: str, metric: str) -> float | None:
    """The area, or what is left where there is one level alone; None where it was not measured."""
    found = judged.area(arm, key, metric)
    if found is None:
        return None
    return found.area if len(judged.stress.stressor(key).levels) > 1 else found.retention


def _share(judged: Judged, arm: str, key: str, metric: str) -> str:
    return words.points(kept(judged, arm, key, metric))


def _folded(name: str) -> str:
    """A variant's name over a narrow column: a line per word."""
    return short(name).replace("_", "_\n").replace(" ", "\n")


def _heat(axes: Axes, judged: Judged, keys: Sequence[str], metric: str) -> None:
    from matplotlib.patches import Rectangle

    arms = judged.stress.arms
    for row, key in enumerate(keys):
        for column, arm in enumerate(arms):
            share = kept(judged, arm, key, metric)
            lost = 0.0 if share is None else min(max(1 - share, 0.0), 1.0)
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=ORANGE, alpha=0.85 * lost, lw=0))
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor="none", edgecolor=RULE, lw=0.8))
            axes.text(column + 0.5, row + 0.5, _share(judged, arm, key, metric), ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(arms))
    axes.set_ylim(len(keys), 0)
    axes.set_xticks([column + 0.5 for column in range(len(arms))], [_folded(arm) for arm in arms])
    axes.set_yticks([row + 0.5 for row in range(len(keys))], [label(key) for key in keys])
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title_of(metric), pad=30)


# --- who loses less ---------------------------------------------------------------------------------------------------


def differences(judged: Judged) -> Plot | None:
    """Per variant and primary metric: how much less it loses than the first, over all families and family by family."""
    stress = judged.stress
    panels = []
    for arm in stress.arms[1:]:
        for metric in stress.primary:
            gaps = [gap for gap in judged.gaps if (gap.arm, gap.metric) == (arm, metric)]
            if not gaps:
                continue
            said = [
                f"{label(g.key)} {words.signed(g.points)}, interval {words.interval(*g.interval)}, {g.statement}"
                for g in gaps
            ]
            panels.append(
                Panel(
                    f"differences-{arm}-{metric}",
                    f"How much less {arm} loses than {stress.arms[0]} on {title_of(metric)}: {'; '.join(said)}.",
                    (PANEL_WIDTH, 1.15 + 0.5 * len(gaps)),
                    partial(_forest, judged=judged, arm=arm, metric=metric),
                )
            )
    if not panels:
        return None
    rows = tuple(
        {"arm": g.arm, "stressor": g.key, "metric": g.metric, "points": g.points, "low": g.interval[0],
         "high": g.interval[1], "corrupted": 100 * g.corrupted.estimate, "statement": g.statement}
        for g in judged.gaps
    )  # fmt: skip
    caption = (
        f"What a variant loses less than {stress.arms[0]}, area over levels, in points: right of 0 it loses less. Bar: "
        f"95% interval. Diamond: survives its correction. Band: the margin of ±{stress.margin:g} points."
    )
    return Plot("differences", caption, tuple(panels), rows)


def _forest(axes: Axes, judged: Judged, arm: str, metric: str) -> None:
    gaps = [gap for gap in judged.gaps if (gap.arm, gap.metric) == (arm, metric)]
    margin = judged.stress.margin
    colour = colour_of(judged.stress.arms.index(arm))
    for place, gap in enumerate(gaps):
        y = -float(place)
        axes.fill_between([-margin, margin], y - 0.3, y + 0.16, color=BAND, lw=0, zorder=0)
        axes.plot([0, 0], [y - 0.3, y + 0.16], color=INK, lw=0.9, zorder=1)
        axes.plot(gap.interval, [y, y], color=colour, lw=2.4, solid_capstyle="butt", zorder=3)
        axes.plot([gap.points], [y], "D" if gap.survives else "o", ms=6, color=colour, zorder=5)
        weight = "bold" if gap.survives else "normal"
        across = axes.get_yaxis_transform()
        axes.text(0, y + 0.2, label(gap.key), transform=across, ha="left", va="bottom", fontsize=8.5)
        said = f"{words.signed(gap.points)}  {_brief(gap.statement)}"
        axes.text(1, y + 0.2, said, transform=across, ha="right", va="bottom", fontsize=8.5, fontweight=weight)
    axes.set_ylim(-len(gaps) + 0.55, 0.62)
    axes.set_yticks([])
    axes.set_xlim(*limits([0.0, -margin, margin, *(end for gap in gaps for end in gap.interval)]))
    axes.set_xlabel(f"points: right of 0 {short(arm)} loses less")
    axes.set_title(f"{title_of(metric)}, {short(arm)}")


def _brief(statement: str) -> str:
    """What fits beside a bar: the table and the text for screen readers have the whole sentence."""
    return {LESS_TO_LOSE: "had less to lose", MORE_TO_LOSE: "had more to lose"}.get(statement, statement.split(",")[0])
