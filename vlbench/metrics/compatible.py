"""The published evaluators, number for number, quirks included, in full precision.

Each is a *profile* of one procedure, because the repositories share an ancestor and differ in a few decisions. Percent,
not rounded. Where a published evaluator ends in an exception, this one raises a DataError that says why.

| profile | stands for |
|---|---|
| moment_detr | Moment-DETR, QD-DETR, TR-DETR, TaskWeave: the reference for QVHighlights |
| videolights | VideoLights, CG-DETR, LLMEPET: R1 from 0.3, mean IoU; an empty length range scores 0 |
| univtg | UniVTG, R2-Tuning: R5 and mean IoU; "long" without a limit; an empty length range is scored on all queries |
| lighthouse | Lighthouse: only all lengths, and of those only 0 < length <= 1500 s |
| umt, qd | TVSum and YouTube Highlights as in UMT; TVSum as in QD-DETR |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vlbench.data.types import Floats, Prediction, Qid, Query
from vlbench.errors import CardError, DataError, suggestion
from vlbench.metrics import highlights, moments
from vlbench.metrics.highlights import LEVELS, Highlights, TieOrder, binary_ap, tvsum_ap
from vlbench.metrics.moments import IOUS, Array, Moments

AUTO = "auto"  # the evaluator that the field uses for the annotations at hand
CLIP_S = 2.0  # the published code knows no other clip
ANNOTATORS = 3
TVSUM_ANNOTATORS = 20

_FROM_03 = (0.3, 0.35, 0.4, 0.45, *IOUS)
_ALL_KEPT = None
_LENGTHS: dict[str, tuple[float, float] | None] = {
    "short": (0, 10),
    "middle": (10, 30),
    "long": (30, 150),
    "full": _ALL_KEPT,
}


@dataclass(frozen=True)
class Profile:
    """What sets one published evaluator apart.

    recalls: IoU thresholds of R1 (and R5). lengths: name of a range to (longer than, up to) s, None for all windows.
    empty: what an empty range of lengths does: ends in an exception, scores zero, or scores the whole set.
    needs_saliency: whether highlights are evaluated although the annotations have none, which fails.
    labels: which of the label sets it knows, and whether it reads past the end of the labels and drops videos
    without a positive clip.
    """

    name: str
    recalls: tuple[float, ...] = IOUS
    miou: bool = False
    recall_at_5: bool = False
    lengths: Mapping[str, tuple[float, float] | None] = field(default_factory=lambda: _LENGTHS)
    empty: Literal["error", "zero", "whole"] = "error"
    needs_saliency: bool = True
    joint: bool = True
    labels: tuple[str, ...] = ()
    collects: bool = False


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("moment_detr"),
        Profile("videolights", recalls=_FROM_03, miou=True, empty="zero", labels=("tvsum", "youtube")),
        Profile(
            "univtg",
            recalls=_FROM_03,
            miou=True,
            recall_at_5=True,
            lengths={**_LENGTHS, "long": (30, np.inf)},
            empty="whole",
            needs_saliency=False,
            labels=("tvsum", "youtube"),
            collects=True,
        ),
        Profile("lighthouse", lengths={"full": (0, 1500)}, labels=("tvsum", "youtube")),
        Profile("umt", joint=False, labels=("tvsum", "youtube"), collects=True),
        Profile("qd", joint=False, labels=("tvsum",)),
    )
}


@dataclass(frozen=True)
class Official:
    """A published evaluator's result, in percent and unrounded.

    brief: its summary. parts: its other keys (``full``, ``short``, ``HL-min-Fair``, ...). warnings: where its code
    would have warned.
    """

    evaluator: str
    brief: Mapping[str, float]
    parts: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...] = ()

    def complete(self) -> dict[str, Any]:
        """``{"brief": ..., "full": ..., ...}``, as the published code returns it."""
        return {"brief": dict(self.brief), **self.parts}


def evaluate(
    queries: Sequence[Query], predictions: Sequence[Prediction], evaluator: str, *, match_number: bool = True
) -> Official:
    """What a published evaluator makes of a submission with windows, saliency or both.

    Args: match_number: whether queries and predictions have to be the same; if not, what both have is evaluated.
    Raises: DataError where the published code ends in an exception.
    """
    profile = profile_of(evaluator)
    if not profile.joint:
        raise DataError(
            f"the {evaluator} evaluator knows {' and '.join(profile.labels)} only", hint=_others(joint=True)
        )
    asked, given = {query.qid for query in queries}, {row.qid for row in predictions}
    if asked != given:
        if match_number:
            raise _stops(profile, _difference(asked, given))
        queries = [query for query in queries if query.qid in given]
        predictions = [row for row in predictions if row.qid in asked]
    if not predictions:
        raise _stops(profile, "there is no prediction")
    brief: dict[str, float] = {}
    parts: dict[str, Mapping[str, Any]] = {}
    warnings: list[str] = []
    # The first row alone decides what is evaluated.
    if predictions[0].windows is not None:
        found = _moments(profile, queries, predictions, warnings)
        parts |= found
        brief |= _moment_brief(profile, found)
    if predictions[0].saliency is not None and (profile.needs_saliency or queries[0].saliency is not None):
        levels = _highlights(profile, queries, predictions)
        parts |= levels
        brief |= {
            f"{level}-{name.removeprefix('HL-')}{_key(profile, level)}": value
            for level, values in levels.items()
            for name, value in values.items()
        }
    return Official(evaluator, brief, dict(sorted(parts.items())), tuple(warnings))


def summary(
    queries: Sequence[Query], predictions: Sequence[Prediction], evaluator: str = AUTO
) -> tuple[str, dict[str, float], list[str]]:
    """The summary of a published evaluator, in percent: its name, its keys, and what there is to say about it.

    ``auto`` takes the evaluator of the field for such annotations and, where that one stops, a second one; where both
    stop, the summary is empty and the reason is among the notes. An evaluator asked for by name raises instead.
    Raises: DataError where a named evaluator stops.
    """
    dataset = label_set(queries)
    candidates, notes = [evaluator], list[str]()
    if evaluator == AUTO:
        if dataset is not None:
            candidates = ["umt", "videolights"]
        elif any(query.saliency is not None for query in queries):
            candidates = ["moment_detr", "videolights"]
        else:
            candidates = ["videolights"]
            predictions = [replace(row, saliency=None) for row in predictions]
    for name in candidates:
        try:
            if dataset is not None:
                return name, {"mAP": 100 * evaluate_labels(queries, predictions, name, dataset=dataset).mean}, notes
            found = evaluate(queries, predictions, name)
        except DataError as error:
            if evaluator != AUTO:
                raise
            notes.append(str(error))
            continue
        if notes:
            notes.append(f"the published summary is that of the {name} evaluator")
        return name, dict(found.brief), [*notes, *found.warnings]
    return candidates[0], {}, [f"there is no published summary: {notes[0]}"]


def label_set(queries: Sequence[Query]) -> Literal["tvsum", "youtube"] | None:
    """Which of the sets that label every clip the queries are from: many annotators (TVSum) or one label."""
    widths = {query.labels.shape[1] for query in queries if query.labels is not None}
    if not widths:
        return None
    return "tvsum" if max(widths) > 1 else "youtube"


@dataclass(frozen=True)
class LabelResult:
    """A published evaluator's result on TVSum or YouTube Highlights, as a fraction.

    values: per annotator over videos where the profile ``collects`` (TVSum), else per video a list of annotators.
    """

    mean: float
    values: list[Any]
    collects: bool

    def complete(self) -> dict[str, Any]:
        """``{"mAP": ..., "collected": ...}`` or ``{"mAP": ..., "per_video": ...}``."""
        return {"mAP": self.mean, "collected" if self.collects else "per_video": self.values}


def evaluate_labels(
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    evaluator: str,
    *,
    dataset: Literal["tvsum", "youtube"],
    ties: TieOrder = "lower",
) -> LabelResult:
    """What a published evaluator makes of clip scores against labels of every clip.

    Tied scores: the published value hangs on the internals of a sort that is not stable; here ``ties`` decides.
    Raises: DataError where the published code ends in an exception.
    """
    profile = profile_of(evaluator)
    if dataset not in profile.labels:
        raise DataError(f"the {evaluator} evaluator does not know {dataset}", hint=_others(dataset=dataset))
    rows = {row.qid: row for row in predictions}
    videos: list[Array] = []
    for query in queries:
        row = rows.get(query.qid)
        if query.labels is None or row is None or row.saliency is None:
            what = "labels" if query.labels is None else "saliency scores"
            raise _stops(profile, f"video {query.qid!r} has no {what}")
        videos.append(_video_ap(profile, query, row.saliency, dataset, ties))
    if dataset == "tvsum":
        table = np.stack(videos) if videos else np.zeros((0, TVSUM_ANNOTATORS))
        values = table.mean(0) if profile.collects else table
        return LabelResult(_mean(values.ravel()), values.tolist(), profile.collects)
    found = [float(value[0]) for value in videos]
    if profile.collects:
        found = [0.0 if np.isnan(value) else value for value in found]
        return LabelResult(_mean(np.array(found)), found, profile.collects)
    found = [value for value in found if not np.isnan(value)]
    return LabelResult(_mean(np.array(found)), [[value] for value in found], profile.collects)


def profile_of(evaluator: str) -> Profile:
    """The profile of a name. Raises CardError with the near miss."""
    if evaluator not in PROFILES:
        raise CardError(f'"{evaluator}" is not an evaluator', hint=suggestion(evaluator, PROFILES))
    return PROFILES[evaluator]


# --- moments ---------------------------------------------------------------------------------------------------------


def _moments(
    profile: Profile, queries: Sequence[Query], predictions: Sequence[Prediction], warnings: list[str]
) -> dict[str, dict[str, Any]]:
    gold: dict[Qid, list[Floats]] = {}
    for query in queries:
        if query.windows_se is None:
            raise _stops(profile, f"query {query.qid!r} is not annotated with windows")
        gold.setdefault(query.qid, []).append(query.windows_se)
    predicted: dict[Qid, list[Floats]] = {}
    for row in predictions:
        if row.windows is None:
            raise _stops(profile, f"the first row has pred_relevant_windows and that of query {row.qid!r} has not")
        predicted.setdefault(row.qid, []).append(row.windows)
    qids = list(predicted)
    packed = moments.pack([gold[qid] for qid in qids], list(predicted.values()), mode="compatible")
    bare = np.array([any(len(window) == 0 for window in windows) for windows in predicted.values()])
    undefined = _undefined(packed)
    if undefined:
        warnings.append(
            f"the IoU of {undefined} pairs of a predicted and an annotated window is 0/0 or NaN: AP takes it for a hit"
        )
    found: dict[str, dict[str, Any]] = {}
    for name, lengths in profile.lengths.items():
        inside = packed if lengths is None else packed.of_length(*lengths)
        if not inside.asked.any() and lengths is not None and profile.empty == "zero":
            found[name] = _no_such_length()
            continue
        if not inside.asked.any() and profile.empty == "whole":
            lengths, inside = None, packed
        if lengths is None and any(len(window) == 0 for windows in gold.values() for window in windows):
            qid = next(qid for qid, windows in gold.items() if any(len(window) == 0 for window in windows))
            raise _stops(profile, f"query {qid!r} is annotated with an empty list of windows")
        if not inside.asked.any():
            span = "" if lengths is None else f" of a length in ({lengths[0]:g}, {lengths[1]:g}] s"
            raise _stops(profile, f"no query is annotated with a window{span}", "the videolights evaluator scores it 0")
        if (bare & inside.asked).any():
            qid = qids[int(np.flatnonzero(bare & inside.asked)[0])]
            raise _stops(profile, f"query {qid!r} has an empty list of predicted windows")
        found[name] = _moment_scores(profile, inside.take(inside.asked))
    return found


def _moment_scores(profile: Profile, packed: Moments) -> dict[str, Any]:
    ap = packed.ap.mean(0)
    listed = packed.listed_iou
    scores: dict[str, Any] = {}
    if profile.miou:
        scores["MR-mIoU"] = 100 * float(listed[:, 0].mean())
    scores["MR-mAP"] = {str(iou): 100 * float(value) for iou, value in zip(IOUS, ap, strict=True)}
    scores["MR-mAP"]["average"] = 100 * float(ap.mean())
    scores["MR-R1"] = {str(iou): 100 * float((listed[:, 0] >= iou).mean()) for iou in profile.recalls}
    if profile.recall_at_5:
        scores["MR-R5"] = {str(iou): 100 * float((listed >= iou).any(1).mean()) for iou in profile.recalls}
    return scores


def _no_such_length() -> dict[str, Any]:
    """What the VideoLights code writes for an empty range: nineteen thresholds, their raw floats as names, all 0."""
    zeros = {str(float(iou)): 0.0 for iou in np.linspace(0.5, 0.95, 19)} | {"average": 0.0}
    return {"MR-mAP": zeros, "MR-R1": dict(zeros)}


def _moment_brief(profile: Profile, found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    full, key = found["full"], _key(profile, "full")
    brief = {
        f"MR-full-mAP{key}": full["MR-mAP"]["average"],
        f"MR-full-mAP@0.5{key}": full["MR-mAP"]["0.5"],
        f"MR-full-mAP@0.75{key}": full["MR-mAP"]["0.75"],
    }
    for iou in (0.3, 0.5, 0.7):
        if iou in profile.recalls:
            brief[f"MR-full-R1@{iou}{key}"] = full["MR-R1"][str(iou)]
        if profile.recall_at_5:
            brief[f"MR-full-R5@{iou}{key}"] = full["MR-R5"][str(iou)]
    if profile.miou:
        brief[f"MR-full-mIoU{key}"] = full["MR-mIoU"]
    for name, scores in found.items():
        if name != "full":
            brief[f"MR-{name}-mAP"] = scores["MR-mAP"]["average"]
            if profile.recall_at_5:
                brief[f"MR-{name}-mIoU"] = scores["MR-mIoU"]
    return dict(sorted(brief.items()))


def _undefined(packed: Moments) -> int:
    """How many pairs of real windows have no IoU."""
    iou = moments.window_iou(packed.ranked_se[:, :, None], packed.gold_se[:, None])
    pairs = packed.ranked_mask[:, :, None] & packed.gold_mask[:, None]
    return int((np.isnan(iou) & pairs).sum())


# --- highlights ------------------------------------------------------------------------------------------------------


def _highlights(
    profile: Profile, queries: Sequence[Query], predictions: Sequence[Prediction]
) -> dict[str, dict[str, float]]:
    gold = {query.qid: _clip_scores(profile, query) for query in queries}
    scores: dict[Qid, Array] = {}
    for row in predictions:
        if row.saliency is None:
            raise _stops(profile, f"the first row has pred_saliency_scores and that of query {row.qid!r} has not")
        scores[row.qid] = np.asarray(row.saliency, dtype=np.float64)
    for qid, value in scores.items():
        if len(value) == 0:
            raise _stops(profile, f"query {qid!r} has an empty list of saliency scores")
        if not np.isfinite(value[: len(gold[qid])]).all() and _varies(gold[qid]):
            raise _stops(profile, f"query {qid!r} has saliency scores that are not finite")
    packed = highlights.pack([gold[qid] for qid in scores], list(scores.values()), mode="compatible")
    return {f"HL-min-{level}": _level(packed, at_least) for level, at_least in LEVELS.items()}


def _level(packed: Highlights, at_least: int) -> dict[str, float]:
    return {
        "HL-mAP": 100 * float(packed.annotator_ap(at_least).mean()),
        "HL-Hit1": 100 * float(highlights.hit_at_1(packed, at_least=at_least).mean()),
    }


def _varies(gold: Array) -> bool:
    """Whether some annotator has positive and other clips at some level; else the scores are not looked at."""
    positive = gold[None] >= np.array(list(LEVELS.values()))[:, None, None]
    return bool((positive.any(1) & ~positive.all(1)).any())


def _clip_scores(profile: Profile, query: Query) -> Array:
    """(clips, 3): int(duration / 2) clips, and -1 is the last one, as in the published code."""
    if query.relevant_clips is None or query.saliency is None:
        raise _stops(profile, f"query {query.qid!r} is not annotated with saliency")
    ids, count = np.asarray(query.relevant_clips, dtype=np.int64), int(query.duration_s / CLIP_S)
    if len(ids) == 0:
        raise _stops(profile, f"query {query.qid!r} is annotated with an empty list of relevant clips")
    if query.saliency.shape != (len(ids), ANNOTATORS):
        raise _stops(profile, f"query {query.qid!r} does not have {ANNOTATORS} annotators")
    if ids.max() >= count or ids.min() < -count:
        raise _stops(profile, f"query {query.qid!r} has a relevant clip outside its {count} clips")
    scores = np.zeros((count, ANNOTATORS))
    scores[ids] = query.saliency
    return scores


# --- labels ----------------------------------------------------------------------------------------------------------


def _video_ap(profile: Profile, query: Query, score: Floats, dataset: str, ties: TieOrder) -> Array:
    """(20,) for TVSum, (1,) for YouTube Highlights."""
    assert query.labels is not None
    label = query.labels
    if profile.collects and len(score) > len(label):
        raise _stops(profile, f"video {query.qid!r} has {len(score)} scores for {len(label)} clips")
    score = score[: len(label)]
    if dataset == "tvsum":
        if label.shape[1] < TVSUM_ANNOTATORS:
            raise _stops(profile, f"video {query.qid!r} has {label.shape[1]} annotators, not {TVSUM_ANNOTATORS}")
        return tvsum_ap(score, label[:, :TVSUM_ANNOTATORS], mode="compatible", ties=ties)
    if len(label) == 1 and not profile.collects:
        raise _stops(profile, f"video {query.qid!r} has a single clip")
    return np.array([binary_ap(score, label[:, 0], mode="compatible", ties=ties)])


# --- words -----------------------------------------------------------------------------------------------------------


def _key(profile: Profile, part: str) -> str:
    """UniVTG marks the entries of its summary that select checkpoints."""
    return "-key" if profile.name == "univtg" and part in ("full", "HL-min-VeryGood") else ""


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _stops(profile: Profile, why: str, hint: str | None = None) -> DataError:
    return DataError(f"the published {profile.name} evaluator stops here: {why}", hint=hint)


def _difference(asked: set[Qid], given: set[Qid]) -> str:
    missing, unknown = asked - given, given - asked
    parts = []
    for found, what in ((missing, "annotated but not predicted"), (unknown, "predicted but not annotated")):
        if found:
            first = ", ".join(repr(qid) for qid in sorted(found, key=str)[:3])
            parts.append(f"{len(found)} {'query is' if len(found) == 1 else 'queries are'} {what} (such as {first})")
    return " and ".join(parts)


def _others(*, joint: bool = False, dataset: str | None = None) -> str:
    names = [p.name for p in PROFILES.values() if (p.joint if joint else dataset in p.labels)]
    return f"use one of {', '.join(names)}"
