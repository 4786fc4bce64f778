"""Protects what is shown while work runs: who runs, how far, how long the rest takes, and that both faces agree."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from vlbench.cli import view
from vlbench.cli.view import MANY, STOPPING, Board, Job, Lines, Live, watch
from vlbench.studies.conduct import Moment


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def board(number=4, *, epochs=10, groups=("a",), **kwargs):
    clock = Clock()
    jobs = [
        Job(f"k{i}", f"arm {groups[i % len(groups)]}  seed {i}", groups[i % len(groups)], epochs) for i in range(number)
    ]
    return Board(jobs, ["mr-map", "hd-map"], clock=clock, **kwargs), clock


def epoch(number, seconds, epochs=10, **more):
    return {"event": "epoch", "epoch": number - 1, "epochs": epochs, "seconds": seconds, **more}


TUNE = {"mr-map": 0.314, "hd-map": 0.5211, "mr-r1@0.5": 0.6}


def test_nothing_is_promised_before_anything_was_measured():
    known, _ = board()
    assert known.left_s() is None and known.counts == "0 of 4 done, 4 waiting  0s"


def test_the_rest_is_computed_from_measured_epochs_and_workers():
    """Four cells of ten epochs at 2 s, two at once: 20 s each, so 40 s; one second per worker has passed."""
    known, clock = board(workers=2)
    known.epoch("k0", epoch(1, 2.0))
    known.epoch("k1", epoch(1, 2.0))
    assert known.left_s() == pytest.approx(18 + 20)
    clock.now += 1
    assert known.left_s() == pytest.approx(17 + 20)
    assert known.run_left_s("k0") == pytest.approx(17)


def test_waiting_cells_go_to_the_worker_that_is_free_first():
    known, _ = board(3, workers=2)
    known.epoch("k0", epoch(9, 9.0))
    known.epoch("k1", epoch(1, 1.0))
    assert known.left_s() == pytest.approx(max(1 + 10, 9))


def test_what_comes_after_the_last_epoch_is_measured_too():
    known, clock = board(2, workers=1)
    known.epoch("k0", epoch(10, 20.0))
    clock.now += 5  # scored for 5 s
    known.end("k0", "done")
    assert known.left_s() == pytest.approx(20 + 5)


def test_groups_have_their_own_pace_and_past_cells_stand_in_for_unmeasured_ones():
    known, _ = board(2, groups=("fast", "slow"), past={"slow": 30.0, "fast": 7.0}, workers=2)
    assert known.left_s() == pytest.approx(300)
    known.epoch("k0", epoch(1, 1.0))
    assert known.run_left_s("k0") == pytest.approx(9), "measured now, whatever it took in the past"
    assert known.left_s() == pytest.approx(300)
    known.end("k1", "failed")
    assert known.left_s() == pytest.approx(9)


def test_a_group_without_any_measure_takes_the_median_of_the_others():
    known, _ = board(2, groups=("one", "two"), workers=1)
    known.epoch("k0", epoch(5, 10.0))
    assert known.left_s() == pytest.approx(5 * 2 + 10 * 2)


def test_counts_add_up_through_failures_and_second_tries():
    known, _ = board(5)
    known.epoch("k0", epoch(10, 1.0))
    known.end("k0", "done")
    known.epoch("k1", epoch(1, 1.0))
    known.end("k1", "failed")
    known.epoch("k2", epoch(3, 1.0))
    known.end("k2", "again")
    known.epoch("k3", epoch(3, 1.0))
    assert known.counts.startswith("1 of 5 done, 1 failed, 1 running, 2 waiting  ")


def test_a_pause_at_a_rung_is_the_end_of_the_job():
    known, _ = board(1, epochs=4)
    known.epoch("k0", epoch(3, 3.0, epochs=10))
    assert known.running["k0"].epochs == 4 and known.left_s() == pytest.approx(1)


def test_a_cell_that_says_nothing_is_told_and_promises_no_less():
    """It waits for the others of its round, or it hangs: of the open epoch no more than all can be over."""
    known, clock = board(1, workers=1)
    known.epoch("k0", epoch(4, 8.0))
    clock.now += 59
    assert known.quiet_s("k0") is None and known.left_s() == known.run_left_s("k0") == pytest.approx(10)
    clock.now += 2
    assert known.quiet_s("k0") == pytest.approx(61)
    assert "quiet for 1m01s" in drawn(Live(known))[0]


def test_pruned_trials_are_counted_apart():
    known, _ = board(2)
    known.epoch("k0", epoch(4, 4.0))
    known.end("k0", "pruned")
    assert known.counts.startswith("0 of 2 done, 1 pruned, 1 waiting") and known.left_s() == pytest.approx(10)


def test_metrics_stay_between_evaluations():
    known, _ = board(1)
    known.epoch("k0", epoch(2, 2.0, tune=TUNE, loss={"total": 3.2}))
    known.epoch("k0", epoch(3, 3.0, loss={"total": 3.1}))
    run = known.running["k0"]
    assert known.metrics(run) == "MR-mAP 31.40  HD-mAP 52.11 (tune)" and run.loss == 3.1


def test_lines_tell_every_event_once(capsys):
    known, clock = board(2, workers=1)
    lines = Lines(known)
    with lines:
        lines.epoch("k0", epoch(1, 2.0))
        lines.epoch("k0", epoch(2, 4.0, tune=TUNE, loss={"total": 41.23}))
        lines.end("k0", "again", "its worker process ended with signal SIGKILL; again from its checkpoint")
        lines.epoch("k0", epoch(10, 20.0))
        clock.now += 1
        lines.end("k0", "done")
        lines.tick(stopping=True)
        lines.tick(stopping=True)
        lines.end("k1", "failed", "the loss is nan")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[0/2] arm a  seed 0  epoch 2/10  loss 41.2  MR-mAP 31.40  HD-mAP 52.11 (tune)",
        "[0/2] arm a  seed 0  again: its worker process ended with signal SIGKILL; again from its checkpoint",
        "[1/2] arm a  seed 0  done  20s, about 21s left",
        STOPPING,
        "[2/2] arm a  seed 1  failed: the loss is nan",
    ]


def test_of_hundreds_of_cells_only_failures_and_a_count_are_told(capsys):
    known, clock = board(300, workers=4)
    lines = Lines(known)
    for number in range(MANY):
        lines.epoch(f"k{number}", epoch(10, 10.0, tune=TUNE))
        lines.end(f"k{number}", "done")
    assert capsys.readouterr().err == ""
    lines.end("k60", "failed", "the loss is nan")
    clock.now += 31
    lines.tick()
    lines.tick()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[51/300] arm a  seed 60  failed: the loss is nan"
    assert second.startswith("50 of 300 done, 1 failed, 249 waiting  31s, about 10m")


def drawn(face, height=24):
    console = Console(width=120, height=height, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    face.console = console
    console.print(face.table())
    console.file.close()
    return console.export_text().splitlines()


def test_the_table_shows_running_cells_and_the_whole():
    known, _ = board(3, workers=2)
    face = Live(known)
    known.epoch("k0", epoch(4, 8.0, tune=TUNE))
    known.epoch("k1", epoch(10, 20.0))
    first, second, whole = [line.rstrip() for line in drawn(face)]
    assert first.split() == [
        "arm",
        "a",
        "seed",
        "0",
        "epoch",
        "4/10",
        "MR-mAP",
        "31.40",
        "HD-mAP",
        "52.11",
        "(tune)",
        "about",
        "12s",
    ]
    assert second.split() == ["arm", "a", "seed", "1", "epoch", "10/10", "ending"]
    assert whole == "  0 of 3 done, 2 running, 1 waiting  0s, about 20s left"
    known.stopping = True
    assert drawn(face)[-1].strip() == STOPPING


def test_a_low_terminal_shows_what_fits():
    known, _ = board(40, workers=40)
    for number in range(40):
        known.epoch(f"k{number}", epoch(1, 1.0))
    lines = drawn(Live(known), height=10)
    assert len(lines) == 8 and lines[-2].strip() == "and 34 more running cells"


def test_watch_returns_failures_and_hands_the_tick_on(capsys):
    cells = [
        SimpleNamespace(arm=arm, seed=1, reason=reason, fit=SimpleNamespace(id=arm))
        for arm, reason in [("baseline", ""), ("odd", "the loss is nan")]
    ]
    arm = SimpleNamespace(variant=SimpleNamespace(recipe={"epochs": 2}))
    plan = SimpleNamespace(
        arms=[SimpleNamespace(name=name, variant=arm.variant) for name in ("baseline", "odd")],
        todo=cells,
        primary=("mr-map",),
    )
    ticks = []
    moments = [
        Moment("tick"),
        Moment("epoch", cells[0], epoch(1, 1.0, epochs=2, tune=TUNE)),
        Moment("stopping"),
        Moment("done", cells[0]),
        Moment("failed", cells[1]),
    ]
    assert watch(moments, plan, lambda: ticks.append(1)) == ["odd seed 1: the loss is nan"]
    assert len(ticks) == len(moments)
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "[0/2] baseline  seed 1  epoch 1/2  MR-mAP 31.40 (tune)"
    assert err[1] == STOPPING and err[2].startswith("[1/2] baseline  seed 1  done")
    assert err[3] == "[2/2] odd  seed 1  failed: the loss is nan"


def test_a_terminal_gets_the_table(monkeypatch):
    known, _ = board(1)
    monkeypatch.setattr(view.sys, "stderr", SimpleNamespace(isatty=lambda: True, write=lambda _: 0, flush=lambda: None))
    assert isinstance(view.face(known), Live)
