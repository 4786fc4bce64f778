"""``vlbench report``: every study of the store, rendered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from vlbench.report.write import Outcome


@click.command(
    short_help="Render every study in the store: pages, tables, figures.",
    epilog="""\b
Examples:
  vlbench report --out reports/
  vlbench report --study ablate-fra-planted-quick --format latex
  vlbench report --allow-missing
""",
)
@click.option("--study", "studies", multiple=True, metavar="NAME", help="Only this study. Repeatable. [default: all]")
@click.option("--allow-missing", is_flag=True, help="Report with holes, and print them in every output.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("reports"),
    show_default=True,
    help="Folder of the reports, one folder per study and an index.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["all", "html", "md", "csv", "latex", "json"]),
    default="all",
    show_default=True,
    help="all: every format, with figures as SVG, PNG and CSV.",
)
def report(studies: tuple[str, ...], allow_missing: bool, out: Path, format_: str) -> int:
    """Render what the store holds: a page per study, an index, tables to paste and figures. Nothing is computed anew.

    A study with missing runs is not reported unless --allow-missing is given; the line says what is missing and the
    command that runs it.

    Exit status: 0 complete, 1 some studies could not be reported (named), 2 a mistake in what was asked.
    """
    from vlbench.report.write import Format, write_all
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    store = Store(find().store)
    if not store.studies("ablation") and not studies:
        click.echo(f"no study in {store.root}", err=True)
        click.echo("make one: vlbench ablate --component fra", err=True)
        return 0
    outcomes = write_all(
        store, out, studies=studies, allow_missing=allow_missing, format=cast(Format, format_), done=_say
    )
    if format_ in ("all", "html"):
        click.echo(f"index: {out / 'index.html'}")
    return 1 if any(outcome.problem is not None for outcome in outcomes) else 0


def _say(outcome: Outcome) -> None:
    """One line per study: where its report is, or why there is none."""
    if outcome.problem is not None:
        problem = str(outcome.problem).removeprefix(f"{outcome.study}: ")
        click.echo(f"{outcome.study}: not reported: {problem}", err=True)
        return
    assert outcome.comparison is not None
    pages: list[Any] = [path for path in outcome.written if path.suffix == ".html"]
    shown = pages[0] if pages else outcome.written[0]
    holes = len(outcome.comparison.frame.holes)
    missing = f" ({holes} {'run' if holes == 1 else 'runs'} missing)" if holes else ""
    click.echo(f"{outcome.study}: {shown}{missing}")
