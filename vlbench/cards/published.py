"""Published numbers as data: rows of printed tables, each with its source, its split and how its checkpoint was chosen.

A file holds rows, ``[[row]]``; what its rows share stands once at its top and a row may say otherwise. Values are in
percent under the metric names of the catalogue, exactly as printed, slips of the pen included. The built-in files are
in ``vlbench/published``; a card's own ``[[reported]]`` tables are rows too.

kind: ``own``, printed by those who made the method; ``cited``, copied into another paper; ``rerun``, trained again by
somebody else. chosen_on: the split by which the checkpoint was chosen. known: rule -> why a finding of
``vlbench check --published`` about this row is not a mistake of this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from vlbench.cards.kinds import Reported
from vlbench.cards.read import Schema, line_of, load_toml, validate
from vlbench.errors import CardError

NOT_STATED = "not stated"
FOLDER = Path(__file__).resolve().parents[1] / "published"

_HEADER = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*[=.]")

Kind = Literal["own", "cited", "rerun", "not stated"]


class RowTable(Schema):
    """One ``[[row]]``. The keys without a value are those that the top of the file may state for all rows."""

    method: str = Field(min_length=1)
    values: dict[str, float] = Field(min_length=1)
    domains: dict[str, float] = Field(default_factory=dict)
    variant: str | None = None
    config: str = ""
    dataset: str | None = None
    split: str | None = None
    features: str | None = None
    table: str | None = None
    kind: Kind | None = None
    checkpoint: str | None = None
    chosen_on: str | None = None
    seeds: int | Literal["not stated"] | None = None
    note: str = ""
    known: dict[str, str] = Field(default_factory=dict)


class PublishedFile(Schema):
    """A file of published rows: its source, and what its rows share."""

    source: str = Field(min_length=1)
    read_from: str = ""
    dataset: str | None = None
    split: str | None = None
    features: str = NOT_STATED
    table: str | None = None
    kind: Kind = "own"
    checkpoint: str = NOT_STATED
    chosen_on: str = NOT_STATED
    seeds: int | Literal["not stated"] = "not stated"
    row: list[RowTable] = Field(min_length=1)


class ReportedRow(Schema):
    """One ``[[reported]]`` of a card."""

    dataset: str
    split: str
    source: str
    values: dict[str, float]


class ReportedCard(Schema):
    """What a variant card says of published numbers; its other keys are checked where the card is resolved."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    title: str = ""
    reported: list[ReportedRow] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a printed table.

    config: what differs from the method as published, empty for the method itself. features: as ``video/text`` where
    they are known. values: metric -> percent. domains: domain -> percent, of the datasets that are scored by domain.
    where: ``file:line`` of the row; lines: key -> line of the keys that are written.
    """

    method: str
    config: str
    dataset: str
    split: str
    features: str
    source: str
    table: str
    kind: Kind
    checkpoint: str
    chosen_on: str
    seeds: int | str
    values: Mapping[str, float]
    domains: Mapping[str, float] = field(default_factory=dict)
    variant: str | None = None
    note: str = ""
    known: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``VideoLights-B without FRA``."""
        return f"{self.method} {self.config}".rstrip()

    @property
    def place(self) -> str:
        """``arXiv:2412.01558v1, table II``, with a word if the number was copied or measured again."""
        text = f"{self.source}, {self.table}" if self.table else self.source
        return {"cited": f"as cited in {text}", "rerun": f"rerun of {text}"}.get(self.kind, text)

    def at(self, key: str) -> str:
        """``file:line`` of a key of this row, or of the row where the key is not written in it."""
        return f"{self.where.rpartition(':')[0]}:{self.lines[key]}" if key in self.lines else self.where


def builtin_files() -> list[Path]:
    """The packaged files, by name."""
    return sorted(FOLDER.glob("*.toml"))


def read_rows(path: Path) -> tuple[PublishedRow, ...]:
    """The rows of a file of published numbers, or of the ``[[reported]]`` tables of a variant card.

    Raises: CardError with file:line for an unknown key, a wrong type, or a row without dataset or split.
    """
    table, text = load_toml(path)
    if "row" not in table and ("reported" in table or "extends" in table or "model" in table):
        return _of_card(path, table, text)
    card = validate(PublishedFile, table, path, text)
    places = _places(text, "row", len(card.row))
    return tuple(_row(path, card, row, lines) for row, lines in zip(card.row, places, strict=True))


def reported_of(variant: str) -> tuple[Reported, ...]:
    """The built-in rows that are about the built-in variant of this name, in the order of their files."""
    return tuple(
        Reported(row.dataset, row.split, row.place, dict(row.values))
        for row in _builtin_rows()
        if row.variant == variant
    )


@cache
def _builtin_rows() -> tuple[PublishedRow, ...]:
    return tuple(row for path in builtin_files() for row in read_rows(path))


def _row(path: Path, card: PublishedFile, row: RowTable, lines: Mapping[str, int]) -> PublishedRow:
    where = f"{path}:{lines['']}"

    def stated(key: str) -> str:
        value = getattr(row, key) if getattr(row, key) is not None else getattr(card, key)
        if value is None:
            raise CardError(f'the key "{key}" is missing, in the row and at the top of the file', where=where)
        return str(value)

    return PublishedRow(
        method=row.method,
        config=row.config,
        dataset=stated("dataset"),
        split=stated("split"),
        features=stated("features"),
        source=card.source,
        table=row.table or card.table or "",
        kind=row.kind or card.kind,
        checkpoint=stated("checkpoint"),
        chosen_on=stated("chosen_on"),
        seeds=card.seeds if row.seeds is None else row.seeds,
        values=row.values,
        domains=row.domains,
        variant=row.variant,
        note=row.note,
        known=row.known,
        where=where,
        lines=lines,
    )


def _of_card(path: Path, table: dict[str, Any], text: str) -> tuple[PublishedRow, ...]:
    card = validate(ReportedCard, table, path, text)
    return tuple(
        PublishedRow(
            method=card.title or path.stem,
            config="",
            dataset=row.dataset,
            split=row.split,
            features=NOT_STATED,
            source=row.source,
            table="",
            kind="own",
            checkpoint=NOT_STATED,
            chosen_on=NOT_STATED,
            seeds=NOT_STATED,
            values=row.values,
            variant=path.stem,
            where=f"{path}:{lines['']}",
            lines=lines,
        )
        for row, lines in zip(card.reported, _places(text, "reported", len(card.reported)), strict=True)
    )


def _places(text: str, name: str, count: int) -> list[dict[str, int]]:
    """Per table of the array ``name``: its keys and the lines that write them, under "" its own first line.

    One pass for all rows: ``read.line_of`` reads the whole text for each key. Rows that are written in another form
    than ``[[name]]`` are placed where the array begins.
    """
    found: list[dict[str, int]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            inside = header[1].partition(".")[0] == name
            if inside and line.lstrip().startswith("[["):
                found.append({"": number})
            elif inside and found:
                found[-1].setdefault(header[1].partition(".")[2], number)
        elif inside and found and (key := _KEY.match(line)):
            found[-1].setdefault(key[1], number)
    return found if len(found) == count else [{"": line_of(text, [name]) or 1} for _ in range(count)]
