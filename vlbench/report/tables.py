"""A comparison as tables: terminal, Markdown, CSV, LaTeX and JSON, all from one set of tables.

A ``Table`` holds texts that are ready to print, beside the value that each text stands for; the renderers know nothing
of statistics. Bold, and only bold, marks a difference that survives its correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vlbench import catalog
from vlbench.report import checkpoints, words
from vlbench.report.answer import in_words
from vlbench.report.compare import Comparison, Row, effect_of, orders, sign, subject
from vlbench.report.frame import ArmFrame, Frame, Run, title_of
from vlbench.report.methods import SE_NAMES, advice, cautions, notes, setting

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

TOLD = 4  # notes that a terminal shows; the page has all


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and what to sort it by. ``strong``: survives correction. ``tone``: a verdict word, for colour."""

    text: str
    value: float | str | None = None
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """``note``: what the column means, where its title cannot say it."""

    title: str
    numeric: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """``key``: an identifier for anchors. Every row has one cell per column; the first names the row."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


# --- the tables -------------------------------------------------------------------------------------------------------


def cost(frame: Frame, *, flops: bool = False) -> list[tuple[Column, Callable[[ArmFrame], Cell]]]:
    """What an arm costs: the columns of every table of results. Of older plans and runs those that are known.

    flops: show the column in any case.
    """
    device = device_of(run for arm in frame.arms for run in arm.runs)
    found: list[tuple[Column, Callable[[ArmFrame], Cell]]] = [
        (
            Column("Parameters", True, "trainable and fixed, of the whole model"),
            lambda arm: Cell(words.count(arm.parameters), arm.parameters),
        )
    ]
    if flops or any(arm.flops is not None for arm in frame.arms):
        note = "of one inference on the longest video and query; a multiply-add counts as two"
        found.append((Column("FLOPs", True, note), _flops))
    found.append(
        (
            Column("Training", True, "mean time of one training run"),
            lambda arm: Cell(words.duration(arm.seconds), arm.seconds),
        )
    )
    if device is not None:
        found.append((Column(f"{device} time", True, DEVICE_NOTES[device]), _device_time))
    if any(arm.peak_bytes is not None for arm in frame.arms):
        note = "the most that a training run held at once: " + MEMORY_NOTES[device or "Device"]
        found.append((Column("Peak memory", True, note), _peak))
    return found


DEVICE_NOTES = {
    "CPU": "processor time of training, the mean where there are several runs",
    "GPU": "time for which training held a GPU, divided among runs that shared it; the mean of several",
    "Device": "processor time of training on a CPU, time for which it held a GPU; the mean of several runs",
}
MEMORY_NOTES = {
    "CPU": "memory of the process, libraries and mapped features included",
    "GPU": "by tensors on the GPU",
    "Device": "memory of the process on a CPU, by tensors on a GPU",
}


def device_of(runs: Iterable[Run]) -> str | None:
    """What the runs' device time is time of: ``CPU``, ``GPU``, ``Device`` for both, None if none recorded it."""
    kinds = {run.device for run in runs if run.device_seconds is not None}
    return None if not kinds else str(kinds.pop()) if len(kinds) == 1 else "Device"


def _flops(arm: ArmFrame) -> Cell:
    return Cell(words.NOTHING if arm.flops is None else words.count(arm.flops), arm.flops)


def _device_time(arm: ArmFrame) -> Cell:
    return Cell(words.duration(arm.device_seconds), arm.device_seconds)


def _peak(arm: ArmFrame) -> Cell:
    return Cell(words.memory(arm.peak_bytes), arm.peak_bytes)


def arms_table(comparison: Comparison) -> Table:
    """What each arm changes and what it costs."""
    costs = cost(comparison.frame, flops=True)
    columns = (
        Column("Arm"),
        Column("Changed"),
        *(column for column, _ in costs),
        Column("Seeds", True),
    )
    rows = tuple(
        (
            Cell(arm.name, number),
            Cell("; ".join(arm.edits) or f"{arm.variant}, {arm.features}"),
            *(cell(arm) for _, cell in costs),
            Cell(str(len(arm.runs)), len(arm.runs)),
        )
        for number, arm in enumerate(comparison.frame.arms)
    )
    base = comparison.frame.baseline
    of = "the baseline" if comparison.frame.design is None else base.variant
    return Table("arms", f"The arms: what each changes in {of}, and its cost.", columns, rows)


def p_title(comparison: Comparison) -> str:
    """The title of a column of corrected p-values: by Holm, or by the level of a declared look."""
    return "p (Holm)" if comparison.frame.look is None else "p (look)"


def _reach_note(comparison: Comparison) -> str:
    where = "before correction" if comparison.frame.look is None else "at the level of this look"
    return f"the difference found with power 80% {where}, in points"


def metric_table(comparison: Comparison, metric: str) -> Table:
    """One primary metric: every arm's mean, its difference from the baseline, and the verdict; of a lattice, the means
    alone.
    """
    frame = comparison.frame
    if comparison.lattice:
        return means_table(comparison, metric)
    sources = list(dict.fromkeys((x.split, x.source) for x in comparison.published if x.metric == metric))
    reported = {(x.arm, x.split, x.source): x.value for x in comparison.published if x.metric == metric}
    costs = cost(frame)
    columns = (
        Column("Arm"),
        Column("Mean", True, "over seeds and queries, in points"),
        Column("Difference", True, sign(comparison)),
        Column("95% interval", True, "of the difference"),
        Column(p_title(comparison), True, f"corrected over {words.counted(len(comparison.rows), 'test')}"),
        Column("Verdict"),
        *(Column(f"Reported ({key[0]}; {key[1]})", True, "printed by a paper, not measured") for key in sources),
        Column("Could have seen", True, _reach_note(comparison)),
        Column("Seeds needed", True, "per arm, to find the margin or what was seen, whichever is larger and unseen"),
        Column("Win/tie/loss", True, "queries on which the arm with the component is above, equal, below"),
        Column("Interval of the mean", True, "95%, with the difficulty of queries, which cancels in the difference"),
        Column("Seed sd", True, "standard deviation of the run means, n - 1"),
        *(column for column, _ in costs),
    )
    rows = []
    for number, arm in enumerate(frame.arms):
        mean = comparison.means[arm.name, metric]
        published = [Cell(words.points(value), value) for value in (reported.get((arm.name, *key)) for key in sources)]
        base = arm is frame.baseline
        judged = [] if base else _judged(comparison.row(arm.name, metric))
        verdict = [*[Cell(words.NOTHING)] * 3, Cell("baseline")] if base else judged[:4]
        reach = [Cell(words.NOTHING)] * 3 if base else judged[4:]
        cells = [
            Cell(arm.name, number),
            Cell(words.points(mean.points), mean.points),
            *verdict,
            *published,
            *reach,
            Cell(words.span(mean.low, mean.high), mean.low),
            Cell(words.points(mean.sd_seeds), mean.sd_seeds),
            *(cell(arm) for _, cell in costs),
        ]
        rows.append(tuple(cells))
    caption = f"{_population(comparison, metric)} Difference: {sign(comparison)}."
    return Table(f"primary-{metric}", caption, columns, tuple(rows))


def _population(comparison: Comparison, metric: str) -> str:
    mean = comparison.means[comparison.frame.baseline.name, metric]
    return (
        f"{title_of(metric)}, {comparison.checkpoint} checkpoint, {words.counted(mean.seeds, 'seed')}, "
        f"{words.counted(mean.queries, 'query')}."
    )


def means_table(comparison: Comparison, metric: str) -> Table:
    """Every cell of a lattice: which components it has, its mean, what it costs."""
    frame = comparison.frame
    factors = frame.design.factors if frame.design else ()
    cell_of = {arm: cell for cell, arm in frame.design.cells.items()} if frame.design else {}
    costs = cost(frame)
    columns = (
        Column("Arm"),
        *(Column(factor.title) for factor in factors),
        Column("Mean", True, "over seeds and queries, in points"),
        Column("Interval of the mean", True, "95%, with the difficulty of queries, which cancels in a difference"),
        Column("Seed sd", True, "standard deviation of the run means, n - 1"),
        *(column for column, _ in costs),
    )
    rows = []
    for number, arm in enumerate(frame.arms):
        mean = comparison.means[arm.name, metric]
        present = cell_of.get(arm.name, "")
        rows.append(
            (
                Cell(arm.name, number),
                *(Cell("yes" if digit == "1" else "no", digit) for digit in present or "-" * len(factors)),
                Cell(words.points(mean.points), mean.points),
                Cell(words.span(mean.low, mean.high), mean.low),
                Cell(words.points(mean.sd_seeds), mean.sd_seeds),
                *(cell(arm) for _, cell in costs),
            )
        )
    return Table(f"primary-{metric}", f"{_population(comparison, metric)} The cells.", columns, tuple(rows))


# kind of claim -> what it is called, and what it means
KINDS = {
    "main": ("Main effect", "with the component minus without it, averaged over the settings of the others"),
    "interaction": (
        "Interaction",
        "what two components gain together beyond what each gains alone: above zero they reinforce each other, below "
        "zero they replace each other",
    ),
    "one-out": ("Last in", "what is lost when the component alone is taken out of the full model"),
    "one-in": ("First in", "what is gained when the component alone is put into the empty model"),
    "shapley": (
        "Shapley value",
        "the gain averaged over {orders} of building the model up; the values sum to the full model minus the empty",
    ),
    "total": ("All together", "the full model minus the empty one"),
    "arm": ("Arm", "the arm against the baseline"),
}


def explained(frame: Frame, kinds: Sequence[str]) -> str:
    """What kinds of claims are, one clause each."""
    return "; ".join(f"{KINDS[kind][0]}: {KINDS[kind][1].format(orders=orders(frame))}" for kind in kinds)


def effects_table(comparison: Comparison, metric: str) -> Table:
    """A lattice's effects on one metric: every kind of claim with its interval, its own correction and verdict."""
    frame = comparison.frame
    columns = (
        Column("Effect"),
        Column("Of"),
        Column("Difference", True, "in points; above zero speaks for the component, or for the two together"),
        Column("95% interval", True),
        Column(p_title(comparison), True, "corrected within the effects of one kind, over the primary metrics"),
        Column("Verdict"),
        Column("Could have seen", True, _reach_note(comparison)),
    )
    found = [row for row in (*comparison.rows, *comparison.effects) if row.metric == metric]
    rows = []
    for row in found:
        difference, interval, p, verdict, reach, *_ = _judged(row)
        kind, _ = KINDS[row.claim.kind]
        of = effect_of(frame, row.claim)
        rows.append((Cell(kind, row.name), Cell(of), difference, interval, p, verdict, reach))
    kinds = dict.fromkeys(row.claim.kind for row in found)
    said = explained(frame, list(kinds))
    return Table(f"effects-{metric}", f"{_population(comparison, metric)} {said}.", columns, tuple(rows))


def _judged(row: Row) -> list[Cell]:
    """Difference, interval, p, verdict; then what could have been seen, seeds needed, wins."""
    assert row.verdict is not None
    judged = row.verdict
    if row.contrast.constant:
        return [
            Cell(words.signed(row.points), row.points),
            *[Cell(words.NOTHING)] * 2,
            Cell("unresolved (nothing varies)", tone="unresolved"),
            *[Cell(words.NOTHING)] * 2,
            _wins(row),
        ]
    word = verdict_text(row)
    return [
        Cell(words.signed(row.points), row.points, strong=row.survives),
        Cell(words.interval(row.low, row.high), row.low, strong=row.survives),
        Cell(words.p(row.p_adjusted), row.p_adjusted),
        Cell(word, judged.word, strong=row.survives, tone=judged.word),
        Cell(words.points(judged.mde), judged.mde),
        _needed(row),
        _wins(row),
    ]


TOGETHER = {"helps": "reinforce", "hurts": "replace", "equivalent": "additive"}  # verdicts of an interaction


def verdict_text(row: Row) -> str:
    """The verdict word, with what it must not be read without."""
    assert row.verdict is not None
    scope = "" if row.contrast.about_method else ", these checkpoints"
    scope += "" if row.planned else ", exploratory"
    word = TOGETHER.get(row.verdict.word, row.verdict.word) if row.claim.kind == "interaction" else row.verdict.word
    return f"{word}{', but negligible' if row.verdict.negligible else ''}{scope}"


def _needed(row: Row) -> Cell:
    assert row.verdict is not None
    if row.verdict.word != "unresolved":
        return Cell(words.NOTHING)
    if row.verdict.seeds_needed is not None:
        return Cell(str(row.verdict.seeds_needed), row.verdict.seeds_needed)
    return Cell("two or more" if row.seeds == 1 else "more queries")


def _wins(row: Row) -> Cell:
    return Cell(f"{row.wins}/{row.ties}/{row.losses}", row.wins - row.losses)


def errors_table(comparison: Comparison) -> Table:
    """The three standard errors of every primary difference, and its effect sizes."""
    columns = (
        Column("Claim"),
        Column("Metric"),
        Column("Difference", True, sign(comparison)),
        *(Column(title, True, note) for title, note in SE_NAMES.values()),
        Column("Degrees of freedom", True, "of the standard error that the verdict uses"),
        Column("From runs", True, "share of the variance that shrinks with more seeds"),
        Column("From queries", True, "share that shrinks with more queries; what both share counts twice"),
        Column("Relative", True, "difference over the mean of the arm without the component"),
        Column("d_z", True, "mean over standard deviation of the queries' differences"),
        Column("Hedges g", True, "over run means"),
        Column("P(better run)", True, "a fresh run with the component beats one without"),
    )
    rows = tuple(
        (
            Cell(row.name),
            Cell(row.title),
            Cell(words.signed(row.points), row.points),
            *(Cell(words.points(se, 3), se) for se in row.standard_errors.values()),
            Cell(words.points(row.contrast.df, 1), row.contrast.df),
            *[
                Cell(words.NOTHING) if row.shares is None else Cell(f"{100 * row.shares[side]:.1f}%", row.shares[side])
                for side in (0, 1)
            ],
            Cell(words.NOTHING if row.relative is None else f"{words.signed(100 * row.relative, 1)}%", row.relative),
            Cell(words.signed(row.d_z), row.d_z),
            Cell(words.signed(row.hedges_g), row.hedges_g),
            Cell(words.points(row.improvement), row.improvement),
        )
        for row in comparison.rows
    )
    return Table("errors", "Where the uncertainty comes from, in points, and effect sizes.", columns, rows)


def readings(comparison: Comparison, metric: str) -> list[str]:
    """One sentence for every component of a lattice: alone against last in."""
    said = []
    for claim in comparison.claims if comparison.lattice else ():
        found = comparison.reading(claim.components[0], metric)
        if found is not None:
            name = comparison.frame.title_of_component(claim.components[0])
            said.append(
                f"{name}: {found.word} ({words.signed(found.alone)} alone, {words.signed(found.last)} as the last one "
                f"in; they differ by {words.signed(found.last - found.alone)}, standard error {words.points(found.se)})"
            )
    return said


def exploratory_table(comparison: Comparison, *, detail: bool | None = None) -> Table:
    """The metrics that were not declared: descriptive.

    detail: only those that the catalogue calls details, or only the others; None: all.
    """
    columns = (
        Column("Claim"),
        Column("Metric"),
        Column("With", True, "the component; in points"),
        Column("Without", True),
        Column("Difference", True, sign(comparison)),
        Column("95% interval", True),
        Column("p", True, "not corrected"),
        Column("q (BH)", True, "false discovery rate among the exploratory tests"),
        Column("Win/tie/loss", True),
        Column("Queries", True, "in the metric's population"),
    )
    rows = tuple(
        (
            Cell(row.name),
            Cell(row.title),
            *(Cell(words.points(side), side) for side in sides(comparison, row)),
            Cell(words.signed(row.points), row.points),
            Cell(words.interval(row.low, row.high), row.low),
            Cell(words.p(row.p), None if math.isnan(row.p) else row.p),
            Cell(words.p(row.p_adjusted), row.p_adjusted),
            _wins(row),
            Cell(str(row.queries), row.queries),
        )
        for row in comparison.exploratory
        if detail is None or detail == _is_detail(row.metric)
    )
    caption = "Exploratory: metrics that were not declared beforehand. Descriptive only, no verdict follows from them."
    return Table("exploratory-details" if detail else "exploratory", caption, columns, rows)


def sides(comparison: Comparison, row: Row) -> tuple[float, float]:
    """The two levels in points whose difference a row is: weighted means of the arms with and without the component."""
    levels = {1: 0.0, -1: 0.0}
    for arm, weight in row.claim.weights.items():
        levels[1 if weight > 0 else -1] += abs(weight) * comparison.means[arm, row.metric].points
    return levels[1], levels[-1]


def _is_detail(metric: str) -> bool:
    return metric in catalog.metrics and bool(catalog.metrics[metric].facts.get("detail", False))


def _always_last(comparison: Comparison) -> bool:
    return comparison.frame.ends_selected == comparison.frame.total_runs


def checkpoints_table(comparison: Comparison) -> Table:
    """Every primary difference by every rule for the epoch, and the levels at the optimistic one."""
    frame = comparison.frame
    known = checkpoints.protocols(frame)
    shown = sorted((comparison, *comparison.others), key=lambda one: list(known).index(one.checkpoint))
    columns = (
        Column("Claim"),
        Column("Metric"),
        Column("Checkpoint"),
        Column("Looks", True, "epochs per run whose scores on the reporting split the choice has seen"),
        Column("With", True, "the component"),
        Column("Without", True),
        Column("Difference", True, sign(comparison)),
        Column("95% interval", True),
    )
    rows = []
    for row in comparison.rows:
        for one in shown:
            same, by = one.row(row.name, row.metric), known[one.checkpoint]
            cells = [Cell(row.name), Cell(row.title), Cell(by.title), Cell(by.span, by.looks[1])]
            cells += [Cell(words.points(side), side) for side in sides(one, same)]
            cells += [Cell(words.signed(same.points), same.points), Cell(words.interval(same.low, same.high), same.low)]
            rows.append(tuple(cells))
        if comparison.optimistic:
            by, levels = known["best"], {1: 0.0, -1: 0.0}
            for arm, weight in row.claim.weights.items():
                levels[1 if weight > 0 else -1] += abs(weight) * comparison.optimistic[arm, row.metric]
            cells = [Cell(row.name), Cell(row.title), Cell(by.title), Cell(by.span, by.looks[1])]
            cells += [Cell(words.points(level), level) for level in levels.values()]
            rows.append((*cells, Cell("not judged"), Cell(words.NOTHING)))
    said = " ".join(f"{by.title[0].upper()}{by.title[1:]}: {by.label}." for by in known.values())
    caption = f"{said} The verdicts are about the {comparison.checkpoint} checkpoint; the others check it, they are no "
    caption += "further tests."
    if _always_last(comparison):
        caption += " The last epoch was the selected one in every run, so both are the same."
    if (why := checkpoints.why_fewer(frame)) is not None:
        caption += f" Without cross-fitting ({why})."
    return Table("checkpoints", caption, columns, tuple(rows))


def holes_table(comparison: Comparison) -> Table:
    """What was planned and has no result."""
    columns = (Column("Arm"), Column("Seed", True), Column("State"), Column("Cause"), Column("Fit"), Column("Score"))
    rows = tuple(
        (
            Cell(hole.arm),
            Cell(str(hole.seed), hole.seed),
            Cell(str(hole.status)),
            Cell(hole.cause or words.NOTHING),
            Cell(hole.fit),
            Cell(hole.score),
        )
        for hole in comparison.frame.holes
    )
    return Table("holes", "Planned runs without a result.", columns, rows)


def provenance_table(comparison: Comparison) -> Table:
    """The cells behind the numbers: every number of an arm comes from all of its rows."""
    device = device_of(run for arm in comparison.frame.arms for run in arm.runs)
    columns = (
        Column("Arm"),
        Column("Seed", True),
        Column("Fit"),
        Column("Score"),
        Column("Selected epoch", True),
        Column("Epochs", True),
        Column("Training", True),
        *([] if device is None else [Column(f"{device} time", True), Column("Peak memory", True)]),
        Column("Device"),
        Column("vlbench"),
        Column("Finished"),
    )
    known = device is not None
    rows = tuple(_cells(arm, number, known) for arm in comparison.frame.arms for number in range(len(arm.runs)))
    return Table("cells", "The cells behind every number.", columns, rows)


def _cells(arm: ArmFrame, number: int, costs: bool) -> tuple[Cell, ...]:
    run = arm.runs[number]
    spent = [Cell(words.duration(run.device_seconds), run.device_seconds)]
    spent += [Cell(words.memory(run.peak_bytes), run.peak_bytes)]
    made = run.made_by["fit"]
    epochs = run.records["fit"].get("epochs")
    device = made.get("gpu") or made.get("device")
    version = " ".join(str(made[key]) for key in ("vlbench", "source") if made.get(key))
    return (
        Cell(arm.name),
        Cell(str(run.seed), run.seed),
        Cell(run.fit),
        Cell(run.score),
        Cell(words.NOTHING if run.curve.selected is None else str(run.curve.selected), run.curve.selected),
        Cell(words.NOTHING if epochs is None else str(epochs), epochs),
        Cell(words.duration(run.seconds), run.seconds),
        *(spent if costs else []),
        Cell(str(device or words.NOTHING)),
        Cell(version or words.NOTHING),
        Cell(str(made.get("finished") or words.NOTHING)),
    )


# --- terminal ---------------------------------------------------------------------------------------------------------

_STYLES = {"helps": "bold green", "hurts": "bold red", "equivalent": "cyan", "unresolved": "yellow"}


def terminal(comparison: Comparison) -> RenderableType:
    """The comparison for a terminal of 80 columns or more, ending in the verdicts. Words carry the meaning, colour only
    repeats it.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    def indented(text: str) -> RenderableType:
        return Padding(Text(words.plain(text)), (0, 0, 0, 2), expand=False)

    frame = comparison.frame
    parts: list[RenderableType] = [
        Text(words.plain(f"{frame.study} · {setting(comparison)}"), style="bold"),
        rich_table(
            arms_table(comparison), ("Arm", "Changed", *(column.title for column, _ in cost(frame, flops=True)))
        ),
        Text(),
        Text(words.plain(f"Points of the {comparison.checkpoint} checkpoint. Difference: {sign(comparison)}.")),
    ]
    shown = effects_table if comparison.lattice else metric_table
    wanted = ["Arm", "Mean", "Difference", "95% interval", p_title(comparison), "Verdict"]
    if comparison.lattice:
        wanted = ["Effect", "Of", "Difference", "95% interval", p_title(comparison), "Verdict"]
    for metric in comparison.metrics:
        population = comparison.means[frame.baseline.name, metric].queries
        some = "" if population == len(frame.queries) else f" ({words.counted(population, 'query')})"
        parts += [
            Text(words.plain(f"{title_of(metric)}{some}"), style="bold"),
            rich_table(shown(comparison, metric), wanted),
        ]
        remarks = [*readings(comparison, metric), *advice(comparison, metric)]
        remarks += [
            f"reported, not measured ({x.arm}; {x.split}; {x.source}): {x.value:g}"
            for x in comparison.published
            if x.metric == metric
        ]
        parts += [indented(remark) for remark in remarks]
    for other in comparison.others:
        if any(row.points != comparison.row(row.name, row.metric).points for row in other.rows):
            title = checkpoints.TITLES[other.checkpoint]
            parts += [Text(), Text(f"As a check, the {title} checkpoint:"), _other(other)]
    parts.append(Text())
    parts += [Text(words.plain(f"missing: {hole}")) for hole in frame.holes]
    told = notes(comparison)
    parts += [Text(words.plain(f"note: {note}")) for note in told[:TOLD]]
    parts += [Text(f"note: {len(told) - TOLD} more in the report")] if len(told) > TOLD else []
    parts += [Text(words.plain(f"Take care. {caution}"), style="yellow") for caution in cautions(comparison)]
    said = [Text(words.plain(sentence)) for sentence in in_words(comparison)]
    return Group(
        *parts,
        Text(),
        Text(words.plain(frame.question), style="bold"),
        rich_table(verdicts_table(comparison), None),
        *said,
    )


def verdicts_table(comparison: Comparison) -> Table:
    """The answer: what each claim says about its component, metric by metric."""
    columns = (
        Column(""),
        Column("Metric"),
        Column("Verdict"),
        Column("Difference", True, sign(comparison)),
        Column("95% interval", True),
        Column(p_title(comparison), True),
    )
    rows = []
    for claim in comparison.claims:
        name = subject(comparison, claim)
        for row in (row for row in comparison.rows if row.claim == claim):
            difference, interval, p, verdict, *_ = _judged(row)
            rows.append((Cell(name), Cell(row.title), verdict, difference, interval, p))
            name = ""
    return Table("verdicts", comparison.frame.question, columns, tuple(rows))


def _other(comparison: Comparison) -> RenderableType:
    """One line per claim: the difference on every primary metric with its interval."""
    titles = [title_of(metric) for metric in comparison.metrics]
    rows = []
    for claim in comparison.claims:
        found = [comparison.row(claim.name, metric) for metric in comparison.metrics]
        cells = [Cell(f"{words.signed(row.points)} ({words.interval(row.low, row.high)})") for row in found]
        rows.append((Cell(claim.name), *cells))
    columns = (Column("Claim"), *(Column(title) for title in titles))
    return rich_table(Table("other", "", columns, tuple(rows)), ["Claim", *titles])


FOLDED = 20  # columns of a terminal that a text keeps before columns to its right are left out
INDENT, GAP = 2, 2


def rich_table(table: Table, wanted: Sequence[str] | None) -> RenderableType:
    """The wanted columns, or all of them without a head. A narrow terminal gets those on the left, and is told which
    are left out.
    """
    titles = [column.title for column in table.columns]
    return _Fitted(
        table, tuple(range(len(titles)) if wanted is None else map(titles.index, wanted)), wanted is not None
    )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Columns of a table by place, drawn when the width of the terminal is known."""

    table: Table
    places: tuple[int, ...]
    head: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        places = self.places
        while len(places) > 2 and INDENT + sum(self._least(place) + GAP for place in places) - GAP > options.max_width:
            places = places[:-1]
        yield Padding(self._drawn(places), (0, 0, 0, INDENT), expand=False)
        if self.head and len(places) < len(self.places):
            gone = words.listed([self.table.columns[place].title for place in self.places[len(places) :]])
            yield Padding(Text(f"a wider terminal also shows: {words.plain(gone)}", style="dim"), (0, 0, 0, INDENT))

    def _least(self, place: int) -> int:
        """Numbers need their width; a text can be folded, but not to nothing."""
        column = self.table.columns[place]
        texts = [words.plain(row[place].text) for row in self.table.rows]
        width = max(map(len, [*texts, column.title if self.head else ""]))
        return width if column.numeric else min(width, FOLDED)

    def _drawn(self, places: Sequence[int]) -> RenderableType:
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", show_header=self.head)
        for place in places:
            column = self.table.columns[place]
            side: Literal["left", "right"] = "right" if column.numeric else "left"
            drawn.add_column(column.title, justify=side, no_wrap=column.numeric, overflow="fold")
        for row in self.table.rows:
            cells = []
            for place in places:
                style = _STYLES.get(row[place].tone, "bold" if row[place].strong else "")
                cells.append(Text(words.plain(row[place].text), style=style))
            drawn.add_row(*cells)
        return drawn
