"""Protects where the time of a fit is said to go: every part is there, a whole fit follows from the recipe, and nothing
that was measured becomes part of a result."""

import json
import time
from dataclasses import replace

import pytest
import torch

from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.cli import main
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed
from vlbench.runs import timing
from vlbench.runs.cells import DataRef, Fit
from vlbench.runs.store import Store
from vlbench.runs.timing import Timing
from vlbench.train.batch import Split
from vlbench.train.phases import EPOCH, OTHER, STEP
from vlbench.train.profile import Part, Profile, gemm_peak, profile, training_flops
from vlbench.workspace import find

SMALL = {"model.width": 16, "train.batch_size": 4, "train.epochs": 6, "train.eval_every": 4}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    data = open_dataset("planted-quick", find(root))
    variant = edit(load_variant("videolights_quick", root), SMALL, origin="test").variant
    given = [
        Split(data, role, variant.features, Packed.open(data, role, variant.features, root)) for role in ("fit", "tune")
    ]
    given[1].queries = given[1].queries[:6]
    return variant, *given


@pytest.fixture(scope="module")
def measured(splits, tmp_path_factory):
    variant, training, tuning = splits
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = profile(
        variant,
        training,
        tuning,
        device=torch.device("cpu"),
        steps=2,
        folder=tmp_path_factory.mktemp("fit"),
        log=lambda _: None,
    )
    torch.set_num_threads(before)
    return found


def test_every_part_is_there_in_the_order_of_a_fit(measured):
    assert [part.name for part in measured.parts] == [*STEP, OTHER, *EPOCH]
    assert all(part.wall_s > 0 for part in measured.parts)
    assert measured.how == "eager" and measured.steps == 2 and measured.batch_size == 4


def test_a_whole_fit_follows_from_its_recipe(measured, splits):
    times = {part.name: part.times for part in measured.parts}
    assert times["forward"] == times["data"] == 6 * -(-len(splits[1]) // 4)
    assert times["evaluation"] == 2  # after epochs 4 and 6
    assert times["checkpoint"] == times["logging"] == 6
    assert sum(measured.share(part) for part in measured.parts) == pytest.approx(1)
    assert measured.fit_s == pytest.approx(sum(part.wall_s * part.times for part in measured.parts))


def test_the_parts_of_a_step_are_the_step(measured):
    parts = [part.wall_s for part in measured.parts if part.per == "step"]
    assert sum(parts) == pytest.approx(measured.step_s)


def test_a_device_that_works_behind_the_host_is_timed_without_being_waited_for(splits, tmp_path, monkeypatch):
    """The parts are those of steps with a wait at each; they are told as shares of steps without."""
    from vlbench.train import profile as module

    waits = []

    def settle():
        waits.append(1)
        time.sleep(0.01)

    monkeypatch.setattr(module, "_settle_of", lambda _: settle)
    found = profile(*splits, device=torch.device("cpu"), steps=2, folder=tmp_path, log=lambda _: None)
    assert len(waits) > 10
    parts = [part.wall_s for part in found.parts if part.per == "step"]
    assert sum(parts) == pytest.approx(found.step_s)
    assert found.busy is None and found.device_step_s == found.step_s
    assert found.fit_device_s == found.fit_s


def test_operations_are_those_of_forward_and_backward(splits):
    variant, training, _ = splits
    whole = training_flops(variant, training)
    assert whole == training_flops(variant, training)
    wider = edit(variant, {"model.width": 32}, origin="test").variant
    assert 2 * whole < training_flops(wider, training) < 4.5 * whole


def test_counting_operations_moves_no_stream_of_the_process(splits):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    training_flops(splits[0], splits[1])
    gemm_peak(torch.device("cpu"), "fp32")
    assert torch.equal(torch.rand(2), expected)


def test_what_fits_are_slowed_by_is_said_apart_from_their_own_work():
    part = Part("forward", "step", wall_s=0.4, cpu_s=0.1, times=10)
    found = Profile((part,), "eager", 5, 1, 8, 80, 0.4, 0.1, 1000, 1e6, 7, busy=0.25)
    assert (found.fit_s, found.fit_device_s) == (4.0, 1.0)
    assert found.share_of_peak == pytest.approx(1000 * 8 / 0.1 / 1e6)
    on_gpu = replace(found, busy=None)
    assert on_gpu.fit_device_s == 4.0


# --- what is kept -----------------------------------------------------------------------------------------------------

TIMING = Timing(
    "tiny", "toy", "cpu", "eager", 1, step_s=0.5, evaluation_s=3.0, epoch_s=1.0, queries=100, batch=32, flops=10
)


@pytest.fixture
def fit_of(tmp_path):
    base = load_variant("videolights_quick", tmp_path)

    def made(seed=0, data="1", **changes):
        settings = {key.replace("__", "."): value for key, value in changes.items()}
        variant = edit(base, settings, origin="test").variant if settings else base
        return Fit(variant, DataRef("toy", {"fit": data}, ("mr",)), seed)

    return made


def test_a_fit_is_its_steps_its_evaluations_and_what_else_an_epoch_takes():
    assert TIMING.fit_s({"epochs": 6, "eval_every": 4, "batch_size": 32}) == 6 * (4 * 0.5 + 1.0) + 2 * 3.0


@pytest.mark.parametrize(
    ("same", "changes"),
    [
        (True, {"seed": 7}),
        (True, {"train__epochs": 3}),
        (True, {"train__lr": 0.5}),
        (False, {"train__batch_size": 2}),
        (False, {"train__precision": "bf16"}),
        (False, {"model__width": 8}),
        (False, {"data": "2"}),
    ],
)
def test_a_profile_serves_fits_that_take_as_long_by_step(fit_of, tmp_path, same, changes):
    timing.keep(tmp_path, fit_of(), TIMING)
    assert (timing.find(tmp_path, fit_of(**changes), "cpu") is not None) == same


def test_a_profile_is_of_this_machine_and_this_kind_of_device(fit_of, tmp_path, monkeypatch):
    timing.keep(tmp_path, fit_of(), TIMING)
    timing.keep_peak(tmp_path, "cpu", "fp32", 1e11)
    assert timing.find(tmp_path, fit_of(), "cpu") == TIMING
    assert list(timing.all_of(tmp_path, "cpu")) == [TIMING]
    assert timing.peak_of(tmp_path, "cpu", "fp32") == 1e11
    assert timing.find(tmp_path, fit_of(), "cuda:1") is None and list(timing.all_of(tmp_path, "cuda")) == []
    monkeypatch.setattr(timing.socket, "gethostname", lambda: "elsewhere")
    assert timing.find(tmp_path, fit_of(), "cpu") is None and list(timing.all_of(tmp_path, "cpu")) == []
    assert timing.peak_of(tmp_path, "cpu", "fp32") is None


def test_a_torn_or_foreign_profile_is_no_profile(fit_of, tmp_path):
    timing.keep(tmp_path, fit_of(), TIMING)
    (path,) = (tmp_path / timing.FOLDER).glob("*.json")
    for text in ('{"step_s": 1', '{"step_s": 1}'):
        path.write_text(text)
        assert timing.find(tmp_path, fit_of(), "cpu") is None and list(timing.all_of(tmp_path, "cpu")) == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_table_per_variant_and_makes_no_cell(workspace, capsys):
    given = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as end:
        main(["profile", "videolights_quick", "--device", "cpu", "--steps", "1", "--json", *given])
    assert not end.value.code
    (found,) = json.loads(capsys.readouterr().out)["profiles"]
    assert [part["part"] for part in found["parts"]] == [*STEP, OTHER, *EPOCH]
    assert found["queries_per_second"] == pytest.approx(4 * found["steps_per_second"])
    assert 0 < found["share_of_peak"] < 1 and found["peak_bytes"] > 1e7
    store = Store(workspace / ".vlbench")
    assert store.cell_ids() == [] and len(list(timing.all_of(store.root, "cpu"))) == 1
    assert not list(store.root.glob("profile-*"))
