"""Lines of the index page, kept beside each study's plan: judging every study of a full store again takes minutes.

A kept line is used only while everything that it follows from is as it was (see ``stamps``). Otherwise it is made anew,
and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import Any

from vlbench.files import read_json, write_text
from vlbench.report import stamps
from vlbench.report.page import Entry, Line
from vlbench.runs.store import Store

KEPT = ".entry.json"


def stamp(store: Store, study: str, *, allow_missing: bool) -> str:
    """What an entry follows from, as a digest. It has to be taken before the study is read."""
    return stamps.of_study(store, study, allow_missing=allow_missing, whole=False).judged


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
