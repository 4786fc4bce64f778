"""Protects the words and the layout of the rendered report: every change of them is seen and read.

To accept a change, run with VLBENCH_REWRITE_GOLDEN=1 and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.report_store import build_store, make_scores
from vlbench.report.compare import compare
from vlbench.report.formats import to_markdown
from vlbench.report.frame import read
from vlbench.report.latex import to_latex

GOLDEN = Path(__file__).with_name("report")


@pytest.mark.parametrize(("name", "render"), [("report.md", to_markdown), ("comparison.tex", to_latex)])
def test_rendered(tmp_path, name, render):
    scores = make_scores({"baseline": 0.06, "without FRA": 0.0, "placebo": 0.05}, seeds=4)
    store = build_store(
        tmp_path,
        scores,
        edits={
            "without FRA": ["model.refinement.use: fra -> none"],
            "placebo": ["model.refinement.use: fra -> placebo"],
        },
        notes=["features: slowfast+clip/clip -> clip/clip (in every arm)"],
        failed={("placebo", 3): "the loss is nan in epoch 2, step 1 (terms: span)"},
        warnings=["2 queries have ties for the top clip"],
    )
    text = render(compare(read(store, "ablate-fra", allow_missing=True)))
    path = GOLDEN / name
    if os.environ.get("VLBENCH_REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
