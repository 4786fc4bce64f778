"""What a corruption has to keep, yours too: nothing at level 0, more at every level, the same noise anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.corrupt.base import INPUTS, Moments, Noise, Rows, Sample
from vlbench.corrupt.severities import Severities
from vlbench.data.types import Query
from vlbench.streams import stream
from vlbench.testing import CaseResult

VIDEO = {"wide": 24, "narrow": 7}  # encoder -> width
TEXT = {"words": 12, "other": 5}
CLIPS, TOKENS = (75, 60, 75, 40, 75, 1, 2, 73), (10, 6, 14, 4, 32, 1, 2, 9)  # of the samples, in turn
SAMPLES, DRAWS = 80, 3
ANCHORS = 10
SLACK = 0.02  # other places can by chance be a little nearer in what they show
FACTS = ("on", "parameter")

Parts = Mapping[str, NDArray[Any]]  # of one thing that is spoiled, by name
Apply = Callable[[float, int, Sequence[int]], list[Parts]]  # amount, draw, the order to ask in -> by sample


@dataclass(frozen=True, slots=True)
class _Trial:
    """given: every sample as it is. apply: every sample under an amount and a draw. fault: what is wrong with one."""

    given: list[Parts]
    apply: Apply
    fault: Callable[[Parts, Parts], str]


def check_corruption(name: str, severities: Severities | None = None) -> list[CaseResult]:
    """Hold the registered corruption ``name`` to what stress tests count on, on random features, scores and labels.

    Checked: declared facts; amount 0 changes nothing; distortion does not fall from level to level, and the last level
    distorts; a draw gives the same result in any order of samples, and another draw another one; only what may be
    touched changes, shapes stay, but a query may lose tokens to the last; what is given is not changed in place.
    """
    severities = severities or Severities.read()
    entry = catalog.corruptions[name]
    absent = [fact for fact in FACTS if fact not in entry.facts]
    results = [_case(f"{name}: declared", not absent, f"lacks {', '.join(absent)}" if absent else "")]
    if absent or entry.facts["on"] == "training":
        return results
    on = str(entry.facts["on"])
    amounts = [severities.amount(name, level) for level in severities.levels(name)]
    if on in INPUTS:
        found = [*VIDEO] if on == "video" else [*TEXT]
        results += _checks(name, _inputs(name, on, found), amounts)
        if entry.facts.get("by_encoder"):
            results += _checks(f"{name} of {found[1]}", _inputs(name, on, found[1:]), amounts)
        return results
    if on == "head":
        return [*results, *_checks(name, _handed(name), amounts)]
    if on == "handed":
        moments = _handed(name, moments=True)
        return [*results, *_checks(name, _handed(name), amounts), *_checks(f"{name} of moments", moments, amounts)]
    return [*results, *_checks(name, _labelled(name), amounts)]


def _checks(name: str, trial: _Trial, amounts: Sequence[float]) -> Iterator[CaseResult]:
    forward, backward = range(len(trial.given)), range(len(trial.given) - 1, -1, -1)
    before = [{key: value.copy() for key, value in parts.items()} for parts in trial.given]
    yield _case(f"{name}: level 0 is clean", _same(trial.apply(0.0, 0, forward), trial.given))
    for draw in range(DRAWS):
        results = [trial.apply(amount, draw, forward) for amount in amounts]
        distances = [0.0, *(_distance(trial.given, result) for result in results)]
        shown = ", ".join(f"{distance:.4g}" for distance in distances)
        grows = all(b >= a * (1 - SLACK) for a, b in itertools.pairwise(distances))
        yield _case(f"{name}: distortion grows with the level (draw {draw})", grows, shown)
        yield _case(f"{name}: the last level distorts (draw {draw})", distances[-1] > 0, shown)
        faults = [
            fault
            for result in results
            for parts, changed in zip(trial.given, result, strict=True)
            if (fault := trial.fault(parts, changed))
        ]
        yield _case(f"{name}: only what may be touched (draw {draw})", not faults, "; ".join(faults[:3]))
        again = trial.apply(amounts[-1], draw, backward)
        yield _case(f"{name}: the same noise in any order (draw {draw})", _same(again, results[-1]))
    if len(amounts) > 1:  # an anchor need not be random
        middle = amounts[len(amounts) // 2]
        other = _same(trial.apply(middle, 0, forward), trial.apply(middle, 1, forward))
        yield _case(f"{name}: another draw is other noise", not other)
    yield _case(f"{name}: what is given stays as it was", _same(before, trial.given))


# --- what is spoiled --------------------------------------------------------------------------------------------------


def _inputs(name: str, on: str, touched: Sequence[str]) -> _Trial:
    samples = random_samples(SAMPLES, tuple(touched))
    function = catalog.corruptions[name].load()

    def apply(amount: float, draw: int, order: Sequence[int]) -> list[Parts]:
        noise = Noise(name, draw, random_moments, _Others(samples))
        found = {row: _parts(function(samples[row], amount, noise)) for row in order}
        return [found[row] for row in range(len(samples))]

    def fault(given: Parts, changed: Parts) -> str:
        may = {f"{'clips' if on == 'video' else 'words'}/{encoder}" for encoder in touched}
        for key, rows in given.items():
            now = changed[key]
            lost = on != "video" and key.startswith("words") and now.shape[1:] == rows.shape[1:] and len(now) > 0
            if now.dtype != np.float32 or (now.shape != rows.shape and not lost):
                return f"{key} became {now.dtype} {now.shape}"
            if key not in may and not (on != "video" and lost and len(touched) > 1) and not np.array_equal(now, rows):
                return f"{key} changed"
        counts = {len(rows) for key, rows in changed.items() if key.startswith("words")}
        return f"text encoders have {sorted(counts)} tokens" if len(counts) > 1 else ""

    return _Trial([_parts(sample) for sample in samples], apply, fault)


def _handed(name: str, *, moments: bool = False) -> _Trial:
    """Saliency (n,), or moments (A, 2): centre and width of each anchor."""
    queries = random_queries(SAMPLES)
    draws = [stream(0, "check", "scores", query.qid) for query in queries]
    scores = [
        (rng.uniform(0.1, 0.6, (ANCHORS, 2)) if moments else rng.normal(size=_clips(i))).astype(np.float32)
        for i, rng in enumerate(draws)
    ]
    function = catalog.corruptions[name].load()

    def apply(amount: float, draw: int, order: Sequence[int]) -> list[Parts]:
        noise = Noise(name, draw)
        found = {row: {"scores": function(queries[row], scores[row], amount, noise)} for row in order}
        return [found[row] for row in range(len(queries))]

    def fault(given: Parts, changed: Parts) -> str:
        rows = changed["scores"]
        fits = rows.shape == given["scores"].shape and rows.dtype == np.float32 and bool(np.isfinite(rows).all())
        if moments and fits and (rows.min() < 0 or rows.max() > 1):
            return "a moment left the video"
        return "" if fits else f"scores became {rows.dtype} {rows.shape}, or are not finite"

    return _Trial([{"scores": values} for values in scores], apply, fault)


def _labelled(name: str) -> _Trial:
    queries = random_queries(SAMPLES)
    function = catalog.corruptions[name].load()
    touchable = ("windows", "saliency")

    def apply(amount: float, draw: int, order: Sequence[int]) -> list[Parts]:
        noise = Noise(name, draw)
        found = {row: _labels(function(queries[row], amount, noise)) for row in order}
        return [found[row] for row in range(len(queries))]

    def fault(given: Parts, changed: Parts) -> str:
        for key, rows in given.items():
            if changed[key].shape != rows.shape:
                return f"{key} became {changed[key].shape}"
            if key not in touchable and not np.array_equal(changed[key], rows):
                return f"{key} changed"
        windows, low = changed["windows"], changed["saliency"]
        if (windows[:, 0] > windows[:, 1]).any() or windows.min() < 0 or windows.max() > given["duration"][0]:
            return "a moment is turned round or outside the video"
        return "a score left the scale" if low.size and (low.min() < 0 or low.max() > 4) else ""

    return _Trial([_labels(query) for query in queries], apply, fault)


def _labels(query: Query) -> Parts:
    assert query.windows_se is not None and query.saliency is not None and query.relevant_clips is not None
    return {
        "windows": np.asarray(query.windows_se),
        "saliency": np.asarray(query.saliency),
        "relevant": np.array(query.relevant_clips),
        "duration": np.array([query.duration_s]),
        "names": np.array([str(query.qid), query.vid, query.source_video, query.text]),
    }


def _parts(sample: Sample) -> Parts:
    clips = {f"clips/{encoder}": rows for encoder, rows in sample.clips.items()}
    return clips | {f"words/{encoder}": rows for encoder, rows in sample.words.items()}


# --- random subjects --------------------------------------------------------------------------------------------------


def random_queries(count: int) -> list[Query]:
    """Queries with moments and three annotators' saliency, two per video, four per upload."""
    found = []
    for i in range(count):
        rng, clips = stream(0, "check", "query", i), _clips(i)
        relevant = np.flatnonzero(rng.random(clips) < 0.4)
        start = rng.random(2) * clips
        found.append(
            Query(
                qid=i,
                text=f"query {i}",
                vid=f"video {i - i % len(CLIPS)}/{i % len(CLIPS)}",
                duration_s=2.0 * clips,
                windows_se=np.stack([start, start + rng.random(2) * (2.0 * clips - start)], axis=1),
                relevant_clips=tuple(relevant.tolist()),
                saliency=rng.integers(0, 5, size=(len(relevant), 3)).astype(np.float64),
                source_video=f"upload {i // 4}",
            )
        )
    return found


def random_samples(count: int, touched: tuple[str, ...]) -> list[Sample]:
    """Samples whose clips drift slowly, so that a clip from farther away differs more, and whose words do not."""

    def rows(kind: str, encoder: str, width: int, i: int, steady: float, length: int) -> Rows:
        steps = stream(0, "check", kind, encoder, i).normal(size=(length, width))
        for place in range(1, length):
            steps[place] = steady * steps[place - 1] + np.sqrt(1 - steady**2) * steps[place]
        return steps.astype(np.float32)

    return [
        Sample(
            query=query,
            clips={e: rows("video", e, width, i, 0.9, _clips(i)) for e, width in VIDEO.items()},
            words={e: rows("text", e, width, i, 0.0, TOKENS[i % len(TOKENS)]) for e, width in TEXT.items()},
            touched=touched,
        )
        for i, query in enumerate(random_queries(count))
    ]


def random_moments(encoder: str) -> Moments:
    """What the clips of ``random_samples`` have: mean 0, standard deviation 1."""
    width = VIDEO[encoder]
    return Moments(np.zeros(width, np.float32), np.ones(width, np.float32))


class _Others:
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def strangers(self, query: Query) -> list[int]:
        return [i for i, sample in enumerate(self.samples) if sample.query.source_video != query.source_video]

    def words(self, place: int) -> Mapping[str, Rows]:
        return self.samples[place].words


def _clips(i: int) -> int:
    return CLIPS[i % len(CLIPS)]


# --- comparing --------------------------------------------------------------------------------------------------------


def _same(a: Sequence[Parts], b: Sequence[Parts]) -> bool:
    return all(
        x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x) for x, y in zip(a, b, strict=True)
    )


def _distance(given: Sequence[Parts], changed: Sequence[Parts]) -> float:
    """Mean squared change over samples; rows that are gone count as all that they held."""
    return float(sum(_change(x[key], y[key]) for x, y in zip(given, changed, strict=True) for key in x) / len(given))


def _change(given: NDArray[Any], changed: NDArray[Any]) -> float:
    if given.dtype.kind not in "fiu":
        return float(not np.array_equal(given, changed))
    if given.shape != changed.shape:
        return abs(len(given) - len(changed)) / max(len(given), len(changed))
    return float(np.mean((given.astype(np.float64) - changed) ** 2)) if given.size else 0.0


def _case(name: str, ok: bool, detail: str = "") -> CaseResult:
    return CaseResult(name, ok, "" if ok else "violated", 0.0 if ok else float("inf"), 0.0, detail)
