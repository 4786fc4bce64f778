"""Protects what "remove" and "add" mean: from any name to arms, without a card and with one."""

from dataclasses import replace
from pathlib import Path

import pytest

from vlbench.cards.kinds import Features
from vlbench.cards.library import load_ablation, load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import open_dataset
from vlbench.errors import CardError
from vlbench.studies.ablate import ask, find, fitting_features
from vlbench.workspace import Workspace

NOWHERE = Path("/nowhere")


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("planted-quick", Workspace(NOWHERE, NOWHERE, {}))


@pytest.fixture
def base():
    return load_variant("videolights", NOWHERE)


@pytest.mark.parametrize(
    ("component", "adds", "edits"),
    [
        ("fra", False, [["model.refinement.use: fra -> none"], ["model.refinement.use: fra -> placebo"]]),
        ("refinement", False, [["model.refinement.use: fra -> none"], ["model.refinement.use: fra -> placebo"]]),
        ("bicmf", False, [["model.fusion.use: bicmf -> one-way"], ["model.fusion.use: bicmf -> bicmf-placebo"]]),
        (
            "unijfm",
            False,
            [
                ["model.feedback.use: unijfm -> none", "loss.task_coupled.use: cosine -> none"],
                ["model.feedback.use: unijfm -> unijfm-placebo"],
            ],
        ),
        ("hard_saliency", False, [["loss.hard_saliency.use: hard_pos_neg -> none"]]),
        ("loss.alignment", False, [["loss.alignment.use: cosine -> none"]]),
        ("learned", True, [["model.word_position.use: idle -> learned"]]),
        ("slowfast", False, [["features.video: slowfast+clip -> clip"]]),
        ("noise", True, [["features.video: slowfast+clip -> slowfast+clip+noise"]]),
        ("text.blip2", True, [["features.text: clip -> clip+blip2"]]),
        ("blip2", True, [["features.video: slowfast+clip -> slowfast+clip+blip2"]]),
    ],
)
def test_a_name_becomes_arms(component, adds, edits, base, dataset):
    question = ask(component, base, dataset, None)
    assert question.adds is adds
    assert question.arms[0].edits == ()
    assert [sorted(map(str, arm.edits)) for arm in question.arms[1:]] == [sorted(arm) for arm in edits]


def test_a_placebo_keeps_the_arguments_of_its_component(base, dataset):
    deeper = edit(base, {"model.fusion.layers": 3}, origin="--set").variant
    placebo = ask("bicmf", deeper, dataset, None).arms[-1]
    assert placebo.variant.slots["fusion"].name == "bicmf-placebo"
    assert placebo.variant.slots["fusion"].args == deeper.slots["fusion"].args
    assert [str(e) for e in placebo.edits] == ["model.fusion.use: bicmf -> bicmf-placebo"]


def test_a_component_that_the_base_lacks_is_added(dataset):
    question = ask("fra", load_variant("qd_detr", NOWHERE), dataset, None)
    assert question.adds and [str(e) for e in question.arms[1].edits] == ["model.refinement.use: none -> fra"]


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("fraa", 'did you mean "fra"'),
        ("anchor", "plainest component of decoder"),
        ("text.clip", "only text encoder"),
        ("glove", "not a component"),
    ],
)
def test_what_cannot_be_asked_is_said(component, message, base, dataset):
    with pytest.raises(CardError, match=message):
        ask(component, base, dataset, None)


def test_a_card_states_its_own_arms(base, dataset, tmp_path):
    card = find("bicmf", tmp_path)
    assert card is not None and find("hard_saliency", tmp_path) is None
    question = ask("bicmf", base, dataset, card)
    arms = ["baseline", "one-way, like for like", "one-way, two layers", "placebo"]
    assert [arm.name for arm in question.arms] == arms
    assert question.arms[1].variant.slots["fusion"].args["layers"] == 1


def test_an_arm_that_changes_nothing_is_a_mistake(dataset):
    card = load_ablation("fra", NOWHERE)
    with pytest.raises(CardError, match='"without FRA" changes nothing in qd_detr'):
        ask("fra", load_variant("qd_detr", NOWHERE), dataset, card)


def test_a_dataset_with_its_own_encoders_names_the_stand_in_and_says_so(base, dataset):
    assert fitting_features(base, dataset, None) == (base, None)
    own = open_dataset("planted-quick", Workspace(NOWHERE, NOWHERE, {}))
    own.default_features = Features(("blip2",), ("blip2",))
    strange = replace(base, features=Features(("internvideo2",), ("clip",)))
    variant, note = fitting_features(strange, own, None)
    assert str(variant.features) == "blip2/blip2" and "internvideo2/clip -> blip2/blip2" in note
    chosen, note = fitting_features(base, dataset, Features(("clip",), ("clip",)))
    assert str(chosen.features) == "clip/clip" and "slowfast+clip/clip -> clip/clip" in note
