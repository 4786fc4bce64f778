"""A workspace whose fits take a fraction of a second: a dataset of a few short videos, a narrow variant, a small budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

DATASET = """\
[datasets.tiny]
clip_s = 2.0
features = "look/words"
[datasets.tiny.splits]
train = "train.jsonl"
val = "val.jsonl"
[datasets.tiny.video]
look = "look"
[datasets.tiny.text]
words = "words"
"""

VARIANT = """\
# A narrow VideoLights.
extends = "videolights_quick"
title = "Tiny"

[model]
width = 16
feedforward = 16
[model.decoder]
layers = 1
anchors = 3

[train]
epochs = 3
batch_size = 8
eval_every = 1

[search]
"train.lr" = { low = 1e-4, high = 3e-2, log = true }
"model.dropout" = { low = 0.0, high = 0.4, step = 0.1 }
"model.decoder.layers" = { low = 1, high = 2 }
"loss.giou.use" = { choices = ["giou", "none"] }
"""

BUDGET = """\
sampler = "{sampler}"
pruner = "{pruner}"
trials = {trials}
batch = {batch}
startup = 2
decisions = [1, 2]
seed = 0
final_seeds = {final_seeds}
max_failures = {max_failures}
"""


def workspace(folder: Path) -> Path:
    """Write the dataset and the variant into a folder: 20 training and 5 validation videos of 10 clips."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vlbench.toml").write_text(DATASET, encoding="utf-8")
    for name in ("models", "ablations", "sweeps", "look", "words"):
        (folder / name).mkdir()
    (folder / "models" / "tiny.toml").write_text(VARIANT, encoding="utf-8")
    budget(folder)
    rng = np.random.default_rng(0)
    for split, videos, first in (("train", 20, 0), ("val", 5, 100)):
        rows = []
        for index in range(videos):
            start = int(rng.integers(0, 7))
            clips = [start, start + 1, start + 2]
            vid, qid = f"{split}{index}", first + index
            rows.append(
                {
                    "qid": qid,
                    "query": f"query {index}",
                    "duration": 20,
                    "vid": vid,
                    "relevant_windows": [[2 * start, 2 * start + 6]],
                    "relevant_clip_ids": clips,
                    "saliency_scores": [[4, 3, 4], [4, 4, 4], [3, 4, 2]],
                }
            )
            look = rng.normal(size=(10, 6))
            look[clips] += 2.0
            np.savez_compressed(folder / "look" / f"{vid}.npz", features=look.astype(np.float16))
            words = rng.normal(size=(3, 5)).astype(np.float32)
            np.savez_compressed(folder / "words" / f"qid{qid}.npz", last_hidden_state=words)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def budget(
    folder: Path,
    name: str = "tiny",
    *,
    sampler: str = "tpe",
    pruner: str = "median",
    trials: int = 8,
    batch: int = 3,
    final_seeds: int = 2,
    max_failures: int = 3,
    more: str = "",
) -> None:
    """Write a sweep card."""
    text = BUDGET.format(
        sampler=sampler,
        pruner=pruner,
        trials=trials,
        batch=batch,
        final_seeds=final_seeds,
        max_failures=max_failures,
    )
    (folder / "sweeps" / f"{name}.toml").write_text(text + more, encoding="utf-8")
