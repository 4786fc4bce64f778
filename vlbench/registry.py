"""A registry that is small, loud and lazy.

Small: a name, a target, a few facts. Loud: a taken name raises and shows both targets; an unknown name is answered with
the near miss and the list. Lazy: a target is ``"package.module:Name"`` and is imported when it is used, so listing
names imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlbench.errors import CardError, suggestion

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered thing. ``version`` rises whenever its results change; it is part of every identity that uses it.

    ``args`` are its arguments with their defaults. They stand here and not in the constructor, because a plan has to
    know the identity of a cell without importing torch; constructors therefore take them keyword-only, without
    defaults.
    """

    name: str
    target: str
    version: int = 1
    args: Mapping[str, Scalar] = field(default_factory=dict)
    summary: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the target and return it."""
        module, _, attribute = self.target.partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


class Registry:
    """Names of one kind. ``kind`` is the word used in errors, such as ``component of refinement``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(
        self,
        name: str,
        target: str,
        *,
        version: int = 1,
        args: Mapping[str, Scalar] | None = None,
        summary: str = "",
        **facts: Any,
    ) -> None:
        """Register ``name``. Raises CardError if it is taken by another target."""
        entry = Entry(name, target, version, dict(args or {}), summary, facts)
        old = self._entries.get(name)
        if old is not None and old != entry:
            raise CardError(f'the {self.kind} "{name}" is taken by {old.target} (refused: {target})')
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise CardError(f'"{name}" is not {article} {self.kind}', hint=suggestion(name, self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """All entries in the order of registration."""
        return list(self._entries.values())
