"""The nouns of a study: use, variant, edit, arm, claim, and the three kinds of card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlbench.registry import Scalar


@dataclass(frozen=True, slots=True)
class Features:
    """A combination of encoders by name, such as ``slowfast+clip/clip``; the order is the order of concatenation."""

    video: tuple[str, ...]
    text: tuple[str, ...]

    def __str__(self) -> str:
        return "+".join(self.video) + "/" + "+".join(self.text)


@dataclass(frozen=True, slots=True)
class Use:
    """One filled slot: the component's name, all its arguments (defaults filled in) and its version."""

    name: str
    args: Mapping[str, Scalar] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, slots=True)
class Reported:
    """Numbers that a paper printed, in percent; never mixed with measured ones."""

    dataset: str
    split: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tuned:
    """Values that a sweep found for one dataset, as ``vlbench promote`` keeps them in a card.

    values: card keys. study, digest, trial: where they come from. budget: what finding them cost (``trials``,
    ``epochs``, ``sampler``, ``parameters`` ...). origin: ``file:line``.
    """

    values: Mapping[str, Scalar]
    study: str
    digest: str
    trial: int
    budget: Mapping[str, Scalar]
    origin: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A complete model description: one resolved card.

    model: the sizes that slots share (``width attention_heads feedforward dropout``). slots and losses: every slot of
    the catalogue, filled. recipe: the ``[train]`` table. search: key -> the range or the choices that a sweep may use,
    as written; checked by ``cards.space``. tuned: dataset -> values that a sweep found; a card's own, never its
    parent's. origin: for every card key, the ``file:line`` that set it, or ``catalog``; ``search.KEY`` for the space.
    """

    name: str
    title: str
    paper: str
    features: Features
    model: Mapping[str, Scalar]
    slots: Mapping[str, Use]
    losses: Mapping[str, Use]
    recipe: Mapping[str, Scalar]
    search: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reported: tuple[Reported, ...] = ()
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edit:
    """One changed key of a variant: ``model.refinement.use: fra -> none``."""

    key: str
    old: Scalar | None
    new: Scalar | None

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One edited variant that answers an ablation's question."""

    name: str
    variant: Variant
    edits: tuple[Edit, ...] = ()


DesignKind = Literal["one-out", "one-in", "factorial", "fractional"]
ClaimKind = Literal["arm", "main", "interaction", "one-out", "one-in", "shapley", "total"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a study tests: ``plus`` - ``minus`` is a weighted sum of the means of arms.

    kind: what the weights are; the claims of one kind are one family of tests. components: what the claim is about.
    plus, minus: the two sides in words; ``plus`` has the component. weights: arm -> weight, zeros left out.
    """

    name: str
    kind: ClaimKind
    components: tuple[str, ...]
    plus: str
    minus: str
    weights: Mapping[str, float]


def against_baseline(arm: str, baseline: str, component: str, *, adds: bool) -> Claim:
    """The claim of one arm: with the component minus without, whether the arm ``adds`` it or takes it away."""
    plus, minus = (arm, baseline) if adds else (baseline, arm)
    return Claim(arm, "arm", (component,), plus, minus, {plus: 1.0, minus: -1.0})


@dataclass(frozen=True, slots=True)
class Factor:
    """A component of a design. ``title``: as people write it."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Design:
    """Which cells of a lattice of components are run.

    cells: one digit per factor, "101" for the first and third present -> the arm that is this cell.
    """

    kind: DesignKind
    factors: tuple[Factor, ...]
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ArmCard:
    """An arm as its card states it, before it meets a variant. ``set``: card keys and their values."""

    name: str
    set: Mapping[str, Scalar]
    reason: str = ""  # why an arm changes more than one thing
    origin: str = "derived"


@dataclass(frozen=True, slots=True)
class FactorCard:
    """A factor of a design that is no component of a slot: card keys that put it into the base variant."""

    name: str
    title: str
    set: Mapping[str, Scalar]
    reason: str = ""  # why it changes more than one thing
    origin: str = "derived"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A question about a component, or several: one card in ``ablations/``, or derived from the component's slot.

    title: the component as people write it, such as Bi-CMF. hypothesis: what its author expects, written down before
    any number; empty where nobody did. components, design: of a card that crosses several components, which has no arms
    of its own; factors: those that the card states itself, in the order of components. corrupt: families of noise that
    the finished arms are scored under. tuning: whether every arm has the card's tuned values, none, or those of a sweep
    of its own.
    """

    name: str
    component: str
    question: str
    arms: tuple[ArmCard, ...]
    variants: tuple[str, ...]
    dataset: str | None = None
    seeds: int = 5
    primary: tuple[str, ...] = ("mr-map", "hd-map")
    margin: float = 0.5  # points; inside it a difference counts as negligible
    hypothesis: str = ""
    title: str = ""
    components: tuple[str, ...] = ()
    design: DesignKind | None = None
    tuning: Tuning = "inherit"
    factors: tuple[FactorCard, ...] = ()
    corrupt: tuple[str, ...] = ()

    @property
    def stated(self) -> tuple[ArmCard | FactorCard, ...]:
        """What the card itself says is changed: its arms, or its factors."""
        return (*self.arms, *self.factors)


SamplerKind = Literal["tpe", "random", "qmc", "gp"]
PrunerKind = Literal["none", "median", "percentile", "hyperband"]
Tuning = Literal["inherit", "none", "equal-budget"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a sweep may spend and how it decides: one card in ``sweeps/``.

    batch: trials that are asked for together. decisions: numbers of epochs after which the pruner is asked. objective:
    metrics on the tuning split, their mean unless ``pareto`` keeps them apart. startup: trials before the sampler and
    the pruner trust what they saw. percentile: of the ``percentile`` pruner, the share that goes on. seed: of every
    trial's fit and of the sampler. final_seeds: fresh seeds of the winner's fits. final_arms: most members of a Pareto
    front that are fitted again. max_failures: failed trials that do not stop the sweep. margin: points inside which the
    final difference counts as negligible. origin: key -> ``file:line``.
    """

    name: str
    title: str
    sampler: SamplerKind
    pruner: PrunerKind
    trials: int
    batch: int
    decisions: tuple[int, ...]
    objective: tuple[str, ...]
    pareto: bool
    startup: int
    percentile: float
    seed: int
    final_seeds: int
    final_arms: int
    max_failures: int
    margin: float
    origin: Mapping[str, str] = field(default_factory=dict)


def _shown(value: Scalar | None) -> str:
    if value is None:
        return "(absent)"
    return str(value).lower() if isinstance(value, bool) else str(value)
