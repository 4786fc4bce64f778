"""Protects the loop: a fit that is broken off after any epoch ends as the unbroken one; evaluation cannot change training;
arms of one seed share batches and the initial weights of every module they have in common."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbench.canon import digest_file
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed
from vlbench.errors import Diverged
from vlbench.train.batch import Split
from vlbench.train.loop import (
    CHECKPOINT,
    EPOCH_SCORES,
    EPOCH_WEIGHTS,
    MOST_KEPT,
    WEIGHTS,
    build,
    fit,
    kept_epochs,
    weights_at,
    weights_of_epochs,
)
from vlbench.train.recipe import Recipe
from vlbench.workspace import Workspace

SMALL = {
    "model.width": 16,
    "model.attention_heads": 2,
    "model.feedforward": 16,
    "model.dropout": 0.1,
    "train.epochs": 4,
    "train.eval_every": 2,
    "train.lr_drop": 3,
}
CPU = torch.device("cpu")


@cache
def variant(**changes):
    base = load_variant("videolights_quick", Path("/nowhere"))
    return edit(base, {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}, origin="test").variant


@cache
def split():
    dataset = open_dataset("planted-quick", Workspace(Path("/nowhere"), Path("/nowhere"), {}))
    features = variant().features
    return Split(dataset, "tune", features, Packed.open(dataset, "tune", features, None))


class Killed(Exception):
    pass


def train(folder, changes=(), *, stop_after=()):
    """Fit to the end, being broken off after each epoch in ``stop_after`` as a kill would."""
    left = list(stop_after)

    def log(event):
        if left and event["epoch"] == left[0]:
            left.pop(0)
            raise Killed

    while True:
        try:
            chosen = variant(**dict(changes))
            return fit(chosen, split(), split(), seed=3, device=CPU, folder=folder, log=log)
        except Killed:
            assert (folder / CHECKPOINT).exists()


def digests(folder):
    names = [*WEIGHTS.values(), EPOCH_SCORES, *(weights_at(folder, epoch).relative_to(folder) for epoch in (1, 3))]
    return {str(name): digest_file(folder / name) for name in names}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return train(folder), digests(folder)


@settings(max_examples=4, deadline=None)
@given(stops=st.lists(st.integers(0, 3), unique=True, min_size=1).map(sorted))
def test_resume_equals_the_unbroken_run(stops, unbroken, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    result = train(folder, stop_after=stops)
    expected, files = unbroken
    assert digests(folder) == files
    assert result.summary == expected.summary and result.selected_epoch == expected.selected_epoch
    assert result.resumed == len(stops)


def test_evaluating_more_often_changes_no_weight(unbroken, tmp_path):
    train(tmp_path, {"train__eval_every": 1}.items())
    assert digest_file(tmp_path / WEIGHTS["last"]) == unbroken[1][WEIGHTS["last"]]


def test_epoch_scores_are_kept_per_query(unbroken, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    train(folder)
    with np.load(folder / EPOCH_SCORES) as kept:
        assert kept["scores"].dtype == np.float16
        assert kept["scores"].shape == (2, len(split()), len(kept["metrics"]))
        assert list(kept["epochs"]) == [1, 3]
        assert len(kept["qids"]) == len(split())


def test_the_weights_of_evaluated_epochs_wait_and_none_is_written_twice(tmp_path):
    result = train(tmp_path, {"train__eval_every": 1}.items(), stop_after=[1])
    recipe = Recipe.of(variant(train__eval_every=1).recipe)
    assert sorted(path.name for path in (tmp_path / EPOCH_WEIGHTS).iterdir()) == [
        f"{epoch:06d}.safetensors" for epoch in range(4)
    ]
    selected = weights_at(tmp_path, result.selected_epoch)
    assert selected.samefile(tmp_path / WEIGHTS["selected"])
    assert weights_at(tmp_path, 3).samefile(tmp_path / WEIGHTS["last"])
    where = weights_of_epochs(tmp_path, recipe, result.selected_epoch)
    assert list(where) == [0, 1, 2, 3] and where[3] == tmp_path / WEIGHTS["last"]
    assert {epoch: digest_file(path) for epoch, path in where.items()} == result.weights
    assert len(set(result.weights.values())) == 4


def test_a_fit_that_nobody_scores_keeps_digests_only(tmp_path, unbroken):
    fit(variant(), split(), split(), seed=3, device=CPU, folder=tmp_path, log=lambda _: None, keep=False)
    assert not (tmp_path / EPOCH_WEIGHTS).exists()
    for name in (*WEIGHTS.values(), EPOCH_SCORES):
        assert digest_file(tmp_path / name) == unbroken[1][name]


@settings(deadline=None)
@given(epochs=st.integers(1, 400), every=st.integers(1, 30))
def test_no_more_epochs_are_kept_than_the_bound(epochs, every):
    recipe = replace(Recipe.of(variant().recipe), epochs=epochs, eval_every=every)
    kept = kept_epochs(recipe)
    evaluated = [epoch for epoch in range(epochs) if recipe.evaluates(epoch)]
    assert 1 <= len(kept) <= MOST_KEPT and kept[-1] == epochs - 1
    assert set(kept) <= set(evaluated) and list(kept) == sorted(kept)
    assert len(kept) == len(evaluated) or len(evaluated) > MOST_KEPT


def test_another_seed_is_another_run(tmp_path, unbroken):
    chosen = variant()
    fit(chosen, split(), split(), seed=4, device=CPU, folder=tmp_path, log=lambda _: None)
    assert digest_file(tmp_path / WEIGHTS["last"]) != unbroken[1][WEIGHTS["last"]]


def test_the_global_generators_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(variant(train__epochs=1), split(), split(), seed=1, device=CPU, folder=tmp_path, log=lambda _: None)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "changes", [{"model.refinement.use": "none"}, {"model.refinement.use": "placebo"}, {"model.fusion.use": "one-way"}]
)
def test_arms_share_the_initial_weights_of_shared_modules(changes):
    base = build(variant(), split(), seed=3).state_dict()
    arm = build(edit(variant(), changes, origin="test").variant, split(), seed=3).state_dict()
    (changed,) = {key.split(".")[1] for key in changes}
    shared = [key for key in base if key in arm and not key.startswith(changed)]
    assert len(shared) > 50
    assert all(torch.equal(base[key], arm[key]) for key in shared)


def test_arms_share_batches_and_sampled_targets():
    def first(features):
        other = Split(split().dataset, "tune", features, Packed.open(split().dataset, "tune", features, None))
        return next(other.training(3, 1, 16))

    one, two = first(variant().features), first(replace(variant().features, video=("clip",)))
    assert one.qids == two.qids
    assert np.array_equal(one.positive, two.positive) and np.array_equal(one.spans_cw, two.spans_cw)
    assert next(split().training(3, 2, 16)).qids != one.qids


@pytest.mark.parametrize("lr", [1e30])
def test_divergence_is_named(lr, tmp_path):
    with pytest.raises(Diverged, match="epoch"):
        fit(variant(train__lr=lr), split(), split(), seed=1, device=CPU, folder=tmp_path, log=lambda _: None)


def test_bf16_trains_and_is_another_identity(tmp_path):
    result = fit(
        variant(train__precision="bf16", train__epochs=1),
        split(),
        split(),
        seed=1,
        device=CPU,
        folder=tmp_path,
        log=lambda _: None,
    )
    assert all(np.isfinite(value) for value in result.summary.values())
