"""``vlbench data``: look at datasets before anything is trained on them."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(
    epilog="""\b
Examples:
  vlbench data list
  vlbench data check planted-quick
""",
)
def data() -> None:
    """List, check and export datasets."""


@data.command(
    "list",
    epilog="""\b
Examples:
  vlbench data list
""",
)
def list_() -> None:
    """List declared datasets with their place, and built-in ones."""
    from vlbench import catalog
    from vlbench.workspace import find

    declared = find().declarations
    rows = [(name, f"declared at {declaration.where()}") for name, declaration in declared.items()]
    rows += [(entry.name, entry.summary) for entry in catalog.datasets.entries()]
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        click.echo(f"{name:<{width}}  {summary}".rstrip())


@data.command(
    epilog="""\b
Examples:
  vlbench data check planted-quick
  vlbench data check planted-quick --features slowfast+clip/clip
"""
)
@click.argument("name")
@click.option("--features", metavar="VIDEO/TEXT", help="Look at these encoders only, such as slowfast+clip/clip.")
def check(name: str, features: str | None) -> int:
    """Report everything that is wrong with a dataset.

    All annotations and feature files are read once. Each kind of fault is one line with how often it was found and its
    first examples. Exit status 2 if training could
    not work, 0 if it could, even with warnings.
    """
    from vlbench.data import check as checks
    from vlbench.data.base import ROLES, open_dataset, parse_features
    from vlbench.workspace import find

    dataset = open_dataset(name, find())
    findings = checks.check(dataset, None if features is None else parse_features(features, "--features"))
    for finding in sorted(findings, key=lambda finding: finding.severity):
        click.echo(str(finding))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    if errors:
        click.echo(f"{name}: {_kinds(errors, 'error')}, {_kinds(warnings, 'warning')}; training could not work")
        return 2
    for role in ROLES:
        queries = dataset.queries(role)
        sources = len({query.source_video for query in queries})
        click.echo(f"{dataset.split_rule(role)}: {len(queries)} queries on {sources} source videos")
    click.echo(f"tasks: {', '.join(sorted(dataset.tasks))}")
    click.echo(f"{name}: no errors, {_kinds(warnings, 'warning')}")
    return 0


def _kinds(count: int, noun: str) -> str:
    return f"{count or 'no'} kind{'' if count == 1 else 's'} of {noun}"


@data.command(
    epilog="""\b
Examples:
  vlbench data export planted-quick exported
"""
)
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--as", "as_", metavar="NAME", help="The dataset's name in the declaration. [default: NAME-files]")
def export(name: str, folder: Path, as_: str | None) -> None:
    """Write a dataset to disk in the field's layout.

    Annotations, npz files per encoder and a vlbench.toml: the folder is then a workspace of its own; copy the
    declaration to use the files elsewhere.
    """
    from vlbench.data.base import open_dataset
    from vlbench.data.export import export as write
    from vlbench.workspace import find

    chosen = as_ or f"{name}-files"
    for path in write(open_dataset(name, find()), folder, chosen):
        click.echo(str(path))
    click.echo(f'declared as "{chosen}"; try: cd {folder} && vlbench data check {chosen}')


@data.command(
    epilog="""\b
Examples:
  vlbench data words planted-quick --kind typos --share 0.3 --out typos.jsonl
  vlbench data words planted-quick --kind negation --out negated.jsonl
"""
)
@click.argument("name")
@click.option("--kind", required=True, help="typos, drop, swap, negation or paraphrase.")
@click.option("--share", type=float, default=1.0, show_default=True, help="Of words; of queries for negation.")
@click.option("--draw", type=click.IntRange(0), default=0, show_default=True, help="Which repetition.")
@click.option("--split", default="report", show_default=True, help="The role or split whose queries are written.")
@click.option(
    "--table", type=click.Path(path_type=Path, dir_okay=False), help='JSON of paraphrases: {"a man": "a guy"}.'
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The annotation file.")
def words(name: str, kind: str, share: float, draw: int, split: str, table: Path | None, out: Path) -> None:
    """Write queries with noise on their words, as annotations.

    vlbench brings no text encoder: extract the features of these texts with the one that the dataset's features are
    from, declare both as a dataset of its own, and score finished fits on it.
    """
    import json

    from vlbench.corrupt.words import reworded
    from vlbench.data.base import open_dataset
    from vlbench.data.export import annotation_row
    from vlbench.errors import DataError
    from vlbench.files import read_json, write_text
    from vlbench.workspace import find

    said = read_json(table) if table is not None else None
    if table is not None and not (said and all(isinstance(value, str) for value in said.values())):
        raise DataError("has to be a JSON object of words or phrases and what is said instead", where=table)
    paraphrases = {key.lower(): str(value) for key, value in (said or {}).items()}
    queries = open_dataset(name, find()).queries(split)
    changed = [reworded(query, kind, share, draw=draw, table=paraphrases) for query in queries]
    write_text(out, "".join(json.dumps(annotation_row(query), ensure_ascii=False) + "\n" for query in changed))
    count = sum(one.text != other.text for one, other in zip(queries, changed, strict=True))
    click.echo(f"{out}: {len(queries)} queries of {name}, {count} with other words")
    click.echo("their text features have to be extracted again; without an encoder use the families on tokens")
