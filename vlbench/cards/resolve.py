"""From cards to variants: inheritance, defaults, checks, and edits.

A card is a nested table; a *flat* card is the same content as ``{"model.refinement.use": "fra", ...}``. An ablation is
a set of flat keys with new values, so an arm is resolved exactly as a card that extends its base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from vlbench import catalog
from vlbench.cards.kinds import Arm, Edit, Features, Reported, Tuned, Use, Variant
from vlbench.cards.read import Schema, line_of, load_toml, validate
from vlbench.catalog import Slot
from vlbench.errors import CardError, suggestion
from vlbench.registry import Scalar

Table = dict[str, Any]


class FeatureTable(Schema):
    """The encoders of a card, by name."""

    video: list[str] | None = None
    text: list[str] | None = None


class ReportedTable(Schema):
    """One row of published numbers, in percent."""

    dataset: str
    split: str
    source: str
    values: dict[str, float]


class TunedTable(Schema):
    """``[tuned.DATASET]``: what ``vlbench promote`` wrote. set: card keys and their values; budget: what it cost."""

    study: str
    digest: str
    trial: int
    budget: dict[str, bool | int | float | str] = Field(default_factory=dict)
    set: dict[str, bool | int | float | str] = Field(min_length=1)


class VariantCard(Schema):
    """The top level of a card in ``models/``; slots, losses and the recipe are checked against the catalogue."""

    extends: str | None = None
    title: str = ""
    paper: str = ""
    features: FeatureTable = FeatureTable()
    model: dict[str, Any] = Field(default_factory=dict)
    loss: dict[str, dict[str, Any]] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuned: dict[str, TunedTable] = Field(default_factory=dict)
    reported: list[ReportedTable] = Field(default_factory=list)


class Draft:
    """A flat card under construction: every key with its value and where it was set."""

    def __init__(self) -> None:
        self.values: dict[str, Scalar] = {}
        self.origin: dict[str, str] = {}

    def set(self, key: str, value: Scalar, origin: str) -> None:
        """Set one key. A new component in a slot starts from its own defaults: the old one's arguments go."""
        if key.endswith(".use") and self.values.get(key) != value:
            slot = key.removesuffix("use")
            for old in [name for name in self.values if name.startswith(slot) and name != key]:
                # a loss keeps its weight when its form changes, and an emptied slot keeps nothing
                if not (slot.startswith("loss.") and old == slot + "weight" and value != "none"):
                    del self.values[old]
        self.values[key] = value
        self.origin[key] = origin


def resolve(path: Path, find_parent: Callable[[str, str], Path]) -> Variant:
    """The variant that a card describes, with every slot filled and every default written out.

    Args: path: the card. find_parent: maps a name in ``extends`` and the place that asks for it to a card's path.
    Raises: CardError with ``file:line`` for whatever cannot be: an unknown key, slot or component, a wrong type.
    """
    draft, chain = Draft(), _chain(path, find_parent, ())
    for card_path, card, text in reversed(chain):
        _apply_card(draft, card_path, card, text)
        for key in card.search:
            draft.origin[f"search.{key}"] = f"{card_path}:{line_of(text, ('search', key)) or 1}"
    _, leaf, leaf_text = chain[0]
    built = build(
        draft,
        name=path.stem,
        title=leaf.title or path.stem,
        paper=leaf.paper,
        search=_search(chain),
        reported=tuple(Reported(r.dataset, r.split, r.source, r.values) for r in leaf.reported),
    )
    tuned = {
        dataset: Tuned(
            table.set,
            table.study,
            table.digest,
            table.trial,
            table.budget,
            f"{path}:{line_of(leaf_text, ('tuned', dataset)) or 1}",
        )
        for dataset, table in leaf.tuned.items()
    }
    return replace(built, tuned=tuned)


def tune(variant: Variant, dataset: str) -> tuple[Variant, str | None]:
    """The variant with the values that its card holds for a dataset, and a note that says so; itself without any."""
    found = variant.tuned.get(dataset)
    if found is None:
        return variant, None
    edited = edit(variant, found.values, origin=found.origin).variant
    values = ", ".join(f"{key} = {value}" for key, value in found.values.items())
    return edited, f"tuned on {dataset} by {found.study}, trial {found.trial}: {values}"


def edit(variant: Variant, changes: Mapping[str, Scalar], *, name: str | None = None, origin: str) -> Arm:
    """The arm that differs from ``variant`` in ``changes`` (flat keys).

    Raises: CardError, placed at ``origin``, if a key or value cannot be.
    """
    draft = Draft()
    draft.values, draft.origin = flatten(variant), dict(variant.origin)
    for key in sorted(changes, key=lambda k: not k.endswith(".use")):  # components first, then their arguments
        draft.set(key, changes[key], origin)
    edited = build(
        draft,
        name=variant.name,
        title=variant.title,
        paper=variant.paper,
        search=variant.search,
        reported=variant.reported,
    )
    edits = tuple(
        Edit(key, old, new) for key, old, new in differences(flatten(variant), flatten(edited)) if _told(key, changes)
    )
    return Arm(name or "; ".join(map(str, edits)) or "baseline", edited, edits)


def flatten(variant: Variant) -> dict[str, Scalar]:
    """Every key of a resolved variant: ``features.video``, ``model.width``, ``model.fusion.layers``, ``train.lr``..."""
    flat: dict[str, Scalar] = {
        "features.video": "+".join(variant.features.video),
        "features.text": "+".join(variant.features.text),
    }
    flat |= {f"model.{key}": value for key, value in variant.model.items()}
    for prefix, slots in (("model", variant.slots), ("loss", variant.losses)):
        for slot, use in slots.items():
            flat[f"{prefix}.{slot}.use"] = use.name
            flat |= {f"{prefix}.{slot}.{key}": value for key, value in use.args.items()}
    return flat | {f"train.{key}": value for key, value in variant.recipe.items()}


def differences(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> list[tuple[str, Scalar | None, Scalar | None]]:
    """The keys in which two flat cards differ, with both values (None: absent)."""
    keys = [*old, *(key for key in new if key not in old)]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def build(
    draft: Draft,
    *,
    name: str,
    title: str,
    paper: str,
    search: Mapping[str, Mapping[str, Any]],
    reported: tuple[Reported, ...],
) -> Variant:
    """A variant from a flat card: defaults filled in, every value checked and cast to its default's type."""
    values, origin = dict(draft.values), dict(draft.origin)

    def take(key: str, default: Scalar) -> Scalar:
        if key not in values:
            origin[key] = "catalog"
            return default
        return _cast(key, values.pop(key), default, origin.get(key))

    features = Features(_encoders("video", values, origin), _encoders("text", values, origin))
    model = {key: take(f"model.{key}", default) for key, default in catalog.model_args.items()}
    slots: dict[str, Use] = {}
    losses: dict[str, Use] = {}
    for prefix, table, filled in (("model", catalog.model_slots, slots), ("loss", catalog.loss_slots, losses)):
        for slot_name, slot in table.items():
            filled[slot_name] = _fill(f"{prefix}.{slot_name}", slot, values, origin, take)
    recipe = {key: take(f"train.{key}", default) for key, default in catalog.recipe_args.items()}
    if values:
        _refuse(next(iter(values)), origin)
    for loss, (slot_name, what) in catalog.loss_needs.items():
        if losses[loss].name != "none" and not catalog.feeds(slots[slot_name].name, loss):
            raise CardError(
                f'loss.{loss} reads what model.{slot_name} gives, but "{slots[slot_name].name}" gives no {what}',
                where=origin.get(f"model.{slot_name}.use"),
                hint=f'set loss.{loss}.use = "none" too; {what} comes from: {", ".join(catalog.feeders(loss))}',
            )
    _check_recipe(recipe, origin)
    return Variant(
        name=name,
        title=title,
        paper=paper,
        features=features,
        model=model,
        slots=slots,
        losses=losses,
        recipe=recipe,
        search=search,
        reported=reported,
        origin=origin,
    )


def _chain(
    path: Path, find_parent: Callable[[str, str], Path], seen: tuple[Path, ...]
) -> list[tuple[Path, VariantCard, str]]:
    """The card and its ancestors, nearest first."""
    table, text = load_toml(path)
    card = validate(VariantCard, table, path, text)
    if card.extends is None:
        return [(path, card, text)]
    where = f"{path}:{line_of(text, ['extends']) or 1}"
    parent = find_parent(card.extends, where)
    if parent in (*seen, path):
        raise CardError(f'extends = "{card.extends}" leads back to this card', where=where)
    return [(path, card, text), *_chain(parent, find_parent, (*seen, path))]


def _apply_card(draft: Draft, path: Path, card: VariantCard, text: str) -> None:
    def put(key: str, value: Any, *keys: str) -> None:
        where = f"{path}:{line_of(text, keys) or 1}"
        if isinstance(value, list | dict):
            raise CardError(f"{key} = {value!r} is a {type(value).__name__}, but a single value is needed", where=where)
        draft.set(key, value, where)

    for kind in ("video", "text"):
        if (names := getattr(card.features, kind)) is not None:
            put(f"features.{kind}", "+".join(names), "features", kind)
    for section, tables in (("model", card.model), ("loss", card.loss)):
        for key, value in tables.items():
            if not isinstance(value, dict):
                put(f"{section}.{key}", value, section, key)
                continue
            for inner in sorted(value, key=lambda k: k != "use"):
                put(f"{section}.{key}.{inner}", value[inner], section, key, inner)
    for key, value in card.train.items():
        put(f"train.{key}", value, "train", key)


def _search(chain: list[tuple[Path, VariantCard, str]]) -> dict[str, Mapping[str, Any]]:
    merged: dict[str, Mapping[str, Any]] = {}
    for _, card, _ in reversed(chain):
        merged |= card.search
    return merged


def _encoders(kind: str, values: dict[str, Scalar], origin: Mapping[str, str]) -> tuple[str, ...]:
    key = f"features.{kind}"
    text = values.pop(key, "")
    names = tuple(part for part in str(text).split("+") if part)
    if not names:
        raise CardError(f"{key} is empty: at least one {kind} encoder is needed", where=origin.get(key))
    if len(set(names)) < len(names):
        raise CardError(f"{key} = {list(names)} names an encoder twice", where=origin.get(key))
    return names  # whether a dataset has these encoders is the dataset's to say


def _fill(
    key: str,
    slot: Slot,
    values: dict[str, Scalar],
    origin: dict[str, str],
    take: Callable[[str, Scalar], Scalar],
) -> Use:
    name = str(take(f"{key}.use", slot.neutral))
    if name not in slot:
        raise CardError(
            f'{key}.use = "{name}" is not a component of {slot.name}',
            where=origin.get(f"{key}.use"),
            hint=suggestion(name, slot),
        )
    entry = slot[name]
    for extra in [k for k in values if k.startswith(f"{key}.") and k.removeprefix(f"{key}.") not in entry.args]:
        raise CardError(
            f'unknown key "{extra}"',
            where=origin.get(extra),
            hint=f'"{name}" takes: {", ".join(entry.args) or "no arguments"}',
        )
    args = {arg: take(f"{key}.{arg}", default) for arg, default in entry.args.items()}
    return Use(name, args, entry.version)


def _cast(key: str, value: Scalar, default: Scalar, where: str | None) -> Scalar:
    """The value in its default's type: an int may stand for a float, nothing else is converted."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise CardError(
            f"{key} must be {_KINDS[type(default)]} (got {value!r}, {_KINDS[type(value)]})",
            where=where,
        )
    return value


_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _check_recipe(recipe: Mapping[str, Scalar], origin: Mapping[str, str]) -> None:
    for key in ("epochs", "batch_size", "eval_batch_size", "eval_every", "lr_drop", "lr", "clip_norm"):
        if not float(recipe[key]) > 0:
            raise CardError(f"train.{key} must be above 0 (got {recipe[key]})", where=origin.get(f"train.{key}"))
    for name in str(recipe["select"]).split("+"):
        if name not in catalog.metrics:
            raise CardError(
                f'train.select names "{name}", which is not a metric',
                where=origin.get("train.select"),
                hint=suggestion(name, catalog.metrics),
            )
    spoils, level = str(recipe["corruption"]), recipe["corruption_level"]
    if spoils != "none" and spoils not in catalog.corruptions:
        raise CardError(
            f'train.corruption = "{spoils}" is not a corruption',
            where=origin.get("train.corruption"),
            hint=suggestion(spoils, ["none", *catalog.corruptions]),
        )
    if spoils != "none" and catalog.corruptions[spoils].facts["on"] not in catalog.spoils_training:
        families = [e.name for e in catalog.corruptions.entries() if e.facts["on"] in catalog.spoils_training]
        raise CardError(
            f'train.corruption = "{spoils}" spoils finished fits, not training',
            where=origin.get("train.corruption"),
            hint=f"known: {', '.join(families)}",
        )
    if level not in range(6) or (spoils == "none" and level != 0):
        raise CardError(
            f"train.corruption_level = {level}: levels are 0 to 5, and 0 without a corruption",
            where=origin.get("train.corruption_level"),
        )
    for key, known in catalog.recipe_choices.items():
        if recipe[key] not in known:
            raise CardError(
                f'train.{key} = "{recipe[key]}" is not one of its values',
                where=origin.get(f"train.{key}"),
                hint=f"known: {', '.join(known)}",
            )


def _refuse(key: str, origin: Mapping[str, str]) -> None:
    """Say why a key is left over after every slot has taken its own."""
    where, parts = origin.get(key), key.split(".")
    known: list[str]
    if parts[0] == "train":
        name, known = parts[-1], list(catalog.recipe_args)
    elif parts[0] == "model":
        name, known = parts[1] if len(parts) > 1 else "", [*catalog.model_args, *catalog.model_slots]
    elif parts[0] == "loss":
        name, known = parts[1] if len(parts) > 1 else "", list(catalog.loss_slots)
    else:
        name, known = parts[0], ["features", "loss", "model", "train"]
    raise CardError(f'unknown key "{key}"', where=where, hint=suggestion(name, known))


def _told(key: str, changes: Mapping[str, Scalar]) -> bool:
    """An emptied slot's arguments go without saying; everything else that differs is part of the printed edit."""
    slot, _, last = key.rpartition(".")
    return key in changes or last == "use" or f"{slot}.use" not in changes
