"""Protects what a cell is said to cost: seconds of its device, and a peak of memory that is its own."""

import time

import pytest

from vlbench.train import cost
from vlbench.train.cost import Cost, Meter, forget_peak


def test_two_stretches_add_their_seconds_and_keep_the_higher_peak():
    assert Cost(1.5, 100).plus(Cost(2.0, 70)) == Cost(3.5, 100)
    assert Cost().plus(Cost(2.0, 70)) == Cost(2.0, 70)


def test_cost_is_kept_under_two_names():
    assert Cost(1.23456, 2048).as_json() == {"device_seconds": 1.235, "peak_bytes": 2048}


def test_waiting_costs_no_processor_time_and_working_does():
    meter = Meter("cpu")
    time.sleep(0.2)
    waited = meter.lap()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    worked = meter.lap()
    assert waited.device_seconds < 0.1 <= worked.device_seconds


def test_a_processor_is_not_divided():
    meter = Meter("cpu", share=0.25)
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert meter.lap().device_seconds >= 0.1


def test_the_peak_counts_what_was_held_and_let_go():
    forget_peak("cpu")
    meter = Meter("cpu")
    before = meter.lap().peak_bytes
    held = bytearray(b"x") * 200_000_000
    del held
    assert meter.lap().peak_bytes - before > 150_000_000


def test_a_cell_does_not_inherit_the_peak_of_the_one_before():
    forget_peak("cpu")
    held = bytearray(b"x") * 200_000_000
    del held
    high = Meter("cpu").lap().peak_bytes
    forget_peak("cpu")
    fresh = Meter("cpu").lap().peak_bytes
    if not _peak_can_be_forgotten():
        pytest.skip("this system keeps one peak per process")
    assert high - fresh > 150_000_000


def test_where_the_system_tells_nothing_the_process_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_SELF", tmp_path / "nowhere")
    forget_peak("cpu")
    assert Meter("cpu").lap().peak_bytes > 1_000_000


def _peak_can_be_forgotten() -> bool:
    try:
        (cost._SELF / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def test_a_fit_that_is_paused_and_goes_on_adds_up_what_both_parts_took(tmp_path):
    import torch

    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit
    from vlbench.data.base import open_dataset
    from vlbench.data.packed import Packed
    from vlbench.train.batch import Split
    from vlbench.train.loop import fit
    from vlbench.workspace import find

    data = open_dataset("planted-quick", find(tmp_path))
    small = {"model.width": 16, "train.epochs": 2, "train.batch_size": 80}
    variant = edit(load_variant("videolights_quick", tmp_path), small, origin="test").variant
    given = [
        Split(data, r, variant.features, Packed.open(data, r, variant.features, tmp_path)) for r in ("fit", "tune")
    ]
    given[1].queries = given[1].queries[:8]  # a short evaluation
    events = []

    def go(until):
        return fit(variant, *given, seed=1, device=torch.device("cpu"), folder=tmp_path, log=events.append, until=until)

    assert go(1) is None
    done = go(None)
    costs = [Cost(event["device_seconds"], event["peak_bytes"]) for event in events]
    assert 0 < costs[0].device_seconds < costs[1].device_seconds
    assert done.cost.device_seconds == pytest.approx(costs[1].device_seconds, abs=1e-3)
    assert done.cost.peak_bytes >= costs[0].peak_bytes > 10_000_000
