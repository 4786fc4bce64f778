"""Keeping what a sweep found: ``[tuned.DATASET]`` of a variant card, written into its text so that comments survive."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlbench.cards.kinds import Variant
from vlbench.cards.library import cards
from vlbench.cards.read import line_of, load_toml
from vlbench.cards.resolve import edit
from vlbench.errors import CardError
from vlbench.files import write_text
from vlbench.registry import Scalar

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"^\s*\[\[?\s*(.+?)\s*\]\]?\s*(#.*)?$")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def promote(
    variant: Variant,
    root: Path,
    dataset: str,
    values: Mapping[str, Scalar],
    source: Mapping[str, Any],
    *,
    force: bool = False,
) -> tuple[Path, bool]:
    """Write ``[tuned.DATASET]`` into a workspace's card; a built-in card gets one there that extends it.

    values: card keys. source: ``study``, ``digest``, ``trial`` and ``budget``.
    Returns: the card's path, and whether anything changed.
    Raises: CardError for values that the card does not take, or where other values stand and ``force`` is not set.
    """
    edit(variant, values, origin=f"trial {source['trial']} of {source['study']}")
    own = root / "models" / f"{variant.name}.toml"
    path = cards("models", root).get(variant.name)
    if path is None:
        raise CardError(f'"{variant.name}" is not a card of this workspace or a built-in one', where=root / "models")
    if path.resolve() == own.resolve():
        table, text = load_toml(path)
    else:
        text = _extending(variant)
        table = tomllib.loads(text)
    wanted = {**{key: source[key] for key in ("study", "digest", "trial")}, "budget": dict(source["budget"])}
    wanted["set"] = dict(values)
    before = table.get("tuned", {}).get(dataset)
    if before == wanted:
        return path, False
    if before is not None and not force and (before.get("set") != wanted["set"]):
        where = f"{path}:{line_of(text, ('tuned', dataset)) or 1}"
        raise CardError(
            f"holds other values for {dataset}, of {before.get('study')}, trial {before.get('trial')}",
            where=where,
            hint="--force replaces them",
        )
    new = without_block(text, dataset).rstrip("\n") + "\n\n" + _block(dataset, wanted)
    expected = {**table, "tuned": {**table.get("tuned", {}), dataset: wanted}}
    try:
        right = tomllib.loads(new) == expected
    except tomllib.TOMLDecodeError:
        right = False
    if not right:  # such as a table that is written inline
        raise CardError(
            f"[tuned.{dataset}] is written in a form that cannot be replaced",
            where=path,
            hint="delete it and try again",
        )
    own.parent.mkdir(parents=True, exist_ok=True)
    write_text(own, new)
    return own, True


def without_block(text: str, dataset: str) -> str:
    """The text without the tables of ``[tuned.DATASET]``; comments above the table that follows stay with it."""
    kept: list[str] = []
    dropped: list[str] = []  # of the block so far: what ends it may be the next table's comment
    inside = False
    for line in text.splitlines(keepends=True):
        if (header := _HEADER.match(line)) is not None:
            parts = [part.strip("\"'") for part in _PART.findall(header[1])]
            was, inside = inside, parts[:2] == ["tuned", dataset]
            if was and not inside:
                kept += _tail(dropped)
            if inside:
                dropped = []
        if inside:
            dropped.append(line)
        else:
            kept.append(line)
    return "".join(kept + (_tail(dropped) if inside else []))


def _tail(lines: list[str]) -> list[str]:
    """The comments and empty lines that end a block."""
    start = len(lines)
    while start and (not lines[start - 1].strip() or lines[start - 1].lstrip().startswith("#")):
        start -= 1
    return [line for line in lines[start:] if line.strip()]


def _extending(variant: Variant) -> str:
    lines = ["# The built-in card of this name, with what sweeps of this workspace found."]
    lines += [
        f"{key} = {_toml(value)}"
        for key, value in (("extends", variant.name), ("title", variant.title), ("paper", variant.paper))
        if value
    ]
    return "\n".join(lines) + "\n"


def _block(dataset: str, content: Mapping[str, Any]) -> str:
    head = f"tuned.{_key(dataset)}"
    lines = [f"[{head}]"]
    lines += [f"{key} = {_toml(value)}" for key, value in content.items() if not isinstance(value, Mapping)]
    for name in ("budget", "set"):
        lines.append(f"[{head}.{name}]")
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in content[name].items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
