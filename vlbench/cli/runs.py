"""``vlbench runs``: the cells of the store, and how often they looked at a reporting split."""

from __future__ import annotations

import click


@click.group(
    epilog="""\b
Examples:
  vlbench runs list
  vlbench runs ledger
  vlbench runs publish
"""
)
def runs() -> None:
    """List the cells of the store, show one, count looks at reporting splits, publish to MLflow."""


@runs.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """List every cell with its state."""
    import json

    from vlbench.runs.store import Store
    from vlbench.workspace import find

    store = Store(find().store)
    for cell_id in store.cell_ids():
        spec, status = store.spec(cell_id), store.status(cell_id)
        identity, run = spec["identity"], spec["run"]
        what = run.get("variant") or f"of {identity['fit']}"
        row = {"id": cell_id, "kind": identity["kind"], "status": str(status), "of": what, "dataset": run["dataset"]}
        if "seed" in identity:
            row["seed"] = identity["seed"]
        click.echo(json.dumps(row) if as_json else "  ".join(str(value) for value in row.values()))


@runs.command("show")
@click.argument("cell")
def show(cell: str) -> None:
    """Show one cell: its spec, record, failure and provenance, as JSON."""
    import json

    from vlbench.errors import StoreError, suggestion
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    store = Store(find().store)
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
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    lines = Store(find().store).ledger()
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
    from vlbench.runs.store import Store
    from vlbench.status import Status
    from vlbench.track.mlflow import Session, runs_of, tracking_uri
    from vlbench.workspace import find

    store = Store(find().store)
    plans = [store.load_plan(name) for name in studies or store.studies()]
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
