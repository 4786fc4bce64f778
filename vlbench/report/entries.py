"""Lines of the index page, kept beside each study's plan: judging every study of a full store again takes minutes.

A kept line is used only while everything that it follows from is as it was: the plan, the looks, every record, score
and event file (by size, time and inode, which change with every replacement and every line), and the code. Otherwise it
is made anew, and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import vlbench
from vlbench.canon import digest
from vlbench.files import read_json, write_text
from vlbench.report.page import Entry, Line
from vlbench.runs.store import Store

KEPT = ".entry.json"


def stamp(store: Store, study: str, *, allow_missing: bool) -> str:
    """What an entry follows from, as a digest. It has to be taken before the study is read."""
    plan = store.load_plan(study)
    files = [[name, *_state(store.folder(cell) / name)] for cell, name in _sources(plan)]
    looks = _state(store.study_folder(study) / "looks.json")
    complete = all(len(file) > 1 for file in files)  # then it does not matter whether anything may be missing
    return digest([complete or allow_missing, plan, looks, files, _code()])


def kept(store: Store, study: str, stamped: str) -> Entry | None:
    """The entry that was kept under this stamp, without its link, or None."""
    found = read_json(store.study_folder(study) / KEPT)
    if found is None or found.get("stamp") != stamped:
        return None
    entry: dict[str, Any] = found["entry"]
    answers = tuple(
        (subject, tuple(Line(**{**line, "evidence": tuple(line["evidence"])}) for line in lines))
        for subject, lines in entry["answers"]
    )
    return Entry(**{**entry, "answers": answers, "cautions": tuple(entry["cautions"])})


def keep(store: Store, study: str, stamped: str, entry: Entry) -> None:
    """Keep an entry; a store that cannot be written does without."""
    content = json.dumps({"stamp": stamped, "entry": {**asdict(entry), "href": ""}})
    with contextlib.suppress(OSError):
        write_text(store.study_folder(study) / KEPT, content)


def _sources(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Cells and those of their files that a comparison is made from."""
    for arm in plan["arms"]:
        for cell in arm["cells"]:
            yield from (
                (str(cell["fit"]), name) for name in ("record.json", "events.jsonl", "made_by.json", "spec.json")
            )
            yield from (
                (str(cell["score"]), name) for name in ("record.json", "queries.parquet", "made_by.json", "spec.json")
            )
    for cell in plan.get("spoiled", ()):
        yield from ((str(cell["score"]), name) for name in ("record.json", "queries.parquet"))


def _state(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


@cache
def _code() -> list[Any]:
    """What judges: the files of this package, as they are on the disk, and the numerics below them."""
    root = Path(vlbench.__file__).parent
    files = sorted(path for pattern in ("*.py", "*.j2") for path in root.rglob(pattern))
    return [np.__version__, *([str(path.relative_to(root)), *_state(path)] for path in files)]
