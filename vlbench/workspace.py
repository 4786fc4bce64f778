"""The folder a command works in: its root, its store, and the datasets it declares.

A workspace is the nearest folder upwards that has a ``vlbench.toml``, a ``pyproject.toml`` with a ``[tool.vlbench]``
table, or the two card folders ``models/`` and ``ablations/``; without any, it is the current folder. The store is
``.vlbench`` inside it, or where ``VLBENCH_STORE`` points. Datasets are declared under ``[datasets.NAME]`` in
``vlbench.toml`` or ``[tool.vlbench.data.NAME]`` in ``pyproject.toml``; relative paths start at the file that holds
them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from vlbench.cards.read import Schema, line_of, load_toml, validate
from vlbench.errors import CardError, suggestion

Layout = Literal["qvhighlights", "charades", "tacos", "tvsum", "youtube"]
Labels = Literal["qvhighlights", "binary", "tvsum", "youtube"]


class EncoderTable(Schema):
    """Where the files of one encoder are. A bare string in the TOML is its ``dir``.

    file: name pattern with fields of the annotation row in braces (``{vid}``, ``{qid}``, ``{source}``, ...), or several
    whose features are joined side by side before normalisation. key: the array's name inside an npz. width: checked
    against the files where given.
    """

    dir: str
    file: str | list[str] | None = None
    key: str | None = None
    width: int | None = Field(default=None, ge=1)


class FilesTable(Schema):
    """A dataset on disk: annotation files per split and one folder of feature files per encoder.

    layout: whose defaults hold for the keys left out: limits, label rule, name patterns. max_clips, max_words: rows
    beyond are cut; without a layout the longest video fits. features: the combination used when a variant's own
    encoders are not in this dataset. report: the split whose scores are reported. tune_share: share of the training
    videos held out for tuning when no labelled split is left for it. domain: keep only rows of this domain.
    """

    splits: dict[Literal["train", "val", "test"], str] = Field(min_length=1)
    video: dict[str, EncoderTable] = Field(min_length=1)
    text: dict[str, EncoderTable] = Field(min_length=1)
    root: str = "."
    layout: Layout | None = None
    clip_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_clips: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    labels: Labels | None = None
    clamp_s: float | Literal["duration", "none"] | None = None
    round_to_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    features: str | None = None
    report: Literal["val", "test"] | None = None
    tune_share: float = Field(default=0.15, gt=0, lt=1)
    source_pattern: str | None = None
    domain: str | None = None

    @field_validator("video", "text", mode="before")
    @classmethod
    def _dirs(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {"dir": entry} if isinstance(entry, str) else entry for name, entry in value.items()}
        return value


class PlantedTable(Schema):
    """A variation of the embedded synthetic benchmark."""

    planted: Literal["quick", "full"]
    difficulty: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One declared dataset: its validated table and the file, text and key path it came from."""

    name: str
    table: FilesTable | PlantedTable
    path: Path
    text: str = field(repr=False)
    at: tuple[str, ...] = ()

    def where(self, *keys: str) -> str:
        """``file:line`` of a key of this declaration, or of its table if the key is not written."""
        return f"{self.path}:{line_of(self.text, (*self.at, *keys)) or 1}"

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        root = self.table.root if isinstance(self.table, FilesTable) else "."
        return self.path.parent / Path(root).expanduser()


@dataclass(frozen=True, slots=True)
class Workspace:
    """root: holds the card folders. store: cells and caches, made on first use. declarations: datasets by name."""

    root: Path
    store: Path
    declarations: Mapping[str, Declaration] = field(default_factory=dict)


def find(start: Path | None = None) -> Workspace:
    """The workspace of a folder (default: the current one). Raises CardError for a broken declaration."""
    here = (start or Path.cwd()).resolve()
    root = next((folder for folder in (here, *here.parents) if _is_root(folder)), here)
    store = os.environ.get("VLBENCH_STORE")
    return Workspace(root, Path(store).expanduser().resolve() if store else root / ".vlbench", _declarations(root))


def _is_root(folder: Path) -> bool:
    if (folder / "vlbench.toml").is_file() or ((folder / "models").is_dir() and (folder / "ablations").is_dir()):
        return True
    try:
        return "vlbench" in tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError, AttributeError):  # someone else's broken file higher up is none of our business
        return False


def _declarations(root: Path) -> dict[str, Declaration]:
    found: dict[str, Declaration] = {}
    places: tuple[tuple[str, tuple[str, ...], str], ...] = (
        ("pyproject.toml", ("tool", "vlbench"), "data"),
        ("vlbench.toml", (), "datasets"),
    )
    for file, at, key in places:
        path = root / file
        if not path.is_file():
            continue
        content, text = load_toml(path)
        table: Any = content
        for part in at:
            table = table.get(part, {})
        for unknown in table.keys() - {key}:
            where = f"{path}:{line_of(text, (*at, unknown)) or 1}"
            raise CardError(f'unknown table "{".".join((*at, unknown))}"', where=where, hint=suggestion(unknown, [key]))
        for name, declared in table.get(key, {}).items():
            declaration = _declaration(name, declared, path, text, (*at, key, name))
            if name in found:
                raise CardError(
                    f'the dataset "{name}" is already declared at {found[name].where()}', where=declaration.where()
                )
            found[name] = declaration
    return found


def _declaration(name: str, table: Any, path: Path, text: str, at: Sequence[str]) -> Declaration:
    if not isinstance(table, dict):
        raise CardError(f'"{".".join(at)}" has to be a table', where=f"{path}:{line_of(text, at) or 1}")
    checked: FilesTable | PlantedTable
    if "planted" in table:
        checked = validate(PlantedTable, table, path, text, at)
    else:
        checked = validate(FilesTable, table, path, text, at)
    return Declaration(name, checked, path, text, tuple(at))
