"""Which fits can be trained as one computation, and which belong together. Torch is not needed to know that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from vlbench.canon import canonical
from vlbench.corrupt.base import training_corruption
from vlbench.runs.cells import Cell, Fit, from_spec, variant_identity

if TYPE_CHECKING:
    from vlbench.runs.executors import Pack

MOST = 8  # fits that a measurement on a device chooses from: larger packs are not worth their memory

T = TypeVar("T")


def form(cell: Cell) -> str | None:
    """What fits of one pack have in common, all but the seed and the losses; None for a cell that stays alone."""
    if not isinstance(cell, Fit) or why_alone(cell) is not None:
        return None
    known = variant_identity(cell.variant)
    contrastive = cell.variant.losses.get("contrastive")
    known["losses"] = None if contrastive is None else contrastive.args.get("width")  # its projections are weights
    return canonical([known, dict(cell.data.fingerprints), cell.data.name])


def why_alone(cell: Cell) -> str | None:
    """Why a fit cannot be packed, or None."""
    if not isinstance(cell, Fit):
        return None
    recipe = cell.variant.recipe
    if recipe.get("padding") != "split":
        return "batches of a pack need one shape; add --set train.padding=split, which makes it another fit"
    spoiled = training_corruption(recipe, draw=cell.seed)
    if spoiled is not None and spoiled.on != "label":
        return f"{spoiled.family} changes how a step is done"
    return None


def together(forms: Sequence[str | None], items: Sequence[T], most: int) -> list[list[T]]:
    """Items of equal forms in groups of at most ``most``, in the order of their first ones; without a form, alone."""
    groups: list[list[T]] = []
    open_groups: dict[str, list[T]] = {}
    for name, item in zip(forms, items, strict=True):
        group = open_groups.get(name) if name is not None else None
        if group is None or len(group) >= most:
            group = []
            groups.append(group)
            if name is not None:
                open_groups[name] = group
        group.append(item)
    return groups


def bundles(packs: Iterable[Pack], pack: int | None, slots: int) -> list[list[Pack]]:
    """What one worker is given at once. pack: as in ``Options``; None: as many as keep every slot busy, up to MOST."""
    packs = list(packs)
    if pack == 1:
        return [[one] for one in packs]
    forms = [None if one.alone else form(from_spec(json.loads(one.specs[0]))) for one in packs]
    most = pack or max(1, min(MOST, -(-sum(name is not None for name in forms) // max(1, slots))))
    return together(forms, packs, most)
