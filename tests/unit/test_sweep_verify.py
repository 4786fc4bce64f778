"""Protects what verifying a sweep means: its trials, its best and its refits are read from the cells and the storage
again, so a number that was changed anywhere between a fit and the page is found and named.
"""

from __future__ import annotations

import json

import optuna
import pytest
from click.testing import CliRunner

from tests.unit.sweep_store import build_sweep, make_trials, sweep_content
from vlbench.cli.report import report
from vlbench.errors import PlanError
from vlbench.report import sweep
from vlbench.report.verify import reports, verify
from vlbench.report.write import write_all

STUDY = "sweep-tiny"
SPACE = {
    "train.lr": optuna.distributions.FloatDistribution(1e-5, 1e-3, log=True),
    "model.width": optuna.distributions.IntDistribution(64, 256, step=64),
    "loss.hard.use": optuna.distributions.CategoricalDistribution(["none", "hard_pos_neg"]),
}


def fits(store, content):
    """Give every trial the cell that it comes from."""
    for trial in content["trials"]:
        if trial["cell"] is None:
            continue
        folder = store.folder(trial["cell"])
        folder.mkdir(parents=True)
        values = trial["values"] or []
        summary = dict(zip([f"tune/selected/{name}" for name in content["objective"]], values, strict=False))
        if trial["state"] == "complete":
            (folder / "record.json").write_text(json.dumps({"cell": trial["cell"], "kind": "fit", "summary": summary}))
        lines = []
        for epoch, value in trial["rungs"].items():
            tune = {name: value + shift for name, shift in zip(content["objective"], (-0.05, 0.05), strict=True)}
            lines.append(json.dumps({"event": "epoch", "epoch": int(epoch) - 1, "tune": tune}) + "\n")
        (folder / "events.jsonl").write_text("".join(lines))


def storage(path, content):
    """The same trials as Optuna keeps them."""
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name=STUDY, direction="maximize", sampler=optuna.samplers.RandomSampler(0)
    )
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for trial in content["trials"]:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[states[trial["state"]]],
                params=trial["params"],
                distributions=SPACE,
                values=None if trial["value"] is None else [trial["value"]],
            )
        )


@pytest.fixture
def made(tmp_path):
    content = sweep_content(make_trials(8, fail=(5,)), storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    store = build_sweep(tmp_path / "store", content, final=True)
    fits(store, content)
    storage(tmp_path / "optuna.db", content)
    sweep.write(store, STUDY, tmp_path / "out")
    return store, tmp_path / "out"


def edit(store, change):
    path = store.study_folder(STUDY) / "sweep.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_fresh_page_is_as_cells_and_storage_have_it(made):
    store, out = made
    found = verify(store, STUDY, out)
    assert found.problems == () and found.notes == ()
    assert found.cells == 7 + 12 and found.files > 5
    results = json.loads((out / STUDY / "results.json").read_text())
    assert found.numbers > len(results["best_so_far"]["objective"]) * 3
    assert found.line.endswith("all as the store has them") and reports(out) == [STUDY]


def test_a_value_that_its_fit_does_not_give_is_named(made):
    store, out = made
    cell = sweep.read(store, STUDY).best.cell
    path = store.folder(cell) / "record.json"
    record = json.loads(path.read_text())
    record["summary"]["tune/selected/mr-map"] -= 0.5
    path.write_text(json.dumps(record))
    problems = verify(store, STUDY, out).problems
    best = sweep.read(store, STUDY).best.number
    assert any(problem.startswith(f"trial {best}: its values are") for problem in problems)
    assert any(problem.startswith(f"the best trial is {best}, the cells give") for problem in problems)


def test_a_sweep_file_with_another_best_is_found_though_its_page_was_written_from_it(made):
    store, out = made
    complete = [trial.number for trial in sweep.read(store, STUDY).of_state("complete")]
    worst = min(complete, key=lambda number: sweep.read(store, STUDY).trial(number).value)
    edit(store, lambda content: content.update(best=worst, front=[worst]))
    sweep.write(store, STUDY, out)  # digests and numbers of the page all fit the file
    problems = verify(store, STUDY, out).problems
    assert any(problem.startswith(f"the best trial is {worst}, the cells give") for problem in problems)
    assert any(problem.startswith("the front is") for problem in problems) and len(problems) == 2


def test_the_storage_is_laid_beside(made, tmp_path):
    store, out = made

    def change(content):
        content["trials"][0]["params"]["train.lr"] = 5e-4
        content["trials"][3]["state"] = "failed"

    edit(store, change)
    sweep.write(store, STUDY, out)
    problems = verify(store, STUDY, out).problems
    assert any(problem.startswith("trial 0: train.lr is 0.0005, the storage has") for problem in problems)
    assert "trial 3: failed, but pruned in the storage" in problems
    edit(store, lambda content: content.update(storage="postgresql://user:***@host/sweeps"))
    (note,) = verify(store, STUDY, out).notes
    assert "password" in note
    edit(store, lambda content: content.update(storage=f"sqlite:///{tmp_path / 'gone.db'}"))
    (note,) = verify(store, STUDY, out).notes
    assert "there is no such file here" in note and not (tmp_path / "gone.db").exists()


def test_a_rung_and_a_cell_that_is_gone_are_named(made):
    store, out = made
    found = sweep.read(store, STUDY)
    pruned = found.of_state("pruned")[0]
    (store.folder(pruned.cell) / "events.jsonl").write_text("")
    (store.folder(found.best.cell) / "record.json").unlink()
    problems = verify(store, STUDY, out).problems
    assert any(problem.startswith(f"trial {pruned.number}: the value after 4 epochs is") for problem in problems)
    assert any(
        problem
        == f"trial {found.best.number}: its fit {found.best.cell} has no values on the tuning split in the store"
        for problem in problems
    )


def test_refits_are_read_from_their_records_again(made):
    store, out = made
    plan = store.load_plan(f"{STUDY}-final")
    path = store.folder(plan["arms"][1]["cells"][0]["fit"]) / "record.json"
    record = json.loads(path.read_text())
    record["summary"]["tune/selected/mr-map"] += 0.1
    path.write_text(json.dumps(record))
    problems = verify(store, STUDY, out).problems
    assert any("results.json: refits, tuned, tune, objective, 0 is" in problem for problem in problems)


def test_changed_numbers_of_the_page_and_unknown_kinds(made):
    store, out = made
    manifest = out / STUDY / "manifest.json"
    path = out / STUDY / "trials.csv"
    path.write_text(path.read_text().replace("complete", "complete ", 1))
    problems = verify(store, STUDY, out).problems
    assert "trials.csv: changed after it was written" in problems and any("state is" in one for one in problems)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"kind": "horoscope"}))
    with pytest.raises(PlanError, match='cannot verify a report of kind "horoscope"'):
        verify(store, STUDY, out)


def test_the_command_takes_sweeps_with_the_rest(made, tmp_path, monkeypatch):
    store, _ = made
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_STORE", str(store.root))
    write_all(store, tmp_path / "reports")
    done = CliRunner().invoke(report, ["--verify"], standalone_mode=False)
    assert done.return_value == 0 and done.stdout.count("all as the store has them") == 2
    edit(store, lambda content: content.update(best=0, front=[0]))
    done = CliRunner().invoke(report, ["--verify", STUDY], standalone_mode=False)
    assert done.return_value == 1 and "the best trial is 0" in done.stderr
