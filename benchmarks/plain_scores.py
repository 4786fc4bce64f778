"""The published evaluation of QVHighlights in plain form: dictionaries, loops over queries, pools of processes.

Written from the rules (Lei et al., arXiv:2107.09609, as VideoLights extends it): recall of the first window, average
precision of windows at ten thresholds for four ranges of lengths, average precision and HIT@1 of clips at three levels.
Each of the seven average precisions starts a pool of processes of its own, and curves of precision are scikit-learn's,
as in the published code.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

Row = dict[str, Any]

IOUS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
RECALL_IOUS = [0.3, 0.35, 0.4, 0.45, *IOUS]
LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, float("inf"))}
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MOST_WINDOWS, CLIP_S = 10, 2


def evaluate(submission: Sequence[Row], truth: Sequence[Row], *, processes: int = 8) -> dict[str, float]:
    """The published summary in percent, not rounded. processes: of each pool; 0: none, all in this process."""
    brief: dict[str, float] = {}
    for name, (shortest, longest) in LENGTHS.items():
        windows = {
            row["qid"]: [w for w in row["relevant_windows"] if name == "full" or shortest < w[1] - w[0] <= longest]
            for row in truth
        }
        windows = {qid: some for qid, some in windows.items() if some}
        rows = [row for row in submission if row["qid"] in windows]
        precision = moment_precision(rows, windows, processes)
        brief[f"MR-{name}-mAP"] = 100 * float(np.mean(precision))
        if name == "full":
            brief["MR-full-mAP@0.5"] = 100 * float(precision[IOUS.index(0.5)])
            brief["MR-full-mAP@0.75"] = 100 * float(precision[IOUS.index(0.75)])
            brief.update(first_window(rows, windows))
    labels = {row["qid"]: clip_labels(row) for row in truth}
    for name, level in LEVELS.items():
        brief[f"HL-min-{name}-mAP"] = 100 * clip_precision(submission, labels, level, processes)
        brief[f"HL-min-{name}-Hit1"] = 100 * best_clip(submission, labels, level)
    return brief


# --- moments ----------------------------------------------------------------------------------------------------------


def first_window(rows: Sequence[Row], windows: dict[Any, list[list[float]]]) -> dict[str, float]:
    """Mean IoU of the first window with the moment it overlaps most, and how often that reaches a threshold."""
    reached = []
    for row in rows:
        first = row["pred_relevant_windows"][0][:2]
        overlaps = [iou(first, window) for window in windows[row["qid"]]]
        best = windows[row["qid"]][int(np.argmax(overlaps))]
        shared = max(0.0, min(first[1], best[1]) - max(first[0], best[0]))
        hull = max(first[1], best[1]) - min(first[0], best[0])
        reached.append(shared / hull if hull != 0 else 0.0)
    found = {f"MR-full-R1@{at}": 100 * float(np.mean(np.array(reached) >= at)) for at in RECALL_IOUS}
    return {"MR-full-mIoU": 100 * float(np.mean(reached)), **found}


def moment_precision(
    rows: Sequence[Row], windows: dict[Any, list[list[float]]], processes: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Average precision at each threshold, mean over queries."""
    predicted: dict[Any, list[list[float]]] = {}
    for row in rows:
        predicted.setdefault(row["qid"], []).extend(row["pred_relevant_windows"][:MOST_WINDOWS])
    tasks = [(windows[qid], some) for qid, some in predicted.items()]
    return np.mean(spread(moments_of_query, tasks, processes), axis=0)


def moments_of_query(task: tuple[list[list[float]], list[list[float]]]) -> list[float]:
    """Average precision of one query at each threshold."""
    truth, predicted = task
    predicted = sorted(predicted, key=lambda window: -window[2])
    hits = np.zeros((len(IOUS), len(predicted)))
    taken = -np.ones((len(IOUS), len(truth)))
    for rank, window in enumerate(predicted):
        overlaps = np.array([iou(window, one) for one in truth])
        for t, threshold in enumerate(IOUS):
            for candidate in overlaps.argsort()[::-1]:
                if overlaps[candidate] < threshold:
                    break
                if taken[t, candidate] >= 0:
                    continue
                taken[t, candidate] = rank
                hits[t, rank] = 1
                break
    found = []
    for t in range(len(IOUS)):
        right = np.cumsum(hits[t])
        recall, precision = right / len(truth), right / np.arange(1, len(predicted) + 1)
        found.append(area(precision, recall))
    return found


def area(precision: Sequence[float], recall: Sequence[float]) -> float:
    """Under precision over recall, precision being at least what it is at any higher recall."""
    height, at = [0.0, *precision, 0.0], [0.0, *recall, 1.0]
    for i in range(len(height) - 1, 0, -1):
        height[i - 1] = max(height[i - 1], height[i])
    return float(sum((at[i] - at[i - 1]) * height[i] for i in range(1, len(at)) if at[i] != at[i - 1]))


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - shared
    return shared / union if union != 0 else float("nan")


# --- clips ------------------------------------------------------------------------------------------------------------


def clip_labels(row: Row) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Three annotators' scores of every clip, 0 where a clip is not relevant."""
    labels = np.zeros((int(row["duration"] / CLIP_S), 3))
    labels[row["relevant_clip_ids"]] = np.array(row["saliency_scores"])
    return labels


def clip_precision(rows: Sequence[Row], labels: dict[Any, Any], level: int, processes: int) -> float:
    """Average precision of the ranking of clips, mean over queries and annotators."""
    tasks = []
    for row in rows:
        positive = labels[row["qid"]] >= level
        tasks += [(positive[:, annotator], row["pred_saliency_scores"]) for annotator in range(3)]
    return float(np.mean(spread(clips_of_annotator, tasks, processes)))


def clips_of_annotator(task: tuple[Any, list[float]]) -> float:
    """Mean of the precision where recall changes, precision being at least what it is at any higher recall."""
    positive, scores = task
    if len(set(positive.tolist())) == 1:
        return float(positive[0])
    scores = (scores + [0.0] * len(positive))[: len(positive)]
    precision, recall, _ = precision_recall_curve(positive, scores)  # from the lowest score, that is, all clips, on
    for i in range(1, len(precision)):
        precision[i] = max(precision[i - 1], precision[i])
    changes = np.where(recall[:-1] != recall[1:])[0]
    return float(np.mean(precision[changes]))


def best_clip(rows: Sequence[Row], labels: dict[Any, Any], level: int) -> float:
    """How often any annotator likes the clip of the highest score."""
    hits = []
    for row in rows:
        best = int(np.argmax(row["pred_saliency_scores"]))
        liked = labels[row["qid"]].max(axis=1) >= level
        hits.append(float(best < len(liked) and liked[best]))
    return float(np.mean(hits))


def spread(work: Callable[[Any], Any], tasks: list[Any], processes: int) -> list[Any]:
    """The work on every task, by a pool that is started for it."""
    if not processes:
        return [work(task) for task in tasks]
    with multiprocessing.Pool(processes) as pool:
        found = list(pool.imap(work, tasks, chunksize=50))
        pool.close()
        pool.join()
    return found
