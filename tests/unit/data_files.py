"""A small dataset on disk for the tests of the data floor: two encoders, three splits, every number chosen by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DECLARATION = """\
[datasets.small]
clip_s = 2.0
features = "motion+look/words"
[datasets.small.splits]
train = "train.jsonl"
val = "val.jsonl"
[datasets.small.video]
motion = "motion"
look = "look"
[datasets.small.text]
words = "words"
"""


def rows(split: str, videos: int, first: int = 0) -> list[dict[str, Any]]:
    """One query per video of 20 s with a window from 4 to 10 s."""
    return [
        {
            "qid": first + index,
            "query": f"query {index}",
            "duration": 20,
            "vid": f"{split}{index}",
            "relevant_windows": [[4, 10]],
            "relevant_clip_ids": [2, 3, 4],
            "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 1, 0]],
        }
        for index in range(videos)
    ]


def write_rows(path: Path, content: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def small(folder: Path) -> Path:
    """Write the dataset: 10 training and 4 validation videos of 10 clips, widths 6, 4 and 5."""
    rng = np.random.default_rng(0)
    (folder / "vlbench.toml").write_text(DECLARATION, encoding="utf-8")
    for encoder in ("motion", "look", "words"):
        (folder / encoder).mkdir()
    for split, videos, first in (("train", 10, 0), ("val", 4, 100)):
        content = rows(split, videos, first)
        write_rows(folder / f"{split}.jsonl", content)
        for row in content:
            for encoder, width in (("motion", 6), ("look", 4)):
                features = rng.normal(size=(10, width)).astype(np.float16)
                np.savez_compressed(folder / encoder / f"{row['vid']}.npz", features=features)
            tokens = rng.normal(size=(3 + row["qid"] % 3, 5)).astype(np.float32)
            np.savez_compressed(folder / "words" / f"qid{row['qid']}.npz", last_hidden_state=tokens)
    return folder
