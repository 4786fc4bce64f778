"""``vlbench data``: look at datasets before anything is trained on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vlbench.data.packed import Piece


@click.group(
    epilog="""\b
Examples:
  vlbench data list
  vlbench data check planted-quick
  vlbench data pack planted-quick
""",
)
def data() -> None:
    """List, check, pack and export datasets."""


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
  vlbench data pack planted-quick
  vlbench data pack planted-quick --features slowfast+clip/clip --check
"""
)
@click.argument("name", metavar="[DATASET]", required=False)
@click.option("--features", metavar="VIDEO/TEXT", help="Encoders by name. [default: all that are declared]")
@click.option("--check", is_flag=True, help="Build nothing: read what is packed and compare it with its digests.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def pack(name: str | None, features: str | None, check: bool, as_json: bool) -> int:
    """Write the feature files of a dataset to one table per encoder.

    Without DATASET, of every declared one. The first fit does the same where it was not done. A command that was
    killed goes on where it was. Tables are found by the digest of the files, so that changed files get a new one;
    they lie in packs/ of the store and can be deleted at any time. With --check the exit status is 2 if a table is
    missing or damaged.
    """
    import json

    from vlbench.data import packed
    from vlbench.data.base import ROLES, open_dataset, parse_features
    from vlbench.workspace import find

    workspace = find()
    asked = None if features is None else parse_features(features, "--features")
    names = list(workspace.declarations) if name is None else [name]
    found: list[dict[str, object]] = []
    for dataset in (open_dataset(one, workspace) for one in names):
        for piece in packed.pieces(dataset, ROLES, asked):
            if piece.stream.resident:
                continue
            row = _checked(piece, workspace.store) if check else _packed(piece, workspace.store)
            found.append({"dataset": dataset.name, **row})
            if not as_json:
                click.echo(f"{dataset.name}  {piece.role:<6}  {piece.kind:<5}  {piece.stream.name}: {_told(row)}")
    bad = [row for row in found if row["state"] in ("damaged", "missing")]
    if as_json:
        click.echo(json.dumps({"tables": found}, indent=1))
    elif not found:
        where = f"the features of {name} are" if name else "no dataset is declared, and those of built-in ones are"
        click.echo(f"nothing to pack: {where} made in memory")
    elif bad:
        click.echo(f"{len(bad)} of {len(found)} tables are damaged or missing; delete what is damaged and pack again")
    return 2 if bad else 0


def _packed(piece: Piece, store: Path) -> dict[str, object]:
    """Build a table where it is not there, with progress on a terminal."""
    import time

    from vlbench.data import packed

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            click.echo(f"\r{piece.role} {piece.stream.name}: {done:,} of {total:,} rows{end}", err=True, nl=False)

    started = time.perf_counter()
    folder, new = packed.build(piece.stream, piece.queries, piece.most, store, told)
    state = {"state": "packed", "seconds": round(time.perf_counter() - started, 1)} if new else {"state": "there"}
    return {**_table(piece, folder), **state}


def _checked(piece: Piece, store: Path) -> dict[str, object]:
    """Compare a table with its digests."""
    from vlbench.data import packed

    folder = packed.place_of(piece.stream, piece.queries, piece.most, store)
    if not folder.is_dir():
        return {**_table(piece, folder), "state": "missing"}
    problem = packed.verify(folder)
    return {
        **_table(piece, folder),
        **({"state": "whole"} if problem is None else {"state": "damaged", "why": problem}),
    }


def _table(piece: Piece, folder: Path) -> dict[str, object]:
    size = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
    encoder = {"role": piece.role, "kind": piece.kind, "encoder": piece.stream.name}
    return {**encoder, "queries": len(piece.queries), "bytes": size, "folder": str(folder)}


def _told(row: Mapping[str, Any]) -> str:
    if row["state"] == "missing":
        return "missing"
    if row["state"] == "damaged":
        return f"damaged, {row['why']}: {row['folder']}"
    size = f"{row['bytes'] / 1e6:.1f} MB for {row['queries']} queries"
    return (
        f"{size}, "
        + {
            "packed": f"packed in {row.get('seconds')} s",
            "there": "packed before",
            "whole": "as it was written",
        }[str(row["state"])]
    )


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
