"""Protects designs over several components: which cells are run, and that every claim is the effect it says it is."""

import math
from pathlib import Path

import pytest

from vlbench.cards.library import load_variant
from vlbench.data.base import open_dataset
from vlbench.errors import CardError
from vlbench.studies.ablate import find
from vlbench.studies.design import ask_together, build_orders, default_kind
from vlbench.workspace import Workspace

NOWHERE = Path("/nowhere")
THREE = ("fra", "bicmf", "unijfm")
FOUR = (*THREE, "alignment")
FIVE = (*FOUR, "hard_saliency")
SIX = (*FIVE, "rank")


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("planted-quick", Workspace(NOWHERE, NOWHERE, {}))


@pytest.fixture(scope="module")
def base():
    return load_variant("videolights_quick", NOWHERE)


def asked(components, kind, base, dataset):
    return ask_together(components, kind, base, dataset, NOWHERE)


def value(claim, question, response):
    """The claim on a lattice whose cells have the values of ``response``, a function of the digits."""
    cell_of = {arm: cell for cell, arm in question.design.cells.items()}
    return sum(weight * response([int(digit) for digit in cell_of[arm]]) for arm, weight in claim.weights.items())


def of_kind(question, kind):
    return [claim for claim in question.claims if claim.kind == kind]


def test_a_factorial_runs_every_cell_and_the_first_is_the_full_model(base, dataset):
    question = asked(THREE, "factorial", base, dataset)
    assert [arm.name for arm in question.arms] == [
        "all", "without Uni-JFM", "without Bi-CMF", "only FRA", "without FRA", "only Bi-CMF", "only Uni-JFM", "none",
    ]  # fmt: skip
    assert question.arms[0].edits == () and len(question.design.cells) == 8
    assert {claim.kind for claim in question.claims} == {
        "main", "interaction", "shapley", "one-out", "one-in", "total",
    }  # fmt: skip
    assert question.claims[0].kind == "main"  # the judged claims come first
    assert not question.adds


def test_a_component_is_removed_as_its_own_card_says(base, dataset):
    question = asked(THREE, "factorial", base, dataset)
    gone = next(arm for arm in question.arms if arm.name == "without Uni-JFM")
    card = find("unijfm", NOWHERE)
    assert {edit.key: edit.new for edit in gone.edits} == dict(card.arms[0].set)


def test_the_claims_of_a_factorial_are_the_textbook_effects(base, dataset):
    question = asked(THREE, "factorial", base, dataset)

    def response(x):
        return 1 + 3 * x[0] + 2 * x[1] - x[2] + 4 * x[0] * x[1]

    mains = {claim.components: value(claim, question, response) for claim in of_kind(question, "main")}
    assert mains == pytest.approx({("fra",): 5.0, ("bicmf",): 4.0, ("unijfm",): -1.0})
    pairs = {claim.components: value(claim, question, response) for claim in of_kind(question, "interaction")}
    assert pairs == pytest.approx({("fra", "bicmf"): 4.0, ("fra", "unijfm"): 0.0, ("bicmf", "unijfm"): 0.0})
    shares = {claim.components[0]: value(claim, question, response) for claim in of_kind(question, "shapley")}
    assert shares == pytest.approx({"fra": 5.0, "bicmf": 4.0, "unijfm": -1.0})
    (total,) = of_kind(question, "total")
    assert sum(shares.values()) == pytest.approx(value(total, question, response)) == pytest.approx(8.0)
    last = {claim.components[0]: value(claim, question, response) for claim in of_kind(question, "one-out")}
    first = {claim.components[0]: value(claim, question, response) for claim in of_kind(question, "one-in")}
    assert last == pytest.approx({"fra": 7.0, "bicmf": 6.0, "unijfm": -1.0})
    assert first == pytest.approx({"fra": 3.0, "bicmf": 2.0, "unijfm": -1.0})


@pytest.mark.parametrize("components", [FOUR, FIVE])
def test_a_half_fraction_has_half_of_the_cells_and_clear_main_effects(components, base, dataset):
    question = asked(components, "fractional", base, dataset)
    count = len(components)
    assert len(question.arms) == 2 ** (count - 1) and "1" * count in question.design.cells
    slopes = [2.0, -1.0, 0.5, 3.0, 7.0][:count]

    def response(x):  # two-component interactions do not leak into main effects
        return sum(slope * digit for slope, digit in zip(slopes, x, strict=True)) + 6 * (x[0] - 0.5) * (x[1] - 0.5)

    mains = [value(claim, question, response) for claim in of_kind(question, "main")]
    assert mains == pytest.approx(slopes)
    pairs = {claim.components: value(claim, question, response) for claim in of_kind(question, "interaction")}
    assert pairs[components[:2]] == pytest.approx(6.0)
    assert len(pairs) == (3 if count == 4 else 10)
    if count == 4:
        claim = next(claim for claim in of_kind(question, "interaction") if claim.components == components[:2])
        assert claim.name.startswith("FRA x Bi-CMF + Uni-JFM x ")  # the weights give the sum, not one of the two

        def both(x):
            return 6 * (x[0] - 0.5) * (x[1] - 0.5) - 6 * (x[2] - 0.5) * (x[3] - 0.5)

        assert value(claim, question, both) == pytest.approx(0.0)
        assert any("of which only the sum is known" in note for note in question.notes)
    assert not of_kind(question, "shapley") and any("--design factorial" in note for note in question.notes)


def test_many_components_are_built_up_in_sampled_orders(base, dataset):
    question = asked(SIX, "fractional", base, dataset)
    assert len(question.arms) < 2 ** len(SIX)
    orders = build_orders(SIX)
    assert all(order[::-1] in orders for order in orders) and all(sorted(order) == list(range(6)) for order in orders)

    def response(x):
        return math.prod(1 + 0.3 * (i + 1) * digit for i, digit in enumerate(x))

    shares = [value(claim, question, response) for claim in of_kind(question, "shapley")]
    (total,) = of_kind(question, "total")
    assert sum(shares) == pytest.approx(value(total, question, response))
    assert question.claims[0].kind == "shapley"
    assert any("a sample of the orders" in note for note in question.notes)


def test_the_orders_belong_to_the_names(base):
    """The same question has the same cells, whatever the order in which the components were typed."""
    renamed = [{name: i for i, name in enumerate(names)} for names in (SIX, SIX[::-1])]
    built = [{tuple(names[i] for i in order) for order in build_orders(names)} for names in (tuple(r) for r in renamed)]
    assert built[0] == built[1]


def test_one_out_has_a_placebo_for_every_part_that_has_one(base, dataset):
    question = asked(("fra", "alignment"), "one-out", base, dataset)
    assert [arm.name for arm in question.arms] == ["baseline", "without FRA", "without alignment", "placebo for FRA"]
    assert all(claim.kind == "arm" and claim.plus == "baseline" for claim in question.claims)
    assert [claim.components for claim in question.claims] == [("fra",), ("alignment",), ("fra",)]


def test_one_in_starts_from_the_empty_model(base, dataset):
    question = asked(THREE, "one-in", base, dataset)
    assert [arm.name for arm in question.arms] == ["baseline", "with FRA", "with Bi-CMF", "with Uni-JFM"]
    assert question.adds and all(claim.minus == "baseline" for claim in question.claims)
    assert question.arms[0].variant.slots["refinement"].name == "none"
    assert question.arms[1].variant.slots["refinement"].name == "fra"


def test_encoders_are_crossed_like_components(base, dataset):
    question = asked(("slowfast", "noise"), "factorial", base, dataset)
    found = {arm.name: "+".join(arm.variant.features.video) for arm in question.arms}
    assert found == {
        "all": "slowfast+clip+noise", "only slowfast": "slowfast+clip", "only noise": "clip+noise", "none": "clip",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("components", "kind", "message"),
    [
        (("fra", "fra"), "factorial", "named twice"),
        (("fra",), "factorial", "two components or more"),
        (("fra", "bicmf"), "fractional", "use --design factorial"),
        ((*SIX, "margin"), "factorial", "128 cells"),
        (("unijfm", "task_coupled"), "factorial", "one contains another"),
        (("fra", "fraa"), "factorial", 'did you mean "fra"'),
        (("video.slowfast", "video.clip"), "factorial", "nothing to read"),
        (("fra", "components"), "factorial", "several questions"),
    ],
)
def test_what_cannot_be_crossed_is_said(components, kind, message, base, dataset):
    with pytest.raises(CardError, match=message):
        asked(components, kind, base, dataset)


def test_few_components_are_crossed_whole():
    assert [default_kind(count) for count in (2, 3, 4, 7)] == ["factorial", "factorial", "fractional", "fractional"]
