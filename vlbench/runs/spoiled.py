"""Scores under corruptions: many of one fit at once, for little more than their forward passes.

The model is built once per fit, features are read and base fields drawn once for all levels of a family. Only the
selected epoch is scored and only the scores of queries are kept: a stress test asks what a choice that was already made
is worth, so it is no further look at the reporting split and does not enter the ledger.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

from vlbench import catalog
from vlbench.cards.kinds import Features
from vlbench.corrupt.base import Corruption, Moments, Noise, check, unreached
from vlbench.data.packed import channel_moments
from vlbench.errors import DataError, StoreError, VlbenchError
from vlbench.files import replacing
from vlbench.metrics.base import Scores, score
from vlbench.metrics.moments import Mode
from vlbench.runs.cells import DataRef, Fit, Score, from_spec
from vlbench.runs.provenance import provenance
from vlbench.runs.store import Store
from vlbench.runs.work import THREADS, Options, device_of, digests, now, open_split, write_queries
from vlbench.train.batch import Split, Strangers
from vlbench.train.checkpoint import load_weights
from vlbench.train.cost import Meter, forget_peak
from vlbench.train.loop import WEIGHTS, build
from vlbench.train.predict import NotReached, predict, predict_spoiled
from vlbench.train.recipe import Recipe

CHECKPOINT = "selected"


@dataclass(frozen=True, slots=True)
class Result:
    """One scoring. kept: of a head corruption, Spearman's correlation of handed and clean values, mean over queries."""

    scores: Scores
    kept: float | None


class Bench:
    """One finished fit on one split, ready to be scored under any number of corruptions.

    Raises: StoreError if the fit is not in the store or not finished.
    """

    def __init__(self, store: Store, fit: str, data: DataRef, features: Features, options: Options) -> None:
        trained = from_spec(store.spec(fit))
        assert isinstance(trained, Fit)
        self.trained, self.data, self.options = trained, data, options
        self.recipe = Recipe.of(trained.variant.recipe)
        record = store.record(fit)
        if record is None:
            raise StoreError(f"the fit {fit} is not finished", where=store.folder(fit))
        store.require_weights(fit, [WEIGHTS[CHECKPOINT]])
        self.epoch = int(record["selected_epoch"])
        # any score of the fit opens the same split: what is checked is the fingerprint
        self.split: Split = open_split(Score(fit, data, features, {}), "report", features, options)
        self.others = Strangers(self.split)
        self.device = device_of(options.device)
        self.model = build(trained.variant, self.split, trained.seed).to(self.device)
        load_weights(self.model, store.folder(fit) / WEIGHTS[CHECKPOINT])
        self.moments, self.clean = cache(self._moments), cache(self._clean)

    def run(
        self, corruptions: Sequence[Corruption], *, metrics: Sequence[str] | None = None, mode: Mode = "compatible"
    ) -> list[Result]:
        """The scores of every query under each corruption; all are of one group (``Corruption.group``).

        Raises: CardError where a corruption has nothing to spoil, or its hook is not passed at inference.
        """
        first = corruptions[0]
        check(first.family, first.encoder, self.trained.variant, tuple(self.split.dataset.tasks))
        noise = Noise(first.family, first.draw, self.moments, self.others)
        try:
            found = predict_spoiled(
                self.model,
                self.split,
                corruptions,
                noise,
                device=self.device,
                **self.recipe.evaluation,
            )
        except NotReached as reason:
            raise unreached(self.trained.variant, first.family, str(reason.args[0])) from None
        return [
            Result(
                score(self.split.queries, spoiled.rows, mode=mode, metrics=metrics, clip_s=self.split.dataset.clip_s),
                float(np.nanmean(spoiled.kept)) if np.isfinite(spoiled.kept).any() else None,
            )
            for spoiled in found
        ]

    def lost(self, family: str, amounts: Sequence[float], *, metrics: Sequence[str], draws: int = 1) -> list[float]:
        """The share of the clean score that each amount costs, the mean over metrics and draws.

        What ``corrupt.calibrate`` measures with; infinite amounts are allowed. Raises: DataError if the clean score
        of a metric is 0.
        """
        clean = self.clean(tuple(metrics))
        nothing = [name for name in metrics if not clean.get(name, 0.0) > 0]
        if nothing:
            raise DataError(f"the clean score of {', '.join(nothing)} is 0 or missing: no share of it can be lost")
        entry = catalog.corruptions[family]
        shares = np.zeros((draws, len(amounts)))
        for draw in range(draws):
            asked = [Corruption(family, level, draw, None, x, entry.version) for level, x in enumerate(amounts, 1)]
            for column, result in enumerate(self.run(asked, metrics=metrics)):
                shares[draw, column] = np.mean([1 - result.scores.mean(name) / clean[name] for name in metrics])
        return [float(share) for share in shares.mean(axis=0)]

    def _clean(self, metrics: tuple[str, ...]) -> dict[str, float]:
        """Mean scores without any corruption."""
        rows = predict(
            self.model,
            self.split,
            device=self.device,
            **self.recipe.evaluation,
        )
        return score(self.split.queries, rows, metrics=metrics, clip_s=self.split.dataset.clip_s).means()

    def _moments(self, encoder: str) -> Moments:
        """Of the clips that the model was trained on, which need not be of the dataset that it is scored on."""
        from vlbench.data.base import open_dataset
        from vlbench.workspace import find

        trained_on = open_dataset(self.trained.data.name, find(Path(self.options.workspace)))
        return Moments(*channel_moments(trained_on, "fit", encoder, Path(self.options.store)))


def run_spoiled(cells: Sequence[Score], store: Store, options: Options) -> None:
    """Run scores under corruptions, group by group. Finished and held ones are passed over, as are those whose fit is
    not finished; a group that fails is recorded with its cause and the next one goes on.
    """
    bench: Bench | None = None
    for (fit, _), group in groupby(sorted(cells, key=_order), key=lambda cell: _order(cell)[:2]):
        if store.record(fit) is None:
            continue
        with contextlib.ExitStack() as claims:
            mine = []
            for cell in group:
                if store.record(cell.id) is not None:
                    continue
                store.prepare(cell)
                if claims.enter_context(store.claim(cell.id)) and store.record(cell.id) is None:
                    mine.append(cell)
            if not mine:
                continue
            try:
                if bench is None or bench.trained.id != fit or not _same_split(bench, mine[0]):
                    bench = Bench(store, fit, mine[0].data, mine[0].features, options)
                _run_group(mine, bench, store)
            except Exception as error:  # as in work: whatever a cell fails of is a result to show
                cause = str(error) if isinstance(error, VlbenchError) else f"{type(error).__name__}: {error}"
                for cell in (cell for cell in mine if store.record(cell.id) is None):
                    made_by = {**provenance(options.device), "finished": now()}
                    store.fail(cell.id, cause, traceback.format_exc(), made_by)
                if not isinstance(error, VlbenchError | MemoryError | RuntimeError | OSError):
                    raise


def _run_group(cells: Sequence[Score], bench: Bench, store: Store) -> None:
    """Score one group and finish its cells."""
    forget_peak(bench.options.device)
    started, meter = time.perf_counter(), Meter(bench.options.device, bench.options.share)
    corruptions = [cell.corruption for cell in cells if cell.corruption is not None]
    results = bench.run(corruptions, metrics=tuple(cells[0].metrics), mode=cells[0].mode)
    spent = meter.lap()
    spent = replace(spent, device_seconds=spent.device_seconds / len(cells))
    cost = {"seconds": (time.perf_counter() - started) / len(cells), **spent.as_json(), "threads": THREADS}
    made_by = {**provenance(bench.options.device), **cost}
    for cell, corruption, result in zip(cells, corruptions, results, strict=True):
        folder = store.folder(cell.id)
        with replacing(folder / "queries.parquet") as path:
            write_queries(path, bench.split.queries, {CHECKPOINT: result.scores.values})
        record = {
            "cell": cell.id,
            "kind": cell.kind,
            "fit": cell.fit,
            "corruption": corruption.identity(),
            "split": bench.split.dataset.split_rule("report"),
            "queries": len(bench.split),
            "summary": {f"{CHECKPOINT}/{name}": result.scores.mean(name) for name in result.scores.values},
            "checkpoints": {CHECKPOINT: {"epoch": bench.epoch, "chosen_on": "tune", "looks": 1}},
            "kept": result.kept,
            "warnings": sorted(map(str, result.scores.warnings)),
            "files": digests(folder, ["queries.parquet"]),
        }
        store.finish(cell.id, record, {**made_by, "finished": now()})


def _order(cell: Score) -> tuple[str, tuple[str, str, int], int]:
    """Fit, group, level: one order whatever was asked for first."""
    assert cell.corruption is not None
    return cell.fit, cell.corruption.group, cell.corruption.level


def _same_split(bench: Bench, cell: Score) -> bool:
    return bench.data.fingerprints == cell.data.fingerprints and bench.split.features == cell.features
