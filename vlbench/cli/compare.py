"""``vlbench compare``: is one prediction file better than another, by how much, and for which queries?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vlbench.cli import options
from vlbench.cli.view import PIPE_WIDTH


@click.command(
    epilog="""\b
Examples:
  vlbench compare qd_detr.jsonl eatr.jsonl --annotations highlight_val_release.jsonl
  vlbench compare base=b1.jsonl,b2.jsonl ours=o1.jsonl,o2.jsonl --annotations highlight_val_release.jsonl
  vlbench compare a.jsonl b.jsonl c.jsonl --annotations charades_test_release.jsonl --baseline b --out comparison
""",
)
@click.argument("methods", nargs=-1, required=True, metavar="FILE|NAME=FILE[,FILE...] ...")
@click.option(
    "--annotations",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Annotations in the field's format, plain or .gz, that all files answer.",
)
@click.option("--baseline", metavar="NAME", help="The method that the others are compared with. [default: the first]")
@click.option(
    "--primary",
    multiple=True,
    metavar="METRIC",
    help="A metric that the verdicts are about, such as mr-r1@0.7. Repeatable. [default: mr-map and hd-map]",
)
@click.option(
    "--margin",
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="The largest difference that does not matter: equivalent lies inside it.",
)
@click.option(
    "--estimand",
    type=click.Choice(["auto", "general", "benchmark", "checkpoint"]),
    default="auto",
    show_default=True,
    help="What is random: runs and queries, runs, or queries. auto: runs and queries where each method has two runs.",
)
@click.option(
    "--cluster",
    type=click.Choice(["auto", "source", "video", "query"]),
    default="auto",
    show_default=True,
    help="Queries that vary together: of one source video, of one video, or none. auto: source video where known.",
)
@click.option(
    "--allow-missing", is_flag=True, help="Count a query that a file does not answer as 0 instead of stopping."
)
@options.scoring
@click.option(
    "--top",
    default=5,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="List as many of the queries that gained most, and of those that lost most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in points and unrounded.")
@click.option(
    "--csv",
    "csv_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a row per method, metric and kind of queries.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for compare.md, compare.csv, compare.json and queries.parquet, which has a row per query and run.",
)
def compare(
    methods: tuple[str, ...],
    annotations: Path,
    baseline: str | None,
    primary: tuple[str, ...],
    margin: float,
    estimand: str,
    cluster: Any,
    allow_missing: bool,
    clip_s: float,
    mode: Any,
    top: int,
    as_json: bool,
    csv_file: Path | None,
    out: Path | None,
) -> int:
    """Test prediction files against a baseline, query by query, and say where they differ.

    A method is a file, named after itself, or NAME=FILE,FILE,... with a file per training run. With one run of each the
    answer is about these checkpoints; a claim about the methods needs more. All files have to answer the same annotated
    queries.

    Exit status: 0 compared, 2 the files cannot be read or do not belong together.
    """
    from vlbench.report import versus as report
    from vlbench.studies import versus

    for value, name in ((clip_s, "--clip"), (margin, "--margin")):
        if not 0 < value < float("inf"):
            raise click.BadParameter("has to be positive", param_hint=name)
    with _busy():
        found = versus.compare(
            versus.read(
                versus.parse(methods),
                annotations,
                baseline=baseline,
                cluster=cluster,
                primary=primary,
                mode=mode,
                clip_s=clip_s,
                allow_missing=allow_missing,
            ),
            margin=margin,
            estimand=None if estimand == "auto" else estimand,  # type: ignore[arg-type]
        )
    written = [] if csv_file is None else [report.save(csv_file, report.to_csv(found))]
    written += [] if out is None else report.write(found, out, number=top)
    if as_json:
        click.echo(report.to_json(found, number=top), nl=False)
        return 0
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(report.terminal(found, number=top))
    for path in written:
        click.echo(f"written: {path}")
    return 0


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A sign of life on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("reading and scoring"):
        yield
