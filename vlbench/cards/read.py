"""TOML in, plain tables out, and the line of every key, so that an error can say ``models/mine.toml:7``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vlbench.errors import CardError, suggestion

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


class Schema(BaseModel):
    """The base of every card schema: strict types, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


S = TypeVar("S", bound=Schema)


def load_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The parsed table and the text of a TOML file. Raises CardError with file:line where it is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot be read: {error}", where=path) from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise CardError(f"not valid TOML: {error}", where=f"{path}:{found[1] if found else 1}") from error


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line that sets ``path`` in a TOML text, or the nearest enclosing table's; None if there is none.

    An integer in the path is the index of an array of tables: ``("arm", 1, "name")``.
    """
    best: tuple[int, int] | None = None  # depth matched, line
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    wanted = tuple(path)
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = tuple(_parts(header[2]))
            if header[1] == "[[":
                index = counts[table] = counts.get(table, -1) + 1
                table = (*table, index)
            elif table[:1] in counts and table not in counts:  # a sub-table of the last array element
                table = (table[0], counts[table[:1]], *table[1:])
            here: tuple[str | int, ...] = table
        elif key := _KEY.match(line):
            here = (*table, *_parts(key[1]))
        else:
            continue
        if here == wanted[: len(here)] and (best is None or len(here) > best[0]):
            best = (len(here), number)
    return best[1] if best else None


def validate(schema: type[S], table: dict[str, Any], path: Path, text: str, at: Sequence[str] = ()) -> S:
    """Check a table against a schema. Raises CardError with file:line, the near miss and the known names."""
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        keys = [*at, *(part for part in problem["loc"] if not str(part).startswith("function-"))]
        where = f"{path}:{line_of(text, keys) or 1}"
        name = ".".join(str(key) for key in keys)
        if problem["type"] == "extra_forbidden":
            known = _fields(schema, problem["loc"][:-1])
            raise CardError(f'unknown key "{name}"', where=where, hint=suggestion(str(keys[-1]), known)) from None
        if problem["type"] == "missing":
            raise CardError(f'the key "{name}" is missing', where=where) from None
        raise CardError(f"{name} = {problem['input']!r}: {problem['msg'].lower()}", where=where) from None


def _fields(schema: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Field names of the (nested) schema at ``loc``."""
    current: Any = schema
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            annotation = current.model_fields[str(part)].annotation
            models = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
            current = next((a for a in models if issubclass(a, BaseModel)), current)
    return list(current.model_fields)


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]
