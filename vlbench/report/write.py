"""Reports on disk: every file whole or not at all, equal bytes for an equal store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from vlbench.canon import digest
from vlbench.errors import PlanError, StoreError, VlbenchError, suggestion
from vlbench.report import bibliography, figures, files, formats, latex, stress_page, sweep, transfer
from vlbench.report.checkpoints import protocols
from vlbench.report.compare import Comparison, compare
from vlbench.report.entries import keep, kept, stamp
from vlbench.report.explorer import explore
from vlbench.report.frame import Frame, read
from vlbench.report.page import Entry, Report, entry_of, index_page, study_page
from vlbench.report.stamps import of_study, own_look
from vlbench.report.written import note, standing
from vlbench.runs.cells import CHECKPOINTS
from vlbench.runs.store import Store

Format = Literal["all", "html", "md", "csv", "latex", "json"]
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2  # 2: every number with its value

_TEXTS: tuple[tuple[Format, str, Callable[[Comparison, latex.Spread], str]], ...] = (
    ("md", "report.md", lambda comparison, _: formats.to_markdown(comparison)),
    ("csv", "comparison.csv", lambda comparison, _: formats.to_csv(comparison)),
    ("latex", "comparison.tex", latex.to_latex),
    ("latex", "methods.tex", lambda comparison, _: bibliography.paragraph(comparison)),
    ("latex", "references.bib", lambda comparison, _: bibliography.bibtex(bibliography.used(comparison))),
    ("json", "results.json", lambda comparison, _: formats.to_json(comparison)),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one study: its files, or the reason why there are none. comparison: None for other kinds of study,
    and for a report that stands as it would be written now.
    """

    study: str
    written: tuple[Path, ...] = ()
    comparison: Comparison | None = None
    problem: VlbenchError | None = None


def write(
    store: Store,
    study: str,
    out: Path,
    *,
    allow_missing: bool = False,
    format: Format = "all",
    index: bool = True,
    spread: latex.Spread = "sd",
    comparison: Comparison | None = None,
) -> list[Path]:
    """The report of one study under ``out/<study>/``; one that stands there as it would be written now is left alone.

    Args: format: one of the formats, or "all" with figures. index: link to the index page, which
        ``write_index`` writes. spread: what LaTeX tables print after ±. comparison: of the same study where it was made
        already, so that it is not judged twice.
    Returns: the files, in the order written; ``manifest.json`` is the last.
    Raises: PlanError for holes (see ``frame.read``) or an unknown format, StoreError where files cannot be written.
    """
    if comparison is None:
        paths = _standing(store, study, out, allow_missing, format, index, spread)
        if paths is not None:
            return paths
        comparison = compare(read(store, study, allow_missing=allow_missing))
    return _write(store, comparison, out, format, index, spread)


def _standing(
    store: Store, study: str, out: Path, allow_missing: bool, format: Format, index: bool, spread: latex.Spread
) -> list[Path] | None:
    """The files of a report that need not be made again, or None; nothing is read but the state of files."""
    stamp = of_study(store, study, allow_missing=allow_missing).whole
    paths = standing(store, study, out / study, stamp, (CHECKPOINTS[0], format, index, spread))
    if paths is not None:
        store.note_look(study, **own_look(store.load_plan(study)))
    return paths


def write_all(
    store: Store,
    out: Path,
    *,
    studies: Sequence[str] | None = None,
    allow_missing: bool = False,
    format: Format = "all",
    spread: latex.Spread = "sd",
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Reports of all studies and sweeps (or of those named) and the index over the whole store.

    A study that cannot be reported does not keep the others from being written. ``done`` hears of each as it is ready.
    Raises: PlanError for the name of a study that the store does not have.
    """
    compared, searched, stressed = store.studies("ablation"), sweep.sweeps(store), store.studies("stress")
    moved = transfer.transfers(store)
    known = [*compared, *searched, *stressed, *moved]
    wanted = list(dict.fromkeys(studies or (compared if format == "latex" else known)))  # others have no LaTeX form
    for study in wanted:
        if study not in known:
            raise PlanError(f'the store has no study "{study}"', where=store.root, hint=suggestion(study, known))
    pages = format in ("all", "html")
    outcomes = []
    for study in wanted:
        try:
            if study in searched:
                outcome = Outcome(study, tuple(sweep.write(store, study, out, format=format, index=pages)))
            elif study in stressed:
                stamp, form = of_study(store, study, allow_missing=allow_missing).whole, (format, pages)
                paths = standing(store, study, out / study, stamp, form)
                if paths is None:
                    paths = stress_page.write(
                        store, study, out, allow_missing=allow_missing, format=format, index=pages
                    )
                    note(store, study, out / study, stamp, form, paths)
                outcome = Outcome(study, tuple(paths))
            elif study in moved:
                both = transfer.retained(store, *moved[study], allow_missing=allow_missing)
                outcome = Outcome(study, tuple(transfer.write(store, both, out, index=pages)))
            elif (there := _standing(store, study, out, allow_missing, format, pages, spread)) is not None:
                outcome = Outcome(study, tuple(there))
            else:
                found = compare(read(store, study, allow_missing=allow_missing))
                outcome = Outcome(study, tuple(_write(store, found, out, format, pages, spread)), found)
        except VlbenchError as problem:
            outcome = Outcome(study, problem=problem)
        outcomes.append(outcome)
        if done is not None:
            done(outcome)
    if pages:
        write_index(store, out, allow_missing=allow_missing, known=outcomes)
    return outcomes


def write_index(store: Store, out: Path, *, allow_missing: bool = False, known: Sequence[Outcome] = ()) -> Path:
    """``out/index.html`` over every study, sweep and stress study of the store, with a link where a page was written.

    known: studies that were judged already, so that they are not judged again.
    """
    by_name = {outcome.study: outcome for outcome in known}
    entries = [_line(store, study, by_name.get(study), out, allow_missing) for study in store.studies("ablation")]
    entries += [*sweep.entries(store, out), *stress_page.entries(store, out), *transfer.entries(store, out)]
    path = out / "index.html"
    files.save(path, index_page(entries).encode())
    return path


def _line(store: Store, study: str, known: Outcome | None, out: Path, allow_missing: bool) -> Entry:
    if known is None or (known.comparison is None and known.problem is None):
        return _judged(store, study, out, allow_missing)
    entry = _entry(store, known, out)
    if known.comparison is not None and (judged := known.comparison.frame.stamp.judged):
        keep(store, study, judged, entry)
    return entry


def _judged(store: Store, study: str, out: Path, allow_missing: bool) -> Entry:
    """A study's line, read and compared only if nothing was kept of what it is now."""
    stamped = stamp(store, study, allow_missing=allow_missing)
    known = kept(store, study, stamped)
    if known is not None:
        return replace(known, href=_link(study, out))
    try:
        found = compare(read(store, study, allow_missing=allow_missing))
    except VlbenchError as problem:
        return _entry(store, Outcome(study, problem=problem), out)
    entry = _entry(store, Outcome(study, comparison=found), out)
    keep(store, study, stamped, entry)
    return entry


def _entry(store: Store, outcome: Outcome, out: Path) -> Entry:
    if outcome.comparison is not None:
        return entry_of(outcome.comparison, _link(outcome.study, out))
    try:
        question = str(store.load_plan(outcome.study).get("question", ""))
    except VlbenchError:
        question = ""
    return Entry(study=outcome.study, question=question, problem=str(outcome.problem))


def _link(study: str, out: Path) -> str:
    """From the index to a study's page, where there is one."""
    return f"{quote(study)}/index.html" if (out / study / "index.html").exists() else ""


def _write(
    store: Store, comparison: Comparison, out: Path, format: Format, index: bool, spread: latex.Spread
) -> list[Path]:
    if format not in get_args(Format):
        raise PlanError(f'"{format}" is not a format', hint=suggestion(format, get_args(Format)))
    frame = comparison.frame
    if not frame.holes:
        store.note_look(frame.study, len(frame.seeds), frame.margin, frame.looks, frame.primary)
    folder, form = out / frame.study, (comparison.checkpoint, format, index, spread)
    if (there := standing(store, frame.study, folder, frame.stamp.whole, form)) is not None:
        return there
    texts = [(name, make) for kind, name, make in _TEXTS if format in ("all", kind)]
    plots = tuple(figures.plots(comparison)) if format in ("all", "html") else ()
    drawn = [(f"figures/{plot.name}", plot) for plot in plots] if format == "all" else []
    written: list[Path] = []

    def save(name: str, content: bytes) -> None:
        files.save(folder / name, content)
        written.append(folder / name)

    for name, make in texts:
        save(name, make(comparison, spread).encode())
    for name, plot in drawn:
        save(f"{name}.svg", figures.to_svg(plot).encode())
        save(f"{name}.png", figures.to_png(plot))
        save(f"{name}.csv", figures.to_csv(plot).encode())
    if format in ("all", "html"):
        beside = tuple(str(path.relative_to(folder).as_posix()) for path in written)
        report = Report(comparison, plots, beside, explore(store, comparison))
        save("index.html", study_page(report, index=index).encode())
    made = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    save(MANIFEST, files.json_text(manifest(store, comparison, made)).encode())
    note(store, frame.study, folder, frame.stamp.whole, form, written)
    return written


def manifest(store: Store, comparison: Comparison, digests: dict[str, str]) -> dict[str, Any]:
    """The cells behind every number: ids, digests of what they are and of what they left, and who uses them; and the
    number, in points, so that it can be compared with what the cells give (see ``verify``).

    A number is found by checkpoint, arm or claim, and metric; ``from`` names the arms whose cells it is computed from.
    """
    frame = comparison.frame
    checkpoints = [comparison, *comparison.others]
    numbers = [
        {
            "checkpoint": one.checkpoint,
            "number": "mean",
            "arm": arm,
            "metric": metric,
            "from": [arm],
            "value": {"points": mean.points, "low": mean.low, "high": mean.high, "seed_sd": mean.sd_seeds},
        }
        for one in checkpoints
        for (arm, metric), mean in one.means.items()
    ]
    numbers += [
        {
            "checkpoint": one.checkpoint,
            "number": "difference",
            "claim": row.name,
            "metric": row.metric,
            "from": list(row.claim.weights),
            "value": {
                "points": row.points,
                "low": row.low,
                "high": row.high,
                "p": row.p if math.isfinite(row.p) else None,
                "p_adjusted": row.p_adjusted,
                "verdict": None if row.verdict is None else row.verdict.word,
            },
        }
        for one in checkpoints
        for row in (*one.rows, *one.effects, *one.exploratory)
    ]
    numbers += [
        {
            "checkpoint": "best",
            "number": "optimistic mean",
            "arm": arm,
            "metric": metric,
            "from": [arm],
            "value": {"points": mean},
        }
        for (arm, metric), mean in comparison.optimistic.items()
    ]
    return {
        "format": MANIFEST_FORMAT,
        "study": frame.study,
        "plan": digest(store.load_plan(frame.study)),
        "seeds": list(frame.seeds),
        "protocols": {rule: found.as_json() for rule, found in protocols(frame).items()},
        "cells": _cells(store, frame),
        "numbers": numbers,
        "missing": [str(hole) for hole in frame.holes],
        "files": digests,
    }


def _cells(store: Store, frame: Frame) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in frame.arms:
        found[arm.name] = []
        for run in arm.runs:
            entry: dict[str, Any] = {"seed": run.seed}
            for kind, cell in (("fit", run.fit), ("score", run.score)):
                try:
                    identity = digest(store.spec(cell)["identity"])
                except (StoreError, KeyError):  # a record is enough to be reported
                    identity = None
                record = run.records[kind]
                entry[kind] = {
                    "id": cell,
                    "identity": identity,
                    "record": digest(dict(record)),
                    "files": dict(record.get("files", {})),
                }
            found[arm.name].append(entry)
    return found
