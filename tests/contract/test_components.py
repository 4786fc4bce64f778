"""Protects the contract of every slot: whatever is registered is checked because it is registered.

Shapes, independence of batch and padding, a gradient for every parameter, finite losses on empty targets. What a
component declares as its exception (the released mask of pairs, parameters that nothing trains) has to be real.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlbench import catalog
from vlbench.errors import CardError
from vlbench.nn.losses import Term
from vlbench.nn.refinement import FeatureRefinement
from vlbench.nn.shapes import Sizes
from vlbench.testing.components import check_component, registered


@pytest.mark.parametrize(("key", "name"), registered(), ids=lambda value: str(value))
def test_registered_component_keeps_its_contract(key: str, name: str) -> None:
    check_component(key, name)


@pytest.mark.parametrize(
    ("key", "name", "args"),
    [
        ("projection", "conv", {"kernel": 3}),
        ("projection", "conv", {"kernel": 5, "layers": 3}),
        ("projection", "linear", {"layers": 1}),
        ("fusion", "bicmf", {"layers": 3}),
        ("fusion", "bicmf-described", {"layers": 3}),
        ("fusion", "bicmf-described-placebo", {"layers": 2}),
        ("encoder", "transformer", {"layers": 1}),
        ("loss.span", "l1", {"auxiliary": False}),
    ],
    ids=str,
)
def test_contract_holds_for_other_arguments(key: str, name: str, args: dict[str, bool | int | float | str]) -> None:
    check_component(key, name, args=args)


def test_only_the_released_quirks_are_declared() -> None:
    quirks = {"depends_on_batch", "never_trained"}
    declared = {
        (key, name): sorted(catalog.find_slot(key)[name].facts.keys() & quirks)
        for key, name in registered()
        if catalog.find_slot(key)[name].facts.keys() & quirks
    }
    assert declared == {
        ("fusion", "one-way"): ["depends_on_batch"],
        ("fusion", "bicmf"): ["depends_on_batch", "never_trained"],
        ("fusion", "bicmf-placebo"): ["depends_on_batch", "never_trained"],
        ("feedback", "unijfm"): ["depends_on_batch"],
        ("feedback", "unijfm-placebo"): ["depends_on_batch"],
        ("word_position", "idle"): ["never_trained"],
    }


@pytest.mark.parametrize(
    ("slot", "component", "placebo"),
    [
        ("refinement", "fra", "placebo"),
        ("refinement", "fra-described", "fra-described-placebo"),
        ("fusion", "bicmf", "bicmf-placebo"),
        ("fusion", "bicmf-described", "bicmf-described-placebo"),
        ("feedback", "unijfm", "unijfm-placebo"),
        ("feedback", "hd-to-mr", "hd-to-mr-placebo"),
        ("feedback", "mr-to-hd", "mr-to-hd-placebo"),
        ("feedback", "both", "both-placebo"),
        ("word_position", "learned", "idle"),
        ("fusion", "one-way", None),
        ("refinement", "placebo", None),
    ],
)
def test_a_placebo_belongs_to_a_component(slot: str, component: str, placebo: str | None) -> None:
    assert catalog.model_slots[slot].placebo_of(component) == placebo


def test_a_placebo_has_no_placebo_and_feeds_the_same_losses() -> None:
    pairs = [(slot, entry.name) for slot in catalog.model_slots.values() for entry in slot.entries()]
    found = [(slot, name, slot.placebo_of(name)) for slot, name in pairs if slot.placebo_of(name)]
    assert len(found) == 9
    for slot, name, placebo in found:
        assert slot.placebo_of(str(placebo)) is None
        assert set(slot[name].facts.get("gives", ())) == set(slot[str(placebo)].facts.get("gives", ()))


class Swollen(FeatureRefinement):
    """A placebo of other size than its component."""

    def __init__(self, sizes: Sizes, *, dropout: float) -> None:
        super().__init__(sizes, dropout=dropout)
        self.more = nn.Parameter(torch.zeros(1))


def test_the_check_finds_a_placebo_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = catalog.Slot("refinement", neutral="none", takes="", gives="")
    fra = "vlbench.nn.refinement:FeatureRefinement"
    slot.add("test/swollen", f"{__name__}:Swollen", args={"dropout": 0.1})
    slot.add("fra", fra, args={"dropout": 0.1}, placebo="test/swollen")
    slot.add("test/same", fra, args={"dropout": 0.1}, placebo="fra")
    slot.add("test/lost", fra, args={"dropout": 0.1}, placebo="test/nowhere")
    monkeypatch.setitem(catalog.model_slots, "refinement", slot)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Swollen=Swollen))
    for name, message in (
        ("fra", "other parameters: {'more'"),
        ("test/same", "the same numbers"),
        ("test/lost", "not a component of the slot"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_component("refinement", name)


class Leaky(nn.Module):
    """Breaks three rules: reads other samples, ignores padding, and owns a parameter that it never uses."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, clips, words, clip_mask, word_mask):
        return clips - clips.mean(dim=(0, 1))


class Explosive(Term):
    """Divides by the number of moments."""

    needs_matches = True

    def __call__(self, step):
        return step.outputs.saliency.sum() / step.matched.mask.sum()


def test_the_check_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = catalog.Slot("refinement", neutral="none", takes="", gives="")
    slot.add("test/leaky", f"{__name__}:Leaky")
    monkeypatch.setitem(catalog.model_slots, "refinement", slot)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Leaky=Leaky))
    with pytest.raises(AssertionError) as broken:
        check_component("refinement", "test/leaky")
    text = str(broken.value)
    assert "depends on the others in a batch" in text
    assert "depends on the padding" in text
    assert "unused gets no gradient" in text


class Mixing(torch.nn.Module):
    """A fusion that takes two batches for one."""

    def __init__(self, sizes):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, clips, words, clip_position, word_position, clip_mask, word_mask, batches=1):
        return clips + self.scale * words.roll(1, 0).mean(1, keepdim=True)


def test_the_check_finds_a_fusion_that_mixes_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = catalog.Slot("fusion", neutral="none", takes="", gives="")
    slot.add("test/mixing", f"{__name__}:Mixing")
    monkeypatch.setitem(catalog.model_slots, "fusion", slot)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Mixing=Mixing))
    with pytest.raises(AssertionError, match="two batches given together differ"):
        check_component("fusion", "test/mixing")


def test_the_check_finds_a_loss_that_explodes(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = catalog.Slot("loss.odd", neutral="none", takes="", gives="")
    slot.add("test/explosive", f"{__name__}:Explosive", args={"weight": 1.0})
    monkeypatch.setitem(catalog.loss_slots, "odd", slot)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Explosive=Explosive))
    with pytest.raises(AssertionError, match="no moments: the value is"):
        check_component("loss.odd", "test/explosive")


def test_unknown_names_are_explained() -> None:
    with pytest.raises(CardError, match='did you mean "fra"'):
        check_component("refinement", "fraa")
