"""Protects search spaces: what a card may vary, where a mistake is found, and that points lie inside."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sweep_files import workspace as tiny
from vlbench.cards.library import load_variant
from vlbench.cards.space import Dimension, Space, changes, space_of
from vlbench.errors import CardError

CARD = """\
extends = "videolights_quick"

[search]
"""


def space(folder, line, *, fixed=()):
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "mine.toml").write_text(CARD + line + "\n")
    variant = load_variant("mine", folder)
    variant = replace(variant, search={key: variant.search[key] for key in variant.search if f'"{key}"' in line})
    return space_of(variant, fixed=fixed)


GOOD = {
    '"train.lr" = { low = 1e-5, high = 1, log = true }': ("float", 1e-5, 1.0, None, True),
    '"model.dropout" = { low = 0, high = 0.35, step = 0.1 }': ("float", 0.0, 0.3, 0.1, False),
    '"model.width" = { low = 32, high = 100, step = 32 }': ("int", 32, 96, 32, False),
    '"train.batch_size" = { low = 4, high = 64, log = true }': ("int", 4, 64, None, True),
    '"loss.span.weight" = { choices = [1, 2.5] }': ("choices", None, None, None, None),
    '"model.refinement.use" = { choices = ["none", "fra"] }': ("choices", None, None, None, None),
}


@pytest.mark.parametrize("line", GOOD)
def test_a_dimension_has_the_type_of_its_key(line, tmp_path):
    (found,) = space(tmp_path, line).as_json()
    assert (found["kind"], found["low"], found["high"], found["step"], found["log"]) == GOOD[line]


def test_whole_numbers_stand_for_numbers_among_choices(tmp_path):
    (found,) = space(tmp_path, '"loss.span.weight" = { choices = [1, 2.5] }').dimensions
    assert found.choices == (1.0, 2.5) and all(isinstance(choice, float) for choice in found.choices)


BAD = {
    '"train.lrr" = { low = 1e-5, high = 1e-3 }': 'not a key of this card; did you mean "train.lr"?',
    '"train.lr" = { low = 1e-3, high = 1e-5 }': "low 0.001 above high 1e-05",
    '"train.lr" = { low = 0, high = 1e-3, log = true }': "a log range that touches 0",
    '"train.lr" = { low = -1.0, high = 1e-3, log = true }': "a log range that touches 0",
    '"train.lr" = { low = 1e-5, high = 1e-3, log = true, step = 1e-5 }': "a step and log",
    '"train.lr" = { low = 1e-5, high = 1e-3, step = 0.0 }': "step of train.lr has to be above 0",
    '"train.lr" = { low = 1e-5 }': "train.lr has no high",
    '"train.lr" = { high = 1e-5, low = nan }': "has to be finite",
    '"train.lr" = { low = "a", high = 1e-5 }': "low of train.lr has to be a number",
    '"train.lr" = { low = 1e-5, high = 1e-3, log = 1 }': "log of train.lr has to be true or false",
    '"train.lr" = { low = 1e-5, hihg = 1e-3 }': 'unknown field "hihg"; did you mean "high"?',
    '"train.lr" = { choices = [] }': "train.lr has no choices",
    '"train.lr" = { choices = [1e-3, "fast"] }': "every choice of train.lr has to be a number",
    '"train.lr" = { choices = [1e-3, 0.001] }': "twice",
    '"train.lr" = { choices = [1e-3], low = 1.0 }': "choices and a range (low)",
    '"train.epochs" = { low = 1.5, high = 4 }': "low of train.epochs has to be a whole number",
    '"train.epochs" = { low = 0, high = 4 }': "train.epochs must be above 0",
    '"train.epochs" = { low = true, high = 4 }': "low of train.epochs has to be a whole number",
    '"train.precision" = { low = 1, high = 4 }': "is a text: it has no range",
    '"train.precision" = { choices = ["fp32", "fp8"] }': '"fp8" is not one of its values',
    '"model.refinement.use" = { choices = ["none", "fr"] }': 'the choice "fr", which is not a component of refinement',
    '"model.refinement.dropout_" = { choices = [0.1] }': "not a key of this card",
}


@pytest.mark.parametrize("line", BAD)
def test_a_space_that_cannot_be_says_where_and_why(line, tmp_path):
    with pytest.raises(CardError) as error:
        space(tmp_path, line)
    assert BAD[line] in str(error.value)
    assert error.value.where is not None and error.value.where.endswith("mine.toml:4")


def test_an_empty_space_says_what_to_write(tmp_path):
    variant = load_variant("videolights_quick", tmp_path)
    with pytest.raises(CardError, match=r"nothing to vary: its card has no \[search\]"):
        space_of(replace(variant, search={}))
    with pytest.raises(CardError, match="all its keys are set"):
        space_of(variant, fixed=tuple(variant.search))


def test_a_key_that_was_set_is_not_varied(tmp_path):
    variant = load_variant("videolights_quick", tmp_path)
    left = [one.key for one in space_of(variant, fixed=("train.lr",)).dimensions]
    assert left == [key for key in variant.search if key != "train.lr"]


def test_arguments_of_a_component_that_is_not_chosen_have_no_effect(tmp_path):
    tiny(tmp_path / "w")
    variant = load_variant("tiny", tmp_path / "w")
    point = {"loss.giou.use": "none", "loss.giou.weight": 2.0, "train.lr": 0.1}
    assert changes(point, variant) == {"loss.giou.use": "none", "train.lr": 0.1}
    assert changes({**point, "loss.giou.use": "giou"}, variant)["loss.giou.weight"] == 2.0


ranges = st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)).map(sorted)
quantiles = st.floats(0, 1, exclude_max=True)


@given(ranges, quantiles, st.booleans())
def test_points_lie_inside_and_stay_there_when_tidied(ends, u, log):
    one = Dimension("k", "float", *ends, log=log)
    value = one.at(u)
    assert one.low <= value <= one.high
    assert one.low <= one.tidy(value) <= one.high
    assert one.tidy(value) == pytest.approx(value, rel=1e-3)


@given(st.integers(1, 200), st.integers(0, 200), quantiles, st.booleans())
def test_whole_points_lie_inside(low, more, u, log):
    one = Dimension("k", "int", low, low + more, step=None if log else 1, log=log)
    assert isinstance(one.at(u), int) and low <= one.at(u) <= low + more


@given(st.floats(0, 5), st.floats(0.01, 1), st.integers(1, 20), quantiles)
def test_steps_are_counted_from_the_low_end(low, step, count, u):
    low, step = round(low, 3), round(step, 3)
    one = Dimension("k", "float", low, low + step * count, step=step)
    position = (one.at(u) - low) / step
    assert abs(position - round(position)) < 1e-6 and -0.5 < position < count + 0.5


def test_every_value_of_a_small_dimension_is_met():
    whole = Dimension("k", "int", 2, 8, step=3)
    word = Dimension("k", "choices", choices=("a", "b", "c"))
    assert {whole.at(i / 30) for i in range(30)} == {2, 5, 8}
    assert [word.at(i / 3 + 0.01) for i in range(3)] == ["a", "b", "c"]


def test_a_point_has_one_quantile_per_dimension():
    both = Space((Dimension("a", "int", 0, 1, step=1), Dimension("b", "float", 0.0, 1.0)))
    assert both.at([0.9, 0.25]) == {"a": 1, "b": 0.25}
    with pytest.raises(ValueError):
        both.at([0.5])
