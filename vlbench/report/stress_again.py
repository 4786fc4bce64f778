"""A stress study against the store: curves, areas, differences and statements as the scores give them now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlbench.canon import digest
from vlbench.report import files
from vlbench.report.again import Again
from vlbench.report.stress import judge, read
from vlbench.report.stress_page import as_json, to_csv
from vlbench.runs.store import Store

COLUMNS = ("variant", "stressor", "level", "metric")  # what a line of scores.csv is about


def again(store: Store, study: str, manifest: Mapping[str, Any]) -> Again:
    """What the report of a stress study would say now. Raises: PlanError where scores that it was made from are gone,
    StoreError where one is not what its record says.
    """
    judged = judge(read(store, study, allow_missing=bool(manifest["missing"])))
    texts = {"results.json": files.json_text(as_json(judged)), "scores.csv": to_csv(judged)}
    cells = {str(cell[kind]) for cell in _entries(manifest) for kind in ("fit", "score")}
    return Again(texts, COLUMNS, len(cells), tuple(_manifest(store, study, manifest)))


def _manifest(store: Store, study: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the report was made from, where that is no longer what the store has."""
    if digest(store.load_plan(study)) != manifest["plan"]:
        yield "plan: the study was planned anew after the report was written"
    for cell in _entries(manifest):
        if "record" not in cell:
            continue
        record = store.record(str(cell["score"]))
        if (None if record is None else digest(record)) != cell["record"]:
            now = "gone" if record is None else "another one" if cell["record"] else "there, and was missing"
            yield f"score {cell['score']} ({_where(cell)}): its record is {now}"


def _entries(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Clean scores, then those under noise."""
    for name, cells in manifest["cells"].items():
        yield from ({"arm": name, **cell} for cell in cells)
    yield from manifest["spoiled"]


def _where(cell: Mapping[str, Any]) -> str:
    under = f", {cell['stressor']} level {cell['level']} draw {cell['draw']}" if "stressor" in cell else ""
    return f"{cell['arm']}, seed {cell['seed']}{under}"
