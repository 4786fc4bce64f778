"""Protects the index page of a full store: studies are judged once, and a kept line never outlives what it says."""

import json
import os

import pytest

from tests.unit.report_store import build_store, make_scores
from vlbench.report import entries, stamps, write


@pytest.fixture
def store(tmp_path):
    build_store(tmp_path / "store", make_scores({"baseline": 0.0, "none": -0.02}), study="ablate-a")
    return build_store(tmp_path / "store", make_scores({"baseline": 0.0, "none": 0.02}, salt=3), study="ablate-b")


@pytest.fixture
def judged(monkeypatch):
    """Names of the studies that were compared."""
    names = []

    def counting(frame):
        names.append(frame.study)
        return compare(frame)

    compare = write.compare
    monkeypatch.setattr(write, "compare", counting)
    return names


def test_a_second_index_is_the_same_and_judges_nothing(store, tmp_path, judged):
    first = write.write_index(store, tmp_path / "out").read_bytes()
    assert judged == ["ablate-a", "ablate-b"]
    assert write.write_index(store, tmp_path / "out").read_bytes() == first and len(judged) == 2


def test_of_complete_studies_it_does_not_matter_whether_runs_may_be_missing(store, tmp_path, judged):
    first = write.write_index(store, tmp_path / "out", allow_missing=True).read_bytes()
    assert write.write_index(store, tmp_path / "out").read_bytes() == first and len(judged) == 2


def test_a_link_is_made_for_the_page_that_is_there_now(store, tmp_path, judged):
    write.write_index(store, tmp_path / "out")
    (tmp_path / "out" / "ablate-a").mkdir()
    (tmp_path / "out" / "ablate-a" / "index.html").write_text("")
    judged.clear()
    assert 'href="ablate-a/index.html"' in write.write_index(store, tmp_path / "out").read_text()
    assert 'href="ablate-a/index.html"' not in write.write_index(store, tmp_path / "elsewhere").read_text()
    assert not judged


def plan_again(store):
    store.save_plan("ablate-a", {**store.load_plan("ablate-a"), "margin": 3.0})


def look(store):
    store.note_look("ablate-a", 3, 0.5)


def one_cell(store, kind):
    return store.folder(store.load_plan("ablate-a")["arms"][1]["cells"][2][kind])


def new_record(store):
    path = one_cell(store, "score") / "record.json"
    record = json.loads(path.read_text())
    store.finish(record["cell"], record, {})  # equal bytes, but written anew


def lost_record(store):
    (one_cell(store, "fit") / "record.json").unlink()


def another_event(store):
    with (one_cell(store, "fit") / "events.jsonl").open("a") as stream:
        stream.write("{}\n")


def other_scores(store):
    path = one_cell(store, "score") / "queries.parquet"
    content = path.read_bytes()
    path.with_name("new").write_bytes(content)
    stat = path.stat()
    path.with_name("new").replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time: another file all the same


@pytest.mark.parametrize(
    "change",
    [plan_again, look, new_record, lost_record, another_event, other_scores],
    ids=lambda change: change.__name__,
)
def test_what_a_line_follows_from_makes_it_anew(store, tmp_path, judged, change):
    write.write_index(store, tmp_path / "out", allow_missing=True)
    judged.clear()
    change(store)
    write.write_index(store, tmp_path / "out", allow_missing=True)
    assert judged == ["ablate-a"]


def test_other_code_judges_anew(store, tmp_path, judged, monkeypatch):
    write.write_index(store, tmp_path / "out")
    monkeypatch.setattr(stamps, "code", lambda: ["another version"])
    write.write_index(store, tmp_path / "out")
    assert len(judged) == 4


def test_lines_with_and_without_holes_are_told_apart(store, tmp_path, judged):
    lost_record(store)
    incomplete = write.write_index(store, tmp_path / "out", allow_missing=True).read_text()
    strict = write.write_index(store, tmp_path / "out").read_text()
    assert "Incomplete" in incomplete and "Incomplete" not in strict and "missing" in strict
    assert (
        write.write_index(store, tmp_path / "out").read_text() == strict
    )  # a problem is not kept, and looked for again


def test_a_torn_line_is_made_anew(store, tmp_path, judged):
    first = write.write_index(store, tmp_path / "out").read_bytes()
    (store.study_folder("ablate-a") / entries.KEPT).write_text('{"stamp": ')
    assert write.write_index(store, tmp_path / "out").read_bytes() == first
    assert judged == ["ablate-a", "ablate-b", "ablate-a"]
