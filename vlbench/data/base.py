"""A dataset: queries by role, encoders by name, and the rules that turn both into samples.

Roles keep tuning and reporting apart. *fit* is trained on, *tune* chooses checkpoints and settings, *report* is what
the reported scores are measured on. With three labelled splits they are train, val and test; with two, the training
videos are divided, by source video so that no upload is on both sides, and by a hash of its name so that the order of
rows cannot matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vlbench import catalog
from vlbench.canon import digest
from vlbench.cards.kinds import Features
from vlbench.data.annotations import CROP_OF_UPLOAD, open_text, read_annotations
from vlbench.data.features import Encoder, Problem, Rows, Stream
from vlbench.data.predictions import WindowRule
from vlbench.data.types import Query
from vlbench.errors import CardError, DataError, suggestion
from vlbench.registry import Scalar
from vlbench.streams import key
from vlbench.workspace import Declaration, EncoderTable, FilesTable, Labels, PlantedTable, Workspace

Load = Callable[[list[DataError] | None], tuple[Query, ...]]

ROLES = ("fit", "tune", "report")
SPLITS = ("train", "val", "test")
ENDPOINTS = 2  # channels with the relative start and end of a clip (videolights.md 1.2)


class Split:
    """One annotation file, or what stands for it.

    load: its queries; given a list, it appends faults of rows to it and leaves those rows out instead of raising.
    identify: a digest of its content.
    """

    def __init__(self, name: str, load: Load, identify: Callable[[], str]) -> None:
        self.name, self._load, self._identify = name, load, identify

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """All queries in file order. Raises DataError with file:line for a broken row."""
        return self._load(None)

    def inspect(self) -> tuple[tuple[Query, ...], list[DataError]]:
        """The queries that can be read, and what is wrong with the others."""
        faults: list[DataError] = []
        try:
            return self._load(faults), faults
        except DataError as error:  # not a fault of a row: the file itself
            return (), [error]

    @cached_property
    def content(self) -> str:
        """A digest of the annotations, the same for a plain and a compressed file."""
        return self._identify()

    @cached_property
    def labelled(self) -> bool:
        """Whether every query has something to be scored against."""
        return bool(self.queries) and all(q.windows_se is not None or q.labels is not None for q in self.queries)


class Dataset:
    """See the module. Arguments that are not plain facts:

    max_clips: rows of a video beyond it are cut; None: as many as the longest video has. labels: the rule of
    ``samples.targets``; None: by what the annotations hold. rule: what happens to predicted windows. report: the split
    to report; None: the last labelled one. default_features: used where a variant's own encoders are not in the
    dataset.
    """

    def __init__(
        self,
        name: str,
        *,
        splits: Iterable[Split],
        video: Iterable[Stream],
        text: Iterable[Stream],
        clip_s: float,
        rule: WindowRule,
        max_clips: int | None = None,
        max_words: int = 32,
        labels: Labels | None = None,
        default_features: Features | None = None,
        report: str | None = None,
        tune_share: float = 0.15,
    ) -> None:
        self.name, self.clip_s, self.rule = name, clip_s, rule
        self.max_words, self.default_features, self.tune_share = max_words, default_features, tune_share
        self.splits = {split.name: split for split in splits}
        self._video = {stream.name: stream for stream in video}
        self._text = {stream.name: stream for stream in text}
        self._max_clips, self._labels, self._report = max_clips, labels, report

    # --- what there is -----------------------------------------------------------------------------------------------

    @cached_property
    def tasks(self) -> frozenset[str]:
        """What can be scored: ``mr`` where there are windows, ``hd`` where annotators scored clips."""
        found = set()
        for query in self._labelled_queries():
            found |= {"mr"} if query.windows_se is not None else set()
            annotated = query.saliency is not None and self.labels != "binary"
            found |= {"hd"} if annotated or query.labels is not None else set()
        return frozenset(found)

    @cached_property
    def trains(self) -> frozenset[str]:
        """What can be trained: windows give binary saliency labels, so ``hd`` always can."""
        return self.tasks | {"hd"}

    @cached_property
    def labels(self) -> Labels:
        """The label rule: declared, or by what the annotations hold."""
        if self._labels is not None:
            return self._labels
        queries = list(self._labelled_queries())
        if any(query.saliency is not None for query in queries):
            return "qvhighlights"
        if any(query.windows_se is not None for query in queries):
            return "binary"
        highest = max((float(query.labels.max()) for query in queries if query.labels is not None), default=1.0)
        return "tvsum" if highest > 1 else "youtube"

    @cached_property
    def max_clips(self) -> int:
        """Rows of a video that are used."""
        if self._max_clips is not None:
            return self._max_clips
        longest_s = max((query.duration_s for split in self.splits.values() for query in split.queries), default=0.0)
        return max(1, math.ceil(longest_s / self.clip_s))

    @property
    def video_encoders(self) -> Mapping[str, int]:
        """Names of video encoders and their widths, read from the files when asked for."""
        return _Widths("video encoder", self._video, self._all_queries)

    @property
    def text_encoders(self) -> Mapping[str, int]:
        """Names of text encoders and their widths, read from the files when asked for."""
        return _Widths("text encoder", self._text, self._all_queries)

    # --- queries -----------------------------------------------------------------------------------------------------

    def queries(self, role: str) -> tuple[Query, ...]:
        """The queries of a role or of a split by its name, in file order. Raises DataError for an unknown role."""
        if role in self.splits:
            return self.splits[role].queries
        split = self.splits[self._split_of(role)]
        if role == "report" or not self._divided:
            return split.queries
        held_out = self._held_out
        return tuple(query for query in split.queries if (query.source_video in held_out) == (role == "tune"))

    def split_rule(self, role: str) -> str:
        """How the queries of a role were chosen, in words, for the report."""
        split = self._split_of(role)
        if role == "report" or not self._divided:
            return f"{role}: {split}"
        share = self.tune_share if role == "tune" else 1 - self.tune_share
        return f"{role}: {100 * share:g}% of the training videos"

    # --- features ----------------------------------------------------------------------------------------------------

    def clips(self, query: Query, encoder: str) -> Rows:
        """(L, d) raw rows in their source's dtype, L <= max_clips. Raises DataError naming a file that is broken."""
        return self.stream("video", encoder).read(query)[: self.max_clips]

    def words(self, query: Query, encoder: str) -> Rows:
        """(W, d) raw rows in their source's dtype, W <= max_words. Raises DataError naming a file that is broken."""
        return self.stream("text", encoder).read(query)[: self.max_words]

    def stream(self, kind: str, encoder: str) -> Stream:
        """The encoder of this name; kind: ``video`` or ``text``. Raises CardError with the near miss."""
        streams = self._video if kind == "video" else self._text
        if encoder not in streams:
            raise CardError(f'"{encoder}" is not a {kind} encoder of {self.name}', hint=suggestion(encoder, streams))
        return streams[encoder]

    def check_features(self, features: Features, where: Mapping[str, str] | None = None) -> None:
        """Raises CardError with the near miss if the dataset lacks one of these encoders.

        where: the place of the ``features.video`` and ``features.text`` keys, for the error.
        """
        for kind, names in (("video", features.video), ("text", features.text)):
            for name in names:
                try:
                    self.stream(kind, name)
                except CardError as error:
                    place = (where or {}).get(f"features.{kind}")
                    raise CardError(error.what, where=place, hint=error.hint) from None

    def input_widths(self, features: Features) -> tuple[int, int]:
        """Values per clip, with the two temporal endpoints that ``samples.combine`` adds, and values per word."""
        clip_width = sum(self.video_encoders[name] for name in features.video) + ENDPOINTS
        return clip_width, sum(self.text_encoders[name] for name in features.text)

    def missing(self, role: str, features: Features) -> list[Problem]:
        """Every feature file that a role needs and that is missing, unreadable or of another width."""
        queries = self.queries(role)
        return [
            problem
            for kind, names in (("video", features.video), ("text", features.text))
            for name in names
            for problem in self.stream(kind, name).problems(queries)
        ]

    def require(self, features: Features, roles: Iterable[str] = ROLES) -> None:
        """Raises DataError that names the first missing or broken feature files and counts the rest."""
        problems = [problem for role in roles for problem in self.missing(role, features)]
        if problems:
            shown = "; ".join(map(str, problems[:3])) + ("; ..." if len(problems) > 3 else "")
            what = (
                f"{len(problems)} feature file{'s' if len(problems) > 1 else ''} of {self.name} cannot be used: {shown}"
            )
            raise DataError(what, hint=f"vlbench data check {self.name} lists everything")

    # --- identity ----------------------------------------------------------------------------------------------------

    def fingerprint(self, role: str, features: Features) -> str:
        """sha256 over all that decides the samples of a role: annotations, feature files, limits, rules.

        Content counts; paths, compression and the dataset's name do not. Cheap: archives are read up to their
        directory, and facts about unchanged files are remembered in the store.
        """
        queries = self.queries(role)
        return digest(
            {
                "format": 1,
                "annotations": self.splits[self._split_of(role)].content,
                "role": [role, self.tune_share if self._divided else None] if role in ROLES else role,
                "sources": digest(sorted({query.source_video for query in queries})),
                "clip_s": float(self.clip_s),
                "limits": [self.max_clips, self.max_words],
                "labels": self.labels,
                "rule": [self.rule.round_to_s, self.rule.clamp_s, self.rule.saliency],
                "video": [[name, self.stream("video", name).digest(queries)] for name in features.video],
                "text": [[name, self.stream("text", name).digest(queries)] for name in features.text],
            }
        )

    # --- roles -------------------------------------------------------------------------------------------------------

    def _split_of(self, role: str) -> str:
        if role in self.splits:
            return role
        if role not in ROLES:
            raise DataError(
                f'"{role}" is not a role or split of {self.name}', hint=suggestion(role, (*ROLES, *self.splits))
            )
        if role == "report":
            return self._reporting
        return "val" if role == "tune" and not self._divided else "train"

    @cached_property
    def _labelled(self) -> list[str]:
        return [name for name in SPLITS if name in self.splits and self.splits[name].labelled]

    @cached_property
    def _reporting(self) -> str:
        if self._report is not None and self._report not in self._labelled:
            raise DataError(f"{self.name} declares report = {self._report!r}, which is not a labelled split of it")
        others = [name for name in self._labelled if name != "train"]
        if "train" not in self._labelled or not others:
            has = ", ".join(self._labelled) or "none"
            raise DataError(f"{self.name} needs a labelled train split and another to report (labelled: {has})")
        return self._report or others[-1]

    @cached_property
    def _divided(self) -> bool:
        """Whether tune is taken out of train, because no labelled val split is left for it."""
        return self._reporting == "val" or "val" not in self._labelled

    @cached_property
    def _held_out(self) -> frozenset[str]:
        sources = {query.source_video for query in self.splits["train"].queries}
        if len(sources) < 2:
            raise DataError(f"{self.name} has {len(sources)} training video; two are needed to hold one out for tuning")
        count = min(len(sources) - 1, max(1, round(self.tune_share * len(sources))))
        return frozenset(sorted(sources, key=lambda source: key(0, "tune", source))[:count])

    def _labelled_queries(self) -> Iterator[Query]:
        return (query for name in self._labelled for query in self.splits[name].queries)

    def _all_queries(self) -> Iterator[Query]:
        return (query for split in self.splits.values() for query in split.queries)


class _Widths(Mapping[str, int]):
    """Widths by encoder name; a width is read when it is asked for, so an unused encoder may have no files."""

    def __init__(self, kind: str, streams: Mapping[str, Stream], queries: Callable[[], Iterable[Query]]) -> None:
        self._kind, self._streams, self._queries = kind, streams, queries

    def __getitem__(self, name: str) -> int:
        if name not in self._streams:
            raise CardError(f'"{name}" is not a {self._kind} of this dataset', hint=suggestion(name, self._streams))
        return self._streams[name].width(self._queries())

    def __contains__(self, name: object) -> bool:
        return name in self._streams

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)


# --- opening by name -------------------------------------------------------------------------------------------------


def dataset_names(workspace: Workspace) -> list[str]:
    """Every name ``open_dataset`` knows: declared ones first, then built-in ones."""
    return [*workspace.declarations, *catalog.datasets]


def open_dataset(name: str, workspace: Workspace) -> Dataset:
    """A declared or built-in dataset. Raises CardError with the near miss for an unknown name."""
    declaration = workspace.declarations.get(name)
    if declaration is not None and name in catalog.datasets:
        raise CardError(f'the dataset "{name}" is built in; choose another name', where=declaration.where())
    if declaration is not None:
        return declared(declaration, workspace.store)
    if name not in catalog.datasets:
        known = suggestion(name, dataset_names(workspace))
        hint = f"{known}; one of your own is declared under [datasets.{name}] in vlbench.toml"
        raise CardError(f'"{name}" is not a dataset', hint=hint)
    dataset: Dataset = catalog.datasets[name].load()()
    return dataset


def declared(declaration: Declaration, store: Path | None) -> Dataset:
    """The dataset of a declaration. Raises CardError for names that do not fit, DataError for missing annotations."""
    table = declaration.table
    if isinstance(table, PlantedTable):
        from vlbench.data.planted import varied

        return varied(declaration.name, table.planted, difficulty=table.difficulty, seed=table.seed)
    return _from_files(declaration, table, store)


@dataclass(frozen=True, slots=True)
class Layout:
    """Defaults of a dataset of the field (videolights.md 1.1, 5.2, 5.4)."""

    rule: WindowRule
    clip_s: float = 2.0
    max_clips: int | None = 75
    labels: Labels | None = None
    video_file: str = "{vid}.npz"
    text_file: str = "qid{qid}.npz"
    text_key: str = "last_hidden_state"


_OWN = Layout(rule=WindowRule(round_to_s=None, clamp_s="duration"), max_clips=None)
LAYOUTS: dict[str, Layout] = {
    "qvhighlights": Layout(rule=WindowRule(round_to_s=2.0, clamp_s=150.0), labels="qvhighlights"),
    "charades": Layout(rule=WindowRule(round_to_s=1.0, clamp_s=150.0, saliency=False), clip_s=1.0, labels="binary"),
    "tacos": Layout(rule=WindowRule(round_to_s=None, saliency=False), labels="binary", text_file="{qid}.npz"),
    "tvsum": Layout(
        rule=WindowRule(round_to_s=None), max_clips=1000, labels="tvsum", text_file="{qid}.npz", text_key="token"
    ),
    "youtube": Layout(
        rule=WindowRule(round_to_s=None), clip_s=1.0, max_clips=1000, labels="youtube", text_file="{qid}.npz"
    ),
}


def _from_files(declaration: Declaration, table: FilesTable, store: Path | None) -> Dataset:
    layout = LAYOUTS[table.layout] if table.layout else _OWN
    clip_s = table.clip_s or layout.clip_s
    round_to_s = table.round_to_s or layout.rule.round_to_s or clip_s
    clamp_s = layout.rule.clamp_s if table.clamp_s is None else table.clamp_s
    pattern = table.source_pattern or CROP_OF_UPLOAD

    splits = []
    for name, file in table.splits.items():
        path = declaration.folder / Path(file).expanduser()
        if not path.is_file():
            raise DataError(f'the {name} annotations "{path}" do not exist', where=declaration.where("splits", name))
        load = partial(_load, path, clip_s, pattern, table.domain)
        settings: dict[str, Scalar | None] = {"source_pattern": pattern, "domain": table.domain}
        splits.append(Split(name, load, partial(_identify, path, settings)))

    def encoder(kind: str, name: str, entry: EncoderTable) -> Encoder:
        file = entry.file or (layout.video_file if kind == "video" else layout.text_file)
        return Encoder(
            name,
            declaration.folder / Path(entry.dir).expanduser(),
            files=[file] if isinstance(file, str) else file,
            key=entry.key or ("features" if kind == "video" else layout.text_key),
            width=entry.width,
            where=declaration.where(kind, name),
            cache=None if store is None else store / "features",
        )

    dataset = Dataset(
        declaration.name,
        splits=splits,
        video=[encoder("video", name, entry) for name, entry in table.video.items()],
        text=[encoder("text", name, entry) for name, entry in table.text.items()],
        clip_s=clip_s,
        rule=WindowRule(round_to_s, None if clamp_s == "none" else clamp_s, layout.rule.saliency),
        max_clips=table.max_clips or layout.max_clips,
        max_words=table.max_words or 32,
        labels=table.labels or layout.labels,
        default_features=None
        if table.features is None
        else parse_features(table.features, declaration.where("features")),
        report=table.report,
        tune_share=table.tune_share,
    )
    if dataset.default_features is not None:
        place = declaration.where("features")
        dataset.check_features(dataset.default_features, {"features.video": place, "features.text": place})
    return dataset


def parse_features(text: str, where: str | None = None) -> Features:
    """``slowfast+clip/clip`` as video and text encoders. Raises CardError if it is not of that form."""
    video, slash, words = text.partition("/")
    parts = [tuple(name.strip() for name in side.split("+")) for side in (video, words)]
    if not slash or not all(all(names) for names in parts) or any(len(set(names)) < len(names) for names in parts):
        form = "video encoders, a slash, text encoders, as in slowfast+clip/clip, each once"
        raise CardError(f'"{text}" is not a combination of features', where=where, hint=f"it has to be {form}")
    return Features(video=parts[0], text=parts[1])


def _load(
    path: Path, clip_s: float, pattern: str, domain: str | None, faults: list[DataError] | None
) -> tuple[Query, ...]:
    queries = read_annotations(path, clip_s=clip_s, source_pattern=pattern, problems=faults)
    return queries if domain is None else tuple(query for query in queries if query.domain == domain)


def _identify(path: Path, settings: Mapping[str, Any]) -> str:
    return digest([hashlib.sha256(open_text(path).encode()).hexdigest(), dict(settings)])
