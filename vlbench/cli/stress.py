"""``vlbench stress``: how do variants degrade when inputs, labels or heads are spoiled?"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options
from vlbench.cli.view import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlbench.runs.executors import Executor
    from vlbench.runs.store import Store
    from vlbench.runs.work import Options
    from vlbench.studies.plan import Plan
    from vlbench.studies.stress import StressPlan

SAID_S = 10.0  # between two counts where nobody sees a line change


@click.command(
    epilog="""\b
Examples:
  vlbench stress --variant videolights_quick --dry-run
  vlbench stress --variant videolights_quick --seeds 2 --set train.epochs=3 --dry-run
  vlbench stress --variant videolights_quick --variant videolights_b_quick --dry-run
  vlbench stress --variant videolights_quick --family gauss --family modality_drop:clip --levels 1,3,5 --dry-run
  vlbench stress --variant videolights_quick --family head_noise --set model.feedback.use=both --dry-run
  vlbench stress --variant videolights_quick --family label_noise --seeds 3 --dry-run
  vlbench stress --variant videolights_quick --calibrate --dry-run
""",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help=f"A variant; others are compared with the first. Repeatable. [default: {options.DEFAULT_VARIANT}]",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME[:ENCODER]",
    help="A family of corruptions, of one encoder alone if named; see vlbench list corruptions. Repeatable. "
    "[default: every evaluation-time family]",
)
@click.option("--levels", default="1-5", show_default=True, metavar="LIST", help="Such as 1-5 or 1,3,5; 0 is clean.")
@click.option("--draws", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of the noise.")
@options.what
@click.option("--seeds", type=click.IntRange(min=1), help="Fits per variant. [default: those in the store, else 3]")
@click.option(
    "--severities",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="How strong each level is, as --calibrate writes it. [default: built in]",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Measure what each family costs the first variant, and write a table where level 5 costs 40 to 70 percent.",
)
@click.option(
    "--equivalence-margin",
    "margin",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Differences inside it do not matter.",
)
@options.how
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--collect", is_flag=True, help="Report what the store has, run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def stress(
    variants: tuple[str, ...],
    families: tuple[str, ...],
    levels: str,
    draws: int,
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    seeds: int | None,
    severities: Path | None,
    calibrate: bool,
    margin: float,
    **how: Any,
) -> int:
    """Ask how variants degrade: score their finished fits under noise, test who loses less, and write the report.

    Fits that the store has are used; only missing ones are trained. Inputs are spoiled in memory before they are
    normalised, by noise that hangs on family, video or query and draw alone, so every variant, seed and level meets the
    same. Training-time families (label_noise, handed_noise, undertrained_head ...) train fits of their own.

    A variant is called more robust if it loses less and its corrupted score is not lower; else it loses less because
    it had less to lose. A variant that ignores its query is named at the top.

    Exit status: 0 complete, 1 some cells failed, 2 a mistake in what was asked, 130 interrupted.
    """
    from vlbench.canon import digest
    from vlbench.cards.kinds import Arm
    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit
    from vlbench.cli.ablate import How
    from vlbench.corrupt.severities import Severities
    from vlbench.data.base import open_dataset, parse_features
    from vlbench.runs.store import Store
    from vlbench.studies import stress as study
    from vlbench.studies.ablate import fitting_features
    from vlbench.workspace import find

    chosen = study.parse_levels(levels)
    workspace = find()
    store = Store(workspace.store)
    data = open_dataset(dataset or options.DEFAULT_DATASET, workspace)
    table = Severities.read(severities)
    changes = options.parse_settings(settings, precision)
    wanted = parse_features(features, "--features") if features else None
    notes = [f"in every variant: {key} = {value}" for key, value in changes.items()]
    arms = []
    for name in variants or (options.DEFAULT_VARIANT,):
        variant = load_variant(name, workspace.root)
        if changes:
            variant = edit(variant, changes, origin="--set").variant
        variant, note = fitting_features(variant, data, wanted)
        notes += [f"{variant.name}: {note}"] if note else []
        arms.append(Arm(variant.name, variant))
    run = How(**how, allow_missing=False)
    if calibrate:
        arms = arms[:1]
    stressors, more = study.choose(families, chosen, arms, data, table)
    found = study.seeds_in_store(arms, data, store) if seeds is None else tuple(range(1, seeds + 1))
    title = f"stress-{'-'.join(arm.name for arm in arms)}"
    if families:
        title += "-" + "-".join(families).replace(":", "-").replace("/", "-")
    if data.name != options.DEFAULT_DATASET:
        title += f"-{data.name}"
    others = {"levels": levels, "draws": draws, "changes": changes, "features": str(wanted), "table": table.digest}
    usual = {"levels": "1-5", "draws": 3, "changes": {}, "features": "None", "table": Severities.read().digest}
    if others != usual:  # other settings are another study, not a new state of this one
        title += f"-{digest(others)[:6]}"
    names = [arm.name for arm in arms]
    plan = study.make_stress(
        study=title,
        command=options.command_line(
            "stress",
            variant=tuple(names),
            family=families,
            levels=None if levels == "1-5" else levels,
            draws=None if draws == study.DRAWS else draws,
            dataset=dataset,
            features=features,
            set=settings,
            precision=precision,
            seeds=seeds,
            severities=severities,
            equivalence_margin=None if margin == 0.5 else margin,
        ),
        question=_question(names, data.name),
        arms=arms,
        dataset=data,
        seeds=(found or (1,))[:1] if calibrate else found or tuple(range(1, study.SEEDS + 1)),
        stressors=stressors,
        levels=chosen,
        draws=draws,
        primary=("mr-map", "hd-map"),
        margin=margin,
        store=store,
        severities=table,
        notes=(*notes, *more),
    )
    if calibrate:
        return _calibrate(plan, store, workspace.root, run)
    heading = f"stress {', '.join(names)} · {data.name} · {len(plan.plan.seeds)} seeds · {draws} draws"
    return run_stress(plan, heading, store, workspace.root, run)


def _question(names: Sequence[str], dataset: str) -> str:
    if len(names) == 1:
        return f"How does {names[0]} degrade on {dataset}?"
    return f"Which of {', '.join(names[:-1])} and {names[-1]} loses least on {dataset} when what it reads is spoiled?"


def stressors_of(arms: Sequence[Any], families: Sequence[str], dataset: Any) -> tuple[Any, Any]:
    """The stressors of an ablation's arms, and notes on what is left out. Raises CardError where none can be."""
    from vlbench.corrupt.severities import LEVELS, Severities
    from vlbench.studies.stress import choose

    return choose(families, LEVELS[1:], arms, dataset, Severities.read(), skip=True)


def stress_arms(plan: Plan, families: Sequence[str], dataset: Any, store: Store, root: Path, how: Any) -> int:
    """Stress the arms of an ablation whose fits are finished, as ``--corrupt`` asks. A named family skips arms that it
    cannot reach, and says why.
    """
    from vlbench.corrupt.severities import LEVELS, Severities
    from vlbench.studies import stress as study

    table = Severities.read()
    levels = LEVELS[1:]
    stressors, notes = stressors_of(plan.arms, families, dataset)
    found = study.make_stress(
        study=f"stress-{plan.study}",
        command=plan.command,
        question=f"{plan.question} Which arm loses least when what it reads is spoiled?",
        arms=plan.arms,
        dataset=dataset,
        seeds=plan.seeds,
        stressors=stressors,
        levels=levels,
        draws=study.DRAWS,
        primary=plan.primary,
        margin=plan.margin,
        store=store,
        severities=table,
        notes=tuple(dict.fromkeys((*plan.notes, *notes))),
    )
    heading = f"stress the arms of {plan.study} · {plan.dataset} · {len(plan.seeds)} seeds · {study.DRAWS} draws"
    return run_stress(found, heading, store, root, how)


def run_stress(stress: StressPlan, heading: str, store: Store, root: Path, how: Any) -> int:
    """Show the plan, train and score what is missing, judge and write the report: the exit status."""
    from vlbench.cli.ablate import run_plan
    from vlbench.cli.view import show_plan
    from vlbench.runs.work import Options
    from vlbench.studies.plan import expected
    from vlbench.studies.stress import failures, look_again

    plan = stress.plan
    runner, packs, where = None, "", Options(str(store.root), str(root))
    if (plan.todo or stress.todo) and not how.dry_run and not how.collect:
        runner = options.executor(how.executor, jobs=how.jobs, device=how.device, options=where)
        where, packs = options.packed(where, runner, [cell.fit for cell in plan.todo])
    workers = runner.slots if runner else options.slots(how.jobs, ["cpu"])
    show_plan(plan, workers=workers, expected=expected(plan, store, how.device), heading=heading, packs=packs)
    _show_stressors(stress)
    if how.dry_run:
        if how.as_json:
            print_json(stress.as_json())
        return 0
    store.save_plan(plan.study, stress.as_json())
    failed: list[str] = []
    if runner is not None:
        if plan.todo:
            failed += run_plan(plan, store, runner, where)
        failed += _score(stress, store, runner, where)
        failed += failures(look_again(stress, store))
    for failure in failed:
        click.echo(f"failed: {failure}", err=True)
    return _answer(stress, store, failed, how)


def _show_stressors(stress: StressPlan) -> None:
    """Every stressor with its amounts, and how many of its scores the store has."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.status import Status

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
    table.add_column("stressor", no_wrap=True)
    table.add_column("role")
    table.add_column("level: amount", overflow="fold")
    table.add_column("in the store", justify="right", no_wrap=True)
    for one in stress.stressors:
        cells = [cell for cell in stress.cells if cell.stressor == one.key]
        done = sum(cell.status is Status.DONE for cell in cells)
        amounts = [f"{level}: {stress.severities.amount(one.family, level):g}" for level in one.levels]
        table.add_row(Text(one.key), one.role, "  ".join(amounts), f"{done} of {len(cells)} scores")
    console.print(table)
    console.print(Text(f"  severities version {stress.severities.version}, digest {stress.severities.digest}"))
    left = len(stress.todo)
    said = f"{left} scores under noise to come" if left else "every score under noise is in the store"
    if all(one.trains for one in stress.stressors):
        said = "scores come with the fits, which are trained under the noise"
    console.print(Text(f"  {said}"))


def _score(stress: StressPlan, store: Store, runner: Executor, where: Options) -> list[str]:
    """Score what is missing with progress; returns what cannot be scored, a line each."""
    import contextlib

    from vlbench.report.words import duration
    from vlbench.studies.conduct import interruptible
    from vlbench.studies.stress import conduct, look_again

    def left() -> str:
        number = len(look_again(stress, store).todo)
        return f"{number} scores under noise are left; go on with: {stress.plan.command}"

    unready = sorted({cell.score.fit for cell in stress.todo if store.record(cell.score.fit) is None})
    live, started, said = sys.stderr.isatty(), time.monotonic(), 0.0
    with interruptible(left) as stop, contextlib.closing(conduct(stress, store, runner, where, stop)) as counts:
        for done, total in counts:
            now = time.monotonic()
            line = f"{done} of {total} scores under noise  {duration(now - started)}"
            if live:
                click.echo(f"\r{line}", err=True, nl=False)
            elif total and (now - said >= SAID_S or done == total):
                click.echo(line, err=True)
                said = now
    if live:
        click.echo(err=True)
    return [f"{fit} is not trained, so it was not scored" for fit in unready]


def _answer(stress: StressPlan, store: Store, failed: Sequence[str], how: Any) -> int:
    """Print the answer and write the report of what the store has."""
    from rich.console import Console

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.errors import PlanError
    from vlbench.report.stress import judge, read
    from vlbench.report.stress_page import as_json, terminal, write_judged

    study = stress.plan.study
    try:
        judged = judge(read(store, study, allow_missing=how.allow_missing or how.collect or bool(failed)))
    except PlanError as error:
        if not failed:
            raise
        click.echo(f"no answer: {error}", err=True)
        return 1
    if how.as_json:
        print_json(as_json(judged))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(terminal(judged))
    paths = write_judged(store, judged, how.out, index=(how.out / "index.html").exists())
    page = next(path for path in paths if path.suffix == ".html")
    click.echo(f"report: {page}", err=how.as_json)
    return 1 if failed else 0


def _calibrate(plan: StressPlan, store: Store, root: Path, how: Any) -> int:
    """Train the first variant's fit if it is missing, measure what families cost it, and write the table."""
    from rich.console import Console

    from vlbench.cli.ablate import run_plan
    from vlbench.cli.view import PIPE_WIDTH, show_plan
    from vlbench.report.tables import Cell, Column, Table, rich_table
    from vlbench.runs.work import Options
    from vlbench.studies.plan import expected
    from vlbench.studies.stress import calibrate_on

    fits = plan.plan
    where = Options(str(store.root), str(root), device=options.devices(how.device)[0])
    heading = f"calibrate on {fits.arms[0].name} · {fits.dataset} · seed {fits.seeds[0]}"
    show_plan(fits, workers=1, expected=expected(fits, store, how.device), heading=heading)
    if how.dry_run:
        return 0
    if fits.todo:
        runner = options.executor(how.executor, jobs=how.jobs, device=how.device, options=where)
        where = options.compiled(where, [cell.fit.variant.recipe for cell in fits.todo])
        if failed := run_plan(fits, store, runner, where):
            click.echo("\n".join(f"failed: {failure}" for failure in failed), err=True)
            return 1
    table, found = calibrate_on(plan, store, where)
    path = how.out / f"severities-{fits.arms[0].name}-{fits.dataset}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write(path)
    if how.as_json:
        rows = [
            {"family": one.family, "before": list(one.before), "amounts": list(one.row), "lost": list(one.lost),
             "reached": one.reached, "note": one.note}
            for one in found
        ]  # fmt: skip
        print_json({"file": str(path), "version": table.version, "digest": table.digest, "families": rows})
    else:
        columns = (Column("Family"), Column("Amounts"), Column("Lost, percent of the clean score"), Column("Note"))
        cells = tuple(
            (
                Cell(one.family),
                Cell(_row(one.row)),
                Cell(_row([round(100 * lost) for lost in one.lost])),
                Cell(one.note or "scaled"),
            )
            for one in found
        )
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        console.print(rich_table(Table("calibration", "", columns, cells), [column.title for column in columns]))
    click.echo(f"severities: {path}, version {table.version}, digest {table.digest}", err=how.as_json)
    click.echo(f"use them: vlbench stress --severities {path}", err=how.as_json)
    return 0


def _row(amounts: Sequence[float]) -> str:
    return ", ".join(f"{amount:g}" for amount in amounts)
