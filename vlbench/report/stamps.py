"""What a report follows from, as a digest: files by size, time and inode, which change with every replacement and every
line, the annotations that it shows, and the code that writes it.

Judging and drawing a study takes seconds, looking at the state of its files milliseconds. So what was made from files
that are all as they were is not made again: lines of the index page (``entries``) and whole reports (``written``). A
stamp is taken before anything is read; what changes in between belongs to the next stamp.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vlbench
from vlbench.errors import VlbenchError
from vlbench.runs.store import LEDGER, Store


class Stamp(NamedTuple):
    """judged: what the verdicts of a study follow from. whole: what its report follows from; empty while cells are
    missing, because what is said of those depends on more than files.
    """

    judged: str = ""
    whole: str = ""


def of_study(store: Store, study: str, *, allow_missing: bool, whole: bool = True) -> Stamp:
    """The stamp of a study with a plan. whole: False leaves that part empty, which takes a quarter of the time.

    Raises: StoreError if the store has no such study.
    """
    plan = store.load_plan(study)
    files = [[name, *state(f"{folder}/{name}")] for folder, name in _judged_from(store, plan)]
    complete = all(len(file) > 1 for file in files)  # then it does not matter whether anything may be missing
    looks = [look for look in store.looks(study) if look != own_look(plan)]
    judged = _digest([complete or allow_missing, plan, looks, files, code()])
    around = _around(store, str(plan["dataset"])) if whole and complete else None
    return Stamp(judged, "" if around is None else _digest([judged, around, *_everything(store, plan)]))


def of_sweep(content: bytes, final: Stamp | None) -> str:
    """The stamp of a sweep's report. content: of its file. final: of the study that fitted the winner again."""
    if final is not None and not final.whole:
        return ""
    return _digest([hashlib.sha256(content).hexdigest(), "" if final is None else final.whole, code()])


def state(path: str | Path) -> list[int]:
    """Size, time and inode of a file; nothing where there is none."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (thousands of them)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


@cache
def code() -> list[Any]:
    """What judges and writes: the files of this package, as they are on the disk, and what draws and computes."""
    root = Path(vlbench.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix not in ("", ".pyc"))
    versions = [np.__version__, metadata.version("matplotlib"), metadata.version("scipy")]
    return [*versions, *([str(path.relative_to(root)), *state(path)] for path in files)]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _judged_from(store: Store, plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Cells' folders and those of their files that a comparison is made from."""
    for arm in plan["arms"]:
        for cell in arm["cells"]:
            fit, score = (str(store.folder(str(cell[kind]))) for kind in ("fit", "score"))
            yield from ((fit, name) for name in ("record.json", "events.jsonl", "made_by.json", "spec.json"))
            yield from ((score, name) for name in ("record.json", "queries.parquet", "made_by.json", "spec.json"))
    for cell in plan.get("spoiled", ()):
        yield from ((str(store.folder(str(cell["score"]))), name) for name in ("record.json", "queries.parquet"))


def _everything(store: Store, plan: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Every file of every cell of a study: reports show predictions too."""
    cells = {str(cell[kind]) for arm in plan["arms"] for cell in arm["cells"] for kind in ("fit", "score")}
    cells |= {str(cell["score"]) for cell in plan.get("spoiled", ())}
    for cell in sorted(cells):
        with os.scandir(store.folder(cell)) as entries:
            yield [cell, *sorted([entry.name, *state(entry.path)] for entry in entries)]


def own_look(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What reporting a whole study notes of itself (see ``Store.note_look``); it changes nothing that is said of it."""
    looks = [int(look) for look in plan.get("looks", ())]
    primary = [str(name) for name in plan["primary"]]
    return {"seeds": len(plan["seeds"]), "margin": float(plan["margin"]), "schedule": looks, "primary": primary}


def _around(store: Store, dataset: str) -> list[Any] | None:
    """What a report shows that is not its cells': how often the split was looked at, and the annotations. None where
    that cannot be told.
    """
    from vlbench.workspace import FilesTable, find

    try:
        workspace = find()
    except VlbenchError:
        return None
    declared = workspace.declarations.get(dataset)
    found: list[Any] = [state(store.root / LEDGER)]
    if declared is None:
        return found
    found += [declared.table.model_dump(mode="json"), str(declared.folder)]
    if isinstance(declared.table, FilesTable):
        names = [name for file in declared.table.splits.values() for name in (file, f"{file}.gz")]
        found += [[name, *state(declared.folder / name)] for name in names]
    return found
