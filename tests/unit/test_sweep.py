"""Protects sweeps: one study per card and data whatever is interrupted, decisions on the tuning split alone, trials that
are cells, failures that are told, definitions that do not change silently, and a winner that is fitted again.
"""

import json
import shutil
from dataclasses import replace

import optuna
import pytest

from tests.unit.sweep_files import budget
from tests.unit.sweep_files import workspace as tiny
from vlbench.cards.library import load_sweep, load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import Dataset, open_dataset
from vlbench.errors import CardError, DataError, EnvironmentProblem, PlanError
from vlbench.runs.executors.inline import InlineExecutor
from vlbench.runs.store import Store
from vlbench.runs.work import Options, run_cells
from vlbench.studies.ablate import fitting_features
from vlbench.studies.rounds import conduct
from vlbench.studies.sweep import Trial, final_plan, fresh_seeds, front_of, load, make_sweep, unequal
from vlbench.workspace import find


def sweep_of(root, card="tiny", changes=None, **kwargs):
    data = open_dataset("tiny", find(root))
    base, _ = fitting_features(load_variant("tiny", root), data, None)
    base = edit(base, changes or {}, origin="test").variant
    found = load_sweep(card, root)
    return make_sweep(study="s", card=replace(found, **kwargs), base=base, dataset=data, command="vlbench sweep")


def go(root, sweep, **kwargs):
    store = Store(root / ".vlbench")
    executor = InlineExecutor(jobs=1, devices=["cpu"])
    return conduct(sweep, store, executor, Options(str(store.root), str(root)), **kwargs)


def outcome(root, sweep, **kwargs):
    for _ in go(root, sweep, **kwargs):
        pass
    return without_seconds(load(Store(root / ".vlbench"), sweep.study))


def without_seconds(found):
    trials = [{**trial, "seconds": 0, "cost": {}} for trial in found["trials"]]
    return {**found, "trials": trials, "storage": ""}


def only(sweep, key):
    """The sweep over one of its parameters."""
    dimensions = tuple(one for one in sweep.space.dimensions if one.key == key)
    return replace(sweep, space=replace(sweep.space, dimensions=dimensions))


def states(found):
    return [trial["state"] for trial in found["trials"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace whose sweep is through, and its outcome."""
    root = tiny(tmp_path_factory.mktemp("sweep") / "w")
    budget(root, trials=7, batch=3, pruner="percentile", more="percentile = 60.0\n")
    return root, outcome(root, sweep_of(root))


def copied(finished, tmp_path):
    root = tmp_path / "w"
    shutil.copytree(finished[0], root)
    return root


# --- one study ---


def test_trials_are_told_in_order_and_some_are_stopped(finished):
    _, found = finished
    assert [trial["number"] for trial in found["trials"]] == list(range(7))
    assert [trial["round"] for trial in found["trials"]] == [0, 0, 0, 1, 1, 1, 2]
    assert {"complete", "pruned"} == set(states(found))
    assert states(found)[:3] == ["complete"] * 3, "no pruning before two trials are complete"
    assert found["state"] == "trials" and found["final"] is None
    for trial in found["trials"]:
        assert trial["epochs"] == (3 if trial["state"] == "complete" else max(map(int, trial["rungs"])))
        assert (trial["value"] is None) == (trial["state"] != "complete")
    best = max((t for t in found["trials"] if t["value"] is not None), key=lambda t: t["value"])
    assert found["best"] == best["number"] and found["front"] == [best["number"]]
    assert set(found["importances"][0]["values"]) == {one["key"] for one in found["space"]}


def test_values_are_those_of_the_records(finished):
    root, found = finished
    store = Store(root / ".vlbench")
    for trial in found["trials"]:
        record = store.record(trial["cell"])
        if trial["state"] == "complete":
            assert trial["values"] == [record["summary"][f"tune/selected/{name}"] for name in found["objective"]]
            assert trial["value"] == sum(trial["values"]) / 2
        else:
            assert record is None and store.status(trial["cell"]) == "interrupted"
            assert (store.folder(trial["cell"]) / "checkpoint.safetensors").exists()
        tunes = {int(event["epoch"]) + 1: event["tune"] for event in store.events(trial["cell"])}
        for epoch, value in trial["rungs"].items():
            assert value == pytest.approx(sum(tunes[int(epoch)][name] for name in found["objective"]) / 2)


def test_there_are_no_score_cells(finished):
    store = Store(finished[0] / ".vlbench")
    assert {store.spec(cell)["identity"]["kind"] for cell in store.cell_ids()} == {"fit"}
    assert store.ledger() == []


@pytest.mark.parametrize(("pruner", "stride"), [("median", 4), ("hyperband", 7)])
def test_an_interrupted_study_ends_as_the_unbroken_one(pruner, stride, tmp_path):
    """Stopped again and again, at an epoch, between two verdicts, before the round is told."""
    roots = [tiny(tmp_path / name) for name in ("unbroken", "broken")]
    for root in roots:
        budget(root, pruner=pruner, trials=5, batch=2)
    expected = outcome(roots[0], sweep_of(roots[0]))
    sweep, stops = sweep_of(roots[1]), 0
    while (load(Store(roots[1] / ".vlbench"), "s") or {}).get("state") != "trials":
        news = go(roots[1], sweep)
        for count, _ in enumerate(news, start=1):
            if count == stride:
                break
        news.close()
        stops += 1
        assert stops < 60
    assert stops > 2
    assert outcome(roots[1], sweep) == expected


def test_a_lost_storage_is_rebuilt_from_the_cells(finished, tmp_path):
    root = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (root / ".vlbench" / "cells").rglob("events.jsonl")}
    (root / ".vlbench" / "optuna.db").unlink()
    assert outcome(root, sweep_of(root)) == finished[1]
    assert {path: path.stat().st_mtime_ns for path in (root / ".vlbench" / "cells").rglob("events.jsonl")} == before


def test_a_finished_study_reads_its_storage_and_needs_no_cells(finished, tmp_path):
    root = copied(finished, tmp_path)
    shutil.rmtree(root / ".vlbench" / "cells")
    assert outcome(root, sweep_of(root)) == finished[1]
    assert not (root / ".vlbench" / "cells").exists()


def test_the_storage_is_a_study_that_optuna_reads(finished):
    root, found = finished
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{root / '.vlbench' / 'optuna.db'}")
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    assert [words[trial.state.name] for trial in study.trials] == states(found)
    assert study.best_trial.number == found["best"] and study.user_attrs["digest"] == found["digest"]
    for trial, told in zip(study.trials, found["trials"], strict=True):
        assert trial.user_attrs["cell"] == told["cell"]
        assert trial.params.keys() == told["params"].keys()
        assert {str(step): value for step, value in trial.intermediate_values.items()} == told["rungs"]


def test_another_storage_is_another_place_for_the_same_study(finished, tmp_path):
    root = copied(finished, tmp_path)
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert outcome(root, sweep_of(root), url=url) == finished[1]
    assert len(optuna.load_study(study_name="s", storage=url).trials) == 7


@pytest.mark.parametrize("sampler", ["random", "qmc", "gp", "tpe"])
def test_every_sampler_repeats_itself(sampler, tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, sampler=sampler, pruner="none", trials=4, batch=2)
    (root / "models" / "tiny.toml").write_text(
        (root / "models" / "tiny.toml").read_text().replace("epochs = 3", "epochs = 1")
    )
    first = outcome(root, sweep_of(root))
    assert len({json.dumps(trial["params"]) for trial in first["trials"]}) > 1
    (root / ".vlbench" / "optuna.db").unlink()
    again = outcome(root, sweep_of(root))
    assert again == first
    if sampler in ("random", "qmc"):  # trials do not depend on those before them
        assert (
            outcome(root, sweep_of(root, batch=4), restart=True)["trials"][3]["params"] == first["trials"][3]["params"]
        )


def test_more_trials_begin_with_the_same_ones(finished, tmp_path):
    root = copied(finished, tmp_path)
    budget(root, trials=9, batch=3, pruner="percentile", more="percentile = 60.0\n")
    found = outcome(root, sweep_of(root), restart=True)
    assert found["trials"][:6] == finished[1]["trials"][:6]


# --- the tuning split alone ---


def test_the_reporting_split_is_not_opened(monkeypatch, tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, trials=3, batch=3)

    def guarded(method):
        def call(self, role, *rest):
            assert role != "report", "a sweep opened the reporting split"
            return method(self, role, *rest)

        return call

    for name in ("queries", "fingerprint", "missing"):
        monkeypatch.setattr(Dataset, name, guarded(getattr(Dataset, name)))
    with pytest.raises(AssertionError, match="opened"):
        open_dataset("tiny", find(root)).queries("report")
    assert states(outcome(root, sweep_of(root))) == ["complete"] * 3


# --- trials are cells ---


def test_an_equal_suggestion_is_the_same_cell(tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, sampler="random", pruner="none", trials=6, batch=3)
    found = outcome(root, only(sweep_of(root), "loss.giou.use"))
    cells = {trial["cell"] for trial in found["trials"]}
    assert len(cells) == 2 == len(Store(root / ".vlbench").cell_ids())
    by_cell = {cell: {t["value"] for t in found["trials"] if t["cell"] == cell} for cell in cells}
    assert all(len(values) == 1 for values in by_cell.values())


def test_a_pruned_fit_may_be_finished_by_anyone_and_stays_pruned_here(finished, tmp_path):
    root = copied(finished, tmp_path)
    store = Store(root / ".vlbench")
    cell = next(trial["cell"] for trial in finished[1]["trials"] if trial["state"] == "pruned")
    run_cells([(store.folder(cell) / "spec.json").read_text()], Options(str(store.root), str(root)))
    assert store.record(cell)["epochs"] == 3 and store.made_by(cell)["resumed"] > 0
    (root / ".vlbench" / "optuna.db").unlink()
    assert outcome(root, sweep_of(root)) == finished[1]


# --- failures ---


def failing(root, **kwargs):
    """A space in which half of the trials diverge."""
    text = (root / "models" / "tiny.toml").read_text().split("[search]")[0]
    (root / "models" / "tiny.toml").write_text(text + '[search]\n"train.lr" = { choices = [1e-3, 1e30] }\n')
    budget(root, sampler="random", pruner="median", trials=6, batch=3, **kwargs)
    return only(sweep_of(root), "train.lr")


def test_a_failed_trial_is_told_with_its_cause_and_the_study_goes_on(tmp_path):
    root = tiny(tmp_path / "w")
    found = outcome(root, failing(root, max_failures=6))
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    assert failed and len(failed) < 6
    assert all("is not finite" in trial["cause"] or "loss is nan" in trial["cause"] for trial in failed)
    assert all(trial["params"]["train.lr"] == 1e30 for trial in failed)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{root / '.vlbench' / 'optuna.db'}")
    assert [t.user_attrs["cause"] for t in study.trials if t.state.name == "FAIL"] == [t["cause"] for t in failed]
    (root / ".vlbench" / "optuna.db").unlink()
    times = Store(root / ".vlbench").failure(failed[0]["cell"])["times"]
    assert outcome(root, failing(root, max_failures=6)) == found
    assert Store(root / ".vlbench").failure(failed[0]["cell"])["times"] == times, "divergence is not tried again"


def test_too_many_failures_stop_the_sweep_with_the_common_cause(tmp_path):
    root = tiny(tmp_path / "w")
    sweep = failing(root, max_failures=0)
    with pytest.raises(PlanError, match=r"trials failed, \d of them with: .*not finite"):
        outcome(root, sweep)
    found = load(Store(root / ".vlbench"), "s")
    assert found["state"] == "stopped" and "failed" in found["stopped"]
    with pytest.raises(PlanError, match="the sweep stopped"):
        outcome(root, sweep)


def test_a_point_that_is_no_model_is_a_failed_trial(tmp_path):
    root = tiny(tmp_path / "w")
    text = (root / "models" / "tiny.toml").read_text().split("[search]")[0]
    choices = '"model.feedback.use" = { choices = ["none", "unijfm"] }'  # the task-coupled loss needs a feedback
    (root / "models" / "tiny.toml").write_text(f"{text}[search]\n{choices}\n")
    budget(root, sampler="random", pruner="none", trials=4, batch=4, max_failures=4)
    found = outcome(root, only(sweep_of(root), "model.feedback.use"))
    bad = [trial for trial in found["trials"] if trial["params"]["model.feedback.use"] == "none"]
    assert bad and all(trial["state"] == "failed" and trial["cell"] is None for trial in bad)
    assert all("task_coupled" in trial["cause"] for trial in bad)


# --- definitions ---

CHANGED = {
    "trials": ({"trials": 8}, "trials: 7 -> 8"),
    "sampler": ({"sampler": "random"}, "sampler: tpe -> random"),
    "pruner": ({"pruner": "hyperband"}, "pruner: percentile -> hyperband"),
    "objective": ({"objective": ("mr-map",)}, "objective: "),
    "decisions": ({"decisions": (1,)}, r"decisions: \[1, 2\] -> \[1\]"),
    "seed": ({"seed": 3}, "seed: 0 -> 3"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_definition_is_refused_and_named(what, finished, tmp_path):
    root, (kwargs, words) = copied(finished, tmp_path), CHANGED[what]
    with pytest.raises(PlanError, match=f"another definition .*{words}") as error:
        outcome(root, sweep_of(root, **kwargs))
    assert "--restart" in str(error.value)
    (root / ".vlbench" / "optuna.db").unlink()  # the store remembers too
    with pytest.raises(PlanError, match=words):
        outcome(root, sweep_of(root, **kwargs))


def test_a_changed_variant_or_space_is_refused(finished, tmp_path):
    root = copied(finished, tmp_path)
    with pytest.raises(PlanError, match=r"variant\.recipe\.weight_decay: 0.0001 -> 0.5"):
        outcome(root, sweep_of(root, changes={"train.weight_decay": 0.5}))
    text = (root / "models" / "tiny.toml").read_text()
    (root / "models" / "tiny.toml").write_text(text.replace("high = 3e-2", "high = 4e-2"))
    with pytest.raises(PlanError, match=r"space: train\.lr"):
        outcome(root, sweep_of(root))


def test_what_changes_no_trial_may_change(finished, tmp_path):
    root = copied(finished, tmp_path)
    assert outcome(root, sweep_of(root, max_failures=1, final_seeds=9)) == finished[1]


def test_a_study_is_conducted_by_one_process(finished, tmp_path):
    root = copied(finished, tmp_path)
    first = go(root, sweep_of(root, trials=8), restart=True)
    next(first)
    with pytest.raises(PlanError, match="is being run by another process"):
        next(go(root, sweep_of(root, trials=8)))
    first.close()


def test_a_study_that_someone_else_writes_to_is_left_alone(tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, pruner="none", trials=2, batch=1)
    news = go(root, sweep_of(root))
    next(news)
    optuna.load_study(study_name="s", storage=f"sqlite:///{root / '.vlbench' / 'optuna.db'}").ask()
    with pytest.raises(PlanError, match="someone else adds trials"):
        for _ in news:
            pass


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "is not the address of a database"),
        ("nosuch://host/db", "is not the address of a database"),
        ("sqlite:////nonexistent/folder/x.db", "cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(url, words, finished, tmp_path):
    root = copied(finished, tmp_path)
    with pytest.raises(EnvironmentProblem, match=words) as error:
        outcome(root, sweep_of(root), url=url)
    assert "\n" not in str(error.value)


def test_decisions_before_the_first_evaluation_are_refused(finished, tmp_path):
    root = copied(finished, tmp_path)
    with pytest.raises(CardError, match="epoch 1, but the tuning split is first scored after epoch 2"):
        sweep_of(root, changes={"train.eval_every": 2})
    assert sweep_of(root, changes={"train.epochs": 2}).decisions == (1,)


def test_an_objective_that_the_data_do_not_have(finished, tmp_path):
    root = copied(finished, tmp_path)
    with pytest.raises(DataError, match="no objective"):
        binary = (root / "vlbench.toml").read_text().replace("clip_s = 2.0", 'clip_s = 2.0\nlabels = "binary"')
        (root / "vlbench.toml").write_text(binary)
        sweep_of(root, objective=("hd-map",))


# --- several objectives, and what comes after ---


def trial(number, values):
    return Trial(number, 0, {}, state="complete" if values else "pruned", values=values)


def test_the_front_holds_what_no_other_trial_beats():
    values = [[0.1, 0.9], [0.5, 0.5], [0.4, 0.4], None, [0.9, 0.1], [0.5, 0.5], [0.9, 0.0]]
    assert [one.number for one in front_of([trial(n, v) for n, v in enumerate(values)])] == [0, 1, 4]
    assert front_of([]) == []


def test_objectives_kept_apart_have_a_front_and_no_best(tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, pruner="none", trials=5, batch=3, more="pareto = true\nfinal_arms = 2\n")
    sweep = sweep_of(root)
    found = outcome(root, sweep)
    assert found["best"] is None and found["front"]
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{root / '.vlbench' / 'optuna.db'}")
    assert {tuple(t.values) for t in study.best_trials} == {tuple(found["trials"][n]["values"]) for n in found["front"]}
    plan, final = final_plan(sweep, found, Store(root / ".vlbench"))
    assert len(plan.arms) == 1 + min(2, len(found["front"]))
    assert set(final["arms"].values()) <= set(found["front"])
    assert [claim.weights for claim in plan.claims] == [{arm.name: 1.0, "baseline": -1.0} for arm in plan.arms[1:]]


def test_the_winner_is_fitted_again_with_seeds_that_no_trial_had(finished, tmp_path):
    root = copied(finished, tmp_path)
    sweep = sweep_of(root)
    plan, final = final_plan(sweep, finished[1], Store(root / ".vlbench"))
    assert plan.study == "s-final" and plan.adds and plan.component == "tuning"
    assert [arm.name for arm in plan.arms] == ["baseline", "tuned"]
    assert plan.seeds == (1, 2) and final == {
        "study": "s-final",
        "arms": {"tuned": finished[1]["best"]},
        "seeds": [1, 2],
        "trial_seed": 0,
    }
    assert [str(one) for one in plan.arms[1].edits] == finished[1]["trials"][finished[1]["best"]]["edits"]
    (claim,) = plan.claims
    assert claim.plus == "tuned" and claim.minus == "baseline"


def test_seeds_of_the_final_fits_leave_out_the_trials_own(finished):
    card = sweep_of(finished[0]).card
    assert fresh_seeds(replace(card, seed=0, final_seeds=3)) == [1, 2, 3]
    assert fresh_seeds(replace(card, seed=2, final_seeds=3)) == [1, 3, 4]
    assert fresh_seeds(replace(card, final_seeds=0)) == []


def test_budgets_are_compared_by_what_they_spend():
    one = {"trials": 8, "epochs": 3, "sampler": "tpe", "parameters": 4, "batch": 2}
    assert unequal({"a": one, "b": {**one, "batch": 3}}) == []
    assert unequal({"a": one, "b": {**one, "epochs": 4}}) == ["epochs: 3 for a, 4 for b"]
