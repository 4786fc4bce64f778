"""A stress study written by hand: no training, every number known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlbench.canon import digest_file
from vlbench.runs.store import Store

METRICS = ("mr-map", "hd-map", "mr-r1@0.5")
LEVELS = (1, 2, 3, 4, 5)
Curve = Callable[[str, str, int], float]  # arm, stressor, level -> share of the clean score that is left
STRESSORS: tuple[tuple[str, str | None, tuple[int, ...], str], ...] = (
    ("gauss", None, LEVELS, "family"),
    ("clip_drop", None, LEVELS, "family"),
    ("modality_drop", "clip", (5,), "extra"),
    ("wrong_query", None, (5,), "anchor"),
    ("query_blank", None, (5,), "anchor"),
)


def build(
    root: Path,
    clean: Mapping[str, float],
    left: Curve,
    *,
    seeds: int = 3,
    draws: int = 2,
    queries: int = 60,
    stressors: Sequence[tuple[str, str | None, tuple[int, ...], str]] = STRESSORS,
    skip: Sequence[tuple[str, str, int]] = (),
    kept: float | None = None,
    salt: int = 3,
) -> Store:
    """clean: arm -> mean clean score. left: what share of it a stressor leaves. skip: (arm, stressor, level) unscored.

    Every query is scaled by the same share, with a little noise of run, query and draw.
    """
    store, rng = Store(root), np.random.default_rng(salt)
    difficulty = rng.uniform(0.6, 1.4, queries)
    difficulty /= difficulty.mean()
    arms, spoiled = [], []
    for number, (arm, level_of) in enumerate(clean.items()):
        cells = []
        for seed in range(seeds):
            fit, score = f"f{number}{seed}".ljust(12, "0"), f"a{number}{seed}".ljust(12, "0")
            base = np.clip(level_of * difficulty * (1 + rng.normal(0, 0.01)) + rng.normal(0, 0.02, queries), 0, 1)
            _write(store, score, base, ("selected", "last"))
            cells.append({"seed": seed + 1, "fit": fit, "score": score})
            for place, (family, encoder, levels, _) in enumerate(stressors):
                key = family if encoder is None else f"{family}:{encoder}"
                for level in levels:
                    for draw in range(draws):
                        cell = f"c{number}{seed}{place}{level}{draw}".ljust(12, "0")
                        spoiled.append(
                            {"arm": arm, "seed": seed + 1, "stressor": key, "level": level, "draw": draw,
                             "fit": fit, "score": cell}
                        )  # fmt: skip
                        if (arm, key, level) in skip:
                            continue
                        values = base * left(arm, key, level) + rng.normal(0, 0.004, queries)
                        _write(store, cell, np.clip(values, 0, 1), ("selected",), kept)
        arms.append(
            {"name": arm, "variant": arm, "title": arm.upper(), "features": "slowfast+clip/clip", "edits": [],
             "parameters": 1000 + number, "flops": 10, "reported": [], "cells": cells}
        )  # fmt: skip
    plan: dict[str, Any] = {
        "study": "stress-toy", "kind": "stress", "command": "vlbench stress --variant a", "question": "Who loses least?",
        "component": "", "adds": False, "dataset": "toy", "split": "report: val", "primary": ["mr-map", "hd-map"],
        "margin": 0.5, "seeds": list(range(1, seeds + 1)), "notes": ["a note"], "arms": arms, "variants": list(clean),
        "levels": list(LEVELS), "draws": draws, "severities": {"version": 1, "digest": "ab" * 32},
        "stressors": [
            {"key": family if encoder is None else f"{family}:{encoder}", "family": family, "encoder": encoder,
             "levels": list(levels), "role": role, "on": "video", "amounts": [0.1 * level for level in levels]}
            for family, encoder, levels, role in stressors
        ],
        "spoiled": spoiled,
    }  # fmt: skip
    store.save_plan("stress-toy", plan)
    return store


def _write(store: Store, cell: str, values: np.ndarray, checkpoints: Sequence[str], kept: float | None = None) -> None:
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    queries = len(values)
    parts = []
    for checkpoint in checkpoints:
        columns: dict[str, Any] = {
            "qid": [json.dumps(q) for q in range(queries)],
            "source_video": [f"video{q // 2}" for q in range(queries)],
            "checkpoint": [checkpoint] * queries,
        }
        columns |= {metric: values.astype(np.float32) for metric in METRICS}
        parts.append(pa.table(columns))
    pq.write_table(pa.concat_tables(parts), folder / "queries.parquet")
    record = {
        "cell": cell,
        "kind": "score",
        "kept": kept,
        "files": {"queries.parquet": digest_file(folder / "queries.parquet")},
    }
    store.finish(cell, record, {})
