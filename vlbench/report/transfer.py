"""What of a benefit is retained on another dataset: the same fits, scored on two.

The interaction is (difference on the other dataset) minus (difference on the own one). A fit is scored on both, so runs
are paired; the queries are two sets of their own, whose variances add up.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vlbench.canon import digest
from vlbench.cards.kinds import Claim
from vlbench.errors import PlanError, VlbenchError
from vlbench.report import files, words
from vlbench.report.again import Again
from vlbench.report.compare import LEVEL
from vlbench.report.formats import md, md_table
from vlbench.report.frame import Frame, read, title_of
from vlbench.report.methods import CLAIM_SEEDS
from vlbench.report.page import Entry, Line, Section, render
from vlbench.report.tables import Cell, Column, Table, rich_table
from vlbench.runs.cells import CHECKPOINTS
from vlbench.runs.store import Store
from vlbench.stats.correct import holm
from vlbench.stats.design import PHRASES, Contrast, contrast
from vlbench.stats.robustness import stacked
from vlbench.stats.verdict import Verdict, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1  # of results.json, raised when a key changes its meaning
SAID = {
    "helps": "its benefit is larger there",
    "hurts": "its benefit is smaller there",
    "equivalent": "its benefit is retained",
    "unresolved": "unresolved",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One claim on one metric. own, other: the difference on each dataset. gap: other minus own."""

    claim: Claim
    subject: str
    metric: str
    own: Contrast = field(repr=False)
    other: Contrast = field(repr=False)
    gap: Contrast = field(repr=False)
    p_adjusted: float
    verdict: Verdict

    @property
    def retention(self) -> float | None:
        """Share of the own benefit that is there, None where the own difference is not above zero for certain."""
        return self.other.estimate / self.own.estimate if self.own.ci(LEVEL)[0] > 0 else None

    @property
    def statement(self) -> str:
        """What can be said of the benefit on the other dataset."""
        if self.gap.constant:
            return "unresolved (nothing varies)"
        return f"{SAID[self.verdict.word]}{', but negligible' if self.verdict.negligible else ''}"


@dataclass(frozen=True, slots=True)
class Retained:
    """Two frames of the same fits, and every claim on both."""

    own: Frame
    other: Frame
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Of the report's folder."""
        return _name(self.own.study, self.other.dataset)

    @property
    def question(self) -> str:
        """What is asked."""
        return f"{self.own.question} And is it retained from {self.own.dataset} to {self.other.dataset}?"


def retained(store: Store, own: str, other: str, *, allow_missing: bool = False) -> Retained:
    """Test the retention of every judged claim on every primary metric that both datasets have; Holm over all.

    Raises: PlanError if the two studies are not of the same fits, or scores are missing.
    """
    first, second = (read(store, study, allow_missing=allow_missing) for study in (own, other))
    fits = [[(arm.name, run.fit) for arm in frame.arms for run in arm.runs] for frame in (first, second)]
    if fits[0] != fits[1]:
        raise PlanError("the two studies are not of the same fits", where=other, hint=f"run: {second.command}")
    checkpoint = CHECKPOINTS[0]
    found: list[tuple[Claim, str, Contrast, Contrast, Contrast]] = []
    for claim in first.judged:
        for metric in (name for name in first.primary if name in second.primary):
            sides = [frame.values(metric, checkpoint) for frame in (first, second)]
            labels = [_labels(frame, metric) for frame in (first, second)]
            both = {arm: stacked(sides[0][arm], sides[1][arm]) for arm in claim.weights}
            apart = [
                contrast(side, claim.weights, clusters=frame.clusters_of(metric))
                for side, frame in zip(sides, (first, second), strict=True)
            ]
            gap = contrast(both, claim.weights, clusters=[*labels[0], *labels[1]])
            found.append((claim, metric, apart[0], apart[1], gap))
    varying = [place for place, one in enumerate(found) if not one[-1].constant]
    adjusted = dict(zip(varying, holm([found[p][-1].p for p in varying]).tolist(), strict=True)) if varying else {}
    rows = [
        Row(
            claim,
            claim.name if claim.kind != "arm" else f"{first.component_title} ({claim.name})",
            metric,
            there,
            elsewhere,
            gap,
            adjusted.get(place, float("nan")),
            verdict(gap, direction="added", margin=first.margin, p_adjusted=adjusted.get(place, float("nan"))),
        )
        for place, (claim, metric, there, elsewhere, gap) in enumerate(found)
    ]
    return Retained(first, second, tuple(rows))


def transfers(store: Store) -> dict[str, tuple[str, str]]:
    """The name of every report of this kind -> the study of the fits, and that of the same fits on another dataset."""
    known = store.studies("ablation")
    found = {}
    for other in known:
        plan = store.load_plan(other)
        own = other.removesuffix(f"-on-{plan['dataset']}")
        if own in known and own != other and _fits(store.load_plan(own)) == _fits(plan):
            found[_name(own, str(plan["dataset"]))] = (own, other)
    return found


def _name(own: str, dataset: str) -> str:
    return f"{own}-to-{dataset.replace('/', '-')}"


def _fits(plan: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [(str(arm["name"]), [str(cell["fit"]) for cell in arm["cells"]]) for arm in plan["arms"]]


def _labels(frame: Frame, metric: str) -> list[str]:
    """A cluster per query; no video of one dataset is one of the other, whatever its name."""
    labels = frame.clusters_of(metric)
    count = int(frame.populations[metric].sum())
    return [f"{frame.dataset} {label}" for label in (labels or [f"query {number}" for number in range(count)])]


# --- words ------------------------------------------------------------------------------------------------------------


def setting(found: Retained) -> str:
    """Datasets, seeds and queries."""
    sides = [f"{frame.dataset}, {words.counted(len(frame.queries), 'query')}" for frame in (found.own, found.other)]
    return f"trained on {sides[0]} · scored on it and on {sides[1]} · {words.counted(len(found.own.seeds), 'seed')}"


def sentences(found: Retained) -> list[str]:
    """One per claim and metric."""
    said = []
    for row in found.rows:
        own, other = (words.signed(100 * one.estimate) for one in (row.own, row.other))
        share = "" if row.retention is None else f", {words.points(100 * row.retention, 0)}% of it"
        said.append(
            f"{row.subject} on {title_of(row.metric)}: {own} points on {found.own.dataset}, {other} on "
            f"{found.other.dataset}{share}; {row.statement} ({'; '.join(_evidence(row))})."
        )
    return said


def _evidence(row: Row) -> list[str]:
    low, high = (100 * end for end in row.gap.ci(LEVEL))
    if row.gap.constant:
        return ["nothing varies"]
    facts = [f"interaction {words.signed(100 * row.gap.estimate)}", f"95% interval {words.interval(low, high)}"]
    facts.append(words.p_equals(row.p_adjusted, "adjusted p"))
    if row.verdict.word == "unresolved":
        facts.append(f"could have seen {words.points(row.verdict.mde)}")
    return facts


def methods(found: Retained) -> list[tuple[str, str]]:
    """(term, explanation) pairs."""
    meant = "; ".join(f"“{PHRASES[name]}”" for name in dict.fromkeys(row.gap.estimand for row in found.rows))
    return [
        ("Benefit", "with the component minus without it, in points, on each dataset."),
        ("Interaction", f"the benefit on {found.other.dataset} minus that on {found.own.dataset}: below 0 it is lost "
         f"on the way. Runs are paired, for each fit is scored on both; queries are not. Claimed: {meant}."),
        ("Verdict", f"retained: the 90% interval of the interaction lies inside ±{found.own.margin:g} points. Larger "
         f"or smaller: p at most 0.05 after Holm's correction over {words.counted(len(found.rows), 'test')}."),
        ("Share", "of the own benefit that is there, only where the own benefit is above zero."),
    ]  # fmt: skip


def table(found: Retained) -> Table:
    """Every claim and metric."""
    columns = (
        Column("Claim"),
        Column("Metric"),
        Column(found.own.dataset, True, "benefit where the fits were trained, in points"),
        Column("Its interval", True, "95%"),
        Column(found.other.dataset, True, "benefit of the same fits on the other dataset"),
        Column("Interval there", True, "95%"),
        Column("Share", True, "percent of the own benefit"),
        Column("Interaction", True, "there minus here, in points"),
        Column("95% interval", True, "of the interaction"),
        Column("p (Holm)", True),
        Column("Verdict"),
    )
    rows = []
    for row in found.rows:
        ends = [[100 * end for end in one.ci(LEVEL)] for one in (row.own, row.other, row.gap)]
        survives = not row.gap.constant and row.p_adjusted <= 0.05
        rows.append(
            (
                Cell(row.subject),
                Cell(title_of(row.metric)),
                Cell(words.signed(100 * row.own.estimate), 100 * row.own.estimate),
                Cell(words.interval(ends[0][0], ends[0][1]), ends[0][0]),
                Cell(words.signed(100 * row.other.estimate), 100 * row.other.estimate),
                Cell(words.interval(ends[1][0], ends[1][1]), ends[1][0]),
                Cell(
                    words.NOTHING if row.retention is None else f"{100 * row.retention:.0f}%",
                    row.retention,
                ),
                Cell(words.signed(100 * row.gap.estimate), 100 * row.gap.estimate, strong=survives),
                Cell(words.interval(ends[2][0], ends[2][1]), ends[2][0], strong=survives),
                Cell(words.p(row.p_adjusted), None if row.gap.constant else row.p_adjusted),
                Cell(row.statement, row.verdict.word, strong=survives, tone=row.verdict.word),
            )
        )
    caption = f"The benefit on {found.own.dataset} and of the same fits on {found.other.dataset}."
    return Table("retained", caption, columns, tuple(rows))


def terminal(found: Retained) -> RenderableType:
    """For a terminal, ending in the answer."""
    from rich.console import Group
    from rich.text import Text

    shown = table(found)
    wanted = ["Claim", "Metric", found.own.dataset, found.other.dataset, "Interaction", "95% interval", "Verdict"]
    return Group(
        Text(words.plain(setting(found)), style="bold"),
        rich_table(shown, wanted),
        Text(),
        *(Text(words.plain(sentence)) for sentence in sentences(found)),
    )


def _answers(found: Retained) -> list[dict[str, Any]]:
    """Every claim: subject, what it compares, and a line per metric."""
    by_subject: dict[str, list[Row]] = {}
    for row in found.rows:
        by_subject.setdefault(row.subject, []).append(row)
    return [
        {
            "subject": subject,
            "changed": f"{rows[0].claim.plus} {words.MINUS} {rows[0].claim.minus}",
            "lines": [
                Line(
                    title_of(row.metric),
                    row.verdict.word,
                    row.statement,
                    words.signed(100 * row.gap.estimate),
                    tuple(_evidence(row)),
                )
                for row in rows
            ],
        }
        for subject, rows in by_subject.items()
    ]


def to_html(found: Retained, *, index: bool = False) -> str:
    """The page. index: link to the index page."""
    context = {"tables": [table(found)], "titles": [], "lead": "", "remarks": [sentences(found)], "folded": None}
    beside = "The studies on each dataset have pages of their own, beside this one."
    answers = _answers(found)
    return render(
        "stress.html.j2",
        study=found.name,
        question=found.question,
        setting=setting(found),
        said=[],
        ignored=[],
        answers=answers,
        cautions=cautions(found),
        sections=[
            Section("retained", "What is retained", "tables.html.j2", context),
            Section("methods", "How it was measured", "methods.html.j2", {"entries": methods(found)}),
            Section("notes", "Notes", "notes.html.j2", {"notes": [beside, *found.other.notes], "details": []}),
        ],
        rebuild=f"{found.other.command} --collect",
        index=index,
    )


def cautions(found: Retained) -> list[str]:
    """What has to be read before any number."""
    seeds = len(found.own.seeds)
    if seeds == 1:
        return ["One seed: every number is about these weights, and no claim about a component can be made."]
    if seeds < CLAIM_SEEDS:
        return [f"{seeds} seeds: enough to screen, not for a claim; {CLAIM_SEEDS} are the minimum for one."]
    return []


def to_markdown(found: Retained) -> str:
    """Plain enough to read unrendered."""
    parts = [f"# {md(found.question)}", md(setting(found)), _listed(sentences(found))]
    parts += [*(f"> {md(caution)}" for caution in cautions(found)), md_table(table(found))]
    parts += ["## How it was measured", _listed([f"{a}. {b}" for a, b in methods(found)])]
    return "\n\n".join(parts) + "\n"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {md(line)}" for line in lines)


def as_json(found: Retained) -> dict[str, Any]:
    """Unrounded numbers in points."""
    return {
        "format": FORMAT,
        "study": found.name,
        "trained_on": found.own.dataset,
        "scored_on": found.other.dataset,
        "seeds": list(found.own.seeds),
        "rows": [
            {
                "claim": row.claim.name,
                "metric": row.metric,
                "own": 100 * row.own.estimate,
                "other": 100 * row.other.estimate,
                "share": row.retention,
                "interaction": 100 * row.gap.estimate,
                "low": 100 * row.gap.ci(LEVEL)[0],
                "high": 100 * row.gap.ci(LEVEL)[1],
                "p_adjusted": None if row.gap.constant else row.p_adjusted,
                "verdict": row.verdict.word,
                "statement": row.statement,
            }
            for row in found.rows
        ],
        "answers": sentences(found),
    }


def to_csv(found: Retained) -> str:
    """One line per claim and metric."""
    stream = io.StringIO()
    rows = as_json(found)["rows"]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else ["claim"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return stream.getvalue()


def write(store: Store, found: Retained, out: Path, *, index: bool = False) -> list[Path]:
    """``out/<name>/`` with the page, Markdown, CSV, JSON and what it was made from. index: link to the index page.

    Returns: the files; ``manifest.json`` is the last. Raises: StoreError if a file cannot be written.
    """
    folder = out / found.name
    texts = {
        "report.md": to_markdown(found),
        "transfer.csv": to_csv(found),
        "results.json": files.json_text(as_json(found)),
        "index.html": to_html(found, index=index),
    }
    sides = (found.own, found.other)
    content = {
        "format": FORMAT,
        "kind": "transfer",
        "study": found.name,
        "studies": [frame.study for frame in sides],
        "plans": [digest(store.load_plan(frame.study)) for frame in sides],
        "records": _records(store, found),
        "missing": [str(hole) for frame in sides for hole in frame.holes],
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    for name, text in {**texts, "manifest.json": files.json_text(content)}.items():
        files.save(folder / name, text.encode())
    return [folder / name for name in (*texts, "manifest.json")]


def _records(store: Store, found: Retained) -> dict[str, str | None]:
    """Every score that a number hangs on, with the digest of its record."""
    scores = [run.score for frame in (found.own, found.other) for arm in frame.arms for run in arm.runs]
    records = {score: store.record(score) for score in scores}
    return {score: None if record is None else digest(record) for score, record in records.items()}


def again(store: Store, name: str, manifest: Mapping[str, Any]) -> Again:
    """What a report would say now (see ``report.again``). Raises: PlanError as ``retained``."""
    own, other = manifest["studies"]
    found = retained(store, own, other, allow_missing=bool(manifest["missing"]))
    texts = {"results.json": files.json_text(as_json(found)), "transfer.csv": to_csv(found)}
    problems = [
        f"plan: {study} was planned anew after the report was written"
        for study, before in zip((own, other), manifest["plans"], strict=True)
        if digest(store.load_plan(study)) != before
    ]
    now = _records(store, found)
    problems += [
        f"score {score}: its record is another one"
        for score, before in manifest["records"].items()
        if now.get(score) != before
    ]
    return Again(texts, ("claim", "metric"), len(now), tuple(problems))


def entries(store: Store, out: Path) -> list[Entry]:
    """The lines of all reports of this kind on the index page, linked where a page was written."""
    found = []
    for name, (own, other) in transfers(store).items():
        href = f"{quote(name)}/index.html" if (out / name / "index.html").exists() else ""
        try:
            both = retained(store, own, other)
        except VlbenchError as problem:
            found.append(Entry(study=name, href=href, problem=str(problem)))
            continue
        answers = tuple((str(answer["subject"]), tuple(answer["lines"])) for answer in _answers(both))
        entry = Entry(
            study=name,
            question=both.question,
            setting=setting(both),
            href=href,
            answers=answers,
            cautions=tuple(cautions(both)),
        )
        found.append(entry)
    return found
