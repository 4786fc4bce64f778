"""Protects where time is said to go: a part counts its own time and no other's, and costs nothing without a clock."""

import time

import pytest

from vlbench.train.phases import OTHER, Clock, phase, timed


def _work(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_part_does_not_count_the_parts_inside_it():
    clock = Clock()
    with clock.running():
        with phase("losses"):
            _work(0.03)
            with phase("matcher"):
                _work(0.06)
            _work(0.03)
        _work(0.02)
    assert clock.parts["losses"].wall == pytest.approx(0.06, rel=0.3)
    assert clock.parts["matcher"].wall == pytest.approx(0.06, rel=0.3)
    assert clock.parts[OTHER].wall == pytest.approx(0.02, rel=0.5)
    assert {name: spent.times for name, spent in clock.parts.items()} == {OTHER: 1, "losses": 1, "matcher": 1}


def test_the_parts_are_the_whole():
    clock, before = Clock(), time.perf_counter()
    with clock.running():
        for item in timed("data", range(3)):
            with phase("forward"):
                _work(0.005 * item)
    passed = time.perf_counter() - before
    assert sum(spent.wall for spent in clock.parts.values()) == pytest.approx(passed, rel=0.1)


def test_items_are_passed_on_and_their_making_is_counted():
    def slow():
        for item in range(3):
            _work(0.02)
            yield item

    clock = Clock()
    with clock.running():
        assert list(timed("data", slow())) == [0, 1, 2]
    assert clock.parts["data"].wall == pytest.approx(0.06, rel=0.3)


def test_waiting_is_wall_time_and_not_processor_time():
    clock = Clock()
    with clock.running(), phase("logging"):
        time.sleep(0.05)
    assert clock.parts["logging"].cpu < 0.03 < 0.05 <= clock.parts["logging"].wall


def test_the_device_is_waited_for_at_both_ends_of_a_part():
    waited = []
    clock = Clock(settle=lambda: waited.append(len(waited)))
    with clock.running(), phase("forward"):
        inside = len(waited)
    assert inside == 2 and len(waited) == 4  # the clock's own beginning and end, and the part's


def test_without_a_clock_parts_are_passed_through():
    with phase("forward"):
        assert list(timed("data", "ab")) == ["a", "b"]
    clock = Clock()
    with clock.running():
        pass
    with phase("forward"):
        pass
    assert "forward" not in clock.parts


def test_an_error_ends_the_part_and_the_clock():
    clock = Clock()
    with pytest.raises(ValueError, match="bad"), clock.running(), phase("forward"):
        raise ValueError("bad")
    with phase("backward"):
        pass
    assert set(clock.parts) == {OTHER, "forward"}
