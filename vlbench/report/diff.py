"""Two things side by side: what differs between two variants, two cells of the store, or two prediction files.

Everything here describes; nothing is tested. Two runs differ on most queries whatever their methods are worth, so a
difference of this page is about these two runs. Differences are B minus A, in points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlbench import catalog
from vlbench.cards.kinds import Variant
from vlbench.cards.resolve import differences, flatten
from vlbench.data.types import Prediction, Query
from vlbench.errors import CardError, DataError, StoreError, suggestion
from vlbench.registry import Scalar
from vlbench.report.frame import Curve, Floats, Scores, curve_of
from vlbench.report.words import counted
from vlbench.runs.store import Store
from vlbench.status import Status

Kind = Literal["variant", "cell", "file"]

PRIMARY = ("mr-map", "hd-map")
ELSEWHERE = ("hd-top5-map", "hd-ap")  # of datasets that label every clip, where neither of the two exists
# of a provenance: what a run took, not where it ran
COSTS = ("finished", "seconds", "wall", "device_seconds", "peak_bytes", "resumed")
DIGEST_SHOWN = 12
TIE = 1e-9  # fractions: summation in another order moves the last digits, and is no difference
FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True, slots=True)
class KeyDiff:
    """One key in which A and B differ; None: absent. a_from, b_from: the ``file:line`` that set it, where known."""

    key: str
    a: Scalar | None
    b: Scalar | None
    a_from: str = ""
    b_from: str = ""


@dataclass(frozen=True, slots=True)
class VariantDiff:
    """Two resolved cards. same: how many keys are equal. parameters: of A and B, None where they were not counted."""

    names: tuple[str, str]
    keys: tuple[KeyDiff, ...]
    same: int
    parameters: tuple[int | None, int | None] = (None, None)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """One plain object."""
        return {
            "kind": "variants",
            "a": self.names[0],
            "b": self.names[1],
            "keys": [_key_json(key) for key in self.keys],
            "same_keys": self.same,
            "parameters": list(self.parameters),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Scatter:
    """One metric on the same queries. a, b: (Q,) fractions, without NaN; qids: (Q,) as JSON."""

    metric: str
    qids: tuple[str, ...]
    a: Floats = field(repr=False)
    b: Floats = field(repr=False)

    @cached_property
    def changes(self) -> Floats:
        """(Q,) B minus A, in points; what rounding alone moves is 0."""
        difference = self.b - self.a
        return np.where(np.abs(difference) <= TIE, 0.0, 100 * difference)

    @property
    def means(self) -> tuple[float, float]:
        """Of A and B, in points."""
        return 100 * float(self.a.mean()), 100 * float(self.b.mean())

    @property
    def wins(self) -> int:
        """Queries on which B is above A."""
        return int((self.changes > 0).sum())

    @property
    def losses(self) -> int:
        """Queries on which B is below A."""
        return int((self.changes < 0).sum())

    @property
    def ties(self) -> int:
        """Queries with equal values."""
        return len(self.qids) - self.wins - self.losses

    @property
    def correlation(self) -> float | None:
        """Pearson's, over queries; None where one side is the same on all of them."""
        if len(self.qids) < 2 or np.ptp(self.a) <= TIE or np.ptp(self.b) <= TIE:
            return None
        return float(np.corrcoef(self.a, self.b)[0, 1])

    def extremes(self, most: int) -> tuple[list[int], list[int]]:
        """Indices of the largest losses, worst first, and of the largest gains; equal ones in the order of queries."""
        falling = np.argsort(self.changes, kind="stable")
        rising = np.argsort(-self.changes, kind="stable")
        losses = [int(at) for at in falling[:most] if self.changes[at] < 0]
        return losses, [int(at) for at in rising[:most] if self.changes[at] > 0]

    def as_json(self) -> dict[str, Any]:
        """The summary, in points."""
        a, b = self.means
        return {
            "metric": self.metric,
            "queries": len(self.qids),
            "a": a,
            "b": b,
            "difference": b - a,
            "correlation": self.correlation,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
        }


@dataclass(frozen=True, slots=True)
class Moved:
    """One query that moved. a, b, change: points. Pairs are of A and of B.

    windows: the first listed one, seconds; the one that recall looks at. clips: the index of the clip with the highest
    saliency, the one that HIT@1 looks at. gold: the annotated windows, where annotations were given.
    """

    qid: str
    text: str
    video: str
    a: float
    b: float
    change: float
    windows: tuple[tuple[float, float] | None, tuple[float, float] | None]
    clips: tuple[int | None, int | None]
    gold: tuple[tuple[float, float], ...] | None

    def as_json(self) -> dict[str, Any]:
        """One plain object; the query's id in its own type."""
        return {
            "qid": json.loads(self.qid),
            "text": self.text,
            "video": self.video,
            "a": self.a,
            "b": self.b,
            "change": self.change,
            "windows": [None if window is None else list(window) for window in self.windows],
            "top_clips": list(self.clips),
            "gold": None if self.gold is None else [list(span) for span in self.gold],
        }


@dataclass(frozen=True, slots=True)
class QueryDiff:
    """Two sets of scores on the same queries.

    losses, gains: metric -> the queries that moved most. notes: what is odd about either side.
    """

    names: tuple[str, str]
    scatters: tuple[Scatter, ...]
    losses: Mapping[str, tuple[Moved, ...]]
    gains: Mapping[str, tuple[Moved, ...]]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """One plain object; values in points."""
        return {
            "kind": "files",
            "a": self.names[0],
            "b": self.names[1],
            "metrics": [scatter.as_json() for scatter in self.scatters],
            "regressions": {metric: [query.as_json() for query in found] for metric, found in self.losses.items()},
            "gains": {metric: [query.as_json() for query in found] for metric, found in self.gains.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class CellSide:
    """A fit and, where it is finished, its score. ``name``: what it is, in words."""

    fit: str
    score: str | None
    name: str
    status: Status
    made_by: Mapping[str, Any]
    record: Mapping[str, Any]
    curve: Curve


@dataclass(frozen=True, slots=True)
class CellDiff:
    """Two runs of the store.

    spec: what was asked for, key by key. environment: where they ran. costs: key -> both values. queries: None where
    one side has no score, or the two were scored on different data; ``why`` says which.
    """

    a: CellSide
    b: CellSide
    spec: tuple[KeyDiff, ...]
    same_spec: int
    environment: tuple[KeyDiff, ...]
    same_environment: tuple[str, ...]
    costs: tuple[KeyDiff, ...]
    checkpoint: str
    queries: QueryDiff | None
    why: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """Of A and B, in words."""
        return self.a.name, self.b.name

    @property
    def series(self) -> tuple[str, ...]:
        """What both learning curves have: tune metrics, primary ones first, then ``loss``."""
        tuned = [name for name in self.a.curve.tune if name in self.b.curve.tune]
        primary = [name for name in (*PRIMARY, *ELSEWHERE) if name in tuned] or tuned[:2]
        both = all("total" in side.curve.losses for side in (self.a, self.b))
        return (*primary, "loss") if both else tuple(primary)

    def as_json(self) -> dict[str, Any]:
        """One plain object."""
        return {
            "kind": "cells",
            "a": _side_json(self.a),
            "b": _side_json(self.b),
            "spec": [_key_json(key) for key in self.spec],
            "environment": [_key_json(key) for key in self.environment],
            "costs": [_key_json(key) for key in self.costs],
            "curves": {
                name: [_points_json(*points_of(side.curve, name)) for side in (self.a, self.b)] for name in self.series
            },
            "checkpoint": self.checkpoint,
            "queries": None if self.queries is None else {**self.queries.as_json(), "kind": "queries"},
            "why_no_queries": self.why,
        }


def points_of(curve: Curve, name: str) -> tuple[Sequence[int], Sequence[float]]:
    """Epochs and values of one series: a metric's score on the tune split in points, or the total ``loss``."""
    if name == "loss":
        return curve.epochs, curve.losses.get("total", ())
    return curve.tuned, curve.tune.get(name, ())


# --- which kind -------------------------------------------------------------------------------------------------------


def kind_of(name: str, variants: Sequence[str], store: Store) -> Kind:
    """What a name is: a variant (or the path of a card), a prediction file, or a cell by a prefix of its id.

    Raises: StoreError if it begins several cells, CardError with the near miss if it is nothing.
    """
    if name in variants or name.endswith(".toml"):
        return "variant"
    if Path(name).is_file() or name.endswith(FILE_ENDINGS):
        return "file"
    cells = store.cell_ids()
    if find_cells(name, cells):
        find_cell(name, cells, store)
        return "cell"
    hint = suggestion(name, variants)
    if cells:
        hint += f"; or one of {counted(len(cells), 'cell')}: vlbench runs list"
    raise CardError(f'"{name}" is no variant, no cell of the store and no file', hint=hint)


def find_cells(prefix: str, cells: Sequence[str]) -> list[str]:
    """The cells that a prefix begins."""
    return [cell for cell in cells if prefix and cell.startswith(prefix)]


def find_cell(prefix: str, cells: Sequence[str], store: Store) -> str:
    """The one cell that a prefix begins. Raises: StoreError if there are none or several."""
    found = find_cells(prefix, cells)
    if len(found) != 1:
        problem = "begins no cell" if not found else f"begins {len(found)} cells"
        shown = ", ".join(found[:10]) or None
        raise StoreError(f'"{prefix}" {problem} of the store', where=store.root, hint=shown)
    return found[0]


# --- variants ---------------------------------------------------------------------------------------------------------


def diff_variants(a: Variant, b: Variant) -> VariantDiff:
    """The keys in which two resolved cards differ, each with the line that set it, slot by slot."""
    old, new = flatten(a), flatten(b)
    slots = {key.rpartition(".")[0]: number for number, key in enumerate(reversed([*old, *new]))}
    changed = sorted(differences(old, new), key=lambda found: -slots[found[0].rpartition(".")[0]])
    keys = tuple(
        KeyDiff(key, x, y, a.origin.get(key, "") if key in old else "", b.origin.get(key, "") if key in new else "")
        for key, x, y in changed
    )
    return VariantDiff((a.name, b.name), keys, sum(key in new and new[key] == value for key, value in old.items()))


# --- cells ------------------------------------------------------------------------------------------------------------


def diff_cells(
    store: Store,
    a: str,
    b: str,
    *,
    metrics: Sequence[str] = (),
    checkpoint: str = "selected",
    top: int = 5,
    annotated: Mapping[str, Query] | None = None,
) -> CellDiff:
    """Two cells, each a fit or a score; a fit leads to its scores, a score to its fit.

    Args: a, b: ids. metrics: of the query part; none: MR-mAP and HD-mAP where they were scored. top: queries listed
        each way. annotated: qid as JSON -> the query, to show the truth; one whose sentence is not the one that was
        answered belongs to other annotations and is left out.
    Raises: StoreError if a file is not what its record says, CardError if a metric was not scored.
    """
    (fit_a, scores_a), (fit_b, scores_b) = _fit_and_scores(store, a), _fit_and_scores(store, b)
    score_a, score_b = _matching(store, scores_a, scores_b)
    sides = (_side(store, fit_a, score_a), _side(store, fit_b, score_b))
    old, new = (flat_spec(store, side.fit, side.score) for side in sides)
    spec = _keys(old, new)
    made = [{key: value for key, value in side.made_by.items() if key not in COSTS} for side in sides]
    environment = _keys(*(_flat(facts) for facts in made))
    costs = _keys(*({key: _plain(value) for key, value in _cost(side).items()} for side in sides), all_keys=True)
    queries, why = _cell_queries(store, sides, metrics, checkpoint, top, annotated or {})
    return CellDiff(
        a=sides[0],
        b=sides[1],
        spec=spec,
        same_spec=sum(key in new and new[key] == value for key, value in old.items()),
        environment=environment,
        same_environment=tuple(key for key in made[0] if key in made[1] and made[0][key] == made[1][key]),
        costs=costs,
        checkpoint=checkpoint,
        queries=queries,
        why=why,
    )


def flat_spec(store: Store, fit: str, score: str | None) -> dict[str, Scalar]:
    """Everything a run was asked to be, under the keys of a card: ``model.fusion.use``, ``train.lr``, ``seed``, ...

    Fingerprints of data stand under ``data.ROLE``; what the scoring adds under ``score.``.
    """
    spec = store.spec(fit)
    identity = dict(spec.get("identity", {}))
    variant = identity.pop("variant", {})
    flat: dict[str, Scalar] = {key: str(value) for key, value in _named(spec).items()}
    for kind, names in variant.get("features", {}).items():
        flat[f"features.{kind}"] = "+".join(names)
    flat |= _flat(variant.get("model", {}), "model.")
    for prefix, table in (("model", variant.get("slots", {})), ("loss", variant.get("losses", {}))):
        for slot, use in table.items():
            flat[f"{prefix}.{slot}.use"] = use["use"]
            flat |= _flat(use.get("args", {}), f"{prefix}.{slot}.")
            flat[f"{prefix}.{slot}.version"] = use.get("version", 1)
    flat |= _flat(variant.get("recipe", {}), "train.")
    flat |= _flat({key: value for key, value in identity.items() if key not in ("kind", "format")})
    if score is not None:
        scored = store.spec(score).get("identity", {})
        flat |= _flat({key: v for key, v in scored.items() if key not in ("kind", "format", "fit")}, "score.")
    return {
        key: value[:DIGEST_SHOWN] if "data." in key and isinstance(value, str) else value for key, value in flat.items()
    }


def _named(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The names beside the identity: they decide nothing, but a reader looks for them first."""
    run = spec.get("run", {})
    return {key: run[key] for key in ("variant", "dataset") if run.get(key)}


def _fit_and_scores(store: Store, cell: str) -> tuple[str, list[str]]:
    """The fit of a cell, and its finished clean scores; a score stands for itself alone."""
    identity = store.spec(cell).get("identity", {})
    if identity.get("kind") == "score":
        return str(identity["fit"]), [cell] if store.status(cell) is Status.DONE else []
    found = []
    for other in store.cell_ids():
        theirs = store.spec(other).get("identity", {})
        own = theirs.get("kind") == "score" and theirs.get("fit") == cell and not theirs.get("corruption")
        if own and store.status(other) is Status.DONE:
            found.append(other)
    return cell, found


def _matching(store: Store, a: Sequence[str], b: Sequence[str]) -> tuple[str | None, str | None]:
    """The pair of scores that differ least in what was scored and how; the first of equals."""
    if not a or not b:
        return (a[0] if a else None), (b[0] if b else None)

    def apart(pair: tuple[str, str]) -> int:
        one, other = (_flat({**store.spec(cell).get("identity", {}), "fit": ""}) for cell in pair)
        return len(_keys(one, other))

    return min(((one, other) for one in a for other in b), key=apart)


def _side(store: Store, fit: str, score: str | None) -> CellSide:
    try:
        spec = store.spec(fit)
    except StoreError as error:
        raise StoreError(f"the store has the score but not its fit {fit}", where=store.root) from error
    identity, run = spec.get("identity", {}), spec.get("run", {})
    name = " ".join(str(part) for part in (run.get("variant"), run.get("dataset")) if part)
    if "seed" in identity:
        name = f"{name} seed {identity['seed']}".strip()
    return CellSide(
        fit=fit,
        score=score,
        name=f"{fit} ({name})" if name else fit,
        status=store.status(fit),
        made_by=store.made_by(fit) or {},
        record=store.record(fit) or {},
        curve=curve_of(store, fit),
    )


def _cost(side: CellSide) -> dict[str, Any]:
    facts = {key: side.made_by[key] for key in COSTS if key in side.made_by}
    record = {key: side.record[key] for key in ("parameters", "epochs") if key in side.record}
    if side.curve.selected is not None:
        record["selected epoch"] = side.curve.selected
    return {**record, **facts}


def _cell_queries(
    store: Store,
    sides: tuple[CellSide, CellSide],
    metrics: Sequence[str],
    checkpoint: str,
    top: int,
    annotated: Mapping[str, Query],
) -> tuple[QueryDiff | None, str]:
    unscored = [side.name for side in sides if side.score is None]
    if unscored:
        return None, f"{' and '.join(unscored)}: no finished score in the store"
    scores = [str(side.score) for side in sides]
    tables = [Scores.read(store, score) for score in scores]
    if checkpoint not in tables[0].values or checkpoint not in tables[1].values:
        known = [name for name in tables[0].values if name in tables[1].values]
        raise CardError(f'"{checkpoint}" was not scored', where="--checkpoint", hint=suggestion(checkpoint, known))
    if set(tables[0].qids) != set(tables[1].qids):
        shared = len(set(tables[0].qids) & set(tables[1].qids))
        sizes = f"{counted(len(tables[0].qids), 'query')} and {counted(len(tables[1].qids), 'query')}, {shared} in both"
        return None, f"the two were scored on different queries ({sizes})"
    if tables[0].qids != tables[1].qids:
        tables[1] = tables[1].like(tables[0].qids, sides[1].name)
    values = [table.values[checkpoint] for table in tables]
    scatters = _scatters(tables[0].qids, values[0], values[1], metrics)
    rows = [_predictions(store.folder(score) / f"predictions-{checkpoint}.jsonl.gz") for score in scores]
    notes = []
    for side, found in zip(sides, rows, strict=True):
        if not found:
            notes.append(f"{side.name}: its predictions are not in the store, so its windows are not shown")
    said = {qid: row.text for found in rows for qid, row in found.items()}
    asked = {qid: query for qid, query in annotated.items() if said.get(qid) == query.text}
    return _queries((sides[0].name, sides[1].name), scatters, rows[0], rows[1], asked, top, notes), ""


def _predictions(path: Path) -> dict[str, Prediction]:
    from vlbench.data.predictions import read_predictions

    return {json.dumps(row.qid): row for row in read_predictions(path)} if path.is_file() else {}


# --- files ------------------------------------------------------------------------------------------------------------


def diff_files(
    a: Path,
    b: Path,
    annotations: Path,
    *,
    metrics: Sequence[str] = (),
    mode: Literal["compatible", "strict"] = "compatible",
    clip_s: float = 2.0,
    top: int = 5,
) -> QueryDiff:
    """Two prediction files, scored on the same annotations; a query without a row counts 0 and is told.

    Raises: DataError if a file cannot be read, answers no annotated query, or answers a query twice; CardError for a
        metric that these annotations do not have.
    """
    from vlbench.data.annotations import read_annotations
    from vlbench.data.predictions import read_predictions
    from vlbench.metrics.base import score

    queries = read_annotations(annotations, clip_s=clip_s)
    held, notes, values = [], [], []
    names = _file_names(a, b)
    for path, name in zip((a, b), names, strict=True):
        rows = read_predictions(path)
        if not rows:
            raise DataError("holds no prediction", where=path)
        by_qid = {json.dumps(row.qid): row for row in rows}
        if len(by_qid) < len(rows):
            twice = counted(len(rows) - len(by_qid), "row")
            raise DataError(
                f"answers a query more than once ({twice} too many)", where=path, hint=f"vlbench score {path}"
            )
        scores = score(queries, rows, mode=mode, clip_s=clip_s)
        notes += [f"{name}: {warning}" for warning in scores.warnings]
        values.append(scores.values)
        held.append(by_qid)
    qids = tuple(json.dumps(query.qid) for query in queries)
    scatters = _scatters(qids, values[0], values[1], metrics)
    asked = {json.dumps(query.qid): query for query in queries}
    return _queries(names, scatters, held[0], held[1], asked, top, notes)


def _file_names(a: Path, b: Path) -> tuple[str, str]:
    """File names, with as much of their folders as tells them apart."""
    for depth in range(1, max(len(a.parts), len(b.parts)) + 1):
        one, other = "/".join(a.parts[-depth:]), "/".join(b.parts[-depth:])
        if one != other:
            return one, other
    return str(a), str(b)


# --- shared -----------------------------------------------------------------------------------------------------------


def _scatters(
    qids: tuple[str, ...], a: Mapping[str, Floats], b: Mapping[str, Floats], wanted: Sequence[str]
) -> tuple[Scatter, ...]:
    both = [name for name in catalog.metrics if name in a and name in b]
    for name in wanted:
        if name not in both:
            catalog.metrics[name]  # an unknown name is answered with the near miss
            raise CardError(f'"{name}" was not scored on both sides', where="--metric", hint=suggestion(name, both))
    chosen = wanted or [n for n in PRIMARY if n in both] or [n for n in ELSEWHERE if n in both] or both[:1]
    if not chosen:
        raise DataError("the two sides have no metric in common")
    found = []
    for name in dict.fromkeys(chosen):
        inside = ~np.isnan(a[name])
        if not bool((np.isnan(b[name]) == ~inside).all()):
            raise DataError(f'"{name}" has values for other queries in B than in A', hint="score both with one version")
        at = np.flatnonzero(inside)
        found.append(Scatter(name, tuple(qids[row] for row in at), a[name][at], b[name][at]))
    return tuple(found)


def _queries(
    names: tuple[str, str],
    scatters: tuple[Scatter, ...],
    a: Mapping[str, Prediction],
    b: Mapping[str, Prediction],
    asked: Mapping[str, Query],
    top: int,
    notes: Sequence[str],
) -> QueryDiff:
    def moved(scatter: Scatter, at: int) -> Moved:
        qid = scatter.qids[at]
        query, rows = asked.get(qid), [side.get(qid) for side in (a, b)]
        known = [row for row in rows if row is not None]
        text = query.text if query is not None else next((row.text for row in known if row.text), "")
        gold = None
        if query is not None and query.windows_se is not None:
            gold = tuple((float(start), float(end)) for start, end in query.windows_se)
        return Moved(
            qid=qid,
            text=text,
            video=query.vid if query is not None else next((row.vid for row in known if row.vid), ""),
            a=100 * float(scatter.a[at]),
            b=100 * float(scatter.b[at]),
            change=float(scatter.changes[at]),
            windows=(_first(rows[0]), _first(rows[1])),
            clips=(_top(rows[0]), _top(rows[1])),
            gold=gold,
        )

    losses, gains = {}, {}
    for scatter in scatters:
        down, up = scatter.extremes(top)
        losses[scatter.metric] = tuple(moved(scatter, at) for at in down)
        gains[scatter.metric] = tuple(moved(scatter, at) for at in up)
    return QueryDiff(names, scatters, losses, gains, tuple(dict.fromkeys(notes)))


def _first(row: Prediction | None) -> tuple[float, float] | None:
    if row is None or row.windows is None or not len(row.windows):
        return None
    return float(row.windows[0][0]), float(row.windows[0][1])


def _top(row: Prediction | None) -> int | None:
    if row is None or row.saliency is None or not len(row.saliency) or np.isnan(row.saliency).any():
        return None
    return int(np.argmax(row.saliency))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested tables as dotted keys; lists and nothing as text."""
    flat: dict[str, Scalar] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Scalar:
    if isinstance(value, bool | int | float | str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def _keys(old: Mapping[str, Scalar], new: Mapping[str, Scalar], *, all_keys: bool = False) -> tuple[KeyDiff, ...]:
    """Differing keys (or all); the version of a component that was replaced says nothing."""
    if all_keys:
        return tuple(KeyDiff(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]))
    found = differences(old, new)
    replaced = {key.removesuffix("use") for key, _, _ in found if key.endswith(".use")}
    return tuple(
        KeyDiff(key, a, b)
        for key, a, b in found
        if not (key.endswith(".version") and key.removesuffix("version") in replaced)
    )


def _key_json(key: KeyDiff) -> dict[str, Any]:
    origins = {name: origin for name, origin in (("a_from", key.a_from), ("b_from", key.b_from)) if origin}
    return {"key": key.key, "a": key.a, "b": key.b, **origins}


def _side_json(side: CellSide) -> dict[str, Any]:
    return {"fit": side.fit, "score": side.score, "name": side.name, "status": str(side.status)}


def _points_json(epochs: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    return {"epochs": list(epochs), "values": [value if math.isfinite(value) else None for value in values]}
