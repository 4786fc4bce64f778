"""Protects the promise of a report: its numbers come from its cells, and a changed number or cell is found and named."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from tests.unit.report_lattice import lattice_arms, lattice_plan
from tests.unit.report_store import build_store, make_scores
from vlbench.canon import digest_file
from vlbench.cli.report import report
from vlbench.errors import PlanError, VlbenchError
from vlbench.report.verify import verify
from vlbench.report.write import write, write_all

ARMS = {"baseline": 0.05, "without FRA": 0.0}


@pytest.fixture
def made(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    write(store, "ablate-fra", tmp_path / "out")
    return store, tmp_path / "out"


def folder_of(store, arm, seed, kind="score"):
    plan = store.load_plan("ablate-fra")
    (entry,) = [entry for entry in plan["arms"] if entry["name"] == arm]
    return store.folder(entry["cells"][seed][kind])


def test_a_fresh_report_is_as_the_store_has_it(made):
    found = verify(made[0], "ablate-fra", made[1])
    assert found.problems == () and found.cells == 12 and found.files == 19
    assert found.numbers == 2 * (2 * 4 * 4 + 4 * 6)  # checkpoints x (arms x metrics x 4 values + rows x 6 values)
    assert found.line.endswith("all as the store has them")


def test_a_lattice_and_a_study_with_holes_verify_too(tmp_path):
    arms = lattice_arms(["fra", "bicmf"])
    scores = make_scores(dict.fromkeys(arms.values(), 0.0))
    store = build_store(
        tmp_path / "a", scores, extra=lattice_plan(["fra", "bicmf"]), parameters=dict.fromkeys(scores, 9)
    )
    write(store, "ablate-fra", tmp_path / "out-a")
    assert not verify(store, "ablate-fra", tmp_path / "out-a").problems
    holes = build_store(tmp_path / "b", make_scores(ARMS), failed={("without FRA", 1): "the loss is nan"})
    write(holes, "ablate-fra", tmp_path / "out-b", allow_missing=True)
    assert not verify(holes, "ablate-fra", tmp_path / "out-b").problems


def test_a_changed_number_is_named_with_the_one_of_the_store(made):
    store, out = made
    path = out / "ablate-fra/results.json"
    content = json.loads(path.read_text())
    row = content["checkpoints"]["selected"]["primary"][0]
    right = row["difference"]
    row["difference"] = 9.99
    path.write_text(json.dumps(content))
    problems = verify(store, "ablate-fra", out).problems
    assert "results.json: changed after it was written" in problems
    (named,) = [problem for problem in problems if "difference is 9.99" in problem]
    assert named.startswith("results.json: selected, primary, without FRA, mr-map") and f"{right:.8g}"[:7] in named


@pytest.mark.parametrize("name", ["comparison.csv", "manifest.json"])
def test_a_number_is_found_even_where_the_digests_were_made_to_fit(made, name):
    store, out = made
    manifest = out / "ablate-fra/manifest.json"
    content = json.loads(manifest.read_text())
    if name == "manifest.json":
        content["numbers"][0]["value"]["points"] += 1
    else:
        path = out / "ablate-fra" / name
        mean = next(n for n in content["numbers"] if (n["number"], n["arm"]) == ("mean", "baseline"))["value"]["points"]
        assert repr(mean) in path.read_text()
        path.write_text(path.read_text().replace(repr(mean), "77.7", 1))
        content["files"][name] = digest_file(path)
    manifest.write_text(json.dumps(content))
    (problem,) = verify(store, "ablate-fra", out).problems
    assert problem.startswith(f"{name}: selected") and "the store gives" in problem


@pytest.mark.parametrize("name", ["report.md", "comparison.tex", "index.html", "figures/runs.svg"])
def test_other_files_are_held_against_their_digests(made, name):
    store, out = made
    path = out / "ablate-fra" / name
    path.write_text(path.read_text() + " ")
    assert verify(store, "ablate-fra", out).problems == (f"{name}: changed after it was written",)
    path.unlink()
    assert verify(store, "ablate-fra", out).problems == (f"{name}: gone",)


def test_a_changed_cell_is_named(made):
    store, out = made
    path = folder_of(store, "without FRA", 2) / "queries.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    problems = verify(store, "ablate-fra", out).problems
    assert f"score {path.parent.name} (without FRA, seed 2): queries.parquet is not what the report was made from" in (
        problems
    )
    assert any(problem.startswith("the numbers cannot be computed") for problem in problems)


def test_scores_that_were_replaced_with_their_record_change_the_numbers(made, tmp_path):
    store, out = made
    target, source = folder_of(store, "without FRA", 2), folder_of(store, "baseline", 0)
    shutil.copy(source / "queries.parquet", target / "queries.parquet")
    record = json.loads((target / "record.json").read_text())
    record["files"]["queries.parquet"] = digest_file(target / "queries.parquet")
    (target / "record.json").write_text(json.dumps(record))
    problems = verify(store, "ablate-fra", out).problems
    assert f"score {target.name} (without FRA, seed 2): its record is another one" in problems
    assert any(p.startswith("manifest.json: selected, difference, without FRA, mr-map, points is") for p in problems)
    assert not any("mean, baseline" in problem for problem in problems)


def test_a_cell_that_is_gone_and_a_plan_that_changed_are_named(made):
    store, out = made
    plan = store.load_plan("ablate-fra")
    store.save_plan("ablate-fra", plan | {"margin": 2.0})
    assert "plan: the study was planned anew after the report was written" in verify(store, "ablate-fra", out).problems
    shutil.rmtree(folder_of(store, "baseline", 1))
    problems = verify(store, "ablate-fra", out).problems
    assert any("(baseline, seed 1): queries.parquet is gone" in problem for problem in problems)
    assert any("1 of 6 runs missing" in problem for problem in problems)


def test_what_cannot_be_verified_is_said(made, tmp_path):
    store, out = made
    with pytest.raises(PlanError, match="no report to verify.*vlbench report --study ablate-fra"):
        verify(store, "ablate-fra", tmp_path / "nowhere")
    path = out / "ablate-fra/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(PlanError, match="the report is of format 1"):
        verify(store, "ablate-fra", out)


def test_the_command_verifies_all_or_one_and_exits_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "store"))
    build_store(tmp_path / "store", make_scores(ARMS), study="ablate-other", question="Other?")
    write_all(build_store(tmp_path / "store", make_scores(ARMS)), tmp_path / "reports")

    def run(*arguments):
        return CliRunner().invoke(report, arguments, standalone_mode=False)

    done = run("--verify")
    assert done.return_value == 0 and done.stdout.count("all as the store has them") == 2
    (tmp_path / "reports/ablate-fra/report.md").write_text("better")
    assert run("--verify", "ablate-other").return_value == 0
    done = run("--verify", "ablate-fra")
    assert done.return_value == 1 and "report.md: changed after it was written" in done.stderr
    assert "1 difference" in done.stdout and run("--verify", "--study", "ablate-fra").return_value == 1
    content = json.loads(run("--verify", "--json").stdout)["reports"]
    assert [(one["study"], len(one["problems"])) for one in content] == [("ablate-fra", 1), ("ablate-other", 0)]
    assert isinstance(run("--verify", "ablate-f").exception, VlbenchError)
    assert isinstance(run("--verify", "--watch").exception, PlanError)
