"""The one thing that every executor does: run cells, given as strings, against a store.

A worker writes files and nothing else. It knows no tracker, no study and no report.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlbench.canon import digest_file
from vlbench.cards.kinds import Features
from vlbench.errors import DataError, StoreError, VlbenchError
from vlbench.files import replacing
from vlbench.runs.bundles import why_alone
from vlbench.runs.cells import CHECKPOINTS, Cell, Fit, Score, from_spec
from vlbench.runs.provenance import provenance
from vlbench.runs.store import EventLog, Store

if TYPE_CHECKING:
    from vlbench.train.loop import FitResult

THREADS = 1  # per cell on a CPU: one single-threaded process per core is fastest, and the digits depend on the number


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, never what: nothing here changes a result beyond rounding.

    until: fits pause after so many epochs and keep their checkpoint; None: they run to their end. share: the part of a
    GPU's memory that a cell may take, in (0, 1]. pack: how many fits of one form are trained as one computation, at
    most; None: as many as a measurement on the device finds worth it. compiled: fits that are trained alone are
    trained by machine code (``train.step``). work: what a worker calls with specs and options; anything other than
    ``run_cells`` is for trying out executors.
    """

    store: str
    workspace: str
    device: str = "cpu"
    until: int | None = None
    share: float = 1.0
    pack: int | None = 1
    compiled: bool = False
    work: str = "vlbench.runs.work:run_cells"


def run_cells(specs: Sequence[str], options: Options) -> None:
    """Run cells in order: fits, and scores of fits that are finished. Finished and held cells are passed over.

    A cell that fails is recorded with its cause and the next one goes on; a cell whose fit failed is not tried. A fit
    that pauses keeps its checkpoint: any later command may go on with it. Scores under corruptions come last, those of
    a fit together. The weights of a fit's epochs wait for a clean score that is among these cells; where none is, they
    are not kept. Fits of one form are trained together as ``options.pack`` says.
    """
    settle(options)
    store = Store(Path(options.store))
    _free_leftovers(store.root)
    cells: list[Cell] = [from_spec(json.loads(text)) for text in specs]
    spoiled = [cell for cell in cells if isinstance(cell, Score) and cell.corruption is not None]
    cells = [cell for cell in cells if not (isinstance(cell, Score) and cell.corruption is not None)]
    due = {cell.fit for cell in cells if isinstance(cell, Score) and store.record(cell.id) is None}
    tried: set[str] = set()
    if options.pack != 1:
        from vlbench.runs.packs import run_packs

        tried = run_packs([cell for cell in cells if isinstance(cell, Fit)], store, options, due)
    for cell in cells:
        if cell.id in tried or store.record(cell.id) is not None:
            continue
        if isinstance(cell, Score) and store.record(cell.fit) is None:
            continue
        folder = store.prepare(cell)
        with store.claim(cell.id) as held:
            if held and store.record(cell.id) is None:
                run_alone(
                    cell,
                    folder,
                    store,
                    options,
                    keep=cell.id in due,
                    why=None if options.pack == 1 else why_alone(cell),
                )
    if spoiled:
        from vlbench.runs.spoiled import run_spoiled

        run_spoiled(spoiled, store, options)


def run_alone(cell: Cell, folder: Path, store: Store, options: Options, keep: bool, why: str | None = None) -> None:
    """Run a cell that this process holds. keep: of a fit, whether a scoring of it is to come. why: it is not packed."""
    from vlbench.train.cost import forget_peak

    with logged(cell, folder) as log, recorded(cell, store, options, log):
        log.info("start %s %s on %s", cell.kind, cell.id, options.device)
        if why is not None:
            log.info("alone: %s", why)
        forget_peak(options.device)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, category, *_: log.warning("%s: %s", category.__name__, message)
            if isinstance(cell, Fit):
                done = _run_fit(cell, folder, options, keep)
            else:
                done = _run_score(cell, folder, store, options)
        conclude(cell, folder, store, options, log, done)


@contextlib.contextmanager
def logged(cell: Cell, folder: Path) -> Iterator[logging.Logger]:
    """The cell's own log; what is said to ``vlbench.run`` is written there too while the block runs."""
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger("vlbench.run"), logging.getLogger(f"vlbench.run.{cell.id}")]
    for log in loggers:
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(handler)
    try:
        yield loggers[1]
    finally:
        for log in loggers:
            log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def recorded(cell: Cell, store: Store, options: Options, log: logging.Logger) -> Iterator[None]:
    """Whatever a cell fails of within the block is a result to show, and the other cells go on."""
    try:
        yield
    except Exception as error:
        cause = str(error) if isinstance(error, VlbenchError) else f"{type(error).__name__}: {error}"
        log.exception("failed")
        store.fail(cell.id, cause, traceback.format_exc(), {**provenance(options.device), "finished": now()})
        if not isinstance(error, VlbenchError | MemoryError | RuntimeError | OSError):
            raise


def conclude(
    cell: Cell,
    folder: Path,
    store: Store,
    options: Options,
    log: logging.Logger,
    done: tuple[dict[str, Any], dict[str, Any]] | None,
) -> None:
    """Write the record of a cell and what making it took, or that it pauses. done: both, or None."""
    if done is None:
        (folder / "failure.json").unlink(missing_ok=True)  # it got further than where it failed
        log.info("paused")
        return
    record, cost = done
    store.finish(cell.id, record, {**provenance(options.device), **cost, "finished": now()})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    if isinstance(cell, Score):
        _free(cell.fit, store)
    log.info("done")


def _run_fit(cell: Fit, folder: Path, options: Options, keep: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The record and its cost, or None where the fit is paused. keep: whether a scoring of it is to come."""
    from vlbench.train.loop import fit

    features = cell.variant.features
    training, tuning = (open_split(cell, role, features, options) for role in ("fit", "tune"))
    events = open_events(folder)
    started = time.perf_counter()
    try:
        result = fit(
            cell.variant,
            training,
            tuning,
            seed=cell.seed,
            device=device_of(options.device),
            folder=folder,
            log=events.write,
            until=options.until,
            keep=keep,
            share=options.share,
            compiled=options.compiled,
        )
    finally:
        events.close()
    if result is None:
        return None
    sizes = {"fit": len(training), "tune": len(tuning)}
    return fit_record(cell, folder, result, sizes, time.perf_counter() - started)


def open_events(folder: Path) -> EventLog:
    """The events of a fit, cut back to its checkpoint."""
    from vlbench.train.loop import CHECKPOINT

    return EventLog(folder / "events.jsonl", keep_through=_checkpoint_epoch(folder / CHECKPOINT))


def fit_record(
    cell: Fit, folder: Path, result: FitResult, sizes: Mapping[str, int], wall: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of a fit that ended, and its cost. sizes: queries by role. wall: seconds since it was begun."""
    from vlbench.train.loop import EPOCH_SCORES, WEIGHTS

    record = {
        "cell": cell.id,
        "kind": cell.kind,
        "parameters": result.parameters,
        "epochs": result.epochs,
        "selected_epoch": result.selected_epoch,
        "queries": dict(sizes),
        "summary": dict(result.summary),
        "files": digests(folder, [*WEIGHTS.values(), EPOCH_SCORES]),
        "weights": {str(epoch): digest for epoch, digest in sorted(result.weights.items())},
    }
    cost = {"seconds": result.seconds, "wall": wall, "resumed": result.resumed, "step": result.step}
    return record, {**cost, **result.cost.as_json(), "threads": THREADS}


def _run_score(cell: Score, folder: Path, store: Store, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np

    from vlbench.data.predictions import write_predictions
    from vlbench.metrics.base import Scores, score
    from vlbench.metrics.oddities import Oddity
    from vlbench.runs import looks
    from vlbench.train.checkpoint import load_weights
    from vlbench.train.cost import Meter
    from vlbench.train.loop import EPOCH_SCORES, WEIGHTS, build, save_epoch_scores, weights_of_epochs
    from vlbench.train.predict import predict
    from vlbench.train.recipe import Recipe

    started, meter = time.perf_counter(), Meter(options.device, options.share)
    trained = from_spec(store.spec(cell.fit))
    assert isinstance(trained, Fit)
    reporting = open_split(cell, "report", cell.features, options)
    rule = reporting.dataset.split_rule("report")
    device, recipe = device_of(options.device), Recipe.of(trained.variant.recipe)
    reporting = reporting.on(device, options.share)
    model = build(trained.variant, reporting, trained.seed).to(device)
    store.require_weights(cell.fit, WEIGHTS.values())
    fitted = store.record(cell.fit) or {}
    paths = weights_of_epochs(store.folder(cell.fit), recipe, fitted["selected_epoch"])
    weights = looks.Weights.of(fitted, paths, recipe.epochs - 1)
    store.enter_look(looks.entry(cell, trained, rule, weights.epochs, weights.gone is None))
    scored: dict[int, Scores] = {}
    for epoch in weights.epochs:
        try:
            load_weights(model, paths[epoch])
        except StoreError:
            if epoch in weights.named.values():
                raise
            weights = weights.without(epoch)  # another scoring of this fit ended meanwhile
            continue
        rows = predict(
            model,
            reporting,
            device=device,
            **recipe.evaluation,
        )
        scored[epoch] = score(
            reporting.queries, rows, mode=cell.mode, metrics=tuple(cell.metrics), clip_s=reporting.dataset.clip_s
        )
        for checkpoint in (name for name in CHECKPOINTS if weights.named[name] == epoch):
            write_predictions(folder / f"predictions-{checkpoint}.jsonl.gz", rows)
    by_epoch = {epoch: scored[epoch].values for epoch in weights.epochs}
    tables, chosen = looks.choices(weights, by_epoch, reporting.queries, recipe.selects)
    with replacing(folder / "queries.parquet") as path:
        write_queries(path, reporting.queries, tables)
    with replacing(folder / EPOCH_SCORES) as path, path.open("wb") as stream:
        names, cube = looks.stacked(by_epoch)
        qids = [str(query.qid) for query in reporting.queries]
        save_epoch_scores(stream, names, qids, weights.epochs, cube.astype(np.float16))
    found = {checkpoint: scored[weights.named[checkpoint]].warnings for checkpoint in CHECKPOINTS}
    files = [*(f"predictions-{checkpoint}.jsonl.gz" for checkpoint in CHECKPOINTS), "queries.parquet", EPOCH_SCORES]
    record = {
        "cell": cell.id,
        "kind": cell.kind,
        "fit": cell.fit,
        "split": rule,
        "queries": len(reporting),
        "summary": {
            f"{checkpoint}/{name}": float(values[~np.isnan(values)].mean())
            for checkpoint, table in tables.items()
            for name, values in table.items()
        },
        "checkpoints": chosen,
        "looked_at": weights.epochs,
        "warnings": sorted({note for notes in found.values() for note in notes}),
        "oddities": [
            {"checkpoint": checkpoint, **note.as_json()}
            for checkpoint, notes in found.items()
            for note in notes
            if isinstance(note, Oddity)
        ],
        "files": digests(folder, files),
    }
    cost = {"seconds": time.perf_counter() - started, **meter.lap().as_json()}
    return record, {**cost, "threads": THREADS}


def _free(fit: str, store: Store) -> None:
    """Delete the scratch weights of a fit that was scored clean: the others read the selected epoch alone."""
    from vlbench.train.loop import EPOCH_WEIGHTS

    shutil.rmtree(store.folder(fit) / EPOCH_WEIGHTS, ignore_errors=True)


@functools.cache  # once in a process: in a full store it may read thousands of records
def _free_leftovers(root: Path) -> None:
    """Delete scratch weights that a kill between a score's record and their deletion has left."""
    from vlbench.train.loop import EPOCH_WEIGHTS

    store = Store(root)
    kept = {path.parent.name for path in store.root.glob(f"cells/*/*/{EPOCH_WEIGHTS}")}
    waiting = {fit for fit in kept if store.record(fit) is not None}
    if not waiting:
        return
    for cell_id in store.cell_ids():
        record = store.record(cell_id)
        if record is not None and record.get("fit") in waiting and not record.get("corruption"):
            _free(str(record["fit"]), store)


def open_split(cell: Cell, role: str, features: Features, options: Options) -> Any:
    """The queries and packed features of one role, after checking that the data are still those of the plan."""
    from vlbench.data.base import open_dataset
    from vlbench.data.packed import Packed
    from vlbench.train.batch import Split
    from vlbench.workspace import find

    dataset = open_dataset(cell.data.name, find(Path(options.workspace)))
    known = cell.data.fingerprints.get(role)
    if known is not None and dataset.fingerprint(role, features) != known:
        raise DataError(
            f'the {role} data of "{cell.data.name}" changed after the study was planned',
            hint="plan again: run the same command",
        )
    return Split(dataset, role, features, Packed.open(dataset, role, features, Path(options.store)))


def write_queries(path: Path, queries: Sequence[Any], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """One row per query and checkpoint: ``qid`` (JSON), ``source_video``, ``checkpoint`` and float32 per metric."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for checkpoint, table in tables.items():
        columns: dict[str, Any] = {
            "qid": [json.dumps(query.qid) for query in queries],
            "source_video": [query.source_video for query in queries],
            "checkpoint": [checkpoint] * len(queries),
        }
        columns |= {name: np.asarray(values, dtype=np.float32) for name, values in table.items()}
        parts.append(pa.table(columns))
    pq.write_table(pa.concat_tables(parts), path, compression="zstd")


def digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The digest of each file."""
    return {name: digest_file(folder / name) for name in sorted(names)}


def _checkpoint_epoch(path: Path) -> int:
    """The last epoch that a checkpoint holds, -1 without one."""
    if not path.exists():
        return -1
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as stream:
            return int(json.loads(stream.metadata()["progress"])["next_epoch"]) - 1
    except Exception as error:
        raise StoreError(
            f"the checkpoint cannot be read: {error}", where=path, hint="delete it to start anew"
        ) from error


def device_of(name: str) -> Any:
    """The torch device of this name."""
    import torch

    return torch.device(name)


def settle(options: Options) -> None:
    """Fix what the digits depend on, threads and plain fp32 products, and how much of a GPU's memory may be taken."""
    import torch

    torch.set_num_threads(THREADS)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if options.device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(options.share, device_of(options.device))


def now() -> str:
    """ISO time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
