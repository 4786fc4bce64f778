"""``vlbench runs``: the cells of the store, how often they looked at a reporting split, and moving and freeing them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vlbench.runs.store import Store

STATES = ("done", "running", "interrupted", "failed", "new")

_study = click.option("--study", "studies", multiple=True, metavar="NAME", help="Only this study's cells. Repeatable.")


@click.group(
    epilog="""\b
Examples:
  vlbench runs list
  vlbench runs ledger
  vlbench runs publish
  vlbench runs export results.tar.gz
"""
)
def runs() -> None:
    """List the cells of the store, show one, count looks at reporting splits, publish, move and prune them."""


@runs.command(
    "list",
    epilog="""\b
Examples:
  vlbench runs list
  vlbench runs list --status failed --status interrupted
  vlbench runs list --json
""",
)
@click.option("--status", "states", multiple=True, type=click.Choice(STATES), help="Only these states. Repeatable.")
@_study
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(states: tuple[str, ...], studies: tuple[str, ...], as_json: bool) -> None:
    """List every cell with its state: a line each, and how many there are of each state at the end."""
    import json
    from collections import Counter

    from vlbench.report.words import counted

    store = _store()
    counts: Counter[str] = Counter()
    for cell_id in _cells(store, studies):
        status = str(store.status(cell_id))
        if states and status not in states:
            continue
        counts[status] += 1
        spec = store.spec(cell_id)
        identity, run = spec["identity"], spec["run"]
        what = run.get("variant") or f"of {identity['fit']}"
        row = {"id": cell_id, "kind": identity["kind"], "status": status, "of": what, "dataset": run["dataset"]}
        if "seed" in identity:
            row["seed"] = identity["seed"]
        click.echo(json.dumps(row) if as_json else "  ".join(str(value) for value in row.values()))
    if not as_json:
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        click.echo(counted(counts.total(), "cell") + (f": {told}" if told else ""), err=True)


@runs.command("show")
@click.argument("cell")
def show(cell: str) -> None:
    """Show one cell: its spec, record, failure and provenance, as JSON."""
    import json

    from vlbench.errors import StoreError, suggestion

    store = _store()
    found = [known for known in store.cell_ids() if known.startswith(cell)]
    if len(found) != 1:
        problem = "is not a cell" if not found else "begins several cells"
        raise StoreError(f'"{cell}" {problem} of the store', where=store.root, hint=suggestion(cell, found[:10]))
    parts = {
        "spec": store.spec(found[0]),
        "status": str(store.status(found[0])),
        "record": store.record(found[0]),
        "failure": store.failure(found[0]),
        "made_by": store.made_by(found[0]),
        "pruned": store.pruned(found[0]) or None,
        "folder": str(store.folder(found[0])),
    }
    click.echo(json.dumps(parts, indent=1))


@runs.command(
    "ledger",
    epilog="""\b
Examples:
  vlbench runs ledger
  vlbench runs ledger --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="The counts and every scoring as one JSON object.")
def ledger(as_json: bool) -> None:
    """Count how often each reporting split was looked at, by whom and since when.

    A look is one epoch's weights scored on the split. The more looks a choice has seen, the less the split can still
    tell: reports name the number of looks behind every kind of checkpoint.
    """
    import json
    from dataclasses import asdict

    from vlbench.report.words import counted
    from vlbench.runs.looks import tally

    lines = _store().ledger()
    found = tally(lines)
    if as_json:
        click.echo(json.dumps({"splits": [asdict(one) for one in found], "scorings": lines}, indent=1))
        return
    if not found:
        click.echo("no reporting split was looked at")
    for one in found:
        fits = f"{counted(one.fits, 'fit')} of {counted(one.variants, 'variant')}"
        click.echo(f"{one.dataset} · {one.split}")
        click.echo(f"  {counted(one.looks, 'look')} in {counted(one.scorings, 'scoring')} of {fits}")
        click.echo(f"  since {one.since}" + ("" if one.latest == one.since else f", latest {one.latest}"))


@runs.command("publish")
@click.option("--study", "studies", multiple=True, metavar="NAME", help="Only this study. Repeatable.")
def publish(studies: tuple[str, ...]) -> None:
    """Bring MLflow up to date with the store.

    Publishing twice leaves one run per fit. The tracker is MLFLOW_TRACKING_URI, or mlflow.db in the store.
    """
    from vlbench.errors import EnvironmentProblem
    from vlbench.status import Status
    from vlbench.track.mlflow import Session, runs_of, tracking_uri

    store = _store()
    plans = [store.load_plan(name) for name in studies or store.studies()]
    if not plans:
        click.echo(f"no study in {store.root}: nothing to publish", err=True)
        click.echo("make one: vlbench ablate --component fra", err=True)
        return
    try:
        session = Session(store)
        for plan in plans:
            known = [run for run in runs_of(plan) if store.status(run.fit) is not Status.NEW]
            for run in known:
                session.publish(plan["study"], run)
            click.echo(f"{plan['study']}: {len(known)} runs")
    except Exception as error:
        raise EnvironmentProblem(
            f"the tracker at {tracking_uri(store)} was not reached: {type(error).__name__}: {error}",
            hint="check MLFLOW_TRACKING_URI and run it again",
        ) from error


@runs.command(
    "prune",
    epilog="""\b
Examples:
  vlbench runs prune --weights --dry-run
  vlbench runs prune --weights --study ablate-fra --older-than 7d
  vlbench runs prune --failed
""",
)
@click.option("--weights", is_flag=True, help="Delete the weights of finished fits; all that reports read stays.")
@click.option("--failed", is_flag=True, help="Delete cells that failed, with their checkpoints.")
@_study
@click.option("--older-than", metavar="AGE", help="Only what ended longer ago than this, such as 12h, 7d or 2w.")
@click.option("--dry-run", is_flag=True, help="Tell what would go, and delete nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def prune(
    weights: bool, failed: bool, studies: tuple[str, ...], older_than: str | None, dry_run: bool, as_json: bool
) -> None:
    """Free space without losing evidence.

    Records, scores per query, predictions and curves are never deleted, so every report can still be made and verified.
    A fit whose weights went says so in a file beside its record, and only a new scoring of it would need them.
    Weights that a planned scoring waits for are kept.
    """
    import json

    from vlbench.report.words import count, counted
    from vlbench.runs import prune as freeing

    if not weights and not failed:
        raise click.UsageError("What is to go? Use --weights or --failed.")
    store = _store()
    age = None if older_than is None else freeing.age_s(older_than)
    told: dict[str, object] = {"dry_run": dry_run}
    verb = "would be freed" if dry_run else "freed"
    if weights:
        found = freeing.prunable_weights(store, studies=studies, older_than_s=age)
        fits = list(found.fits) if dry_run else list(freeing.prune_weights(store, found.fits))
        size = sum(one.bytes for one in fits)
        told["weights"] = {"fits": [one.cell for one in fits], "bytes": size, "kept_for_scoring": found.waiting}
        if not as_json:
            click.echo(f"{count(size)}B {verb}: the weights of {counted(len(fits), 'fit')}")
            if found.waiting:
                click.echo(f"{counted(found.waiting, 'fit')} kept: a scoring of theirs is planned and not finished")
    if failed:
        cells = freeing.failed_cells(store, studies=studies, older_than_s=age)
        gone = cells if dry_run else list(freeing.prune_failed(store, cells))
        size = sum(one.bytes for one in gone)
        told["failed"] = {"cells": [one.cell for one in gone], "bytes": size}
        if not as_json:
            click.echo(f"{count(size)}B {verb}: {counted(len(gone), 'failed cell')}")
    if as_json:
        click.echo(json.dumps(told, indent=1))


@runs.command(
    "export",
    epilog="""\b
Examples:
  vlbench runs export results.tar.gz
  vlbench runs export fra.tar.gz --study ablate-fra --weights
""",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_study
@click.option("--weights", is_flag=True, help="With the weights, so that a new scoring needs no training.")
def export(file: Path, studies: tuple[str, ...], weights: bool) -> None:
    """Write finished cells, their plans and their looks at reporting splits to one archive.

    It is a tar, compressed if its name ends in .gz or .tgz, with a manifest of sha256 digests. Equal cells give equal
    bytes. Without --weights it holds all that reports read.
    """
    from vlbench.report.words import count, counted
    from vlbench.runs.archive import export as write

    done = write(_store(), file, studies=studies, weights=weights)
    click.echo(f"{file}: {counted(done.cells, 'cell')}, {counted(done.studies, 'study')}, {count(done.bytes)}B")
    if done.unfinished:
        click.echo(f"{counted(done.unfinished, 'unfinished cell')} left out", err=True)


@runs.command(
    "import",
    epilog="""\b
Examples:
  vlbench runs import results.tar.gz
  vlbench runs import fra.tar.gz --cells-only
""",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--cells-only", is_flag=True, help="Leave the plans of studies out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def import_(file: Path, cells_only: bool, as_json: bool) -> None:
    """Bring the cells of an archive into the store.

    Every digest is checked before anything is placed, and each cell is placed whole. Cells that are here already are
    left as they are, and get back weights that were pruned. A cell or plan that is here with another content is
    refused, and then nothing is imported.
    """
    import json
    from dataclasses import asdict

    from vlbench.report.words import counted, listed
    from vlbench.runs.archive import import_ as read

    done = read(_store(), file, plans=not cells_only)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=1))
        return
    click.echo(f"{counted(len(done.placed), 'cell')} imported, {len(done.equal)} here already")
    if done.restored:
        click.echo(f"weights are back in {counted(len(done.restored), 'fit')}")
    if done.studies:
        click.echo(f"new: {listed(done.studies)}")
    if done.looks:
        click.echo(f"{counted(done.looks, 'scoring')} entered in the ledger")
    if done.held:
        click.echo(f"left to the process that is running them: {', '.join(done.held)}", err=True)


def _store() -> Store:
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    return Store(find().store)


def _cells(store: Store, studies: tuple[str, ...]) -> list[str]:
    """All cells, or those of the studies."""
    from vlbench.runs.prune import study_cells

    return sorted({cell for study in studies for cell in study_cells(store, study)}) if studies else store.cell_ids()
