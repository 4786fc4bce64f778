"""Protects the query explorer: it shows the queries that moved most, as the runs predicted them, within its bounds."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.unit.data_files import rows, write_rows
from tests.unit.report_store import QUERIES, build_store, make_scores
from tests.unit.test_report_formats import Page
from vlbench.canon import digest_file
from vlbench.cards.kinds import Claim
from vlbench.data.predictions import write_predictions
from vlbench.data.types import Prediction
from vlbench.report import explorer, figures
from vlbench.report.compare import compare
from vlbench.report.explorer import area, bounded, explore, levels, most_moved, overlap
from vlbench.report.frame import read
from vlbench.report.page import Report, study_page
from vlbench.workspace import find

TOY = """\
[datasets.toy]
clip_s = 2.0
features = "motion/words"
splits = { train = "train.jsonl", val = "val.jsonl" }
video = { motion = "motion" }
text = { words = "words" }
"""
NAME = "predictions-selected.jsonl.gz"
NASTY = "</script><script>alert(1)</script> & <b>"


def annotate(folder, *, text=None):
    """A dataset "toy" whose reporting queries are those of the hand-made store."""
    content = rows("val", QUERIES, 100)
    if text is not None:
        content[3]["query"] = text
    write_rows(folder / "train.jsonl", rows("train", 4))
    write_rows(folder / "val.jsonl", content)
    for name in ("motion", "words"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "vlbench.toml").write_text(TOY)
    return find(folder)


def predict(store, *, text=None, skip=()):
    """Every run predicts the window from ``seed`` to ``seed + 6`` s first, and saliency that rises to its seed."""
    plan = store.load_plan("ablate-fra")
    for arm in plan["arms"]:
        for cell in arm["cells"]:
            if (arm["name"], cell["seed"]) in skip:
                continue
            seed = cell["seed"]
            found = [
                Prediction(
                    100 + q,
                    f"val{q}",
                    text if text is not None and q == 3 else f"query {q}",
                    np.array([[seed, seed + 6.0, 0.9], [12, 20, 0.4]]),
                    np.linspace(0, 1 + seed, 10),
                )
                for q in range(QUERIES)
            ]
            write_predictions(store.folder(cell["score"]) / NAME, found)


@pytest.fixture
def made(tmp_path):
    store = build_store(tmp_path / "store", make_scores({"baseline": 0.1, "without FRA": 0.0, "placebo": 0.1}))
    predict(store)
    return store, annotate(tmp_path)


def test_the_lists_are_the_queries_that_moved_most(made):
    store, workspace = made
    found = compare(read(store, "ablate-fra"))
    data = json.loads(explore(store, found, workspace).data)
    assert [c["name"] for c in data["claims"]] == ["without FRA", "placebo"]
    frame = found.frame
    for claim in data["claims"]:
        for place, metric in enumerate(("mr-map", "hd-map")):
            assert data["metrics"][place]["key"] == metric
            values = frame.values(metric, "selected")
            change = 100 * (values["baseline"].mean(axis=0) - values[claim["name"]].mean(axis=0))
            listed = {int(json.loads(data["queries"][q]["id"])) - 100: moved for q, moved, _ in claim["lists"][place]}
            gains = [q for q in np.argsort(-change)[: explorer.MOST_MOVED] if change[q] > 0]
            losses = [q for q in np.argsort(change)[: explorer.MOST_MOVED] if change[q] < 0]
            assert list(listed) == [*gains, *losses]
            assert all(moved == pytest.approx(change[q], abs=0.006) for q, moved in listed.items())
            for q, _, seed in claim["lists"][place]:
                query = int(data["queries"][q]["id"]) - 100
                gaps = abs(100 * (values["baseline"] - values[claim["name"]])[:, query] - change[query])
                assert gaps[seed] == pytest.approx(gaps.min())


def test_every_shown_run_is_that_of_its_cell(made):
    store, workspace = made
    found = explore(store, compare(read(store, "ablate-fra")), workspace)
    data = json.loads(found.data)
    assert found.problems == () and data["seeds"] == [0, 1, 2] and len(data["runs"]) == 3
    for by_seed in data["runs"]:
        for seed, shown in enumerate(by_seed):
            for entry in filter(None, shown):
                flat, steps, met = entry
                assert flat[:3] == [10 * seed, 10 * (seed + 6), 90] and flat[3:] == [120, 200, 40]
                assert len(steps) == 10 and steps[0] == "A" and steps[-1] == "_"
                assert met == round(100 * overlap([seed, seed + 6], [[4, 10]]))
    query = data["queries"][0]
    assert query["gold"] == [[4, 10]] and query["length"] == 20 and len(query["marks"]) == 10
    assert query["marks"][3] == "_" and query["marks"][0] == "A"  # three annotators gave 4, nobody scored the first
    used = {q for claim in data["claims"] for found in claim["lists"] for q, *_ in found}
    assert used == set(range(len(data["queries"])))


def test_where_seeds_are_thinned_only_those_that_are_shown_are_chosen_and_the_page_says_so(made, monkeypatch):
    store, workspace = made
    monkeypatch.setattr(explorer, "bounded", lambda *_: (2, 2))
    comparison = compare(read(store, "ablate-fra"))
    found = explore(store, comparison, workspace)
    data = json.loads(found.data)
    assert data["seeds"] == [0, 1] and all(len(by_seed) == 2 for by_seed in data["runs"])
    listed = [entry for claim in data["claims"] for entries in claim["lists"] for entry in entries]
    assert listed and all(seed < 2 for _, _, seed in listed)
    assert "2 of 3 seeds can be shown" in found.facts
    values = comparison.frame.values("mr-map", "selected")
    for q, _, seed in data["claims"][0]["lists"][0]:
        query = int(data["queries"][q]["id"]) - 100
        gaps = (values["baseline"] - values["without FRA"])[:, query]
        assert seed == abs(gaps[:2] - gaps.mean()).argmin()


def test_without_the_dataset_the_predictions_are_still_shown_and_the_section_says_so(made, tmp_path):
    store, _ = made
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vlbench.toml").write_text("")
    found = explore(store, compare(read(store, "ablate-fra")), find(elsewhere))
    assert found.problems[0].startswith("Without the ground truth: the dataset toy cannot be opened")
    data = json.loads(found.data)
    assert data["queries"][0]["gold"] is None and data["queries"][0]["text"].startswith("query ")
    assert [lane.name for lane in found.cards[0].lanes] == ["baseline", "without FRA"]


def test_other_annotations_than_those_of_the_runs_are_not_shown_as_ground_truth(made):
    store, _ = made
    workspace = annotate(store.root.parent, text="another sentence")
    found = explore(store, compare(read(store, "ablate-fra")), workspace)
    data = json.loads(found.data)
    hidden = [query for query in data["queries"] if query["gold"] is None]
    if any(query["id"] == "103" for query in data["queries"]):
        assert [query["id"] for query in hidden] == ["103"]
        assert "Without the ground truth for 1 query" in found.problems[0]
    else:
        assert not hidden


def test_runs_without_predictions_are_named_and_without_any_the_section_says_so(tmp_path):
    store = build_store(tmp_path / "store", make_scores({"baseline": 0.1, "without FRA": 0.0}))
    workspace, comparison = annotate(tmp_path), compare(read(store, "ablate-fra"))
    none = explore(store, comparison, workspace)
    assert not none.data and "no run of the study has its predictions" in none.problems[0]
    assert none.problems[0] in Page(study_page(Report(comparison, (), explorer=none))).text
    predict(store, skip=[("without FRA", 1)])
    some = explore(store, comparison, workspace)
    assert some.problems == ("without FRA, seed 1 is not drawn: the predictions are not in the store.",)
    assert json.loads(some.data)["runs"][1][1] is None


def test_predictions_that_are_not_those_of_their_record_are_not_drawn(made):
    store, workspace = made
    cell = store.load_plan("ablate-fra")["arms"][0]["cells"][0]["score"]
    record = store.record(cell)
    path = store.folder(cell) / NAME
    record["files"][NAME] = digest_file(path)
    (store.folder(cell) / "record.json").write_text(json.dumps(record))
    assert not explore(store, compare(read(store, "ablate-fra")), workspace).problems
    path.write_bytes(path.read_bytes() + b"\n")
    found = explore(store, compare(read(store, "ablate-fra")), workspace)
    assert found.problems[0].startswith("baseline, seed 0 is not drawn: the predictions are not those")


def test_the_section_stands_without_a_script_and_text_stays_text(made, tmp_path):
    store, _ = made
    workspace = annotate(tmp_path, text=NASTY)
    predict(store, text=NASTY)
    comparison = compare(read(store, "ablate-fra"))
    html = study_page(Report(comparison, (), explorer=explore(store, comparison, workspace)))
    page = Page(html)
    assert not page.open and "alert(1)</script>" not in html
    before = html[: html.index('<script type="application/json"')]
    assert before.count('<article class="query">') == 2  # the largest gain and the largest loss
    assert before.count('class="lane') >= 6 and 'class="bar r0"' in before and 'class="saliency"' in before
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert all(labels) and any(label.startswith("Ground truth: 4–10 s") for label in labels)
    data = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data.group(1))["arms"] == ["baseline", "without FRA", "placebo"]


def test_a_page_with_everything_on_it_is_small_and_reaches_for_nothing_outside(made, tmp_path):
    store, workspace = made
    comparison = compare(read(store, "ablate-fra"))
    plots = tuple(figures.plots(comparison))
    html = study_page(Report(comparison, plots, ("report.md",), explore(store, comparison, workspace)))
    assert len(html.encode()) < 1_000_000
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//|url\(\s*["']?http|@import""", html)
    outside = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert outside <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1998/Math/MathML",
    }


def test_the_script_is_whole_and_reaches_for_nothing_outside():
    """No engine runs it here: its brackets, its identifiers and its keys are held against the data and the page."""
    script = (explorer.Path(explorer.__file__).parent / "templates/explorer.js").read_text()
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', script)
    bare = re.sub(r"`(\\.|\$\{[^{}]*\}|[^`\\])*`", "``", bare)
    opened: list[str] = []
    for letter in re.sub(r"//[^\n]*", "", bare):
        if letter in "([{":
            opened.append(letter)
        elif letter in ")]}":
            assert opened.pop() == {")": "(", "]": "[", "}": "{"}[letter]
    assert not opened
    assert f'"{explorer.LEVELS}"' in script
    assert not re.search(
        r"fetch|XMLHttp|import\s|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
    )
    for key in ("arms", "seeds", "metrics", "claims", "queries", "runs"):
        assert f"data.{key}" in script


@pytest.mark.parametrize(
    ("values", "top", "wanted"),
    [
        ([0, 1, 2], None, "Ag_"),
        ([5, 5], None, "AA"),
        ([0, 2, 4], 4, "Ag_"),
        ([0, 8], 4, "A_"),
        ([], None, ""),
        ([float("nan"), 1, 3], None, "AA_"),
    ],
)
def test_saliency_is_written_in_letters(values, top, wanted):
    assert levels(values, top) == wanted


def test_a_long_video_keeps_its_highest_clips():
    values = np.zeros(1000)
    values[777] = 1
    steps = levels(values)
    assert len(steps) == explorer.MOST_CLIPS and steps.count("_") == 1
    assert steps.index("_") == 777 * explorer.MOST_CLIPS // 1000


def test_the_area_is_a_column_per_letter():
    assert area("A_") == "M0 0V-0.0H500.0V-26.0H1000.0V0Z" and area("") == ""


@pytest.mark.parametrize(
    ("window", "gold", "wanted"),
    [([4, 10], [[4, 10]], 1.0), ([0, 4], [[6, 8]], 0.0), ([2, 6], [[20, 30], [4, 8]], 1 / 3), ([1, 2], [], None)],
)
def test_overlap_is_with_the_nearest_annotated_window(window, gold, wanted):
    assert overlap(window, gold) == (None if wanted is None else pytest.approx(wanted))


def test_queries_that_did_not_move_are_not_listed():
    a, b = np.full((2, 5), 0.5), np.full((2, 5), 0.5)
    a[:, 1], b[:, 3] = 0.75, 1.0
    found = most_moved({"a": a, "b": b}, {"a": 1.0, "b": -1.0}, 3)
    assert [(x.query, x.change) for x in found] == [(1, 25.0), (3, -50.0)]


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("arms", [2, 8])
@pytest.mark.parametrize("seeds", [1, 5, 20])
def test_a_page_is_bounded_whatever_the_study(count, arms, seeds):
    claims = [Claim(str(n), "arm", (), "", "", {str(arm): 1.0 for arm in range(arms)}) for n in range(count)]
    most, shown = bounded(claims, 2, seeds)
    assert 1 <= shown <= seeds and explorer.FEWEST_MOVED <= most <= explorer.MOST_MOVED
    assert 2 * most * 2 * count * arms * shown <= explorer.RUNS_SHOWN
    if count == 1:
        assert (most, shown) == (explorer.MOST_MOVED, seeds)
