"""``vlbench sweep``: which values of a variant's parameters are best?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options
from vlbench.cli.view import print_json

if TYPE_CHECKING:
    from vlbench.cards.kinds import Budget, Variant
    from vlbench.data.base import Dataset
    from vlbench.runs.store import Store
    from vlbench.studies.sweep import News, Sweep
    from vlbench.workspace import Workspace

DEFAULT_CARD = "quick"
SHOWN = 10  # trials of the table on the terminal


@click.command(
    epilog="""\b
Examples:
  vlbench sweep --dry-run
  vlbench sweep
  vlbench sweep --status
  vlbench sweep --variant videolights_quick --sweep random --trials 4 --set train.epochs=3
  vlbench sweep --variant videolights --variant videolights_described --sweep default --dry-run
  vlbench sweep --storage sqlite:///sweeps.db --executor ray --dry-run
""",
)
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="The variant to tune. Repeatable.")
@click.option(
    "--sweep", "card", default=DEFAULT_CARD, show_default=True, metavar="CARD", help="The budget: a sweep card."
)
@click.option("--trials", type=click.IntRange(min=1), help="Trials of each variant. [default: the sweep card's]")
@click.option("--name", metavar="NAME", help="Of the study. [default: made of card, variant, dataset and settings]")
@options.what
@options.how
@click.option(
    "--storage", metavar="URL", help="Where Optuna keeps trials: sqlite:///..., postgresql+psycopg://..., mysql://..."
)
@click.option("--restart", is_flag=True, help="Begin the study anew. Finished fits are kept and cost nothing.")
@click.option(
    "--allow-unequal-budget", is_flag=True, help="Tune several variants although their budgets differ; reports say so."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True)
@click.option("--status", is_flag=True, help="Show how far the sweep is and stop.")
@click.option("--collect", is_flag=True, help="Report what the store has, run nothing.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def sweep(
    variants: tuple[str, ...],
    card: str,
    trials: int | None,
    name: str | None,
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    storage: str | None,
    restart: bool,
    allow_unequal_budget: bool,
    status: bool,
    **how: Any,
) -> int:
    """Tune variants under a budget, and compare the winner with the card as it is.

    What may vary stands in the variant's card under [search], what may be spent in a sweep card. Every trial is a fit
    that is judged on the tuning split only; trials that fall behind are stopped. A best trial is no measurement, so it
    is fitted again with fresh seeds against the card as it is, and that comparison is what the report says.

    The same command goes on after an interruption and ends with the same study, whatever the number of workers.

    Exit status: 0 complete, 1 some cells failed, 2 a mistake in what was asked, 130 interrupted.
    """
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    asked = Asked(variants or (options.DEFAULT_VARIANT,), card, trials, name, dataset, features, settings, precision)
    run = How(storage=storage, restart=restart, allow_unequal_budget=allow_unequal_budget, **how)
    if status or run.collect:
        return _told(asked, run, store, workspace)
    found = [asked.sweep(variant, workspace, run) for variant in asked.variants]
    check_budgets({one.base.name: one.budget() for one in found}, allow=allow_unequal_budget)
    for one in found:
        show_sweep(one, store)
    if run.dry_run:
        if storage is not None:
            from vlbench.studies.book import check_storage

            check_storage(storage)
        if run.as_json:
            print_json({"sweeps": [{"study": one.study, "definition": one.definition()} for one in found]})
        return 0
    results, exit_status = [], 0
    for one in found:
        outcome = conduct_sweep(one, store, workspace.root, run)
        if not run.as_json:
            _print_trials(outcome)
        code, result = _fit_again(one, outcome, store, workspace.root, run)
        exit_status = max(exit_status, code)
        results.append(result)
    if run.as_json:
        print_json({"sweeps": results})
    return exit_status


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for on the command line, before anything is looked up."""

    variants: tuple[str, ...]
    card: str
    trials: int | None
    name: str | None
    dataset: str | None
    features: str | None
    settings: tuple[str, ...]
    precision: str | None

    def study(self, variant: str) -> str:
        """The name of a variant's study: what is not default is part of it."""
        from vlbench.canon import digest

        stem = Path(variant).stem
        if self.name:
            return self.name if len(self.variants) == 1 else f"{self.name}-{stem}"
        name = f"sweep-{Path(self.card).stem}-{stem}"
        if self.dataset not in (None, options.DEFAULT_DATASET):
            name += f"-{self.dataset}"
        changes = options.parse_settings(self.settings, self.precision)
        if changes or self.features:  # other settings are another study, not a new state of this one
            name += f"-{digest([changes, self.features])[:6]}"
        return name

    def sweep(self, variant: str, workspace: Workspace, how: How) -> Sweep:
        """The sweep of one variant. Opens the splits that trials read, and no other."""
        from vlbench.cards.library import load_sweep, load_variant
        from vlbench.cards.resolve import edit
        from vlbench.data.base import open_dataset, parse_features
        from vlbench.studies.ablate import fitting_features

        card = load_sweep(self.card, workspace.root)
        base = load_variant(variant, workspace.root)
        data = open_dataset(self.dataset or options.DEFAULT_DATASET, workspace)
        changes = options.parse_settings(self.settings, self.precision)
        kept = [f"{data.name} has tuned values in the card: left out"] if data.name in base.tuned else []
        notes = [*kept, *(f"in every trial: {key} = {value}" for key, value in changes.items())]
        if changes:
            base = edit(base, changes, origin="--set").variant
        wanted = parse_features(self.features, "--features") if self.features else None
        base, note = fitting_features(base, data, wanted)
        return sweep_of(
            self.study(variant),
            with_trials(card, self.trials),
            base,
            data,
            command=self.command(variant, how),
            fixed=tuple(changes),
            notes=[*notes, *([note] if note else [])],
        )

    def command(self, variant: str, how: How) -> str:
        """What to type to run or finish the sweep of one variant."""
        return options.command_line(
            "sweep",
            variant=variant,
            sweep=None if self.card == DEFAULT_CARD else self.card,
            trials=self.trials,
            name=self.study(variant) if self.name else None,
            dataset=self.dataset,
            features=self.features,
            set=self.settings,
            precision=self.precision,
            storage=_without_password(how.storage),
        )


@dataclass(frozen=True, slots=True)
class How:
    """How sweeps are run and answered; none of it changes what the trials are."""

    device: str = "auto"
    jobs: int | None = None
    executor: str = "local"
    storage: str | None = None
    restart: bool = False
    allow_unequal_budget: bool = False
    out: Path = Path("reports")
    collect: bool = False
    dry_run: bool = False
    as_json: bool = False


def with_trials(card: Budget, trials: int | None) -> Budget:
    """The card with another number of trials, if one is asked for."""
    from dataclasses import replace

    return card if trials is None else replace(card, trials=trials)


def sweep_of(
    study: str,
    card: Budget,
    base: Variant,
    dataset: Dataset,
    *,
    command: str,
    fixed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Sweep:
    """A checked sweep; imports what it needs when it is asked for."""
    from vlbench.studies.sweep import make_sweep

    return make_sweep(study=study, card=card, base=base, dataset=dataset, command=command, fixed=fixed, notes=notes)


def check_budgets(budgets: Mapping[str, Mapping[str, Any]], *, allow: bool) -> list[str]:
    """What differs between budgets that are to be compared, a line each, printed as a caution if it is allowed.

    Raises: PlanError if something differs and is not allowed.
    """
    from vlbench.errors import PlanError
    from vlbench.studies.sweep import unequal

    differing = unequal(budgets)
    if differing and not allow:
        raise PlanError(
            f"the tuning budgets differ: {'; '.join(differing)}",
            hint="give all the same search space and epochs, or --allow-unequal-budget, and the report says so",
        )
    for line in differing:
        click.echo(f"caution: unequal tuning budgets: {line}", err=True)
    return differing


# --- before and while it runs ----------------------------------------------------------------------------------------


def show_sweep(one: Sweep, store: Store, *, final: bool = True) -> None:
    """The space, the budget, and how much of it is already told. final: whether a winner is fitted again."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench.cards.resolve import flatten
    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.report.words import counted, listed
    from vlbench.studies.sweep import fresh_seeds, load

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)
    card, now = one.card, flatten(one.base)
    console.print(Text(f"sweep {card.name} · {one.base.name} · {one.dataset.name}", style="bold"))
    console.print(Text(f"  Which values of {counted(len(one.space), 'parameter')} suit {one.base.title} best?"))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
    for title in ("parameter", "between", "now"):
        table.add_column(title, overflow="fold")
    for dimension in one.space.dimensions:
        table.add_row(Text(dimension.key), Text(str(dimension)), Text(str(now.get(dimension.key, "-"))))
    console.print(table)
    stops = f"; {card.pruner} pruner after epoch {listed([str(e) for e in one.decisions])}" if one.decisions else ""
    told = [trial for trial in (load(store, one.study) or {}).get("trials", []) if trial["state"] != "running"]
    lines = [
        f"{counted(card.trials, 'trial')} in rounds of {min(card.batch, card.trials)}, sampler {card.sampler}, "
        f"seed {card.seed}, {counted(one.epochs, 'epoch')} each{stops if card.pruner != 'none' else ''}",
        f"objective: {' and '.join(one.objective)} on the tuning split"
        + (", kept apart" if card.pareto else ", their mean" if len(one.objective) > 1 else ""),
    ]
    if final and card.final_seeds:
        seeds = listed([str(seed) for seed in fresh_seeds(card)])
        winners = f"up to {counted(card.final_arms, 'member')} of the front" if card.pareto else "the winner"
        lines.append(f"then {winners} and the card as it is with seeds {seeds}")
    lines += [f"note: {note}" for note in one.notes]
    lines += [f"{len(told)} of {card.trials} trials are in the store"] if told else []
    for line in lines:
        console.print(Text(f"  {line}"))


def conduct_sweep(one: Sweep, store: Store, root: Path, how: How) -> dict[str, Any]:
    """Run the trials that are not told, with progress; returns what ``sweep.json`` holds."""
    from vlbench.runs.work import Options
    from vlbench.studies import rounds
    from vlbench.studies.conduct import interruptible
    from vlbench.studies.sweep import load

    where = Options(str(store.root), str(root))
    runner = options.executor(how.executor, jobs=how.jobs, device=how.device, options=where)
    where, _ = options.packed(options.compiled(where, [one.base.recipe]), runner)
    kind = "cpu" if how.device == "cpu" or (how.device == "auto" and options.devices("auto") == ["cpu"]) else "cuda"
    with interruptible(lambda: _what_is_left(one, store)) as stop:
        news = rounds.conduct(one, store, runner, where, url=how.storage, restart=how.restart, device=kind, stop=stop)
        with contextlib.closing(news):
            _watch(news, one, runner.slots)
    outcome = load(store, one.study)
    assert outcome is not None
    return outcome


def _what_is_left(one: Sweep, store: Store) -> str:
    from vlbench.studies.sweep import load

    told = [trial for trial in (load(store, one.study) or {}).get("trials", []) if trial["state"] != "running"]
    return f"{one.card.trials - len(told)} of {one.card.trials} trials are left; go on with: {one.command}"


def _watch(news: Iterable[News], one: Sweep, workers: int) -> None:
    """Show each round as it goes."""
    from vlbench.cli.view import Board, Job, face
    from vlbench.report.words import counted

    with contextlib.ExitStack() as faces:
        shown: Any = None
        for item in news:
            trial = item.trial
            if item.kind == "round":
                faces.close()
                numbers = f"{item.asked[0].number} to {item.asked[-1].number}"
                click.echo(f"round {item.round + 1} of {item.rounds}: trials {numbers}", err=True)
                jobs = {
                    t.cell: Job(t.cell, f"trial {t.number}", "trial", int(t.fit.variant.recipe["epochs"]))
                    for t in reversed(item.asked)
                    if t.cell is not None and t.fit is not None
                }
                board = Board(list(reversed(jobs.values())), one.objective, workers=workers, scored=False)
                shown = faces.enter_context(face(board))
                for failed in (t for t in item.asked if t.cell is None):
                    click.echo(f"  trial {failed.number}  failed: {failed.cause}", err=True)
            elif shown is None or trial is None or trial.cell is None:
                if shown is not None:
                    shown.tick(stopping=item.kind == "stopping")
            elif item.kind == "epoch":
                shown.epoch(trial.cell, item.event or {})
            elif item.kind == "pruned":
                shown.end(trial.cell, "pruned", f"behind after {counted(trial.epochs, 'epoch')}")
            else:
                reason = trial.cause or "" if item.kind == "failed" else item.reason
                shown.end(trial.cell, "done" if item.kind == "complete" else item.kind, reason)


# --- after it --------------------------------------------------------------------------------------------------------


def _fit_again(one: Sweep, outcome: dict[str, Any], store: Store, root: Path, how: How) -> tuple[int, dict[str, Any]]:
    """Fit the winner with fresh seeds and compare: exit status and the result as JSON."""
    from vlbench.cli.ablate import How as AblateHow
    from vlbench.cli.ablate import answer, run_plan
    from vlbench.cli.view import show_plan
    from vlbench.errors import PlanError
    from vlbench.report.compare import compare
    from vlbench.report.formats import as_json
    from vlbench.report.frame import read
    from vlbench.report.words import counted
    from vlbench.runs.work import Options
    from vlbench.studies import sweep as study
    from vlbench.studies.plan import expected

    if not outcome["front"]:
        raise PlanError(f'no trial of "{one.study}" was complete: there is nothing to fit again')
    made = study.final_plan(one, outcome, store)
    if made is None:
        why = (
            "the sweep card asks for no final fits"
            if not one.card.final_seeds
            else "the best trial is the card as it is"
        )
        click.echo(f"nothing to fit again: {why}", err=True)
        study.finish(store, one.study, None)
        _write_sweep(store, one.study, how)
        return 0, {**(study.load(store, one.study) or {}), "comparison": None}
    plan, final = made
    where, packs, runner = Options(str(store.root), str(root)), "", None
    if plan.todo:
        runner = options.executor(how.executor, jobs=how.jobs, device=how.device, options=where)
        where, packs = options.packed(where, runner, [cell.fit for cell in plan.todo])
    heading = f"winner of {one.study} · {counted(len(plan.seeds), 'fresh seed')}"
    workers = runner.slots if runner else 1
    show_plan(plan, workers=workers, expected=expected(plan, store, how.device), heading=heading, packs=packs)
    store.save_plan(plan.study, plan.as_json())
    failures = run_plan(plan, store, runner, where) if runner else []
    study.finish(store, one.study, final)
    _write_sweep(store, one.study, how)
    answering = AblateHow(how.device, how.jobs, how.executor, how.out, False, False, False, False)
    if not how.as_json:
        return answer(plan, store, failures, answering)[0], study.load(store, one.study) or {}
    with contextlib.redirect_stdout(sys.stderr):
        code, _ = answer(plan, store, failures, answering)
    comparison = None if code else as_json(compare(read(store, plan.study)))
    return code, {**(study.load(store, one.study) or {}), "comparison": comparison}


def _write_sweep(store: Store, study: str, how: How) -> None:
    """Write the sweep's own page."""
    from vlbench.report.sweep import write

    for path in write(store, study, how.out):
        if path.suffix == ".html":
            click.echo(f"sweep report: {path}", err=True)


def _told(asked: Asked, how: How, store: Store, workspace: Workspace) -> int:
    """How far the sweeps are; with ``--collect`` their reports are written too. Runs nothing."""
    from vlbench.errors import StoreError
    from vlbench.studies.sweep import load, sweeps

    found = []
    for variant in asked.variants:
        outcome = load(store, asked.study(variant))
        if outcome is None:
            known = ", ".join(sweeps(store)) or "none"
            raise StoreError(
                f'the store has no sweep "{asked.study(variant)}"', where=store.root, hint=f"known: {known}"
            )
        found.append(outcome)
    for outcome in found:
        if not how.as_json:
            _print_status(outcome)
        if how.collect:
            _write_sweep(store, outcome["study"], how)
            _collect_final(outcome, store, how)
    if how.as_json:
        print_json({"sweeps": found})
    return 0


def _collect_final(outcome: Mapping[str, Any], store: Store, how: How) -> None:
    from vlbench.report.write import write, write_index

    final = outcome["final"]
    if final is not None and final["study"] in store.studies():
        for path in write(store, final["study"], how.out, allow_missing=True):
            if path.suffix == ".html":
                click.echo(f"report: {path}", err=True)
        write_index(store, how.out, allow_missing=True)


def _print_status(outcome: Mapping[str, Any]) -> None:
    from vlbench.studies.sweep import STATES

    trials, total = outcome["trials"], outcome["budget"]["trials"]
    states = [f"{sum(trial['state'] == state for trial in trials)} {state}" for state in STATES]
    click.echo(f"{outcome['study']}: {outcome['state']}")
    click.echo(f"  {', '.join(states)}, {total - len(trials)} of {total} trials not asked yet")
    if outcome["stopped"]:
        click.echo(f"  stopped: {outcome['stopped']}")
    _print_trials(outcome)
    if outcome["state"] != "finished":
        click.echo(f"  go on with: {outcome['command']}")


def _print_trials(outcome: Mapping[str, Any]) -> None:
    """The best trials, and what not to believe of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench import catalog
    from vlbench.cli.view import PIPE_WIDTH

    complete = [trial for trial in outcome["trials"] if trial["state"] == "complete"]
    titles = [str(catalog.metrics[name].facts["title"]) for name in outcome["objective"]]
    if outcome["pareto"]:
        rows = [trial for trial in complete if trial["number"] in outcome["front"]]
        heading = "trials that no other one beats in everything"
    else:
        rows = sorted(complete, key=lambda trial: (-trial["value"], trial["number"]))
        heading = f"best of {len(outcome['trials'])} trials"
        titles = [*titles, "mean"] if len(titles) > 1 else titles
    if not rows:
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
    for title in ("trial", *titles):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("changes", overflow="fold")
    for trial in rows[:SHOWN]:
        values = [*trial["values"], trial["value"]] if len(titles) > len(trial["values"]) else trial["values"]
        changes = "\n".join(trial["edits"]) or "none"
        table.add_row(str(trial["number"]), *(f"{100 * value:.2f}" for value in values), Text(changes))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(Text(f"{heading}; tuning split, one seed each: the best of many is too good to be true"))
    console.print(table)


def _without_password(url: str | None) -> str | None:
    if url is None:
        return None
    from vlbench.studies.book import shown_url

    return shown_url(url)
