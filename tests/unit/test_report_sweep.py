"""Protects the report of a sweep: a maximum is never shown as a measurement, importances never as an ablation, and every
output tells the same numbers.
"""

import csv
import io
import json
import math
import re

import pytest
from click.testing import CliRunner

from tests.unit.report_store import build_store, make_scores
from tests.unit.sweep_store import REFITS, SPACE, build_sweep, make_trials, sweep_content
from tests.unit.test_report_formats import Page
from vlbench.cli.report import report
from vlbench.errors import PlanError, StoreError
from vlbench.report import figures, sweep, sweep_figures
from vlbench.report.write import write_all
from vlbench.stats.sweep import expected_max


@pytest.fixture
def found(tmp_path):
    store = build_sweep(tmp_path / "store", sweep_content(make_trials(16, fail=(5,))), final=True)
    return sweep.read(store, "sweep-tiny")


def made(tmp_path, content, **options):
    return sweep.read(build_sweep(tmp_path / "store", content, **options), content["study"])


def two_aims(**changes):
    """Trials that trade one objective for the other."""
    trials = make_trials(8, prune=False)
    for number, trial in enumerate(trials):
        trial["values"] = [0.4 + 0.01 * number, 0.6 - 0.01 * number if number < 6 else 0.3]
        trial["value"] = sum(trial["values"]) / 2
    return sweep_content(trials, pareto=True, **changes)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_values_are_points_and_pruned_trials_have_none(found):
    assert found.best.value == pytest.approx(max(t.value for t in found.of_state("complete")))
    assert 50 < found.best.value < 70
    assert all(t.value is None and t.reached == pytest.approx(t.rungs[4]) for t in found.of_state("pruned"))
    assert [t.cause for t in found.of_state("failed")] == ["the loss is nan"]


def test_best_so_far_rises_and_counts_every_hour(found):
    (aim,) = found.aims
    line = found.best_so_far(aim)
    assert [number for number, *_ in line] == list(range(1, 17))
    bests = [best for *_, best in line]
    assert bests == sorted(bests) and bests[-1] == found.best.value
    assert line[-1][1] == pytest.approx((11 * 360 + 4 * 120 + 30) / 3600) and found.hours == pytest.approx(line[-1][1])


def test_the_expected_best_of_one_is_the_mean_and_of_all_the_maximum(found):
    (aim,) = found.aims
    numbers, values = found.expected(aim)
    known = [t.reached for t in found.trials if t.state != "failed"]
    assert numbers == list(range(1, 16))
    assert values[0] == pytest.approx(sum(known) / 15) and values[-1] == pytest.approx(found.best.value)


@pytest.mark.parametrize(("sampler", "shown"), [("random", True), ("qmc", True), ("tpe", False), ("gp", False)])
def test_guided_samplers_have_no_expected_best_and_say_why(tmp_path, sampler, shown):
    content = sweep_content(make_trials(8))
    content["budget"]["sampler"] = sampler
    one = made(tmp_path, content)
    assert (one.expected(one.aims[0]) is not None) == shown
    assert ("not exchangeable" in " ".join(sweep.of_the_best(one))) == (not shown)
    assert ("expected_best" in figures.to_csv(sweep_figures.best_so_far(one)).splitlines()[0]) is True
    assert ("Dashed" in sweep_figures.best_so_far(one).caption) == shown


def test_the_optimism_of_the_maximum_is_told_beside_the_refits(found):
    (aim,) = found.aims
    (one,) = found.optimism(aim)
    base, tuned = ([100 * value for value in REFITS[name]] for name in ("baseline", "tuned"))
    pooled = math.sqrt((2 * 1.0**2 + 2 * 0.5**2) / 4)
    assert one.sd == pytest.approx(pooled) and one.mean == pytest.approx(sum(tuned) / 3)
    assert one.expected == pytest.approx(expected_max(11) * pooled)
    assert one.drop == pytest.approx(found.best.value - sum(tuned) / 3)
    assert [refit.tune["objective"] for refit in found.refits] == [pytest.approx(base), pytest.approx(tuned)]


def test_one_seed_tells_no_spread(tmp_path):
    content = sweep_content(make_trials(4, prune=False))
    store = build_sweep(tmp_path, content, final=True)
    for arm in store.load_plan("sweep-tiny-final")["arms"]:
        for cell in arm["cells"][1:]:
            (store.folder(cell["fit"]) / "record.json").unlink()
    one = sweep.read(store, "sweep-tiny")
    assert one.optimism(one.aims[0]) == [] and [len(r.tune["objective"]) for r in one.refits] == [1, 1]
    assert one.comparison is None and "not complete" in " ".join(sweep.cautions(one))


def test_one_objective_is_its_own_aim(tmp_path):
    content = sweep_content(make_trials(4), objective=["mr-map"])
    for trial in content["trials"]:
        trial["values"] = trial["value"] and [trial["value"]]
    content["importances"] = []
    one = made(tmp_path, content)
    assert [aim.title for aim in one.aims] == ["MR-mAP"] and sweep.importances_table(one) is None


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "running"}, "Not finished: 8 of 8 trials have ended. To go on: vlbench sweep --variant tiny"),
        (
            {"state": "stopped", "stopped": "3 trials failed: the loss is nan"},
            "Stopped: 3 trials failed: the loss is nan",
        ),
        ({"state": "trials"}, "has not been fitted again"),
    ],
)
def test_what_is_not_finished_is_said_before_any_number(tmp_path, changes, said):
    one = made(tmp_path, sweep_content(make_trials(8), **changes))
    assert said in " ".join(sweep.cautions(one))
    assert "no measurement" in " ".join(sweep.cautions(one))


def test_failures_are_counted_by_cause(tmp_path):
    trials = make_trials(8, fail=(0, 1, 2))
    trials[2]["cause"] = "out of memory\nwith a long tail"
    one = made(tmp_path, sweep_content(trials))
    assert sweep.failures(one) == ["2 trials failed: the loss is nan", "1 trial failed: out of memory"]


def test_importances_never_go_without_the_word_exploration(found):
    html, text = sweep.to_html(found, sweep_figures.plots(found)), sweep.to_markdown(found)
    for output in (html, text):
        assert "Importances (exploration)" in output and sweep.EXPLORATION in output
        assert "Exploration only" in output
    assert all(one["exploratory"] for one in sweep.as_json(found)["importances"])
    assert "no ablation" in sweep_figures.importances(found).caption


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_says_what_every_trial_was(found):
    html = sweep.to_html(found, sweep_figures.plots(found), ["report.md"])
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert not page.open and len(ids) == len(set(ids))
    assert html.count("<svg") == 1 + 2 + 1 + 3 + 1
    assert 'href="../sweep-tiny-final/index.html"' in html and 'href="report.md"' in html
    for trial in found.trials:
        assert (trial.cell or "the loss is nan") in html
    assert not re.search(r"\b(nan|None)\b", re.sub(r"the loss is nan", "", re.sub(r"<[^>]+>", " ", html)))


def test_causes_and_values_are_text_and_never_markup(tmp_path):
    content = sweep_content(make_trials(8, fail=(1,)), title="<img src=x>")
    content["trials"][1]["cause"] = "<img src=x onerror=y> | `code`"
    content["space"][2] = {**SPACE[2], "choices": ["none", "hard_pos_neg", "<img src=z>"]}
    one = made(tmp_path, content)
    page = Page(sweep.to_html(one, sweep_figures.plots(one)))
    assert not page.open and "img" not in {tag for tag, _ in page.tags} and "<img src=x onerror=y>" in page.text
    assert r"\<img src=x onerror=y> \| \`code\`" in sweep.to_markdown(one)


def test_markdown_csv_and_json_tell_the_same_numbers(found):
    content = json.loads(json.dumps(sweep.as_json(found), allow_nan=False))
    lines = list(csv.DictReader(io.StringIO(sweep.to_csv(found))))
    assert [int(line["trial"]) for line in lines] == list(range(16))
    best = lines[content["best"]]
    assert float(best["value"]) == content["best_so_far"]["objective"][-1]["points"]
    assert f"{float(best['value']):.2f}" in sweep.to_markdown(found)
    assert lines[5]["cause"] == "the loss is nan" and lines[5]["value"] == "" and lines[3]["after 4 epochs"]
    assert content["trials"] == {"complete": 11, "pruned": 4, "failed": 1}


def test_every_figure_is_its_numbers_and_has_words_for_those_who_do_not_see_it(found):
    plots = {plot.name: plot for plot in sweep_figures.plots(found)}
    assert set(plots) == {"winner", "best-so-far", "importances", "slices", "contour"}
    for plot in plots.values():
        assert all(panel.alt.endswith(".") and re.search(r"\d", panel.alt) for panel in plot.panels)
        assert len(figures.to_csv(plot).splitlines()) == len(plot.rows) + 1
    assert len(plots["slices"].panels) == 3 and len(plots["slices"].rows) == 15 * 3
    assert len(plots["contour"].rows) == 11
    assert figures.to_svg(plots["contour"]) == figures.to_svg(plots["contour"])


def test_a_front_has_its_table_and_its_plot(tmp_path):
    one = made(tmp_path, two_aims(), final=True)
    assert [trial.number for trial in one.front] == [0, 1, 2, 3, 4, 5, 7]
    assert one.best is None and [aim.title for aim in one.aims] == ["MR-mAP", "HD-mAP"]
    html = sweep.to_html(one, sweep_figures.plots(one))
    assert "The Pareto front" in html and "One objective against the other" in html
    assert [row[0].value for row in sweep.front_table(one).rows] == [7, 5, 4, 3, 2, 1, 0]
    plot = sweep_figures.pareto(one)
    assert sum(row["run"] == "mean of refits" for row in plot.rows) == 3
    assert {row["trial"] for row in plot.rows if row["front"] and row["run"] == "trial"} == {0, 1, 2, 3, 4, 5, 7}
    assert len(one.optimism(one.aims[0])) == 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_sweep_that_has_just_begun_has_a_page(tmp_path, number):
    content = sweep_content(make_trials(number), state="running", importances=[])
    content["budget"]["trials"] = 8
    one = made(tmp_path, content)
    html = sweep.to_html(one, sweep_figures.plots(one))
    assert f"{number} of 8 trials" in html and "Not finished" in html
    assert sweep.to_markdown(one) and sweep.to_csv(one) and sweep.as_json(one)


def test_nothing_but_failures_has_a_page(tmp_path):
    content = sweep_content(make_trials(3, fail=(0, 1, 2)), state="stopped", stopped="3 trials failed", importances=[])
    one = made(tmp_path, content)
    assert sweep_figures.plots(one) == [] and "3 trials failed: the loss is nan" in sweep.to_html(one, [])


def test_odd_spaces_are_drawn(tmp_path):
    """A constant range, choices of mixed types, a card's value that is outside, a parameter that a trial does not have."""
    content = sweep_content(make_trials(8, prune=False))
    content["space"] = [
        {**SPACE[0], "now": 0.0},
        {**SPACE[1], "low": 128, "high": 128, "now": 999},
        {**SPACE[2], "choices": [True, 1, 0.5, "a very long name of a component"], "now": "gone"},
    ]
    for number, trial in enumerate(content["trials"]):
        trial["params"]["model.width"] = 128
        trial["params"]["loss.hard.use"] = content["space"][2]["choices"][number % 4]
    del content["trials"][0]["params"]["loss.hard.use"]
    one = made(tmp_path, content)
    for plot in sweep_figures.plots(one):
        assert figures.to_svg(plot).startswith("<?xml")
    assert "true, 1, 0.5" in sweep.to_markdown(one)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_report_is_written_whole_and_named_in_its_manifest(tmp_path):
    store = build_sweep(tmp_path / "store", sweep_content(make_trials(8)))
    paths = sweep.write(store, "sweep-tiny", tmp_path / "out")
    names = [path.relative_to(tmp_path / "out" / "sweep-tiny").as_posix() for path in paths]
    assert names[:3] == ["report.md", "trials.csv", "results.json"] and names[-2:] == ["index.html", "manifest.json"]
    assert {"figures/slices.svg", "figures/slices.png", "figures/slices.csv"} <= set(names)
    manifest = json.loads(paths[-1].read_text())
    assert set(manifest["files"]) == set(names[:-1]) and len(manifest["cells"]) == 8
    again = {path.name: path.read_bytes() for path in paths}
    assert {path.name: path.read_bytes() for path in sweep.write(store, "sweep-tiny", tmp_path / "out")} == again


def test_what_a_sweep_has_not_is_said(tmp_path):
    store = build_sweep(tmp_path / "store", sweep_content(make_trials(4)))
    with pytest.raises(PlanError, match="no latex form"):
        sweep.write(store, "sweep-tiny", tmp_path, format="latex")
    with pytest.raises(StoreError, match='no sweep "other"'):
        sweep.read(store, "other")
    build_sweep(tmp_path / "store", sweep_content(make_trials(4), format=2))
    with pytest.raises(StoreError, match="format 2"):
        sweep.read(store, "sweep-tiny")


def test_the_index_lists_sweeps_beside_studies(tmp_path):
    store = build_store(tmp_path / "store", make_scores({"baseline": 0.0, "without FRA": -0.1}))
    build_sweep(tmp_path / "store", sweep_content(make_trials(8)))
    outcomes = write_all(store, tmp_path / "out", format="html")
    assert [outcome.study for outcome in outcomes] == ["ablate-fra", "sweep-tiny"]
    html = (tmp_path / "out" / "index.html").read_text()
    assert 'href="sweep-tiny/index.html"' in html and "2 studies" in html and "one run on the tuning split" in html
    assert [outcome.study for outcome in write_all(store, tmp_path / "tex", format="latex")] == ["ablate-fra"]


def test_a_sweep_is_watched_until_it_is_finished(tmp_path):
    """Its page changes with it, asks to be read again while it runs, and no longer when it has ended."""
    trials = make_trials(4, prune=False)
    store = build_sweep(tmp_path / "store", sweep_content(trials[:2], state="running", importances=[]))
    page, heard, waits = tmp_path / "out" / "sweep-tiny" / "index.html", [], []

    def pause(seconds):
        waits.append('http-equiv="refresh" content="7"' in page.read_text())
        if len(waits) == 2:
            build_sweep(tmp_path / "store", sweep_content(trials), final=True)

    asked = {"studies": ["sweep-tiny"], "format": "html", "every_s": 7, "say": heard.append, "pause": pause}
    assert sweep.watch(store, tmp_path / "out", **asked) == []
    text = page.read_text()
    assert waits == [True, True] and 'http-equiv="refresh"' not in text and trials[3]["cell"] in text
    assert [line.split(",")[0] for line in heard] == ["sweep-tiny: running", "sweep-tiny: finished"]


def test_a_stopped_sweep_is_not_waited_for(workspace):
    build_sweep(workspace / ".vlbench", sweep_content(make_trials(4, fail=(0,)), state="stopped", stopped="nan"))
    asked = ["--study", "sweep-tiny", "--watch", "--format", "md"]
    done = CliRunner().invoke(report, asked, standalone_mode=False)
    assert done.return_value == 1 and "sweep-tiny: stopped: nan" in done.stderr


def test_vlbench_report_covers_sweeps(workspace):
    build_sweep(workspace / ".vlbench", sweep_content(make_trials(4)))
    done = CliRunner().invoke(report, ["--format", "md"], standalone_mode=False)
    assert done.return_value == 0 and "sweep-tiny: reports/sweep-tiny/report.md" in done.stdout
    named = CliRunner().invoke(report, ["--study", "sweep-tiny", "--format", "latex"], standalone_mode=False)
    assert named.return_value == 1 and "no latex form" in named.stderr


def test_trials_say_what_they_cost_where_it_is_known(tmp_path):
    trials = make_trials(8)
    assert not {"CPU time", "Peak memory", "Parameters"} & {
        c.title for c in sweep.trials_table(_of(tmp_path, trials)).columns
    }
    for number, trial in enumerate(trials):
        trial["cost"] = {"device_seconds": 30.5 + number, "peak_bytes": 2_000_000_000}
        if trial["state"] == "complete":
            trial["cost"]["parameters"] = 9_300_000
    found = _of(tmp_path, trials)
    table = sweep.trials_table(found)
    titles = [column.title for column in table.columns]
    row = dict(zip(titles, (cell.text for cell in table.rows[0]), strict=True))
    assert (row["CPU time"], row["Peak memory"], row["Parameters"]) == ("31s", "2.0 GB", "9.3M")
    (line, *_) = csv.DictReader(io.StringIO(sweep.to_csv(found)))
    assert (line["device_seconds"], line["peak_bytes"], line["parameters"]) == ("30.5", "2000000000", "9300000")
    trials[0]["cost"]["device_seconds"] = None
    gpu = _of(tmp_path, trials, device="cuda")
    assert "GPU time" in [column.title for column in sweep.trials_table(gpu).columns]


def _of(tmp_path, trials, **changes):
    return made(tmp_path / str(len(list(tmp_path.iterdir()))), sweep_content(trials, **changes))
