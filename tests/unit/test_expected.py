"""Protects what a plan says about its time: what was measured comes first, and every number says where it is from."""

import json
from dataclasses import replace

import pytest

from vlbench.cards.kinds import Arm
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.cli.view import paces
from vlbench.runs import timing
from vlbench.runs.cells import DataRef, Fit, score_of
from vlbench.runs.store import Store
from vlbench.runs.timing import Timing
from vlbench.status import Status
from vlbench.studies.plan import BY_PEAK, BY_SPEED, PROFILED, REACHED, TRAINED, Plan, Planned, Size, expected

PROFILE = Timing("videolights_quick", "toy", "cpu", "eager", 1, 0.5, 2.0, 1.0, queries=64, batch=16, flops=1_000_000)
RECIPE = {"train.epochs": 5, "train.eval_every": 5, "train.batch_size": 16}
PROFILED_S = 5 * (4 * 0.5 + 1.0) + 2.0


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def plan(store):
    """Two arms of two seeds, nothing run."""
    base = edit(load_variant("videolights_quick", store.root), RECIPE, origin="test").variant
    wide = edit(base, {"model.width": 128}, origin="test").variant
    arms = (Arm("baseline", base), Arm("wide", wide))
    cells = []
    for arm in arms:
        for seed in (1, 2):
            fit = Fit(arm.variant, DataRef("toy", {"fit": "1", "tune": "2"}, ("mr",)), seed)
            score = score_of(fit, DataRef("toy", {"report": "3"}, ("mr",)))
            cells.append(Planned(arm.name, seed, fit, score, Status.NEW))
    return Plan(
        study="s",
        kind="ablation",
        command="",
        question="",
        component="",
        adds=True,
        dataset="toy",
        split="val",
        arms=arms,
        seeds=(1, 2),
        primary=("mr-map",),
        margin=0.5,
        cells=tuple(cells),
        sizes={"baseline": Size(10, 1_000), "wide": Size(20, 3_000)},
        queries=64,
    )


def _finished(plan, store, arm, seconds, device="cpu"):
    """The plan with the first seed of an arm done."""
    cells = []
    for cell in plan.cells:
        if (cell.arm, cell.seed) == (arm, 1):
            store.prepare(cell.fit)
            made_by = {"seconds": seconds, "device": device}
            (store.folder(cell.fit.id) / "made_by.json").write_text(json.dumps(made_by))
            cell = replace(cell, status=Status.DONE)
        cells.append(cell)
    return replace(plan, cells=tuple(cells))


def _profiled(plan, store, arm="baseline", of=PROFILE):
    timing.keep(store.root, next(cell.fit for cell in plan.cells if cell.arm == arm), of)


def test_nothing_measured_is_nothing_said(plan, store):
    assert expected(plan, store, "cpu") is None
    assert paces(plan, None) == {}


def test_an_arm_that_was_profiled_is_expected_to_take_what_its_recipe_does(plan, store):
    for arm in ("baseline", "wide"):
        _profiled(plan, store, arm, replace(PROFILE, step_s=0.5 if arm == "baseline" else 1.0))
    found = expected(plan, store, "cpu")
    assert found.by_arm == {"baseline": PROFILED_S, "wide": PROFILED_S + 5 * 4 * 0.5}
    assert found.seconds == 2 * sum(found.by_arm.values()) and found.source == PROFILED
    assert paces(plan, found)["baseline"] == PROFILED_S / 5


def test_finished_fits_of_an_arm_count_more_than_its_profile(plan, store):
    _profiled(plan, store)
    found = expected(_finished(plan, store, "baseline", 40.0), store, "cpu")
    assert found.by_arm == {"baseline": 40.0, "wide": 40.0}
    assert found.seconds == 3 * 40.0 and found.source == "from 1 finished fit"


def test_a_profile_counts_more_than_the_fits_of_other_arms(plan, store):
    _profiled(plan, store, "wide")
    found = expected(_finished(plan, store, "baseline", 40.0), store, "cpu")
    assert found.by_arm == {"baseline": 40.0, "wide": PROFILED_S}
    assert found.source == f"from 1 finished fit; {PROFILED}"


def test_fits_of_another_kind_of_device_tell_nothing(plan, store):
    done = _finished(plan, store, "baseline", 40.0, device="cuda:0")
    assert expected(done, store, "cpu") is None
    assert expected(done, store, "cuda:1").by_arm["baseline"] == 40.0
    assert expected(done, store, "auto").by_arm["baseline"] == 40.0


def test_an_arm_that_was_never_measured_is_guessed_from_its_size(plan, store):
    _profiled(plan, store)
    found = expected(plan, store, "cpu")
    speed = PROFILE.flops * PROFILE.batch / PROFILE.step_s
    assert found.by_arm == {"baseline": PROFILED_S, "wide": TRAINED * 3_000 * 64 * 5 / speed}
    assert found.source == f"{PROFILED}; {BY_SPEED}"


def test_without_any_profile_the_peak_gives_a_rough_idea(plan, store):
    timing.keep_peak(store.root, "cpu", "fp32", 1e6)
    found = expected(plan, store, "cpu")
    assert found.by_arm["wide"] == TRAINED * 3_000 * 64 * 5 / (REACHED * 1e6) and found.source == BY_PEAK
    assert expected(plan, store, "cuda") is None


def test_auto_is_the_gpu_where_a_driver_lists_one(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert timing.kind_of("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert timing.kind_of("auto") == "cpu"
    monkeypatch.setattr(timing, "DRIVER", tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert timing.kind_of("auto") == "cpu"
