"""``vlbench report``: every study of the store, rendered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vlbench.cli.view import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlbench.report.latex import Spread
    from vlbench.report.write import Format, Outcome
    from vlbench.runs.store import Store

ALL = "*"  # no study can have this name
NAMED = 20  # differences that are told one by one


@click.command(
    epilog="""\b
Examples:
  vlbench report --out reports/
  vlbench report --study ablate-fra-planted-quick --format latex
  vlbench report --allow-missing
  vlbench report --study ablate-fra --watch
  vlbench report --verify
  vlbench report --verify ablate-fra
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
@click.option(
    "--plus-minus",
    "spread",
    type=click.Choice(["sd", "se", "ci"]),
    default="sd",
    show_default=True,
    help="What LaTeX prints after a mean: sd of the runs, standard error, half a 95% interval. The caption says which.",
)
@click.option("--watch", is_flag=True, help="Render while studies run, until they are complete.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how often to look.",
)
@click.option(
    "--verify",
    is_flag=False,
    flag_value=ALL,
    metavar="[STUDY]",
    help="Write nothing: compute every number of the reports anew from the store, and compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written, or verified, as one JSON object.")
def report(
    studies: tuple[str, ...],
    allow_missing: bool,
    out: Path,
    format_: str,
    spread: str,
    watch: bool,
    every: float,
    verify: str | None,
    as_json: bool,
) -> int:
    """Render what the store holds: a page per study, an index, tables to paste and figures. Nothing is computed anew.

    A study with missing runs is not reported unless --allow-missing is given; the line says what is missing and the
    command that runs it. While a study is watched its page shows progress and curves, and no comparison: p-values that
    are looked at before the declared plan is complete tempt to stop at the best moment.

    Exit status: 0 complete, 1 some studies could not be reported or differ from their report (named), 2 a mistake in
    what was asked.
    """
    from vlbench.errors import PlanError
    from vlbench.report.latex import Spread
    from vlbench.report.sweep import sweeps
    from vlbench.report.write import Format, write_all
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    if verify is not None and watch:
        raise PlanError("--verify and --watch cannot be asked for at once", hint="watch first, then verify")
    if watch and as_json:
        raise PlanError("--watch prints lines, not JSON", where="--json", hint="watch first, then report --json")
    if watch and allow_missing:
        raise PlanError(
            "--watch shows what is missing and judges complete studies only",
            where="--allow-missing",
            hint="leave one of the two out",
        )

    store = Store(find().store)
    if not any((store.studies("ablation"), sweeps(store), store.studies("stress"), studies)):
        if as_json:
            print_json({"reports": []} if verify is not None else {"studies": [], "index": None})
        click.echo(f"no study in {store.root}", err=True)
        click.echo("make one: vlbench ablate --component fra", err=True)
        return 0
    kind, after = cast(Format, format_), cast(Spread, spread)
    if verify is not None:
        return _verify(store, out, [*studies, *([verify] if verify != ALL else [])], as_json)
    if watch:
        return _watch(store, out, studies, kind, after, every)
    told = None if as_json else _say
    outcomes = write_all(store, out, studies=studies, allow_missing=allow_missing, format=kind, spread=after, done=told)
    index = out / "index.html" if format_ in ("all", "html") else None
    if as_json:
        print_json({"studies": [_outcome(one) for one in outcomes], "index": None if index is None else str(index)})
    elif index is not None:
        click.echo(f"index: {index}")
    return 1 if any(outcome.problem is not None for outcome in outcomes) else 0


def _say(outcome: Outcome) -> None:
    """One line per study: where its report is, or why there is none."""
    if outcome.problem is not None:
        problem = str(outcome.problem).removeprefix(f"{outcome.study}: ")
        click.echo(f"{outcome.study}: not reported: {problem}", err=True)
        return
    pages: list[Any] = [path for path in outcome.written if path.suffix == ".html"]
    shown = pages[0] if pages else outcome.written[0]
    holes = len(outcome.comparison.frame.holes) if outcome.comparison is not None else 0  # a sweep compares nothing
    missing = f" ({holes} {'run' if holes == 1 else 'runs'} missing)" if holes else ""
    click.echo(f"{outcome.study}: {shown}{missing}")


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "study": outcome.study,
        "files": [str(path) for path in outcome.written],
        "missing": [] if outcome.comparison is None else [str(hole) for hole in outcome.comparison.frame.holes],
        "problem": None if outcome.problem is None else str(outcome.problem),
    }


def _verify(store: Store, out: Path, studies: Sequence[str], as_json: bool) -> int:
    """A line per report, and one per difference."""
    from dataclasses import asdict

    from vlbench.errors import PlanError, suggestion
    from vlbench.report.sweep import sweeps
    from vlbench.report.transfer import transfers
    from vlbench.report.verify import reports, verify

    there = reports(out)
    known = [*there, *store.studies("ablation"), *sweeps(store), *store.studies("stress"), *transfers(store)]
    for study in studies:
        if study not in known:
            raise PlanError(f'the store has no study "{study}"', where=store.root, hint=suggestion(study, known))
    named = list(dict.fromkeys(studies)) or there
    if not named:
        click.echo(f"no report in {out}", err=True)
    found = [verify(store, study, out) for study in named]
    if as_json:
        print_json({"reports": [asdict(one) for one in found]})
    for one in () if as_json else found:
        click.echo(one.line)
        for note in one.notes:
            click.echo(f"  note: {note}", err=True)
        for problem in one.problems[:NAMED]:
            click.echo(f"  {problem}", err=True)
        if len(one.problems) > NAMED:
            click.echo(f"  and {len(one.problems) - NAMED} more", err=True)
    return 1 if any(one.problems for one in found) else 0


def _watch(store: Store, out: Path, studies: Sequence[str], format_: Format, spread: Spread, every: float) -> int:
    """A line whenever something has changed. Sweeps come first: their winners are fitted after them."""
    from vlbench.report import sweep
    from vlbench.report.progress import watch

    searched = [study for study in studies if study in sweep.sweeps(store)]
    problems = sweep.watch(store, out, studies=searched, format=format_, every_s=every, say=click.echo)
    named = [study for study in studies if study not in searched]
    if named or not searched:
        named = _known(store, named)
        problems += watch(store, out, studies=named, format=format_, spread=spread, every_s=every, say=click.echo)
    for problem in problems:
        click.echo(problem, err=True)
    return 1 if problems else 0


def _known(store: Store, named: Sequence[str] = ()) -> list[str]:
    """The studies of the store, or those named. Raises: PlanError for a name that the store does not have."""
    from vlbench.errors import PlanError, suggestion

    known = [*store.studies("ablation"), *store.studies("stress")]
    for study in named:
        if study not in known:
            raise PlanError(f'the store has no study "{study}"', where=store.root, hint=suggestion(study, known))
    return list(named) or known
