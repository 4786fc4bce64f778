"""``vlbench ablate``: does a component help?"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options

if TYPE_CHECKING:
    from vlbench.runs.store import Store
    from vlbench.studies.plan import Plan

LIVE_S = 5.0  # between two looks at running fits for the tracker


@click.command(
    short_help="Ask whether a component, loss term or encoder helps.",
    epilog="""\b
Examples:
  vlbench ablate --component fra --dry-run
  vlbench ablate --component fra
  vlbench ablate --component slowfast --seeds 5
  vlbench ablate --component noise --seeds 3 --set train.epochs=6
  vlbench ablate --component alignment --variant videolights_quick --jobs 2
""",
)
@click.option("--component", metavar="NAME", help="A component, loss term or encoder; see vlbench list.")
@click.option("--variant", metavar="NAME", help="The variant to edit. [default: the ablation card's]")
@options.what
@click.option("--seeds", type=click.IntRange(min=1), help="Replicates per arm. [default: the ablation card's]")
@options.how
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--collect", is_flag=True, help="Report what the store has, run nothing.")
@click.option("--allow-missing", is_flag=True, help="Report with holes, and print them in every table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def ablate(
    component: str | None,
    variant: str | None,
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    seeds: int | None,
    **how: Any,
) -> int:
    """Ask whether a component helps: train what is missing, test, print the verdict and write the report.

    The baseline is the variant as its card states it. Every arm is an edit of it that is printed before anything runs;
    arms of one seed share the order of batches and the initial weights of every module they have in common.

    Exit status: 0 complete, 1 some cells failed, 2 a mistake in what was asked, 130 interrupted.
    """
    if component is None:
        raise click.UsageError("--component is missing: which one? See vlbench list components, losses or encoders.")
    from vlbench.report.words import counted
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    plan = _plan(component, variant, dataset, features, settings, precision, seeds, workspace, store)
    heading = f"ablate {component} · {plan.arms[0].variant.name} · {plan.dataset} · {counted(len(plan.seeds), 'seed')}"
    return _conduct(plan, heading, store, workspace.root, How(**how))


def _plan(
    component: str,
    variant: str | None,
    dataset_name: str | None,
    features: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    seeds: int | None,
    workspace: Any,
    store: Store,
) -> Plan:
    from vlbench.canon import digest
    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit
    from vlbench.data.base import open_dataset, parse_features
    from vlbench.studies import ablate as study
    from vlbench.studies.plan import make_plan

    card = study.find(component, workspace.root)
    variant_name = variant or (card.variants[0] if card else options.DEFAULT_VARIANT)
    dataset_name = dataset_name or (card.dataset if card and card.dataset else options.DEFAULT_DATASET)
    base = load_variant(variant_name, workspace.root)
    dataset = open_dataset(dataset_name, workspace)
    changes = options.parse_settings(settings, precision)
    notes = []
    if changes:
        base = edit(base, changes, origin="--set").variant
        notes += [f"in every arm: {key} = {value}" for key, value in changes.items()]
    wanted = parse_features(features, "--features") if features else None
    base, note = study.fitting_features(base, dataset, wanted)
    notes += [note] if note else []
    question = study.ask(component, base, dataset, card)
    name = f"ablate-{component.replace('.', '-').replace('/', '-')}"
    if variant_name != (card.variants[0] if card else options.DEFAULT_VARIANT):
        name += f"-{Path(variant_name).stem}"
    if dataset_name != options.DEFAULT_DATASET:
        name += f"-{dataset_name}"
    if changes or wanted:  # other settings are another study, not a new state of this one
        name += f"-{digest([changes, str(wanted)])[:6]}"
    number = seeds or question.ablation.seeds
    return make_plan(
        study=name,
        kind="ablation",
        command=options.command_line(
            "ablate",
            component=component,
            variant=variant,
            dataset=None if dataset_name == options.DEFAULT_DATASET else dataset_name,
            features=features,
            set=settings,
            precision=precision,
            seeds=number,
        ),
        question=question.ablation.question,
        component=component,
        adds=question.adds,
        arms=question.arms,
        dataset=dataset,
        seeds=range(1, number + 1),
        primary=question.ablation.primary,
        margin=question.ablation.margin,
        store=store,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class How:
    """How a study is run and answered; none of it changes what the cells are."""

    device: str
    jobs: int | None
    executor: str
    out: Path
    dry_run: bool
    collect: bool
    allow_missing: bool
    as_json: bool


def _conduct(plan: Plan, heading: str, store: Store, root: Path, how: How) -> int:
    """Show the plan, run what is missing, publish, compare and write the report."""
    from vlbench.cli.view import show_plan
    from vlbench.studies.plan import expected_seconds

    found = ["cpu"] if how.dry_run or how.collect or not plan.todo else options.devices(how.device)
    workers = options.slots(how.jobs, found)
    show_plan(plan, workers=workers, expected_s=expected_seconds(plan, store), heading=heading)
    if how.dry_run:
        if how.as_json:
            _print_json(plan.as_json())
        return 0
    store.save_plan(plan.study, plan.as_json())
    failures: list[str] = []
    if plan.todo and not how.collect:
        failures = _run(plan, store, root, found, workers, how.executor)
    return _answer(plan, store, failures, how)


def _run(plan: Plan, store: Store, root: Path, found: list[str], workers: int, executor: str) -> list[str]:
    import contextlib

    from vlbench import catalog
    from vlbench.cli.view import watch
    from vlbench.runs.work import Options
    from vlbench.studies.conduct import conduct
    from vlbench.track.mlflow import Publisher, runs_of

    runner = catalog.executors[executor].load()(jobs=workers, devices=found)
    publisher = Publisher(store, plan.study, runs_of(plan.as_json()))
    running: set[str] = set()
    published = time.monotonic()

    def live() -> None:
        nonlocal published
        if time.monotonic() - published > LIVE_S:
            published = time.monotonic()
            for fit_id in running:
                publisher.publish(fit_id)

    moments = conduct(plan, store, runner, Options(str(store.root), str(root)))
    with contextlib.closing(moments):
        failures = watch(_noting(moments, running, publisher), plan, live)
    if (problem := publisher.close()) is not None:
        click.echo(f"the tracker was not reached ({problem}); later: vlbench runs publish", err=True)
    return failures


def _noting(moments: Any, running: set[str], publisher: Any) -> Any:
    """Pass moments on, keeping which fits have news for the tracker."""
    for moment in moments:
        if moment.cell is not None:
            running.add(moment.cell.fit.id)
            if moment.kind != "epoch":
                publisher.publish(moment.cell.fit.id)
                running.discard(moment.cell.fit.id)
        yield moment


def _answer(plan: Plan, store: Store, failures: list[str], how: How) -> int:
    """Print the comparison and write the report of what the store has."""
    from rich.console import Console

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.errors import PlanError
    from vlbench.report.compare import compare
    from vlbench.report.formats import as_json as result_json
    from vlbench.report.frame import read
    from vlbench.report.tables import terminal
    from vlbench.report.write import write, write_index

    allow_missing = how.allow_missing or how.collect
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    try:
        frame = read(store, plan.study, allow_missing=allow_missing)
    except PlanError as error:
        if not failures:
            raise
        click.echo(f"no verdict: {error}", err=True)
        return 1
    comparison = compare(frame)
    if how.as_json:
        _print_json(result_json(comparison))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(terminal(comparison))
    paths = write(store, plan.study, how.out, allow_missing=allow_missing)
    write_index(store, how.out, allow_missing=True)
    page = next(path for path in paths if path.suffix == ".html")
    click.echo(f"report: {page}", err=how.as_json)
    return 1 if failures else 0


def _print_json(content: Any) -> None:
    import json

    click.echo(json.dumps(content, indent=1, allow_nan=False))
