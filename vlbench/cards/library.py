"""Where cards are found: the workspace's first, then the built-in ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vlbench import catalog
from vlbench.cards.kinds import (
    Ablation,
    ArmCard,
    Budget,
    DesignKind,
    FactorCard,
    PrunerKind,
    SamplerKind,
    Tuning,
    Variant,
)
from vlbench.cards.published import reported_of
from vlbench.cards.read import Schema, line_of, load_toml, validate
from vlbench.cards.resolve import resolve
from vlbench.errors import CardError, suggestion

Kind = Literal["models", "ablations", "sweeps"]


class ArmTable(Schema):
    """One ``[[arm]]`` of an ablation card."""

    name: str
    set: dict[str, bool | int | float | str]
    reason: str = ""


class FactorTable(Schema):
    """One ``[[factor]]`` of an ablation card that crosses several."""

    name: str
    title: str = ""
    set: dict[str, bool | int | float | str]
    reason: str = ""


class AblationCard(Schema):
    """A card in ``ablations/``: one component with its arms, or several components or factors with a design."""

    component: str = ""
    components: list[str] = Field(default=[])
    design: DesignKind = "factorial"
    title: str = ""
    question: str
    hypothesis: str = ""
    variants: list[str] = Field(min_length=1)
    dataset: str | None = None
    seeds: int = Field(default=5, ge=1)
    primary: list[str] = Field(default=["mr-map", "hd-map"], min_length=1)
    margin: float = Field(default=0.5, gt=0)
    tuning: Tuning = "inherit"
    corrupt: list[str] = Field(default=[])
    arm: list[ArmTable] = Field(default=[])
    factor: list[FactorTable] = Field(default=[])


class SweepCard(Schema):
    """A card in ``sweeps/``; see ``cards.kinds.Budget``."""

    title: str = ""
    sampler: SamplerKind = "tpe"
    pruner: PrunerKind = "median"
    trials: int = Field(ge=1)
    batch: int = Field(default=4, ge=1)
    decisions: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    objective: list[str] = Field(default=["mr-map", "hd-map"], min_length=1)
    pareto: bool = False
    startup: int = Field(default=5, ge=1)
    percentile: float = Field(default=25.0, gt=0, lt=100)
    seed: int = Field(default=0, ge=0)
    final_seeds: int = Field(default=3, ge=0)
    final_arms: int = Field(default=4, ge=1)
    max_failures: int = Field(default=5, ge=0)
    margin: float = Field(default=0.5, gt=0)


def builtin_root() -> Path:
    """The folder with the built-in cards: inside the wheel, or the repository of an editable install."""
    here = Path(__file__).resolve()
    packed = here.parents[1] / "_cards"
    return packed if packed.is_dir() else here.parents[2]


def cards(kind: Kind, root: Path) -> dict[str, Path]:
    """Every card of a kind by name; a workspace's card hides a built-in one of the same name."""
    found: dict[str, Path] = {}
    for folder in (builtin_root() / kind, root / kind):
        if folder.is_dir():
            found |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return dict(sorted(found.items()))


def load_variant(name: str, root: Path) -> Variant:
    """The resolved variant of this name, or of a path to a card. Raises CardError with the near miss."""
    path = _find("models", "variant", name, root, None)
    variant = resolve(path, lambda n, where: _parent(n, root, where))
    if path.resolve().parent != (builtin_root() / "models").resolve():
        return variant  # a card of the same name in a workspace is another model
    return replace(variant, reported=(*reported_of(variant.name), *variant.reported))


def load_ablation(name: str, root: Path) -> Ablation:
    """The ablation card of this name. Raises CardError with the near miss."""
    path = _find("ablations", "ablation", name, root, None)
    table, text = load_toml(path)
    card = validate(AblationCard, table, path, text)
    kinds = [bool(card.component and card.arm), bool(card.components), bool(card.factor)]
    if sum(kinds) != 1:
        raise CardError(
            "an ablation card has a component with [[arm]] tables, or components, or [[factor]] tables, with a design",
            where=f"{path}:{line_of(text, ['components']) or line_of(text, ['component']) or 1}",
        )
    for metric in card.primary:
        if metric not in catalog.metrics:
            raise CardError(
                f'primary names "{metric}", which is not a metric',
                where=f"{path}:{line_of(text, ['primary'])}",
                hint=suggestion(metric, catalog.metrics),
            )
    arms = tuple(
        ArmCard(arm.name, arm.set, arm.reason, f"{path}:{line_of(text, ['arm', index, 'set']) or 1}")
        for index, arm in enumerate(card.arm)
    )
    factors = tuple(
        FactorCard(
            one.name,
            one.title or one.name,
            one.set,
            one.reason,
            f"{path}:{line_of(text, ['factor', index, 'set']) or 1}",
        )
        for index, one in enumerate(card.factor)
    )
    components = tuple(card.components) or tuple(one.name for one in factors)
    return Ablation(
        name=path.stem,
        component=card.component or ", ".join(components),
        title=card.title,
        components=components,
        design=card.design if components else None,
        factors=factors,
        corrupt=tuple(card.corrupt),
        question=card.question,
        hypothesis=card.hypothesis,
        arms=arms,
        variants=tuple(card.variants),
        dataset=card.dataset,
        seeds=card.seeds,
        primary=tuple(card.primary),
        margin=card.margin,
        tuning=card.tuning,
    )


def _parent(name: str, root: Path, where: str) -> Path:
    """The card that another one extends; a card that extends its own name means the built-in one that it hides."""
    path = _find("models", "variant", name, root, where)
    builtin = builtin_root() / "models" / f"{name}.toml"
    return builtin if where.rpartition(":")[0] == str(path) and builtin.is_file() else path


def load_sweep(name: str, root: Path) -> Budget:
    """The sweep card of this name. Raises CardError with the near miss."""
    path = _find("sweeps", "sweep card", name, root, None)
    table, text = load_toml(path)
    card = validate(SweepCard, table, path, text)
    origin = {key: f"{path}:{line_of(text, [key]) or 1}" for key in SweepCard.model_fields}
    for metric in card.objective:
        if metric not in catalog.metrics:
            raise CardError(
                f'objective names "{metric}", which is not a metric',
                where=origin["objective"],
                hint=suggestion(metric, catalog.metrics),
            )
    for key, values in (("objective", card.objective), ("decisions", [str(epoch) for epoch in card.decisions])):
        if len(set(values)) < len(values):
            raise CardError(f"{key} names a value twice ({', '.join(values)})", where=origin[key])
    if card.pareto and len(card.objective) < 2:
        raise CardError("pareto keeps objectives apart, but there is only one", where=origin["pareto"])
    if card.pareto and card.pruner != "none":
        raise CardError(
            f'pruner = "{card.pruner}" needs one objective: a trial cannot be stopped on several',
            where=origin["pruner" if "pruner" in table else "pareto"],
            hint='set pruner = "none"',
        )
    if card.pruner != "none" and not card.decisions:
        raise CardError(
            f'pruner = "{card.pruner}" has no epochs to decide at',
            where=origin["pruner"],
            hint='set decisions = [epochs, ...], or pruner = "none"',
        )
    return Budget(
        name=path.stem,
        title=card.title or path.stem,
        sampler=card.sampler,
        pruner=card.pruner,
        trials=card.trials,
        batch=card.batch,
        decisions=tuple(sorted(card.decisions)),
        objective=tuple(card.objective),
        pareto=card.pareto,
        startup=card.startup,
        percentile=card.percentile,
        seed=card.seed,
        final_seeds=card.final_seeds,
        final_arms=card.final_arms,
        max_failures=card.max_failures,
        margin=card.margin,
        origin=origin,
    )


def _find(kind: Kind, word: str, name: str, root: Path, where: str | None) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise CardError(f"there is no {word} card at {name}", where=where)
        return path
    known = cards(kind, root)
    if name not in known:
        raise CardError(f'"{name}" is not a {word}', where=where, hint=suggestion(name, known))
    return known[name]
