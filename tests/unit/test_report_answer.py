"""Protects the sentences at the top of pages whose question is not one verdict: interactions, directions, dead hooks."""

import pytest

from tests.unit.report_lattice import lattice_plan
from tests.unit.report_store import build_store, make_scores
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.corrupt.base import LEFT_OUT, unreached
from vlbench.report.answer import in_words
from vlbench.report.answer import unreached as not_reached
from vlbench.report.compare import compare
from vlbench.report.formats import md, to_markdown
from vlbench.report.frame import read
from vlbench.report.page import Report, study_page
from vlbench.workspace import find

FACTORS = ("hd_to_mr", "target_noise")


def crossed(root, *, full, first, second, margin=0.5, seeds=6):
    """Two factors and what each setting of them is worth on mr-map, beside the empty one."""
    effects = {"full": full, "hd_to_mr": first, "target_noise": second, "empty": 0.0}
    scores = make_scores(effects, seeds=seeds, queries=200)
    return compare(read(build_store(root, scores, extra=lattice_plan(FACTORS), margin=margin), "ablate-fra"))


def about(comparison, metric="MR-mAP"):
    return next(said for said in in_words(comparison) if said.startswith(metric))


def test_noise_that_costs_more_with_the_feedback_is_an_interaction_below_zero(tmp_path):
    found = crossed(tmp_path, full=-0.2, first=0.2, second=0.0)
    said = about(found)
    assert "HD_TO_MR is unresolved (+0.0" in said or "HD_TO_MR changes nothing beyond ±0.5 points" in said
    assert "TARGET_NOISE costs 20" in said.replace("19.", "20.")
    assert "what TARGET_NOISE changes is lower with HD_TO_MR than without it (interaction" in said


def test_what_adds_up_does_not_depend_on_the_other(tmp_path):
    found = crossed(tmp_path, full=-0.1, first=0.1, second=-0.2, margin=15.0)
    assert "neither depends on the other beyond ±15 points" in about(found)
    unsure = crossed(tmp_path / "2", full=-0.1, first=0.1, second=-0.2, margin=0.01, seeds=2)
    assert "whether TARGET_NOISE changes more with HD_TO_MR than without it is unresolved" in about(unsure)


def test_the_page_and_markdown_say_it_first(tmp_path):
    found = crossed(tmp_path, full=-0.2, first=0.2, second=0.0)
    html, text = study_page(Report(found, (), (), None)), to_markdown(found)
    for said in in_words(found):
        assert md(said) in text and text.index(md(said)) < text.index("**")
    assert html.index('<p class="answer">') < html.index('class="answers"')


def test_components_that_are_crossed_have_their_own_answers(tmp_path):
    extra = lattice_plan(("fra", "bicmf"))
    scores = make_scores({"full": 0.2, "fra": 0.1, "bicmf": 0.1, "empty": 0.0})
    assert in_words(compare(read(build_store(tmp_path, scores, extra=extra), "ablate-fra"))) == []


def test_ways_are_sorted_by_how_they_stand_to_the_released_one(tmp_path):
    scores = make_scores({"baseline": 0.0, "none": 0.2, "HD to MR": -0.2, "both": 0.0}, seeds=6, queries=200)
    extra = {"title": "the released way", "component": "feedback"}
    found = compare(read(build_store(tmp_path, scores, component="feedback", extra=extra), "ablate-fra"))
    said = about(found)
    assert "none (+" in said and "is better than the released way" in said
    assert "HD to MR (−" in said and "is worse than the released way" in said
    assert "both (" in said and ("not told apart from the released way" in said or "within ±" in said)


def test_the_title_of_a_card_names_its_one_component_whatever_the_card_is_called(tmp_path):
    scores = make_scores({"baseline": 0.2, "none": 0.0})
    store = build_store(tmp_path, scores, component="feedback_direction", extra={"title": "MR to HD"})
    store.save_plan("ablate-fra", store.load_plan("ablate-fra") | {"component": "feedback"})
    found = compare(read(store, "ablate-fra"))
    assert all(answer.startswith("MR to HD") for answer in found.answers.values())


def test_noise_that_cannot_reach_is_said_with_its_reason_once(tmp_path):
    released = load_variant("videolights_quick", find().root)
    silent = edit(released, {"model.feedback.use": "none", "loss.task_coupled.use": "none"}, origin="x").variant
    why = {
        "none": unreached(released, "head_noise", "saliency_handed").what,
        "only label noise": unreached(released, "head_noise", "saliency_handed").what,
        "silent": unreached(silent, "head_noise", "saliency_handed").what,
    }
    notes = ["features: a -> b", *(f"{arm}{LEFT_OUT}{reason}" for arm, reason in why.items()), "gauss left out: no"]
    first, second = not_reached(notes)
    assert first == (
        "In “none” and “only label noise” its coupling (unijfm) runs from moments to saliency, in the training loss "
        "only, so noise on predicted saliency at inference cannot change moment retrieval."
    )
    assert second.startswith("In “silent” its feedback (none) hands nothing")
    scores = make_scores({"baseline": 0.2, "none": 0.0})
    assert in_words(compare(read(build_store(tmp_path, scores, notes=notes), "ablate-fra"))) == [first, second]


@pytest.mark.parametrize("notes", [[], ["x left out: something else"], ["no such note"]])
def test_other_notes_say_nothing_of_it(notes):
    assert not_reached(notes) == []
