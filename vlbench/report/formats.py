"""The comparison as text: Markdown to paste, CSV and JSON to compute with. LaTeX has a module of its own.

Markdown prints what the page prints, rounded; CSV and JSON hold unrounded numbers in points. Every format lists what is
missing.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import asdict
from typing import Any

from vlbench.report import checkpoints, files, words
from vlbench.report.answer import in_words
from vlbench.report.compare import ALPHA, LEVEL, Comparison, Mean, Row
from vlbench.report.frame import ArmFrame, title_of
from vlbench.report.latex import to_latex as to_latex
from vlbench.report.lattice import readings_table
from vlbench.report.methods import advice, cautions, methods, notes, population
from vlbench.report.oddities import details
from vlbench.report.spread import cheaper
from vlbench.report.tables import (
    Cell,
    Table,
    arms_table,
    checkpoints_table,
    effects_table,
    errors_table,
    exploratory_table,
    holes_table,
    metric_table,
    provenance_table,
)

RESULTS_FORMAT = 1  # of results.json, raised when a key changes its meaning


# --- Markdown ---------------------------------------------------------------------------------------------------------


def to_markdown(comparison: Comparison) -> str:
    """The whole report, plain enough to read unrendered."""
    frame = comparison.frame
    parts = [f"# {md(frame.question)}", f"Study `{frame.study}`."]
    parts += [md(sentence) for sentence in in_words(comparison)]
    parts += [f"**{md(sentence)}**" for sentence in comparison.answers.values()]
    parts += [f"> {md(caution)}" for caution in cautions(comparison)]
    parts += ["## The plan", md_table(arms_table(comparison))]
    for metric in comparison.metrics:
        parts += [f"## {md(title_of(metric))}"]
        parts += [md_table(effects_table(comparison, metric))] if comparison.lattice else []
        parts += [md_table(metric_table(comparison, metric))]
        if said := advice(comparison, metric):
            parts.append("\n".join(f"- {md(remark)}" for remark in said))
    together = [table for metric in comparison.metrics if (table := readings_table(comparison, metric)) is not None]
    parts += ["## How the components go together", *map(md_table, together)] if together else []
    parts += ["## Uncertainty and effect sizes", md_table(errors_table(comparison))]
    if said := cheaper(comparison):
        parts.append("\n".join(f"- {md(sentence)}" for sentence in said))
    parts += ["## How the epoch was chosen", md_table(checkpoints_table(comparison))]
    if comparison.exploratory:
        parts += ["## Exploratory metrics", md_table(exploratory_table(comparison))]
    parts += ["## How it was measured", "\n".join(f"- **{md(a)}.** {md(b)}" for a, b in methods(comparison))]
    if found := notes(comparison):
        parts += ["## Notes", "\n".join(f"- {md(note)}" for note in found)]
    if frame.holes:
        parts += ["## Missing", md_table(holes_table(comparison))]
    parts += ["## Provenance", md_table(provenance_table(comparison))]
    return "\n\n".join(parts) + "\n"


def md_table(table: Table) -> str:
    """A caption, a line and the table."""
    head = "| " + " | ".join(md(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|"
    rows = ["| " + " | ".join(_md_cell(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join([md(table.caption), "", head, rule, *rows])


def _md_cell(cell: Cell) -> str:
    text = md(cell.text)
    return f"**{text}**" if cell.strong else text


def md(text: str) -> str:
    """Names are text, never markup."""
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(words.plain(text).split()))


# --- CSV and JSON -----------------------------------------------------------------------------------------------------


def to_csv(comparison: Comparison) -> str:
    """One line per checkpoint, arm and metric; unrounded points; empty where a number does not exist."""
    lines = records(comparison)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in line.items()} for line in lines)
    return stream.getvalue()


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """The lines of the CSV: every arm's means, with the difference where the arm is a claim; then the other claims."""
    frame = comparison.frame
    missing = "; ".join(str(hole) for hole in frame.holes)
    lines = []
    for one in _checkpoints(comparison):
        rows = {(row.name, row.metric): row for row in (*one.rows, *one.effects, *one.exploratory)}

        def line(name: str, metric: str, content: dict[str, Any], one: Comparison = one) -> dict[str, Any]:
            head = {"study": frame.study, "dataset": frame.dataset, "split": frame.split, "checkpoint": one.checkpoint}
            head["protocol"] = checkpoints.protocol(frame, one.checkpoint).label
            kind = "primary" if metric in one.metrics else "exploratory"
            return {**head, "name": name, "metric": metric, "kind": kind, **content, "missing": missing}

        for (arm, metric), mean in one.means.items():
            entry = next(found for found in frame.arms if found.name == arm)
            cost = _cost(entry)
            row = rows.pop((arm, metric), None)
            what = "arm" if row is None else row.claim.kind
            lines.append(line(arm, metric, {"what": what, **cost, **_mean_json(mean), **_row_json(row)}))
        unknown = dict.fromkeys([*cost, *_mean_json(mean)])
        for (name, metric), row in rows.items():
            lines.append(line(name, metric, {"what": row.claim.kind, **unknown, **_row_json(row)}))
    return lines


def _cost(arm: ArmFrame) -> dict[str, float | int | None]:
    """Means over the runs; the peak is that of the highest."""
    return {
        "parameters": arm.parameters,
        "flops": arm.flops,
        "training_seconds": arm.seconds,
        "device_seconds": arm.device_seconds,
        "peak_bytes": arm.peak_bytes,
    }


def to_json(comparison: Comparison) -> str:
    """Everything as one object with unrounded numbers in points."""
    return files.json_text(as_json(comparison))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What ``to_json`` writes."""
    frame = comparison.frame
    return {
        "format": RESULTS_FORMAT,
        "study": frame.study,
        "kind": frame.kind,
        "question": frame.question,
        "component": frame.component,
        "component_title": frame.component_title,
        "adds": frame.adds,
        "answer": comparison.answer,
        "answers": dict(comparison.answers),
        "unit": "points",
        "dataset": frame.dataset,
        "split": frame.split,
        "queries": len(frame.queries),
        "source_videos": None if frame.clusters is None else len(set(frame.clusters)),
        "seeds": list(frame.seeds),
        "seeds_planned": list(frame.planned),
        "looks": list(frame.looks),
        "unplanned": frame.unplanned,
        "design": None
        if frame.design is None
        else {
            "kind": frame.design.kind,
            "factors": [{"name": factor.name, "title": factor.title} for factor in frame.design.factors],
            "cells": dict(frame.design.cells),
        },
        "primary": list(frame.primary),
        "family": len(comparison.rows),
        "correction": {"primary": "holm", "exploratory": "benjamini-hochberg"},
        "alpha": ALPHA,
        "level": LEVEL,
        "margin": frame.margin,
        "estimand": comparison.estimand,
        "population": population(comparison),
        "selection": frame.selection,
        "arms": [
            {
                "name": arm.name,
                "variant": arm.variant,
                "features": arm.features,
                "edits": list(arm.edits),
                **_cost(arm),
                "seeds": len(arm.runs),
            }
            for arm in frame.arms
        ],
        "checkpoints": {
            one.checkpoint: {
                "primary": [_named_row(row) for row in one.rows],
                "effects": [_named_row(row) for row in one.effects],
                "exploratory": [_named_row(row) for row in one.exploratory],
                "means": [{"arm": mean.arm, "metric": mean.metric, **_mean_json(mean)} for mean in one.means.values()],
            }
            for one in _checkpoints(comparison)
        },
        "verdict_checkpoint": comparison.checkpoint,
        "protocols": {rule: found.as_json() for rule, found in checkpoints.protocols(frame).items()},
        "optimistic": [{"arm": arm, "metric": m, "mean": mean} for (arm, m), mean in comparison.optimistic.items()],
        "ledger": None if frame.ledger is None else asdict(frame.ledger),
        "reported": [
            {"arm": x.arm, "metric": x.metric, "value": x.value, "split": x.split, "source": x.source}
            for x in comparison.published
        ],
        "unavailable": dict(comparison.unavailable),
        "cautions": cautions(comparison),
        "notes": notes(comparison),
        "advice": {metric: advice(comparison, metric) for metric in comparison.metrics},
        "scoring": [{"run": run, "warning": sentence} for run, sentence in details(comparison)],
        "missing": [
            {
                "arm": hole.arm,
                "seed": hole.seed,
                "fit": hole.fit,
                "score": hole.score,
                "state": str(hole.status),
                "cause": hole.cause,
            }
            for hole in frame.holes
        ],
        "left_out": list(frame.left_out),
    }


def _checkpoints(comparison: Comparison) -> list[Comparison]:
    return [comparison, *comparison.others]


def _mean_json(mean: Mean) -> dict[str, Any]:
    return {
        "seeds": mean.seeds,
        "queries": mean.queries,
        "mean": mean.points,
        "mean_low": mean.low,
        "mean_high": mean.high,
        "seed_sd": mean.sd_seeds,
    }


def _named_row(row: Row) -> dict[str, Any]:
    by_seed = list(row.by_seed)
    claim = {"claim": row.name, "what": row.claim.kind, "weights": dict(row.claim.weights), "planned": row.planned}
    return {**claim, "metric": row.metric, "title": row.title, **_row_json(row), "by_seed": by_seed}


def _row_json(row: Row | None) -> dict[str, Any]:
    """A difference as flat numbers; the same keys with None for the baseline, which has no difference."""
    found: dict[str, Any] = dict.fromkeys(
        (
            "plus",
            "minus",
            "difference",
            "low",
            "high",
            "estimand",
            "se",
            "df",
            "p",
            "p_adjusted",
            "correction",
            "verdict",
            "negligible",
            "share_runs",
            "share_queries",
            "mde",
            "seeds_needed",
            "se_general",
            "se_benchmark",
            "se_checkpoint",
            "clusters",
            "wins",
            "ties",
            "losses",
            "relative",
            "d_z",
            "hedges_g",
            "improvement",
        )
    )
    if row is None:
        return found
    found |= {
        "plus": row.claim.plus,
        "minus": row.claim.minus,
        "difference": row.points,
        "low": row.low,
        "high": row.high,
        "estimand": row.contrast.estimand,
        "se": 100 * row.contrast.se,
        "df": _finite(row.contrast.df),
        "p": _finite(row.p),
        "p_adjusted": row.p_adjusted,
        "correction": "holm" if row.kind == "primary" else "benjamini-hochberg",
        "clusters": row.contrast.clusters,
        "wins": row.wins,
        "ties": row.ties,
        "losses": row.losses,
        "relative": row.relative,
        "d_z": row.d_z,
        "hedges_g": row.hedges_g,
        "improvement": row.improvement,
        "share_runs": None if row.shares is None else row.shares[0],
        "share_queries": None if row.shares is None else row.shares[1],
        **{f"se_{name}": se for name, se in row.standard_errors.items()},
    }
    if row.verdict is not None:
        found |= {
            "verdict": row.verdict.word,
            "negligible": row.verdict.negligible,
            "mde": row.verdict.mde,
            "seeds_needed": row.verdict.seeds_needed,
        }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
