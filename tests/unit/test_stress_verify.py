"""Protects reports of stress studies and of retained benefits: their numbers are computed anew and compared, they stand
on the index, and a stress study that is watched is judged when its last score under noise is there."""

import json
import shutil

import pytest
from click.testing import CliRunner

from tests.unit.stress_store import build
from tests.unit.test_transfer import both
from vlbench.cli.report import report
from vlbench.report import stress_page, transfer
from vlbench.report.progress import look, watch
from vlbench.report.verify import verify
from vlbench.report.write import write_all
from vlbench.runs.store import Store


def falling(arm, stressor, level):
    return 0.1 if stressor in ("wrong_query", "query_blank") else 1 - 0.1 * level


@pytest.fixture
def stressed(tmp_path):
    store = build(tmp_path / "store", {"a": 0.5, "b": 0.4}, falling)
    stress_page.write(store, "stress-toy", tmp_path / "out")
    return store, tmp_path / "out"


@pytest.fixture
def moved(tmp_path):
    """The studies of the fits and of their scores elsewhere, by the names that ``ablate --score-on`` gives them."""
    store = both(tmp_path / "store", 0.15, 0.05)
    plan = store.load_plan("there")
    store.save_plan("own-on-there", plan | {"study": "own-on-there"})
    shutil.rmtree(store.study_folder("there"))
    return store


def test_a_stress_report_is_what_its_scores_give(stressed):
    store, out = stressed
    found = verify(store, "stress-toy", out)
    assert found.problems == () and found.numbers > 500
    assert found.cells == 2 * 3 * (2 + 2 * (2 * 5 + 3))  # arms, seeds; fit, clean score, draws of levels


def test_a_number_that_the_scores_do_not_give_is_found(stressed):
    store, out = stressed
    path = out / "stress-toy" / "results.json"
    content = json.loads(path.read_text())
    content["areas"][0]["area"] += 0.01
    path.write_text(json.dumps(content))
    lines = (out / "stress-toy" / "scores.csv").read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("b,gauss,family,3"))
    cells = lines[row].split(",")
    cells[6] = str(float(cells[6]) + 1)
    (out / "stress-toy" / "scores.csv").write_text("\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :]]))
    said = "\n".join(verify(store, "stress-toy", out).problems)
    assert "results.json: changed" in said and "areas" in said
    assert "b, gauss, 3, mr-map" in said.replace("/", ", ") or "gauss" in said


def test_other_scores_and_another_plan_are_found(stressed, tmp_path):
    store, out = stressed
    cell = store.load_plan("stress-toy")["spoiled"][0]
    path = store.folder(cell["score"]) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kept": 0.5}))
    store.save_plan("stress-toy", store.load_plan("stress-toy") | {"margin": 1.0})
    said = "\n".join(verify(store, "stress-toy", out).problems)
    assert "planned anew" in said
    assert f"score {cell['score']} (a, seed 1, gauss level 1 draw 0): its record is another one" in said


def test_scores_that_are_gone_leave_nothing_to_compute(stressed):
    store, out = stressed
    shutil.rmtree(store.folder(store.load_plan("stress-toy")["spoiled"][0]["score"]))
    said = verify(store, "stress-toy", out).problems
    assert any("cannot be computed" in line for line in said)


def test_a_report_of_what_is_retained_is_verified_and_on_the_index(moved, tmp_path):
    out = tmp_path / "out"
    assert transfer.transfers(moved) == {"own-to-there": ("own", "own-on-there")}
    outcomes = {outcome.study: outcome for outcome in write_all(moved, out)}
    assert outcomes["own-to-there"].problem is None
    index = (out / "index.html").read_text()
    assert 'href="own-to-there/index.html"' in index and "its benefit is smaller there" in index
    found = verify(moved, "own-to-there", out)
    assert found.problems == () and found.numbers > 10 and found.cells == 16
    path = out / "own-to-there" / "results.json"
    content = json.loads(path.read_text())
    content["rows"][0]["interaction"] = 0.0
    path.write_text(json.dumps(content))
    assert any("interaction" in line for line in verify(moved, "own-to-there", out).problems)


def test_studies_of_other_fits_make_no_report_of_what_is_retained(moved):
    plan = moved.load_plan("own-on-there")
    plan["arms"][0]["cells"][0]["fit"] = "f" * 12
    moved.save_plan("own-on-there", plan)
    assert transfer.transfers(moved) == {}


def test_the_command_verifies_each_kind_by_name(stressed, workspace):
    store, out = stressed
    shutil.copytree(store.root, workspace / ".vlbench")
    arguments = ["--verify", "stress-toy", "--out", str(out)]
    done = CliRunner().invoke(report, arguments, standalone_mode=False)
    assert done.exception is None and "all as the store has them" in done.output


# --- watched ----------------------------------------------------------------------------------------------------------


def trained(store: Store) -> Store:
    """Fits with records, as a study that ran has them."""
    for arm in store.load_plan("stress-toy")["arms"]:
        for cell in arm["cells"]:
            store.folder(cell["fit"]).mkdir(parents=True, exist_ok=True)
            store.finish(cell["fit"], {"cell": cell["fit"], "kind": "fit", "files": {}}, {})
    return store


def test_a_stress_study_is_complete_with_its_last_score_under_noise(tmp_path):
    store = trained(build(tmp_path / "store", {"a": 0.5}, falling, skip=[("a", "gauss", 5)]))
    found = look(store, "stress-toy")
    assert found.done == found.total == 3 and not found.complete and not found.stuck
    assert found.holes == ("72 of 78 scores under noise",)
    assert "72 of 78 scores under noise" in found.line
    for cell in store.load_plan("stress-toy")["spoiled"]:
        if store.record(cell["score"]) is None:
            store.folder(cell["score"]).mkdir(parents=True, exist_ok=True)
            store.fail(cell["score"], "out of memory", "", {})
    assert look(store, "stress-toy").stuck
    said = []
    problems = watch(store, tmp_path / "out", studies=["stress-toy"], say=said.append, pause=lambda _: None)
    assert len(problems) == 1 and "6 scores under noise failed" in problems[0]
    page = (tmp_path / "out" / "stress-toy" / "index.html").read_text()
    assert "72 of 78 scores under noise" in page and "more robust" not in page


def test_a_watched_stress_study_is_reported_when_it_is_complete(tmp_path):
    store = trained(build(tmp_path / "store", {"a": 0.5}, falling))
    said = []
    assert watch(store, tmp_path / "out", studies=["stress-toy"], say=said.append, pause=lambda _: None) == []
    assert said and "index.html" in said[-1] and (tmp_path / "out" / "stress-toy" / "results.json").exists()
