"""A stress study in words and tables: terminal, page, Markdown, CSV, JSON and figures, all of the same numbers.

What one variant keeps is a share of its own clean score; what it loses less than another is in points. CSV and JSON
hold unrounded numbers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vlbench.canon import digest
from vlbench.errors import PlanError, VlbenchError
from vlbench.report import figures, files, stress_figures, words
from vlbench.report.answer import unreached
from vlbench.report.compare import ALPHA
from vlbench.report.entries import keep, kept, stamp
from vlbench.report.formats import md, md_table
from vlbench.report.frame import title_of
from vlbench.report.methods import CLAIM_SEEDS
from vlbench.report.page import Entry, Line, Section, render
from vlbench.report.stress import OVERALL, Gap, Judged, Stress, judge, read
from vlbench.report.stress_figures import label
from vlbench.report.tables import DEVICE_NOTES, MEMORY_NOTES, Cell, Column, Table, rich_table
from vlbench.runs.store import Store
from vlbench.stats.design import PHRASES

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1  # of results.json, raised when a key changes its meaning


# --- words ------------------------------------------------------------------------------------------------------------


def setting(stress: Stress) -> str:
    """``planted-quick · report: test · 3 seeds · 3 draws · 300 queries · severities 1 (a1b2c3d4)``."""
    table = stress.severities
    parts = [
        stress.dataset,
        stress.split,
        words.counted(len(stress.seeds), "seed"),
        words.counted(stress.draws, "draw"),
        words.counted(len(stress.queries), "query"),
        f"severities {table['version']} ({str(table['digest'])[:8]})",
    ]
    return " · ".join(parts)


def answers(judged: Judged) -> list[dict[str, Any]]:
    """What every variant keeps, and then how it compares with the first: subject, what it is, and a line per metric."""
    stress = judged.stress
    found = []
    for subject in stress.subjects:
        keys = [OVERALL] if stress.families else [o.key for o in stress.stressors if o.role == "family"]
        lines = [
            line
            for metric in stress.primary
            for key in keys
            if not stress.untouched(key, metric)
            if (line := _kept_line(judged, subject.name, key, metric)) is not None
        ]
        if lines:
            said = "; ".join(subject.edits) or f"{subject.title or subject.variant}, {subject.features}"
            found.append({"subject": subject.name, "changed": said, "lines": lines})
    base = stress.arms[0]
    for arm in stress.arms[1:]:
        gaps = headline_gaps(judged, arm)
        if gaps:
            lines = [_gap_line(gap) for gap in gaps]
            of = "over all families" if stress.families else "family by family"
            found.append({"subject": f"{arm} against {base}", "changed": of, "lines": lines})
    return found


def said_first(judged: Judged) -> list[str]:
    """What noise cannot change, for reasons that need no test: arms that it does not reach, and metrics that are read
    before the place where it sits.
    """
    found = unreached(judged.stress.notes)
    for metric in judged.stress.primary:
        keys = [label(one.key) for one in judged.stress.stressors if judged.stress.untouched(one.key, metric)]
        if keys:
            found.append(
                f"{title_of(metric)} is the same under {words.listed(keys)}, because it is read before the place where "
                f"{'it acts' if len(keys) == 1 else 'they act'}."
            )
    return found


def _kept_line(judged: Judged, arm: str, key: str, metric: str) -> Line | None:
    area = judged.area(arm, key, metric)
    if area is None or not math.isfinite(area.area):
        return None
    evidence = (
        f"95% interval {words.span(area.low, area.high, 3)}",
        f"clean {words.points(100 * area.clean)}",
        f"corrupted {words.points(100 * area.mean)}",
        f"{words.points(100 * area.retention, 1)}% left at the last level",
    )
    title = title_of(metric) if key == OVERALL else f"{title_of(metric)}, {label(key)}"
    return Line(title, "", "keeps", words.points(area.area, 3), evidence)


def headline_gaps(judged: Judged, arm: str) -> list[Gap]:
    """What a variant is judged by: all families at once where there are any that all variants share, else each."""
    wanted = [OVERALL] if judged.stress.families else [one.key for one in judged.stress.stressors]
    return [gap for gap in judged.gaps if gap.arm == arm and gap.key in wanted]


def _gap_line(gap: Gap) -> Line:
    title = title_of(gap.metric) if gap.key == OVERALL else f"{title_of(gap.metric)}, {label(gap.key)}"
    beside = f"corrupted score {words.signed(100 * gap.corrupted.estimate)}"
    if gap.contrast.constant:
        return Line(title, "unresolved", gap.statement, words.signed(gap.points), ("nothing varies",))
    evidence = [f"95% interval {words.interval(*gap.interval)}", words.p_equals(gap.p_adjusted, "adjusted p"), beside]
    if gap.verdict.word == "unresolved":
        evidence.append(f"could have seen {words.points(gap.verdict.mde)}")
    return Line(title, _tone(gap), gap.statement, words.signed(gap.points), tuple(evidence))


def _tone(gap: Gap) -> str:
    """The colour of a statement: only "more robust" and "less robust" speak for or against a variant."""
    if gap.statement.startswith("more robust"):
        return "helps"
    if gap.statement.startswith("less robust"):
        return "hurts"
    return "equivalent" if gap.verdict.word == "equivalent" else "unresolved"


def sentences(judged: Judged) -> list[str]:
    """The answer in whole sentences, a variant and metric each."""
    stress, base = judged.stress, judged.stress.arms[0]
    found = [*said_first(judged), *(one.sentence for one in judged.ignored)]
    found += [
        f"{answer['subject']} keeps {line.difference} of its {line.metric} ({'; '.join(line.evidence)})."
        for answer in answers(judged)
        for line in answer["lines"]
        if line.verdict == "keeps"
    ]
    found += [
        f"{arm} against {base} on {_gap_line(gap).metric}: {gap_sentence(gap)}."
        for arm in stress.arms[1:]
        for gap in headline_gaps(judged, arm)
    ]
    return [*found, *order_sentences(judged)]


def gap_sentence(gap: Gap) -> str:
    """``more robust (loses 1.20 points less, ...)``."""
    line = _gap_line(gap)
    less = "less" if gap.points >= 0 else "more"
    return f"{gap.statement} (loses {words.points(abs(gap.points))} points {less}, {', '.join(line.evidence)})"


def order_sentences(judged: Judged) -> list[str]:
    """Whether the order of variants changes, over all families."""
    found = []
    for (key, metric), order in judged.orders.items():
        if key != OVERALL:
            continue
        same = order.clean == order.corrupt
        seen = "the same order" if same else f"another order ({', '.join(order.corrupt)})"
        found.append(
            f"Order on {title_of(metric)}: {', '.join(order.clean)} clean, {seen} corrupted; resampling runs and "
            f"queries, the order changes with probability {words.points(order.changes)}, and the best one stays the "
            f"best with probability {words.points(order.best_stays)}."
        )
    return found


def cautions(judged: Judged) -> list[str]:
    """What has to be read before any number."""
    stress = judged.stress
    found = []
    if len(stress.seeds) == 1:
        found.append("One seed: every number is about these weights, and no claim about a variant can be made.")
    elif len(stress.seeds) < CLAIM_SEEDS:
        found.append(
            f"{len(stress.seeds)} seeds: enough to screen, not for a claim; {CLAIM_SEEDS} are the minimum for one."
        )
    if stress.holes:
        found.append(f"{words.counted(len(stress.holes), 'level')} of stressors missing; see Missing.")
    return found


def methods(judged: Judged) -> list[tuple[str, str]]:
    """(term, explanation) pairs."""
    stress = judged.stress
    families = words.listed([label(one.key) for one in stress.families])
    anchors = words.listed([label(one.key) for one in stress.stressors if one.role == "anchor"])
    together = "queries of one source video vary together"
    if stress.clusters is None:
        together = "each query varies on its own"
    base, severities = stress.arms[0], stress.severities
    found = [
        (
            "Noise",
            "Raw features are spoiled encoder by encoder before they are normalised; the channels of relative time, "
            "padding and labels are left alone. The base field hangs on family, video or query and draw alone: every "
            "variant, seed and level meets the same noise, and each level contains the one before.",
        ),
        ("Severities", f"version {severities['version']}, digest {severities['digest']}."),
        (
            "Area",
            "trapezoid under the score over levels, clean being level 0, as a share of the clean score; the mean over "
            f"{families}.",
        ),
        (
            "Anchors",
            f"{anchors}: printed, and neither averaged nor tested, because nothing is left there that a better variant "
            "could find.",
        ),
        ("Over chance", "the area after what the queries of other videos give at level 5 is taken off both sides."),
        (
            "mCE",
            f"corruption error against {base}, error being 1 minus the score; rel. mCE: of the errors added. For "
            "comparability only: where the base loses little they explode.",
        ),
        (
            "Interval",
            f"95%, Student's t, not corrected; {together}. Draws are averaged inside a query first. Of a share by the "
            "delta method.",
        ),
    ]
    if not judged.gaps:
        return found
    meant = "; ".join(f"“{PHRASES[name]}”" for name in dict.fromkeys(gap.contrast.estimand for gap in judged.gaps))
    return [
        *found,
        (
            "Loses less",
            f"(corrupted {words.MINUS} clean) minus the same of {base}, areas over levels, in points: above 0 "
            f"a variant loses less. A run is seen clean and corrupted: its loss is formed inside it. Claimed: {meant}.",
        ),
        (
            "Statement",
            "more robust: loses less after correction, and its corrupted score is not lower. Otherwise it loses less "
            f"because it had less to lose. Equivalent: the 90% interval lies inside ±{stress.margin:g} points. "
            f"Unresolved: neither. Level {ALPHA:g}: the headline is corrected by Holm over variants and metrics, "
            "families by Holm over families, for each variant and metric.",
        ),
        (
            "Order",
            "runs of each variant, and queries shared by all, are resampled 2000 times, clean and corrupted alike.",
        ),
    ]


# --- tables -----------------------------------------------------------------------------------------------------------


def overall_table(judged: Judged, metric: str) -> Table | None:
    """Every variant over all families."""
    columns = (
        Column("Variant"),
        Column("Clean", True, "points"),
        Column("Corrupted", True, "mean over families, levels, draws and runs, in points"),
        Column("Area", True, "share of the clean score under the severity curve, mean over families"),
        Column("95% interval", True, "of the area"),
        Column("Retention", True, "share of the clean score at the last level, mean over families"),
        Column("Over chance", True, "area after taking off what the queries of other videos give"),
        Column("mCE", True, f"against {judged.stress.arms[0]}, for comparability"),
        Column("Rel. mCE", True, "of the errors that corruption adds"),
    )
    rows = []
    for place, arm in enumerate(judged.stress.arms):
        found = judged.area(arm, OVERALL, metric)
        if found is None:
            return None
        rows.append(
            (
                Cell(arm, place),
                Cell(words.points(100 * found.clean), 100 * found.clean),
                Cell(words.points(100 * found.mean), 100 * found.mean),
                Cell(words.points(found.area, 3), found.area),
                Cell(words.span(found.low, found.high, 3), found.low),
                *(Cell(words.points(value, 3), value) for value in (found.retention, found.corrected, found.ce)),
                Cell(words.points(found.relative_ce, 3), found.relative_ce),
            )
        )
    return Table(f"overall-{metric}", f"{title_of(metric)}: what is kept over all families.", columns, tuple(rows))


def families_table(judged: Judged, metric: str) -> Table:
    """Every stressor and variant."""
    columns = (
        Column("Stressor"),
        Column("Variant"),
        Column("Role"),
        Column("Levels"),
        Column("Clean", True),
        Column("Last level", True, "points"),
        Column("Change", True, "last level minus clean, in points"),
        Column("95% interval", True, "of the change"),
        Column("Area", True, "share of the clean score under the curve; nothing where there is one level alone"),
        Column("Interval of the area", True),
        Column("Retention", True, "share of the clean score at the last level"),
        Column("Over chance", True, "area after taking off what the queries of other videos give"),
        Column("CE", True, f"against {judged.stress.arms[0]}, for comparability"),
        Column("Rel. CE", True),
    )
    rows = []
    for place, one in enumerate(judged.stress.stressors):
        for arm in judged.stress.arms:
            area = judged.area(arm, one.key, metric)
            if area is None:
                continue
            last = [p for p in judged.points if (p.arm, p.key, p.metric) == (arm, one.key, metric)][-1]
            graded = len(one.levels) > 1
            amounts = judged.stress.amounts[one.key]
            levels = ", ".join(f"{amounts[level]:g}" if amounts[level] != "all" else "all" for level in one.levels)
            rows.append(
                (
                    Cell(label(one.key), place),
                    Cell(arm),
                    Cell(one.role),
                    Cell(levels if graded else f"level {one.levels[0]}: {levels}"),
                    Cell(words.points(100 * area.clean), 100 * area.clean),
                    Cell(words.points(100 * last.mean), 100 * last.mean),
                    Cell(words.signed(-100 * last.lost), -100 * last.lost),
                    Cell(words.interval(-100 * last.high, -100 * last.low), -100 * last.high),
                    Cell(words.points(area.area if graded else None, 3), area.area if graded else None),
                    Cell(words.span(area.low, area.high, 3) if graded else words.NOTHING, area.low if graded else None),
                    *(
                        Cell(words.points(v, 3), v)
                        for v in (area.retention, area.corrected if graded else None, area.ce)
                    ),
                    Cell(words.points(area.relative_ce, 3), area.relative_ce),
                )
            )
    return Table(f"families-{metric}", f"{title_of(metric)}: every stressor and variant.", columns, tuple(rows))


def gaps_table(judged: Judged) -> Table | None:
    """Every variant against the first one: statement by statement."""
    if not judged.gaps:
        return None
    base = judged.stress.arms[0]
    columns = (
        Column("Variant"),
        Column("Metric"),
        Column("Stressor"),
        Column("Loses less by", True, f"points, than {base}"),
        Column("95% interval", True),
        Column("p (Holm)", True, "the headline over variants and metrics; families over families"),
        Column("Statement"),
        Column("Corrupted score", True, f"minus that of {base}, in points"),
        Column("Its interval", True, "95%"),
        Column("Could have seen", True, "the difference found with power 80% before correction, in points"),
        Column("Log retention", True, "log ratio of what is left at the last level, over queries, weights fixed"),
        Column("Its se", True, "by the delta method; by the jackknife"),
    )
    rows = []
    for gap in judged.gaps:
        varies = not gap.contrast.constant
        kept = gap.log_retention
        low, high = (100 * end for end in gap.corrupted.ci())
        rows.append(
            (
                Cell(gap.arm),
                Cell(title_of(gap.metric)),
                Cell(label(gap.key)),
                Cell(words.signed(gap.points), gap.points, strong=gap.survives),
                Cell(words.interval(*gap.interval) if varies else words.NOTHING, gap.interval[0], strong=gap.survives),
                Cell(words.p(gap.p_adjusted), gap.p_adjusted if varies else None),
                Cell(gap.statement, gap.statement, strong=gap.survives, tone=_tone(gap)),
                Cell(words.signed(100 * gap.corrupted.estimate), 100 * gap.corrupted.estimate),
                Cell(words.interval(low, high), low),
                Cell(words.points(gap.verdict.mde) if varies else words.NOTHING, gap.verdict.mde),
                Cell(words.signed(kept.estimate if kept else None, 3), kept.estimate if kept else None),
                Cell(
                    f"{words.points(kept.se_delta, 3)}; {words.points(kept.se_jackknife, 3)}"
                    if kept
                    else words.NOTHING,
                    kept.se_delta if kept else None,
                ),
            )
        )
    caption = f"How much less a variant loses than {base}. Bold: differs from zero after correction."
    return Table("differences", caption, columns, tuple(rows))


def orders_table(judged: Judged) -> Table | None:
    """Whether the order of variants changes, family by family."""
    if not judged.orders:
        return None
    columns = (
        Column("Stressor"),
        Column("Metric"),
        Column("Clean"),
        Column("Corrupted"),
        Column("P(order changes)", True, "over resampled runs and queries"),
        Column("P(best stays)", True, "the best variant is the same clean and corrupted"),
        Column("P(clean again)", True, "the clean order comes again"),
        Column("P(corrupted again)", True, "the corrupted order comes again"),
    )
    rows = tuple(
        (
            Cell(label(key)),
            Cell(title_of(metric)),
            Cell(", ".join(order.clean)),
            Cell(", ".join(order.corrupt)),
            *(
                Cell(words.points(value), value)
                for value in (order.changes, order.best_stays, order.clean_again, order.corrupt_again)
            ),
        )
        for (key, metric), order in judged.orders.items()
    )
    return Table("orders", "The order of variants, best first.", columns, rows)


def handed_table(judged: Judged) -> Table | None:
    """How much of the handed values' order head noise leaves; None where no head was spoiled."""
    kept = judged.stress.kept
    if not kept:
        return None
    columns = (
        Column("Stressor"),
        Column("Variant"),
        Column("Level", True),
        Column("Spearman", True, "of handed and clean values, mean over queries, draws and runs"),
    )
    rows = tuple(
        (Cell(label(key)), Cell(arm), Cell(str(level), level), Cell(words.points(value, 3), value))
        for (arm, key, level), value in kept.items()
    )
    return Table("handed", "What is left of the order that one head hands to the other.", columns, rows)


def cells_table(judged: Judged) -> Table:
    """The fits behind the numbers, and what they cost."""
    costs = _costs(judged.stress)
    columns = (
        Column("Variant"),
        Column("Seed", True),
        Column("Fit"),
        Column("Clean score"),
        Column("Parameters", True),
        Column("FLOPs", True, "of one inference on the longest video and query; a multiply-add counts as two"),
        *(column for column, _ in costs),
    )
    rows = tuple(
        (
            Cell(subject.name),
            Cell(str(one["seed"]), int(one["seed"])),
            Cell(str(one["fit"])),
            Cell(str(one["score"])),
            Cell(words.count(subject.parameters), subject.parameters),
            Cell(words.NOTHING if subject.flops is None else words.count(subject.flops), subject.flops),
            *(cell(judged.stress.made_by[str(one["fit"])]) for _, cell in costs),
        )
        for subject in judged.stress.subjects
        for one in judged.stress.cells[subject.name]
    )
    return Table("fits", "The fits that were scored, clean and corrupted.", columns, rows)


def _costs(stress: Stress) -> list[tuple[Column, Callable[[Mapping[str, Any]], Cell]]]:
    """What training a fit took, where its provenance says so."""
    known = [made for made in stress.made_by.values() if "device_seconds" in made]
    if not known:
        return []
    kinds = {"GPU" if str(made["device"]).startswith("cuda") else "CPU" for made in known}
    device = kinds.pop() if len(kinds) == 1 else "Device"
    return [
        (Column("Training", True), lambda made: Cell(words.duration(made.get("seconds")), made.get("seconds"))),
        (
            Column(f"{device} time", True, DEVICE_NOTES[device]),
            lambda made: Cell(words.duration(made.get("device_seconds")), made.get("device_seconds")),
        ),
        (
            Column("Peak memory", True, MEMORY_NOTES[device]),
            lambda made: Cell(words.memory(made.get("peak_bytes")), made.get("peak_bytes")),
        ),
    ]


# --- the page ---------------------------------------------------------------------------------------------------------


def sections(judged: Judged, plots: Sequence[figures.Plot], beside: Sequence[str]) -> list[Section]:
    """The parts of the page that have something to say."""
    stress = judged.stress
    drawn = {plot.name: plot for plot in plots}

    def figure(anchor: str, title: str, chosen: Sequence[figures.Plot], made: Sequence[Table] = ()) -> Section | None:
        panels = [figures.inline(panel) for plot in chosen for panel in plot.panels]
        if not panels:
            return None
        context = {"panels": panels, "caption": chosen[0].caption, "remarks": [], "tables": list(made)}
        return Section(anchor, title, "figure.html.j2", context)

    def tables(anchor: str, title: str, made: Sequence[Table], remarks: Sequence[str] = ()) -> Section | None:
        if not made:
            return None
        below = [*([] for _ in made[1:]), list(remarks)]
        context = {"tables": list(made), "titles": [], "lead": "", "remarks": below, "folded": None}
        return Section(anchor, title, "tables.html.j2", context)

    overall = [table for metric in stress.primary if (table := overall_table(judged, metric)) is not None]
    gaps, orders, handed = gaps_table(judged), orders_table(judged), handed_table(judged)
    found: list[Section | None] = [
        tables("overall", "What is kept", overall),
        figure(
            "differences",
            "Who loses less",
            [drawn["differences"]] if "differences" in drawn else [],
            [gaps] if gaps else [],
        ),
        *(
            figure(f"curves-{metric}", f"{title_of(metric)} by level",
                   [plot for plot in plots if plot.name.startswith(f"curves-{metric}")
                    and plot.rows and plot.rows[0]["metric"] == metric])
            for metric in stress.primary
        ),
        figure("heat-map", "Families and variants", [drawn["heat-map"]] if "heat-map" in drawn else []),
        tables("families", "Every stressor", [families_table(judged, metric) for metric in stress.primary]),
        tables("order", "Does the order change?", [orders] if orders else [], order_sentences(judged)),
        tables("handed", "What is handed over", [handed] if handed else []),
        Section("methods", "How it was measured", "methods.html.j2", {"entries": methods(judged)}),
        Section("notes", "Notes", "notes.html.j2", {"notes": list(stress.notes), "details": []})
        if stress.notes
        else None,
        Section("missing", "Missing", "notes.html.j2", {"notes": list(stress.holes), "details": []})
        if stress.holes
        else None,
        tables("fits", "Fits", [cells_table(judged)], [f"Beside this page: {', '.join(beside)}."] if beside else []),
    ]  # fmt: skip
    return [section for section in found if section is not None]


def to_html(judged: Judged, plots: Sequence[figures.Plot], beside: Sequence[str] = (), *, index: bool = True) -> str:
    """The page of one stress study."""
    stress = judged.stress
    return render(
        "stress.html.j2",
        study=stress.study,
        question=stress.question,
        setting=setting(stress),
        said=said_first(judged),
        ignored=[one.sentence for one in judged.ignored],
        answers=answers(judged),
        cautions=cautions(judged),
        sections=sections(judged, plots, beside),
        rebuild=f"{stress.command} --collect",
        index=index,
    )


def to_markdown(judged: Judged) -> str:
    """The whole report, plain enough to read unrendered."""
    stress = judged.stress

    def listing(lines: Sequence[str]) -> list[str]:
        return ["\n".join(f"- {md(line)}" for line in lines)] if lines else []

    parts = [f"# {md(stress.question)}", f"Stress study `{stress.study}`. {md(setting(stress))}."]
    parts += listing(sentences(judged))
    parts += [f"> {md(caution)}" for caution in cautions(judged)]
    for metric in stress.primary:
        parts.append(f"## {md(title_of(metric))}")
        parts += [md_table(table) for table in [overall_table(judged, metric)] if table is not None]
        parts.append(md_table(families_table(judged, metric)))
    for title, table in (
        ("Who loses less", gaps_table(judged)),
        ("Does the order change?", orders_table(judged)),
        ("What is handed over", handed_table(judged)),
    ):
        parts += [f"## {title}", md_table(table)] if table is not None else []
    parts += ["## How it was measured", *listing([f"{a}. {b}" for a, b in methods(judged)])]
    parts += ["## Notes", *listing(stress.notes)] if stress.notes else []
    parts += ["## Missing", *listing(stress.holes)] if stress.holes else []
    parts += ["## Fits", md_table(cells_table(judged))]
    return "\n\n".join(parts) + "\n"


def to_csv(judged: Judged) -> str:
    """One line per variant, stressor, level and metric, primary or not: unrounded points."""
    stress = judged.stress
    known = {(p.arm, p.key, p.level, p.metric): p for p in judged.points}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["variant", "stressor", "role", "level", "amount", "metric", "points", "lost", "low", "high", "runs", "queries"]
    )
    for metric in stress.metrics:
        size = [len(stress.seeds), int(stress.inside(metric).sum())]
        if not size[1]:
            continue
        for arm in stress.arms:
            mean = 100 * float(stress.scores(metric, arm).mean())
            writer.writerow([arm, "", "clean", 0, "", metric, mean, 0.0, "", "", *size])
            for one in stress.stressors:
                for level in one.levels if stress.has(arm, one.key) else ():
                    mean = 100 * float(stress.scores(metric, arm, one.key, level).mean())
                    lost = 100 * float(stress.scores(metric, arm).mean()) - mean
                    point = known.get((arm, one.key, level, metric))
                    ends = ["", ""] if point is None else [100 * point.low, 100 * point.high]
                    amount = stress.amounts[one.key][level]
                    writer.writerow([arm, one.key, one.role, level, amount, metric, mean, lost, *ends, *size])
    return stream.getvalue()


def as_json(judged: Judged) -> dict[str, Any]:
    """What the page says, with unrounded numbers: scores in points, shares as fractions."""
    stress = judged.stress
    return {
        "format": FORMAT,
        "study": stress.study,
        "question": stress.question,
        "dataset": stress.dataset,
        "split": stress.split,
        "variants": list(stress.arms),
        "seeds": list(stress.seeds),
        "draws": stress.draws,
        "severities": dict(stress.severities),
        "families": [one.key for one in stress.families],
        "stressors": [
            {"key": one.key, "role": one.role, "amounts": {str(k): v for k, v in stress.amounts[one.key].items()}}
            for one in stress.stressors
        ],
        "ignored": [{"variant": one.arm, "metric": one.metric, "entirely": one.all_of_it} for one in judged.ignored],
        "areas": [
            {
                "variant": a.arm,
                "stressor": a.key,
                "metric": a.metric,
                "clean": 100 * a.clean,
                "corrupted": 100 * a.mean,
                **{
                    name: _finite(value)
                    for name, value in (
                        ("area", a.area), ("low", a.low), ("high", a.high), ("retention", a.retention),
                        ("retention_low", a.retention_low), ("retention_high", a.retention_high),
                        ("over_chance", a.corrected), ("ce", a.ce), ("relative_ce", a.relative_ce),
                    )
                },
            }
            for a in judged.areas
        ],
        "differences": [
            {
                "variant": gap.arm,
                "against": stress.arms[0],
                "stressor": gap.key,
                "metric": gap.metric,
                "loses_less": gap.points,
                "low": gap.interval[0],
                "high": gap.interval[1],
                "p": _finite(gap.contrast.p),
                "p_adjusted": _finite(gap.p_adjusted),
                "estimand": gap.contrast.estimand,
                "corrupted": 100 * gap.corrupted.estimate,
                "verdict": gap.verdict.word,
                "statement": gap.statement,
                "log_retention": None
                if gap.log_retention is None
                else {
                    "estimate": gap.log_retention.estimate,
                    "se_delta": gap.log_retention.se_delta,
                    "se_jackknife": gap.log_retention.se_jackknife,
                },
            }
            for gap in judged.gaps
        ],
        "orders": [
            {
                "stressor": key,
                "metric": metric,
                "clean": list(order.clean),
                "corrupted": list(order.corrupt),
                "changes": order.changes,
                "best_stays": order.best_stays,
                "clean_again": order.clean_again,
                "corrupted_again": order.corrupt_again,
            }
            for (key, metric), order in judged.orders.items()
        ],
        "handed": [
            {"variant": arm, "stressor": key, "level": level, "spearman": value}
            for (arm, key, level), value in stress.kept.items()
        ],
        "answers": sentences(judged),
        "cautions": cautions(judged),
        "notes": list(stress.notes),
        "missing": list(stress.holes),
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def terminal(judged: Judged) -> RenderableType:
    """For a terminal of 80 columns or more, ending in the answer."""
    from rich.console import Group
    from rich.text import Text

    stress = judged.stress
    parts: list[RenderableType] = [Text(words.plain(f"{stress.study} · {setting(stress)}"), style="bold")]
    for metric in stress.primary:
        shown = families_table(judged, metric)
        columns = ["Stressor", "Variant", "Clean", "Last level", "Change", "Area", "Retention"]
        parts += [Text(title_of(metric), style="bold"), rich_table(shown, columns)]
        if (table := overall_table(judged, metric)) is not None:
            wanted = ["Variant", "Clean", "Corrupted", "Area", "95% interval", "Retention"]
            parts.append(rich_table(table, wanted))
    if (table := gaps_table(judged)) is not None:
        wanted = ["Variant", "Metric", "Stressor", "Loses less by", "95% interval", "p (Holm)", "Statement"]
        parts += [Text(), rich_table(table, wanted)]
    parts.append(Text())
    parts += [Text(words.plain(f"missing: {hole}")) for hole in stress.holes]
    parts += [Text(words.plain(f"note: {note}")) for note in stress.notes]
    parts += [Text(words.plain(f"Take care. {caution}"), style="yellow") for caution in cautions(judged)]
    parts += [Text(), Text(words.plain(stress.question), style="bold")]
    parts += [Text(words.plain(sentence)) for sentence in sentences(judged)]
    return Group(*parts)


def entries(store: Store, out: Path) -> list[Entry]:
    """The lines of all stress studies on the index page, linked where a page was written."""
    found = []
    for study in store.studies("stress"):
        href = f"{quote(study)}/index.html" if (out / study / "index.html").exists() else ""
        stamped = stamp(store, study, allow_missing=True)
        if (known := kept(store, study, stamped)) is not None:
            found.append(replace(known, href=href))
            continue
        try:
            judged = judge(read(store, study, allow_missing=True))
        except VlbenchError as problem:
            found.append(Entry(study=study, href=href, problem=str(problem)))
            continue
        entry = Entry(
            study=study,
            question=judged.stress.question,
            setting=setting(judged.stress),
            href=href,
            answers=tuple((str(answer["subject"]), tuple(answer["lines"])) for answer in answers(judged)),
            cautions=(*(one.sentence for one in judged.ignored), *cautions(judged)),
        )
        keep(store, study, stamped, entry)
        found.append(entry)
    return found


# --- on disk ----------------------------------------------------------------------------------------------------------

FORMATS = ("all", "html", "md", "csv", "json")


def write(store: Store, study: str, out: Path, *, allow_missing: bool = False, format: str = "all",
          index: bool = True) -> list[Path]:  # fmt: skip
    """The report of one stress study under ``out/<study>/``.

    Returns: the files, in the order written; ``manifest.json`` is the last.
    Raises: PlanError for missing scores or a format it does not have, StoreError if a file cannot be written.
    """
    if format not in FORMATS:
        raise PlanError(f"a stress study has no {format} form", where=study, hint=f"known: {', '.join(FORMATS)}")
    return write_judged(store, judge(read(store, study, allow_missing=allow_missing)), out, format=format, index=index)


def write_judged(store: Store, judged: Judged, out: Path, *, format: str = "all", index: bool = True) -> list[Path]:
    """The same for a study that was judged already."""
    study, folder = judged.stress.study, out / judged.stress.study
    written: list[Path] = []

    def save(name: str, content: bytes) -> None:
        files.save(folder / name, content)
        written.append(folder / name)

    texts = {
        "md": ("report.md", to_markdown),
        "csv": ("scores.csv", to_csv),
        "json": ("results.json", lambda found: files.json_text(as_json(found))),
    }
    for kind, (name, make) in texts.items():
        if format in ("all", kind):
            save(name, make(judged).encode())
    plots = stress_figures.plots(judged) if format in ("all", "html") else []
    for plot in plots if format == "all" else ():
        save(f"figures/{plot.name}.svg", figures.to_svg(plot).encode())
        save(f"figures/{plot.name}.png", figures.to_png(plot))
        save(f"figures/{plot.name}.csv", figures.to_csv(plot).encode())
    if format in ("all", "html"):
        beside = [path.relative_to(folder).as_posix() for path in written]
        save("index.html", to_html(judged, plots, beside, index=index).encode())
    plan = store.load_plan(study)
    content = {
        "format": FORMAT,
        "kind": "stress",
        "study": study,
        "plan": digest(plan),
        "severities": dict(judged.stress.severities),
        "seeds": list(judged.stress.seeds),
        "cells": {name: [_recorded(store, cell) for cell in cells] for name, cells in judged.stress.cells.items()},
        "spoiled": [_recorded(store, cell) for cell in plan["spoiled"]],
        "missing": list(judged.stress.holes),
        "files": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in written
        },
    }
    save("manifest.json", files.json_text(content).encode())
    return written


def _recorded(store: Store, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as it was planned, with the digest of its score's record, None where there is none."""
    record = store.record(str(cell["score"]))
    return {**cell, "record": None if record is None else digest(record)}
