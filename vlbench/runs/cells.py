"""Cells: the smallest things that are run and stored, and their identity.

A *fit* is one variant trained on one dataset with one seed. A *score* is one scoring of a fit: its epochs on the
reporting split. They are two kinds because one fit serves many scorings, so that a new metric never retrains.

Identity is content plus versions: sha256 over the canonical form of the resolved variant (component names, arguments,
versions), the data's fingerprint, the seed, and for scores the fit's identity and the metrics' versions. Not in it:
names, titles, published numbers, search spaces, paths, workers, devices and the time. FORMAT rises when the form of
the identity changes; a golden test pins one identity per format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlbench import catalog
from vlbench.canon import canonical, digest
from vlbench.cards.kinds import Features, Use, Variant
from vlbench.corrupt.base import Corruption, training_corruption

FORMAT = 1
ID_LENGTH = 12  # hex digits: 48 bits name the folder; the full digest stands in the spec
BF16_MASKS = 2  # raised when fits in bf16 drop other elements than before; version 1 left the choice to torch
CHECKPOINTS = ("selected", "last")  # those that have weights and predictions; the reporting split chose neither
SCORED = (*CHECKPOINTS, "crossfit", "best")  # all rows of a score: the reporting split itself chose the latter two


@dataclass(frozen=True, slots=True)
class DataRef:
    """What a cell reads: the dataset's name, to find it, and the fingerprint of its content, which is the identity."""

    name: str
    fingerprints: Mapping[str, str]  # role -> digest of annotations and features
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """One training run."""

    variant: Variant
    data: DataRef
    seed: int
    kind: Literal["fit"] = field(default="fit", init=False)

    def identity(self) -> dict[str, Any]:
        """The content that this cell is."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "variant": variant_identity(self.variant),
            "data": dict(self.data.fingerprints),
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        """Twelve hex digits."""
        return digest(self.identity())[:ID_LENGTH]


@dataclass(frozen=True, slots=True)
class Score:
    """One scoring of a fit on a split, by every rule of SCORED. ``metrics``: name -> version.

    corruption: what the inputs or a head are spoiled with, or None for the clean scoring. Under a corruption the
    selected epoch alone is scored and only the scores of queries are kept: no choice is made by them.
    """

    fit: str
    data: DataRef
    features: Features
    metrics: Mapping[str, int]
    mode: Literal["compatible", "strict"] = "compatible"
    corruption: Corruption | None = None
    kind: Literal["score"] = field(default="score", init=False)

    def identity(self) -> dict[str, Any]:
        """The content that this cell is."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "fit": self.fit,
            "data": dict(self.data.fingerprints),
            "checkpoints": list(SCORED if self.corruption is None else CHECKPOINTS[:1]),
            "corruption": None if self.corruption is None else self.corruption.identity(),
            "metrics": dict(self.metrics),
            "mode": self.mode,
        }

    @property
    def id(self) -> str:
        """Twelve hex digits."""
        return digest(self.identity())[:ID_LENGTH]


Cell = Fit | Score


def variant_identity(variant: Variant) -> dict[str, Any]:
    """What of a variant decides its results."""

    def uses(table: Mapping[str, Use]) -> dict[str, Any]:
        return {slot: {"use": use.name, "args": dict(use.args), "version": use.version} for slot, use in table.items()}

    implied = _implied()
    return {
        "features": {"video": list(variant.features.video), "text": list(variant.features.text)},
        "model": dict(variant.model),
        "slots": uses({slot: use for slot, use in variant.slots.items() if use != implied.get(slot)}),
        "losses": uses(variant.losses),
        "recipe": {**_recipe_identity(variant.recipe), "version": catalog.recipe_version},
    }


def _recipe_identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe; younger keys where they act, a corruption of training with its strength and version."""
    told = {key: value for key, value in recipe.items() if key not in catalog.recipe_later}
    implied = _later()
    told |= {key: recipe[key] for key in ("padding", "batching") if recipe.get(key, implied[key]) != implied[key]}
    if recipe.get("precision") == "bf16":
        told["masks"] = BF16_MASKS
    spoiled = training_corruption(recipe, draw=0)
    if spoiled is None:
        return told
    known = spoiled.identity()
    acts = {"corruption": spoiled.family, "corruption_level": spoiled.level}
    return {**told, **acts, "corrupted": {"amount": known["amount"], "version": known["version"]}}


def _implied() -> dict[str, Use]:
    """What fills the slots that are younger than stored cells where an identity does not name them."""
    later = {name: slot.neutral for name, slot in catalog.model_slots.items() if slot.later}
    return {name: Use(neutral) for name, neutral in later.items()}  # version 1, no arguments


_BESIDE = ("version", "corrupted")  # of a recipe's identity, what is no key of the recipe


def _later() -> dict[str, Any]:
    return {key: catalog.recipe_args[key] for key in catalog.recipe_later}


def score_of(fit: Fit, data: DataRef, corruption: Corruption | None = None) -> Score:
    """The scoring of a fit by every metric of the dataset's tasks, clean or under a corruption."""
    names = {entry.name: entry.version for entry in catalog.metrics.entries() if entry.facts["task"] in data.tasks}
    return Score(fit=fit.id, data=data, features=fit.variant.features, metrics=names, corruption=corruption)


def to_spec(cell: Cell) -> str:
    """The cell as canonical JSON: its identity, and beside it what is needed to run it elsewhere."""
    run: dict[str, Any] = {"dataset": cell.data.name, "tasks": list(cell.data.tasks)}
    if isinstance(cell, Fit):
        run |= {"variant": cell.variant.name, "title": cell.variant.title, "paper": cell.variant.paper}
    else:
        run["features"] = {"video": list(cell.features.video), "text": list(cell.features.text)}
    return canonical({"id": cell.id, "identity": cell.identity(), "run": run})


def from_spec(spec: Mapping[str, Any]) -> Cell:
    """The cell that ``to_spec`` wrote. Its id is computed anew, so a spec that was edited names another cell."""
    identity, run = spec["identity"], spec["run"]
    data = DataRef(run["dataset"], identity["data"], tuple(run["tasks"]))
    if identity["kind"] == "score":
        features = Features(tuple(run["features"]["video"]), tuple(run["features"]["text"]))
        spoiled = None if identity["corruption"] is None else Corruption.of(identity["corruption"])
        return Score(identity["fit"], data, features, identity["metrics"], identity["mode"], spoiled)
    known = identity["variant"]

    def uses(table: Mapping[str, Any]) -> dict[str, Use]:
        return {slot: Use(use["use"], use["args"], use["version"]) for slot, use in table.items()}

    variant = Variant(
        name=run["variant"],
        title=run["title"],
        paper=run["paper"],
        features=Features(tuple(known["features"]["video"]), tuple(known["features"]["text"])),
        model=known["model"],
        slots=_implied() | uses(known["slots"]),
        losses=uses(known["losses"]),
        recipe={**_later(), **{key: value for key, value in known["recipe"].items() if key not in _BESIDE}},
    )
    return Fit(variant, data, identity["seed"])
