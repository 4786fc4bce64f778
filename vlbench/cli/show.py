"""``vlbench list`` and ``vlbench show``: what there is, and what a card resolves to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

KINDS = ("variants", "ablations", "components", "losses", "encoders", "datasets", "metrics", "corruptions", "executors")


@click.command(
    "list",
    epilog="""\b
Examples:
  vlbench list
  vlbench list components
  vlbench list metrics
""",
)
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
def list_(kinds: tuple[str, ...]) -> None:
    """List everything that has a name: variants, questions, components, losses, encoders, datasets and more."""
    from vlbench.errors import CardError, suggestion
    from vlbench.workspace import find

    for kind in kinds:
        if kind not in KINDS:
            raise CardError(f'"{kind}" is not a kind of thing to list', hint=suggestion(kind, KINDS))
    workspace = find()
    for kind in kinds or KINDS:
        rows = _rows(kind, workspace)
        width = max((len(name) for name, _ in rows), default=0)
        click.echo(kind)
        for name, summary in rows:
            click.echo(f"  {name:<{width}}  {summary}".rstrip())


def _rows(kind: str, workspace: Any) -> list[tuple[str, str]]:
    from vlbench import catalog
    from vlbench.cards.library import cards, load_ablation, load_variant

    root = workspace.root
    if kind == "variants":
        return [(name, _variant_line(load_variant(name, root))) for name in cards("models", root)]
    if kind == "ablations":
        return [(name, load_ablation(name, root).question) for name in cards("ablations", root)]
    if kind == "components":
        return [
            (f"{slot.name}.{entry.name}", entry.summary)
            for slot in catalog.model_slots.values()
            for entry in slot.entries()
        ]
    if kind == "losses":
        return [
            (f"{name}.{entry.name}", entry.summary)
            for name, slot in catalog.loss_slots.items()
            for entry in slot.entries()
            if entry.name != "none"
        ]
    if kind == "encoders":
        groups = (("video", catalog.video_encoders), ("text", catalog.text_encoders))
        return [
            (f"{group}.{entry.name}", f"{entry.summary}, {entry.facts['width']} values")
            for group, registry in groups
            for entry in registry.entries()
        ]
    if kind == "datasets":
        declared = [(name, f"declared in {short(item.where())}") for name, item in workspace.declarations.items()]
        return [*declared, *((entry.name, entry.summary) for entry in catalog.datasets.entries())]
    if kind == "metrics":
        return [(entry.name, str(entry.facts["title"])) for entry in catalog.metrics.entries()]
    if kind == "corruptions":
        return _corruptions()
    return [(entry.name, entry.summary) for entry in catalog.executors.entries()]


def _corruptions() -> list[tuple[str, str]]:
    """Every family with the amounts of its levels, and the digest of the table that they are from."""
    from vlbench import catalog
    from vlbench.corrupt.severities import Severities

    table = Severities.read()

    def told(name: str, parameter: str) -> str:
        amounts = " ".join("all" if amount == float("inf") else f"{amount:g}" for amount in table.row(name))
        return f"{parameter}: {amounts}" if len(table.levels(name)) > 1 else "level 5 alone"

    rows = [
        (entry.name, f"{entry.summary}; {told(entry.name, str(entry.facts['parameter']))}")
        for entry in catalog.corruptions.entries()
    ]
    return [*rows, ("", f"levels 1 to 5 from severities version {table.version}, sha256 {table.digest[:12]}")]


def _variant_line(variant: Any) -> str:
    parts = [use.name for slot in ("refinement", "fusion", "feedback") if (use := variant.slots[slot]).name != "none"]
    return f"{variant.title}: {variant.features}; {', '.join(parts)}; width {variant.model['width']}"


@click.command(
    epilog="""\b
Examples:
  vlbench show videolights
  vlbench show fra
  vlbench show models/videolights.toml --json
""",
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The resolved keys as one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show a resolved variant card, each line with its origin; an ablation card; or a component."""
    import json

    from vlbench import catalog
    from vlbench.cards.library import cards, load_ablation, load_variant
    from vlbench.cards.resolve import flatten
    from vlbench.errors import CardError, suggestion
    from vlbench.workspace import find

    root = find().root
    variants, ablations, components = cards("models", root), cards("ablations", root), catalog.components()
    if name in variants or name.endswith(".toml"):
        variant = load_variant(name, root)
        flat = flatten(variant)
        if as_json:
            click.echo(json.dumps(flat, indent=1))
            return
        click.echo(f"{variant.name}: {variant.title}  {variant.paper}".rstrip())
        key_width = max(map(len, flat))
        value_width = max(len(_toml(value)) for value in flat.values())
        for key, value in flat.items():
            click.echo(f"  {key:<{key_width}}  {_toml(value):<{value_width}}  {short(variant.origin.get(key, ''))}")
        for row in variant.reported:
            numbers = ", ".join(f"{metric} {value:g}" for metric, value in row.values.items())
            click.echo(f"  reported on {row.dataset} {row.split} ({row.source}): {numbers}")
        return
    if name in ablations or name in components:
        if name in ablations:
            ablation = load_ablation(name, root)
            click.echo(f"{ablation.name}: {ablation.question}")
            names, primary = ", ".join(ablation.variants), ", ".join(ablation.primary)
            click.echo(f"  variants {names}; {ablation.seeds} seeds; primary {primary}")
            for arm in ablation.stated:
                changes = ", ".join(f"{key} = {_toml(value)}" for key, value in arm.set.items())
                click.echo(f"  {arm.name}: {changes}" + (f"  ({arm.reason})" if arm.reason else ""))
            if ablation.corrupt:
                click.echo(f"  then under noise: {', '.join(ablation.corrupt)}")
        for key, entry in components.get(name, []):
            args = ", ".join(f"{arg} = {_toml(value)}" for arg, value in entry.args.items()) or "no arguments"
            click.echo(f"component of {key}, version {entry.version}: {entry.summary}")
            click.echo(f"  {args}")
        return
    known = [*variants, *ablations, *components]
    raise CardError(f'"{name}" is not a variant, ablation or component', hint=suggestion(name, set(known)))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def short(where: str) -> str:
    """``file:line`` with the path relative to here where that is shorter."""
    if not (found := re.fullmatch(r"(.*):(\d+)", where)):
        return where
    path = Path(found[1])
    try:
        path = path.relative_to(Path.cwd())
    except ValueError:
        path = Path(path.parent.name) / path.name
    return f"{path}:{found[2]}"
