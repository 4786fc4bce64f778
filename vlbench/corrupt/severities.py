"""How strong a level is: one versioned file of amounts, whose digest is printed with every result.

A ``Corruption`` carries its amount, so changing the file changes new cells and leaves finished ones what they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from vlbench import catalog
from vlbench.canon import digest
from vlbench.cards.read import Schema, line_of, load_toml, validate
from vlbench.errors import CardError, suggestion
from vlbench.files import write_text

BUILT_IN = Path(__file__).with_name("severities.toml")
LEVELS = (0, 1, 2, 3, 4, 5)  # 0 is clean


class SeverityFile(Schema):
    """A file of severities."""

    version: int
    levels: dict[str, list[int | float]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Severities:
    """Amounts by family: of levels 1 to 5, or of level 5 alone. origin: where they are from, for errors."""

    version: int
    amounts: Mapping[str, tuple[float, ...]]
    origin: str = ""

    @classmethod
    def read(cls, path: Path | None = None) -> Severities:
        """The built-in table, or another one. Raises CardError with file:line where a row cannot be."""
        path = path or BUILT_IN
        table, text = load_toml(path)
        card = validate(SeverityFile, table, path, text)
        amounts = {family: tuple(map(float, row)) for family, row in card.levels.items()}
        for family, row in amounts.items():
            if family not in catalog.corruptions or (fault := _fault(family, row)):
                where = f"{path}:{line_of(text, ['levels', family]) or 1}"
                if family not in catalog.corruptions:
                    hint = suggestion(family, catalog.corruptions)
                    raise CardError(f'"{family}" is not a corruption', where=where, hint=hint)
                raise CardError(f"levels.{family} = {list(row)}: {fault}", where=where)
        return cls(card.version, amounts, str(path))

    @property
    def digest(self) -> str:
        """sha256 of the version and all amounts, as 64 hex digits."""
        rows = {family: [_written(amount) for amount in row] for family, row in sorted(self.amounts.items())}
        return digest({"version": self.version, "levels": rows})

    def levels(self, family: str) -> tuple[int, ...]:
        """The levels above 0 that a family has."""
        return LEVELS[-len(self.row(family)) :]

    def amount(self, family: str, level: int) -> float:
        """How strong a level is. Raises CardError for an unknown family or a level that it does not have."""
        levels = self.levels(family)
        if level not in levels:
            listed = f"{levels[0]} to {levels[-1]}" if len(levels) > 1 else f"{levels[0]} alone"
            raise CardError(f"{family} has no level {level}", hint=f"levels: 0 (clean) and {listed}")
        return self.row(family)[levels.index(level)]

    def with_rows(self, rows: Mapping[str, tuple[float, ...]]) -> Severities:
        """The same with other amounts for some families, as the next version."""
        for family, row in rows.items():
            if fault := _fault(family, row):
                raise CardError(f"levels.{family} = {list(row)}: {fault}")
        return replace(self, version=self.version + 1, amounts={**self.amounts, **rows}, origin="calibrated")

    def write(self, path: Path) -> None:
        """As a file that ``read`` takes."""
        rows = "".join(f"{family} = [{', '.join(map(repr, row))}]\n" for family, row in self.amounts.items())
        write_text(path, f"version = {self.version}\n\n[levels]\n{rows}")

    def row(self, family: str) -> tuple[float, ...]:
        """The amounts of its levels. Raises CardError for an unknown family, or one that came without any."""
        entry = catalog.corruptions[family]
        row = self.amounts.get(family) or tuple(map(float, entry.facts.get("levels") or ()))
        if not row:
            hint = "a plug-in gives them with levels=(...)"
            raise CardError(f"{family} has no amounts", where=self.origin or None, hint=hint)
        return row


def _fault(family: str, row: tuple[float, ...]) -> str | None:
    """What is wrong with a row of amounts, or None."""
    facts = catalog.corruptions[family].facts
    low, high = facts.get("limits", (0.0, math.inf))
    if len(row) not in (1, 5):
        return "five amounts are needed, for levels 1 to 5, or one for level 5 alone"
    if not all(low <= amount <= high for amount in row):
        return f"amounts lie between {low:g} and {high:g}"
    falling = bool(facts.get("falling"))
    steps = [(b, a) if falling else (a, b) for a, b in itertools.pairwise(row)]
    if any(a >= b for a, b in steps):
        return f"amounts {'fall' if falling else 'rise'} from level to level"
    if facts.get("windows") and any(amount < 1 or (math.isfinite(amount) and amount % 1) for amount in row):
        return "windows are whole numbers of clips"
    if facts.get("windows") and any(math.isfinite(b) and b % a for a, b in itertools.pairwise(row)):
        return "each window has to divide the next, or levels would not be nested"
    return None


def _written(amount: float) -> float | str:
    """The amount as canonical JSON can hold it."""
    return amount if math.isfinite(amount) else "all"
