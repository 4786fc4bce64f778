"""``vlbench score``: what is a prediction file worth, and what is odd about it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlbench.data.types import Prediction, Query
    from vlbench.metrics.base import Scores

EVALUATORS = ("auto", "moment_detr", "videolights", "univtg", "lighthouse", "umt", "qd")


@click.command(
    epilog="""\b
Examples:
  vlbench score hl_val_submission.jsonl --annotations highlight_val_release.jsonl
  vlbench score preds.jsonl.gz --annotations charades_test_release.jsonl --evaluator univtg --json
  vlbench score preds.jsonl --annotations highlight_val_release.jsonl --mode strict --per-query queries.csv
""",
)
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--annotations",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Annotations in the field's format, plain or .gz: QVHighlights, moment-only, TVSum, YouTube Highlights.",
)
@options.scoring
@click.option(
    "--evaluator",
    type=click.Choice(EVALUATORS),
    default="auto",
    show_default=True,
    help="Whose published summary to reproduce; auto: the one used for such annotations.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in percent and unrounded.")
@click.option(
    "--per-query",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a row per query, in fractions: .csv, .jsonl or .parquet.",
)
def score(
    predictions: Path,
    annotations: Path,
    clip_s: float,
    mode: Any,
    evaluator: str,
    as_json: bool,
    per_query: Path | None,
) -> int:
    """Score a prediction file of the field's format, and say what is odd about it.

    The file has a JSON object per line: qid (or vid), pred_relevant_windows as [start s, end s, score] and
    pred_saliency_scores, one number per clip. Queries without a prediction count as 0.

    Exit status: 0 scored, 2 the files cannot be read or do not belong together.
    """
    from vlbench.data.annotations import read_annotations
    from vlbench.data.predictions import read_predictions
    from vlbench.metrics import compatible
    from vlbench.metrics.base import score as score_queries

    if clip_s <= 0:
        raise click.BadParameter("has to be positive", param_hint="--clip")
    writer = _writer(per_query) if per_query is not None else None
    queries: Sequence[Query] = read_annotations(annotations, clip_s=clip_s)
    rows = read_predictions(predictions)
    _check(queries, rows, annotations, predictions)
    queries, notes = _domains(queries, rows)
    scores = score_queries(queries, rows, mode=mode, clip_s=clip_s)
    name, official, remarks = compatible.summary(queries, rows, evaluator)
    warnings = list(dict.fromkeys([*notes, *scores.warnings, *remarks]))
    metrics = {metric: 100 * value for metric, value in scores.means().items()}
    if writer is not None and per_query is not None:
        writer(per_query, _table(queries, scores))
    if as_json:
        _print_json(
            {
                "evaluator": name,
                "mode": mode,
                "queries": len(queries),
                "official": official,
                "metrics": metrics,
                "warnings": warnings,
            }
        )
    else:
        _print_table(predictions, name, official, scores, metrics, warnings)
    return 0


def _check(queries: Sequence[Query], rows: Sequence[Prediction], annotations: Path, predictions: Path) -> None:
    from vlbench.errors import DataError

    if all(query.windows_se is None and query.saliency is None and query.labels is None for query in queries):
        raise DataError("holds neither windows nor saliency nor labels, so nothing can be scored", where=annotations)
    if not rows:
        raise DataError("holds no prediction", where=predictions)


def _domains(queries: Sequence[Query], rows: Sequence[Prediction]) -> tuple[Sequence[Query], list[str]]:
    """Models of TVSum and YouTube Highlights are trained per domain: a domain without any prediction is left out."""
    given = {row.qid for row in rows}
    if any(query.labels is None or query.domain is None for query in queries):
        return queries, []
    domains = {query.domain for query in queries if query.qid in given}
    kept = [query for query in queries if query.domain in domains]
    if not kept or len(kept) == len(queries):
        return queries, []
    names = ", ".join(sorted(str(domain) for domain in domains))
    return kept, [f"the predictions are for {names}: {len(queries) - len(kept)} videos of other domains are left out"]


def _print_json(result: dict[str, Any]) -> None:
    import json
    import math

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    click.echo(json.dumps(plain(result), ensure_ascii=False, allow_nan=False))


def _print_table(
    path: Path,
    evaluator: str,
    official: dict[str, float],
    scores: Scores,
    metrics: dict[str, float],
    warnings: Sequence[str],
) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from vlbench import catalog

    console = Console(highlight=False)
    total = len(scores.qids)
    console.print(f"{path.name} · {total} {'query' if total == 1 else 'queries'} · {scores.mode} mode", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("metric")
    table.add_column("percent", justify="right")
    table.add_column("queries", justify="right")
    table.add_column("name", style="dim")
    for metric, value in metrics.items():
        entry = catalog.metrics[metric]
        if not entry.facts.get("detail", False):
            inside = int((~np.isnan(scores.values[metric])).sum())
            table.add_row(str(entry.facts["title"]), f"{value:.2f}", str(inside), metric)
    console.print(table)
    if official:
        click.echo(f"  published summary of the {evaluator} evaluator, unrounded: --json")
    for warning in warnings:
        click.echo(f"  odd: {warning}")
    if not warnings:
        click.echo("  nothing odd about the file")


def _table(queries: Sequence[Query], scores: Scores) -> dict[str, list[Any]]:
    """Columns of equal length; None where a query is not in a metric's population."""
    columns: dict[str, list[Any]] = {
        "qid": [query.qid for query in queries],
        "vid": [query.vid for query in queries],
        "source_video": [query.source_video for query in queries],
    }
    for metric, values in scores.values.items():
        columns[metric] = [None if value != value else value for value in values.tolist()]
    return columns


def _writer(path: Path) -> Any:
    """The writer for a file's ending, known before anything is computed."""
    from vlbench.errors import DataError

    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise DataError(
            f"cannot be written as {path.suffix or 'a file without ending'}",
            where=path,
            hint="use .csv, .jsonl or .parquet",
        )
    if not path.parent.is_dir():
        raise DataError("the folder does not exist", where=path.parent)
    return writers[path.suffix]


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_jsonl(path: Path, columns: dict[str, list[Any]]) -> None:
    import json

    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len({type(qid) for qid in columns["qid"]}) > 1:
        columns = {**columns, "qid": [str(qid) for qid in columns["qid"]]}
    pq.write_table(pa.table(columns), path)
