"""A small store written by hand, for the tests of the report floor: no training, every number known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlbench.canon import digest_file
from vlbench.runs.store import Store

QUERIES = 40
METRICS = ("mr-map", "mr-r1@0.5", "mr-map-long", "hd-map")
Scores = Mapping[str, np.ndarray]  # metric -> (seeds, queries)

REPORTED = (
    {"dataset": "toy", "split": "test", "source": "arXiv v1, table II", "values": {"mr-map": 43.38}},
    {"dataset": "elsewhere", "split": "test", "source": "table IV", "values": {"mr-map": 99.9}},
)


def make_scores(
    effects: Mapping[str, float], *, seeds: int = 3, queries: int = QUERIES, salt: int = 7
) -> dict[str, Scores]:
    """arm -> metric -> (seeds, queries): crossed normal components around 0.5, with the arm's effect on mr-map and half
    of it on hd-map; ``mr-map-long`` exists for every second query only.
    """
    rng = np.random.default_rng(salt)
    difficulty = {metric: rng.normal(0, 0.15, queries) for metric in METRICS}
    long = np.arange(queries) % 2 == 0
    found: dict[str, Scores] = {}
    for arm, effect in effects.items():
        size = {"mr-map": effect, "mr-r1@0.5": effect, "mr-map-long": effect, "hd-map": effect / 2}
        table = {}
        for metric in METRICS:
            run = rng.normal(0, 0.004, (seeds, 1))
            noise = rng.normal(0, 0.05, (seeds, queries)) + rng.normal(0, 0.02, queries)
            values = np.clip(0.5 + size[metric] + difficulty[metric] + run + noise, 0, 1)
            values = (values > 0.5).astype(float) if metric == "mr-r1@0.5" else np.round(values, 4)
            if metric == "mr-map-long":
                values[:, ~long] = np.nan
            table[metric] = values
        found[arm] = table
    return found


def build_store(
    root: Path,
    scores: Mapping[str, Scores],
    *,
    study: str = "ablate-fra",
    component: str = "fra",
    question: str = "Does refinement help beyond its parameters?",
    adds: bool = False,
    primary: Sequence[str] = ("mr-map", "hd-map"),
    edits: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    margin: float = 0.5,
    shared_videos: bool = True,
    last_shift: float = -0.01,
    skip: Sequence[tuple[str, int]] = (),
    failed: Mapping[tuple[str, int], str] | None = None,
    reported: Sequence[Mapping[str, Any]] = REPORTED,
    warnings: Sequence[str] = (),
    oddities: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]] | None = None,
    parameters: Mapping[str, int] | None = None,
    selected: int = 3,
    extra: Mapping[str, Any] | None = None,
) -> Store:
    """Write plan.json and every cell's files. Arms in order, the first is the baseline; seeds 0, 1, ...

    skip: (arm, seed) without any file. failed: (arm, seed) -> cause. The last epoch's scores are the selected ones
    plus ``last_shift`` in the baseline only. oddities: (arm, seed) -> what its score warns of, added to ``warnings``;
    None: records as they were before warnings had values. selected: the epoch that was kept, from 0 to 5.
    extra: more keys of the plan.
    """
    store = Store(root)
    failed = failed or {}
    arms = list(scores)
    seeds = next(iter(next(iter(scores.values())).values())).shape[0]
    entries = []
    for number, arm in enumerate(arms):
        cells = []
        for seed in range(seeds):
            fit, score = f"f{number}{seed}{abs(_code(study)):09d}"[:12], f"a{number}{seed}{abs(_code(study)):09d}"[:12]
            cells.append({"seed": seed, "fit": fit, "score": score})
            if (arm, seed) in skip:
                continue
            if (arm, seed) in failed:
                store.folder(fit).mkdir(parents=True)
                store.fail(fit, failed[arm, seed], "", {})
                continue
            one = {metric: values[seed] for metric, values in scores[arm].items()}
            _write_fit(store, fit, seed, one, selected)
            odd = None if oddities is None else oddities.get((arm, seed), ())
            shift = last_shift if number == 0 and selected != 5 else 0.0
            _write_score(store, score, fit, one, shared_videos, shift, warnings, odd)
        entries.append(
            {
                "name": arm,
                "variant": "tiny",
                "title": "Tiny",
                "features": "slowfast+clip/clip",
                "edits": list((edits or {}).get(arm, [] if number == 0 else [f"model.refinement.use: fra -> {arm}"])),
                "parameters": (parameters or {}).get(arm, 1_200_000 - 100_000 * number),
                "reported": [dict(entry) for entry in reported] if number == 0 else [],
                "cells": cells,
            }
        )
    plan = {
        "study": study, "kind": "ablation", "question": question, "component": component, "adds": adds,
        "dataset": "toy", "split": "report: val", "primary": list(primary), "margin": margin,
        "seeds": list(range(seeds)), "notes": list(notes), "arms": entries,
        **(extra or {}),
    }  # fmt: skip
    store.save_plan(study, plan)
    return store


def _code(text: str) -> int:
    return sum((i + 1) * ord(letter) for i, letter in enumerate(text))


def _made_by(seconds: float, seed: int) -> dict[str, Any]:
    return {
        "vlbench": "0.1.0", "source": "abc123def456", "python": "3.11.9", "torch": "2.13.0", "host": "node",
        "device": "cpu", "seconds": seconds, "wall": seconds + 1, "finished": f"2024-05-0{seed + 1}T10:00:00Z",
        "device_seconds": seconds - 3, "peak_bytes": 312_000_000 + seed,
    }  # fmt: skip


def _write_fit(store: Store, cell: str, seed: int, one: Mapping[str, np.ndarray], selected: int) -> None:
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    identity = {"kind": "fit", "seed": seed, "variant": {"recipe": {"select": "mr-map+hd-map", "epochs": 6}}}
    (folder / "spec.json").write_text(json.dumps({"id": cell, "identity": identity, "run": {}}))
    final = {metric: float(np.nanmean(values)) for metric, values in one.items()}
    lines = []
    for epoch in range(6):
        event: dict[str, Any] = {
            "event": "epoch", "epoch": epoch, "lr": 1e-4, "epochs": 6,
            "loss": {"total": 4.0 - 0.5 * epoch + 0.05 * seed, "span": 1.0 - 0.1 * epoch},
        }  # fmt: skip
        if epoch % 2:
            grown = {1: 0.7, 3: 1.02, 5: 0.98}[epoch]  # epoch 3 is the best, and the record says so
            event["tune"] = {metric: value * grown for metric, value in final.items()}
        lines.append(json.dumps(event))
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    record = {
        "cell": cell, "kind": "fit", "parameters": 1_200_000, "epochs": 6, "selected_epoch": selected,
        "queries": {"fit": 200, "tune": 30}, "summary": {}, "files": {},
    }  # fmt: skip
    store.finish(cell, record, _made_by(41.0 + seed, seed))


def _write_score(
    store: Store,
    cell: str,
    fit: str,
    one: Mapping[str, np.ndarray],
    shared_videos: bool,
    shift: float,
    warnings: Sequence[str],
    oddities: Sequence[Mapping[str, Any]] | None,
) -> None:
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    identity = {"kind": "score", "fit": fit, "mode": "compatible", "metrics": dict.fromkeys(one, 1)}
    (folder / "spec.json").write_text(json.dumps({"id": cell, "identity": identity, "run": {}}))
    queries = len(next(iter(one.values())))
    videos = [f"video{q // 2 if shared_videos else q}" for q in range(queries)]
    parts = []
    for checkpoint, moved in (("selected", 0.0), ("last", shift)):
        columns: dict[str, Any] = {
            "qid": [json.dumps(100 + q) for q in range(queries)],
            "source_video": videos,
            "checkpoint": [checkpoint] * queries,
        }
        columns |= {metric: np.clip(values + moved, 0, 1).astype(np.float32) for metric, values in one.items()}
        parts.append(pa.table(columns))
    pq.write_table(pa.concat_tables(parts), folder / "queries.parquet", compression="zstd")
    record = {
        "cell": cell, "kind": "score", "fit": fit, "split": "report: val", "queries": queries,
        "summary": {f"selected/{metric}": float(np.nanmean(values)) for metric, values in one.items()},
        "warnings": list(warnings), "files": {"queries.parquet": digest_file(folder / "queries.parquet")},
    }  # fmt: skip
    if oddities is not None:
        record["oddities"] = [dict(entry) for entry in oddities]
        record["warnings"] = sorted({*warnings, *(entry["text"] for entry in oddities)})
    store.finish(cell, record, _made_by(2.0, 0))
