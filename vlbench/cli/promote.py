"""``vlbench promote``: keep what a sweep found."""

from __future__ import annotations

from typing import Any

import click


@click.command(
    epilog="""\b
Examples:
  vlbench promote sweep-quick-videolights_quick
  vlbench promote sweep-quick-videolights_quick --trial 3 --dry-run
""",
)
@click.argument("study")
@click.option("--trial", type=click.IntRange(min=0), metavar="N", help="Another trial. [default: the best]")
@click.option("--force", is_flag=True, help="Replace values of another study, or take values of another base.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and stop.")
def promote(study: str, trial: int | None, force: bool, dry_run: bool) -> None:
    """Write a trial's values into the variant's card, for the dataset that they were found on.

    They stand under [tuned.DATASET] with the study, its digest and its budget, and are used whenever the variant meets
    that dataset; vlbench ablate --tuning none leaves them out. A built-in card gets a card of the same name in the
    workspace that extends it.
    """
    from vlbench.cards.library import load_variant
    from vlbench.cards.promote import promote as write
    from vlbench.cards.space import changes
    from vlbench.cli.show import short
    from vlbench.errors import PlanError, StoreError
    from vlbench.runs.store import Store
    from vlbench.studies.sweep import differences_of_base, load, sweeps
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    outcome = load(store, study)
    if outcome is None:
        known = ", ".join(sweeps(store)) or "none"
        raise StoreError(f'the store has no sweep "{study}"', where=store.root, hint=f"known: {known}")
    chosen = _chosen(outcome, trial)
    variant = load_variant(outcome["variant"], workspace.root)
    if (other := differences_of_base(outcome, variant)) and not force:
        raise PlanError(
            f"the trials were not fits of {variant.name} as its card stands: {'; '.join(other[:3])}",
            where=study,
            hint="sweep the card as it is, or take the values all the same with --force",
        )
    values = changes(chosen["params"], variant)
    if outcome["state"] != "finished":
        click.echo(
            "note: the winner was not fitted again yet; run the sweep to its end to know what it is worth", err=True
        )
    for key, value in values.items():
        click.echo(f"{key} = {value}")
    if dry_run:
        return
    budget = {key: value for key, value in outcome["budget"].items() if not isinstance(value, list)}
    source: dict[str, Any] = {
        "study": study,
        "digest": outcome["digest"],
        "trial": chosen["number"],
        "budget": budget,
    }
    path, changed = write(variant, workspace.root, outcome["dataset"], values, source, force=force)
    word = "written to" if changed else "already in"
    click.echo(f"{word} [tuned.{outcome['dataset']}] of {short(f'{path}:1').removesuffix(':1')}", err=True)


def _chosen(outcome: dict[str, Any], number: int | None) -> dict[str, Any]:
    from vlbench.errors import PlanError

    complete = {trial["number"]: trial for trial in outcome["trials"] if trial["state"] == "complete"}
    if number is None:
        number = outcome["best"]
        if number is None:
            front = ", ".join(str(one) for one in outcome["front"]) or "none"
            raise PlanError(
                f'"{outcome["study"]}" has no single best trial',
                where="--trial",
                hint=f"choose one of the front: {front}",
            )
    if number not in complete:
        what = next((one["state"] for one in outcome["trials"] if one["number"] == number), "not in it")
        raise PlanError(
            f'trial {number} of "{outcome["study"]}" is {what}',
            where="--trial",
            hint=f"complete: {', '.join(map(str, complete)) or 'none'}",
        )
    found: dict[str, Any] = complete[number]
    return found
