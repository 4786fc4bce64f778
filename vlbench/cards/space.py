"""Search spaces: what a sweep may vary, from the ``[search]`` table of a variant's card.

::

    [search]
    "train.lr" = { low = 3e-5, high = 3e-4, log = true }
    "model.width" = { low = 64, high = 256, step = 64 }
    "loss.hard_saliency.use" = { choices = ["none", "hard_pos_neg"] }

A range is of the type that the key has in the catalogue, both ends included; a step that does not divide it ends it
earlier. A key that belongs to a component is without effect in trials where another component fills the slot.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from vlbench import catalog
from vlbench.cards.kinds import Variant
from vlbench.cards.resolve import edit, flatten
from vlbench.errors import CardError, suggestion
from vlbench.registry import Entry, Scalar

DIGITS = 4  # significant, of suggested numbers: finer than any sweep resolves, and cards stay readable
_FIELDS = ("low", "high", "log", "step", "choices")
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One key of a space. kind: ``float`` and ``int`` have a range, ``choices`` a list. step: None for any value."""

    key: str
    kind: Literal["float", "int", "choices"]
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[Scalar, ...] = ()

    def at(self, u: float) -> Scalar:
        """The value at quantile ``u`` in [0, 1) of what a sampler that knows nothing would draw."""
        if self.kind == "choices":
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "int":
            return self._int_at(u)
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        elif self.step is not None:
            count = self.steps
            value = float(Decimal(str(self.low)) + Decimal(str(self.step)) * min(int(u * count), count - 1))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def tidy(self, value: Scalar) -> Scalar:
        """A suggested value as people write it, still inside the range."""
        if self.kind != "float":
            return value
        digits = DIGITS if self.step is None else 12  # of a grid, only what its own arithmetic has blurred
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def holds(self, value: Scalar) -> bool:
        """Whether a value is one of the choices, or inside the range."""
        if self.kind == "choices":
            return value in self.choices
        return not isinstance(value, str) and self.low <= value <= self.high

    @property
    def steps(self) -> int:
        """How many values a stepped range has."""
        assert self.step is not None
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) // Decimal(str(self.step))) + 1

    def as_json(self) -> dict[str, Any]:
        """As ``sweep.json`` and a study's definition hold it; keys without a meaning for the kind are null."""
        if self.kind == "choices":
            held: tuple[Any, ...] = (None, None, None, None, list(self.choices))
        elif self.kind == "int":
            held = (int(self.low), int(self.high), None if self.log else int(self.step or 1), self.log, None)
        else:
            held = (float(self.low), float(self.high), self.step, self.log, None)
        return {
            "key": self.key,
            "kind": self.kind,
            **dict(zip(("low", "high", "step", "log", "choices"), held, strict=True)),
        }

    def __str__(self) -> str:
        if self.kind == "choices":
            return "one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)
        number = "{:d}" if self.kind == "int" else "{:g}"
        low, high = (number.format(int(end) if self.kind == "int" else end) for end in (self.low, self.high))
        step = f" in steps of {self.step:g}" if self.step not in (None, 1) else ""
        return f"{low} to {high}{step}" + (", log" if self.log else "")

    def _int_at(self, u: float) -> int:
        low, high = int(self.low), int(self.high)
        if self.log:  # every whole number owns the stretch of the scale around it
            ends = math.log(low - 0.5), math.log(high + 0.5)
            return min(max(round(math.exp(ends[0] + u * (ends[1] - ends[0]))), low), high)
        step = int(self.step or 1)
        count = (high - low) // step + 1
        return low + step * min(int(u * count), count - 1)


@dataclass(frozen=True, slots=True)
class Space:
    """What a sweep of one variant varies. In the order of the card's keys."""

    dimensions: tuple[Dimension, ...]

    def __len__(self) -> int:
        return len(self.dimensions)

    def at(self, quantiles: Sequence[float]) -> dict[str, Scalar]:
        """A point of the space: one quantile in [0, 1) per dimension."""
        return {one.key: one.at(float(u)) for one, u in zip(self.dimensions, quantiles, strict=True)}

    def tidy(self, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """A suggestion as it is used: in the order of the space, numbers to DIGITS significant digits."""
        return {one.key: one.tidy(params[one.key]) for one in self.dimensions}

    def as_json(self) -> list[dict[str, Any]]:
        """Every dimension, as a study's definition holds it."""
        return [one.as_json() for one in self.dimensions]


def space_of(variant: Variant, *, fixed: Collection[str] = ()) -> Space:
    """The search space of a variant. fixed: keys that were set otherwise and are not varied.

    Raises: CardError with ``file:line`` for a space that is empty or cannot be.
    """
    keys = [key for key in variant.search if key not in fixed]
    if not keys:
        why = f"all its keys are set ({', '.join(variant.search)})" if variant.search else "its card has no [search]"
        raise CardError(
            f"{variant.name} has nothing to vary: {why}",
            hint='add to the card: [search] "train.lr" = { low = 1e-5, high = 1e-3, log = true }',
        )
    return Space(tuple(_dimension(key, variant.search[key], variant) for key in keys))


def changes(params: Mapping[str, Scalar], variant: Variant) -> dict[str, Scalar]:
    """The card keys that a point sets: all of it but the arguments of components that other choices have replaced."""
    kept = {}
    for key, value in params.items():
        slot, _, argument = key.rpartition(".")
        chosen = params.get(f"{slot}.use")
        if argument == "use" or chosen is None or argument in _component(slot, str(chosen)).args:
            kept[key] = value
    return kept


def _component(slot: str, name: str) -> Entry:
    return catalog.find_slot(slot.removeprefix("model."))[name]


def _dimension(key: str, table: Mapping[str, Any], variant: Variant) -> Dimension:
    where, known = variant.origin.get(f"search.{key}"), flatten(variant)
    if key not in known and not _may_come(key, variant):
        raise CardError(
            f'[search] varies "{key}", which is not a key of this card', where=where, hint=suggestion(key, known)
        )
    for name in table:
        if name not in _FIELDS:
            raise CardError(f'{key} has the unknown field "{name}"', where=where, hint=suggestion(name, _FIELDS))
    now = known[key] if key in known else _default_of(key, variant)
    one = _choices(key, table, now, where) if "choices" in table else _range(key, table, now, where)
    _try(one, variant, where)
    return one


def _choices(key: str, table: Mapping[str, Any], now: Scalar, where: str | None) -> Dimension:
    if len(table) > 1:
        others = ", ".join(name for name in table if name != "choices")
        raise CardError(f"{key} has choices and a range ({others}): one of them", where=where)
    values = table["choices"]
    if not isinstance(values, list) or not values:
        raise CardError(f"{key} has no choices (got {values!r})", where=where)
    cast: list[Scalar] = []
    for value in values:
        if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(now):
            raise CardError(f"every choice of {key} has to be {_KINDS[type(now)]} (got {value!r})", where=where)
        if value in cast:
            raise CardError(f"{key} has the choice {value!r} twice", where=where)
        cast.append(value)
    return Dimension(key, "choices", choices=tuple(cast))


def _range(key: str, table: Mapping[str, Any], now: Scalar, where: str | None) -> Dimension:
    if isinstance(now, bool | str):
        raise CardError(f"{key} is {_KINDS[type(now)]}: it has no range", where=where, hint="give it choices = [...]")
    for name in ("low", "high"):
        if name not in table:
            raise CardError(f"{key} has no {name}", where=where, hint="a range has low and high, or give choices")
    whole = isinstance(now, int)
    for name in ("low", "high", "step"):
        value = table.get(name)
        if value is None and name == "step":
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = _KINDS[int if whole else float]
            raise CardError(f"{name} of {key} has to be {kind} (got {value!r})", where=where)
        if not math.isfinite(value):
            raise CardError(f"{name} of {key} has to be finite (got {value!r})", where=where)
    log, step = table.get("log", False), table.get("step")
    if not isinstance(log, bool):
        raise CardError(f"log of {key} has to be true or false (got {log!r})", where=where)
    low, high = table["low"], table["high"]
    if low > high:
        raise CardError(f"{key} has low {low:g} above high {high:g}", where=where)
    if log and low <= 0:
        raise CardError(
            f"{key} has a log range that touches 0 (low = {low:g})",
            where=where,
            hint="raise low above 0, or leave log out",
        )
    if log and step is not None:
        raise CardError(f"{key} has a step and log: steps of what?", where=where, hint="leave one of them out")
    if step is not None and step <= 0:
        raise CardError(f"step of {key} has to be above 0 (got {step:g})", where=where)
    if step is not None and not whole:
        low, step = Decimal(str(low)), Decimal(str(step))
        high = low + (Decimal(str(high)) - low) // step * step
    elif whole and not log:
        step = step or 1
        high = low + (high - low) // step * step
    return Dimension(
        key, "int" if whole else "float", float(low), float(high), None if step is None else float(step), log
    )


def _try(one: Dimension, variant: Variant, where: str | None) -> None:
    """Hold the ends or the choices against the catalogue's own rules."""
    slot, _, argument = one.key.rpartition(".")
    if argument == "use":  # alone it may miss what another choice brings; that it is known is enough here
        components = catalog.find_slot(slot.removeprefix("model."))
        for choice in one.choices:
            if choice not in components:
                raise CardError(
                    f'{one.key} has the choice "{choice}", which is not a {components.kind}',
                    where=where,
                    hint=suggestion(str(choice), components),
                )
        return
    if one.key not in flatten(variant):
        return
    for value in one.choices or {one.at(0.0), one.at(1.0)}:
        edit(variant, {one.key: value}, origin=where or "[search]")


def _may_come(key: str, variant: Variant) -> bool:
    """Whether a key is an argument of a component that another key of the space may choose."""
    return _offered(key, variant) is not None


def _default_of(key: str, variant: Variant) -> Scalar:
    found = _offered(key, variant)
    assert found is not None
    return found


def _offered(key: str, variant: Variant) -> Scalar | None:
    slot, _, argument = key.rpartition(".")
    choices = variant.search.get(f"{slot}.use", {}).get("choices")
    if not isinstance(choices, list) or slot.partition(".")[0] not in ("model", "loss"):
        return None
    components = catalog.find_slot(slot.removeprefix("model."))
    offers = [
        components[choice].args[argument]
        for choice in choices
        if choice in components and argument in components[choice].args
    ]
    return offers[0] if offers else None
