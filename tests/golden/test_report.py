"""Protects the words and the layout of the rendered report: every change of them is seen and read.

To accept a change, run with VLBENCH_REWRITE_GOLDEN=1 and read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import vlbench
from tests.unit.report_lattice import lattice_arms, lattice_plan
from tests.unit.report_store import build_store, make_scores
from vlbench.report.bibliography import bibtex, paragraph, used
from vlbench.report.compare import compare
from vlbench.report.figures import to_csv
from vlbench.report.formats import to_markdown
from vlbench.report.frame import read
from vlbench.report.latex import to_latex
from vlbench.report.lattice import cube, waterfall
from vlbench.report.page import Report, study_page
from vlbench.report.spread import variance_budget

GOLDEN = Path(__file__).with_name("report")


def compared(root, name):
    """The study behind a rendering: one component with a placebo and a failed run, or a lattice of two."""
    if name.startswith("lattice"):
        arms = lattice_arms(["fra", "bicmf"])
        effects = {arm: 0.06 * (cell[0] == "1") + 0.03 * (cell == "01") for cell, arm in arms.items()}
        extra, parameters = lattice_plan(["fra", "bicmf"]), dict.fromkeys(effects, 1_200_000)
        store = build_store(root, make_scores(effects, seeds=3), extra=extra, parameters=parameters)
        return compare(read(store, "ablate-fra"))
    scores = make_scores({"baseline": 0.06, "without FRA": 0.0, "placebo": 0.05}, seeds=4)
    store = build_store(
        root,
        scores,
        edits={
            "without FRA": ["model.refinement.use: fra -> none"],
            "placebo": ["model.refinement.use: fra -> placebo"],
        },
        notes=["features: slowfast+clip/clip -> clip/clip (in every arm)"],
        failed={("placebo", 3): "the loss is nan in epoch 2, step 1 (terms: span)"},
        warnings=["2 queries have ties for the top clip"],
    )
    return compare(read(store, "ablate-fra", allow_missing=True))


def references(comparison):
    return bibtex(used(comparison))


def body(comparison):
    """The page without figures, styles and scripts."""
    html = study_page(Report(comparison, ())).replace(vlbench.__version__, "VERSION")
    return re.sub(r"<(style|script).*?</\1>\n?", "", html[html.index("<body>") :], flags=re.DOTALL)


def figures_csv(comparison):
    """The numbers behind the figures that only a lattice has, to four decimals."""
    texts = [to_csv(plot) for plot in (cube(comparison), waterfall(comparison), variance_budget(comparison))]
    return "\n".join(re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda x: f"{float(x.group()):.4f}", text) for text in texts)


@pytest.mark.parametrize(
    ("name", "render"),
    [
        ("report.md", to_markdown),
        ("comparison.tex", to_latex),
        ("methods.tex", paragraph),
        ("references.bib", references),
        ("page.html", body),
        ("lattice.md", to_markdown),
        ("lattice.tex", to_latex),
        ("lattice-methods.tex", paragraph),
        ("lattice-figures.csv", figures_csv),
    ],
)
def test_rendered(tmp_path, name, render):
    text = render(compared(tmp_path, name))
    path = GOLDEN / name
    if os.environ.get("VLBENCH_REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
