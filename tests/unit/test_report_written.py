"""Protects that a report which stands as it would be written now is left alone, and that nothing stale ever stands: a
changed cell, plan, look, annotation, option, file of the report or line of code writes it anew.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.report_store import build_store, make_scores
from tests.unit.sweep_store import build_sweep, make_trials, sweep_content
from vlbench.report import figures, stamps, sweep, write, written
from vlbench.report.written import KEPT

STUDY = "ablate-fra"


@pytest.fixture
def store(workspace):
    return build_store(workspace / ".vlbench", make_scores({"baseline": 0.05, "without FRA": 0.0}), study=STUDY)


@pytest.fixture
def drawn(monkeypatch):
    """A name for every figure that was drawn."""
    names = []
    to_svg = figures.to_svg
    monkeypatch.setattr(figures, "to_svg", lambda plot: names.append(plot.name) or to_svg(plot))
    return names


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_is_the_same_and_draws_nothing(store, tmp_path, drawn):
    out = tmp_path / "out"
    first = [outcome.written for outcome in write.write_all(store, out)]
    before, times = contents(out), {path: path.stat().st_mtime_ns for path in (out / STUDY).rglob("*")}
    drawn.clear()
    assert [outcome.written for outcome in write.write_all(store, out)] == first and not drawn
    assert contents(out) == before and all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert write.write(store, STUDY, out) == list(first[0]) and not drawn


def one_cell(store, kind="score"):
    return store.folder(store.load_plan(STUDY)["arms"][1]["cells"][2][kind])


def new_record(store, out):
    path = one_cell(store) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": ["odd"]}))


def lost_weights(store, out):
    (one_cell(store, "fit") / "model.safetensors").write_bytes(b"x")


def new_predictions(store, out):
    (one_cell(store) / "predictions-selected.jsonl.gz").write_bytes(b"x")


def another_event(store, out):
    with (one_cell(store, "fit") / "events.jsonl").open("a") as stream:
        stream.write('{"event": "epoch", "epoch": 6, "loss": {"total": 1.0}}\n')


def another_plan(store, out):
    store.save_plan(STUDY, {**store.load_plan(STUDY), "margin": 3.0})


def a_look(store, out):
    store.note_look(STUDY, 2, 0.5)


def a_look_at_the_split(store, out):
    (store.root / "ledger.jsonl").write_text("\n")


def a_deleted_figure(store, out):
    (out / STUDY / "figures" / "runs.png").unlink()


def an_edited_page(store, out):
    page = out / STUDY / "index.html"
    page.write_text(page.read_text().replace("helps", "revolutionises") + " ")


def an_edited_manifest(store, out):
    (out / STUDY / "manifest.json").write_text("{}")


def a_torn_memory(store, out):
    (store.study_folder(STUDY) / KEPT).write_text('{"reports": ')


CHANGES = (
    new_record, lost_weights, new_predictions, another_event, another_plan, a_look, a_look_at_the_split,
    a_deleted_figure, an_edited_page, an_edited_manifest, a_torn_memory,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_a_report_follows_from_writes_it_anew(store, tmp_path, drawn, change):
    out = tmp_path / "out"
    write.write_all(store, out)
    drawn.clear()
    change(store, out)
    write.write_all(store, out)
    assert drawn
    fresh = tmp_path / "fresh"
    write.write_all(store, fresh)
    assert contents(out) == contents(fresh)


def test_other_code_another_version_and_another_form_write_it_anew(store, tmp_path, drawn, monkeypatch):
    out = tmp_path / "out"
    write.write(store, STUDY, out)
    drawn.clear()
    write.write(store, STUDY, out, spread="ci")
    assert drawn
    drawn.clear()
    write.write(store, STUDY, out, index=False, spread="ci")
    assert drawn
    drawn.clear()
    write.write(store, STUDY, out, index=False, spread="ci")
    assert not drawn
    monkeypatch.setattr(stamps, "code", lambda: ["another version"])
    write.write(store, STUDY, out, index=False, spread="ci")
    assert drawn


def test_the_code_of_a_report_is_every_file_of_the_package(tmp_path):
    names = [line[0] for line in stamps.code() if isinstance(line, list)]
    assert {"report/write.py", "report/templates/style.css", "stats/design.py"} <= set(names)
    assert all(len(line) == 4 for line in stamps.code() if isinstance(line, list))


def test_annotations_that_a_page_shows_are_part_of_it(store, workspace, drawn):
    table = '[datasets.toy]\nclip_s = 2.0\n[datasets.toy.splits]\ntest = "test.jsonl"\n'
    table += '[datasets.toy.video]\na = "a"\n[datasets.toy.text]\nb = "b"\n'
    (workspace / "vlbench.toml").write_text(table)
    (workspace / "test.jsonl").write_text("{}\n")
    write.write(store, STUDY, workspace / "out")
    drawn.clear()
    write.write(store, STUDY, workspace / "out")
    assert not drawn
    (workspace / "test.jsonl").write_text("{}\n{}\n")
    write.write(store, STUDY, workspace / "out")
    assert drawn
    drawn.clear()
    (workspace / "vlbench.toml").write_text(table.replace("2.0", "1.0"))
    write.write(store, STUDY, workspace / "out")
    assert drawn


def test_a_study_with_holes_is_always_written_anew(store, tmp_path, drawn):
    (one_cell(store) / "record.json").unlink()
    for _ in range(2):
        drawn.clear()
        write.write(store, STUDY, tmp_path / "out", allow_missing=True)
        assert drawn
    assert stamps.of_study(store, STUDY, allow_missing=True).whole == ""


def test_each_folder_has_a_memory_of_its_own_and_a_look_that_was_lost_is_noted_again(store, tmp_path, drawn):
    for name in ("a", "b"):
        write.write(store, STUDY, tmp_path / name)
    drawn.clear()
    (store.study_folder(STUDY) / "looks.json").unlink()
    for name in ("a", "b"):
        write.write(store, STUDY, tmp_path / name)
    assert not drawn and len(store.looks(STUDY)) == 1


def test_a_store_that_cannot_be_written_is_reported_all_the_same(store, tmp_path, drawn, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(written, "write_text", refused)
    for _ in range(2):
        drawn.clear()
        write.write(store, STUDY, tmp_path / "out")
        assert drawn


def test_sweeps_stand_until_a_trial_or_their_final_study_changes(workspace, tmp_path, drawn):
    content = sweep_content(make_trials(8))
    store = build_sweep(workspace / ".vlbench", content, final=True)
    out = tmp_path / "out"
    paths = sweep.write(store, "sweep-tiny", out)
    before = contents(out)
    drawn.clear()
    assert sweep.write(store, "sweep-tiny", out) == paths and contents(out) == before and not drawn
    plan = store.load_plan("sweep-tiny-final")
    record = store.folder(plan["arms"][1]["cells"][0]["fit"]) / "record.json"
    os.utime(record)
    sweep.write(store, "sweep-tiny", out)
    assert drawn and contents(out) == before
    drawn.clear()
    path = store.study_folder("sweep-tiny") / "sweep.json"
    path.write_text(path.read_text().replace('"best": ', '"best":  '))
    sweep.write(store, "sweep-tiny", out)
    assert drawn
    drawn.clear()
    record.unlink()
    for _ in range(2):
        drawn.clear()
        sweep.write(store, "sweep-tiny", out)
        assert drawn
