"""Protects the texts: names stay text in every format, tables are whole, and bold means one thing."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.unit.report_lattice import lattice_arms, lattice_plan
from tests.unit.report_store import build_store, make_scores
from vlbench.report import bibliography, figures, words
from vlbench.report.compare import Comparison, compare
from vlbench.report.formats import to_csv, to_json, to_markdown
from vlbench.report.frame import read
from vlbench.report.latex import as_good_as_the_best, to_latex
from vlbench.report.page import Report, study_page
from vlbench.report.tables import terminal
from vlbench.stats.correct import holm
from vlbench.stats.design import contrast, difference

NASTY = 'a|b <img src=x onerror=alert(1)> & $x_1$ 50% #{} ~^\\ "q" `c` *d*'


def judged(root, arms, **options) -> Comparison:
    allow = options.pop("allow_missing", False)
    scores = make_scores(arms, seeds=options.pop("seeds", 3))
    return compare(read(build_store(root, scores, **options), "ablate-fra", allow_missing=allow))


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> Comparison:
    return judged(tmp_path_factory.mktemp("usual"), {"baseline": 0.1, "without FRA": 0.0, "placebo": 0.1})


@pytest.fixture(scope="module")
def nasty(tmp_path_factory) -> Comparison:
    return judged(
        tmp_path_factory.mktemp("nasty"),
        {"baseline": 0.1, NASTY: 0.0},
        question=NASTY,
        component=NASTY,
        notes=[NASTY],
        warnings=[NASTY],
        edits={NASTY: [NASTY]},
        reported=[{"dataset": "toy", "split": "te_st", "source": NASTY, "values": {"mr-map": 1.5}}],
    )


@pytest.fixture(scope="module")
def lattice(tmp_path_factory) -> Comparison:
    gains, arms = {"fra": 0.06, "bicmf": 0.03}, lattice_arms(["fra", "bicmf"])
    effects = {arm: sum(g for (_, g), d in zip(gains.items(), c, strict=True) if d == "1") for c, arm in arms.items()}
    extra = lattice_plan(list(gains))
    return judged(tmp_path_factory.mktemp("lattice"), effects, extra=extra, parameters=dict.fromkeys(effects, 9))


class Page(HTMLParser):
    """Tags that are open at the end, every start tag, and the text."""

    void = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_names_are_text_on_the_page(nasty):
    page = Page(study_page(Report(nasty, tuple(figures.plots(nasty)))))
    assert not page.open and "img" not in {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) >= 8


def test_the_page_needs_nothing_else_and_can_be_read_aloud(usual):
    html = study_page(Report(usual, tuple(figures.plots(usual)), ("report.md",)))
    page = Page(html)
    assert (
        not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", html)
        and "@import" not in html
        and "url(http" not in html
    )
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert named <= set(ids)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 4 and tags.count("h1") == 1
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 9 and all(attrs["role"] == "img" for attrs in drawings)
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("#")}
    assert targets <= set(ids)
    assert "prefers-color-scheme: dark" in html and "@media print" in html and len(html) < 5_000_000


def test_latex_escapes_every_special_and_balances(nasty):
    tex = to_latex(nasty)
    body = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}", "", tex)
    assert body.count("{") == body.count("}") and body.count("$") % 2 == 0
    assert "#" not in body and "_" not in body and "~" not in body and "^" not in body
    lines = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(lines) == 4 and len({line.count("&") + 4 * line.count("multicolumn{5}") for line in lines[1:]}) == 1


def test_latex_marks_what_survives_and_the_caption_names_every_sign(usual):
    tex = to_latex(usual)
    assert len(re.findall(r"\d\* &", tex)) == sum(row.survives for row in usual.rows) > 0
    assert "95\\% confidence intervals of the difference" in tex and "Holm over 4 tests" in tex
    assert "*: the difference survives this correction" in tex
    assert "Rep.: printed by a paper (arXiv v1, table II, test)" in tex
    assert "\\toprule" in tex and "\\bottomrule" in tex


def test_latex_bold_is_the_best_and_all_that_are_not_significantly_worse(usual):
    """Worked by hand: every arm against the best one, Holm over these comparisons."""
    tex = to_latex(usual)
    for metric in usual.metrics:
        values = usual.frame.values(metric, "selected")
        means = {arm: usual.means[arm, metric].points for arm in values}
        best = max(means, key=means.get)
        rest = [arm for arm in means if arm != best]
        found = [difference(values[best], values[arm], clusters=usual.frame.clusters_of(metric)).p for arm in rest]
        wanted = {best, *(arm for arm, p in zip(rest, holm(found), strict=True) if p > 0.05)}
        assert as_good_as_the_best(usual, metric) == wanted
        for arm in means:
            number = f"{means[arm]:.2f}"
            assert (f"\\textbf{{{number}}}" in tex) == (arm in wanted)
    assert as_good_as_the_best(usual, "mr-map") == {"baseline", "placebo"}


@pytest.mark.parametrize(
    ("spread", "says"),
    [
        ("sd", "$\\pm$: standard deviation of the means of the runs (n - 1)"),
        ("se", "$\\pm$: standard error of the mean, for re-training"),
        ("ci", "$\\pm$: half of the 95\\% confidence interval of the mean, for re-training"),
    ],
)
def test_latex_says_what_stands_after_a_mean(usual, spread, says):
    tex = to_latex(usual, spread)
    mean = usual.means["placebo", "mr-map"]
    half = (mean.high - mean.low) / 2
    values = usual.frame.values("mr-map", "selected")["placebo"]
    error = 100 * contrast({"a": values}, {"a": 1.0}, clusters=usual.frame.clusters_of("mr-map")).se
    wanted = {"sd": mean.sd_seeds, "se": error, "ci": half}[spread]
    assert says in tex and f"{mean.points:.2f}}} $\\pm$ {wanted:.2f}" in tex


def test_latex_of_one_seed_has_no_standard_deviation(tmp_path):
    tex = to_latex(judged(tmp_path, {"baseline": 0.1, "without FRA": 0.0}, seeds=1))
    assert "pm" not in tex and "standard deviation" not in tex


def test_the_methods_paragraph_cites_what_was_used_and_nothing_else(usual, tmp_path, lattice):
    text, keys = bibliography.paragraph(usual), bibliography.used(usual)
    assert set(keys) == {key for keys in re.findall(r"\\cite\{([^}]*)\}", text) for key in keys.split(",")}
    assert {"holm1979", "benjamini1995", "satterthwaite1946", "cameron2011", "lakens2017"} <= set(keys)
    assert not {"shapley1953", "hwang1990", "box2005"} & set(keys)
    assert {"shapley1953", "box2005"} <= set(bibliography.used(lattice))
    one = bibliography.used(judged(tmp_path, {"baseline": 0.1, "without FRA": 0.0}, seeds=1))
    assert "satterthwaite1946" not in one and "holm1979" in one
    assert text.count("{") == text.count("}") and text.count("$") % 2 == 0 and "3 seeds" in text


def test_every_reference_is_whole_bibtex():
    text = bibliography.bibtex(bibliography.ENTRIES)
    assert text.count("@") == len(bibliography.ENTRIES) and text.count("{") == text.count("}")
    for key, entry in bibliography.ENTRIES.items():
        assert f"@{entry.kind}{{{key}," in text and {"author", "title", "year"} <= entry.fields.keys()
        assert entry.fields["year"] in key and " and " in f"{entry.fields['author']} and "
        assert entry.kind != "article" or {"journal", "volume", "pages"} <= entry.fields.keys()
        assert entry.kind != "inproceedings" or "booktitle" in entry.fields


def test_markdown_tables_keep_their_columns(nasty):
    widths = []
    for line in to_markdown(nasty).splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1
            widths = []
    assert "<img" not in re.sub(r"\\<", "", to_markdown(nasty))


def test_csv_reads_back_unrounded(usual):
    lines = list(csv.DictReader(io.StringIO(to_csv(usual))))
    assert len(lines) == 2 * 3 * 4  # checkpoints, arms, metrics
    (line,) = [x for x in lines if (x["checkpoint"], x["name"], x["metric"]) == ("selected", "placebo", "hd-map")]
    row = usual.row("placebo", "hd-map")
    assert float(line["difference"]) == row.points and float(line["p_adjusted"]) == row.p_adjusted
    assert line["verdict"] == row.verdict.word and line["plus"] == "baseline" and line["missing"] == ""
    (base,) = [x for x in lines if (x["checkpoint"], x["name"], x["metric"]) == ("last", "baseline", "mr-map")]
    assert base["difference"] == "" and float(base["mean"]) > 0


def test_json_holds_both_checkpoints_and_no_nan(usual):
    content = json.loads(to_json(usual), parse_constant=lambda name: pytest.fail(name))
    assert content["unit"] == "points" and content["answer"] == usual.answer
    assert set(content["checkpoints"]) == {"selected", "last"}
    assert [row["claim"] for row in content["checkpoints"]["selected"]["primary"]] == ["without FRA"] * 2 + [
        "placebo"
    ] * 2


def test_every_output_lists_the_holes(tmp_path):
    found = judged(
        tmp_path,
        {"baseline": 0.1, "without FRA": 0.0},
        failed={("without FRA", 1): "the loss is nan"},
        allow_missing=True,
    )
    html = study_page(Report(found, ()))
    assert "the loss is nan" in html and "1 of 6 planned runs missing" in html
    assert "the loss is nan" in to_markdown(found) and "the loss is nan" in to_csv(found)
    assert "1 of 6 planned runs missing: without FRA, seed 1" in to_latex(found)
    assert json.loads(to_json(found))["missing"][0]["cause"] == "the loss is nan"
    assert "failed: the loss is nan" in " ".join(shown(found).split())


def shown(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=False)
    console.print(terminal(comparison))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_says_it_in_words_within_its_width(usual, width):
    text = shown(usual, width)
    assert max(map(len, text.splitlines())) <= width and text.isascii()
    for row in usual.rows:
        assert row.verdict.word in text and f"{row.points:+.2f}" in text
    assert "reported, not measured (baseline; test; arXiv v1, table II): 43.38" in text


@pytest.mark.parametrize("width", [80, 110])
def test_the_terminal_ends_in_the_verdicts(usual, width):
    lines = [line.split() for line in shown(usual, width).rstrip().splitlines()]
    verdicts = [" ".join(line) for line in lines[-1 - len(usual.rows) :]]
    assert verdicts[0] == usual.frame.question and verdicts[1].startswith("FRA against nothing MR-mAP helps +")
    for line, row in zip(verdicts[1:], usual.rows, strict=True):
        assert f"{row.title} {row.verdict.word} {words.signed(row.points)}".replace("−", "-") in line
    assert len(lines) <= 45


def test_a_checkpoint_that_is_always_the_last_is_not_shown_twice_and_is_warned_of(tmp_path):
    found = judged(tmp_path, {"baseline": 0.1, "without FRA": 0.0}, selected=5)
    assert "The last epoch was the best one in 6 of 6 runs: longer training" in " ".join(shown(found, 110).split())
    assert "As a check" not in shown(found)
    assert "so both are the same" in study_page(Report(found, ()))


def test_the_terminal_takes_markup_as_text(nasty):
    assert "onerror=alert(1)" in shown(nasty, 200)


def test_few_seeds_are_called_a_screen_and_one_seed_checkpoints(usual, tmp_path):
    assert "3 seeds: enough to screen, not for a claim" in to_markdown(usual)
    one = judged(tmp_path, {"baseline": 0.1, "without FRA": 0.0}, seeds=1)
    for text in (to_markdown(one), study_page(Report(one, ())), to_latex(one)):
        assert "about these checkpoints, not about the method" in text
