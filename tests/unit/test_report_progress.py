"""Protects the error control of a study that is watched: progress and curves, and no comparison before it is complete."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from tests.unit.report_store import build_store, make_scores
from tests.unit.test_report_formats import Page
from vlbench.cli.report import report
from vlbench.errors import PlanError, StoreError
from vlbench.report.progress import WHY, look, page, watch

ARMS = {"baseline": 0.3, "without FRA": 0.0}


def unfinished(root, **options):
    """Seed 2 of one arm has trained two of six epochs."""
    store = build_store(root, make_scores(ARMS), skip=[("without FRA", 2)], **options)
    cell = store.load_plan("ablate-fra")["arms"][1]["cells"][2]
    folder = store.folder(cell["fit"])
    folder.mkdir(parents=True)
    events = [
        {"event": "epoch", "epoch": n, "epochs": 6, "loss": {"total": 4.0 - n}, "tune": {"mr-map": 0.2 + 0.1 * n}}
        for n in range(2)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return store


def finish(root):
    """The same store, complete."""
    shutil.rmtree(root, ignore_errors=True)
    return build_store(root, make_scores(ARMS))


def test_a_study_is_looked_at_run_by_run(tmp_path):
    found = look(unfinished(tmp_path), "ablate-fra")
    assert (found.done, found.total, found.complete, found.stuck) == (5, 6, False, False)
    assert found.holes == ("without FRA, seed 2: interrupted, epoch 2 of 6",)
    assert found.line == "ablate-fra: 5 of 6 runs finished; without FRA, seed 2: interrupted, epoch 2 of 6"
    assert found.arms[1].runs[2].curve.tune["mr-map"] == pytest.approx((20, 30))


def test_what_has_not_begun_is_counted_and_what_failed_says_why(tmp_path):
    store = build_store(
        tmp_path, make_scores(ARMS), skip=[("baseline", 1)], failed={("without FRA", 0): "the loss is nan"}
    )
    found = look(store, "ablate-fra")
    assert found.line.endswith("4 of 6 runs finished; without FRA, seed 0: failed: the loss is nan; 1 not started")
    assert not found.stuck


def test_an_unfinished_page_compares_nothing(tmp_path):
    """The effect is 30 points and would be significant: nothing of it may be seen."""
    html = page(look(unfinished(tmp_path), "ablate-fra"), 5)
    text = Page(html).text
    assert not Page(html).open and " ".join(WHY.split()) in " ".join(text.split())
    assert "5 of 6 runs finished" in text and "seed 2: interrupted, epoch 2 of 6" in text
    assert '<meta http-equiv="refresh" content="5">' in html and "<progress" in html
    seen = Page(html.split("<body>")[1].split("<script>")[0]).text
    for word in ("helps", "hurts", "unresolved", "95%", "interval", "Difference", "adjusted", "p ="):
        assert word not in seen
    assert "Learning curves of MR-mAP on the tune split" in html


def test_a_watched_study_gets_its_report_when_it_is_complete_and_not_before(tmp_path):
    store = unfinished(tmp_path / "store")
    path = tmp_path / "out/ablate-fra/index.html"
    said: list[str] = []
    pages: list[str] = []

    def pause(seconds):
        pages.append(path.read_text())
        assert not (path.parent / "results.json").exists()
        if len(pages) == 2:
            finish(tmp_path / "store")

    problems = watch(store, tmp_path / "out", studies=["ablate-fra"], every_s=2, say=said.append, pause=pause)
    assert problems == [] and len(pages) == 2 and pages[0] == pages[1] and 'content="2"' in pages[0]
    assert len(said) == 2 and said[0].startswith("ablate-fra: 5 of 6") and "6 of 6 runs finished" in said[1]
    whole = path.read_text()
    assert "http-equiv" not in whole and "helps" in whole and (path.parent / "results.json").exists()
    assert (tmp_path / "out/index.html").exists()


def test_a_study_of_which_only_failures_are_left_is_not_waited_for(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS), failed={("without FRA", 0): "the loss is nan"})
    said: list[str] = []
    problems = watch(
        store, tmp_path / "out", studies=["ablate-fra"], say=said.append, pause=lambda _: pytest.fail("waited")
    )
    assert problems[0].startswith("ablate-fra: not reported: 1 run failed; to try again: vlbench ablate")
    html = (tmp_path / "out/ablate-fra/index.html").read_text()
    assert "the loss is nan" in html and not re.search("http-equiv|helps|hurts|unresolved", html.split("<body>")[1])


def test_a_study_whose_looks_were_declared_is_reported_at_each_look_and_goes_on(tmp_path):
    """The plan holds the seeds up to the next look, so a look is a complete plan; nothing is judged between looks."""
    arms = {"baseline": 0.004, "without FRA": 0.0}

    def grown(seeds, skip=()):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        extra = {"looks": [2, 4]}
        return build_store(tmp_path / "store", make_scores(arms, seeds=seeds), extra=extra, skip=skip)

    said: list[str] = []
    pages: list[str] = []
    steps = [lambda: grown(4, [("baseline", 3)]), lambda: grown(4)]

    def pause(_):
        pages.append((tmp_path / "out/ablate-fra/index.html").read_text().split("<body>")[1].split("<script>")[0])
        steps.pop(0)()

    assert watch(grown(2), tmp_path / "out", studies=["ablate-fra"], say=said.append, pause=pause) == []
    assert [line.split(";")[0].split(": ")[1] for line in said] == [
        "4 of 4 runs finished", "7 of 8 runs finished", "8 of 8 runs finished",
    ]  # fmt: skip
    assert "unresolved" in pages[0] and "unresolved" not in pages[1]


def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StoreError, match="the page cannot be written.*--out"):
        watch(unfinished(tmp_path / "store"), tmp_path / "out", studies=["ablate-fra"], say=print)


def test_the_command_watches_and_exits_by_what_it_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "store"))
    finish(tmp_path / "store")
    done = CliRunner().invoke(report, ["--watch", "--format", "html"], standalone_mode=False)
    assert done.return_value == 0 and "6 of 6 runs finished: reports/ablate-fra/index.html" in done.stdout
    done = CliRunner().invoke(report, ["--watch", "--allow-missing"], standalone_mode=False)
    assert isinstance(done.exception, PlanError)
