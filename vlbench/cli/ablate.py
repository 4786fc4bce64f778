"""``vlbench ablate``: does a component help?"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options
from vlbench.cli.view import print_json

if TYPE_CHECKING:
    from vlbench.runs.executors import Executor
    from vlbench.runs.store import Store
    from vlbench.runs.work import Options
    from vlbench.studies.plan import Plan

LIVE_S = 5.0  # between two looks at running fits for the tracker


@click.command(
    epilog="""\b
Examples:
  vlbench ablate --component fra --dry-run
  vlbench ablate --component fra
  vlbench ablate --component slowfast --seeds 5
  vlbench ablate --component noise --seeds 3 --set train.epochs=6
  vlbench ablate --component alignment --variant videolights_quick --jobs 2
  vlbench ablate --component fra --component bicmf --component unijfm --design factorial --dry-run
  vlbench ablate --component fra --component noise --design one-out --seeds 2 --dry-run
  vlbench ablate --component fra --until-decided --max-seeds 10 --dry-run
  vlbench ablate --component fra --seeds 2 --corrupt gauss --corrupt clip_drop --dry-run
  vlbench ablate --component hd_noise --dry-run
""",
)
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME",
    help="A component, loss term, encoder or ablation card; see vlbench list. Several make a design.",
)
@click.option(
    "--design",
    type=click.Choice(["one-out", "one-in", "factorial", "fractional"]),
    help="How several components are crossed. [default: factorial up to 3, fractional above]",
)
@click.option("--variant", metavar="NAME", help="The variant to edit. [default: the ablation card's]")
@options.what
@click.option("--seeds", type=click.IntRange(min=1), help="Replicates per arm. [default: the ablation card's]")
@click.option(
    "--until-decided",
    is_flag=True,
    help="Add seeds at looks declared beforehand (5, 10, 20) and stop when every primary difference is decided.",
)
@click.option("--max-seeds", type=click.IntRange(min=2), help="The last look of --until-decided. [default: 20]")
@click.option(
    "--equivalence-margin",
    "margin",
    type=click.FloatRange(min=0, min_open=True),
    metavar="POINTS",
    help="Differences inside it do not matter; set it before the runs. [default: the card's, 0.5]",
)
@click.option(
    "--tuning",
    type=click.Choice(["none", "card", "equal-budget"]),
    help="Tuned values: none, those of the variant's card, or of a sweep of every arm. [default: the card's]",
)
@click.option("--sweep", "budget", metavar="CARD", help="The budget of --tuning equal-budget. [default: quick]")
@click.option(
    "--allow-unequal-budget", is_flag=True, help="Compare arms whose tuning budgets differ; the report says so."
)
@click.option(
    "--corrupt",
    "corrupt",
    multiple=True,
    metavar="FAMILY",
    help="Then score the finished arms under this family of noise, as vlbench stress does; all: the battery. "
    "Repeatable. [default: the ablation card's]",
)
@click.option("--train-on", metavar="NAME", help="The same as --dataset, beside --score-on.")
@click.option(
    "--score-on",
    metavar="NAME",
    help="Then score the fits on this dataset too, with the same encoders, and test what of the benefit is retained.",
)
@options.how
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--collect", is_flag=True, help="Report what the store has, run nothing.")
@click.option("--allow-missing", is_flag=True, help="Report with holes, and print them in every table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def ablate(
    components: tuple[str, ...],
    design: str | None,
    variant: str | None,
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    seeds: int | None,
    until_decided: bool,
    max_seeds: int | None,
    margin: float | None,
    tuning: str | None,
    budget: str | None,
    allow_unequal_budget: bool,
    corrupt: tuple[str, ...],
    train_on: str | None,
    score_on: str | None,
    **how: Any,
) -> int:
    """Ask whether a component helps: train what is missing, test, print the verdict and write the report.

    The baseline is the variant as its card states it. Every arm is an edit of it that is printed before anything runs;
    arms of one seed share the order of batches and the initial weights of every module they have in common.

    Several components are crossed: one-out takes each alone out of the full model (with a placebo of equal size where
    there is one), one-in puts each alone into the empty model, factorial runs every combination and gives main effects,
    interactions and Shapley values, fractional runs a part of them.

    Exit status: 0 complete, 1 some cells failed, 2 a mistake in what was asked, 130 interrupted.
    """
    if not components:
        raise click.UsageError("--component is missing: which one? See vlbench list components, losses or encoders.")
    if until_decided and seeds is not None:
        raise click.UsageError("--until-decided chooses the number of seeds: use --max-seeds instead of --seeds.")
    if max_seeds is not None and not until_decided:
        raise click.UsageError("--max-seeds belongs to --until-decided.")
    if train_on is not None and dataset is not None:
        raise click.UsageError("--train-on and --dataset name the same thing: leave one out.")
    if train_on is not None and score_on is None:
        raise click.UsageError("--train-on goes with --score-on; alone it is --dataset.")
    if score_on is not None and until_decided:
        raise click.UsageError("--score-on needs a number of seeds: use --seeds instead of --until-decided.")
    from vlbench.report.words import counted
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    asked = Asked(
        components,
        design,
        variant,
        train_on or dataset,
        features,
        settings,
        precision,
        margin,
        tuning=tuning,
        budget=budget,
        allow_unequal_budget=allow_unequal_budget,
    )
    choices = Choices.of(asked, workspace)
    run = How(**how)
    if choices.tuning == "equal-budget":
        from vlbench.cli.tuning import tune_arms

        choices = tune_arms(choices, budget or "quick", store, workspace.root, run, allow=allow_unequal_budget)
    elif budget is not None or allow_unequal_budget:
        raise click.UsageError("--sweep and --allow-unequal-budget belong to --tuning equal-budget.")
    families = corrupt or choices.question.ablation.corrupt
    if families:  # what cannot be is said before anything is trained
        from vlbench.cli.stress import stress_arms, stressors_of
        from vlbench.corrupt.base import LEFT_OUT

        _, left_out = stressors_of(choices.question.arms, families, choices.dataset)
        choices = replace(choices, notes=(*choices.notes, *(note for note in left_out if LEFT_OUT in note)))
    looks = _looks(max_seeds or LOOKS[-1]) if until_decided else ()
    status = 0
    for number in looks or (seeds or choices.question.ablation.seeds,):
        plan = choices.plan(number, looks, store)
        heading = (
            f"ablate {', '.join(components)} · {plan.arms[0].variant.name} · {plan.dataset} · "
            f"{counted(len(plan.seeds), 'seed')}"
        )
        if looks:
            heading += f" (look {looks.index(number) + 1} of {len(looks)})"
        there = None if score_on is None else _elsewhere(plan, score_on, choices, store, workspace)
        status, decided = _conduct(plan, heading, store, workspace.root, run)
        if status or decided or run.dry_run:
            break
    with contextlib.redirect_stdout(sys.stderr) if run.as_json else contextlib.nullcontext():  # one object on stdout
        beside = replace(run, as_json=False)
        if there is not None and not status:
            status = _score_there(plan, there, store, workspace.root, beside)
        if families and not status:
            status = stress_arms(plan, families, choices.dataset, store, workspace.root, beside)
    return status


def _elsewhere(plan: Plan, name: str, choices: Choices, store: Store, workspace: Any) -> Plan:
    """The fits of a plan on another dataset. What speaks against it is said before anything is trained."""
    from vlbench.data.base import open_dataset
    from vlbench.studies.plan import scored_on

    command = f"{plan.command} {options.command_line(score_on=name).removeprefix('vlbench ')}"
    study = f"{plan.study}-on-{name}"
    return scored_on(plan, choices.dataset, open_dataset(name, workspace), store, study=study, command=command)


def _score_there(plan: Plan, there: Plan, store: Store, root: Path, how: How) -> int:
    """Score finished fits on another dataset, report them there, and test what of each benefit is retained."""
    from rich.console import Console

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.studies.plan import look_again

    there = replace(there, cells=tuple(look_again(cell, store) for cell in there.cells))
    heading = f"the same fits · scored on {there.dataset}"
    status, _ = _conduct(there, heading, store, root, how)
    if status or how.dry_run:
        return status
    from vlbench.report.transfer import retained, terminal, write

    found = retained(store, plan.study, there.study, allow_missing=how.allow_missing or how.collect)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, width=width).print(terminal(found))
    paths = write(store, found, how.out, index=(how.out / "index.html").exists())
    page = next(path for path in paths if path.suffix == ".html")
    click.echo(f"report: {page}")
    return 0


LOOKS = (5, 10, 20)  # seeds per arm; statistics of the spending are in vlbench.stats.sequential


def _looks(most: int) -> tuple[int, ...]:
    """The declared looks of a study that may use at most so many seeds."""
    return (*(look for look in LOOKS if look < most), most)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for on the command line, before anything is looked up."""

    components: tuple[str, ...]
    design: str | None
    variant: str | None
    dataset: str | None
    features: str | None
    settings: tuple[str, ...]
    precision: str | None
    margin: float | None
    tuning: str | None = None
    budget: str | None = None
    allow_unequal_budget: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """A question with everything that it needs but the number of seeds."""

    asked: Asked
    study: str
    question: Any
    dataset: Any
    notes: tuple[str, ...]
    tuning: str = "card"

    @classmethod
    def of(cls, asked: Asked, workspace: Any) -> Choices:
        """Look up the card, the variant and the dataset, and build the arms."""
        from vlbench.canon import digest
        from vlbench.cards.library import load_variant
        from vlbench.cards.resolve import edit, tune
        from vlbench.data.base import open_dataset, parse_features
        from vlbench.errors import CardError
        from vlbench.studies import ablate as study
        from vlbench.studies.design import ask_together, default_kind

        first = asked.components[0]
        card = study.find(first, workspace.root) if len(asked.components) == 1 else None
        if asked.design is not None and len(asked.components) == 1 and not (card and card.components):
            raise CardError("a design crosses several components", where="--design", hint="repeat --component")
        variant_name = asked.variant or (card.variants[0] if card else options.DEFAULT_VARIANT)
        dataset_name = asked.dataset or (card.dataset if card and card.dataset else options.DEFAULT_DATASET)
        base = load_variant(variant_name, workspace.root)
        dataset = open_dataset(dataset_name, workspace)
        changes = options.parse_settings(asked.settings, asked.precision)
        notes = []
        tuning = asked.tuning or (card.tuning if card and card.tuning != "inherit" else "card")
        if tuning == "card":
            base, note = tune(base, dataset_name)
            notes += [f"every arm has what was tuned for the baseline: {note}"] if note else []
        if changes:
            base = edit(base, changes, origin="--set").variant
            notes += [f"in every arm: {key} = {value}" for key, value in changes.items()]
        wanted = parse_features(asked.features, "--features") if asked.features else None
        base, note = study.fitting_features(base, dataset, wanted)
        notes += [note] if note else []
        names = card.components if card and card.components else asked.components
        if len(names) == 1:
            question = study.ask(first, base, dataset, card)
        else:
            kind: Any = asked.design or (card.design if card and card.design else default_kind(len(names)))
            question = ask_together(names, kind, base, dataset, workspace.root, card)
        name = f"ablate-{'-'.join(asked.components).replace('.', '-').replace('/', '-')}"
        if question.design is not None and (card is None or question.design.kind != card.design):
            name += f"-{question.design.kind}"
        if variant_name != (card.variants[0] if card else options.DEFAULT_VARIANT):
            name += f"-{Path(variant_name).stem}"
        if dataset_name != options.DEFAULT_DATASET:
            name += f"-{dataset_name}"
        if changes or wanted:  # other settings are another study, not a new state of this one
            name += f"-{digest([changes, str(wanted)])[:6]}"
        if tuning == "equal-budget" or (tuning == "none" and dataset_name in base.tuned):
            name += "-tuned" if tuning == "equal-budget" else "-untuned"
        return cls(asked, name, question, dataset, (*notes, *question.notes), tuning)

    def command(self, seeds: int | None = None, looks: tuple[int, ...] = ()) -> str:
        """What to type to run or finish the study."""
        asked, dataset = self.asked, self.dataset.name
        return options.command_line(
            "ablate",
            component=asked.components,
            design=asked.design,
            variant=asked.variant,
            dataset=None if dataset == options.DEFAULT_DATASET else dataset,
            features=asked.features,
            set=asked.settings,
            precision=asked.precision,
            seeds=None if looks else seeds,
            until_decided=bool(looks) or None,
            max_seeds=looks[-1] if looks else None,
            equivalence_margin=asked.margin,
            tuning=asked.tuning,
            sweep=asked.budget,
            allow_unequal_budget=asked.allow_unequal_budget or None,
        )

    def plan(self, seeds: int, looks: tuple[int, ...], store: Store) -> Plan:
        """The plan for so many seeds."""
        from vlbench.studies.plan import make_plan

        asked, ablation = self.asked, self.question.ablation
        return make_plan(
            study=self.study,
            kind="ablation",
            command=self.command(seeds, looks),
            question=ablation.question,
            component=ablation.component,
            title=ablation.title,
            adds=self.question.adds,
            arms=self.question.arms,
            dataset=self.dataset,
            seeds=range(1, seeds + 1),
            primary=ablation.primary,
            margin=asked.margin or ablation.margin,
            store=store,
            notes=self.notes,
            claims=self.question.claims,
            design=self.question.design,
            looks=looks,
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


def _conduct(plan: Plan, heading: str, store: Store, root: Path, how: How) -> tuple[int, bool]:
    """Show the plan, run what is missing, publish, compare and write the report: exit status, and whether every primary
    difference is decided.
    """
    from vlbench.cli.view import show_plan
    from vlbench.runs.work import Options
    from vlbench.studies.plan import expected

    runner, packs, where = None, "", Options(str(store.root), str(root))
    if plan.todo and not how.dry_run and not how.collect:
        runner = options.executor(how.executor, jobs=how.jobs, device=how.device, options=where)
        where, packs = options.packed(where, runner, [cell.fit for cell in plan.todo])
    workers = runner.slots if runner else options.slots(how.jobs, ["cpu"])
    show_plan(plan, workers=workers, expected=expected(plan, store, how.device), heading=heading, packs=packs)
    if how.dry_run:
        if how.as_json:
            print_json(plan.as_json())
        return 0, False
    store.save_plan(plan.study, plan.as_json())
    failures: list[str] = []
    if runner is not None:
        failures = run_plan(plan, store, runner, where)
    return answer(plan, store, failures, how)


def run_plan(plan: Plan, store: Store, runner: Executor, where: Options) -> list[str]:
    """Run what is missing with progress, publishing along; returns the failures, a line each."""
    from vlbench.cli.view import paces, watch
    from vlbench.studies.conduct import conduct, interruptible, what_is_left
    from vlbench.studies.plan import expected
    from vlbench.track.mlflow import Publisher, runs_of

    publisher = Publisher(store, plan.study, runs_of(plan.as_json()))
    running: set[str] = set()
    published = time.monotonic()

    def live() -> None:
        nonlocal published
        if time.monotonic() - published > LIVE_S:
            published = time.monotonic()
            for fit_id in running:
                publisher.publish(fit_id, live=True)

    with interruptible(lambda: what_is_left(plan, store)) as stop:
        moments = conduct(plan, store, runner, where, stop)
        with contextlib.closing(moments):
            told = _noting(moments, running, publisher)
            failures = watch(told, plan, live, workers=runner.slots, past=paces(plan, expected(plan, store)))
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


def answer(plan: Plan, store: Store, failures: list[str], how: How) -> tuple[int, bool]:
    """Print the comparison and write the report of what the store has: exit status, and whether all is decided."""
    from rich.console import Console

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.errors import PlanError
    from vlbench.report.compare import compare
    from vlbench.report.formats import as_json as result_json
    from vlbench.report.frame import read
    from vlbench.report.tables import terminal
    from vlbench.report.write import Outcome, write, write_index

    allow_missing = how.allow_missing or how.collect
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    try:
        frame = read(store, plan.study, allow_missing=allow_missing)
    except PlanError as error:
        if not failures:
            raise
        click.echo(f"no verdict: {error}", err=True)
        return 1, False
    comparison = compare(frame)
    if how.as_json:
        print_json(result_json(comparison))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(terminal(comparison))
    paths = write(store, plan.study, how.out, comparison=comparison)
    write_index(store, how.out, allow_missing=True, known=[Outcome(plan.study, tuple(paths), comparison)])
    page = next(path for path in paths if path.suffix == ".html")
    click.echo(f"report: {page}", err=how.as_json)
    return (1 if failures else 0), comparison.decided
