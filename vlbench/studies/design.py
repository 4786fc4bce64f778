"""Designs: several components switched on and off together, and what each design can say.

A *cell* is one setting of all components, written with one digit each: "101" has the first and the third. A design
chooses the cells that become arms; the claims are weighted sums of those arms (``vlbench.stats.factorial``).

    one-out      the full model, and each component alone taken out of it
    one-in       the empty model, and each component alone put into it
    factorial    every cell: main effects, interactions, Shapley values
    fractional   half of the cells for 4 or 5 components; for more, the ends and random orders of building up

Source: Box, Hunter and Hunter (2005) for half fractions; Castro, Gomez and Tejada (2009) for Shapley values from
sampled orders.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from vlbench.cards.kinds import Ablation, Arm, Claim, Design, DesignKind, Factor, Variant, against_baseline
from vlbench.cards.resolve import edit
from vlbench.data.base import Dataset
from vlbench.errors import CardError
from vlbench.registry import Scalar
from vlbench.runs.cells import variant_identity
from vlbench.stats import factorial
from vlbench.streams import stream
from vlbench.studies.ablate import Question, changes_of, find
from vlbench.studies.plan import BASELINE

MOST_FACTORIAL = 6  # components: 64 cells
HALVES = (4, 5)  # components with a half fraction of resolution IV and V


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a design: what puts it into the base variant, what takes it out, and its placebo, as card keys.

    ``on`` is empty where the base has the component, ``off`` where it has not.
    """

    factor: Factor
    on: Mapping[str, Scalar]
    off: Mapping[str, Scalar]
    placebo: Mapping[str, Scalar] | None = None


def default_kind(components: int) -> DesignKind:
    """The design that is used where none was asked for: every cell while there are few."""
    return "factorial" if components <= 3 else "fractional"


def ask_together(
    components: Sequence[str],
    kind: DesignKind,
    base: Variant,
    dataset: Dataset,
    root: Path,
    card: Ablation | None = None,
) -> Question:
    """The arms and claims of a design over these components of a base variant.

    A component's own ablation card says what it means to remove it (the first arm); without one its slot does. card: of
    the design itself, with its question, if there is one; what it states as a factor is added to the base.

    Raises: CardError for fewer than two components, a component that cannot be ablated, components that overlap, or a
        design that does not fit their number.
    """
    if len(set(components)) < len(components):
        raise CardError(f"a component is named twice: {', '.join(components)}", where="--component")
    if len(components) < 2:
        raise CardError("a design needs two components or more", where="--component")
    if kind == "factorial" and len(components) > MOST_FACTORIAL:
        raise CardError(
            f"{len(components)} components have {2 ** len(components)} cells",
            where="--design",
            hint="use --design fractional, which samples orders of building up",
        )
    if kind == "fractional" and len(components) < min(HALVES):
        raise CardError(
            f"{len(components)} components have only {2 ** len(components)} cells, a fraction of them says too little",
            where="--design",
            hint="use --design factorial",
        )
    stated = {one.name: one for one in card.factors} if card is not None else {}
    parts = [
        Part(Factor(name, stated[name].title), on=stated[name].set, off={})
        if name in stated
        else _part(name, base, dataset, root)
        for name in components
    ]
    titles = [part.factor.title for part in parts]
    cells = _cells(kind, len(parts), seed_of=components)
    arms = {
        cell: edit(base, _settings(parts, cell, base), name=_name(cell, titles, kind), origin="--design")
        for cell in cells
    }
    _refuse_overlap(parts, arms)
    extra = _placebos(parts, base, arms["1" * len(parts)]) if kind == "one-out" else []
    names = {cell: arm.name for cell, arm in arms.items()}
    factors = tuple(part.factor for part in parts)
    if card is None:
        card = Ablation(
            name="+".join(components),
            component=", ".join(components),
            question=f"What do {_listed(titles)} contribute, alone and together?",
            arms=(),
            variants=(base.name,),
        )
    claims = [*_claims(kind, factors, names), *(claim for claim, _ in extra)]
    everything = (*arms.values(), *(arm for _, arm in extra))
    notes = _notes(kind, len(parts))
    return Question(card, everything, kind == "one-in", tuple(claims), Design(kind, factors, names), notes)


# --- components -------------------------------------------------------------------------------------------------------


def _part(component: str, base: Variant, dataset: Dataset, root: Path) -> Part:
    card = find(component, root)
    changes = changes_of(component, base, dataset, known={component} if card else set())
    if not changes.arms:
        raise CardError(
            f'"{component}" is a card with several questions, not one component that is there or not',
            where="--component",
            hint="name components, loss terms or encoders",
        )
    title = card.title if card is not None and card.title else component
    if changes.adds:
        return Part(Factor(component, title), on=changes.arms[0].set, off={})
    removed = card.arms[0] if card is not None else changes.arms[0]
    placebo = next((arm.set for arm in changes.arms[1:] if arm.name == "placebo"), None)
    return Part(Factor(component, title), on={}, off=removed.set, placebo=placebo)


def _settings(parts: Sequence[Part], cell: str, base: Variant) -> dict[str, Scalar]:
    """The card keys that turn the base into a cell. Encoders are lists: every part adds or takes away its own."""
    kept: dict[str, list[str]] = {
        "features.video": list(base.features.video),
        "features.text": list(base.features.text),
    }
    found: dict[str, Scalar] = {}
    for part, digit in zip(parts, cell, strict=True):
        for key, value in (part.on if digit == "1" else part.off).items():
            if key in kept:
                named = str(value).split("+")
                own = list(base.features.video if key == "features.video" else base.features.text)
                kept[key] = [name for name in kept[key] if name in named or name not in own]
                kept[key] += [name for name in named if name not in own and name not in kept[key]]
            elif found.get(key, value) != value:
                raise CardError(
                    f"{part.factor.title} and another component both set {key}, to {value} and {found[key]}",
                    where="--component",
                )
            else:
                found[key] = value
    for key, names in kept.items():
        if not names:
            raise CardError(f"without them all {key} is empty: there is nothing to read", where="--component")
    lists = {key: "+".join(names) for key, names in kept.items()}
    before = {"features.video": "+".join(base.features.video), "features.text": "+".join(base.features.text)}
    return found | {key: value for key, value in lists.items() if value != before[key]}


def _refuse_overlap(parts: Sequence[Part], arms: Mapping[str, Arm]) -> None:
    """Two cells that are one model cannot be told apart: a component is then part of another."""
    seen: dict[str, str] = {}
    for cell, arm in arms.items():
        same = seen.setdefault(repr(variant_identity(arm.variant)), cell)
        if same != cell:
            raise CardError(
                f'"{arms[same].name}" and "{arm.name}" are the same model: '
                f"among {_listed([part.factor.title for part in parts])} one contains another",
                where="--component",
            )


def _placebos(parts: Sequence[Part], base: Variant, full: Arm) -> list[tuple[Claim, Arm]]:
    """For every part that has one, the arm with a block of equal size in its place."""
    found = []
    on = _settings(parts, "1" * len(parts), base)
    for part in parts:
        if part.placebo is not None:
            arm = edit(base, {**on, **part.placebo}, name=f"placebo for {part.factor.title}", origin="--design")
            found.append((against_baseline(arm.name, full.name, part.factor.name, adds=False), arm))
    return found


# --- cells ------------------------------------------------------------------------------------------------------------


def _cells(kind: DesignKind, count: int, *, seed_of: Sequence[str]) -> list[str]:
    """The cells that a design runs; the first is the one that others are read against."""
    full, empty = "1" * count, "0" * count
    without = [_flip(full, i) for i in range(count)]
    only = [_flip(empty, i) for i in range(count)]
    if kind == "one-out":
        return [full, *without]
    if kind == "one-in":
        return [empty, *only]
    if kind == "factorial":
        return list(reversed(factorial.cells(count)))
    if count in HALVES:  # the defining word is the product of all components, so the full model is in this half
        return [cell for cell in reversed(factorial.cells(count)) if cell.count("0") % 2 == 0]
    built = [cell for order in build_orders(seed_of) for cell in _prefixes(order)]
    return list(dict.fromkeys([full, *without, *built, *only, empty]))


def build_orders(components: Sequence[str]) -> list[tuple[int, ...]]:
    """Orders of building the model up, each followed by its reverse, as many as there are components or one more.

    They depend on the names alone, so that the same question always has the same cells.
    """
    count = len(components)
    orders: list[tuple[int, ...]] = []
    for number in range(math.ceil(count / 2)):
        order = tuple(int(i) for i in stream(0, "design", "+".join(sorted(components)), number).permutation(count))
        ranked = sorted(range(count), key=lambda i: components[i])
        named = tuple(ranked[i] for i in order)
        orders += [named, named[::-1]]
    return list(dict.fromkeys(orders))


def _prefixes(order: Sequence[int]) -> list[str]:
    """The cells on the way from the empty model to the full one."""
    return ["".join("1" if i in order[:size] else "0" for i in range(len(order))) for size in range(len(order) + 1)]


def _flip(cell: str, place: int) -> str:
    return cell[:place] + ("0" if cell[place] == "1" else "1") + cell[place + 1 :]


def _name(cell: str, titles: Sequence[str], kind: DesignKind) -> str:
    """An arm's name: what it has, or what it lacks where that is shorter."""
    there = [title for title, digit in zip(titles, cell, strict=True) if digit == "1"]
    gone = [title for title, digit in zip(titles, cell, strict=True) if digit == "0"]
    if kind == "one-out":
        return f"without {gone[0]}" if gone else BASELINE
    if kind == "one-in":
        return f"with {there[0]}" if there else BASELINE
    if not gone:
        return "all"
    if not there:
        return "none"
    if len(there) == 1:
        return f"only {there[0]}"
    return f"without {gone[0]}" if len(gone) == 1 else " + ".join(there)


# --- claims -----------------------------------------------------------------------------------------------------------


def _claims(kind: DesignKind, factors: Sequence[Factor], names: Mapping[str, str]) -> list[Claim]:
    """What the cells can say, the judged claims first."""
    count = len(factors)
    if kind in ("one-out", "one-in"):
        base, *others = names
        changed = [next(i for i in range(count) if cell[i] != base[i]) for cell in others]
        return [
            against_baseline(names[cell], names[base], factors[i].name, adds=kind == "one-in")
            for cell, i in zip(others, changed, strict=True)
        ]
    found: list[Claim] = []
    halved = len(names) == 2 ** (count - 1) and kind == "fractional"
    if kind == "factorial" or halved:
        scale = 2.0 if halved else 1.0
        found += [_effect("main", (i,), factors, names, scale) for i in range(count)]
        pairs = list(combinations(range(count), 2))
        if halved and count == 4:  # a pair cannot be told from the other two
            pairs = [pair for pair in pairs if 0 in pair]
        found += [_effect("interaction", pair, factors, names, scale, aliased=halved and count == 4) for pair in pairs]
    if kind == "factorial":
        found += [_shared("shapley", i, factors, names, factorial.shapley(count, i)) for i in range(count)]
    elif not halved:
        found += [_shared("shapley", i, factors, names, _sampled(factors, i)) for i in range(count)]
    for place, weights in (("one-out", factorial.leave_one_out), ("one-in", factorial.add_one_in)):
        if weights(count, 0).keys() <= names.keys():
            found += [_shared(place, i, factors, names, weights(count, i)) for i in range(count)]  # type: ignore[arg-type]
    full, empty = "1" * count, "0" * count
    if {full, empty} <= names.keys():
        everyone = tuple(factor.name for factor in factors)
        weights_of_all = {names[full]: 1.0, names[empty]: -1.0}
        found.append(Claim("all together", "total", everyone, names[full], names[empty], weights_of_all))
    return found


def _effect(
    kind: Literal["main", "interaction"],
    chosen: tuple[int, ...],
    factors: Sequence[Factor],
    names: Mapping[str, str],
    scale: float,
    *,
    aliased: bool = False,
) -> Claim:
    """A main effect or an interaction; in a half fraction every cell weighs twice.

    aliased: the weights give the sum of this interaction and of that of all other components.
    """
    weights = factorial.effect(len(factors), chosen)
    titles = [factors[i].title for i in chosen]
    name = titles[0] if kind == "main" else " x ".join(titles)
    if aliased:
        name += f" + {' x '.join(factor.title for i, factor in enumerate(factors) if i not in chosen)}"
    if kind == "main":
        plus, minus = f"with {name}", f"without {name}"
    else:
        plus, minus = "both or neither", "one of the two"
    used = {names[cell]: scale * weight for cell, weight in weights.items() if cell in names}
    return Claim(name, kind, tuple(factors[i].name for i in chosen), plus, minus, used)


def _shared(
    kind: Literal["shapley", "one-out", "one-in"],
    index: int,
    factors: Sequence[Factor],
    names: Mapping[str, str],
    weights: Mapping[str, float],
) -> Claim:
    title = factors[index].title
    said = {
        "shapley": (f"{title}, Shapley value", f"with {title}", f"without {title}"),
        "one-out": (f"{title}, last in", names["1" * len(factors)], f"without {title}"),
        "one-in": (f"{title}, first in", f"only {title}", names.get("0" * len(factors), "none")),
    }
    name, plus, minus = said[kind]
    used = {names[cell]: weight for cell, weight in weights.items() if weight}
    return Claim(name, kind, (factors[index].name,), plus, minus, used)


def _sampled(factors: Sequence[Factor], index: int) -> dict[str, float]:
    """The Shapley value over the sampled orders: the mean gain of the component where it comes in."""
    orders = build_orders([factor.name for factor in factors])
    weights: Counter[str] = Counter()
    for order in orders:
        cells = _prefixes(order)
        at = order.index(index)
        weights[cells[at + 1]] += 1 / len(orders)  # type: ignore[assignment]
        weights[cells[at]] -= 1 / len(orders)  # type: ignore[assignment]
    return {cell: weight for cell, weight in weights.items() if weight}


def _notes(kind: DesignKind, count: int) -> tuple[str, ...]:
    fixed = "one recipe for every cell: a component that wants another learning rate is judged without it"
    if kind != "fractional":
        return (fixed,)
    if count not in HALVES:
        return (
            fixed,
            "Shapley values are over a sample of the orders of building up, not over all of them; their intervals do "
            "not include which orders were drawn",
        )
    sharp = (
        "two-component interactions come in pairs of which only the sum is known, and main effects are right where "
        "three components do not interact"
        if count == 4
        else "two-component interactions are clear of each other, but not of those of three"
    )
    return (fixed, f"half of the {2**count} cells: {sharp}; --design factorial runs the other half and keeps these")


def _listed(titles: Sequence[str]) -> str:
    return f"{', '.join(titles[:-1])} and {titles[-1]}"
