"""``vlbench train``: a single fit."""

from __future__ import annotations

import click

from vlbench.cli import options
from vlbench.cli.view import print_json


@click.command(
    epilog="""\b
Examples:
  vlbench train videolights_quick
  vlbench train qd_detr --seed 2 --set train.epochs=3 --set model.width=64 --set train.batch_size=16
""",
)
@click.argument("variant")
@options.what
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@options.how
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object on stdout.")
def train(
    variant: str,
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    seed: int,
    device: str,
    precision: str | None,
    jobs: int | None,
    executor: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train one variant with one seed and score it on the reporting split.

    The fit is a cell of the store like any other: a finished one is read, an interrupted one goes on, and a later
    ablation with the same variant, data and seed uses it.
    """
    from vlbench.cards.kinds import Arm
    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit, tune
    from vlbench.cli.ablate import run_plan
    from vlbench.cli.view import show_plan
    from vlbench.data.base import open_dataset, parse_features
    from vlbench.runs.store import Store
    from vlbench.runs.work import Options
    from vlbench.studies import ablate as study
    from vlbench.studies.plan import BASELINE, expected, make_plan
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    data = open_dataset(dataset or options.DEFAULT_DATASET, workspace)
    base, tuned = tune(load_variant(variant, workspace.root), data.name)
    if changes := options.parse_settings(settings, precision):
        base = edit(base, changes, origin="--set").variant
    wanted = parse_features(features, "--features") if features else None
    base, note = study.fitting_features(base, data, wanted)
    plan = make_plan(
        study=f"train-{base.name}-{data.name}-seed{seed}",
        kind="train",
        command=options.command_line(
            "train", variant, dataset=dataset, features=features, set=settings, precision=precision, seed=seed
        ),
        question=f"What does {base.title} score with seed {seed}?",
        component="",
        adds=False,
        arms=[Arm(BASELINE, base)],
        dataset=data,
        seeds=[seed],
        primary=["mr-map", "hd-map"],
        margin=0.5,
        store=store,
        notes=[text for text in (tuned, note) if text],
    )
    runner, where = None, Options(str(store.root), str(workspace.root))
    if plan.todo and not dry_run:
        runner = options.executor(executor, jobs=jobs, device=device, options=where)
        where, _ = options.packed(options.compiled(where, [base.recipe]), runner)  # one fit is no pack
    workers = runner.slots if runner else options.slots(jobs, ["cpu"])
    heading = f"train {base.name} · {data.name} · seed {seed}"
    show_plan(plan, workers=workers, expected=expected(plan, store, device), heading=heading)
    if dry_run:
        return 0
    store.save_plan(plan.study, plan.as_json())
    failures = run_plan(plan, store, runner, where) if runner else []
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    (cell,) = plan.cells
    record = store.record(cell.score.id)
    if record is None:
        return 1
    if as_json:
        print_json({"fit": store.record(cell.fit.id), "score": record})
    else:
        _print_scores(record, store.record(cell.fit.id) or {}, str(store.folder(cell.score.id)))
    return 0


def _print_scores(record: dict[str, object], fit: dict[str, object], folder: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from vlbench import catalog

    summary = record["summary"]
    assert isinstance(summary, dict)
    selected = fit.get("selected_epoch")
    epoch = f" (epoch {selected + 1})" if isinstance(selected, int) else ""
    table = Table(title=f"{record['queries']} queries, in percent; one run says nothing about the method", box=None)
    for heading in ("metric", f"selected{epoch}", "last"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, entry in ((entry.name, entry) for entry in catalog.metrics.entries()):
        if f"selected/{name}" in summary:
            values = [f"{100 * float(summary[f'{checkpoint}/{name}']):.2f}" for checkpoint in ("selected", "last")]
            table.add_row(str(entry.facts["title"]), *values)
    Console(highlight=False).print(table)
    click.echo(f"predictions: {folder}")
