"""Finished cells between machines: one archive, its digests checked before anything is placed.

The archive is a tar, compressed if its name ends in ``.gz`` or ``.tgz``. Its first member, ``manifest.json``, names
every other with its sha256; equal cells give equal bytes. Besides cells it holds the plans of studies and the looks at
reporting splits that the cells took, because a look does not become undone by moving.

Without weights, a cell travels with a ``pruned.json`` that names what stayed behind. Importing an archive with weights
brings back what was pruned.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vlbench.canon import canonical, digest, digest_file
from vlbench.errors import StoreError
from vlbench.files import read_json, replacing, write_text
from vlbench.runs.cells import ID_LENGTH
from vlbench.runs.prune import DEFINING, SIDECAR, known_studies, study_cells, weights_of
from vlbench.runs.store import Store, writing
from vlbench.status import Status

FORMAT = 1
MANIFEST = "manifest.json"
NAMED = 3  # conflicts that a message names
MOST_MANIFEST = 256 * 2**20  # bytes; a manifest that claims more is not one
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)?")
_CELL = re.compile(r"[0-9a-f]{%d}" % ID_LENGTH)  # noqa: UP031 - braces
_LEFT = ("claim.json", "failure.json", "checkpoint.safetensors", SIDECAR)  # of a running cell, or written anew
_STAGING = ".import-"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an archive holds. unfinished: cells of the wanted studies that are not in it."""

    cells: int
    studies: int
    bytes: int
    unfinished: int


@dataclass(slots=True)
class Imported:
    """What became of an archive's cells and plans."""

    placed: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)  # equal, and pruned weights came back
    held: list[str] = field(default_factory=list)  # another process is running them
    studies: list[str] = field(default_factory=list)
    looks: int = 0


# --- out --------------------------------------------------------------------------------------------------------------


def export(store: Store, path: Path, *, studies: Sequence[str] = (), weights: bool = False) -> Exported:
    """Write finished cells to an archive, whole or not at all. studies: only theirs; none: all of the store.

    Raises: StoreError for an unknown study, for a cell that is not what its record describes, or where the archive
        cannot be written.
    """
    named = list(dict.fromkeys(studies)) or known_studies(store)
    wanted = sorted({cell for study in named for cell in study_cells(store, study)}) if studies else store.cell_ids()
    cells = [cell for cell in wanted if store.status(cell) is Status.DONE]
    sources: dict[str, Path | bytes] = {}
    described: dict[str, Any] = {}
    for cell in cells:
        described[cell] = _describe(store, cell, weights, sources)
    plans: dict[str, Any] = {}
    for study in named:
        plans[study] = {}
        for source in sorted(store.study_folder(study).glob("*.json")):
            if not source.name.startswith("."):
                sources[f"studies/{study}/{source.name}"] = content = source.read_bytes()
                plans[study][source.name] = _entry(content)
    taken = set(cells)
    looks = [line for line in store.ledger() if line["score"] in taken]
    manifest = {"format": FORMAT, "cells": described, "studies": plans, "ledger": looks}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _write(temporary, path.name, canonical(manifest).encode(), sources, manifest)
            size = temporary.stat().st_size
    except OSError as error:
        raise StoreError(f"the archive cannot be written: {error.strerror or error}", where=path) from error
    return Exported(len(cells), len(named), size, len(wanted) - len(cells))


def _describe(store: Store, cell: str, weights: bool, sources: dict[str, Path | bytes]) -> dict[str, Any]:
    """The manifest's entry of a cell; adds its files to ``sources``."""
    folder, record = store.folder(cell), store.record(cell) or {}
    recorded = {**{f"epochs/{int(e):06d}.safetensors": d for e, d in record.get("weights", {}).items()}}
    recorded |= record.get("files", {})
    heavy = weights_of(folder)
    names = [entry.name for entry in sorted(folder.iterdir()) if entry.is_file()]
    names = [name for name in names if not name.startswith(".") and name not in (*_LEFT, *heavy)]
    files: dict[str, Any] = {}
    for name in names + (heavy if weights else []):
        files[name] = _entry(folder / name)
        if name in recorded and files[name]["sha256"] != recorded[name]:
            raise StoreError(
                f"cell {cell}: {name} is not what its record describes",
                where=folder,
                hint="delete the folder and run the study again",
            )
        sources[f"cells/{cell}/{name}"] = folder / name
    pruned = store.pruned(cell)
    if not weights:
        for name in heavy:
            path = folder / name
            digest = recorded.get(name) or digest_file(path)
            pruned[name] = {"sha256": digest, "bytes": path.stat().st_size}
    missing = [name for name in recorded if name not in files and name not in pruned and not name.startswith("epochs/")]
    if missing:
        raise StoreError(f"cell {cell}: {', '.join(missing)} of its record is gone", where=folder)
    if pruned:
        content = json.dumps({"files": pruned}, indent=1, sort_keys=True).encode()
        sources[f"cells/{cell}/{SIDECAR}"] = content
        files[SIDECAR] = _entry(content)
    return {"files": files}


def _entry(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, Path):
        return {"sha256": digest_file(content), "bytes": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _write(
    path: Path, name: str, manifest: bytes, sources: Mapping[str, Path | bytes], described: Mapping[str, Any]
) -> None:
    expected = {member: entry["bytes"] for member, entry in _members(described).items()}
    with ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("wb"))
        if name.endswith((".gz", ".tgz")):
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0))
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT))
        _add(tar, MANIFEST, io.BytesIO(manifest), len(manifest))
        for member in sorted(sources):
            source = sources[member]
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                _add(tar, member, content, expected[member])


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, content)


# --- in ---------------------------------------------------------------------------------------------------------------


def import_(store: Store, path: Path, *, plans: bool = True) -> Imported:
    """Bring an archive's cells into the store: all are read and checked first, then each is placed whole.

    An equal cell is left as it is, and gets back weights that were pruned. plans: also the studies.

    Raises: StoreError for an archive that is broken, was changed or reaches outside the store, and if a cell or a plan
        is here with another content; then nothing is placed.
    """
    try:
        with tarfile.open(path, mode="r|*") as tar, writing(store.root), _staging(store) as staging:
            try:
                manifest = _unpack(tar, staging, path)
            except gzip.BadGzipFile as error:  # an OSError that is no fault of the store
                raise tarfile.ReadError(str(error)) from error
            _check(staging, manifest, path)
            _refuse_conflicts(store, manifest, plans, path)
            done = Imported(looks=store.merge_ledger(manifest["ledger"]))  # a look is entered before what it saw
            for cell, entry in manifest["cells"].items():
                _place_cell(store, cell, staging / "cells" / cell, entry["files"], done)
            if plans:
                for study in manifest["studies"]:
                    _place_study(store, study, staging / "studies" / study, done)
    except FileNotFoundError:
        raise StoreError("there is no such archive", where=path) from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise StoreError(f"the archive is broken: {error}", where=path, hint="copy or export it again") from error
    return done


@contextmanager
def _staging(store: Store) -> Iterator[Path]:
    """A folder inside the store's file system that is gone afterwards; what a killed import has left is removed."""
    store.root.mkdir(parents=True, exist_ok=True)
    for left in store.root.glob(f"{_STAGING}*"):
        with (left / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another import is at work
                continue
        shutil.rmtree(left, ignore_errors=True)
    folder = store.root / f"{_STAGING}{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(tar: tarfile.TarFile, staging: Path, path: Path) -> dict[str, Any]:
    """Every member into the staging folder, each with the size and digest that the manifest says."""
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > MOST_MANIFEST:
        raise StoreError("this is not an archive of cells: its manifest is missing", where=path)
    stream = tar.extractfile(first)
    assert stream is not None
    manifest = _manifest(stream.read(), path)
    waiting = _members(manifest)
    while (member := tar.next()) is not None:
        entry = waiting.pop(member.name, None)
        if entry is None or not member.isfile():
            raise StoreError(f'it holds "{member.name}", which its manifest does not name', where=path)
        content = tar.extractfile(member)
        assert content is not None
        target = staging / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        found, size = hashlib.sha256(), 0
        with target.open("wb") as out:
            while block := content.read(2**20):
                found.update(block)
                size += len(block)
                out.write(block)
        if size != entry["bytes"] or found.hexdigest() != entry["sha256"]:
            raise StoreError(
                f"{member.name} is not what the manifest says: sha256 {found.hexdigest()}, expected {entry['sha256']}",
                where=path,
                hint="copy or export it again",
            )
    if waiting:
        raise StoreError(
            f"the archive is broken: {len(waiting)} of its files are missing, such as {min(waiting)}",
            where=path,
            hint="copy or export it again",
        )
    return manifest


def _manifest(content: bytes, path: Path) -> dict[str, Any]:
    """The manifest, after checking its form: nothing in it may name a place outside the store."""
    try:
        found = json.loads(content)
        version, cells, studies, ledger = (found[key] for key in ("format", "cells", "studies", "ledger"))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError("this is not an archive of cells: its manifest cannot be read", where=path) from error
    if version != FORMAT:
        raise StoreError(f"the archive is of format {version}, this version knows {FORMAT}", where=path)
    if not (isinstance(cells, dict) and isinstance(studies, dict) and isinstance(ledger, list)):
        raise StoreError("this is not an archive of cells: its manifest cannot be read", where=path)
    wrong = [cell for cell in cells if not _CELL.fullmatch(cell)]
    wrong += [study for study in studies if not _NAME.fullmatch(study) or "/" in study]
    named = [entry.get("files") if isinstance(entry, dict) else None for entry in cells.values()] + [*studies.values()]
    for files in named:
        if not isinstance(files, dict):
            raise StoreError("this is not an archive of cells: its manifest cannot be read", where=path)
        wrong += [name for name in files if not _NAME.fullmatch(name) or name in ("claim.json", "failure.json")]
        wrong += [name for name, e in files.items() if not isinstance(e, dict) or not {"sha256", "bytes"} <= e.keys()]
    wrong += [str(line) for line in ledger if not isinstance(line, dict) or line.get("score") not in cells]
    if wrong:
        raise StoreError(f'the manifest names "{wrong[0]}", which cannot be part of a store', where=path)
    return dict(found)


def _members(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Every member but the manifest, with its size and digest."""
    cells = {f"cells/{c}/{name}": e for c, entry in manifest["cells"].items() for name, e in entry["files"].items()}
    return cells | {f"studies/{s}/{name}": e for s, files in manifest["studies"].items() for name, e in files.items()}


def _check(staging: Path, manifest: Mapping[str, Any], path: Path) -> None:
    """Every cell is what its name says, and its files are those of its record."""
    for cell, entry in manifest["cells"].items():
        folder, files = staging / "cells" / cell, entry["files"]
        spec, record = read_json(folder / "spec.json"), read_json(folder / "record.json")
        if spec is None or record is None:
            raise StoreError(f"cell {cell} has no spec or no record", where=path)
        if digest(spec.get("identity"))[:ID_LENGTH] != cell or record.get("cell") != cell:
            raise StoreError(f"cell {cell} is not what its name says: its spec has another identity", where=path)
        pruned = dict((read_json(folder / SIDECAR) or {}).get("files", {}))
        for name, wanted in record.get("files", {}).items():
            found = files.get(name, pruned.get(name, {})).get("sha256")
            if found != wanted:
                raise StoreError(f"cell {cell}: {name} is not what its record describes", where=path)
    for study, names in manifest["studies"].items():
        told = [read_json(staging / "studies" / study / name) for name in sorted(DEFINING & names.keys())]
        if not told or any(plan is None or plan.get("study") != study for plan in told):
            raise StoreError(f'the study "{study}" has no plan, or that of another study', where=path)


def _refuse_conflicts(store: Store, manifest: Mapping[str, Any], plans: bool, path: Path) -> None:
    """Raises StoreError if a cell or a study is here with another content; both digests are named."""
    found = []
    for cell, entry in manifest["cells"].items():
        here = store.folder(cell) / "record.json"
        there = entry["files"]["record.json"]["sha256"]
        if store.status(cell) is Status.DONE and (mine := digest_file(here)) != there:
            found.append(f"cell {cell} is here with another record: sha256 {mine} here, {there} in the archive")
    hint = "the machines gave other results for one spec: compare device and versions in made_by.json of both"
    if not found:
        hint = "bring in the cells alone with --cells-only, then plan again"
    for study, files in manifest["studies"].items() if plans else ():
        for name in sorted(DEFINING & files.keys()):
            here = store.study_folder(study) / name
            there = files[name]["sha256"]
            if here.exists() and (mine := digest_file(here)) != there:
                found.append(f'the study "{study}" is here with another {name}: sha256 {mine} here, {there} there')
    if found:
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise StoreError(f"nothing was imported: {'; '.join(found[:NAMED])}{more}", where=path, hint=hint)


def _place_cell(store: Store, cell: str, staged: Path, files: Mapping[str, Any], done: Imported) -> None:
    target = store.folder(cell)
    if store.status(cell) is Status.DONE:
        done.equal.append(cell)
        if _restore(store, cell, staged, files):
            done.restored.append(cell)
        return
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(target)
            done.placed.append(cell)
            return
        except OSError:
            if not target.exists():
                raise  # else somebody began this cell just now
    with store.claim(cell) as held:
        if not held:
            done.held.append(cell)
            return
        names = [name for name in files if name != "record.json"]
        for name in [*names, "record.json"]:  # last, as whoever runs a cell does
            (target / name).parent.mkdir(exist_ok=True)
            (staged / name).replace(target / name)
        for name in ("failure.json", "checkpoint.safetensors"):
            (target / name).unlink(missing_ok=True)
    done.placed.append(cell)


def _restore(store: Store, cell: str, staged: Path, files: Mapping[str, Any]) -> bool:
    """Bring back pruned weights of a cell that is here. The record is the same, so its digests vouch for them."""
    folder, gone = store.folder(cell), store.pruned(cell)
    back = [name for name in gone if files.get(name, {}).get("sha256") == gone[name]["sha256"]]
    if not back:
        return False
    with store.claim(cell) as held:
        if not held:
            return False
        for name in back:
            (folder / name).parent.mkdir(exist_ok=True)
            (staged / name).replace(folder / name)
            del gone[name]
        if gone:
            write_text(folder / SIDECAR, json.dumps({"files": gone}, indent=1, sort_keys=True))
        else:
            (folder / SIDECAR).unlink(missing_ok=True)
    return True


def _place_study(store: Store, study: str, staged: Path, done: Imported) -> None:
    target = store.study_folder(study)
    looks = read_json(staged / "looks.json")
    if not any((target / name).exists() for name in DEFINING):
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(staged.iterdir(), key=lambda path: path.name in DEFINING):  # what makes it a study last
            if source.name != "looks.json":
                source.replace(target / source.name)
        done.studies.append(study)
    for look in looks["looks"] if looks else ():
        store.note_look(study, look["seeds"], look["margin"], look.get("schedule"), look.get("primary"))
