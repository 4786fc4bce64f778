"""Protects packs: a member is what it would be alone, whatever happens to the others, and however often it is broken off."""

import contextlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlbench import catalog
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed
from vlbench.errors import StoreError
from vlbench.nn.losses import Criterion
from vlbench.testing.components import registered
from vlbench.train import pack as packs
from vlbench.train.batch import Split, to_inputs, to_targets
from vlbench.train.loop import CHECKPOINT, WEIGHTS, Course, evaluate, fit
from vlbench.train.pack import Left, Stack, measured, train
from vlbench.train.step import make_stepper
from vlbench.workspace import Workspace

CPU = torch.device("cpu")
SMALL = {
    "model.width": 16,
    "model.attention_heads": 2,
    "model.feedforward": 16,
    "model.dropout": 0.1,
    "train.padding": "split",
    "train.batch_size": 16,
    "train.epochs": 2,
}
# Rounding alone: gradients of one step, relative to the largest of the model; means of an epoch's losses, relative.
GRADIENTS, LOSSES = 1e-4, 1e-3


@cache
def variant(name="videolights_quick", **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return edit(load_variant(name, Path("/nowhere")), {**SMALL, **changes}, origin="test").variant


class Few(Split):
    """Three steps an epoch, the last one on a shorter batch."""

    def order(self, seed, epoch, batch_size, batching):
        first, second, third, *_ = super().order(seed, epoch, batch_size, batching)
        return [first, second, third[:5]]


@cache
def split():
    dataset = open_dataset("planted-quick", Workspace(Path("/nowhere"), Path("/nowhere"), {}))
    features = variant().features
    return Few(dataset, "tune", features, Packed.open(dataset, "tune", features, None))


class Member:
    """A fit of a pack, and what it leaves."""

    def __init__(self, folder, card, seed):
        self.folder, self.variant, self.seed, self.events = folder, card, seed, []
        folder.mkdir(parents=True, exist_ok=True)

    def open(self):
        return Course(
            self.variant, split(), split(), seed=self.seed, device=CPU, folder=self.folder, log=self.events.append
        )

    def alone(self, **options):
        return fit(
            self.variant,
            split(),
            split(),
            seed=self.seed,
            device=CPU,
            folder=self.folder,
            log=self.events.append,
            **options,
        )

    @property
    def weights(self):
        return load_file(self.folder / WEIGHTS["last"])

    @property
    def losses(self):
        return [event["loss"] for event in self.events]


def members(folder, *cards):
    """One member per (variant, seed)."""
    return {f"{at}": Member(folder / f"{at}", card, seed) for at, (card, seed) in enumerate(cards)}


def together(given, until=None, most=None):
    opened = {name: member.open for name, member in given.items()}
    return {ended.name: ended for ended in train(opened, device=CPU, until=until, most=most or len(opened))}


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first
    )


def close_losses(first, second):
    assert [list(losses) for losses in first] == [list(losses) for losses in second]
    for ours, theirs in zip(first, second, strict=True):
        assert ours == pytest.approx(theirs, rel=LOSSES, abs=1e-5)


# --- one step ---------------------------------------------------------------------------------------------------------


def gradients_alone(card, seed):
    """Clipped gradients of the first step, with the dropout that the fit would have."""
    course = Member(Path(f"{gradients_alone.folder}/{seed}"), card, seed).open()
    criterion = Criterion.of(card, split().dataset.trains)
    stepper = make_stepper(course.model, criterion, course.optimizer, course.recipe, CPU, queries=len(split()))
    batch = next(split().training(seed, 0, course.recipe.batch_size, padding="split"))
    stepper.run([(to_inputs(batch, CPU), to_targets(batch, CPU))], seed=seed, epoch=0, first=0)
    return {name: parameter.grad for name, parameter in course.model.named_parameters()}


def assert_first_step_is_the_same(tmp_path, cards):
    gradients_alone.folder = tmp_path / "alone"
    courses = [Member(tmp_path / f"{at}", card, seed).open() for at, (card, seed) in enumerate(cards)]
    stack = Stack(courses, CPU, now=courses)
    stack._step(next(stack._batches(0)), stack._begin(0))
    for at, (card, seed) in enumerate(cards):
        wanted = gradients_alone(card, seed)
        largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
        for name, gradient in wanted.items():
            ours = stack.parameters[name].grad
            if gradient is None:
                assert ours is None or not ours[at].any(), name
            else:
                assert float((ours[at] - gradient).abs().max()) <= GRADIENTS * largest, name


SLOTS = [
    (key, name)
    for key, name in registered()
    if not (key.startswith("loss.") and name == "none") and (key, name) != ("fusion", "bicmf-described")
]


@pytest.mark.parametrize(("key", "name"), SLOTS, ids=str)
def test_every_registered_component_can_be_batched(tmp_path, key, name):
    path = key if key.startswith("loss.") else f"model.{key}"
    changes = {f"{path}.use": name}
    if key == "loss.task_coupled" or key == "feedback":
        reads = catalog.feeders("task_coupled")
        if key == "feedback" and name not in reads:
            changes["loss.task_coupled.use"] = "none"
    card = edit(variant(), changes, origin="test").variant
    assert_first_step_is_the_same(tmp_path, [(card, 1), (card, 2)])


def test_bfloat16_is_batched_too(tmp_path):
    card = variant(train__precision="bf16")
    given = members(tmp_path, (card, 1), (card, 2))
    ended = together(given)
    assert all(one.outcome.epochs == 2 for one in ended.values())
    beside = Member(tmp_path / "alone", card, 1)
    beside.alone()
    assert given["0"].losses[0]["total"] == pytest.approx(beside.losses[0]["total"], rel=0.05)


# --- whole fits -------------------------------------------------------------------------------------------------------


def test_a_member_is_what_it_is_alone(tmp_path):
    given = members(tmp_path / "pack", (variant(), 1), (variant(), 2), (variant(), 3))
    ended = together(given)
    for name, member in given.items():
        alone = Member(tmp_path / name, variant(), member.seed)
        result = alone.alone()
        ours = ended[name].outcome
        assert ended[name].beside == ("0", "1", "2")
        assert (ours.parameters, ours.epochs, ours.weights.keys()) == (result.parameters, 2, result.weights.keys())
        close_losses(member.losses, alone.losses)
        for metric, value in result.summary.items():
            assert ours.summary[metric] == pytest.approx(value, abs=0.03), metric
        assert sorted(path.name for path in member.folder.iterdir()) == sorted(
            path.name for path in alone.folder.iterdir()
        )
        assert [event.keys() for event in member.events] == [event.keys() for event in alone.events]
        first, second = (load_file(one.folder / CHECKPOINT) for one in (member, alone))
        assert {key: (value.shape, value.dtype) for key, value in first.items()} == {
            key: (value.shape, value.dtype) for key, value in second.items()
        }
        moved = max(float((member.weights[key] - alone.weights[key]).abs().max()) for key in alone.weights)
        assert moved <= 2 * 6 * member.open().recipe.lr  # at most what the optimiser moves a weight of no gradient


def test_members_with_other_losses_share_a_pack(tmp_path):
    other = edit(
        variant(), {"loss.task_coupled.use": "none", "loss.margin.margin": 0.5, "loss.span.weight": 3.0}, origin="t"
    )
    cards = [
        (variant(), 1),
        (other.variant, 1),
        (edit(variant(), {"loss.hard_saliency.use": "none"}, origin="t").variant, 2),
    ]
    assert_first_step_is_the_same(tmp_path / "step", cards)
    given = members(tmp_path / "pack", *cards)
    assert all(one.beside == ("0", "1", "2") and one.outcome.epochs == 2 for one in together(given).values())
    for name, (card, seed) in zip(given, cards, strict=True):
        alone = Member(tmp_path / name, card, seed)
        alone.alone()
        close_losses(given[name].losses, alone.losses)
        untouched = [key for key in alone.weights if "feedback" in key]
        if card is other.variant:  # nothing reaches them: no gradient, no decay, no moments
            assert same_bits(*({key: one.weights[key] for key in untouched} for one in (given[name], alone)))
        assert load_file(given[name].folder / CHECKPOINT).keys() == load_file(alone.folder / CHECKPOINT).keys()


def test_labels_that_are_spoiled_by_seed_share_a_pack(tmp_path):
    family = next(entry.name for entry in catalog.corruptions.entries() if entry.facts["on"] == "label")
    card = variant(train__corruption=family, train__corruption_level=3)
    given = members(tmp_path / "pack", (card, 1), (card, 2))
    assert all(one.beside == ("0", "1") and one.outcome.epochs == 2 for one in together(given).values())
    alone = Member(tmp_path / "alone", card, 2)
    alone.alone()
    close_losses(given["1"].losses, alone.losses)


# --- what happens to one does not happen to the others ----------------------------------------------------------------


def test_a_member_that_diverges_leaves_and_disturbs_nobody(tmp_path):
    wild = edit(variant(), {"loss.span.weight": 1e38}, origin="test").variant
    quiet = members(tmp_path / "quiet", (variant(), 1), (variant(), 2))
    together(quiet)
    given = members(tmp_path / "pack", (variant(), 1), (wild, 3), (variant(), 2))
    ended = together(given)
    assert ended["1"].outcome == Left("a number is not finite in epoch 1")
    assert not given["1"].events and not (given["1"].folder / CHECKPOINT).exists()
    for ours, theirs in (("0", "0"), ("2", "1")):
        assert ended[ours].outcome.epochs == 2
        close_losses(given[ours].losses, quiet[theirs].losses)


def test_an_error_of_one_member_is_its_own(tmp_path):
    given = members(tmp_path, (variant(), 1), (variant(), 2))

    def full(event):
        raise StoreError("the store cannot be written")

    given["0"].events = type("Events", (), {"append": staticmethod(full)})()
    ended = together(given)
    assert isinstance(ended["0"].outcome, StoreError) and ended["1"].outcome.epochs == 2


def test_what_cannot_be_batched_is_left_to_be_run_alone(tmp_path, monkeypatch):
    def reads_a_number(self, *_):
        raise RuntimeError("vmap: it looks like you're calling .item() on a Tensor\nand more")

    monkeypatch.setattr(Stack, "_member", reads_a_number)
    ended = together(members(tmp_path, (variant(), 1), (variant(), 2)))
    assert [type(one.outcome) for one in ended.values()] == [Left, Left]
    assert ended["0"].outcome.reason.endswith("(RuntimeError: vmap: it looks like you're calling .item() on a Tensor)")


def test_a_pack_that_is_too_large_is_halved(tmp_path, monkeypatch):
    step, sizes = Stack._work, []

    def tight(self, *given):
        sizes.append(len(self.courses))
        if len(self.courses) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, *given)

    monkeypatch.setattr(Stack, "_work", tight)
    given = members(tmp_path, *((variant(train__epochs=1), seed) for seed in range(4)))
    ended = together(given)
    assert [one.beside for one in ended.values()] == [("0", "1"), ("0", "1"), ("2", "3"), ("2", "3")]
    assert sizes[0] == 4 and set(sizes[1:]) == {2}


def test_members_are_evaluated_in_one_pass_as_one_after_another(tmp_path):
    courses = [member.open() for member in members(tmp_path, *((variant(), seed) for seed in (1, 2, 3))).values()]
    stack = Stack(courses, CPU, now=courses)
    stack.epoch(0)
    stack.hand_back(courses)
    for course, scores in zip(courses[::2], stack.evaluate(courses[::2]), strict=True):
        alone = evaluate(course.model, split(), course.recipe, CPU)
        assert scores.values.keys() == alone.values.keys()
        for name, values in alone.values.items():
            moved = np.abs(np.nan_to_num(scores.values[name]) - np.nan_to_num(values))
            assert moved.max() < 0.05 and (moved > 1e-6).mean() < 0.02, name  # a rounded score may change its place
    assert courses[0].model.training


# --- breaking off and going on ----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_after(given, name, epochs):
    """A pack that is broken off between the files of one member and those of the next."""
    log, member = given[name].events.append, given[name]

    class Events(list):
        def append(self, event):
            log(event)
            if event["epoch"] + 1 == epochs:
                raise Killed

    member.events = Events()
    with pytest.raises(Killed):
        together(given)
    member.events = []


@pytest.mark.parametrize("at", ["0", "1"])
def test_a_pack_that_was_broken_off_ends_as_an_unbroken_one(tmp_path, at):
    cards = [(variant(train__epochs=3), seed) for seed in (1, 2, 3)]
    whole, broken = (members(tmp_path / name, *cards) for name in ("whole", "broken"))
    together(whole)
    killed_after(broken, at, 1)
    ended = together(broken)
    for name in whole:
        assert same_bits(broken[name].weights, whole[name].weights)
        first, second = (load_file(one[name].folder / CHECKPOINT) for one in (broken, whole))
        assert same_bits(first, second)
        assert ended[name].outcome.resumed == (1 if name <= at else 0)


def test_a_pause_keeps_checkpoints_and_goes_on(tmp_path):
    cards = [(variant(train__epochs=3), seed) for seed in (1, 2)]
    whole, paused = (members(tmp_path / name, *cards) for name in ("whole", "paused"))
    together(whole)
    assert [one.outcome for one in together(paused, until=2).values()] == [None, None]
    together(paused)
    assert all(same_bits(paused[name].weights, whole[name].weights) for name in whole)


def test_a_pack_finishes_what_was_begun_alone_and_the_other_way_round(tmp_path):
    card = variant(train__epochs=3)
    given = members(tmp_path / "pack", (card, 1), (card, 2))
    given["1"].alone(until=2)  # ahead: the other one catches up
    ended = together(given)
    assert [one.outcome.epochs for one in ended.values()] == [3, 3]
    again = members(tmp_path / "again", (card, 1), (card, 2))
    together(again, until=1)
    again["0"].alone()
    for member in (given["0"], given["1"], again["0"]):
        alone = Member(tmp_path / f"{member.seed}-{id(member)}", card, member.seed)
        alone.alone()
        assert len(member.losses) == 3
        close_losses(member.losses, alone.losses)


# --- how it is carried out --------------------------------------------------------------------------------------------


class Tape:
    """Records by keeping the step: everything of a recording but the recording itself."""

    def __init__(self):
        self.warmed = self.recorded = 0

    def warm(self, step):
        self.warmed += 1
        step()

    def record(self, step):
        self.recorded += 1
        return step


def test_a_recorded_pack_reads_what_changes_where_it_lies(tmp_path):
    card = variant(train__epochs=3, train__lr_drop=1)
    found = []
    for recorder in (None, Tape()):
        given = members(tmp_path / f"{recorder}", (card, 1), (card, 2))
        courses = [member.open() for member in given.values()]
        stack = Stack(courses, CPU, now=courses, recorder=recorder)
        losses = [stack.epoch(number) for number in range(3)]
        stack.hand_back(courses)
        found.append((losses, courses[1].model.state_dict()))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert [dict(one) for one in ours] == [pytest.approx(one, rel=1e-5) for one in theirs]
    moved = (found[0][1][name] - found[1][1][name] for name in found[0][1])
    assert max(float(difference.abs().max()) for difference in moved) < 1e-3  # the rate is a float32 there
    assert recorder.recorded == 1 and recorder.warmed == 2 * packs.WARM  # full batches, and the shorter last ones
    assert stack.how == "CUDA graph"


def test_a_pack_that_cannot_be_recorded_goes_on_and_says_so(tmp_path):
    class Broken(Tape):
        def record(self, step):
            raise RuntimeError("operation not permitted when stream is capturing")

    courses = [member.open() for member in members(tmp_path, (variant(), 1), (variant(), 2)).values()]
    stack = Stack(courses, CPU, now=courses, recorder=Broken())
    with pytest.warns(UserWarning, match="goes on without: operation not permitted"):
        losses = [stack.epoch(number) for number in range(3)]
    assert all(one is not None for epoch in losses for one in epoch)
    assert stack.how == "CUDA graph failed: operation not permitted when stream is capturing"


class FromTheHost(TorchDispatchMode):
    """Notes operations on the host's tensors, but for products with a number, which a device is told as it is."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        here = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
        here = [one for one in here if one.device.type == "cpu"]
        number = str(operation) in ("aten._to_copy.default", "aten.mul.Tensor", "aten.div.Tensor")
        if any(one.dim() or not number for one in here):
            self.found.add(str(operation))
        return out


def test_a_step_of_a_pack_neither_reads_its_device_nor_feeds_it(tmp_path, monkeypatch):
    """The device here holds shapes and no values: a recording of the step would hold all of it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    meta, courses = torch.device("meta"), [member.open() for member in members(tmp_path, (variant(), 1)).values()] * 2
    for course in courses:
        course.model.to(meta)
        course.optimizer = torch.optim.SGD(course.model.parameters())
    stack = Stack(courses, meta, now=courses)
    batch = next(split().training(3, 0, 16, padding="split"))
    inputs, targets = packs._stack([to_inputs(batch, meta)] * 2), packs._stack([to_targets(batch, meta)] * 2)
    words = torch.empty(2, stack.places.of(to_inputs(batch, meta)).draws, dtype=torch.int64, device=meta)
    with FromTheHost() as host:
        stack._work(inputs, targets, words)
    assert not host.found and stack.parameters["token.row"].grad.shape[0] == 2


def test_the_measured_size_is_the_last_one_that_gained(tmp_path, monkeypatch):
    seconds = {1: 1.0, 2: 1.2, 4: 2.3, 8: 4.0}
    monkeypatch.setattr(Stack, "pace", lambda self, number: seconds[len(self.courses)])
    courses = [member.open() for member in members(tmp_path, *((variant(), seed) for seed in range(8))).values()]
    assert measured(courses, CPU) == 2  # four take 0.575 each after 0.6: not worth it
    seconds[4] = 1.6
    assert measured(courses, CPU) == 4
    assert measured(courses[:3], CPU) == 2

    def tight(self, number):
        if len(self.courses) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds[len(self.courses)]

    monkeypatch.setattr(Stack, "pace", tight)
    assert measured(courses, CPU) == 2


def test_a_measurement_that_fails_leaves_it_to_training_to_say_why(tmp_path, monkeypatch):
    def reads_a_number(self, *_):
        raise RuntimeError("vmap: no")

    monkeypatch.setattr(Stack, "_member", reads_a_number)
    given = members(tmp_path, (variant(), 1), (variant(), 2))
    ended = list(train({name: one.open for name, one in given.items()}, device=CPU, until=None, most=None))
    assert [one.outcome.reason for one in ended] == ["it cannot be trained with others (RuntimeError: vmap: no)"] * 2


def test_a_measurement_leaves_the_fits_as_they_are(tmp_path):
    courses = [member.open() for member in members(tmp_path, (variant(), 1), (variant(), 2)).values()]
    before = [{name: value.clone() for name, value in course.model.state_dict().items()} for course in courses]
    assert measured(courses, CPU) in (1, 2)
    for course, weights in zip(courses, before, strict=True):
        assert same_bits(course.model.state_dict(), weights) and not course.optimizer.state
