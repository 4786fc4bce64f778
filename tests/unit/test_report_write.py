"""Protects the files of a report: whole, equal for an equal store, traceable to cells; and the command's exits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from click.testing import CliRunner

from tests.unit.report_store import build_store, make_scores
from vlbench.cli.report import report
from vlbench.errors import PlanError, VlbenchError
from vlbench.report import figures
from vlbench.report.compare import compare
from vlbench.report.frame import read
from vlbench.report.write import write, write_all, write_index
from vlbench.runs.store import Store

ARMS = {"baseline": 0.05, "without FRA": 0.0}
FILES = {
    "report.md", "comparison.csv", "comparison.tex", "methods.tex", "references.bib", "results.json", "index.html",
    "manifest.json",
    *(f"figures/{name}.{kind}" for name in ("differences", "runs", "curves", "budget") for kind in ("svg", "png", "csv")),
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_there_and_the_manifest_knows_each_and_its_cells(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    paths = write(store, "ablate-fra", tmp_path / "out")
    folder = tmp_path / "out/ablate-fra"
    assert names(folder) == FILES == {path.relative_to(folder).as_posix() for path in paths}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES - {"manifest.json"}
    }
    plan = store.load_plan("ablate-fra")
    for arm in plan["arms"]:
        listed = manifest["cells"][arm["name"]]
        assert [(c["seed"], c["fit"]["id"], c["score"]["id"]) for c in listed] == [
            (c["seed"], c["fit"], c["score"]) for c in arm["cells"]
        ]
        assert all(len(c["score"]["identity"]) == len(c["score"]["files"]["queries.parquet"]) == 64 for c in listed)
    differences = [number for number in manifest["numbers"] if number["number"] == "difference"]
    assert len(differences) == 2 * 4 and differences[0]["from"] == ["baseline", "without FRA"]


def test_the_same_store_gives_the_same_bytes_in_another_process(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    write_all(store, tmp_path / "a")
    code = (
        "from pathlib import Path; from vlbench.runs.store import Store; from vlbench.report.write import write_all;"
        f"write_all(Store(Path({str(store.root)!r})), Path({str(tmp_path / 'b')!r}))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    different = [
        n for n in names(tmp_path / "a") if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()
    ]
    assert not different


def test_figures_leave_matplotlib_as_it_was_and_use_their_own_settings(tmp_path):
    found = compare(read(build_store(tmp_path, make_scores(ARMS)), "ablate-fra"))
    plain = figures.to_svg(figures.plots(found)[0])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert figures.to_svg(figures.plots(found)[0]) == plain
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("arm", ["_hidden", "$x^2$ 100%", "名前", "x" * 60])
def test_figures_take_any_name(tmp_path, arm):
    found = compare(read(build_store(tmp_path, make_scores({"baseline": 0.05, arm: 0.0})), "ablate-fra"))
    for plot in figures.plots(found):
        svg = figures.to_svg(plot)
        assert arm[:20] in svg and figures.to_png(plot).startswith(b"\x89PNG")


def test_the_difference_plot_shows_the_numbers_of_the_table(tmp_path):
    found = compare(read(build_store(tmp_path, make_scores(ARMS)), "ablate-fra"))
    rows = figures.differences(found).rows
    assert [(r["metric"], r["points"]) for r in rows if r["mark"] == "difference"] == [
        (row.metric, row.points) for row in found.rows
    ]
    assert [r["points"] for r in rows if r["mark"] == "seed" and r["metric"] == "mr-map"] == list(found.rows[0].by_seed)


@pytest.mark.parametrize(
    ("format_", "wanted"),
    [
        ("md", "report.md"),
        ("csv", "comparison.csv"),
        ("latex", "comparison.tex methods.tex references.bib"),
        ("json", "results.json"),
        ("html", "index.html"),
    ],
)
def test_one_format_writes_its_files_and_their_manifest(tmp_path, format_, wanted):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    write(store, "ablate-fra", tmp_path / "out", format=format_)
    assert names(tmp_path / "out/ablate-fra") == {*wanted.split(), "manifest.json"}


def test_an_unknown_format_is_refused(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    with pytest.raises(PlanError, match='"latx" is not a format; did you mean "latex"'):
        write(store, "ablate-fra", tmp_path / "out", format="latx")


def test_a_study_without_events_has_no_learning_curves(tmp_path):
    store = build_store(tmp_path / "store", make_scores(ARMS))
    for path in (tmp_path / "store/cells").rglob("events.jsonl"):
        path.unlink()
    write(store, "ablate-fra", tmp_path / "out")
    assert "figures/curves.svg" not in names(tmp_path / "out/ablate-fra")
    assert "Learning curves" not in (tmp_path / "out/ablate-fra/index.html").read_text()


def two_studies(root: Path) -> Store:
    build_store(root, make_scores(ARMS), skip=[("without FRA", 2)], study="ablate-holes", question="Holes?")
    return build_store(root, make_scores(ARMS))


def test_one_study_that_cannot_be_reported_does_not_keep_the_others(tmp_path):
    outcomes = write_all(two_studies(tmp_path / "store"), tmp_path / "out")
    assert [(outcome.study, outcome.problem is None) for outcome in outcomes] == [
        ("ablate-fra", True),
        ("ablate-holes", False),
    ]
    index = (tmp_path / "out/index.html").read_text()
    assert 'href="ablate-fra/index.html"' in index and 'href="ablate-holes/index.html"' not in index
    assert "Holes?" in index and "1 of 6 runs missing" in index
    assert 'href="../index.html"' in (tmp_path / "out/ablate-fra/index.html").read_text()


def test_the_index_covers_the_whole_store_without_new_reports(tmp_path):
    write_index(two_studies(tmp_path / "store"), tmp_path / "out", allow_missing=True)
    index = (tmp_path / "out/index.html").read_text()
    assert index.count("<h2>") == 2 and "1 of 6 planned runs missing" in index and 'href="ablate' not in index


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "store"))
    return lambda *arguments: CliRunner().invoke(report, arguments, standalone_mode=False)


def test_the_command_reports_every_study_and_says_where(tmp_path, command):
    build_store(tmp_path / "store", make_scores(ARMS))
    done = command("--out", "out", "--format", "html")
    assert done.return_value == 0 and done.stdout == ("ablate-fra: out/ablate-fra/index.html\nindex: out/index.html\n")


def test_the_command_exits_1_and_names_what_is_missing(tmp_path, command):
    two_studies(tmp_path / "store")
    done = command("--format", "json")
    assert done.return_value == 1
    assert "ablate-fra: reports/ablate-fra/results.json" in done.stdout
    assert "ablate-holes: not reported: 1 of 6 runs missing: without FRA, seed 2" in done.stderr
    allowed = command("--format", "json", "--allow-missing")
    assert allowed.return_value == 0 and "(1 run missing)" in allowed.stdout


def test_the_command_prints_what_it_wrote_as_data(tmp_path, command):
    two_studies(tmp_path / "store")
    done = command("--format", "csv", "--json")
    whole, holes = json.loads(done.stdout)["studies"]
    assert done.return_value == 1 and whole["files"] == [
        "reports/ablate-fra/comparison.csv",
        "reports/ablate-fra/manifest.json",
    ]
    assert holes["files"] == [] and "1 of 6 runs missing" in holes["problem"] and whole["problem"] is None


def test_the_command_hints_at_an_empty_store(command):
    done = command()
    assert done.return_value == 0 and "vlbench ablate --component fra" in done.stderr


def test_the_command_names_the_near_miss_of_an_unknown_study(tmp_path, command):
    build_store(tmp_path / "store", make_scores(ARMS))
    done = command("--study", "ablate-fr")
    assert isinstance(done.exception, VlbenchError) and 'did you mean "ablate-fra"' in str(done.exception)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, command):
    build_store(tmp_path / "store", make_scores(ARMS))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ablate-fra").write_text("in the way")
    done = command("--out", "out", "--format", "md")
    assert done.return_value == 1 and "the report cannot be written" in done.stderr


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from click.testing import CliRunner; from vlbench.cli.report import report;"
        "r = CliRunner().invoke(report, ['--help']); assert r.exit_code == 0 and 'Examples' in r.output;"
        "heavy = ('torch', 'mlflow', 'pandas', 'matplotlib', 'optuna', 'pyarrow', 'jinja2');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_panel_is_drawn_once_for_page_and_files_and_the_order_of_making_them_moves_no_byte(tmp_path):
    comparison = compare(read(build_store(tmp_path, make_scores(ARMS)), "ablate-fra"))
    (plot, *_) = figures.plots(comparison)
    drawn = []
    panels = tuple(
        figures.Panel(panel.key, panel.alt, panel.size, lambda axes, one=panel: (drawn.append(one.key), one.draw(axes)))
        for panel in plot.panels
    )
    counted = figures.Plot(plot.name, plot.caption, panels, plot.rows)
    svg, png, page = figures.to_svg(counted), figures.to_png(counted), [figures.inline(panel) for panel in panels]
    assert drawn == [panel.key for panel in panels]
    (other, *_) = figures.plots(comparison)
    assert figures.to_png(other) == png and [figures.inline(panel) for panel in other.panels] == page
    assert figures.to_svg(other) == svg
    names = re.findall(r'\bid="([^"]+)"', svg)
    assert len(names) == len(set(names)) and svg.count("<svg") == 1
    ElementTree.fromstring(svg)
