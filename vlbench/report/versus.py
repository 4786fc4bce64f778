"""Methods against a baseline in words and tables: terminal, Markdown, CSV and JSON, and a row per query.

A difference is always method minus baseline, so that above zero the method is better. All numbers are points (100 x the
scores); CSV, JSON and the rows per query hold them unrounded, the rest rounds when it prints.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlbench import catalog
from vlbench.errors import StoreError
from vlbench.files import replacing
from vlbench.metrics.anatomy import LOOSE, OF_MOMENTS, OF_WINDOWS, TIGHT
from vlbench.metrics.calibration import Reliability
from vlbench.report import files, words
from vlbench.report.compare import facts
from vlbench.report.methods import CLAIM_SEEDS, SE_NAMES
from vlbench.report.oddities import Group as Oddities
from vlbench.report.tables import Cell, Column, Table, rich_table
from vlbench.stats.design import PHRASES
from vlbench.studies.versus import ALPHA, LEVEL, MOVED, Comparison, Gap, Method, Moved, Part, Seen, moved

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1  # of compare.json, raised when a key changes its meaning
TOLD = 4  # kinds of oddity that a terminal shows
WORDS = {"helps": "better", "hurts": "worse", "equivalent": "equivalent", "unresolved": "unresolved"}
MINUS_BASELINE = "method minus baseline, in points"
DEFINITIONS = (
    f"With n annotated moments, found: one of the first n windows has an IoU of {TIGHT:g} or more with the moment; "
    f"mis-ranked: such a window is listed, but further down; boundary-only: none is listed, but one of the first n has "
    f"{LOOSE:g} or more; missed: the rest. Of the windows that count, hit: {TIGHT:g} or more with a moment that no "
    f"better ranked window has; duplicate: with one that is taken; loose: {LOOSE:g} or more; elsewhere: the rest. "
    "Shares are of all annotated moments and of all windows that count."
)


# --- words ------------------------------------------------------------------------------------------------------------


def setting(comparison: Comparison) -> str:
    """``5 methods · 1550 queries from 474 source videos · highlight_val_release.jsonl · compatible mode``."""
    versus = comparison.versus
    queries = words.counted(len(versus.queries), "query")
    if versus.clusters is not None:
        noun = "source video" if versus.cluster == "source" else "video"
        queries += f" from {words.counted(len(set(versus.clusters)), noun)}"
    methods = words.counted(len(versus.methods), "method")
    return " · ".join([methods, queries, versus.annotations.name, f"{versus.mode} mode"])


def title_of(metric: str) -> str:
    """The metric's short title."""
    return str(catalog.metrics[metric].facts["title"])


def word_of(row: Gap) -> str:
    """What a primary row says about the method: ``better``, ``worse``, ``equivalent`` or ``unresolved``."""
    assert row.verdict is not None
    return WORDS[row.verdict.word]


def only_checkpoints(comparison: Comparison) -> bool:
    """Whether nothing that is said here is about a method."""
    return not any(row.contrast.about_method for row in comparison.rows)


def verdict_text(comparison: Comparison, row: Gap) -> str:
    """The word, with what it must not be read without; what holds for all rows is said once for all."""
    assert row.verdict is not None
    if row.contrast.constant:
        return "unresolved (nothing varies)"
    scope = "" if row.contrast.about_method or only_checkpoints(comparison) else ", these checkpoints"
    return f"{word_of(row)}{', but negligible' if row.verdict.negligible else ''}{scope}"


def answers(comparison: Comparison) -> dict[str, str]:
    """Method -> one sentence about it and the baseline."""
    return {method.name: _answer(comparison, method) for method in comparison.versus.others}


def _answer(comparison: Comparison, method: Method) -> str:
    base = comparison.versus.baseline.name
    rows = [row for row in comparison.rows if row.method == method.name]
    if not rows:
        return f"{method.name}: nothing of what {base} answers, so nothing can be said."
    by_word: dict[str, list[Gap]] = {}
    for row in rows:
        by_word.setdefault(_claim(comparison, row), []).append(row)
    parts = [f"{claim} {words.listed([_evidence(row) for row in group])}" for claim, group in by_word.items()]
    scope = "" if rows[0].contrast.about_method else ", these checkpoints only"
    return f"{method.name}{scope}: {'; '.join(parts)}."


def _claim(comparison: Comparison, row: Gap) -> str:
    base = comparison.versus.baseline.name
    if row.contrast.constant:
        return f"not distinguishable from {base}, because nothing varies, on"
    return {
        "better": f"better than {base} on",
        "worse": f"worse than {base} on",
        "equivalent": f"equivalent to {base} within ±{comparison.margin:g} points on",
        "unresolved": f"unresolved against {base} on",
    }[word_of(row)]


def _evidence(row: Gap) -> str:
    assert row.verdict is not None
    return f"{title_of(row.metric)} ({', '.join(facts(row.contrast, row.verdict, row.p_adjusted))})"


def cautions(comparison: Comparison) -> list[str]:
    """What has to be read before any number."""
    versus, single = comparison.versus, comparison.one_run
    found = []
    if len(single) == len(versus.methods):
        found.append(
            "One run of each method: every number is about these checkpoints, not about the methods. Training again "
            "could change the sign. A claim about a method needs two runs of each at least, five to be believed."
        )
    elif versus.baseline.name in single:
        found.append(
            f"One run of {versus.baseline.name}, the baseline: every difference is about its checkpoint, not about "
            "the methods."
        )
    elif single:
        several = [method.name for method in versus.others if method.name not in single]
        rest = f"; those of {words.listed(several)} are about the methods" if several else ""
        found.append(
            f"One run of {words.listed(single)}: differences that involve {'it' if len(single) == 1 else 'them'} are "
            f"about {'its checkpoint' if len(single) == 1 else 'their checkpoints'}, not about the method{rest}."
        )
    elif comparison.estimand == "checkpoint":
        found.append("Asked about these checkpoints: training again is not part of any interval.")
    most = [(method.name, len(method.runs)) for method in versus.methods if 1 < len(method.runs) < CLAIM_SEEDS]
    if most and not single:
        said = words.listed([f"{name} {number}" for name, number in most])
        found.append(f"Runs: {said}. Enough to screen, not for a claim; {CLAIM_SEEDS} of each are the minimum for one.")
    found += [f"{title_of(metric)} could not be compared: {why}." for metric, why in versus.unavailable.items()]
    return found


def notes(comparison: Comparison) -> list[str]:
    """What was decided in reading, and what is odd about the files, a line per kind."""
    found: dict[str, Oddities] = {}
    runs = [(_run_name(method, number), run) for method in comparison.versus.methods
            for number, run in enumerate(method.runs)]  # fmt: skip
    for name, run in runs:
        for warning in run.scores.warnings:
            entry = warning.as_json() if hasattr(warning, "as_json") else {"text": warning}
            kind = str(entry.get("what") or warning)
            found.setdefault(kind, Oddities(total=len(runs))).found.append((name, entry))
    groups = sorted(found.values(), key=lambda group: (-group.moved, -len(group.found)))
    return [*comparison.versus.notes, *(group.line for group in groups)]


def methods_text(comparison: Comparison) -> list[tuple[str, str]]:
    """(term, explanation) pairs: what is needed to read the numbers."""
    versus = comparison.versus
    each = "each query varies on its own"
    noun = "source video" if versus.cluster == "source" else "video"
    together = f"queries of one {noun} vary together (cluster-robust)"
    primary = words.listed([title_of(metric) for metric in versus.primary])
    estimands = list(dict.fromkeys(row.contrast.estimand for row in comparison.rows))
    meant = "; ".join(f"“{PHRASES[name]}”" for name in estimands)
    return [
        ("Difference", f"Method minus {versus.baseline.name}, in points (100 x the score): above zero the method is "
         "better. Methods are unpaired in their runs and paired in their queries."),
        ("What is claimed", f"{meant}."),
        ("Interval", f"95%, Student's t, not corrected; {each if versus.clusters is None else together}."),
        ("Verdict", f"better or worse: p at most {ALPHA:g} after Holm's correction over "
         f"{words.counted(len(comparison.rows), 'test')} ({words.counted(len(versus.others), 'method')}, {primary}). "
         f"Equivalent: the 90% interval lies inside ±{comparison.margin:g} points. Unresolved: neither."),
        ("Could have seen", "the true difference that this comparison finds with power 80%, before correction."),
        ("Exploratory", "other metrics and strata were not declared; q: Benjamini and Hochberg's false discovery rate, "
         "over the other metrics and over the strata. No verdict follows from them."),
        ("Strata", "moment length: all moments of a query are short, middle or long, or they are mixed; video length "
         "and annotator agreement: cut at terciles of these queries. Agreement: 1 minus the mean absolute difference "
         "of two annotators on an annotated clip, over the range 0 to 4."),
        ("Errors", DEFINITIONS),
        ("Ceiling", "the HD-mAP of each annotator's own scores as the ranking: an annotator who likes no clip gives 0 "
         "whatever is predicted. Annotators disagree, so one ranking for all of them stays below it."),
        ("Reliability", "share of annotators who score a clip at least 4, by the tenth of the ranking that it is in: "
         "only the order of saliency is read. Gap: mean distance from a ranking by the annotators' votes."),
    ]  # fmt: skip


def _run_name(method: Method, number: int) -> str:
    return method.name if len(method.runs) == 1 else f"{method.name} run {number + 1}"


# --- tables -----------------------------------------------------------------------------------------------------------


def metric_table(comparison: Comparison, metric: str) -> Table:
    """One primary metric: the baseline, then the methods from the best mean on."""
    versus = comparison.versus
    columns = (
        Column("Method"),
        Column("Mean", True, "over runs and queries, in points"),
        Column("Difference", True, MINUS_BASELINE),
        Column("95% interval", True, "of the difference"),
        Column("p (Holm)", True, f"corrected over {words.counted(len(comparison.rows), 'test')}"),
        Column("Verdict"),
        Column("Could have seen", True, "the difference found with power 80% before correction, in points"),
        Column("Win/tie/loss", True, "queries on which the method is above, equal, below the baseline"),
        Column("Runs", True),
        Column("Interval of the mean", True, "95%, with the difficulty of queries, which cancels in the difference"),
        Column("Run sd", True, "standard deviation of the run means, n - 1"),
    )
    base = versus.baseline.name
    measured = [level for (_, name), level in comparison.levels.items() if name == metric]
    measured.sort(key=lambda level: (level.method != base, -level.points, level.method))
    rows = []
    for place, level in enumerate(measured):
        row = comparison.row(level.method, metric)
        judged = _judged(comparison, row) if row is not None else [*[Cell(words.NOTHING)] * 3, Cell("baseline")]
        reach = _reach(row) if row is not None else [Cell(words.NOTHING)] * 2
        rows.append(
            (
                Cell(level.method, place),
                Cell(words.points(level.points), level.points),
                *judged,
                *reach,
                Cell(str(level.runs), level.runs),
                Cell(words.span(*level.interval), level.interval[0]),
                Cell(words.points(level.sd_runs), level.sd_runs),
            )
        )
    queries = words.counted(measured[0].contrast.queries, "query")
    scope = ", these checkpoints" if only_checkpoints(comparison) else ""
    caption = f"{title_of(metric)}{scope}, {queries}. Difference: {MINUS_BASELINE}; the baseline is {base}."
    return Table(f"primary-{metric}", caption, columns, tuple(rows))


def _judged(comparison: Comparison, row: Gap) -> list[Cell]:
    assert row.verdict is not None
    if row.contrast.constant:
        verdict = Cell(verdict_text(comparison, row), tone="unresolved")
        return [Cell(words.signed(row.points), row.points), *[Cell(words.NOTHING)] * 2, verdict]
    return [
        Cell(words.signed(row.points), row.points, strong=row.survives),
        Cell(words.interval(*row.interval), row.interval[0], strong=row.survives),
        Cell(words.p(row.p_adjusted), row.p_adjusted),
        Cell(verdict_text(comparison, row), word_of(row), strong=row.survives, tone=row.verdict.word),
    ]


def _reach(row: Gap) -> list[Cell]:
    assert row.verdict is not None
    mde = Cell(words.NOTHING) if row.contrast.constant else Cell(words.points(row.verdict.mde), row.verdict.mde)
    return [mde, _wins(row)]


def _wins(row: Gap) -> Cell:
    return Cell(f"{row.effects.wins}/{row.effects.ties}/{row.effects.losses}", row.effects.wins - row.effects.losses)


def uncertainty_table(comparison: Comparison) -> Table:
    """The three standard errors of every primary difference, what would settle it, and its effect sizes."""
    columns = (
        Column("Metric"),
        Column("Method"),
        Column("Difference", True, MINUS_BASELINE),
        *(Column(title, True, note) for title, note in SE_NAMES.values()),
        Column("Degrees of freedom", True, "of the standard error that the verdict uses"),
        Column("Runs needed", True, "of each method, to find the margin or what was seen, whichever is unseen"),
        Column("Relative", True, "difference over the baseline's mean"),
        Column("d_z", True, "mean over standard deviation of the queries' differences"),
        Column("Hedges g", True, "over run means"),
        Column("P(better run)", True, "a fresh run of the method beats one of the baseline"),
    )
    rows = []
    for row in sorted(comparison.rows, key=lambda row: comparison.versus.primary.index(row.metric)):
        assert row.verdict is not None
        found, size, needed = row.contrast, row.effects, row.verdict.seeds_needed
        errors = [None if x is None else 100 * x for x in (found.se_general, found.se_benchmark, found.se_checkpoint)]
        rows.append(
            (
                Cell(title_of(row.metric)),
                Cell(row.method),
                Cell(words.signed(row.points), row.points),
                *(Cell(words.points(se, 3), se) for se in errors),
                Cell(words.points(found.df, 1), _finite(found.df)),
                Cell(words.NOTHING if needed is None else str(needed), needed),
                Cell(
                    words.NOTHING if size.relative is None else f"{words.signed(100 * size.relative, 1)}%",
                    size.relative,
                ),
                Cell(words.signed(size.d_z), size.d_z),
                Cell(words.signed(size.hedges_g), size.hedges_g),
                Cell(words.points(size.improvement), size.improvement),
            )
        )
    caption = "Where the uncertainty comes from, in points, and effect sizes. What needs two runs of both is left out."
    return Table("uncertainty", caption, columns, tuple(rows))


def exploratory_table(comparison: Comparison) -> Table:
    """The metrics that were not declared."""
    columns = (
        Column("Metric"),
        Column("Method"),
        Column("Baseline", True),
        Column("Method's mean", True),
        *_described(),
        Column("Win/tie/loss", True),
        Column("Queries", True),
    )
    rows = tuple(
        (
            Cell(title_of(row.metric)),
            Cell(row.method),
            *_two_means(row),
            *_description(row),
            _wins(row),
            Cell(str(row.contrast.queries), row.contrast.queries),
        )
        for row in sorted(comparison.exploratory, key=lambda row: list(catalog.metrics).index(row.metric))
    )
    return Table("exploratory", "Exploratory: metrics that were not declared beforehand.", columns, rows)


def strata_table(comparison: Comparison) -> Table:
    """The primary metrics on kinds of queries."""
    columns = (
        Column("Queries by"),
        Column("Kind"),
        Column("Queries", True),
        Column("Metric"),
        Column("Method"),
        Column("Baseline", True),
        Column("Method's mean", True),
        *_described(),
    )
    order = {id(stratum): place for place, stratum in enumerate(comparison.strata)}
    rows = []
    for row in sorted(comparison.by_stratum, key=lambda row: order[id(row.stratum)]):
        assert row.stratum is not None
        cells = [Cell(row.stratum.group), Cell(row.stratum.label)]
        cells += [Cell(str(row.contrast.queries), row.contrast.queries), Cell(title_of(row.metric)), Cell(row.method)]
        rows.append((*cells, *_two_means(row), *_description(row)))
    return Table("strata", "Exploratory: the primary metrics on kinds of queries.", columns, tuple(rows))


def _described() -> tuple[Column, ...]:
    return (
        Column("Difference", True, MINUS_BASELINE),
        Column("95% interval", True),
        Column("p", True, "not corrected"),
        Column("q (BH)", True, "false discovery rate among the rows of this table"),
    )


def _description(row: Gap) -> list[Cell]:
    varies = not row.contrast.constant
    return [
        Cell(words.signed(row.points), row.points),
        Cell(words.interval(*row.interval), row.interval[0]) if varies else Cell(words.NOTHING),
        Cell(words.p(row.contrast.p), row.contrast.p if varies else None),
        Cell(words.p(row.p_adjusted), row.p_adjusted),
    ]


def _two_means(row: Gap) -> list[Cell]:
    return [Cell(words.points(value), value) for value in (row.base, row.base + row.points)]


def moved_table(comparison: Comparison, method: str, metric: str, *, number: int = MOVED) -> Table:
    """The queries that moved most between the baseline and a method."""
    base = comparison.versus.baseline.name
    by_peak = comparison.versus.task(metric) == "hd"
    columns = (
        Column("Difference", True, MINUS_BASELINE),
        Column(method, True),
        Column(base, True),
        Column("Query"),
        Column("Annotated", note="seconds"),
        Column(f"{'Best clip' if by_peak else 'Best window'}, {method}", note="seconds, run by run"),
        Column(f"{'Best clip' if by_peak else 'Best window'}, {base}", note="seconds, run by run"),
    )
    say = _peaks if by_peak else _windows
    clip_s = comparison.versus.clip_s
    rows = tuple(
        (
            Cell(words.signed(found.points), found.points),
            Cell(words.points(found.method.points), found.method.points),
            Cell(words.points(found.baseline.points), found.baseline.points),
            Cell(f"{found.qid}: {found.text}"),
            Cell(_few([_seconds(*window) for window in found.annotated_se])),
            Cell(say(found.method, clip_s)),
            Cell(say(found.baseline, clip_s)),
        )
        for found in moved(comparison.versus, method, metric, number=number)
    )
    caption = f"{title_of(metric)}: the queries that moved most from {base} to {method}, gains and then losses."
    return Table(f"moved-{metric}", caption, columns, rows)


def _windows(seen: Seen, _: float) -> str:
    return _few(["none" if window is None else _seconds(window[0], window[1]) for window in seen.windows])


def _peaks(seen: Seen, clip_s: float) -> str:
    return _few(["none" if start is None else _seconds(start, start + clip_s) for start in seen.peaks_s])


def _seconds(start: float, end: float) -> str:
    return f"{round(start, 1):g} to {round(end, 1):g}"


def _few(texts: Sequence[str], most: int = 4) -> str:
    return "; ".join(texts[:most]) + ("; ..." if len(texts) > most else "")


def errors_table(comparison: Comparison, *, differences: bool = True) -> Table:
    """What became of annotated moments and of windows. differences: a row per kind, with its interval; else a row per
    method with the shares alone.
    """
    if not differences:
        kinds = [*OF_MOMENTS, *OF_WINDOWS]
        shares = {(part.method, part.kind): part.share for part in comparison.parts}
        names = list(dict.fromkeys(part.method for part in comparison.parts))
        short = tuple(
            (Cell(name), *(Cell(words.points(shares[name, kind], 1), shares[name, kind]) for kind in kinds))
            for name in names
        )
        return Table("errors", DEFINITIONS, (Column("Method"), *(Column(kind, True) for kind in kinds)), short)
    columns = (
        Column("Of"),
        Column("Kind"),
        Column("Method"),
        Column("Share", True, "percent"),
        Column("Difference", True, MINUS_BASELINE),
        Column("95% interval", True, "descriptive, not corrected"),
    )
    order = [("moments", kind) for kind in OF_MOMENTS] + [("windows", kind) for kind in OF_WINDOWS]
    rows = tuple(
        (
            Cell(part.of),
            Cell(part.kind),
            Cell(part.method),
            Cell(words.points(part.share, 1), part.share),
            *_part_gap(part),
        )
        for part in sorted(comparison.parts, key=lambda part: order.index((part.of, part.kind)))
    )
    return Table("errors", DEFINITIONS, columns, rows)


def _part_gap(part: Part) -> list[Cell]:
    if part.gap is None:
        return [Cell(words.NOTHING)] * 2
    low, high = (100 * bound for bound in part.gap.ci(LEVEL))
    return [
        Cell(words.signed(100 * part.gap.estimate, 1), 100 * part.gap.estimate),
        Cell(words.interval(low, high, 1), low),
    ]


def ceiling_table(comparison: Comparison) -> Table | None:
    """HD-mAP as a share of what is possible, and what the order of saliency is worth; None without such annotations."""
    facts = ceiling_facts(comparison)
    if facts is None:
        return None
    columns = (
        Column("Method"),
        Column("HD-mAP", True),
        Column("Of the ceiling", True, "percent"),
        Column("Best tenth", True, "percent of annotators who score a clip of the best-ranked tenth at least 4"),
        Column("Worst tenth", True),
        Column("Largest fall", True, "from a tenth of the ranking to any better one, in percent; 0: monotone"),
        Column("Gap", True, "mean distance from a ranking by the annotators' votes, in percent"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, entry in facts["methods"].items():
        within = [curve for curve in entry["within"] if curve is not None]
        numbers = [entry["hd-map"], entry["share_of_ceiling"], within[-1], within[0], entry["fall"], entry["gap"]]
        rows.append((Cell(name), *(Cell(words.points(x, 2 if at == 0 else 1), x) for at, x in enumerate(numbers))))
    ideal = [value for value in facts["votes"] if value is not None]
    best = [facts["one_ranking"], 100 * facts["one_ranking"] / facts["ceiling"], ideal[-1], ideal[0]]
    rows.append(
        (
            Cell("one ranking by the annotators"),
            *(Cell(words.points(x, 2 if at == 0 else 1), x) for at, x in enumerate(best)),
            *[Cell(words.NOTHING)] * 2,
        )
    )
    caption = f"Saliency. No ranking can exceed an HD-mAP of {words.points(facts['ceiling'])} on these queries."
    return Table("saliency", caption, columns, tuple(rows))


def ceiling_facts(comparison: Comparison) -> dict[str, Any] | None:
    """HD-mAP against its ceiling and the reliability curves, in percent; None where HD-mAP is not measured."""
    versus = comparison.versus
    if versus.ceiling is None or versus.attained is None or versus.ideal is None or "hd-map" not in versus.metrics:
        return None
    inside = versus.inside("hd-map")
    top = 100 * float(versus.ceiling[inside].mean())
    if not top:
        return None
    found = {}
    for method in versus.methods:
        values = method.values("hd-map")
        if values is None:
            continue
        mean = 100 * float(values[:, inside].mean())
        within = [run.within for run in method.runs if run.within is not None]
        across = [run.across for run in method.runs if run.across is not None]
        found[method.name] = {
            "hd-map": mean,
            "share_of_ceiling": 100 * mean / top,
            "within": _curve(within),
            "across": _curve(across),
            "fall": 100 * max(curve.fall for curve in within),
            "gap": 100 * sum(curve.gap(versus.ideal) for curve in within) / len(within),
        }
    return {
        "ceiling": top,
        "one_ranking": 100 * float(versus.attained[inside].mean()),
        "bins": versus.ideal.edges.tolist(),
        "votes": _curve([versus.ideal]),
        "methods": found,
    }


def _curve(curves: Sequence[Reliability]) -> list[float | None]:
    """Mean of the runs' curves in percent; None for a bin that no clip is in."""
    shares = [[100 * value for value in curve.share.tolist()] for curve in curves]
    means = [sum(values) / len(values) for values in zip(*shares, strict=True)]
    return [value if math.isfinite(value) else None for value in means]


def reliability_table(comparison: Comparison) -> Table | None:
    """Share of annotators who like a clip, by tenth of the ranking within its query and among all clips."""
    facts = ceiling_facts(comparison)
    if facts is None:
        return None
    names = list(facts["methods"])
    edges = facts["bins"]
    columns = (
        Column("Rank"),
        *(Column(name, True, "percent") for name in names),
        Column("annotators' votes", True, "percent"),
        *(Column(f"{name}, among all clips", True, "percent") for name in names),
    )
    rows = []
    for at in reversed(range(len(edges) - 1)):
        values = [facts["methods"][name]["within"][at] for name in names]
        values += [facts["votes"][at], *(facts["methods"][name]["across"][at] for name in names)]
        label = f"{100 * edges[at]:.0f} to {100 * edges[at + 1]:.0f}%"
        rows.append((Cell(label, at), *(Cell(words.points(value, 1), value) for value in values)))
    caption = "Reliability: percent of annotators who score a clip at least 4, by the share of clips ranked below it."
    return Table("reliability", caption, columns, tuple(rows))


def files_table(comparison: Comparison) -> Table:
    """What was read."""
    columns = (Column("Method"), Column("Run", True), Column("File"), Column("Content"))
    rows = tuple(
        (Cell(method.name), Cell(str(number + 1), number + 1), Cell(run.path.name), Cell(run.content))
        for method in comparison.versus.methods
        for number, run in enumerate(method.runs)
    )
    return Table("files", "The files. Content: a digest of the predictions, whatever the order of rows.", columns, rows)


# --- terminal ---------------------------------------------------------------------------------------------------------


def terminal(comparison: Comparison, *, number: int = MOVED) -> RenderableType:
    """The comparison for a terminal, ending in the answer. Strata and single queries only for two methods, which is as
    much as a screen holds.
    """
    from rich.console import Group
    from rich.text import Text

    def line(text: str, style: str = "") -> Text:
        return Text(words.plain(text), style=style)

    versus = comparison.versus
    parts: list[RenderableType] = [line(setting(comparison), "bold")]
    parts.append(line(f"Baseline: {versus.baseline.name}. Difference: {MINUS_BASELINE}."))
    wanted = ("Method", "Mean", "Difference", "95% interval", "p (Holm)", "Verdict", "Could have seen", "Win/tie/loss")
    for metric in versus.primary:
        table = metric_table(comparison, metric)
        population = int(versus.inside(metric).sum())
        some = ", these checkpoints" if only_checkpoints(comparison) else ""
        some += "" if population == len(versus.queries) else f" ({words.counted(population, 'query')})"
        parts += [Text(), line(f"{title_of(metric)}{some}", "bold"), rich_table(table, wanted)]
    if comparison.parts:
        shares = errors_table(comparison, differences=False)
        parts += [Text(), line("Percent of annotated moments", "bold"), rich_table(shares, ("Method", *OF_MOMENTS))]
        parts += [line("Percent of windows that count", "bold"), rich_table(shares, ("Method", *OF_WINDOWS))]
    saliency = ceiling_table(comparison)
    if saliency is not None:
        parts += [Text(), line(saliency.caption, "bold"), rich_table(saliency, [c.title for c in saliency.columns])]
    if len(versus.methods) == 2:
        parts += _two(comparison, number)
    parts.append(Text())
    told = notes(comparison)
    parts += [line(f"note: {note}") for note in told[:TOLD]]
    parts += [line(f"note: {len(told) - TOLD} more in the JSON")] if len(told) > TOLD else []
    parts += [line(f"Take care. {caution}", "yellow") for caution in cautions(comparison)]
    return Group(*parts, Text(), *(line(sentence) for sentence in answers(comparison).values()))


def _two(comparison: Comparison, number: int) -> Iterator[RenderableType]:
    from rich.text import Text

    versus = comparison.versus
    if comparison.by_stratum:
        wanted = ("Queries by", "Kind", "Queries", "Metric", "Difference", "95% interval", "q (BH)")
        yield Text()
        yield Text("Exploratory: kinds of queries", style="bold")
        yield rich_table(strata_table(comparison), wanted)
    for metric in versus.primary:
        table = moved_table(comparison, versus.others[0].name, metric, number=number)
        if table.rows:
            yield Text()
            yield Text(words.plain(table.caption), style="bold")
            yield rich_table(table, [column.title for column in table.columns])


# --- files ------------------------------------------------------------------------------------------------------------


def to_markdown(comparison: Comparison, *, number: int = MOVED) -> str:
    """The whole comparison, plain enough to read unrendered."""
    from vlbench.report.formats import md, md_table

    versus = comparison.versus
    base = versus.baseline.name
    parts = [f"# {md(words.listed([method.name for method in versus.others]))} against {md(base)}"]
    parts += [md(f"{setting(comparison)}."), *(f"**{md(text)}**" for text in answers(comparison).values())]
    parts += [f"> {md(caution)}" for caution in cautions(comparison)]
    for metric in versus.primary:
        parts += [f"## {md(title_of(metric))}", md_table(metric_table(comparison, metric))]
    parts += ["## Uncertainty and effect sizes", md_table(uncertainty_table(comparison))]
    if comparison.parts:
        parts += ["## Errors", md_table(errors_table(comparison))]
    for table in (ceiling_table(comparison), reliability_table(comparison)):
        if table is not None:
            parts += [f"## {table.key.capitalize()}", md_table(table)]
    if comparison.by_stratum:
        parts += ["## Kinds of queries", md_table(strata_table(comparison))]
    if comparison.exploratory:
        parts += ["## Exploratory metrics", md_table(exploratory_table(comparison))]
    tables = [
        moved_table(comparison, method.name, metric, number=number)
        for method in versus.others
        for metric in versus.primary
    ]
    if found := [md_table(table) for table in tables if table.rows]:
        parts += ["## The queries that moved most", *found]
    parts += ["## How to read it", "\n".join(f"- **{md(a)}.** {md(b)}" for a, b in methods_text(comparison))]
    if said := notes(comparison):
        parts += ["## Notes", "\n".join(f"- {md(note)}" for note in said)]
    parts += ["## Files", md_table(files_table(comparison))]
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per method, metric and kind of queries, unrounded, in points; empty where a number does not exist."""
    lines = [
        {"method": level.method, "metric": level.metric, **_level_json(comparison, level.method, level.metric)}
        | _gap_json(next(iter(_all_gaps(comparison, level.method, level.metric)), None))
        for level in comparison.levels.values()
    ]
    lines += [
        {"method": row.method, "metric": row.metric, **dict.fromkeys(_LEVEL_KEYS)}
        | {"mean": row.base + row.points, "queries": row.contrast.queries}
        | _gap_json(row)
        for row in comparison.by_stratum
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in line.items()} for line in lines)
    return stream.getvalue()


def _all_gaps(comparison: Comparison, method: str, metric: str) -> list[Gap]:
    return [row for row in (*comparison.rows, *comparison.exploratory) if (row.method, row.metric) == (method, metric)]


def to_json(comparison: Comparison, *, number: int = MOVED) -> str:
    """Everything as one object."""
    found = as_json(comparison, number=number)
    return files.json_text(found)


def as_json(comparison: Comparison, *, number: int = MOVED) -> dict[str, Any]:
    """What ``to_json`` writes. Numbers are points and percent, unrounded; None where one does not exist."""
    versus = comparison.versus
    return {
        "format": FORMAT,
        "kind": "compare",
        "unit": "points",
        "annotations": versus.annotations.name,
        "mode": versus.mode,
        "clip_s": versus.clip_s,
        "queries": len(versus.queries),
        "cluster": versus.cluster,
        "clusters": None if versus.clusters is None else len(set(versus.clusters)),
        "baseline": versus.baseline.name,
        "primary": list(versus.primary),
        "family": len(comparison.rows),
        "correction": {"primary": "holm", "exploratory": "benjamini-hochberg", "strata": "benjamini-hochberg"},
        "alpha": ALPHA,
        "level": LEVEL,
        "margin": comparison.margin,
        "answers": answers(comparison),
        "cautions": cautions(comparison),
        "notes": notes(comparison),
        "one_run": list(comparison.one_run),
        "unavailable": dict(versus.unavailable),
        "methods": [
            {"name": method.name, "runs": [_run_json(run) for run in method.runs]} for method in versus.methods
        ],
        "means": [
            {"method": name, "metric": metric, **_level_json(comparison, name, metric)}
            for name, metric in comparison.levels
        ],
        "all_means": {
            method.name: {
                metric: 100 * float(values[:, versus.inside(metric)].mean())
                for metric in versus.metrics
                if (values := method.values(metric)) is not None
            }
            for method in versus.methods
        },
        "differences": [_named(row) for row in comparison.rows],
        "exploratory": [_named(row) for row in comparison.exploratory],
        "strata": [_named(row) for row in comparison.by_stratum],
        "errors": [_part_json(part) for part in comparison.parts],
        "error_definitions": {"tight": TIGHT, "loose": LOOSE, "text": DEFINITIONS},
        "saliency": ceiling_facts(comparison),
        "moved": [
            _moved_json(found)
            for method in versus.others
            for metric in versus.primary
            for found in moved(versus, method.name, metric, number=number)
        ],
        "reading": dict(methods_text(comparison)),
    }


_LEVEL_KEYS = ("runs", "queries", "mean", "mean_low", "mean_high", "run_sd")


def _level_json(comparison: Comparison, method: str, metric: str) -> dict[str, Any]:
    level = comparison.levels[method, metric]
    low, high = level.interval
    found = level.runs, level.contrast.queries, level.points, low, high, level.sd_runs
    return dict(zip(_LEVEL_KEYS, found, strict=True))


_GAP_KEYS = (
    "kind", "stratum", "stratum_kind", "baseline_mean", "difference", "low", "high", "estimand", "se", "df", "p",
    "p_adjusted", "verdict", "negligible", "mde", "seeds_needed", "se_general", "se_benchmark", "se_checkpoint",
    "clusters", "wins", "ties", "losses", "relative", "d_z", "hedges_g", "improvement",
)  # fmt: skip


def _gap_json(row: Gap | None) -> dict[str, Any]:
    """A difference as flat numbers; the same keys with None for the baseline, which has no difference."""
    if row is None:
        return dict.fromkeys(_GAP_KEYS)
    found, low_high = row.contrast, row.interval
    verdict = row.verdict
    errors = [None if se is None else 100 * se for se in (found.se_general, found.se_benchmark, found.se_checkpoint)]
    values = (
        row.kind,
        None if row.stratum is None else row.stratum.group,
        None if row.stratum is None else row.stratum.label,
        row.base,
        row.points,
        *low_high,
        found.estimand,
        100 * found.se,
        _finite(found.df),
        _finite(found.p),
        row.p_adjusted,
        None if verdict is None else word_of(row),
        None if verdict is None else verdict.negligible,
        None if verdict is None else verdict.mde,
        None if verdict is None else verdict.seeds_needed,
        *errors,
        found.clusters,
        row.effects.wins,
        row.effects.ties,
        row.effects.losses,
        row.effects.relative,
        row.effects.d_z,
        row.effects.hedges_g,
        row.effects.improvement,
    )
    return dict(zip(_GAP_KEYS, values, strict=True))


def _named(row: Gap) -> dict[str, Any]:
    return {
        "method": row.method,
        "metric": row.metric,
        "title": title_of(row.metric),
        "queries": row.contrast.queries,
        **_gap_json(row),
    }


def _run_json(run: Any) -> dict[str, Any]:
    return {"file": run.path.name, "content": run.content, "warnings": [str(text) for text in run.scores.warnings]}


def _part_json(part: Part) -> dict[str, Any]:
    low, high = (None, None) if part.gap is None else (100 * bound for bound in part.gap.ci(LEVEL))
    difference = None if part.gap is None else 100 * part.gap.estimate
    found = {"method": part.method, "of": part.of, "kind": part.kind, "share": part.share}
    return {**found, "difference": difference, "low": low, "high": high}


def _moved_json(found: Moved) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "qid": found.qid,
        "query": found.text,
        "vid": found.vid,
        "duration_s": found.duration_s,
        "difference": found.points,
        "annotated_se": [list(window) for window in found.annotated_se],
        **{
            name: {
                "method": seen.method,
                "value": seen.points,
                "windows": [None if window is None else list(window) for window in seen.windows],
                "peaks_s": list(seen.peaks_s),
            }
            for name, seen in (("method", found.method), ("baseline", found.baseline))
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def per_query(comparison: Comparison) -> dict[str, list[Any]]:
    """Columns with a row per method, run and query: every metric in fractions, None outside its population."""
    versus = comparison.versus
    runs = [(method, number, run) for method in versus.methods for number, run in enumerate(method.runs)]
    kinds = {type(query.qid) for query in versus.queries}
    qids = [str(query.qid) if len(kinds) > 1 else query.qid for query in versus.queries]
    columns: dict[str, list[Any]] = {
        "method": [method.name for method, _, _ in runs for _ in qids],
        "run": [number + 1 for _, number, _ in runs for _ in qids],
        "qid": [qid for _ in runs for qid in qids],
        "vid": [query.vid for _ in runs for query in versus.queries],
        "source_video": [query.source_video for _ in runs for query in versus.queries],
    }
    for metric in versus.metrics:
        column: list[Any] = []
        for _, _, run in runs:
            values = run.scores.values.get(metric)
            column += [None] * len(qids) if values is None else [None if x != x else x for x in values.tolist()]
        columns[metric] = column
    return columns


def write(comparison: Comparison, out: Path, *, number: int = MOVED) -> list[Path]:
    """compare.md, compare.csv, compare.json and queries.parquet in a folder, each whole or not at all.

    Raises: StoreError where the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {
        "compare.md": to_markdown(comparison, number=number),
        "compare.csv": to_csv(comparison),
        "compare.json": to_json(comparison, number=number),
    }
    written = [save(out / name, text) for name, text in texts.items()]
    path = out / "queries.parquet"
    with replacing(path) as temporary:
        pq.write_table(pa.table(per_query(comparison)), temporary)
    return [*written, path]


def save(path: Path, text: str) -> Path:
    """Write a text as UTF-8 with the line ends that it has. Raises: StoreError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode())
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror or error}", where=path) from None
    return path
