"""Evaluator fixtures: real prediction files and hostile cases with the results of the published evaluators.

``check_directory`` runs whatever it finds in a folder of that format, or in one of its sub-folders: prediction files
beside ``<name>.expected.json`` and ``<name>.perquery.jsonl.gz``, ``real_labels.json.gz``, ``joint_cases.json.gz``,
``highlight_only_cases.json.gz``, ``postprocessing_cases.json.gz``, and ``metrics.json`` with rounded results.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlbench.data.annotations import read_annotations
from vlbench.data.predictions import clamp_and_round, limit_lengths, nms, prediction_of, read_predictions
from vlbench.data.types import Prediction, Query
from vlbench.errors import DataError, VlbenchError
from vlbench.metrics.base import Packs
from vlbench.metrics.compatible import ANNOTATORS, Official, evaluate, evaluate_labels
from vlbench.metrics.highlights import LEVELS, TieOrder, hit_at_1
from vlbench.testing import CaseResult

PERCENT = 1e-9  # percent points: sums are taken in another order here
LABELS = 1e-7  # fractions of the label sets, which the published code computes in float32
WINDOWS = 1e-9
VAL = Path("data/annotations/qvhighlights/highlight_val_release.jsonl.gz")
LABEL_FILES = {
    "tvsum": "tvsum/tvsum_{}_release.jsonl.gz",
    "youtube": "youtube_highlights/youtube_highlight_{}_release.jsonl.gz",
}


def check_directory(path: Path) -> list[CaseResult]:
    """Every evaluator fixture under ``path``, in order of the files' names.

    Raises: DataError if ``path`` is not a folder, or ground truth that a fixture needs is not to be found upward of it.
    """
    if not path.is_dir():
        raise DataError("is not a folder", where=path)
    results: list[CaseResult] = []
    for file in sorted(path.rglob("*.json*")):
        for ending, check in _CHECKS.items():
            if file.name == ending or (ending.startswith(".") and file.name.endswith(ending)):
                results += check(file)
    return results


# --- files -----------------------------------------------------------------------------------------------------------


def _prediction_file(expected_path: Path) -> Iterator[CaseResult]:
    """A real prediction file: the complete result of every evaluator, and the values per query."""
    expected = _load(expected_path)
    name = expected_path.name.removesuffix(".expected.json")
    local = expected.get("ground_truth")
    queries = read_annotations(expected_path.parent / local if local else find_upward(expected_path, VAL))
    rows = read_predictions(expected_path.parent / f"{name}.preds.jsonl.gz")
    for evaluator, wanted in expected["evaluators"].items():
        yield _checked(f"{name} / {evaluator}", wanted, partial(evaluate, queries, rows, evaluator))
    per_query = expected_path.parent / f"{name}.perquery.jsonl.gz"
    if per_query.exists():
        yield _per_query(f"{name} / per query", queries, rows, per_query)


def _per_query(name: str, queries: Sequence[Query], rows: Sequence[Prediction], path: Path) -> CaseResult:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        wanted = {row["qid"]: row for row in map(json.loads, filter(str.strip, stream))}
    packs = Packs(queries, rows, "compatible")
    assert packs.moments is not None
    top1, ap, clips = packs.moments.listed_iou[:, 0], packs.moments.ap, packs.clips
    annotator_ap = {} if clips is None else {level: clips.annotator_ap(at) for level, at in LEVELS.items()}
    hit1 = {} if clips is None else {level: hit_at_1(clips, at_least=at) for level, at in LEVELS.items()}
    worst = Worst()
    for i, query in enumerate(queries):
        row = wanted[query.qid]
        found: dict[str, Any] = {"top1_iou": top1[i], "ap": ap[i].tolist()}
        if clips is not None:
            found["hl_ap"] = {level: value[i].tolist() for level, value in annotator_ap.items()}
            found["hit1"] = {level: value[i] for level, value in hit1.items()}
        worst.compare({key: row[key] for key in found}, found, str(query.qid))
    return worst.result(name, PERCENT)


def _joint_cases(path: Path) -> Iterator[CaseResult]:
    for case in _load(path):
        name = f"{path.name.split('.')[0]} / {case['id']}"
        for evaluator, wanted in case["expected"].items():
            yield _checked(f"{name} / {evaluator}", wanted, partial(_evaluate_case, case, evaluator))


def _evaluate_case(case: Mapping[str, Any], evaluator: str) -> Official:
    """Rows are read here, since some official exceptions are errors of reading."""
    queries = [_query(row) for row in case["ground_truth"]]
    return evaluate(queries, [prediction_of(row) for row in case["submission"]], evaluator, **case["kwargs"])


def _checked(name: str, wanted: Mapping[str, Any], run: Callable[[], Official]) -> CaseResult:
    """An exception has to be a vlbench error here; a value has to agree; where the code warned, so must we."""
    try:
        found = run()
    except VlbenchError as error:
        return _raised(name, wanted, error, PERCENT)
    if "exception" in wanted:
        return _silent(name, wanted, PERCENT)
    if wanted.get("warnings") and not found.warnings:
        return CaseResult(name, False, "warnings", float("inf"), PERCENT, "the published evaluator warns, this one not")
    worst = Worst()
    worst.compare(wanted.get("value", wanted), found.complete())
    return worst.result(name, PERCENT)


def _raised(name: str, wanted: Mapping[str, Any], error: VlbenchError, tolerance: float) -> CaseResult:
    if "exception" in wanted:
        return CaseResult(name, True, "", 0.0, tolerance, str(error))
    return CaseResult(name, False, "raised", float("inf"), tolerance, str(error))


def _silent(name: str, wanted: Mapping[str, Any], tolerance: float) -> CaseResult:
    detail = f"the published evaluator raises {wanted['exception']['type']}"
    return CaseResult(name, False, "did not raise", float("inf"), tolerance, detail)


def _real_labels(path: Path) -> Iterator[CaseResult]:
    """Model scores against released labels. Where the order of ties is arbitrary, both plain orders are checked."""
    for case in _load(path):
        labels: dict[str, Query] = {}
        for split in ("train", "val"):
            file = find_upward(path, Path("data/annotations") / LABEL_FILES[case["dataset"]].format(split))
            labels |= {query.vid: query for query in read_annotations(file)}
        rows = [prediction_of({**row, "qid": row["vid"]}) for row in case["predictions"]]
        queries = [labels[row.vid] for row in rows]
        yield from _label_case(
            f"{path.name.split('.')[0]} / {case['id']}", case, queries, rows, bool(case.get("tie_sensitive"))
        )


def _label_cases(path: Path) -> Iterator[CaseResult]:
    for case in _load(path):
        queries, rows = [], []
        for i, video in enumerate(case["videos"]):
            queries.append(_labelled(str(i), video["label"]))
            rows.append(prediction_of({"qid": str(i), "vid": str(i), "pred_saliency_scores": video["pred"]}))
        yield from _label_case(f"{path.name.split('.')[0]} / {case['id']}", case, queries, rows, bool(case.get("ties")))


def _label_case(
    name: str, case: Mapping[str, Any], queries: Sequence[Query], rows: Sequence[Prediction], ties: bool
) -> Iterator[CaseResult]:
    dataset = case["dataset"]
    for evaluator, wanted in case["expected"].items():
        if ties and "exception" not in wanted:
            continue
        label = f"{name} / {evaluator}"
        try:
            found = evaluate_labels(queries, rows, evaluator, dataset=dataset).complete()
        except VlbenchError as error:
            yield _raised(label, wanted, error, LABELS)
            continue
        if "exception" in wanted:
            yield _silent(label, wanted, LABELS)
            continue
        worst = Worst()
        worst.compare(wanted, found)
        yield worst.result(label, LABELS)
    if not ties:
        return
    orders: tuple[TieOrder, ...] = ("lower", "higher")
    for order in orders:
        found = evaluate_labels(queries, rows, "umt", dataset=dataset, ties=order).complete()
        wanted = case[f"expected_{order}_index_first"]
        worst = Worst()
        worst.compare(wanted if isinstance(wanted, Mapping) else {"mAP": wanted}, found, ignore_extra=True)
        yield worst.result(f"{name} / {order} index first", LABELS)


def _postprocessing(path: Path) -> Iterator[CaseResult]:
    """Windows are limited and rounded, and thinned, as the published code does."""
    cases = _load(path)
    for case in cases["post_processing"]:
        worst = Worst()
        for given, wanted in zip(case["input"], case["expected"], strict=True):
            windows = _post_processed(np.array(given["pred_relevant_windows"]).reshape(-1, 3), case["arguments"])
            worst.compare(wanted["pred_relevant_windows"], windows.tolist(), str(given["qid"]))
        yield worst.result(f"postprocessing / {case['setting']}", WINDOWS)
    for i, case in enumerate(cases["nms"]):
        worst = Worst()
        found = nms(np.array(case["input"], dtype=np.float64).reshape(-1, 3), case["nms_thd"], case["max_after_nms"])
        worst.compare(case["expected"], found.tolist())
        yield worst.result(f"nms / {i}", WINDOWS)


def _post_processed(windows: Any, arguments: Mapping[str, Any]) -> Any:
    steps: dict[str, Callable[[Any], Any]] = {
        "clip_window_l": lambda w: limit_lengths(
            w, arguments["min_w_l"], arguments["max_w_l"], arguments["move_window_method"]
        ),
        "clip_ts": lambda w: clamp_and_round(w, None, arguments["max_ts_val"]),
        "round_multiple": lambda w: clamp_and_round(w, arguments["clip_length"], None),
    }
    for step in arguments["process_func_names"]:
        windows = steps[step](windows)
    return windows


def _metrics_file(path: Path) -> Iterator[CaseResult]:
    """Complete results with two decimals, and AP per video with five."""
    cases = _load(path)
    name = path.stem
    for dataset in ("qvhighlights", "charades"):
        if dataset in cases:
            case = cases[dataset]
            queries = [_query(row) for row in case["ground_truth"]]
            found = evaluate(queries, [prediction_of(row) for row in case["submission"]], "videolights")
            worst = Worst()
            worst.compare(case["result"], found.complete())
            yield worst.result(f"{name} / {dataset}", 0.005 + 1e-9)
    for dataset in ("tvsum", "youtube"):
        if dataset in cases:
            yield _label_means(f"{name} / {dataset}", cases[dataset], dataset)


def _label_means(name: str, case: Mapping[str, Any], dataset: Any) -> CaseResult:
    queries = [_labelled(row["vid"], row["label"]) for row in case["meta"]]
    rows = [
        prediction_of({"qid": query.qid, "pred_saliency_scores": pred})
        for query, pred in zip(queries, case["pred"], strict=True)
    ]
    worst = Worst()
    single = [
        evaluate_labels([query], [row], "videolights", dataset=dataset).mean
        for query, row in zip(queries, rows, strict=True)
    ]
    batch = evaluate_labels(queries, rows, "videolights", dataset=dataset).mean
    worst.compare(case["mAP"], {"per_video": single, "batch": batch})
    return worst.result(name, 0.5e-5 + 1e-9)


_CHECKS: dict[str, Callable[[Path], Iterable[CaseResult]]] = {
    ".expected.json": _prediction_file,
    "real_labels.json.gz": _real_labels,
    "joint_cases.json.gz": _joint_cases,
    "highlight_only_cases.json.gz": _label_cases,
    "postprocessing_cases.json.gz": _postprocessing,
    "metrics.json": _metrics_file,
}


# --- comparing -------------------------------------------------------------------------------------------------------


class Worst:
    """The largest difference between two nested results, and where it is."""

    def __init__(self) -> None:
        self.deviation, self.where = 0.0, ""

    def compare(self, wanted: Any, found: Any, where: str = "", *, ignore_extra: bool = False) -> None:
        """Note every difference. Keys and lengths have to agree; NaN equals NaN."""
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            absent = set(wanted) - set(found) if ignore_extra else set(wanted) ^ set(found)
            if absent - {"warnings"}:
                self._note(float("inf"), f"{where} keys {', '.join(sorted(map(str, absent)))}")
            for key in wanted:
                if key in found:
                    self.compare(wanted[key], found[key], f"{where} {key}".strip(), ignore_extra=ignore_extra)
        elif isinstance(wanted, list) and isinstance(found, list):
            if len(wanted) != len(found):
                self._note(float("inf"), f"{where} has {len(found)} entries instead of {len(wanted)}")
            for i, (a, b) in enumerate(zip(wanted, found, strict=False)):
                self.compare(a, b, f"{where}[{i}]", ignore_extra=ignore_extra)
        else:
            a, b = float(wanted), float(found)
            same = a == b or (np.isnan(a) and np.isnan(b))
            difference = 0.0 if same else abs(a - b)
            self._note(float("inf") if np.isnan(difference) else difference, where)

    def result(self, name: str, tolerance: float) -> CaseResult:
        """What was noted, as the result of one case."""
        return CaseResult(name, self.deviation <= tolerance, self.where, self.deviation, tolerance)

    def _note(self, difference: float, where: str) -> None:
        if difference > self.deviation:
            self.deviation, self.where = difference, where


# --- reading ---------------------------------------------------------------------------------------------------------


def find_upward(start: Path, relative: Path) -> Path:
    """The file ``relative`` to a folder above ``start``, or above the current folder or a ``shared`` folder beside it.

    Raises: DataError if there is none.
    """
    current = Path.cwd().resolve()
    for folder in (*start.resolve().parents, current, *current.parents):
        for path in (folder / relative, folder / "shared" / relative):
            if path.is_file():
                return path
    raise DataError(f"the ground truth {relative} is not in any folder above", where=start)


def _load(path: Path) -> Any:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return _numbers(json.loads(text))


def _numbers(value: Any) -> Any:
    """NaN and infinities are written as strings in these files."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return value


def _query(row: Mapping[str, Any]) -> Query:
    """A row as it is: hostile cases hold what the reader of annotation files refuses."""
    saliency, clips = row.get("saliency_scores"), row.get("relevant_clip_ids")
    return Query(
        qid=row["qid"],
        text=row["query"],
        vid=row["vid"],
        duration_s=float(row["duration"]),
        windows_se=np.array(row["relevant_windows"], dtype=np.float64).reshape(-1, 2),
        relevant_clips=None if clips is None else tuple(clips),
        saliency=None if saliency is None else np.array(saliency, dtype=np.float64).reshape(len(saliency), ANNOTATORS),
    )


def _labelled(qid: str, label: Sequence[Sequence[float]]) -> Query:
    return Query(qid=qid, text="", vid=qid, duration_s=2.0 * len(label), labels=np.array(label, dtype=np.float64))
