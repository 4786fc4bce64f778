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
