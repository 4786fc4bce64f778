"""Which reports stand as they would be written now, so that they are not written again.

Beside a study's plan stands, for every folder that its report was written to, the stamp of what it was made from (see
``stamps``) and the digest of every file. A report is left alone only while the stamp is the same and every file is what
was written. The file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from vlbench.canon import digest, digest_file
from vlbench.files import read_json, write_text
from vlbench.runs.store import Store

KEPT = ".written.json"
MOST = 8  # folders that are remembered of a study


def standing(store: Store, study: str, folder: Path, stamp: str, options: Sequence[object]) -> list[Path] | None:
    """The files of a report, in the order written, if writing it now would change none of them; else None.

    stamp: of what it follows from; an empty one never stands. options: all that decides its form.
    """
    if not stamp:
        return None
    kept = (read_json(store.study_folder(study) / KEPT) or {}).get("reports", {}).get(str(folder.resolve()))
    if kept is None or kept["stamp"] != digest([stamp, *options]):
        return None
    paths = {folder / name: wanted for name, wanted in kept["files"]}
    with contextlib.suppress(OSError):
        if all(digest_file(path) == wanted for path, wanted in paths.items()):
            return list(paths)
    return None


def note(
    store: Store, study: str, folder: Path, stamp: str, options: Sequence[object], written: Sequence[Path]
) -> None:
    """Remember a report that was written just now; a store that cannot be written does without."""
    if not stamp:
        return
    place = store.study_folder(study) / KEPT
    known = dict((read_json(place) or {}).get("reports", {}))
    known.pop(str(folder.resolve()), None)
    files = [[path.relative_to(folder).as_posix(), digest_file(path)] for path in written]
    known[str(folder.resolve())] = {"stamp": digest([stamp, *options]), "files": files}
    with contextlib.suppress(OSError):
        write_text(place, json.dumps({"reports": dict(list(known.items())[-MOST:])}))
