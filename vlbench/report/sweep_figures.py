"""The figures of a sweep: the winner against its refits, best so far, importances, slices, a contour and a front.

Every figure draws trials as what they are, single runs: a filled circle ran to its end, a ring was pruned and stands
where it was stopped, a diamond is the best. Parameters have their own scale: logarithmic where they were searched so,
one step per choice where they are choices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vlbench.report import words
from vlbench.report.figures import (
    COLOURS,
    INK,
    LABEL_LETTERS,
    MUTED,
    PANEL_WIDTH,
    RULE,
    Panel,
    Plot,
    limits,
    short,
)
from vlbench.report.frame import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlbench.report.sweep import Aim, Refit, Sweep, Trial

HEIGHT = 2.6  # inches of a panel
SLICES = 12  # panels; the parameters beyond are in the CSV and in the table
MOST_PAIRS = 3
SHADED = 6  # trials; fewer have no shape between them
TICKS = 4
BELOW = 0.6  # of the range of complete trials: how far below them an axis goes for the others
RINGS = "Rings: pruned trials, where they were stopped, or on the axis if that is far below."
BLUE, ORANGE, GREEN = COLOURS[:3]


def plots(sweep: Sweep) -> list[Plot]:
    """Every figure; without those that have nothing to show."""
    made = (winner(sweep), pareto(sweep), best_so_far(sweep), importances(sweep), slices(sweep), contour(sweep))
    return [plot for plot in made if plot is not None]


def value_text(value: Any) -> str:
    """A card's value as people write it; numbers with four digits."""
    if value is None:
        return words.NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the winner -------------------------------------------------------------------------------------------------------


def winner(sweep: Sweep) -> Plot | None:
    """All trials in one column, and beside them the runs that fitted the chosen ones and the card again."""
    if not sweep.refits or not sweep.of_state("complete"):
        return None
    panels = []
    for aim in sweep.aims:
        said = [
            f"{refit.arm} fitted again: {words.listed([words.points(v) for v in refit.tune[aim.key]])}"
            for refit in sweep.refits
            if refit.tune.get(aim.key)
        ]
        chosen = [
            f"trial {refit.trial} {words.points(aim.of(sweep.trial(refit.trial)))}"
            for refit in sweep.refits
            if refit.trial is not None
        ]
        alt = f"{aim.title} on the tuning split. Chosen: {'; '.join(chosen)}. {'; '.join(said)}."
        draw = partial(_winner, sweep=sweep, aim=aim)
        panels.append(Panel(f"winner-{aim.key}", alt, (PANEL_WIDTH + 0.45 * len(sweep.refits), 3.1), draw))
    caption = (
        "Single runs on the tuning split, in points. Left: every complete trial. Right: what was chosen, and the card, "
        "fitted again with fresh seeds; the bar is their mean. Dashed: where the best of so many equally good trials "
        "is expected, from the spread of seeds alone."
    )
    rows = [
        {"aim": aim.key, "column": "trials", "trial": trial.number, "run": "trial", "points": aim.of(trial)}
        for aim in sweep.aims
        for trial in sweep.of_state("complete")
    ]
    rows += [
        {"aim": aim.key, "column": refit.arm, "trial": refit.trial, "run": f"refit {number}", "points": value}
        for aim in sweep.aims
        for refit in sweep.refits
        for number, value in enumerate(refit.tune.get(aim.key, ()), start=1)
    ]
    rows += [
        {"aim": aim.key, "column": one.arm, "trial": None, "run": "expected best", "points": one.mean + one.expected}
        for aim in sweep.aims
        for one in sweep.optimism(aim)
    ]
    return Plot("winner", caption, tuple(panels), tuple(rows))


def _winner(axes: Axes, sweep: Sweep, aim: Aim) -> None:
    complete = sweep.of_state("complete")
    chosen = {refit.trial for refit in sweep.refits if refit.trial is not None}
    values = [aim.of(trial) or 0.0 for trial in complete]
    spreads = _side_by_side(values)
    shown = list(values)
    for trial, value, x in zip(complete, values, spreads, strict=True):
        if trial.number in chosen:
            axes.plot([x], [value], "D", ms=6.5, color=ORANGE, zorder=5)
        else:
            axes.plot([x], [value], "o", ms=4, color=BLUE, alpha=0.65, zorder=4)
    by_chance = {one.arm: one for one in sweep.optimism(aim)}
    for place, refit in enumerate(sweep.refits, start=1):
        runs = refit.tune.get(aim.key, ())
        if not runs:
            continue
        colour = MUTED if refit.trial is None else ORANGE
        mean = statistics.fmean(runs)
        axes.plot([place + x for x in _side_by_side(runs)], runs, "o", ms=5, mfc="none", mec=colour, mew=1.3, zorder=4)
        axes.plot([place - 0.3, place + 0.3], [mean, mean], color=colour, lw=2.4, solid_capstyle="butt", zorder=3)
        shown += [*runs]
        if (one := by_chance.get(refit.arm)) is not None:
            high = one.mean + one.expected
            axes.plot([place - 0.3, place + 0.3], [high, high], color=colour, lw=1.2, ls="--", zorder=3)
            axes.plot([0, place], [one.trial, one.trial], color=RULE, lw=0.8, zorder=1)
            shown.append(high)
    names = ["trials", *(_wrapped(refit.arm) for refit in sweep.refits)]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(*limits(shown, 0.1))
    _finish(axes, aim.title, "")


def _side_by_side(values: Sequence[float], width: float = 0.26) -> list[float]:
    """Offsets that keep dots of nearly equal height apart: left and right in turn, in the order of their values."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    steps = (0.0, 0.5, -0.5, 1.0, -1.0)
    found = [0.0] * len(values)
    for rank, place in enumerate(order):
        found[place] = width * steps[rank % len(steps)] if len(values) > 1 else 0.0
    return found


def _wrapped(name: str) -> str:
    return short(name).replace(" (", "\n(", 1)


# --- best so far ------------------------------------------------------------------------------------------------------


def best_so_far(sweep: Sweep) -> Plot | None:
    """Per aim: the highest value against trials, with the expected best where it exists, and against hours."""
    from vlbench.report.sweep import hours, hours_name

    series = {aim: sweep.best_so_far(aim) for aim in sweep.aims}
    if not any(best is not None for found in series.values() for *_, best in found):
        return None
    panels = []
    for aim, found in series.items():
        number, spent, best = found[-1]
        alt = f"Best so far, {aim.title}: {words.points(best)} after {words.counted(number, 'trial')}"
        if (expected := sweep.expected(aim)) is not None:
            half = max(1, len(expected[0]) // 2) - 1
            alt += f"; expected best of {words.counted(expected[0][half], 'trial')} {words.points(expected[1][half])}"
        size = (PANEL_WIDTH, HEIGHT)
        panels.append(Panel(f"best-{aim.key}-trials", f"{alt}.", size, partial(_by_trials, sweep=sweep, aim=aim)))
        named = hours_name(sweep)
        after = f"Best so far, {aim.title}: {words.points(best)} after {hours(spent)} {named}."
        panels.append(Panel(f"best-{aim.key}-hours", after, size, partial(_by_hours, sweep=sweep, aim=aim, name=named)))
    caption = (
        "The highest value so far on the tuning split, in points, against trials and against time spent training. "
        f"Circles: complete trials. {RINGS} Crosses at the bottom: failed ones."
    )
    if any(sweep.expected(aim) is not None for aim in sweep.aims):
        caption += " Dashed: the expected best of so many trials, on the right at the mean time of a trial."
    rows = []
    for aim, found in series.items():
        expected = sweep.expected(aim)
        by_number = dict(zip(*expected, strict=True)) if expected else {}
        for trial, (number, spent, best) in zip(sweep.trials, found, strict=True):
            rows.append(
                {
                    "aim": aim.key,
                    "trials": number,
                    "trial": trial.number,
                    "state": trial.state,
                    "hours": spent,
                    "points": aim.of(trial),
                    "best": best,
                    "expected_best": by_number.get(number),
                }
            )
    return Plot("best-so-far", caption, tuple(panels), tuple(rows))


def _by_trials(axes: Axes, sweep: Sweep, aim: Aim) -> None:
    from matplotlib.ticker import MaxNLocator

    found = sweep.best_so_far(aim)
    expected = sweep.expected(aim)
    _best_line(axes, sweep, aim, [number for number, *_ in found])
    if expected is not None:
        axes.plot(*expected, color=ORANGE, lw=1.8, ls="--", zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _finish(axes, f"Best so far: {aim.title}", "trials")


def _by_hours(axes: Axes, sweep: Sweep, aim: Aim, name: str) -> None:
    _best_line(axes, sweep, aim, [spent for _, spent, _ in sweep.best_so_far(aim)])
    if (expected := sweep.expected(aim)) is not None:
        each = sweep.hours / len(sweep.trials)
        axes.plot([each * number for number in expected[0]], expected[1], color=ORANGE, lw=1.8, ls="--", zorder=4)
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.locator_params(axis="x", nbins=5)
    _finish(axes, f"Best so far: {aim.title}", f"{name} of training")


def _best_line(axes: Axes, sweep: Sweep, aim: Aim, places: Sequence[float]) -> None:
    line = [(x, best) for x, (*_, best) in zip(places, sweep.best_so_far(aim), strict=True) if best is not None]
    axes.step([x for x, _ in line], [best for _, best in line], where="post", color=INK, lw=2, zorder=3)
    low, high = _limits(sweep, aim)
    for x, trial in zip(places, sweep.trials, strict=True):
        value = _level(sweep, aim, trial)
        if trial.state == "failed":
            axes.plot([x], [low], "x", ms=5, color=ORANGE, clip_on=False, zorder=5)
        elif value is not None:
            _dot(axes, x, max(low, value), trial, sweep)
    axes.set_ylim(low, high)


def _limits(sweep: Sweep, aim: Aim) -> tuple[float, float]:
    """Room for what ran to its end and a little below; where a trial was stopped may lie far below that."""
    complete = [value for trial in sweep.trials if (value := aim.of(trial)) is not None]
    levels = [value for trial in sweep.trials if (value := _level(sweep, aim, trial)) is not None]
    if not complete:
        return limits(levels, 0.1)
    low, high = limits(complete, 0.1)
    return max(limits(levels, 0.1)[0], low - BELOW * (high - low)), high


def _level(sweep: Sweep, aim: Aim, trial: Trial) -> float | None:
    """Where a trial is drawn: its value, or what it had when it was pruned."""
    return trial.reached if trial.state == "pruned" and not sweep.pareto else aim.of(trial)


def _dot(axes: Axes, x: float, y: float, trial: Trial, sweep: Sweep) -> None:
    chosen = {one.number for one in sweep.front}
    if trial.number in chosen:
        axes.plot([x], [y], "D", ms=6, color=ORANGE, zorder=6)
    elif trial.state == "pruned":
        axes.plot([x], [y], "o", ms=4.2, mfc="none", mec=MUTED, mew=1.0, zorder=4, clip_on=False)
    else:
        axes.plot([x], [y], "o", ms=4.2, color=BLUE, alpha=0.75, zorder=5)


# --- importances ------------------------------------------------------------------------------------------------------


def importances(sweep: Sweep) -> Plot | None:
    """Bars of importance by parameter, one panel per objective."""
    found = [one for one in sweep.content["importances"] if one["values"]]
    if not found:
        return None
    panels = []
    for one in found:
        title = sweep.aims[0].title if one["of"] == "objective" else title_of(one["of"])
        said = [f"{key} {100 * share:.0f}%" for key, share in _ordered(one["values"])]
        alt = f"Importances for {title}, exploration only: {', '.join(said)}."
        size = (PANEL_WIDTH, 1.0 + 0.42 * len(said))
        panels.append(Panel(f"importances-{one['of']}", alt, size, partial(_importances, one=one, title=title)))
    complete = len(sweep.of_state("complete"))
    caption = (
        f"Exploration only: importances by {found[0]['method']} from {words.counted(complete, 'complete trial')}, one "
        "run each. They are no ablation."
    )
    rows = [
        {"of": one["of"], "method": one["method"], "parameter": key, "share": share}
        for one in found
        for key, share in _ordered(one["values"])
    ]
    return Plot("importances", caption, tuple(panels), tuple(rows))


def _ordered(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))


def _importances(axes: Axes, one: Mapping[str, Any], title: str) -> None:
    pairs = _ordered(one["values"])
    highest = max(share for _, share in pairs) or 1.0
    for place, (key, share) in enumerate(pairs):
        y = -float(place)
        axes.barh(y - 0.17, share, height=0.26, color=BLUE, lw=0)
        side = axes.get_yaxis_transform()
        axes.text(0, y + 0.02, short(key), transform=side, ha="left", va="bottom", fontsize=8.5)
        axes.text(1, y + 0.02, f"{100 * share:.0f}%", transform=side, ha="right", va="bottom", fontsize=8.5)
    axes.set_xlim(0, highest)
    axes.set_ylim(-len(pairs) + 0.6, 0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_title(f"Exploration: {title}")


# --- slices and contour -----------------------------------------------------------------------------------------------


def slices(sweep: Sweep) -> Plot | None:
    """Per parameter: every trial's value against what it set there; the most important first."""
    spaces = {one["key"]: one for one in sweep.space}
    valued = [trial for trial in sweep.trials if trial.reached is not None]
    if not valued:
        return None
    panels = []
    for key in sweep.ranked[:SLICES]:
        number = sum(key in trial.params for trial in valued)
        best = [
            f"trial {trial.number} has {value_text(trial.params[key])} and reaches {words.points(trial.value)}"
            for trial in sweep.front[:1]
            if key in trial.params
        ]
        alt = f"{_objective(sweep)} against {key}, {words.counted(number, 'trial')}. {'; '.join(best)}."
        draw = partial(_slice, sweep=sweep, one=spaces[key])
        panels.append(Panel(f"slice-{key}", alt, (PANEL_WIDTH, HEIGHT), draw))
    more = len(spaces) - len(panels)
    caption = (
        f"{_objective(sweep)} of every trial on the tuning split, in points, against one parameter, whatever the "
        f"others were. Diamond: the best. {RINGS} Dotted: the card's value. What lies side by side differs in other "
        "parameters too."
    )
    if more > 0:
        caption += f" {words.counted(more, 'less important parameter')} in the CSV only."
    rows = [
        {
            "parameter": key,
            "trial": trial.number,
            "state": trial.state,
            "value": trial.params[key],
            "points": trial.reached,
        }
        for key in sweep.ranked
        for trial in valued
        if key in trial.params
    ]
    return Plot("slices", caption, tuple(panels), tuple(rows))


def _mean(sweep: Sweep) -> Aim:
    """The mean of all objectives, also where they are kept apart."""
    from vlbench.report.sweep import Aim

    metrics = tuple(sweep.content["objective"])
    return Aim("mean", _objective(sweep), metrics, tuple(range(len(metrics))))


def _objective(sweep: Sweep) -> str:
    return "Mean of the objectives" if sweep.pareto else sweep.aims[0].title[:1].upper() + sweep.aims[0].title[1:]


def _slice(axes: Axes, sweep: Sweep, one: Mapping[str, Any]) -> None:
    scale, ends = _scale(one)
    mean = _mean(sweep)
    low, high = _limits(sweep, mean)
    for trial in sweep.trials:
        value = _level(sweep, mean, trial)
        if value is not None and one["key"] in trial.params:
            _dot(axes, scale(trial.params[one["key"]]), max(low, value), trial, sweep)
    if (now := _now(one, scale, ends)) is not None:
        axes.axvline(now, color=MUTED, lw=1, ls=":", zorder=1)
    axes.set_ylim(low, high)
    axes.set_xlim(*limits(ends))
    axes.set_xticks(*_ticks(one, scale))
    _finish(axes, short(one["key"]), "logarithmic" if one["log"] else "")


def contour(sweep: Sweep) -> Plot | None:
    """The two most important parameters against each other, shaded between complete trials where there are enough."""
    if len(sweep.space) < 2 or not sweep.content["importances"]:
        return None
    spaces = {one["key"]: one for one in sweep.space}
    across, up = (spaces[key] for key in sweep.ranked[:2])
    points = [t for t in sweep.of_state("complete") if across["key"] in t.params and up["key"] in t.params]
    if len(points) < 2:
        return None
    values = [trial.value or 0.0 for trial in points]
    alt = (
        f"{_objective(sweep)} over {across['key']} and {up['key']}: {words.counted(len(points), 'complete trial')} "
        f"from {words.points(min(values))} to {words.points(max(values))}."
    )
    draw = partial(_contour, sweep=sweep, across=across, up=up, points=points)
    caption = (
        f"{_objective(sweep)} on the tuning split over the two parameters of highest importance. Dark circles: high "
        "values; diamond: the best. The other parameters vary too."
    )
    if len(points) >= SHADED:
        caption += " Shades join single runs by straight lines: between trials they are a guess."
    rows = [
        {
            "trial": trial.number,
            across["key"]: trial.params[across["key"]],
            up["key"]: trial.params[up["key"]],
            "points": trial.value,
        }
        for trial in points
    ]
    panel = Panel("contour", alt, (PANEL_WIDTH + 0.9, 3.4), draw)
    return Plot("contour", caption, (panel,), tuple(rows))


def _contour(
    axes: Axes, sweep: Sweep, across: Mapping[str, Any], up: Mapping[str, Any], points: Sequence[Trial]
) -> None:
    (right, x_ends), (high, y_ends) = _scale(across), _scale(up)
    x = [right(trial.params[across["key"]]) for trial in points]
    y = [high(trial.params[up["key"]]) for trial in points]
    values = [trial.value or 0.0 for trial in points]
    lowest, span = min(values), max(values) - min(values) or 1.0
    _shade(axes, x, y, values)
    best = {trial.number for trial in sweep.front}
    for trial, at_x, at_y, value in zip(points, x, y, values, strict=True):
        if trial.number in best:
            axes.plot([at_x], [at_y], "D", ms=7, color=ORANGE, zorder=6)
        else:
            depth = 0.15 + 0.85 * (value - lowest) / span
            axes.plot([at_x], [at_y], "o", ms=5.5, mec=BLUE, mew=0.8, mfc=(*_rgb(BLUE), depth), zorder=5)
    for one, scale, ends, line in ((across, right, x_ends, axes.axvline), (up, high, y_ends, axes.axhline)):
        if (now := _now(one, scale, ends)) is not None:
            line(now, color=MUTED, lw=1, ls=":", zorder=1)
    axes.set_xlim(*limits(x_ends))
    axes.set_ylim(*limits(y_ends))
    axes.set_xticks(*_ticks(across, right))
    axes.set_yticks(*_ticks(up, high))
    axes.set_ylabel(short(up["key"]))
    _finish(axes, _objective(sweep), short(across["key"]), grid=False)


def _shade(axes: Axes, x: Sequence[float], y: Sequence[float], values: Sequence[float]) -> None:
    """Linear between the trials, in unit steps of both scales; nothing where they do not span a surface."""
    from matplotlib.tri import Triangulation

    if len({*zip(x, y, strict=True)}) < SHADED or len(set(values)) < 2:
        return
    wide, high = max(x) - min(x), max(y) - min(y)
    if not wide or not high:
        return
    try:
        mesh = Triangulation([(one - min(x)) / wide for one in x], [(one - min(y)) / high for one in y])
    except (RuntimeError, ValueError):  # all trials on a line
        return
    real = Triangulation(list(x), list(y), mesh.triangles)
    low, step = min(values), (max(values) - min(values)) / 5
    colours = [(*_rgb(BLUE), 0.04 + 0.09 * level) for level in range(5)]
    axes.tricontourf(real, list(values), levels=[low + step * level for level in range(6)], colors=colours, zorder=0)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue


Scale = Callable[[Any], float]


def _scale(one: Mapping[str, Any]) -> tuple[Scale, tuple[float, float]]:
    """Where a parameter's value is drawn, and the ends of its axis."""
    if one["kind"] == "choices":
        return partial(_place_of, choices=list(one["choices"])), (0.0, max(1.0, len(one["choices"]) - 1.0))
    scale: Scale = math.log10 if one["log"] else float
    return scale, (scale(one["low"]), scale(one["high"]))


def _place_of(value: Any, choices: Sequence[Any]) -> float:
    """Of a choice; true is not 1."""
    return float(next(n for n, choice in enumerate(choices) if choice == value and type(choice) is type(value)))


def _ticks(one: Mapping[str, Any], scale: Scale) -> tuple[list[float], list[str]]:
    if one["kind"] == "choices":
        names = [value_text(choice) for choice in one["choices"]]
        kept = max(3, LABEL_LETTERS // max(1, len(names)))
        shown = [name if len(name) <= kept else f"{name[: kept - 1]}…" for name in names]
        return [float(n) for n in range(len(names))], shown
    low, high = float(one["low"]), float(one["high"])
    if one["log"]:
        marks = [low * (high / low) ** (part / (TICKS - 1)) for part in range(TICKS)]
    else:
        marks = [low + (high - low) * part / (TICKS - 1) for part in range(TICKS)]
    if one["kind"] == "int":
        marks = [float(whole) for whole in sorted({round(mark) for mark in marks})]
    return [scale(mark) for mark in marks], [f"{mark:.2g}" if one["kind"] == "float" else f"{mark:g}" for mark in marks]


def _now(one: Mapping[str, Any], scale: Scale, ends: tuple[float, float]) -> float | None:
    """Where the card's own value stands, if it is inside what was tried."""
    try:
        place = scale(one["now"])
    except (TypeError, ValueError, StopIteration):  # absent, zero on a logarithmic scale, or no longer a choice
        return None
    return place if ends[0] <= place <= ends[1] else None


# --- the front --------------------------------------------------------------------------------------------------------


def pareto(sweep: Sweep) -> Plot | None:
    """Every pair of objectives kept apart: all complete trials, and the front joined by steps."""
    complete = sweep.of_state("complete")
    if not sweep.pareto or len(sweep.aims) < 2 or not complete:
        return None
    panels = []
    for across, up in list(combinations(sweep.aims, 2))[:MOST_PAIRS]:
        said = [
            f"trial {trial.number} {words.points(across.of(trial))} and {words.points(up.of(trial))}"
            for trial in sweep.front
        ]
        alt = f"{across.title} and {up.title} of {words.counted(len(complete), 'trial')}. Front: {'; '.join(said)}."
        draw = partial(_pareto, sweep=sweep, across=across, up=up)
        panels.append(Panel(f"pareto-{across.key}-{up.key}", alt, (PANEL_WIDTH + 0.6, 3.2), draw))
    caption = (
        "Complete trials, one run each, on the tuning split, in points. Diamonds, with their numbers: the front, which "
        "no trial beats in all objectives at once. Crosses: members of the front fitted again, mean of fresh seeds."
    )
    front = {trial.number for trial in sweep.front}
    rows: list[dict[str, Any]] = [
        {"trial": t.number, "run": "trial", "front": t.number in front, **{a.key: a.of(t) for a in sweep.aims}}
        for t in complete
    ]
    rows += [
        {"trial": refit.trial, "run": "mean of refits", "front": refit.trial in front, **_means(sweep, refit)}
        for refit in sweep.refits
        if any(refit.tune.values())
    ]
    return Plot("pareto", caption, tuple(panels), tuple(rows))


def _means(sweep: Sweep, refit: Refit) -> dict[str, float | None]:
    return {aim.key: statistics.fmean(v) if (v := refit.tune.get(aim.key)) else None for aim in sweep.aims}


def _pareto(axes: Axes, sweep: Sweep, across: Aim, up: Aim) -> None:
    front = {trial.number for trial in sweep.front}
    places = [(t.number, across.of(t) or 0.0, up.of(t) or 0.0) for t in sweep.of_state("complete")]
    axes.grid(axis="x", color=RULE, lw=0.6)
    for number, x, y in places:
        if number not in front:
            axes.plot([x], [y], "o", ms=4.2, color=BLUE, alpha=0.75, zorder=3)
    members = sorted((x, y, number) for number, x, y in places if number in front)
    if len(sweep.aims) == 2:
        axes.step([x for x, *_ in members], [y for _, y, _ in members], where="pre", color=MUTED, lw=1, zorder=2)
    for x, y, number in members:
        axes.plot([x], [y], "D", ms=6, color=ORANGE, zorder=5)
        axes.annotate(str(number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    shown_x, shown_y = [x for _, x, _ in places], [y for *_, y in places]
    for refit in sweep.refits:
        means = _means(sweep, refit)
        x_again, y_again = means[across.key], means[up.key]
        if x_again is None or y_again is None:
            continue
        shown_x.append(x_again)
        shown_y.append(y_again)
        axes.plot([x_again], [y_again], "P", ms=7, color=MUTED if refit.trial is None else GREEN, zorder=4)
        name = "card" if refit.trial is None else str(refit.trial)
        axes.annotate(name, (x_again, y_again), xytext=(5, -10), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_xlim(*limits(shown_x, 0.12))
    axes.set_ylim(*limits(shown_y, 0.12))
    axes.set_ylabel(up.title)
    _finish(axes, f"{up.title} against {across.title}", across.title)


def _finish(axes: Axes, title: str, below: str, *, grid: bool = True) -> None:
    if grid:
        axes.grid(axis="y", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)
    if below:
        axes.set_xlabel(below)
