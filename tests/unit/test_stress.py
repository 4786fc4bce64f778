"""Protects the plan of a stress study: which families apply, what each mistake says, and which cells are asked for."""

import json
from dataclasses import replace

import pytest

from vlbench.cards.kinds import Arm
from vlbench.cards.library import builtin_root, load_ablation, load_variant
from vlbench.cards.resolve import edit
from vlbench.corrupt.severities import Severities
from vlbench.data.base import open_dataset
from vlbench.errors import CardError, DataError
from vlbench.runs.cells import Score, from_spec
from vlbench.runs.store import Store
from vlbench.studies import stress
from vlbench.studies.ablate import ask
from vlbench.studies.design import ask_together
from vlbench.studies.plan import make_plan, scored_on
from vlbench.workspace import find

ROOT = builtin_root()
GUIDED = {"model.feedback.use": "hd-to-mr", "loss.task_coupled.use": "none"}
TINY = {"model.width": 16, "model.feedforward": 32}


@pytest.fixture
def data(workspace):
    return open_dataset("planted-quick", find(workspace))


def arm(name="videolights_quick", **changes):
    found = edit(load_variant(name, ROOT), {**TINY, **changes}, origin="test")
    return Arm(name, found.variant)


def chosen(data, families, *arms, levels=(1, 2, 3, 4, 5), skip=False):
    return stress.choose(families, levels, arms or (arm(),), data, Severities.read(), skip=skip)


@pytest.mark.parametrize(
    ("text", "levels"),
    [("1-5", (1, 2, 3, 4, 5)), ("0-2", (1, 2)), ("5", (5,)), ("3,1, 1", (1, 3)), ("1-2,5", (1, 2, 5))],
)
def test_levels_are_lists_and_ranges(text, levels):
    assert stress.parse_levels(text) == levels


@pytest.mark.parametrize("text", ["6", "1-7", "-1", "0", "", "a", "3-1", "1.5"])
def test_other_levels_are_one_clear_line(text):
    with pytest.raises(CardError, match="^--levels: .*\n?$"):
        stress.parse_levels(text)


def test_the_battery_has_the_roles_of_the_protocol(data):
    found, notes = chosen(data, [])
    roles = {one.key: one.role for one in found}
    families = {
        "gauss", "clip_drop", "freeze", "shuffle", "jitter", "channel_drop", "modality_drop", "token_drop", "token_swap",
    }  # fmt: skip
    assert {key for key, role in roles.items() if role == "family"} == families
    assert {key for key, role in roles.items() if role == "anchor"} == {"wrong_query", "query_blank"}
    assert {key for key, role in roles.items() if role == "extra"} == {"modality_drop:slowfast", "modality_drop:clip"}
    assert not any(one.trains for one in found) and any("real words" in note for note in notes)


def test_the_anchors_of_the_query_are_always_there_at_level_five(data):
    found, _ = chosen(data, ["gauss"], levels=(1, 2))
    assert {one.key: one.levels for one in found} == {"gauss": (1, 2), "wrong_query": (5,), "query_blank": (5,)}
    found, _ = chosen(data, ["label_noise"])
    assert [one.key for one in found] == ["label_noise"] and found[0].trains


def test_head_noise_brings_its_anchors_and_is_refused_where_no_hook_is_reached(data):
    found, _ = chosen(data, ["head_noise"], arm(**GUIDED))
    assert {"head_noise", "head_shuffle", "head_const", "head_oracle"} <= {one.key for one in found}
    with pytest.raises(CardError, match="from moments to saliency, in the training loss only"):
        chosen(data, ["head_noise"])


def test_an_ablation_skips_the_arms_that_a_family_cannot_reach_and_says_why(data):
    guided = replace(arm(**GUIDED), name="guided")
    found, notes = chosen(data, ["head_noise"], arm(), guided, skip=True)
    one = next(one for one in found if one.key == "head_noise")
    assert one.skips == ("videolights_quick",) and one.reaches(guided) and not one.reaches(arm())
    assert any("videolights_quick left out" in note and "in the training loss only" in note for note in notes)
    with pytest.raises(CardError, match="does not reach"):  # none is left
        chosen(data, ["head_noise"], arm(), skip=True)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gaus", 'did you mean "gauss"'),
        ("gauss:i3d", 'no video encoder "i3d"'),
        ("token_drop:clip", "cannot be narrowed"),
    ],
)
def test_a_mistake_is_one_line(data, family, words):
    with pytest.raises(CardError, match=words) as error:
        chosen(data, [family])
    assert "\n" not in str(error.value)


def test_a_dataset_without_saliency_is_refused_for_a_saliency_family(data, monkeypatch):
    monkeypatch.setattr(type(data), "tasks", frozenset({"mr"}))
    for family in ("label_noise", "one_annotator"):
        with pytest.raises(CardError, match="annotated saliency"):
            chosen(data, [family])


def planned(data, store, families=("gauss",), arms=None, **more):
    arms = arms or [arm()]
    stressors, _ = chosen(data, families, *arms, levels=more.get("levels", (1, 5)))
    given = {
        "study": "stress-x", "command": "vlbench stress", "question": "?", "arms": arms, "dataset": data,
        "seeds": (1, 2), "stressors": stressors, "levels": (1, 5), "draws": 2, "primary": ("mr-map", "hd-map"),
        "margin": 0.5, "store": store, "severities": Severities.read(), **more,
    }  # fmt: skip
    return stress.make_stress(**given)


def test_cells_are_asked_for_once_per_level_draw_seed_and_level_zero_is_the_clean_score(data, workspace):
    plan = planned(data, Store(workspace / "store"))
    assert len(plan.plan.cells) == 2
    assert len(plan.cells) == 2 * (2 * 2 + 2 + 2)  # seeds, levels and draws of gauss, then of the two anchors
    ids = {cell.score.id for cell in plan.cells} | {cell.score.id for cell in plan.plan.cells}
    assert len(ids) == len(plan.cells) + 2
    assert plan.as_json()["severities"]["digest"] == Severities.read().digest


def test_packs_hold_every_cell_once_whatever_the_workers_and_the_order_of_families(data, workspace):
    store = Store(workspace / "store")
    plan = planned(data, store, ("gauss", "freeze"))
    other = planned(data, store, ("freeze", "gauss"))
    wanted = sorted(cell.score.id for cell in plan.todo)
    assert wanted == sorted(cell.score.id for cell in other.todo)
    for slots in (1, 2, 7):
        packs = stress.packs(plan, slots)
        assert sorted(cell for pack in packs for cell in pack.cells) == wanted
        for pack in packs:  # one fit, and whole groups
            scores = [from_spec(json.loads(spec)) for spec in pack.specs]
            assert all(isinstance(score, Score) for score in scores) and len({score.fit for score in scores}) == 1
    assert len(stress.packs(plan, 4)) > len(stress.packs(plan, 1))


def test_families_of_training_have_fits_of_their_own(data, workspace):
    plan = planned(data, Store(workspace / "store"), ("label_noise",))
    assert len(plan.plan.arms) == 3 and not plan.todo  # their scores are the clean ones of their fits
    assert [str(edit) for edit in plan.plan.arms[1].edits] == [
        "train.corruption: none -> label_noise",
        "train.corruption_level: 0 -> 1",
    ]
    assert {cell.draw for cell in plan.cells} == {0} and len(plan.cells) == 4
    clean = {cell.fit.id for cell in plan.plan.cells if cell.arm == "videolights_quick"}
    assert not clean & {cell.score.fit for cell in plan.cells}


def test_two_variants_of_one_name_are_refused(data, workspace):
    with pytest.raises(CardError, match="named twice"):
        planned(data, Store(workspace / "store"), arms=[arm(), arm()])


# --- fits on one dataset, scores on another ---------------------------------------------------------------------------


def plan_on(data, store):
    return make_plan(
        study="a", kind="ablation", command="vlbench ablate", question="?", component="fra", adds=False,
        arms=[Arm("baseline", arm().variant), Arm("without FRA", arm(**{"model.refinement.use": "none"}).variant)],
        dataset=data, seeds=(1,), primary=("mr-map",), margin=0.5, store=store,
    )  # fmt: skip


def test_the_same_fits_are_scored_on_the_other_dataset(data, workspace):
    (workspace / "vlbench.toml").write_text('[datasets.other]\nplanted = "quick"\ndifficulty = 0.2\n')
    other, store = open_dataset("other", find(workspace)), Store(workspace / "store")
    own = plan_on(data, store)
    there = scored_on(own, data, other, store, study="a-on-other", command="vlbench ablate --score-on other")
    assert [cell.fit.id for cell in there.cells] == [cell.fit.id for cell in own.cells]
    assert not {cell.score.id for cell in there.cells} & {cell.score.id for cell in own.cells}
    assert there.dataset == "other" and there.cells[0].score.data.name == "other"


def test_other_widths_and_encoders_are_refused_with_the_reason(data, workspace):
    store = Store(workspace / "store")
    wide = open_dataset("planted", find(workspace))
    with pytest.raises(DataError, match="slowfast has 32 columns in planted-quick and 128 in planted"):
        scored_on(plan_on(data, store), data, wide, store, study="b", command="")
    fewer = open_dataset("planted-quick", find(workspace))
    fewer._video = {name: stream for name, stream in fewer._video.items() if name != "slowfast"}
    with pytest.raises(DataError, match='the video encoder "slowfast", which planted-quick does not have'):
        scored_on(plan_on(data, store), data, fewer, store, study="b", command="")


# --- the cards of the coupling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hd_noise", "handed_noise", "hd_undertrained", "coupling_under_noise"])
def test_cards_with_factors_cross_them_and_test_their_interaction(data, name):
    card = load_ablation(name, ROOT)
    base = load_variant(card.variants[0], ROOT)
    question = ask_together(card.components, card.design, base, data, ROOT, card)
    assert len(question.arms) == 4 and {claim.kind for claim in question.claims} >= {"main", "interaction"}
    assert next(arm for arm in question.arms if not arm.edits).name == "none"  # the released model, clean
    (interaction,) = [claim for claim in question.claims if claim.kind == "interaction"]
    assert interaction.name == " x ".join(factor.title for factor in card.factors)
    if card.corrupt:
        found, notes = chosen(data, card.corrupt, *question.arms, skip=True)
        one = next(one for one in found if one.key == "head_noise")
        assert [arm.name for arm in question.arms if one.reaches(arm)] == ["all", "only HD-to-MR feedback"]
        assert len([note for note in notes if "training loss only" in note]) == 2


def test_feedback_goes_each_way_or_none(data):
    card = load_ablation("feedback_direction", ROOT)
    question = ask("feedback_direction", load_variant(card.variants[0], ROOT), data, card)
    uses = {arm.name: arm.variant.slots["feedback"].name for arm in question.arms}
    assert uses == {"baseline": "unijfm", "none": "none", "HD to MR": "hd-to-mr", "both": "both"}


def test_a_card_is_either_of_arms_or_of_components_or_of_factors(workspace):
    (workspace / "ablations").mkdir()
    (workspace / "ablations" / "mixed.toml").write_text(
        'component = "fra"\nquestion = "?"\nvariants = ["qd_detr"]\n[[arm]]\nname = "x"\nset = { "train.epochs" = 1 }\n'
        '[[factor]]\nname = "y"\nset = { "train.epochs" = 2 }\n'
    )
    with pytest.raises(CardError, match=r"\[\[factor\]\] tables"):
        load_ablation("mixed", workspace)
