"""One self-contained page per study, and an index over all of them.

A page is a list of sections, each made by a function of the report that returns a ``Section`` or None where it has
nothing to say. To add a section, write such a function and put it into ``SECTIONS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vlbench
from vlbench.cards.kinds import Claim
from vlbench.report import figures, lattice, oddities, spread, tables, words
from vlbench.report.answer import in_words
from vlbench.report.compare import Comparison, Row, subject
from vlbench.report.explorer import Explorer
from vlbench.report.frame import title_of
from vlbench.report.methods import advice, cautions, methods, notes, setting

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Report:
    """What the sections of one page are made of. ``beside``: files written next to the page, to be linked. explorer:
    None leaves its section out.
    """

    comparison: Comparison
    plots: tuple[figures.Plot, ...]
    beside: tuple[str, ...] = ()
    explorer: Explorer | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page. ``template``: a file of ``templates/`` that finds ``context`` under that name."""

    anchor: str
    title: str
    template: str
    context: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One verdict with its evidence, as texts. ``verdict``: the word with what it must not be read without."""

    metric: str
    word: str
    verdict: str
    difference: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One study on the index page. ``answers``: (what is judged, its verdicts). ``problem``: why no report."""

    study: str
    question: str = ""
    setting: str = ""
    href: str = ""
    answers: tuple[tuple[str, tuple[Line, ...]], ...] = ()
    cautions: tuple[str, ...] = field(default=())
    problem: str = ""


def study_page(report: Report, *, index: bool = True) -> str:
    """The HTML of one study. ``index``: link to the index page one folder up."""
    comparison = report.comparison
    sections = [section for make in SECTIONS if (section := make(report)) is not None]
    answers = [
        {
            "subject": subject(comparison, claim),
            "changed": _changed(comparison, claim),
            "lines": verdict_lines(comparison, claim),
        }
        for claim in comparison.claims
    ]
    return render(
        "study.html.j2",
        frame=comparison.frame,
        setting=setting(comparison),
        said=in_words(comparison),
        answers=answers,
        cautions=cautions(comparison),
        sections=sections,
        index=index,
    )


def index_page(entries: Sequence[Entry]) -> str:
    """The HTML of the index over all studies."""
    counted = words.counted(len(entries), "study").capitalize()
    return render("index.html.j2", entries=entries, counted=counted)


def sweep_html(**context: Any) -> str:
    """The HTML of a sweep; ``context`` as ``sweep.html.j2`` names it."""
    return render("sweep.html.j2", **context)


def progress_html(**context: Any) -> str:
    """The HTML of a study that is not finished; ``context`` as ``progress.html.j2`` names it."""
    return render("progress.html.j2", **context)


def entry_of(comparison: Comparison, href: str) -> Entry:
    """The line of a study on the index page."""
    return Entry(
        study=comparison.frame.study,
        question=comparison.frame.question,
        setting=setting(comparison),
        href=href,
        answers=tuple((subject(comparison, claim), verdict_lines(comparison, claim)) for claim in comparison.claims),
        cautions=tuple(cautions(comparison)),
    )


def verdict_lines(comparison: Comparison, claim: Claim) -> tuple[Line, ...]:
    """Every primary metric of a claim."""
    return tuple(_line(row) for row in comparison.rows if row.claim == claim)


def _changed(comparison: Comparison, claim: Claim) -> str:
    """What the arm of a claim changes and costs; of an effect, what is subtracted from what."""
    if claim.kind != "arm":
        return f"{claim.plus} {words.MINUS} {claim.minus}"
    arm = next(arm for arm in comparison.frame.arms if arm.name == claim.name)
    baseline = words.count(comparison.frame.baseline.parameters)
    return f"{'; '.join(arm.edits)} · {words.count(arm.parameters)} parameters (baseline {baseline})"


def _line(row: Row) -> Line:
    assert row.verdict is not None
    evidence = [f"95% interval {words.interval(row.low, row.high)}", words.p_equals(row.p_adjusted, "adjusted p")]
    if row.verdict.word == "unresolved":
        evidence.append(f"could have seen {words.points(row.verdict.mde)}")
    return Line(
        row.title,
        row.verdict.word,
        tables.verdict_text(row),
        words.signed(row.points),
        ("nothing varies",) if row.contrast.constant else tuple(evidence),
    )


# --- the sections -----------------------------------------------------------------------------------------------------


def plan(report: Report) -> Section:
    """Arms, their diffs, their sizes."""
    frame = report.comparison.frame
    lead = f"Component: {frame.component_title}."
    if not report.comparison.lattice:
        lead += f" The arms {'add it to' if frame.adds else 'remove it from'} the baseline."
    return _tables("plan", "The plan", [tables.arms_table(report.comparison)], lead=lead)


def comparison(report: Report) -> Section:
    """Every primary metric: means, differences, verdicts."""
    found = report.comparison
    shown = tables.effects_table if found.lattice else tables.metric_table
    made = [shown(found, metric) for metric in found.metrics]
    titles = [title_of(metric) for metric in found.metrics]
    remarks = [advice(found, metric) for metric in found.metrics]
    return _tables("comparison", "Comparison", made, titles=titles, remarks=remarks)


def cells(report: Report) -> Section | None:
    """The cells of a lattice, metric by metric."""
    found = report.comparison
    if not found.lattice:
        return None
    made = [tables.means_table(found, metric) for metric in found.metrics]
    return _tables("cells-of-the-lattice", "The cells", made, titles=[title_of(metric) for metric in found.metrics])


def differences(report: Report) -> Section | None:
    """The difference plot."""
    return _figure(report, "differences", "Differences")


def together(report: Report) -> Section | None:
    """The lattice of a design, and how its components go together."""
    found = report.comparison
    made = [table for metric in found.metrics if (table := lattice.readings_table(found, metric)) is not None]
    return _figure(report, "lattice", "How the components go together", made=made)


def shapley(report: Report) -> Section | None:
    """From the empty model to the full one."""
    return _figure(report, "shapley", "From empty to full")


def runs(report: Report) -> Section | None:
    """Every run."""
    return _figure(report, "runs", "Every run")


def budget(report: Report) -> Section | None:
    """What the variance is made of, and what to add."""
    return _figure(report, "budget", "Seeds or queries", remarks=spread.cheaper(report.comparison))


def queries(report: Report) -> Section | None:
    """The queries that moved most."""
    if report.explorer is None:
        return None
    return Section("queries", "Queries that moved most", "explorer.html.j2", {"explorer": report.explorer})


def curves(report: Report) -> Section | None:
    """Learning curves, where events were kept."""
    return _figure(report, "curves", "Learning curves")


def uncertainty(report: Report) -> Section:
    """The three standard errors."""
    return _tables("uncertainty", "Uncertainty and effect sizes", [tables.errors_table(report.comparison)])


def checkpoints(report: Report) -> Section:
    """Every rule for the epoch."""
    return _tables("checkpoints", "How the epoch was chosen", [tables.checkpoints_table(report.comparison)])


def exploratory(report: Report) -> Section | None:
    """The metrics that were not declared, and those that could not be measured."""
    found = report.comparison
    said = [f"{title_of(metric)}: {why}" for metric, why in found.unavailable.items()]
    lead = f"Not tested. {'; '.join(said)}." if said else ""
    if not found.exploratory:
        return _tables("exploratory", "Exploratory metrics", [], lead=lead) if lead else None
    main, rest = (tables.exploratory_table(found, detail=detail) for detail in (False, True))
    if not (main.rows and rest.rows):
        return _tables("exploratory", "Exploratory metrics", [tables.exploratory_table(found)], lead=lead)
    metrics = words.counted(len(rest.rows) // len(found.claims), "more metric")
    return _tables("exploratory", "Exploratory metrics", [main], lead=lead, folded=(metrics, rest))


def measured(report: Report) -> Section:
    """How the numbers were made."""
    return Section("methods", "How it was measured", "methods.html.j2", {"entries": methods(report.comparison)})


def remarks(report: Report) -> Section | None:
    """The plan's notes and the scoring's warnings."""
    found = notes(report.comparison)
    context = {"notes": found, "details": oddities.details(report.comparison)}
    return Section("notes", "Notes", "notes.html.j2", context) if found else None


def holes(report: Report) -> Section | None:
    """What failed or is missing."""
    frame = report.comparison.frame
    if not frame.holes:
        return None
    context = {"table": tables.holes_table(report.comparison), "command": frame.command}
    return Section("missing", "Missing and failed", "holes.html.j2", context)


def provenance(report: Report) -> Section:
    """The cells behind the numbers."""
    context = {"table": tables.provenance_table(report.comparison), "beside": report.beside}
    return Section("provenance", "Provenance", "provenance.html.j2", context)


SECTIONS: tuple[Callable[[Report], Section | None], ...] = (
    plan,
    differences,
    comparison,
    together,
    shapley,
    cells,
    queries,
    runs,
    budget,
    curves,
    uncertainty,
    checkpoints,
    exploratory,
    measured,
    remarks,
    holes,
    provenance,
)


def _tables(
    anchor: str,
    title: str,
    made: Sequence[tables.Table],
    *,
    lead: str = "",
    titles: Sequence[str] = (),
    remarks: Sequence[Sequence[str]] = (),
    folded: tuple[str, tables.Table] | None = None,
) -> Section:
    """titles, remarks: above and below each table. folded: a summary and a table that is closed at first."""
    context = {"tables": list(made), "titles": list(titles), "lead": lead, "remarks": list(remarks), "folded": folded}
    return Section(anchor, title, "tables.html.j2", context)


def _figure(
    report: Report, name: str, title: str, *, remarks: Sequence[str] = (), made: Sequence[tables.Table] = ()
) -> Section | None:
    """remarks, made: sentences and tables below the figure."""
    plot = next((plot for plot in report.plots if plot.name == name), None)
    if plot is None:
        return None
    panels = [figures.inline(panel) for panel in plot.panels]
    context = {"panels": panels, "caption": plot.caption, "remarks": list(remarks), "tables": list(made)}
    return Section(name, title, "figure.html.j2", context)


def render(template: str, **context: Any) -> str:
    """A template of this folder, without blank lines."""
    text = _environment().get_template(template).render(version=vlbench.__version__, **context)
    return re.sub(r"\n{2,}", "\n", text).strip() + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = lambda text: re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")
    return environment
