"""The queries that moved most: what both sides of a difference found in the video, against the ground truth.

A difference of means says nothing about where it comes from. For every difference and metric this collects the queries
that gained and that lost most, and for each of them what single runs predicted: their best windows and their saliency.
Windows of several runs have no mean, so runs are shown one at a time; the one shown first is the seed whose own
difference on the query is closest to the mean over seeds, and the page names it.

The data are bounded (``RUNS_SHOWN``), so that a page stays small whatever the study: first the seeds are thinned, then
the queries per difference. Saliency is kept to 64 levels of its own range, because only its order means anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from vlbench.canon import digest_file
from vlbench.cards.kinds import Claim
from vlbench.errors import DataError, StoreError, VlbenchError
from vlbench.report import words
from vlbench.report.frame import Floats, title_of

if TYPE_CHECKING:
    from vlbench.data.base import Dataset
    from vlbench.data.types import Prediction, Query
    from vlbench.report.compare import Comparison
    from vlbench.runs.store import Store
    from vlbench.workspace import Workspace

LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # one letter per clip
WINDOWS = 5  # best windows of a run that are drawn
MOST_CLIPS = 150  # a longer video is shown in as many parts, each by its highest clip
MOST_CLAIMS = 16
MOST_MOVED = 6  # queries that gained, and as many that lost
FEWEST_MOVED = 2
RUNS_SHOWN = 9_000  # (run, query) pairs on a page: at about 150 letters each they stay below 1.5 MB
TEXT_LETTERS = 400
STATIC = 2  # entries drawn without a script: the largest gain and the largest loss of the first difference
ANNOTATED_MAX = 4.0  # annotators score a clip from 0 to 4


@dataclass(frozen=True, slots=True)
class Moved:
    """One query that moved. ``change``: points. ``seed``: index of the seed that is shown first."""

    query: int
    change: float
    seed: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of a drawing, with 1000 units for the whole video. bars: (start, width, rank from 0). steps: levels."""

    name: str
    note: str
    bars: tuple[tuple[float, float, int], ...]
    steps: str
    gold: bool = False
    minus: bool = False  # an arm that is subtracted

    @property
    def area(self) -> str:
        """The path of the saliency, 26 units high, its foot at 0; empty without saliency."""
        return area(self.steps)


@dataclass(frozen=True, slots=True)
class Card:
    """One query as it is drawn without a script."""

    title: str
    text: str
    video: str
    length: str
    lanes: tuple[Lane, ...]
    bands: tuple[tuple[float, float], ...]  # annotated windows behind every lane: start, width


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the section shows. ``problem``: why there is nothing to show, or why it is less than wanted."""

    data: str = ""
    cards: tuple[Card, ...] = ()
    problems: tuple[str, ...] = ()
    facts: str = ""


def explore(store: Store, comparison: Comparison, workspace: Workspace | None = None) -> Explorer:
    """The explorer of a study; never an error, because a report stands without it.

    workspace: where the dataset is declared; None: the one of the current folder.
    """
    claims = claims_of(comparison)
    if not claims:
        return Explorer(problems=("No difference could be tested, so no query is shown.",))
    try:
        return _Collected(store, comparison, claims, workspace).explorer()
    except VlbenchError as problem:
        return Explorer(problems=(f"The queries cannot be shown: {problem}.",))


def claims_of(comparison: Comparison) -> list[Claim]:
    """Every claim with a primary row, once: what the study is about first, then its other claims."""
    found = {row.claim.name: row.claim for row in (*comparison.rows, *comparison.effects)}
    return list(found.values())[:MOST_CLAIMS]


def most_moved(values: Mapping[str, Floats], weights: Mapping[str, float], most: int) -> list[Moved]:
    """The queries with the largest gains, falling, then those with the largest losses, largest loss first.

    Args: values: arm -> (seeds, queries) fractions. most: of each side. Queries that did not move are left out, and
    those that moved equally come in their order.
    Returns: queries as indices into the columns, changes in points.
    """
    means = sum(weight * values[arm].mean(axis=0) for arm, weight in weights.items())
    changes = 100 * np.round(np.asarray(means, dtype=np.float64), 9)  # Q; equal changes stay equal
    shared = min(len(values[arm]) for arm in weights)
    by_seed = 100 * sum(weight * values[arm][:shared] for arm, weight in weights.items())  # S Q
    typical = np.abs(np.asarray(by_seed) - changes).argmin(axis=0)  # Q
    order = np.lexsort((np.arange(len(changes)), -changes))
    gains = [q for q in order[:most] if changes[q] > 0]
    losses = [q for q in np.lexsort((np.arange(len(changes)), changes))[:most] if changes[q] < 0]
    return [Moved(int(q), float(changes[q]), int(typical[q])) for q in (*gains, *losses)]


def bounded(claims: Sequence[Claim], metrics: int, seeds: int, limit: int = RUNS_SHOWN) -> tuple[int, int]:
    """Queries per side and seeds that are shown, so that at most ``limit`` runs of queries are on a page.

    Seeds are thinned to three before queries are; a page of a very large study shows one seed of two queries.
    """
    arms = sum(len(claim.weights) for claim in claims)

    def size(most: int, shown: int) -> int:
        return 2 * most * metrics * arms * shown

    for most, shown in (
        *((MOST_MOVED, shown) for shown in range(seeds, min(seeds, 3) - 1, -1)),
        *((most, min(seeds, 3)) for most in range(MOST_MOVED - 1, FEWEST_MOVED - 1, -1)),
    ):
        if size(most, shown) <= limit:
            return most, shown
    return FEWEST_MOVED, 1


def levels(values: ArrayLike, top: float | None = None) -> str:
    """Saliency as letters of ``LEVELS``, from the lowest value to the highest; with ``top``, from 0 to ``top``.

    Longer than ``MOST_CLIPS``: the highest clip of each part. Values that are not finite are the lowest.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return ""
    finite = np.isfinite(array)
    array = np.where(finite, array, array[finite].min() if finite.any() else 0.0)
    if array.size > MOST_CLIPS:
        array = np.maximum.reduceat(array, np.arange(MOST_CLIPS) * array.size // MOST_CLIPS)
    low, high = (0.0, top) if top is not None else (float(array.min()), float(array.max()))
    scaled = (array - low) / (high - low) if high > low else np.zeros_like(array)
    steps = np.clip(np.rint(scaled * (len(LEVELS) - 1)), 0, len(LEVELS) - 1).astype(int)
    return "".join(LEVELS[step] for step in steps)


def area(steps: str) -> str:
    """An SVG path of one column per letter over 1000 units, 26 units high, from its foot at 0 upwards."""
    if not steps:
        return ""
    wide = 1000 / len(steps)
    path = ["M0 0"]
    for number, letter in enumerate(steps):
        height = 26 * LEVELS.index(letter) / (len(LEVELS) - 1)
        path.append(f"V{-height:.1f}H{(number + 1) * wide:.1f}")
    return "".join(path) + "V0Z"


def overlap(window: Sequence[float], gold: Sequence[Sequence[float]]) -> float | None:
    """The highest intersection over union of a window with any annotated one, in [0, 1]; None without any."""
    best = None
    for start, end in gold:
        shared = max(0.0, min(window[1], end) - max(window[0], start))
        union = max(window[1] - window[0], 0.0) + (end - start) - shared
        best = max(best or 0.0, shared / union if union > 0 else 0.0)
    return best


# --- collecting -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Shown:
    """One query on the page, as the script reads it."""

    qid: str
    text: str
    video: str
    length_s: float
    gold: list[list[float]] | None
    marks: str
    annotated: bool
    scores: dict[int, list[list[int]]] = field(default_factory=dict)  # metric -> arm -> seed, tenths of points

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.qid,
            "text": self.text,
            "video": self.video,
            "length": self.length_s,
            "gold": self.gold,
            "marks": self.marks,
            "scores": {str(metric): table for metric, table in self.scores.items()},
        }


class _Collected:
    """The lists of one study, and the runs' predictions for the queries in them."""

    def __init__(
        self, store: Store, comparison: Comparison, claims: Sequence[Claim], workspace: Workspace | None
    ) -> None:
        self.comparison, self.frame, self.claims = comparison, comparison.frame, claims
        self.metrics = comparison.metrics
        self.arms = [arm for arm in self.frame.arms if any(arm.name in c.weights for c in claims)]
        self.names = [arm.name for arm in self.arms]
        self.problems: list[str] = []
        most, self.seeds = bounded(claims, len(self.metrics), len(self.frame.seeds))
        self.most = most
        self.lists: dict[tuple[int, int], list[Moved]] = {}
        for c, claim in enumerate(claims):
            for m, metric in enumerate(self.metrics):
                self.lists[c, m] = list(self._moved(claim, metric))
        self.order = sorted({moved.query for found in self.lists.values() for moved in found})
        self.place = {query: number for number, query in enumerate(self.order)}
        self.runs = self._runs(store)  # arm, seed -> qid -> prediction
        self.queries = self._queries(workspace)

    def _moved(self, claim: Claim, metric: str) -> Iterator[Moved]:
        values = self.frame.values(metric, self.comparison.checkpoint)
        inside = np.flatnonzero(self.frame.populations[metric])
        # only the seeds that are shown can be shown first
        for moved in most_moved(values, claim.weights, self.most):
            seed = moved.seed
            if seed >= self.seeds:
                by_seed = sum(w * values[arm][: self.seeds, moved.query] for arm, w in claim.weights.items())
                seed = int(np.abs(100 * np.asarray(by_seed) - moved.change).argmin())
            yield Moved(int(inside[moved.query]), moved.change, seed)

    def _runs(self, store: Store) -> dict[tuple[int, int], dict[str, Prediction]]:
        from vlbench.data.predictions import prediction_of

        wanted = {self.frame.queries[query] for query in self.order}
        found: dict[tuple[int, int], dict[str, Prediction]] = {}
        name = f"predictions-{self.comparison.checkpoint}.jsonl.gz"
        for a, arm in enumerate(self.arms):
            for s, run in enumerate(arm.runs[: self.seeds]):
                path = store.folder(run.score) / name
                try:
                    recorded = run.records["score"].get("files", {}).get(name)
                    if not path.exists():
                        raise StoreError("the predictions are not in the store")
                    if recorded is not None and digest_file(path) != recorded:
                        raise StoreError("the predictions are not those that their record describes")
                    found[a, s] = {qid: prediction_of(row) for qid, row in _rows(path, wanted)}
                except VlbenchError as problem:
                    self.problems.append(f"{arm.name}, seed {run.seed} is not drawn: {problem.what}.")
        if not found:
            raise StoreError("no run of the study has its predictions in the store")
        return found

    def _queries(self, workspace: Workspace | None) -> list[_Shown]:
        known, dataset, why = _annotated(self.frame.dataset, workspace)
        queries, other = [], 0
        for query in self.order:
            qid = self.frame.queries[query]
            rows = [run[qid] for run in self.runs.values() if qid in run]
            annotated = known.get(qid)
            if annotated is not None and rows and rows[0].text and rows[0].text != annotated.text:
                other, annotated = other + 1, None
            elif known and annotated is None:
                other += 1
            queries.append(_shown(qid, annotated, rows, dataset))
        if why:
            self.problems.insert(0, f"Without the ground truth: {why}.")
        elif other:
            gone = words.counted(other, "query")
            self.problems.insert(0, f"Without the ground truth for {gone}: the annotations are not those of the runs.")
        for query, shown in zip(self.order, queries, strict=True):
            for m, metric in enumerate(self.metrics):
                if self.frame.populations[metric][query]:
                    shown.scores[m] = [
                        [round(1000 * float(x)) for x in arm.scores[self.comparison.checkpoint][metric][:, query]]
                        for arm in self.arms
                    ]
        return queries

    # --- as the page has it ---

    def explorer(self) -> Explorer:
        """The data for the script, and the first entries for those without one."""
        if not self.order:
            return Explorer(problems=(*self.problems, "No query moved: both sides answer every query alike."))
        return Explorer(self._data(), tuple(self._cards()), tuple(self.problems), self._facts())

    def _facts(self) -> str:
        thinned = ""
        if self.seeds < len(self.frame.seeds):
            thinned = f" To keep the page small, {self.seeds} of {len(self.frame.seeds)} seeds can be shown."
        return (
            f"For every difference and metric, the {self.most} queries that gained and the {self.most} that lost most "
            "on the mean over seeds. Windows and saliency are those of one run, because windows of several runs have "
            f"no mean: at first the seed whose own difference is closest to the mean.{thinned} A run's saliency is "
            "drawn over its own range; only its order counts. These queries are extremes by choice: they show what a "
            "difference is made of and are no evidence for it."
        )

    def _data(self) -> str:
        content = {
            "arms": self.names,
            "seeds": list(self.frame.seeds[: self.seeds]),
            "total": len(self.frame.seeds),
            "metrics": [{"key": metric, "title": title_of(metric)} for metric in self.metrics],
            "claims": [
                {
                    "name": claim.name,
                    "plus": claim.plus,
                    "minus": claim.minus,
                    "arms": [
                        [self.names.index(arm), round(weight, 6)]
                        for arm, weight in sorted(
                            claim.weights.items(), key=lambda item: (item[1] < 0, self.names.index(item[0]))
                        )
                    ],
                    "lists": [
                        [[self.place[x.query], round(x.change, 2), x.seed] for x in self.lists[c, m]]
                        for m in range(len(self.metrics))
                    ],
                }
                for c, claim in enumerate(self.claims)
            ],
            "queries": [shown.as_json() for shown in self.queries],
            "runs": [[self._run(a, s) for s in range(self.seeds)] for a in range(len(self.arms))],
        }
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # inside a script element nothing may look like its end, and names are text
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")

    def _run(self, a: int, s: int) -> list[Any] | None:
        """Per query [windows as tenths of seconds and hundredths, saliency, overlap in hundredths]; 0 where unused."""
        if (a, s) not in self.runs:
            return None
        used = {
            moved.query
            for (c, _), found in self.lists.items()
            if self.names[a] in self.claims[c].weights
            for moved in found
        }
        rows: list[Any] = []
        for query, shown in zip(self.order, self.queries, strict=True):
            row = self.runs[a, s].get(shown.qid) if query in used else None
            if row is None:
                rows.append(0)
                continue
            best = _best(row)
            met = overlap(best[0], shown.gold) if best and shown.gold else None
            flat = [number for x in best for number in (round(10 * x[0]), round(10 * x[1]), round(100 * x[2]))]
            rows.append([flat, _saliency(row), None if met is None else round(100 * met)])
        return rows

    def _cards(self) -> Iterator[Card]:
        found = self.lists[0, 0]
        firsts = [next((x for x in found if side * x.change > 0), None) for side in (1, -1)]
        for moved in [x for x in firsts if x is not None][:STATIC]:
            shown, claim = self.queries[self.place[moved.query]], self.claims[0]
            scale = 1000 / shown.length_s
            bands = tuple((start * scale, (end - start) * scale) for start, end in shown.gold or ())
            lanes = []
            if shown.annotated:
                marked = tuple((start, width, 0) for start, width in bands)
                note = words.listed([_seconds(*w) for w in shown.gold]) if shown.gold else "no annotated window"
                lanes.append(Lane("Ground truth", note, marked, shown.marks, gold=True))
            for arm in sorted(claim.weights, key=lambda x: (claim.weights[x] < 0, self.names.index(x))):
                row = self.runs.get((self.names.index(arm), moved.seed), {}).get(shown.qid)
                if row is not None:
                    lanes.append(self._lane(arm, moved.seed, row, shown, claim))
            metric = title_of(self.metrics[0])
            yield Card(
                title=f"{claim.plus} {words.MINUS} {claim.minus}: {words.signed(moved.change, 1)} points on {metric}",
                text=shown.text,
                video=shown.video,
                length=f"{shown.length_s:g} s",
                lanes=tuple(lanes),
                bands=bands,
            )

    def _lane(self, arm: str, seed: int, row: Prediction, shown: _Shown, claim: Claim) -> Lane:
        """One run's windows and saliency; its note says what the script's note says."""
        scale, best, number = 1000 / shown.length_s, _best(row), self.names.index(arm)
        bars = tuple((x[0] * scale, max(x[1] - x[0], 0.0) * scale, rank) for rank, x in enumerate(best))
        notes = [f"seed {self.frame.seeds[seed]}"]
        if 0 in shown.scores:
            values = shown.scores[0][number]
            mean = f" (mean of {len(values)} seeds {words.points(sum(values) / len(values) / 10, 1)})"
            own = words.points(values[seed] / 10, 1)
            notes[0] += f": {title_of(self.metrics[0])} {own}{mean if len(values) > 1 else ''}"
        if best:
            notes.append(f"first window {_seconds(*best[0][:2])}")
            met = overlap(best[0], shown.gold) if shown.gold else None
            notes += [] if met is None else [f"overlap {met:.2f}"]
        weight = claim.weights[arm]
        name = f"{words.signed(weight)} × {arm}" if len(claim.weights) > 2 else arm
        return Lane(name, ", ".join(notes), bars, _saliency(row), minus=weight < 0)


def _rows(path: Path, wanted: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(qid as JSON, row) of the wanted queries."""
    from vlbench.data.annotations import json_lines, open_text

    for line, parse in json_lines(open_text(path)):
        try:
            row = parse()
        except DataError as error:
            raise DataError(error.what, where=f"{path}:{line}", hint=error.hint) from None
        qid = json.dumps(row.get("qid"))
        if qid in wanted:
            yield qid, row


def _annotated(name: str, workspace: Workspace | None) -> tuple[dict[str, Query], Dataset | None, str]:
    """The reporting queries by qid as JSON; why there are none."""
    from vlbench.data.base import open_dataset
    from vlbench.workspace import find

    try:
        dataset = open_dataset(name, workspace or find())
        return {json.dumps(query.qid): query for query in dataset.queries("report")}, dataset, ""
    except (VlbenchError, OSError) as problem:
        what = problem.what if isinstance(problem, VlbenchError) else str(problem)
        return {}, None, f"the dataset {name} cannot be opened ({what})"


def _shown(qid: str, query: Query | None, rows: Sequence[Prediction], dataset: Dataset | None) -> _Shown:
    said = rows[0] if rows else None
    text, video = (query.text, query.vid) if query is not None else (said.text, said.vid) if said else ("", "")
    text = text if len(text) <= TEXT_LETTERS else text[: TEXT_LETTERS - 1] + "…"
    name = re.sub(r'^"|"$', "", qid)
    if query is None or dataset is None:
        ends = [float(row.windows[:, 1].max()) for row in rows if row.windows is not None and len(row.windows)]
        return _Shown(qid, text or name, video, max([*ends, 1.0]), None, "", annotated=False)
    gold = None if query.windows_se is None else [[float(a), float(b)] for a, b in query.windows_se]
    marks = _marks(query, dataset.clip_s)
    return _Shown(qid, text or name, video, float(query.duration_s), gold, marks, annotated=True)


def _marks(query: Query, clip_s: float) -> str:
    """The annotated saliency, mean over annotators; clips that nobody scored count as 0."""
    if query.labels is not None:
        return levels(query.labels.mean(axis=1), float(query.labels.max()) or 1.0)
    if query.saliency is None or query.relevant_clips is None:
        return ""
    marks = np.zeros(max(1, math.ceil(query.duration_s / clip_s), *(clip + 1 for clip in query.relevant_clips)))
    marks[list(query.relevant_clips)] = query.saliency.mean(axis=1)
    return levels(marks, ANNOTATED_MAX)


def _best(row: Prediction) -> list[list[float]]:
    """The windows with the highest scores, best first."""
    if row.windows is None or not len(row.windows):
        return []
    order = np.argsort(-row.windows[:, 2], kind="stable")[:WINDOWS]
    best: list[list[float]] = np.nan_to_num(row.windows[order].astype(np.float64)).tolist()
    return best


def _saliency(row: Prediction) -> str:
    return "" if row.saliency is None else levels(row.saliency)


def _seconds(start: float, end: float) -> str:
    return f"{start:g}–{end:g} s"
