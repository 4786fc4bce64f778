"""What every dataset is held to, callable on yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from vlbench.cards.kinds import Features
from vlbench.data.base import ROLES, Dataset
from vlbench.data.packed import Packed
from vlbench.data.samples import collate, inputs, targets
from vlbench.data.types import Query
from vlbench.testing import CaseResult

SAMPLE = 12  # queries looked at where looking costs a file


def check_dataset(dataset: Dataset, features: Features | None = None) -> list[CaseResult]:
    """The contract of a dataset, one result per clause.

    Args: features: the combination to read; None: the dataset's default, or all of its encoders.
    """
    if features is None:
        everything = Features(tuple(dataset.video_encoders), tuple(dataset.text_encoders))
        features = dataset.default_features or everything
    clauses: dict[str, Callable[[Dataset, Features], Iterator[str]]] = {
        "roles do not share queries or source videos": _apart,
        "windows and clips lie inside the video": _inside,
        "saliency and labels have a row per clip": _rows,
        "inputs are finite and as wide as the encoders": _inputs,
        "targets are in range and the same for the same draws": _targets,
        "packed inputs equal those read one by one": _packed,
        "fingerprints are stable and tell roles apart": _fingerprints,
    }
    results = []
    for name, clause in clauses.items():
        faults = list(clause(dataset, features))
        detail = "; ".join(faults[:3])
        results.append(CaseResult(f"{dataset.name}: {name}", not faults, name, float(len(faults)), 0.0, detail))
    return results


def _apart(dataset: Dataset, _: Features) -> Iterator[str]:
    for index, role in enumerate(ROLES):
        mine = dataset.queries(role)
        if not mine:
            yield f"{role} has no queries"
        for other in ROLES[index + 1 :]:
            theirs = dataset.queries(other)
            for what in ("vid", "source_video"):
                if shared := {getattr(q, what) for q in mine} & {getattr(q, what) for q in theirs}:
                    yield f"{role} and {other} share the {what} {min(shared)}"


def _inside(dataset: Dataset, _: Features) -> Iterator[str]:
    for query in _labelled(dataset):
        if query.windows_se is not None:
            start, end = query.windows_se.T
            if not len(start) or (start < 0).any() or (end > query.duration_s).any() or (end <= start).any():
                yield f"qid {query.qid!r}: windows {query.windows_se.tolist()} in {query.duration_s} s"
        if any(clip < 0 or clip * dataset.clip_s >= query.duration_s for clip in query.relevant_clips or ()):
            yield f"qid {query.qid!r}: relevant clips outside {query.duration_s} s"


def _rows(dataset: Dataset, _: Features) -> Iterator[str]:
    for query in _labelled(dataset):
        if query.saliency is not None and len(query.saliency) != len(query.relevant_clips or ()):
            yield f"qid {query.qid!r}: {len(query.saliency)} scores for {len(query.relevant_clips or ())} clips"
        if "hd" in dataset.tasks and query.saliency is None and query.labels is None:
            yield f"qid {query.qid!r}: no scores in a dataset with highlights"


def _inputs(dataset: Dataset, features: Features) -> Iterator[str]:
    clip_width = sum(dataset.video_encoders[name] for name in features.video) + 2
    word_width = sum(dataset.text_encoders[name] for name in features.text)
    for query in _some(dataset):
        clips, words = inputs(dataset, query, features)
        if clips.shape[1:] != (clip_width,) or not 0 < len(clips) <= dataset.max_clips:
            yield f"qid {query.qid!r}: clips {clips.shape}, expected up to {dataset.max_clips} x {clip_width}"
        if words.shape[1:] != (word_width,) or not 0 < len(words) <= dataset.max_words:
            yield f"qid {query.qid!r}: words {words.shape}, expected up to {dataset.max_words} x {word_width}"
        if not (np.isfinite(clips).all() and np.isfinite(words).all()):
            yield f"qid {query.qid!r}: values that are not finite"


def _targets(dataset: Dataset, features: Features) -> Iterator[str]:
    samples = []
    for query in _some(dataset):
        clips, words = inputs(dataset, query, features)
        one, two = (targets(dataset, query, len(clips), np.random.default_rng(7), cut=True) for _ in range(2))
        samples.append((query.qid, clips, words, one))
        if not (np.array_equal(one.positive, two.positive) and np.array_equal(one.spans_cw, two.spans_cw)):
            yield f"qid {query.qid!r}: equal draws give other targets"
        indices = np.concatenate([one.positive, one.negative])
        if (indices < 0).any() or (indices >= len(clips)).any():
            yield f"qid {query.qid!r}: pairs {indices.tolist()} of {len(clips)} clips"
        if (
            len(one.saliency) > len(clips)
            or (one.saliency < 0).any()
            or not np.array_equal(one.salient, one.saliency > 0)
        ):
            yield f"qid {query.qid!r}: saliency {one.saliency.tolist()}"
    batch = collate(samples)
    if batch.clip_mask.sum() != sum(len(sample[1]) for sample in samples):
        yield "a batch loses clips"


def _packed(dataset: Dataset, features: Features) -> Iterator[str]:
    packed = Packed.open(dataset, "report", features, None)
    for index in range(min(SAMPLE, len(packed))):
        pairs = zip(packed.sample(index), inputs(dataset, packed.queries[index], features), strict=True)
        if not all(np.array_equal(mine, theirs) for mine, theirs in pairs):
            yield f"qid {packed.queries[index].qid!r} differs"


def _fingerprints(dataset: Dataset, features: Features) -> Iterator[str]:
    found = [dataset.fingerprint(role, features) for role in ROLES]
    if len(set(found)) != len(ROLES):
        yield "two roles have one fingerprint"
    if found != [dataset.fingerprint(role, features) for role in ROLES]:
        yield "asked twice, another answer"


def _labelled(dataset: Dataset) -> Iterator[Query]:
    return (query for role in ROLES for query in dataset.queries(role))


def _some(dataset: Dataset) -> Iterator[Query]:
    return (query for role in ROLES for query in dataset.queries(role)[:SAMPLE])
