"""Annotations, features and predictions in QVHighlights' form, made up: no one's data, everyone's shapes.

Videos of 150 s in clips of 2 s, a few shorter; one to six moments a query; three annotators; one compressed ``npz`` per
encoder and video or query. Features are noise, which compresses worse than real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

VIDEO, TEXT = {"slowfast": 2304, "clip": 512, "blip2": 768}, {"clip": 512, "blip2": 768}
DATASET = "made-up"


def annotations(count: int, seed: int = 0) -> list[Row]:
    """``count`` queries, each of a video of its own."""
    rng = np.random.default_rng(seed)
    return [_query(rng, qid) for qid in range(1, count + 1)]


def _query(rng: np.random.Generator, qid: int) -> Row:
    clips = 75 if rng.random() < 0.97 else int(rng.integers(40, 75))
    inside = np.zeros(clips, dtype=bool)
    for _ in range(int(rng.choice([1, 2, 3, 4, 6], p=[0.6, 0.2, 0.1, 0.07, 0.03]))):
        length = int(rng.choice([rng.integers(1, 6), rng.integers(5, 16), rng.integers(15, clips)], p=[0.4, 0.4, 0.2]))
        start = int(rng.integers(0, clips - length + 1))
        inside[start : start + length] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    relevant = np.flatnonzero(inside).tolist()
    return {
        "qid": qid,
        "query": " ".join(["someone", "does", "something", "to", "thing", str(qid)]),
        "duration": 2 * clips,
        "vid": f"upload{qid:05d}_60.0_{60 + 2 * clips}.0",
        "relevant_windows": (2 * edges.reshape(-1, 2)).tolist(),
        "relevant_clip_ids": relevant,
        "saliency_scores": rng.integers(0, 5, (len(relevant), 3)).tolist(),
    }


def write_dataset(
    folder: Path,
    splits: Mapping[str, int],
    *,
    video: Mapping[str, int] = VIDEO,
    text: Mapping[str, int] = TEXT,
    seed: int = 0,
) -> Path:
    """Annotations of the splits, features, and the ``vlbench.toml`` that declares them under ``DATASET``.

    splits: queries by name; ``train`` and ``val`` have to be there. video, text: widths by encoder. Returns the folder.
    """
    rng = np.random.default_rng([seed, 1])
    rows, first = annotations(sum(splits.values()), seed), 0
    for kind, encoders in (("video", video), ("text", text)):
        for name in encoders:
            (folder / f"{name}_{kind}").mkdir(parents=True)
    for name, count in splits.items():
        part = rows[first : first + count]
        first += count
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for row in rows:
        clips, words = row["duration"] // 2, int(rng.integers(8, 25))
        for name, width in video.items():
            values = rng.standard_normal((clips, width), dtype=np.float32)
            np.savez_compressed(folder / f"{name}_video" / f"{row['vid']}.npz", features=values)
        for name, width in text.items():
            values = rng.standard_normal((words, width), dtype=np.float32)
            np.savez_compressed(folder / f"{name}_text" / f"qid{row['qid']}.npz", last_hidden_state=values)
    lines = [f"[datasets.{DATASET}]", 'layout = "qvhighlights"', "", f"[datasets.{DATASET}.splits]"]
    lines += [f'{name} = "{name}.jsonl"' for name in splits]
    for kind, encoders in (("video", video), ("text", text)):
        lines += ["", f"[datasets.{DATASET}.{kind}]", *(f'{name} = "{name}_{kind}"' for name in encoders)]
    (folder / "vlbench.toml").write_text("\n".join(lines) + "\n")
    return folder


def encoder_folders(folder: Path, kind: str, names: Sequence[str]) -> list[Path]:
    """Where a dataset keeps these encoders."""
    return [folder / f"{name}_{kind}" for name in names]


def predictions(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """Ten windows a query, some of them near a moment, and a score for every clip, ties included."""
    rng = np.random.default_rng([seed, 2])
    return [_prediction(rng, row) for row in rows]


def _prediction(rng: np.random.Generator, row: Row) -> Row:
    windows = []
    for _ in range(10):
        if rng.random() < 0.5:
            start, end = rng.choice(np.array(row["relevant_windows"])) + rng.normal(0, 6, 2)
        else:
            start, end = np.sort(rng.uniform(0, row["duration"], 2))
        start = float(np.clip(2 * round(start / 2), 0, row["duration"] - 2))
        end = float(np.clip(2 * round(end / 2), start + 2, row["duration"]))
        windows.append([start, end, float(f"{rng.random():.4f}")])
    score = rng.normal(0, 1, row["duration"] // 2)
    score[row["relevant_clip_ids"]] += 1
    return {
        "qid": row["qid"],
        "query": row["query"],
        "vid": row["vid"],
        "pred_relevant_windows": sorted(windows, key=lambda window: -window[2]),
        "pred_saliency_scores": np.round(score.astype(np.float16), 1).astype(float).tolist(),
    }
