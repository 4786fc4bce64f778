"""Protects published numbers as data: how files are read, what is found impossible or suspicious in them and what is not,
that variants keep their printed numbers, and ``vlbench check --published``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlbench.cards.library import load_variant
from vlbench.cards.published import builtin_files, read_rows
from vlbench.cli import main
from vlbench.errors import CardError
from vlbench.metrics.plausible import MAP_THRESHOLDS, RULES, check, map_bounds, miou_bounds

TOP = 'source = "A paper"\ntable = "table 1"\ndataset = "qvhighlights"\nsplit = "val"\nfeatures = "clip/clip"\n'
TVSUM = "VT = 80.0, VU = 82.0, GA = 84.0, MS = 86.0, PK = 88.0, PR = 80.0, FM = 82.0, BK = 84.0, BT = 86.0, DS = 88.0"


def rows_of(folder, text, name="table.toml"):
    path = folder / name
    path.write_text(text)
    return read_rows(path)


def row(values, **keys):
    """One ``[[row]]``; values and tables as TOML text."""
    lines = ["[[row]]", f'method = "{keys.pop("method", "M")}"', f"values = {{ {values} }}"]
    lines += [f"{key} = {value}" if value[0] in "{[" else f'{key} = "{value}"' for key, value in keys.items()]
    return "\n".join(lines) + "\n"


LINE = '"mr-map@0.5" = {0}, "mr-map@0.75" = {1}, "mr-map" = {2}'
NEIGHBOURS = "".join(
    row(LINE.format(a, b, round((a + 5 * b) / 10 + 0.6 * 4 * a / 10 + tilt, 2)), method=f"N{a}")
    for a, b, tilt in ((60.81, 41.36, 0.01), (63.69, 43.08, -0.12), (65.83, 45.38, 0.2), (64.89, 46.67, 0), (67.53, 47.86, 0.1), (68.75, 49.22, -0.1))
)  # fmt: skip

CASES = {  # rule -> (rows that it finds, rows that it leaves alone)
    "unknown-metric": (row('"mr-mapp" = 40.0'), row('"mr-map" = 40.0')),
    "range": (row('"mr-map" = 140.0'), row('"mr-map" = 100.0, "hd-map" = 0.0')),
    "fractions": (row('"mr-map" = 0.41, "hd-map" = 0.39'), row('"mr-map" = 0.41, "mr-r1@0.5" = 3.2')),
    "thresholds": (row('"mr-r1@0.5" = 54.0, "mr-r1@0.7" = 55.0'), row('"mr-r1@0.5" = 55.0, "mr-r1@0.7" = 55.0')),
    "nested": (row('"hd-hit1" = 66.0, "hd-hit1-good" = 65.0'), row('"hd-hit1" = 64.0, "hd-hit1-good" = 65.0')),
    "map-mean": (row(LINE.format(60.0, 40.0, 60.1)), row(LINE.format(60.0, 40.0, 38.0))),
    "miou": (
        row('"mr-r1@0.5" = 58.0, "mr-r1@0.7" = 36.0, "mr-miou" = 88.0', dataset="charades"),
        row('"mr-r1@0.5" = 58.0, "mr-r1@0.7" = 36.0, "mr-miou" = 50.2', dataset="charades"),
    ),
    "ceiling": (row('"hd-map" = 71.2'), row('"hd-map" = 70.3')),
    "beyond-reach": (
        row('"hd-top5-map" = 92.3', dataset="tvsum"),
        row('"hd-top5-map" = 88.5', dataset="tvsum"),
    ),
    "domain-mean": (
        row('"hd-top5-map" = 84.2', dataset="tvsum", domains=f"{{ {TVSUM} }}"),
        row('"hd-top5-map" = 84.1', dataset="tvsum", domains=f"{{ {TVSUM} }}"),  # 84.00, each domain rounded by 0.05
    ),
    "equal-columns": (row('"mr-r1@0.7" = 54.71, "hd-map" = 54.71'), row('"mr-r1@0.7" = 54.7, "hd-map" = 54.7')),
    "single-moment": (
        row('"mr-r1@0.5" = 58.0, "mr-map@0.5" = 52.0', dataset="charades"),
        row('"mr-r1@0.5" = 58.0, "mr-map@0.5" = 52.0'),  # several moments per query: AP may well be lower
    ),
    "chosen-on-reported": (row('"mr-map" = 40.0', chosen_on="val"), row('"mr-map" = 40.0', chosen_on="test")),
    "disagree": (row('"mr-map" = 40.0') + row('"mr-map" = 41.0'), row('"mr-map" = 40.0') + row('"mr-map" = 40.01')),
    "split-as-other": (
        row('"mr-map" = 40.0, "hd-map" = 38.0') + row('"mr-map" = 40.0, "hd-map" = 38.0', split="test"),
        row('"mr-map" = 40.0, "hd-map" = 38.0') + row('"mr-map" = 40.0, "hd-map" = 38.1', split="test"),
    ),
    "copied": (
        row('"mr-map" = 40.0, "hd-map" = 38.0') + row('"mr-map" = 40.0, "hd-map" = 38.0', features="i3d/clip"),
        row('"mr-map" = 40.0, "hd-map" = 38.0') + row('"mr-map" = 40.0, "hd-map" = 38.1', features="i3d/clip"),
    ),
    "out-of-line": (
        NEIGHBOURS + row(LINE.format(67.8, 47.81, 54.71)),
        NEIGHBOURS + row(LINE.format(67.8, 47.81, 47.1)),
    ),
    "stale": (
        row('"mr-map" = 40.0', known='{ range = "as printed" }'),
        row('"mr-map" = 140.0', known='{ range = "as printed" }'),
    ),
}  # fmt: skip


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_what_it_is_for_and_nothing_else(rule, tmp_path):
    bad, good = CASES[rule]
    found = [finding for finding in check(rows_of(tmp_path, TOP + bad)) if finding.known is None]
    assert [finding.rule for finding in found] == [rule]
    assert found[0].where.startswith(str(tmp_path / "table.toml")) and found[0].what and found[0].why == RULES[rule]
    assert [f.rule for f in check(rows_of(tmp_path, TOP + good)) if f.known is None] == []


def test_a_finding_names_the_line_of_what_is_wrong(tmp_path):
    text = TOP + row('"mr-map" = 40.0') + row('"mr-r1@0.5" = 54.0, "mr-r1@0.7" = 55.0', method="Mine")
    (found,) = check(rows_of(tmp_path, text))
    line = text.splitlines().index('values = { "mr-r1@0.5" = 54.0, "mr-r1@0.7" = 55.0 }') + 1
    assert found.where == f"{tmp_path}/table.toml:{line}"
    assert found.severity == "impossible" and found.row == "Mine (qvhighlights val, A paper, table 1)"
    assert found.what == "mr-r1@0.7 55 is above mr-r1@0.5 54"


def test_a_row_in_another_form_is_placed_where_the_array_begins(tmp_path):
    (found,) = check(rows_of(tmp_path, TOP + 'row = [{ method = "M", values = { "mr-map" = 101.0 } }]\n'))
    assert found.where.endswith("table.toml:6")


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ('"mr-map@0.5" = 60.0, "mr-map" = 60.2', '"mr-map@0.5" = 60.0, "mr-map" = 59.0'),  # never above mAP@0.5
        ('"mr-map@0.75" = 40.0, "mr-map" = 23.8', '"mr-map@0.75" = 40.0, "mr-map" = 25.0'),  # six thresholds at 40
        ('"mr-r1@0.3" = 50.0, "mr-r1@0.9" = 51.0', '"mr-r1@0.3" = 50.0'),
        ('"mr-r1@0.5" = 50.0, "mr-r5@0.5" = 49.0', '"mr-r1@0.5" = 50.0, "mr-r5@0.5" = 50.0'),
        ('"mr-map" = nan', '"mr-map" = 2'),
        ('"mr-map" = -0.1', '"mr-map" = 100'),
        ('"hd-hit1" = 97.9', '"hd-hit1" = 97.7'),
    ],
)  # fmt: skip
def test_more_that_cannot_be(bad, good, tmp_path):
    (found,) = check(rows_of(tmp_path, TOP + row(bad)))
    assert found.severity == "impossible"
    assert check(rows_of(tmp_path, TOP + row(good))) == []


def test_the_ceiling_of_a_split_that_was_not_counted_has_room(tmp_path):
    assert check(rows_of(tmp_path, TOP + row('"hd-map" = 71.2', split="test"))) == []
    assert [f.rule for f in check(rows_of(tmp_path, TOP + row('"hd-map" = 72.5', split="test")))] == ["ceiling"]


def test_some_domains_leave_room_for_the_others(tmp_path):
    part = "{ VT = 20.0, VU = 20.0, GA = 20.0 }"
    assert check(rows_of(tmp_path, TOP + row('"hd-top5-map" = 70.0', dataset="tvsum", domains=part))) == []
    found = check(rows_of(tmp_path, TOP + row('"hd-top5-map" = 76.2', dataset="tvsum", domains=part)))
    assert found[0].what == "hd-top5-map is 76.2, but the mean of the domains is between 6.00 and 76.00"
    (odd,) = check(rows_of(tmp_path, TOP + row('"hd-top5-map" = 50.0', dataset="tvsum", domains="{ VX = 50.0 }")))
    assert '"VX" is not a domain of tvsum' in odd.what


def test_a_rerun_by_others_may_differ_and_a_citation_may_not(tmp_path):
    for kind, rules in (("rerun", []), ("cited", ["disagree"])):
        other = rows_of(tmp_path, TOP.replace("A paper", "Another") + row('"mr-map" = 41.0', kind=kind), f"{kind}.toml")
        assert [f.rule for f in check([*rows_of(tmp_path, TOP + row('"mr-map" = 40.0')), *other])] == rules


def test_one_value_of_val_in_a_test_row_is_suspicious_of_the_same_method_alone(tmp_path):
    val = row('"mr-map" = 41.22, "hd-map" = 39.13')
    same, other = (row('"mr-map" = 41.44, "hd-map" = 39.13', split="test", method=name) for name in ("M", "N"))
    (found,) = check(rows_of(tmp_path, TOP + val + same))
    assert found.rule == "split-as-other" and found.what == "hd-map 39.13 stands under val too, in table 1"
    assert check(rows_of(tmp_path, TOP + val + other)) == []


def test_a_column_that_repeats_another_is_found_by_its_methods(tmp_path):
    def table(values):
        return "".join(
            row(f'"hd-top5-map" = {value}', dataset="tvsum", method=f"M{number}", features=features)
            for features, column in zip(("i3d/clip", "slowfast/clip"), values, strict=True)
            for number, value in enumerate(column)
        )

    (found,) = check(rows_of(tmp_path, TOP + table(((87.1, 86.7, 85.0, 84.2), (87.1, 86.7, 85.0, 83.5)))))
    assert found.rule == "copied" and found.what.startswith("3 of 4 methods")
    assert check(rows_of(tmp_path, TOP + table(((87.1, 86.7, 85.0, 84.2), (87.1, 86.6, 85.1, 83.5))))) == []


@given(st.lists(st.floats(0, 100), min_size=10, max_size=10), st.sets(st.integers(0, 9), max_size=10))
def test_the_mean_of_falling_precisions_is_inside_its_bounds(values, given_at):
    falling = sorted(values, reverse=True)
    low, high = map_bounds({MAP_THRESHOLDS[i]: falling[i] for i in given_at})
    assert low - 1e-9 <= sum(falling) / 10 <= high + 1e-9
    if len(given_at) == 10:
        assert high - low < 1e-9


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.sets(st.sampled_from([0.3, 0.5, 0.7, 0.9])))
def test_the_mean_iou_is_inside_its_bounds(ious, thresholds):
    known = {at: 100 * sum(iou / 100 >= at for iou in ious) / len(ious) for at in thresholds}
    low, high = miou_bounds(known)
    assert low - 1e-9 <= sum(ious) / len(ious) <= high + 1e-9


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOP + "[[row]]\nmethod = 'M'\nvalue = { a = 1.0 }", r'table.toml:\d: .*'),
        (TOP + row('"mr-map" = "40"'), r"table.toml:8: row.0.values.mr-map = '40'"),
        (TOP, r'the key "row" is missing'),
        (TOP.replace('split = "val"\n', "") + row('"mr-map" = 40.0'), r'table.toml:5: the key "split" is missing, in the row and at the top'),
        (TOP + row('"mr-map" = 40.0', kind="copied"), r"table.toml:9: row.0.kind = 'copied'"),
        ("source = \n", r"table.toml:1: not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line_with_its_place(text, message, tmp_path):
    with pytest.raises(CardError, match=message) as caught:
        rows_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_built_in_rows_hold_nothing_impossible():
    rows = [row for path in builtin_files() for row in read_rows(path)]
    assert len(rows) > 100 and all(row.source and row.table and row.dataset and row.split for row in rows)
    findings = check(rows)
    assert [f for f in findings if f.severity == "impossible" and f.known is None] == []
    assert not any(f.rule == "stale" for f in findings)
    printed = [f for f in findings if "row 11" in f.row]
    assert {f.rule for f in printed} == {"equal-columns", "out-of-line"} and all(f.known for f in printed)


@pytest.mark.parametrize(
    ("variant", "places"),
    [
        ("qd_detr", {("test", "as cited in arXiv:2412.01558v1, table II"): 41.44}),
        ("videolights", {("test", "arXiv:2412.01558v1, table II"): 43.38, ("val", "arXiv:2412.01558v1, table V row 3"): 45.12}),
        ("videolights_b", {("test", "arXiv:2412.01558v1, table II"): 46.53, ("val", "arXiv:2412.01558v1, table V row 6"): 48.44}),
        ("videolights_quick", {}),
    ],
)  # fmt: skip
def test_a_built_in_variant_has_its_published_numbers(variant, places, workspace):
    reported = load_variant(variant, workspace).reported
    assert {(r.split, r.source): r.values["mr-map"] for r in reported} == places
    assert all(r.dataset == "qvhighlights" for r in reported)


def test_a_card_of_the_same_name_in_a_workspace_is_another_model(workspace):
    (workspace / "models").mkdir()
    card = 'extends = "qd_detr"\n[[reported]]\ndataset = "mine"\nsplit = "val"\nsource = "s"\nvalues = { "mr-map" = 1.0 }\n'
    (workspace / "models" / "videolights.toml").write_text(card)
    assert [r.dataset for r in load_variant("videolights", workspace).reported] == ["mine"]


def test_published_numbers_are_checked_against_the_spec(shared):
    """Every number of the tables in the specification of VideoLights stands in the packaged files, under its metric."""
    text = (shared / "spec" / "videolights.md").read_text()
    metrics = ("mr-r1@0.5", "mr-r1@0.7", "mr-map@0.5", "mr-map@0.75", "mr-map", "hd-map", "hd-hit1")
    rows = [row for path in builtin_files() if "videolights" in path.name for row in read_rows(path)]
    held = [{key: row.values.get(key) for key in metrics} for row in rows if row.dataset == "qvhighlights"]
    checked = 0
    for line in text[text.index("### 10.1") : text.index("### 10.5")].splitlines():
        cells = [cell.strip().removesuffix(" (sic)") for cell in line.strip("|").split("|")]
        numbers = [float(cell) for cell in cells[-7:] if cell.replace(".", "", 1).isdigit()]
        if len(cells) in (8, 16) and len(numbers) == 7:
            assert dict(zip(metrics, numbers, strict=True)) in held, line
            checked += 1
    assert checked == 9 + 16


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(workspace, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        return leaving.value.code, out, err

    return call


def test_the_built_in_numbers_pass_and_what_is_known_is_still_printed(run):
    code, out, err = run("--published")
    assert (code, err) == (0, "")
    assert "known       equal-columns" in out and "acknowledged: as printed" in out
    assert " 0 impossible" in out.splitlines()[-1]


def test_something_impossible_fails_unless_its_row_says_why(run, workspace):
    path = workspace / "mine.toml"
    path.write_text(TOP + row('"mr-map" = 140.0'))
    code, out, _ = run("--published", path)
    assert code == 1 and "impossible  range  mine.toml:8" in out and "1 impossible, 0 suspicious, 0 known" in out
    path.write_text(TOP + row('"mr-map" = 140.0', known='{ range = "as printed" }'))
    code, out, _ = run("--published", path)
    assert code == 0 and "0 impossible, 0 suspicious, 1 known" in out
    code, out, _ = run("--published", path, "--json")
    found = json.loads(out)
    assert (
        found["rows"] == 1 and found["findings"][0]["rule"] == "range" and found["findings"][0]["known"] == "as printed"
    )


def test_numbers_that_a_workspace_card_reports_are_checked_too(run, workspace):
    (workspace / "models").mkdir()
    card = 'extends = "qd_detr"\ntitle = "Mine"\n[[reported]]\ndataset = "qvhighlights"\nsplit = "val"\nsource = "s"\nvalues = { "hd-map" = 80.0 }\n'
    (workspace / "models" / "mine.toml").write_text(card)
    code, out, _ = run("--published")
    assert code == 1 and "impossible  ceiling  models/mine.toml:7" in out and "Mine (qvhighlights val, s)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--published", "absent.toml"], "absent.toml: cannot be read"),
        (["--published", "--card", "videolights"], "--published goes with FILEs"),
        (["some.toml"], "a FILE and --json go with --published"),
    ],
)
def test_a_wrong_call_is_explained(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_it_imports_nothing_heavy(workspace):
    code = "import sys\nfrom vlbench.cli import main\ntry: main(['check', '--published'])\nexcept SystemExit: pass\nprint('heavy:', *[m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_the_files_are_packaged():
    assert all(path.is_file() for path in builtin_files())
    assert builtin_files()[0].parent == Path(__file__).resolve().parents[2] / "vlbench" / "published"
