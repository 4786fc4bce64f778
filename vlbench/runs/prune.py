"""Freeing space without losing evidence: weights go, everything that a report or a test reads stays.

Records, per-query scores, predictions, events and provenance are never touched. What was deleted is told by
``pruned.json`` beside the record, written before anything is deleted, so that the record itself stays as it is and a
kill in between leaves nothing that nobody knows of. Weights that a planned scoring still needs are kept.
"""

from __future__ import annotations

import calendar
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlbench.canon import digest_file
from vlbench.errors import CardError, StoreError, suggestion
from vlbench.files import write_text
from vlbench.runs.store import Store, writing
from vlbench.status import Status

SIDECAR = "pruned.json"
DEFINING = frozenset({"plan.json", "sweep.json"})  # either makes a folder a study
_CHECKPOINT = "checkpoint.safetensors"  # of a fit that is not finished: deleting it would lose work
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Prunable:
    """What can go of one cell. files: names inside its folder; empty where the whole folder goes."""

    cell: str
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Finished fits whose weights can go, and how many keep theirs because a scoring waits for them."""

    fits: tuple[Prunable, ...]
    waiting: int


def age_s(text: str) -> float:
    """``7d`` as seconds; units m, h, d, w. Raises: CardError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip())
    if found is None:
        raise CardError(
            f'needs a number and a unit (got "{text}")', where="--older-than", hint="for example 12h, 7d, 2w"
        )
    return float(found[1]) * _UNITS[found[2]]


def weights_of(folder: Path) -> list[str]:
    """Names of the weight files of a finished fit, those of single epochs included, as they are now."""
    found = [*folder.glob("*.safetensors"), *folder.glob("epochs/*.safetensors")]
    return sorted(str(path.relative_to(folder)) for path in found if path.name != _CHECKPOINT)


def known_studies(store: Store) -> list[str]:
    """Every study of the store, of any kind, sorted by name."""
    return sorted({path.parent.name for name in DEFINING for path in store.root.glob(f"studies/*/{name}")})


def study_cells(store: Store, study: str) -> list[str]:
    """Every cell of the store that a study's files name: of its plan, and the trials of a sweep. Sorted.

    Raises: StoreError for a study that the store does not have.
    """
    if study not in (known := known_studies(store)):
        raise StoreError(f'the store has no study "{study}"', where=store.root, hint=suggestion(study, known))
    texts = (path.read_text(encoding="utf-8") for path in store.study_folder(study).glob("*.json"))
    named = {cell for text in texts for cell in re.findall(r'"([0-9a-f]{12})"', text)}
    return sorted(cell for cell in named if (store.folder(cell) / "spec.json").exists())


def prunable_weights(store: Store, *, studies: Iterable[str] = (), older_than_s: float | None = None) -> Weights:
    """What ``prune_weights`` would delete. studies: only their fits; none: all. older_than_s: since it was finished."""
    cells = sorted({cell for study in studies for cell in study_cells(store, study)}) if studies else store.cell_ids()
    awaited = _awaited(store)
    found, waiting = [], 0
    for cell in cells:
        folder = store.folder(cell)
        names = weights_of(folder)
        if not names or store.record(cell) is None:
            continue
        if older_than_s is not None and time.time() - _finished(store, cell) < older_than_s:
            continue
        if cell in awaited:
            waiting += 1
            continue
        found.append(Prunable(cell, tuple(names), _bytes(folder / name for name in names)))
    return Weights(tuple(found), waiting)


def prune_weights(store: Store, fits: Iterable[Prunable]) -> Iterator[Prunable]:
    """Delete the weights; yields each fit that was pruned. A fit that another process holds is passed over."""
    for fit in fits:
        folder = store.folder(fit.cell)
        with store.claim(fit.cell) as held:
            if not held:
                continue
            known = (store.record(fit.cell) or {}).get("files", {})
            gone = store.pruned(fit.cell)
            for name in fit.files:
                path = folder / name
                digest = known[name] if name in known else digest_file(path)
                gone[name] = {"sha256": digest, "bytes": path.stat().st_size}
            with writing(store.root):
                write_text(folder / SIDECAR, json.dumps({"files": gone}, indent=1, sort_keys=True), durable=True)
                for name in fit.files:
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / "epochs", ignore_errors=True)
        yield fit


def failed_cells(store: Store, *, studies: Iterable[str] = (), older_than_s: float | None = None) -> list[Prunable]:
    """Cells that failed and were not finished since, with everything in their folders."""
    cells = sorted({cell for study in studies for cell in study_cells(store, study)}) if studies else store.cell_ids()
    found = []
    for cell in cells:
        failure = store.folder(cell) / "failure.json"
        if not failure.exists() or store.status(cell) is not Status.FAILED:
            continue
        if older_than_s is not None and time.time() - failure.stat().st_mtime < older_than_s:
            continue
        found.append(Prunable(cell, (), _bytes(store.folder(cell).rglob("*"))))
    return found


def prune_failed(store: Store, cells: Iterable[Prunable]) -> Iterator[Prunable]:
    """Delete whole folders; yields each cell that went. One that another process has taken up is passed over."""
    for one in cells:
        folder = store.folder(one.cell)
        aside = store.root / f".trash-{one.cell}"
        with store.claim(one.cell) as held:
            if not held or store.status(one.cell) is Status.DONE:
                continue
            with writing(store.root):
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)  # at once, so that no half of a cell is ever seen
        shutil.rmtree(aside, ignore_errors=True)
        yield one


def _awaited(store: Store) -> set[str]:
    """Fits that a scoring waits for: planned, or begun and not finished."""
    pairs = [pair for study in store.studies() for pair in _planned(store.load_plan(study))]
    for cell in store.cell_ids():
        if (store.folder(cell) / "record.json").exists():
            continue
        identity = store.spec(cell).get("identity", {})
        if identity.get("kind") == "score":
            pairs.append((str(identity["fit"]), cell))
    return {fit for fit, score in pairs if store.status(score) is not Status.DONE}


def _planned(part: Any) -> Iterator[tuple[str, str]]:
    """Every fit with a score of it that a plan of any kind names."""
    if isinstance(part, Mapping):
        if isinstance(part.get("fit"), str) and isinstance(part.get("score"), str):
            yield part["fit"], part["score"]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _planned(item)


def _finished(store: Store, cell: str) -> float:
    told = (store.made_by(cell) or {}).get("finished")
    try:
        return calendar.timegm(time.strptime(str(told), "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return (store.folder(cell) / "record.json").stat().st_mtime


def _bytes(paths: Iterable[Path]) -> int:
    """Bytes on the disk: a file under two names counts once."""
    stats = [path.stat() for path in paths if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())
