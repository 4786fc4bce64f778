"""Protects what a stress study says: areas by hand, the protocol's two statements, ignored queries, holes, files."""

import json
from dataclasses import replace

import pytest

from tests.unit.stress_store import LEVELS, STRESSORS, build
from vlbench.errors import PlanError
from vlbench.report import stress_page
from vlbench.report.stress import LESS_TO_LOSE, OVERALL, judge, read
from vlbench.report.stress_figures import plots
from vlbench.stats.robustness import area_weights


def falling(arm, key, level, per_level=0.1):
    """A tenth of the clean score is lost per level; another video's query, or none, leaves a fifth."""
    if key in ("wrong_query", "query_blank"):
        return 0.2
    return 1 - per_level * level


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return judge(read(build(tmp_path_factory.mktemp("alone"), {"a": 0.5}, falling), "stress-toy"))


def test_areas_and_retention_are_those_of_the_curve(alone):
    want = float(area_weights(LEVELS) @ [1, 0.9, 0.8, 0.7, 0.6, 0.5])
    for key in ("gauss", "clip_drop", OVERALL):
        found = alone.area("a", key, "mr-map")
        assert found.area == pytest.approx(want, abs=0.01) and found.low < want < found.high
        assert found.retention == pytest.approx(0.5, abs=0.01)
        assert found.corrected == pytest.approx((want - 0.2) / 0.8, abs=0.02)
        assert found.ce == pytest.approx(1) and found.relative_ce == pytest.approx(1)
    assert {one.key for one in alone.stress.families} == {"gauss", "clip_drop"}  # anchors and extras do not count


def test_a_level_loses_what_it_loses(alone):
    point = next(p for p in alone.points if (p.key, p.level, p.metric) == ("gauss", 5, "mr-map"))
    clean = float(alone.stress.scores("mr-map", "a").mean())
    assert point.lost == pytest.approx(clean / 2, abs=0.01) and point.low < clean / 2 < point.high
    assert point.mean == pytest.approx(clean - point.lost)


def versus(path, clean, per_level):
    return judge(read(build(path, clean, lambda a, k, lv: falling(a, k, lv, per_level[a])), "stress-toy"))


def test_more_robust_needs_both_statements(tmp_path):
    """b keeps more of as high a score; c keeps more of a score so low that it stays below a's."""
    judged = versus(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.2}, {"a": 0.14, "b": 0.05, "c": 0.05})
    b, c = (judged.gap(arm, OVERALL, "mr-map") for arm in "bc")
    assert b.points > 0 and b.survives and b.statement == "more robust"
    assert c.points > 0 and c.survives and c.corrupted.estimate < 0
    assert c.statement == LESS_TO_LOSE == "loses less because it had less to lose"
    said = "\n".join(stress_page.sentences(judged))
    assert "b against a on MR-mAP: more robust (loses" in said and LESS_TO_LOSE in said
    per_family = judged.gap("b", "gauss", "mr-map")
    assert per_family.p_adjusted >= per_family.contrast.p and per_family.log_retention.estimate > 0


def test_the_other_way_round_is_less_robust_and_equal_ones_are_not_told_apart(tmp_path):
    judged = versus(tmp_path / "1", {"a": 0.5, "b": 0.5}, {"a": 0.05, "b": 0.14})
    assert judged.gap("b", OVERALL, "mr-map").statement == "less robust"
    same = versus(tmp_path / "2", {"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.1})
    assert same.gap("b", OVERALL, "mr-map").statement in ("equivalent", "unresolved")


def test_an_order_that_turns_is_said(tmp_path):
    judged = versus(tmp_path, {"a": 0.5, "b": 0.45}, {"a": 0.18, "b": 0.02})
    order = judged.orders[OVERALL, "mr-map"]
    assert order.clean == ("a", "b") and order.corrupt == ("b", "a") and order.changes > 0.9
    assert any("another order (b, a)" in line for line in stress_page.order_sentences(judged))


@pytest.mark.parametrize(
    ("wrong", "blank", "words"),
    [
        (1.0, 0.2, "ignores its query"),
        (0.6, 0.2, "does not come down to its no-query level"),
        (0.2, 0.2, None),
        (0.2, 0.6, None),
    ],
)
def test_a_variant_that_ignores_its_query_is_found(tmp_path, wrong, blank, words):
    def left(arm, key, level):
        return {"wrong_query": wrong, "query_blank": blank}.get(key, 0.9)

    judged = judge(read(build(tmp_path, {"a": 0.5}, left), "stress-toy"))
    page = stress_page.to_html(judged, [])
    if words is None:
        assert not judged.ignored and "The query." not in page
    else:
        assert {one.metric for one in judged.ignored} == {"mr-map", "hd-map"}
        assert all(words in one.sentence for one in judged.ignored)
        assert page.index(words) < page.index("keeps")  # above every number


def test_what_is_missing_is_named_and_left_out_when_asked(tmp_path):
    store = build(tmp_path, {"a": 0.5}, falling, skip=[("a", "gauss", 3)])
    with pytest.raises(PlanError, match=r"a, gauss level 3: 6 scores of 6, new.*vlbench stress --variant a"):
        read(store, "stress-toy")
    judged = judge(read(store, "stress-toy", allow_missing=True))
    assert judged.area("a", "gauss", "mr-map") is None
    assert [one.key for one in judged.stress.families] == ["clip_drop"]
    assert "gauss level 3" in stress_page.to_markdown(judged)


def test_training_families_are_other_runs_and_stay_out_of_the_headline(tmp_path):
    stressors = (*STRESSORS[:1], ("label_noise", None, LEVELS, "family"))
    judged = judge(read(build(tmp_path, {"a": 0.5, "b": 0.5}, falling, stressors=stressors), "stress-toy"))
    assert [one.key for one in judged.stress.families] == ["gauss"]
    apart, paired = (judged.area("a", key, "mr-map") for key in ("label_noise", "gauss"))
    assert apart.area == pytest.approx(paired.area, abs=0.01)
    assert apart.high - apart.low > paired.high - paired.low  # two sets of runs vary
    gap = judged.gap("b", "label_noise", "mr-map")
    assert set(gap.contrast.seeds) == {"a/clean", "a/spoiled", "b/clean", "b/spoiled"}


def test_one_seed_speaks_about_its_weights_only(tmp_path):
    judged = judge(read(build(tmp_path, {"a": 0.5, "b": 0.5}, falling, seeds=1), "stress-toy"))
    assert judged.gap("b", OVERALL, "mr-map").contrast.estimand == "checkpoint"
    assert any(caution.startswith("One seed") for caution in stress_page.cautions(judged))


def test_every_form_says_the_same_and_equal_stores_give_equal_bytes(tmp_path):
    store = build(tmp_path / "store", {"a": 0.5, "b": 0.3}, falling, kept=0.8)
    first = stress_page.write(store, "stress-toy", tmp_path / "one")
    second = stress_page.write(store, "stress-toy", tmp_path / "two")
    assert [path.name for path in first][-1] == "manifest.json"
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    folder = tmp_path / "one" / "stress-toy"
    results = json.loads((folder / "results.json").read_text())
    kept = next(a for a in results["areas"] if (a["variant"], a["stressor"], a["metric"]) == ("b", OVERALL, "mr-map"))
    page = (folder / "index.html").read_text()
    assert f"{kept['area']:.3f}" in page and f"{kept['area']:.3f}" in (folder / "report.md").read_text()
    assert results["handed"][0]["spearman"] == pytest.approx(0.8)
    rows = (folder / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * (1 + 13)  # metrics, variants, clean and levels
    assert "ab" * 32 in page  # the digest of the severities
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() >= {"index.html", "results.json"}


def test_figures_carry_their_numbers(alone):
    made = {plot.name: plot for plot in plots(alone)}
    assert {"curves-mr-map", "curves-hd-map", "heat-map"} <= made.keys() and "differences" not in made
    assert len(made["curves-mr-map"].panels) == 2  # families with several levels
    cell = next(row for row in made["heat-map"].rows if (row["stressor"], row["metric"]) == ("wrong_query", "mr-map"))
    assert cell["kept"] == pytest.approx(0.2, abs=0.01)  # of one level alone what is left, not half of the way


def test_the_terminal_ends_in_the_answer(tmp_path):
    from rich.console import Console

    judged = versus(tmp_path, {"a": 0.5, "b": 0.5}, {"a": 0.14, "b": 0.05})
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(stress_page.terminal(judged))
    text = " ".join(console.export_text().split())
    assert "more robust" in text and text.index("Who loses least?") < text.index("b against a on MR-mAP")
    console.file.close()


def test_the_index_has_a_line_per_study(tmp_path):
    store = build(tmp_path / "store", {"a": 0.5}, falling)
    (entry,) = stress_page.entries(store, tmp_path)
    assert entry.study == "stress-toy" and entry.answers[0][0] == "a" and not entry.href and not entry.problem


def test_the_report_command_renders_stress_studies_and_keeps_their_lines(tmp_path):
    from vlbench.report.write import write_all

    store = build(tmp_path / "store", {"a": 0.5}, falling)
    (outcome,) = write_all(store, tmp_path / "out")
    assert outcome.problem is None and any(path.name == "index.html" for path in outcome.written)
    index = (tmp_path / "out" / "index.html").read_text()
    assert 'href="stress-toy/index.html"' in index and "keeps" in index
    first = stress_page.entries(store, tmp_path / "out")
    assert stress_page.entries(store, tmp_path / "out") == first  # as it was kept


def test_what_is_read_before_the_noise_is_the_same_and_says_why(tmp_path):
    """Noise on a handed saliency moves moments alone: no flat curve of highlights, and no test of it."""
    stressors = [("head_noise", None, (1, 2, 3, 4, 5), "family")]
    store = build(tmp_path / "store", {"a": 0.5, "b": 0.4}, falling, stressors=stressors)
    found = read(store, "stress-toy")
    hit = {place: {**scores, "hd-map": found.clean[place[0]]["hd-map"] + 1e-16} for place, scores in found.hit.items()}
    judged = judge(replace(found, hit=hit))
    (first, *rest) = stress_page.sentences(judged)
    assert first == "HD-mAP is the same under head noise, because it is read before the place where it acts."
    assert rest and not any("HD-mAP" in sentence for sentence in rest)
    assert any("MR-mAP" in sentence for sentence in rest)
    assert all("HD-mAP" not in line.metric for answer in stress_page.answers(judged) for line in answer["lines"])
    assert "read before the place" not in " ".join(stress_page.sentences(judge(found)))


def test_the_fits_say_what_they_cost_where_it_is_known(tmp_path):
    store = build(tmp_path, {"a": 0.5}, falling)
    judged = judge(read(store, "stress-toy"))
    assert "Peak memory" not in {column.title for column in stress_page.cells_table(judged).columns}
    for cell in judged.stress.cells["a"]:
        store.folder(cell["fit"]).mkdir(parents=True)
        made_by = {"device": "cuda:0", "seconds": 90.0, "device_seconds": 45.0, "peak_bytes": 1_500_000_000}
        (store.folder(cell["fit"]) / "made_by.json").write_text(json.dumps(made_by))
    table = stress_page.cells_table(judge(read(store, "stress-toy")))
    row = dict(zip((column.title for column in table.columns), (cell.text for cell in table.rows[0]), strict=True))
    assert (row["FLOPs"], row["Training"], row["GPU time"], row["Peak memory"]) == ("10", "1m30s", "45s", "1.5 GB")
