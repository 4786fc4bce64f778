"""Protects what is kept of a sweep: the card's own text survives, other values are not overwritten, and tuned values are
used on their dataset and nowhere else. And sweep cards: every built-in one is read, mistakes are found with their line.
"""

import tomllib

import pytest

from vlbench.cards.library import builtin_root, cards, load_sweep, load_variant
from vlbench.cards.promote import promote, without_block
from vlbench.cards.resolve import flatten, tune
from vlbench.cards.space import space_of
from vlbench.errors import CardError

CARD = """\
# Mine.
extends = "videolights_quick"  # the small one
title = "Mine"

[train]
lr = 1e-3  # by hand

# published by me
[[reported]]
dataset = "planted"
split = "val"
source = "my thesis"
values = { "mr-map" = 40.0 }
"""
SOURCE = {"study": "sweep-a", "digest": "d" * 8, "trial": 3, "budget": {"trials": 8, "sampler": "tpe"}}
VALUES = {"train.lr": 0.004, "model.dropout": 0.2, "loss.giou.use": "none"}


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.toml").write_text(CARD)
    return tmp_path


def test_the_cards_text_survives_and_the_values_are_read_back(mine):
    path, changed = promote(load_variant("mine", mine), mine, "my data", VALUES, SOURCE)
    text = path.read_text()
    assert changed and text.startswith(CARD)
    variant = load_variant("mine", mine)
    found = variant.tuned["my data"]
    assert found.values == VALUES and (found.study, found.digest, found.trial) == ("sweep-a", "d" * 8, 3)
    assert found.budget == SOURCE["budget"]
    line = text.splitlines().index('[tuned."my data"]') + 1
    assert found.origin == f"{path}:{line}"
    assert promote(variant, mine, "my data", VALUES, SOURCE) == (path, False)
    assert path.read_text() == text


def test_tuned_values_are_used_on_their_dataset_alone(mine):
    promote(load_variant("mine", mine), mine, "planted", VALUES, SOURCE)
    variant = load_variant("mine", mine)
    tuned, note = tune(variant, "planted")
    flat = flatten(tuned)
    assert (flat["train.lr"], flat["model.dropout"], flat["loss.giou.use"]) == (0.004, 0.2, "none")
    assert "tuned on planted by sweep-a, trial 3" in note
    assert tune(variant, "planted-quick") == (variant, None)
    (mine / "models" / "child.toml").write_text('extends = "mine"\n')
    assert load_variant("child", mine).tuned == {}, "another model was not tuned"


def test_other_values_are_not_overwritten_unless_asked(mine):
    path, _ = promote(load_variant("mine", mine), mine, "planted", VALUES, SOURCE)
    promote(load_variant("mine", mine), mine, "other", VALUES, SOURCE)
    path.write_text(path.read_text().replace("[tuned.other]", "# about the other one\n[tuned.other]"))
    line = path.read_text().splitlines().index("[tuned.planted]") + 1
    other = {**VALUES, "train.lr": 0.001}
    with pytest.raises(CardError, match=f"mine.toml:{line}: holds other values for planted, of sweep-a, trial 3"):
        promote(load_variant("mine", mine), mine, "planted", other, SOURCE)
    promote(load_variant("mine", mine), mine, "planted", other, SOURCE, force=True)
    text = path.read_text()
    assert text.startswith(CARD) and "# about the other one\n[tuned.other]" in text
    read = tomllib.loads(text)["tuned"]
    assert read["planted"]["set"] == other and read["other"]["set"] == VALUES


def test_a_built_in_card_gets_one_in_the_workspace_that_extends_it(tmp_path):
    before = load_variant("videolights_quick", tmp_path)
    path, changed = promote(before, tmp_path, "planted", {"train.lr": 0.004}, SOURCE)
    assert changed and path == tmp_path / "models" / "videolights_quick.toml"
    after = load_variant("videolights_quick", tmp_path)
    assert flatten(after) == flatten(before) and (after.title, after.search) == (before.title, before.search)
    assert after.tuned["planted"].values == {"train.lr": 0.004}


def test_values_that_the_card_does_not_take_are_refused(mine):
    with pytest.raises(CardError, match="trial 3 of sweep-a"):
        promote(load_variant("mine", mine), mine, "planted", {"train.lr": "fast"}, SOURCE)
    assert (mine / "models" / "mine.toml").read_text() == CARD


def test_a_table_that_is_written_inline_is_left_alone(mine):
    path = mine / "models" / "mine.toml"
    inline = 'tuned.planted = { study = "x", digest = "y", trial = 1, set = { "train.lr" = 0.1 } }\n'
    path.write_text(inline + CARD)
    with pytest.raises(CardError, match="cannot be replaced"):
        promote(load_variant("mine", mine), mine, "planted", VALUES, SOURCE, force=True)
    assert path.read_text() == inline + CARD


def test_a_block_ends_where_the_next_table_begins():
    text = "a = 1\n[tuned.x]\nb = 2\n[tuned.x.set]\nc = 3\n# of d\n[d]\ne = 4\n"
    assert without_block(text, "x") == "a = 1\n# of d\n[d]\ne = 4\n"
    assert without_block(text, "y") == text


# --- cards ---


@pytest.mark.parametrize("name", sorted(cards("sweeps", builtin_root())))
def test_every_built_in_sweep_card_is_read(name, tmp_path):
    card = load_sweep(name, tmp_path)
    assert card.trials >= card.startup >= 1 and card.objective and card.name == name


@pytest.mark.parametrize("name", sorted(cards("models", builtin_root())))
def test_every_built_in_search_space_can_be_searched(name, tmp_path):
    variant = load_variant(name, tmp_path)
    space, now = space_of(variant), flatten(variant)
    assert len(space) == len(variant.search) >= 2
    assert all(one.holds(now[one.key]) for one in space.dimensions), "the card's own values are inside its space"


BAD = {
    'trials = 0\npruner = "none"': (1, "trials = 0: input should be greater than or equal to 1"),
    'trials = 4\nsampler = "cma"\npruner = "none"': (2, "sampler = 'cma'"),
    "trials = 4\ndecisions = [2]\ntrails = 3": (3, 'unknown key "trails"; did you mean "trials"?'),
    'trials = 4\nobjective = ["mr-mapp"]\npruner = "none"': (2, 'did you mean "mr-map"?'),
    'trials = 4\nobjective = ["mr-map", "mr-map"]\npruner = "none"': (2, "names a value twice"),
    "trials = 4\npareto = true\ndecisions = [2]": (2, "needs one objective"),
    'trials = 4\npruner = "none"\npareto = true\nobjective = ["mr-map"]': (3, "there is only one"),
    'trials = 4\npruner = "median"': (2, "has no epochs to decide at"),
    "trials = 4\ndecisions = [2, 2]": (2, "names a value twice"),
    "trials = 4\ndecisions = [0]": (2, "greater than or equal to 1"),
    'pruner = "none"': (1, 'the key "trials" is missing'),
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_in_a_sweep_card_has_its_line(text, tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "bad.toml").write_text(text + "\n")
    line, words = BAD[text]
    with pytest.raises(CardError) as error:
        load_sweep("bad", tmp_path)
    assert words in str(error.value) and f"bad.toml:{line}" in str(error.value)
