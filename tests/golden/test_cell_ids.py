"""Protects identity: the id of one fit and one score with every field set, per format number.

If this test fails, every stored cell would be trained again. Raise a component's version (or FORMAT) on purpose, and
pin the new number beside the reason, or undo the change.
"""

import json
from dataclasses import replace

from vlbench.cards.kinds import Features, Reported, Use, Variant
from vlbench.runs import cells
from vlbench.runs.cells import DataRef, Fit, Score, from_spec, to_spec

VARIANT = Variant(
    name="v",
    title="V",
    paper="p",
    features=Features(("slowfast", "clip"), ("clip",)),
    model={"width": 256, "dropout": 0.1},
    slots={"refinement": Use("fra", {"dropout": 0.2}, 3), "fusion": Use("one-way", {"layers": 2}, 1)},
    losses={"span": Use("l1", {"weight": 10.0}, 1), "margin": Use("none", {}, 1)},
    recipe={"epochs": 3, "lr": 1e-4, "select": "mr-map"},
    search={"train.lr": {"low": 1.0}},
    reported=(Reported("d", "val", "s", {"mr-map": 1.0}),),
    origin={"model.width": "x:1"},
)
FIT = Fit(VARIANT, DataRef("data", {"fit": "f" * 64, "tune": "e" * 64}, ("hd", "mr")), 7)
SCORE = Score(FIT.id, DataRef("data", {"report": "a" * 64}, ("hd", "mr")), VARIANT.features, {"mr-map": 1, "hd-map": 2})


def test_ids_are_pinned():
    assert cells.FORMAT == 1
    assert FIT.id == "7f0a30a46d93"
    assert SCORE.id == "9683a9396daa"


def test_what_is_not_content_does_not_change_an_id():
    renamed = replace(VARIANT, name="w", title="W", paper="", search={}, reported=(), origin={})
    elsewhere = replace(FIT, variant=renamed, data=replace(FIT.data, name="other"))
    assert elsewhere.id == FIT.id


def test_all_content_changes_an_id():
    others = [
        replace(FIT, seed=8),
        replace(FIT, data=DataRef("data", {"fit": "0" * 64, "tune": "e" * 64}, ("hd", "mr"))),
        replace(FIT, variant=replace(VARIANT, features=Features(("clip", "slowfast"), ("clip",)))),
        replace(FIT, variant=replace(VARIANT, model={"width": 128, "dropout": 0.1})),
        replace(FIT, variant=replace(VARIANT, recipe={**VARIANT.recipe, "lr": 2e-4})),
        replace(FIT, variant=replace(VARIANT, slots={**VARIANT.slots, "refinement": Use("fra", {"dropout": 0.2}, 4)})),
        replace(FIT, variant=replace(VARIANT, losses={**VARIANT.losses, "span": Use("l1", {"weight": 1.0}, 1)})),
    ]
    assert len({cell.id for cell in [FIT, *others]}) == len(others) + 1
    assert replace(SCORE, metrics={"mr-map": 1, "hd-map": 3}).id != SCORE.id
    assert replace(SCORE, fit="0" * 12).id != SCORE.id


def test_a_spec_gives_its_cell_back():
    for cell in (FIT, SCORE):
        again = from_spec(json.loads(to_spec(cell)))
        assert again.id == cell.id and again.identity() == cell.identity()
        assert again.data.name == cell.data.name
