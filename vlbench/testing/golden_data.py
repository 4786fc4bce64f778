"""Golden cases of the data pipeline and of post-processing, as files of arrays and JSON.

``data_pipeline.{npz,json}`` holds scenarios of the released loader: raw feature files, annotation lines and the samples
and batches that came out. ``postprocess_units.json`` and ``postprocessing_cases.json(.gz)`` hold windows before and
after limits, rounding and thinning. Sampled entries cannot be equal, since the generators differ; they are checked for
being among the clips that the rule allows.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbench.cards.kinds import Features
from vlbench.data.base import LAYOUTS, Dataset, declared
from vlbench.data.predictions import clamp_and_round, limit_lengths, nms
from vlbench.data.samples import SampleTargets, collate, inputs, targets
from vlbench.data.types import Query
from vlbench.testing import CaseResult
from vlbench.workspace import Declaration, EncoderTable, FilesTable, Layout

FEATURES = 1e-6  # both sides are float32
LABELS = 2e-6  # labels reach 12, where float32 steps by 1e-6
UNLIMITED = 10**9  # a limit of -1 in the released options
NAMES: Mapping[str, Layout] = {
    "hl": "qvhighlights",
    "charadesSTA": "charades",
    "tacos": "tacos",
    "tvsum": "tvsum",
    "youtube_uni": "youtube",
}


def check_directory(path: Path) -> list[CaseResult]:
    """Every case of the kinds above that the folder holds; an empty list if it holds none."""
    results: list[CaseResult] = []
    if (path / "data_pipeline.json").is_file():
        results += list(_pipeline(path / "data_pipeline.json", path / "data_pipeline.npz"))
    for name, check in (
        ("postprocess_units.json", _units),
        ("postprocessing_cases.json", _cases),
        ("postprocessing_cases.json.gz", _cases),
    ):
        if (path / name).is_file():
            results += list(check(_json(path / name)))
    return results


def _json(path: Path) -> Any:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def _pipeline(description: Path, arrays: Path) -> Iterator[CaseResult]:
    with np.load(arrays) as archive:
        for scenario in _json(description)["scenarios"]:
            with tempfile.TemporaryDirectory() as folder:
                yield _scenario(scenario, archive, Path(folder))


def _scenario(scenario: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], folder: Path) -> CaseResult:
    worst = _Worst()
    options, name = scenario["ctor"], scenario["name"]
    dataset, features = _on_disk(scenario, arrays, folder)
    queries = dataset.queries("train")
    worst.same("queries", [query.qid for query in queries], scenario["item_qids"])
    rng, samples = np.random.default_rng(scenario["python_random_seed"]), []
    for index, query in enumerate(queries):
        clips, words = inputs(dataset, query, features)
        wanted = targets(dataset, query, len(clips), rng, max_windows=options["max_windows"])
        samples.append((query.qid, clips, words, wanted))

        item = f"{name}/item{index}"
        worst.near(f"{item}/video_feat", clips, arrays[f"{item}/video_feat"], FEATURES)
        worst.near(f"{item}/query_feat", words, arrays[f"{item}/query_feat"], FEATURES)
        worst.near(f"{item}/saliency_all_labels", wanted.saliency, arrays[f"{item}/saliency_all_labels"], LABELS)
        worst.same(f"{item}/saliency_pos_index", wanted.salient, arrays[f"{item}/saliency_pos_index"] > 0)
        _spans(worst, item, wanted, arrays[f"{item}/span_labels"], query, options["max_windows"])
        _pairs(worst, item, dataset, query, wanted, len(clips), scenario, index)

    batch = collate(samples, grown=True)
    expected = {key.rpartition("/")[2]: arrays[key] for key in _keys(arrays, f"{name}/batch/")}
    found = {
        "video_feat": batch.clips,
        "video_feat_mask": batch.clip_mask,
        "query_feat": batch.words,
        "query_feat_mask": batch.word_mask,
        "saliency_all_labels": batch.saliency,
        "saliency_pos_index": batch.salient,
    }
    for key, value in found.items():
        worst.near(f"batch/{key}", value, expected[key], FEATURES)
    return worst.result(f"data_pipeline/{name}")


def _on_disk(scenario: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], folder: Path) -> tuple[Dataset, Features]:
    """The scenario's files as a declared dataset, read through the ordinary reader."""
    options = scenario["ctor"]
    pretraining = "pre_train" in options.get("data_file", "") or "subs_train" in options.get("data_file", "")
    for file in scenario["files"]:
        path, rows = folder / file["path"], arrays[f"{scenario['name']}/file/{file['path']}"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if file["key"] is None:
            np.save(path, rows)
        else:
            named: Any = {file["key"]: rows}
            np.savez_compressed(path, **named)
    lines = [dict(row) for row in scenario["annotations"]]
    if pretraining:  # of pre-training files only the first window is used
        lines = [{**row, "relevant_windows": row["relevant_windows"][:1]} for row in lines]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")

    tvsum = options["dset_name"] == "tvsum"
    pairs = ["{vid}_rgb.npy", "{vid}_opt.npy"]
    video = {
        directory: EncoderTable(
            dir=directory,
            file=pairs
            if tvsum and not any(part in directory for part in ("sf_features", "clip_features", "blip"))
            else None,
        )
        for directory in options["v_feat_dirs"]
    }
    table = FilesTable(
        splits={"train": "train.jsonl"},
        video=video,
        text={directory: EncoderTable(dir=directory) for directory in options["q_feat_dirs"]},
        layout=NAMES[options["dset_name"]],
        labels="binary" if pretraining else LAYOUTS[NAMES[options["dset_name"]]].labels,
        clip_s=float(options["clip_len"]),
        max_clips=options["max_v_l"] if options["max_v_l"] > 0 else UNLIMITED,
        max_words=options["max_q_l"] if options["max_q_l"] > 0 else UNLIMITED,
        domain=options.get("dset_domain"),
    )
    dataset = declared(Declaration(scenario["name"], table, folder / "vlbench.toml", ""), None)
    return dataset, Features(tuple(options["v_feat_dirs"]), tuple(options["q_feat_dirs"]))


def _spans(
    worst: _Worst, item: str, found: SampleTargets, expected: NDArray[Any], query: Query, max_windows: int
) -> None:
    if query.windows_se is None or len(query.windows_se) <= max_windows:
        worst.near(f"{item}/span_labels", found.spans_cw, expected, LABELS)
        return
    worst.same(f"{item}/span_labels: count", len(found.spans_cw), len(expected))
    nearest = np.abs(found.spans_cw[:, None] - expected[0]).max()  # a random subset: only scale and form can be told
    worst.true(f"{item}/span_labels: range", bool(nearest <= 1.5))


def _pairs(
    worst: _Worst,
    item: str,
    dataset: Dataset,
    query: Query,
    found: SampleTargets,
    n_clips: int,
    scenario: Mapping[str, Any],
    index: int,
) -> None:
    """Deterministic entries by the label they point at, since the order of ties is open; sampled ones by membership."""
    positive, negative = (np.array(scenario[f"saliency_{side}_labels"][index]) for side in ("pos", "neg"))
    worst.same(f"{item}: pairs", (len(found.positive), len(found.negative)), (len(positive), len(negative)))
    labels = np.asarray(found.saliency)
    if dataset.labels == "qvhighlights":
        worst.same(
            f"{item}: hard pair", labels[[found.positive[0], found.negative[0]]], labels[[positive[0], negative[0]]]
        )
        relevant = set(query.relevant_clips or ())
        worst.true(f"{item}: easy positive", int(found.positive[1]) in relevant)
        others = set(range(n_clips)) - relevant
        worst.true(f"{item}: easy negative", int(found.negative[1]) in others or not others)
    elif dataset.labels == "binary":
        worst.true(f"{item}: positives", bool((labels[found.positive] > 0).all()))
        drawn = (labels > 0).sum() > 1
        worst.same(f"{item}: positives differ", len(set(found.positive.tolist())) == 2, bool(drawn))
        outside = (labels == 0).sum() > 1
        worst.same(f"{item}: negatives outside", bool((labels[found.negative] == 0).all()), bool(outside))
    else:
        worst.same(f"{item}: highest", labels[found.positive], labels[positive])
        worst.same(f"{item}: lowest", labels[found.negative], labels[negative])


# --- post-processing -------------------------------------------------------------------------------------------------


def _units(content: Mapping[str, Any]) -> Iterator[CaseResult]:
    for index, case in enumerate(content["nms"]):
        yield _thinned(f"postprocess_units/nms{index}", case, case["output"])
    for name, case in content["postprocessor"].items():
        yield _processed(f"postprocess_units/{name}", case["args"], [(case["input"], case["output"])])


def _cases(content: Mapping[str, Any]) -> Iterator[CaseResult]:
    for case in content["post_processing"]:
        rows = [
            (before["pred_relevant_windows"], after["pred_relevant_windows"])
            for before, after in zip(case["input"], case["expected"], strict=True)
        ]
        yield _processed(f"postprocessing/{case['setting']}", case["arguments"], rows)
    for index, case in enumerate(content["nms"]):
        yield _thinned(f"postprocessing/nms{index}", case, case["expected"])


def _thinned(name: str, case: Mapping[str, Any], expected: Sequence[Any]) -> CaseResult:
    worst = _Worst()
    found = nms(case["input"], case["nms_thd"], case["max_after_nms"])
    worst.near("windows", found, np.array(expected, dtype=np.float64).reshape(-1, 3), 0.0)
    return worst.result(name)


def _processed(name: str, options: Mapping[str, Any], rows: Sequence[tuple[Any, Any]]) -> CaseResult:
    worst, steps = _Worst(), options["process_func_names"]
    for index, (before, after) in enumerate(rows):
        windows: Any = before
        if "clip_window_l" in steps:
            windows = limit_lengths(windows, options["min_w_l"], options["max_w_l"], options["move_window_method"])
        limit = options["max_ts_val"] if "clip_ts" in steps else None
        windows = clamp_and_round(windows, options["clip_length"] if "round_multiple" in steps else None, limit)
        worst.near(f"row {index}", windows, np.array(after, dtype=np.float64).reshape(-1, 3), 1e-9)
    return worst.result(name)


class _Worst:
    """The largest deviation in units of its tolerance, over all comparisons of a case."""

    def __init__(self) -> None:
        self.name, self.deviation, self.tolerance, self.ratio, self.detail = "", 0.0, 0.0, -1.0, ""

    def near(self, name: str, found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
        """Equal shapes, and values within an absolute tolerance."""
        if found.shape != expected.shape:
            self._note(name, np.inf, tolerance, f"shape {found.shape}, expected {expected.shape}")
            return
        gap = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
        self._note(name, float(gap), tolerance, "")

    def same(self, name: str, found: Any, expected: Any) -> None:
        """Exact equality."""
        equal = np.array_equal(np.asarray(found), np.asarray(expected))
        self._note(name, 0.0 if equal else np.inf, 0.0, "" if equal else f"{found}, expected {expected}")

    def true(self, name: str, holds: bool) -> None:
        """A condition."""
        self._note(name, 0.0 if holds else np.inf, 0.0, "" if holds else "does not hold")

    def _note(self, name: str, deviation: float, tolerance: float, detail: str) -> None:
        ratio = 0.0 if deviation == 0 else deviation / tolerance if tolerance else np.inf
        if not ratio <= self.ratio:  # NaN takes over as well
            self.name, self.deviation, self.tolerance = name, deviation, tolerance
            self.ratio, self.detail = ratio, detail

    def result(self, name: str) -> CaseResult:
        """What the case comes to."""
        return CaseResult(name, bool(self.ratio <= 1.0), self.name, self.deviation, self.tolerance, self.detail)


def _keys(arrays: Mapping[str, Any], prefix: str) -> list[str]:
    return [key for key in arrays if key.startswith(prefix)]
