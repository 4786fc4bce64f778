"""Prediction files of the field, and the steps from a model's outputs to one row of them.

The steps are those of the released VideoLights and Moment-DETR code, in their order and in float32, because a border
that lies between two clips is decided by the last bit: spans to seconds, order by score, four decimals, then limits and
rounding as the dataset asks. What differs between datasets is data (``WindowRule``), not code.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlbench.data.annotations import json_lines, numbers, open_text, qid_of
from vlbench.data.types import Floats, Prediction, Query
from vlbench.errors import DataError
from vlbench.files import replacing


@dataclass(frozen=True, slots=True)
class WindowRule:
    """What a dataset does to predicted windows.

    round_to_s: borders become multiples of it, halves to the even multiple; None: no rounding. clamp_s: borders are
    limited to [0, clamp_s]; ``"duration"``: to the length of the video; None: no limit. saliency: whether the
    dataset's prediction files carry saliency.
    """

    round_to_s: float | None
    clamp_s: float | Literal["duration"] | None = None
    saliency: bool = True

    def limit(self, duration_s: float) -> float | None:
        """The largest border in seconds for a video of this length, or None."""
        return duration_s if isinstance(self.clamp_s, str) else self.clamp_s


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Every row in file order, repeated queries included, windows exactly as listed; a key that is absent gives None.

    Raises: DataError with ``file:line`` for a broken row.
    """
    rows = []
    for line, parse in json_lines(open_text(path)):
        try:
            try:
                rows.append(prediction_of(parse()))
            except (OverflowError, RecursionError):
                raise DataError("holds a number or a nesting that is out of all bounds") from None
        except DataError as error:
            raise DataError(error.what, where=f"{path}:{line}", hint=error.hint) from None
    return tuple(rows)


def prediction_of(row: Mapping[str, Any]) -> Prediction:
    """One parsed row. A row without a qid answers the query that is named after its vid (TVSum, YouTube Highlights).

    Raises: DataError if it has neither or holds anything but lists of numbers.
    """
    windows, saliency = row.get("pred_relevant_windows"), row.get("pred_saliency_scores")
    return Prediction(
        qid=qid_of(row if "qid" in row or "vid" not in row else {"qid": row["vid"]}),
        vid=str(row.get("vid", "")),
        text=str(row.get("query", "")),
        windows=None if windows is None else numbers(windows, "pred_relevant_windows", columns=3),
        saliency=None if saliency is None else _scores(saliency),
    )


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write rows in the field's format, whole or not at all; gzip if the name ends in ``.gz``.

    Equal content gives equal bytes: the gzip header carries neither time nor name.
    """
    text = "".join(json.dumps(_row(row), ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def postprocess(
    query: Query,
    *,
    spans_cw: ArrayLike,
    scores: ArrayLike,
    saliency: ArrayLike | None,
    rule: WindowRule,
    n_clips: int | None = None,
    nms_iou: float | None = None,
) -> Prediction:
    """One query's model outputs as a row of the prediction file.

    Args: spans_cw: (A, 2) centre and width in 0..1. scores: (A,) foreground probabilities. saliency: (L,), any scale,
    or None; cut to n_clips, the number of real clips, where that is given. nms_iou: where given, the first ten windows
    are thinned at this IoU.
    Source: videolights.md 5.4.
    """
    spans = np.asarray(spans_cw, dtype=np.float32).reshape(1, -1, 2)
    ranked = np.asarray(scores, dtype=np.float32).reshape(1, -1)
    given = None if saliency is None else np.asarray(saliency)[None]
    lengths = None if n_clips is None else [n_clips]
    (row,) = postprocess_batch([query], spans_cw=spans, scores=ranked, saliency=given, rule=rule, lengths=lengths)
    if nms_iou is None or row.windows is None:
        return row
    return replace(row, windows=nms(row.windows[:10], nms_iou, 10))


def postprocess_batch(
    queries: Sequence[Query],
    *,
    spans_cw: NDArray[np.float32],
    scores: NDArray[np.float32],
    saliency: NDArray[Any] | None,
    rule: WindowRule,
    lengths: Sequence[int] | None,
) -> list[Prediction]:
    """The outputs for B queries, spans_cw (B, A, 2), scores (B, A) and saliency (B, L), as rows of the prediction file.

    lengths: (B,) real clips, to which saliency is cut; None: all are.  Source: videolights.md 5.4.
    """
    duration_s = np.array([query.duration_s for query in queries], dtype=np.float32)
    half = np.float32(0.5) * spans_cw[:, :, 1]
    centre = spans_cw[:, :, 0]
    seconds = np.stack([centre - half, centre + half], axis=2) * duration_s[:, None, None]  # B A 2
    ranked = np.concatenate([seconds, scores[:, :, None]], axis=2)  # B A 3
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(ranked, order[:, :, None], 1)
    limit = duration_s.repeat(scores.shape[1]) if isinstance(rule.clamp_s, str) else rule.clamp_s
    windows = clamp_and_round(four_decimals(ranked), rule.round_to_s, limit).reshape(ranked.shape)
    kept: list[NDArray[np.float64] | None] = [None] * len(queries)
    if rule.saliency and saliency is not None:
        halves = saliency.astype(np.float16).astype(np.float64)
        counts = [halves.shape[1]] * len(queries) if lengths is None else lengths
        kept = [row[:n] for row, n in zip(halves, counts, strict=True)]
    return [
        Prediction(qid=query.qid, vid=query.vid, text=query.text, windows=windows[row], saliency=kept[row])
        for row, query in enumerate(queries)
    ]


def clamp_and_round(
    windows_se_score: ArrayLike, clip_s: float | None, max_s: float | NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Limit borders to [0, max_s], then round them to multiples of clip_s, halves to even; scores to four decimals.

    Args: windows_se_score: (N, 3) start s, end s, score. clip_s, max_s: None leaves the step out; a limit of its own
    for every window: (N,).
    Returns: (N, 3) float64 holding the float32 results; a window can become empty or stay inverted.
    """
    windows = np.asarray(windows_se_score, dtype=np.float32).reshape(-1, 3)
    borders = windows[:, :2]
    if max_s is not None:
        borders = np.clip(borders, np.float32(0), np.asarray(max_s, dtype=np.float32).reshape(-1, 1))
    if clip_s is not None:
        borders = np.round(borders / np.float32(clip_s)) * np.float32(clip_s)
    return np.column_stack([borders.astype(np.float64), four_decimals(windows[:, 2])])


def limit_lengths(
    windows_se_score: ArrayLike, min_s: float, max_s: float, keep: Literal["left", "center", "right"]
) -> NDArray[np.float64]:
    """Windows shorter than min_s or longer than max_s get that length; ``keep`` names the point that stays.

    The published settings configure this step for every dataset and apply it to none, so ``postprocess`` has no use for
    it; it is here to score files made with it. (N, 3) in and out.
    """
    windows = np.array(windows_se_score, dtype=np.float32).reshape(-1, 3)
    length = windows[:, 1] - windows[:, 0]
    for rows, wanted in ((length < min_s, min_s), (length > max_s, max_s)):
        start, end = windows[rows, 0], windows[rows, 1]
        if keep == "left":
            end = start + np.float32(wanted)
        elif keep == "right":
            start = end - np.float32(wanted)
        else:
            centre = (start + end) / np.float32(2)
            start, end = centre - np.float32(wanted / 2), centre + np.float32(wanted / 2)
        windows[rows, 0], windows[rows, 1] = start, end
    return windows.astype(np.float64)


def nms(windows: ArrayLike, iou: float, keep: int) -> NDArray[np.float64]:
    """Greedy thinning: by falling score, every window drops the later ones that overlap it by more than ``iou``.

    Overlap is intersection over the hull of both windows, 0 if the hull is empty. (N, 3) in, at most ``keep`` rows out.
    A single window is returned whatever ``keep`` is.
    """
    rest = np.asarray(windows, dtype=np.float64).reshape(-1, 3)
    if len(rest) <= 1:
        return rest.copy()
    rest = rest[np.argsort(-rest[:, 2], kind="stable")]
    kept: list[NDArray[np.float64]] = []
    while len(rest) and len(kept) < keep:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        shared = np.maximum(0.0, np.minimum(best[1], rest[:, 1]) - np.maximum(best[0], rest[:, 0]))
        hull = np.maximum(best[1], rest[:, 1]) - np.minimum(best[0], rest[:, 0])
        overlap = np.divide(shared, hull, out=np.zeros_like(shared), where=hull != 0)
        rest = rest[~(overlap > iou)]
    return np.stack(kept) if kept else np.zeros((0, 3))


def four_decimals(values: ArrayLike) -> NDArray[np.float64]:
    """Each number as its decimal form with four places, halves by its exact binary value (what ``%.4f`` prints)."""
    array = np.asarray(values)
    if array.dtype in (np.float16, np.float32):  # ten thousand times such a number is exact in float64
        with np.errstate(over="ignore"):
            return np.rint(array.astype(np.float64) * 1e4) / 1e4
    return np.array([float(f"{value:.4f}") for value in array.ravel().tolist()], dtype=np.float64).reshape(array.shape)


def _scores(value: object) -> Floats:
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise DataError("pred_saliency_scores has to be a list of numbers")
    return np.array(value, dtype=np.float64)


def _row(row: Prediction) -> dict[str, Any]:
    written: dict[str, Any] = {"qid": row.qid, "query": row.text, "vid": row.vid}
    if row.windows is not None:
        written["pred_relevant_windows"] = row.windows.tolist()
    if row.saliency is not None:
        written["pred_saliency_scores"] = row.saliency.tolist()
    return written
