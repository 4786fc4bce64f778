"""From a name to arms: what it means to remove or to add a component, a loss term or an encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlbench import catalog
from vlbench.cards.kinds import Ablation, Arm, ArmCard, Claim, Design, Features, Variant, against_baseline
from vlbench.cards.library import cards, load_ablation
from vlbench.cards.resolve import edit
from vlbench.data.base import Dataset
from vlbench.errors import CardError, suggestion
from vlbench.registry import Scalar
from vlbench.studies.plan import BASELINE


@dataclass(frozen=True, slots=True)
class Question:
    """An ablation with its arms built.

    adds: whether the arms add the component to the baseline. claims: what will be tested; of a single component, every
    arm against the baseline. design: of several components. notes: what a reader has to know about the arms.
    """

    ablation: Ablation
    arms: tuple[Arm, ...]
    adds: bool
    claims: tuple[Claim, ...]
    design: Design | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What ablating a component means for a variant: whether it is added, and the arms that follow from its slot."""

    adds: bool
    arms: tuple[ArmCard, ...]


def find(component: str, root: Path) -> Ablation | None:
    """The ablation card of a component, by the card's name, or None if there is none."""
    return load_ablation(component, root) if component in cards("ablations", root) else None


def ask(component: str, base: Variant, dataset: Dataset, card: Ablation | None) -> Question:
    """The arms that answer "does this component help?" for a base variant on a dataset.

    With a card, its arms; without one, the arms follow from the slot that holds the component: its neutral component,
    and its placebo if it has one. A component that the base does not have is added instead.

    Raises: CardError if the name is neither a component, a loss term, a slot nor an encoder.
    """
    changes = changes_of(component, base, dataset, known={component} if card else set())
    if card is None:
        card = Ablation(
            name=component,
            component=component,
            question=f"Does {component} help when it is added?" if changes.adds else f"Does {component} help?",
            arms=changes.arms,
            variants=(base.name,),
        )
    arms = [Arm(BASELINE, base)]
    for arm_card in card.arms:
        arm = edit(base, arm_card.set, name=arm_card.name, origin=arm_card.origin)
        if not arm.edits:
            raise CardError(
                f'the arm "{arm_card.name}" changes nothing in {base.name}',
                where=arm_card.origin,
                hint="choose another --variant",
            )
        arms.append(arm)
    claims = [against_baseline(arm.name, BASELINE, component, adds=changes.adds) for arm in arms[1:]]
    return Question(card, tuple(arms), changes.adds, tuple(claims))


def fitting_features(base: Variant, dataset: Dataset, wanted: Features | None) -> tuple[Variant, str | None]:
    """The base variant with encoders that the dataset has, and a note if they are not the card's own.

    wanted: the user's choice, which is taken as it is. Without one, a dataset that brings its own encoders names the
    combination that stands in for the variant's.
    """
    if wanted is None:
        missing = [n for n in base.features.video if n not in dataset.video_encoders]
        missing += [n for n in base.features.text if n not in dataset.text_encoders]
        if not missing or dataset.default_features is None:
            return base, None
        wanted = dataset.default_features
    changes = {"features.video": "+".join(wanted.video), "features.text": "+".join(wanted.text)}
    arm = edit(base, changes, origin="--features")
    if not arm.edits:
        return base, None
    return arm.variant, f"features: {base.features} -> {arm.variant.features} (in every arm)"


def changes_of(component: str, base: Variant, dataset: Dataset, *, known: Collection[str] = ()) -> Changes:
    """What ablating a component, loss term, slot or encoder of a variant means.

    known: names that are more than a component, such as a card's; there are no arms for them then.
    Raises: CardError with the near miss for a name that is nothing of all this.
    """
    flat_name = component.removeprefix("model.").removeprefix("loss.")
    for slot_name, use in base.slots.items():
        slot = catalog.model_slots[slot_name]
        if use.name == flat_name or (slot_name == flat_name and use.name != slot.neutral):
            return Changes(False, _without_component(component, slot_name, base))
    if flat_name in catalog.loss_slots:
        if base.losses[flat_name].name != "none":
            return Changes(False, (ArmCard(f"without {flat_name}", {f"loss.{flat_name}.use": "none"}),))
        form = next(name for name in catalog.loss_slots[flat_name] if name != "none")
        return Changes(True, (ArmCard(f"with {flat_name}", {f"loss.{flat_name}.use": form}),))
    for slot_name, slot in catalog.model_slots.items():
        if flat_name in slot and flat_name != "none":
            return Changes(True, (ArmCard(f"with {flat_name}", {f"model.{slot_name}.use": flat_name}),))
    if (found := _encoder_changes(component, base, dataset)) is not None:
        return found
    if component in known:
        return Changes(False, ())
    raise CardError(
        f'"{component}" is not a component, loss term or encoder', hint=suggestion(component, _known(base, dataset))
    )


def _without_component(component: str, slot_name: str, base: Variant) -> tuple[ArmCard, ...]:
    slot, use = catalog.model_slots[slot_name], base.slots[slot_name]
    if use.name == slot.neutral:
        raise CardError(
            f'"{component}" is the plainest component of {slot_name}: there is nothing to put in its place',
            hint=f"known there: {', '.join(slot)}; change its arguments with --set",
        )
    change: dict[str, Scalar] = {f"model.{slot_name}.use": slot.neutral}
    reason = ""
    for loss, (needed_slot, _) in catalog.loss_needs.items():
        if needed_slot == slot_name and base.losses[loss].name != "none" and not catalog.feeds(slot.neutral, loss):
            change[f"loss.{loss}.use"] = "none"
            reason = f"the {loss} loss reads what {use.name} gives"
    arms = [ArmCard(f"without {use.name}", change, reason)]
    if (placebo := slot.placebo_of(use.name)) is not None:
        same = {f"model.{slot_name}.{key}": value for key, value in use.args.items()}  # or it would not be as large
        arms.append(ArmCard("placebo", {f"model.{slot_name}.use": placebo, **same}))
    return tuple(arms)


def _encoder_changes(component: str, base: Variant, dataset: Dataset) -> Changes | None:
    """``clip`` means the video encoder where there is one; ``text.clip`` and ``video.clip`` are unmistakable."""
    kind, dot, name = component.partition(".")
    kinds = (kind,) if dot and kind in ("video", "text") else ("video", "text")
    name = name if dot and kind in ("video", "text") else component
    used: Mapping[str, tuple[str, ...]] = {"video": base.features.video, "text": base.features.text}
    available = {"video": dataset.video_encoders, "text": dataset.text_encoders}
    for kind in kinds:
        if name in used[kind]:
            left = [other for other in used[kind] if other != name]
            if not left:
                raise CardError(
                    f'"{name}" is the only {kind} encoder of {base.name}: without it there is nothing to read',
                    hint=f"known in {dataset.name}: {', '.join(available[kind])}; choose others with --features",
                )
            return Changes(False, (ArmCard(f"without {name}", {f"features.{kind}": "+".join(left)}),))
    for kind in kinds:
        if name in available[kind]:
            return Changes(True, (ArmCard(f"with {name}", {f"features.{kind}": "+".join([*used[kind], name])}),))
    return None


def _known(base: Variant, dataset: Dataset) -> set[str]:
    """Every name that can be ablated here."""
    names = {entry for slot in catalog.model_slots.values() for entry in slot if entry != slot.neutral}
    return names | set(catalog.loss_slots) | set(dataset.video_encoders) | set(dataset.text_encoders)
