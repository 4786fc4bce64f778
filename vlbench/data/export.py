"""Any dataset as files in the field's layout, with the declaration that reads them back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlbench.data.base import Dataset
from vlbench.data.features import Stream
from vlbench.data.types import Floats, Query
from vlbench.errors import DataError


def export(dataset: Dataset, folder: Path, name: str) -> list[Path]:
    """Write annotations, one folder of npz files per encoder and ``vlbench.toml`` to an empty or new folder.

    Args: name: of the dataset in the declaration.
    Returns: what was written: the annotation files, the encoders' folders, the declaration.
    Raises: DataError if the folder has something in it, or cannot be made.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError("the folder is not empty", where=folder, hint="name a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be made: {error.strerror}", where=folder, hint="name another folder") from None
    written = []
    for split in dataset.splits.values():
        path = folder / f"{split.name}.jsonl"
        rows = (json.dumps(annotation_row(query), ensure_ascii=False) + "\n" for query in split.queries)
        path.write_text("".join(rows), encoding="utf-8")
        written.append(path)
    queries = [query for split in dataset.splits.values() for query in split.queries]
    for kind, names, key, pattern in (
        ("video", dataset.video_encoders, "features", "{vid}"),
        ("text", dataset.text_encoders, "last_hidden_state", "qid{qid}"),
    ):
        for encoder in names:
            place = folder / f"{encoder}_{kind}"
            _write_stream(place, dataset.stream(kind, encoder), queries, key, pattern)
            written.append(place)
    declaration = folder / "vlbench.toml"
    declaration.write_text("\n".join(_declaration(dataset, name)) + "\n", encoding="utf-8")
    return [*written, declaration]


def annotation_row(query: Query) -> dict[str, Any]:
    """A query as a row of an annotation file; whole numbers are written as integers, as the field does."""
    row: dict[str, Any] = {
        "qid": query.qid,
        "query": query.text,
        "duration": _number(query.duration_s),
        "vid": query.vid,
    }
    if query.windows_se is not None:
        row["relevant_windows"] = _numbers(query.windows_se)
    if query.relevant_clips is not None:
        row["relevant_clip_ids"] = list(query.relevant_clips)
    if query.saliency is not None:
        row["saliency_scores"] = _numbers(query.saliency)
    if query.labels is not None:
        row["label"] = _numbers(query.labels)
    if query.domain is not None:
        row["domain"] = query.domain
    return {**row, **query.extra}


def _write_stream(place: Path, stream: Stream, queries: Iterable[Query], key: str, pattern: str) -> None:
    place.mkdir()
    done: set[str] = set()
    for query in queries:
        name = pattern.format(vid=query.vid, qid=query.qid)
        if name not in done:
            done.add(name)
            arrays: Any = {key: stream.read(query)}
            np.savez_compressed(place / f"{name}.npz", **arrays)


def _declaration(dataset: Dataset, name: str) -> list[str]:
    clamp = "none" if dataset.rule.clamp_s is None else dataset.rule.clamp_s
    lines = [
        f"[datasets.{json.dumps(name)}]",
        f"clip_s = {float(dataset.clip_s)}",
        f"max_clips = {dataset.max_clips}",
        f"max_words = {dataset.max_words}",
        f'labels = "{dataset.labels}"',
        f"clamp_s = {json.dumps(clamp)}",
    ]
    if dataset.rule.round_to_s is not None:
        lines.append(f"round_to_s = {float(dataset.rule.round_to_s)}")
    if dataset.default_features is not None:
        lines.append(f'features = "{dataset.default_features}"')
    lines += ["", f"[datasets.{json.dumps(name)}.splits]"]
    lines += [f'{split} = "{split}.jsonl"' for split in dataset.splits]
    for kind, names in (("video", dataset.video_encoders), ("text", dataset.text_encoders)):
        lines += ["", f"[datasets.{json.dumps(name)}.{kind}]"]
        lines += [f'{encoder} = "{encoder}_{kind}"' for encoder in names]
    return lines


def _numbers(values: Floats) -> list[Sequence[float]]:
    return [[_number(value) for value in row] for row in values.tolist()]


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
