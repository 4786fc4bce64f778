"""``vlbench ablate --tuning equal-budget``: the same sweep for every arm, before the arms are compared.

An arm that inherits what was tuned for the baseline starts behind. Here every arm, the baseline too, gets the same
budget, and is compared with the values that its own sweep found. Keys that tell the arms apart are not varied.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vlbench.cards.kinds import Arm, Budget
    from vlbench.cli.ablate import Choices, How
    from vlbench.runs.store import Store
    from vlbench.studies.sweep import Sweep


def tune_arms(choices: Choices, card_name: str, store: Store, root: Path, how: How, *, allow: bool) -> Choices:
    """The same question with every arm edited by the winner of its own sweep; what was spent becomes a note.

    Raises: PlanError if the arms' budgets differ and that is not allowed, or if a sweep finds nothing.
    """
    from vlbench.cards.library import load_sweep
    from vlbench.cli.sweep import check_budgets, show_sweep
    from vlbench.errors import CardError

    card = load_sweep(card_name, root)
    for wrong, key in ((card.pareto, "pareto"), (card.seed > 0, "seed")):
        if wrong:
            why = "an arm has one winner" if key == "pareto" else "the arms are compared on the seeds from 1 on"
            raise CardError(f"{key} of this sweep card does not fit an ablation: {why}", where=card.origin[key])
    sweeps = {arm.name: _sweep_of(arm, choices, card) for arm in choices.question.arms}
    unequal = check_budgets({name: one.budget() for name, one in sweeps.items()}, allow=allow)
    for one in sweeps.values():
        show_sweep(one, store, final=False)
    notes = [
        f"every arm was tuned by a sweep of its own ({card.name}: {card.trials} trials, sampler {card.sampler}, "
        f"seed {card.seed}, tuning split): {', '.join(one.study for one in sweeps.values())}",
        *(f"caution: unequal tuning budgets: {line}" for line in unequal),
    ]
    if how.dry_run:
        return replace(choices, notes=(*choices.notes, *notes))
    arms = tuple(_tuned(arm, sweeps[arm.name], store, root, how) for arm in choices.question.arms)
    return replace(choices, question=replace(choices.question, arms=arms), notes=(*choices.notes, *notes))


def _sweep_of(arm: Arm, choices: Choices, card: Budget) -> Sweep:
    from vlbench.cards.resolve import flatten
    from vlbench.cli.sweep import sweep_of

    told_apart = {edit.key for other in choices.question.arms for edit in other.edits}
    fixed = [key for key in arm.variant.search if key in told_apart or key not in flatten(arm.variant)]
    name = re.sub(r"[^A-Za-z0-9_]+", "-", arm.name).strip("-")
    study = f"{choices.study}-sweep-{name}"
    return sweep_of(study, card, arm.variant, choices.dataset, command=choices.command(), fixed=fixed)


def _tuned(arm: Arm, one: Sweep, store: Store, root: Path, how: How) -> Arm:
    from vlbench.cards.kinds import Arm
    from vlbench.cards.resolve import edit
    from vlbench.cards.space import changes
    from vlbench.cli.sweep import How as SweepHow
    from vlbench.cli.sweep import conduct_sweep
    from vlbench.errors import PlanError
    from vlbench.studies.sweep import finish, load

    found: dict[str, Any] | None
    if how.collect:
        found = load(store, one.study)
        if found is None or found["state"] in ("running", "stopped"):
            raise PlanError(f'the sweep of "{arm.name}" is not complete', where=one.study, hint=f"run: {one.command}")
    else:
        found = conduct_sweep(one, store, root, SweepHow(how.device, how.jobs, how.executor))
        finish(store, one.study, None)
    if found["best"] is None:
        raise PlanError(f'no trial of the sweep of "{arm.name}" was complete', where=one.study)
    best = found["trials"][found["best"]]
    winner = edit(arm.variant, changes(best["params"], arm.variant), origin=f"trial {best['number']} of {one.study}")
    click.echo(f"{arm.name}: trial {best['number']} of {one.study}", err=True)
    return Arm(arm.name, winner.variant, (*arm.edits, *winner.edits))
