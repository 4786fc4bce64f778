"""Protects the ways of carrying out a step: they train alike, draw the same random bits, and a step that is compiled or
recorded looks at no value. What a GPU records is stood for by a recorder that simply does the work again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vlbench.train.step as step_module
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed
from vlbench.errors import CardError, Diverged
from vlbench.nn.losses import Criterion
from vlbench.train.batch import Split, to_inputs, to_targets
from vlbench.train.loop import build, train_epoch
from vlbench.train.recipe import Recipe, make_optimizer
from vlbench.train.step import WARM, RecordedStepper, Stepper, WholeStepper, make_stepper, way_of
from vlbench.workspace import Workspace

CPU = torch.device("cpu")
SMALL = {
    "model.width": 16,
    "model.attention_heads": 2,
    "model.feedforward": 16,
    "model.dropout": 0.1,
    "train.batch_size": 35,
    "train.padding": "split",
    "train.lr": 1e-3,
}


@cache
def variant(**changes):
    base = load_variant("videolights_quick", Path("/nowhere"))
    return edit(base, {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}, origin="test").variant


@cache
def split():
    dataset = open_dataset("planted-quick", Workspace(Path("/nowhere"), Path("/nowhere"), {}))
    features = variant().features
    return Split(dataset, "tune", features, Packed.open(dataset, "tune", features, None))


class Again:
    """Stands for a recorder: replaying a step is doing it."""

    def __init__(self):
        self.warmed = self.recorded = self.replayed = 0

    def warm(self, step):
        self.warmed += 1
        step()

    def record(self, step):
        self.recorded += 1

        def replay():
            self.replayed += 1
            with NothingRead():
                step()

        return replay


class NothingRead(TorchDispatchMode):
    """Fails where an operation brings a value, or a size that hangs on values, to the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "is_nonzero"):
            raise AssertionError(f"{name} reads a value")
        return operation(*args, **(kwargs or {}))


def stepper(way, chosen=None, recorder=None):
    """A stepper of one way for a freshly made model."""
    chosen = chosen or variant()
    recipe, model = Recipe.of(chosen.recipe), build(chosen, split(), seed=3)
    given = (model, Criterion.of(chosen, split().dataset.trains), make_optimizer(model, recipe), recipe, CPU)
    if way == "recorded":
        return RecordedStepper(*given, full=35, compiled=False, recorder=recorder or Again())
    return WholeStepper(*given, full=35, compiled=False) if way == "whole" else Stepper(*given)


def trained(made, epochs=1):
    """The mean losses of the last epoch, and the weights after it."""
    for epoch in range(epochs):
        losses = train_epoch(made, split(), seed=3, epoch=epoch)
    return losses, made.model.state_dict()


def assert_alike(one, two):
    """Losses agree up to rounding. So do the ways that weights went: of some, such as the biases of keys, the true
    gradient is 0, and what moves them is rounding alone."""
    (losses, weights), (others, other_weights) = one, two
    assert losses.keys() == others.keys()
    for name, value in losses.items():
        assert value == pytest.approx(others[name], rel=1e-4, abs=1e-5), name
    apart = sum(float((value - other_weights[name]).square().sum()) for name, value in weights.items())
    begun = begins()
    if begun.keys() == weights.keys():
        gone = sum(float((value - begun[name]).square().sum()) for name, value in weights.items())
        assert apart < 1e-4 * gone
    else:
        assert apart < 1e-4


@cache
def begins():
    return build(variant(), split(), seed=3).state_dict()


@pytest.fixture(scope="module")
def place_by_place():
    return trained(stepper("place by place"))


@pytest.mark.parametrize("way", ["whole", "recorded"])
def test_every_way_trains_alike_with_the_same_random_bits(way, place_by_place):
    before = torch.get_rng_state()
    assert_alike(trained(stepper(way)), place_by_place)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__feedback__use": "both"},
        {"model__fusion__use": "one-way", "model__refinement__use": "none", "model__feedback__use": "none",
         "loss__task_coupled__use": "none"},
        {"train__precision": "bf16"},
    ],
    ids=["both ways", "plain", "bf16"],
)  # fmt: skip
def test_other_variants_train_alike(changes):
    chosen = variant(**changes)
    alone = trained(stepper("place by place", chosen), epochs=1)
    found = trained(stepper("recorded", chosen), epochs=1)
    if "train__precision" in changes:
        for name, value in alone[0].items():
            assert value == pytest.approx(found[0][name], rel=0.1, abs=0.02), name
    else:
        assert_alike(found, alone)


def test_a_step_is_recorded_once_and_the_shorter_batch_never():
    recorder = Again()
    trained(stepper("recorded", recorder=recorder), epochs=3)  # epochs of four full batches and one of ten queries
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (WARM, 1, 3 * 4 - WARM)


def test_a_head_that_stops_learning_is_another_form():
    def run(way, recorder=None):
        made = stepper(way, recorder=recorder)
        made.frozen, made.stops = list(made.model.heads.classes.parameters()), 6
        after = []
        for epoch in range(3):
            train_epoch(made, split(), seed=3, epoch=epoch)
            after.append(made.model.heads.classes.weight.detach().clone())
        assert not torch.equal(after[0], after[1]) and torch.equal(after[1], after[2])
        return {}, made.model.state_dict()

    recorder = Again()
    assert_alike(run("recorded", recorder), run("place by place"))
    assert recorder.recorded == 2


class Refuses(Again):
    def record(self, step):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_where_recording_fails_the_fit_goes_on_and_says_so(place_by_place):
    made = stepper("recorded", recorder=Refuses())
    with pytest.warns(UserWarning, match="not recorded as a CUDA graph.*stream is capturing"):
        found = trained(made)
    assert_alike(found, place_by_place)
    assert made.how == "CUDA graph failed: operation not permitted when stream is capturing"


def spoiled_batches(at, made, spoil):
    recipe = made.recipe
    for number, batch in enumerate(split().training(3, 0, recipe.batch_size, padding=recipe.padding)):
        inputs, targets = to_inputs(batch, CPU), to_targets(batch, CPU)
        yield spoil(inputs, targets) if number == at else (inputs, targets)


@pytest.mark.parametrize("way", ["place by place", "whole", "recorded"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, t: (replace(i, clips=i.clips * torch.nan), t), "a predicted span is not finite in epoch 1, step 4"),
        (lambda i, t: (i, replace(t, saliency=t.saliency * torch.nan)), r"the loss is .* in epoch 1, step 4 \(terms: .*saliency"),
    ],
    ids=["prediction", "loss"],
)  # fmt: skip
def test_the_first_step_that_is_not_finite_is_named(way, spoil, message):
    made = stepper(way)
    with pytest.raises(Diverged, match=message):
        made.run(spoiled_batches(3, made, spoil), seed=3, epoch=0, first=0)


def test_the_next_epoch_forgets_and_the_rate_stays_a_number():
    made = stepper("recorded")
    made.noted.first.fill_(7)
    made.optimizer.param_groups[0]["lr"] = 0.25e-3
    train_epoch(made, split(), seed=3, epoch=0)
    assert made.optimizer.param_groups[0]["lr"] == 0.25e-3


def test_the_way_follows_from_recipe_and_device():
    fixed, free = Recipe.of(variant().recipe), Recipe.of(variant(train__padding="batch").recipe)
    assert way_of(fixed, "cuda", compiled=False, watched=False) == "recorded"
    assert way_of(fixed, "cuda", compiled=True, watched=False) == "recorded"
    assert way_of(fixed, "cuda", compiled=False, watched=True) == "place by place"
    assert way_of(free, "cuda", compiled=False, watched=False) == "place by place"
    assert way_of(fixed, "cpu", compiled=True, watched=False) == "compiled"
    assert way_of(fixed, "cpu", compiled=False, watched=False) == "place by place"
    for recipe, watched, hint in ((free, False, "padding=split"), (fixed, True, "leave out --compile")):
        with pytest.raises(CardError) as caught:
            way_of(recipe, "cpu", compiled=True, watched=watched)
        assert hint in str(caught.value.hint)


def test_a_compiled_step_is_given_full_batches_alone(monkeypatch, place_by_place):
    shapes = []

    def machine_code(loss_of):
        def compiled(inputs, targets, lanes, epoch):
            shapes.append(len(inputs[0]))
            return loss_of(inputs, targets, lanes, epoch)

        return compiled

    monkeypatch.setattr(step_module, "machine_code", machine_code)
    chosen = variant()
    recipe, model = Recipe.of(chosen.recipe), build(chosen, split(), seed=3)
    criterion = Criterion.of(chosen, split().dataset.trains)
    made = make_stepper(model, criterion, make_optimizer(model, recipe), recipe, CPU, queries=150, compiled=True)
    assert made.how == "compiled"
    assert_alike(trained(made), place_by_place)
    assert shapes == [35] * 4


# --- a device that is never read --------------------------------------------------------------------------------------


class FromTheHost(TorchDispatchMode):
    """Notes operations on the host's tensors: what a step brings to the device, which has to be nothing."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in tree_leaves((args, kwargs, out))):
            self.found.add(str(operation))
        return out


@pytest.mark.parametrize("changes", [{}, {"model__feedback__use": "both"}], ids=["released", "both ways"])
def test_a_step_neither_reads_a_device_nor_feeds_it(changes, monkeypatch):
    """The device here holds shapes and no values, so whatever asks for a value fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # for its recurrence, which has shapes alone
    chosen, device = variant(**changes), torch.device("meta")
    recipe, model = Recipe.of(chosen.recipe), build(chosen, split(), seed=3).to(device).train()
    criterion = Criterion.of(chosen, split().dataset.trains)
    batch = next(split().training(3, 0, 35, padding="split"))
    inputs, targets = to_inputs(batch, device), to_targets(batch, device)
    made = Stepper(model, criterion, torch.optim.SGD(model.parameters()), recipe, device)
    loss_of = step_module.loss_function(model, criterion, recipe.precision)
    words = torch.empty(step_module.Places(model, recipe.precision).of(inputs).draws, dtype=torch.int64, device=device)
    with FromTheHost() as host:
        made.step(inputs, targets, frozen=False)
        given = step_module.fields(inputs), step_module.fields(targets)
        total, terms, finite = loss_of(*given, words.view(torch.int16), torch.zeros((), device=device))
        norm = made.learn(total, frozen=False)
        made.noted.note(terms, torch.cat((finite, torch.isfinite(norm)[None])))
    assert not host.found


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_in_bf16_saliency_matcher_and_losses_are_in_float32(monkeypatch):
    chosen = variant(train__precision="bf16")
    made = stepper("place by place", chosen)
    seen = {}
    match = made.criterion.matcher

    def matcher(spans_cw, logits, targets_cw, mask):
        seen["matcher"] = {spans_cw.dtype, logits.dtype, match.costs(spans_cw, logits, targets_cw).dtype}
        return match(spans_cw, logits, targets_cw, mask)

    monkeypatch.setattr(made.criterion, "matcher", matcher)
    batch = next(split().training(3, 0, 35, padding="split"))
    inputs, targets = to_inputs(batch, CPU), to_targets(batch, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = made.model.train()(inputs)
        losses = made.criterion(outputs, targets, epoch=0)
    assert outputs.logits.dtype == outputs.words.dtype == torch.bfloat16  # so it is really in use
    for name in ("spans_cw", "saliency", "saliency_negative", "saliency_feedback"):
        assert getattr(outputs, name).dtype == torch.float32, name
    assert seen["matcher"] == {torch.float32}
    assert {value.dtype for value in (losses.total, *losses.terms.values())} == {torch.float32}
    losses.total.backward()
    for name, parameter in made.model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32, name


def test_in_bf16_no_dropout_is_torchs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch draws one number for every element")

    monkeypatch.setattr(torch.nn.functional, "dropout", refuse)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    losses, _ = trained(stepper("place by place", variant(train__precision="bf16")))
    assert all(value == value for value in losses.values())


def test_bf16_masks_are_part_of_an_identity(monkeypatch):
    from vlbench.runs import cells

    plain, half = (cells.variant_identity(variant(train__precision=name)) for name in ("fp32", "bf16"))
    monkeypatch.setattr(cells, "BF16_MASKS", cells.BF16_MASKS + 1)
    assert cells.variant_identity(variant(train__precision="fp32")) == plain
    assert cells.variant_identity(variant(train__precision="bf16")) != half


# --- the option -------------------------------------------------------------------------------------------------------

TINY = [
    f"--set={key}={value}"
    for key, value in {
        "model.width": 16,
        "model.attention_heads": 2,
        "model.feedforward": 16,
        "train.epochs": 1,
        "train.batch_size": 100,
    }.items()
]


def said(capsys, *words):
    from vlbench.cli import main

    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


def test_what_compiling_needs_is_said_before_anything_is_trained(workspace, capsys, monkeypatch):
    words = ["train", "videolights_quick", "--compile", "--device", "cpu", "--executor", "inline"]
    code, _, err = said(capsys, *words)
    assert code == 2 and "--compile: steps are compiled for batches of one shape" in err
    assert "add --set train.padding=split" in err
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr("vlbench.train.step.why_no_compiler", lambda: "there is no C++ compiler")
    code, _, err = said(capsys, *words, "--set", "train.padding=split")
    assert code == 2 and "there is no C++ compiler" in err and "g++" in err
    monkeypatch.setattr("vlbench.train.step.why_no_compiler", lambda: None)
    code, _, err = said(capsys, *words, "--set", "train.padding=split", "--pack", "2")
    assert code == 2 and "a pack is not compiled" in err
    assert not list((workspace / ".vlbench").glob("cells/*/*/events.jsonl"))


def test_how_steps_were_carried_out_is_recorded_beside_the_result(workspace, capsys, monkeypatch):
    monkeypatch.setattr(step_module, "machine_code", lambda loss_of: loss_of)
    words = ["train", "videolights_quick", "--device", "cpu", "--executor", "inline", *TINY]
    words += ["--set", "train.padding=split"]
    said(capsys, *words, "--compile")
    (told,) = [
        json.loads(path.read_text())
        for path in workspace.glob(".vlbench/cells/*/*/made_by.json")
        if "step" in path.read_text()
    ]
    assert told["step"] == "compiled"
    before = len(list(workspace.glob(".vlbench/cells/*/*/record.json")))
    said(capsys, *words)  # the same cell: how it was trained is no part of it
    assert len(list(workspace.glob(".vlbench/cells/*/*/record.json"))) == before == 2


# --- the real compiler ------------------------------------------------------------------------------------------------

ALONE = """
import json, sys, tempfile
from pathlib import Path
from tests.unit.test_step import CPU, made_compiled, split, stepper, trained, variant
from vlbench.train.loop import fit

alike = [trained(made) for made in (stepper("place by place"), made_compiled())]
apart = sum(float((a - b).square().sum()) for a, b in zip(*(found[1].values() for found in alike), strict=True))
begun = stepper("place by place").model.state_dict().values()
gone = sum(float((a - b).square().sum()) for a, b in zip(alike[0][1].values(), begun, strict=True))
chosen, scores = variant(train__epochs=3, train__eval_every=3), {}
for compiled in (False, True):
    for seed in (1, 2, 3):
        given = {"seed": seed, "device": CPU, "folder": Path(tempfile.mkdtemp()), "log": lambda _: None}
        found = fit(chosen, split(), split(), **given, compiled=compiled)
        scores.setdefault(found.step, []).append(dict(found.summary))
print(json.dumps({"losses": [found[0] for found in alike], "apart": apart / gone, "scores": scores}))
"""


def made_compiled():
    chosen = variant()
    recipe, model = Recipe.of(chosen.recipe), build(chosen, split(), seed=3)
    criterion = Criterion.of(chosen, split().dataset.trains)
    return make_stepper(model, criterion, make_optimizer(model, recipe), recipe, CPU, queries=150, compiled=True)


@pytest.fixture(scope="module")
def compiled_alone():
    """From a process of its own: a compiler cannot follow the shape checks of this one."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(step_module.why_no_compiler() is not None, reason="needs a C++ compiler")
def test_compiled_steps_train_alike(compiled_alone):
    eager, compiled = compiled_alone["losses"]
    assert compiled == pytest.approx(eager, rel=1e-4, abs=1e-5)
    assert compiled_alone["apart"] < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(step_module.why_no_compiler() is not None, reason="needs a C++ compiler")
def test_compiling_moves_scores_less_than_seeds_do(compiled_alone):
    scores = compiled_alone["scores"]
    for name in ("tune/last/mr-map", "tune/last/hd-map"):
        eager, compiled = ([summary[name] for summary in scores[way]] for way in ("eager", "compiled"))
        moved = abs(np.mean(np.subtract(compiled, eager)))
        assert moved <= max(np.std(eager, ddof=1), 0.005), name
