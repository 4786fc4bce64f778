"""Methods against a baseline, from prediction files alone: what was measured, on which queries, and how it differs.

A method is a name and its files, one per training run. Files are read strictly: all of them answer the same annotated
queries, each once, with finite numbers, or nothing is compared. Queries, runs and methods have an order of their own,
so that the order in which files and lines come changes nothing.

Everything here is numbers; ``vlbench.report.versus`` puts them into words.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.data.annotations import json_lines, open_text, read_annotations
from vlbench.data.predictions import read_predictions
from vlbench.data.types import Prediction, Qid, Query
from vlbench.errors import DataError, PlanError, suggestion
from vlbench.metrics import anatomy, calibration
from vlbench.metrics.anatomy import OF_MOMENTS, OF_WINDOWS, Anatomy
from vlbench.metrics.base import Packs, Scores, score_packs
from vlbench.metrics.calibration import Reliability
from vlbench.metrics.highlights import LEVELS
from vlbench.metrics.moments import Mode
from vlbench.stats.correct import bh, holm
from vlbench.stats.design import Contrast, Effects, Estimand, contrast, difference, effects
from vlbench.stats.verdict import Verdict, verdict

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Cluster = Literal["auto", "source", "video", "query"]
Kind = Literal["primary", "exploratory", "stratum"]

LEVEL = 0.95
ALPHA = 0.05
MARGIN = 0.5  # points
MOVED = 5  # queries listed each way

PRIMARY = ("mr-map", "hd-map")
PRIMARY_ELSEWHERE = ("hd-top5-map", "hd-ap")  # of datasets that label every clip, where neither of the two exists
EXAMPLES = 3
BELONG = 0.5  # of the annotated queries: a file that answers fewer is taken for one that was made for others


# --- what was given ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """A method as it is named on the command line: a name and its files, one per run."""

    name: str
    paths: tuple[Path, ...]


def parse(words: Sequence[str]) -> tuple[Given, ...]:
    """``preds.jsonl`` or ``name=run1.jsonl,run2.jsonl`` -> methods. A plain file is named after its stem.

    A word that is the name of a file is that file, whatever signs it has.
    Raises: PlanError for fewer than two methods, an empty or repeated name; DataError for a file that is not there or
        is given twice.
    """
    found = tuple(_given(word) for word in words)
    names = [given.name for given in found]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            raise PlanError(
                f'{names.count(name)} methods are named "{name}"',
                hint=f"name them: first={found[names.index(name)].paths[0]}; "
                f"runs of one method are joined by commas: {name}=run1.jsonl,run2.jsonl",
            )
    seen: dict[Path, str] = {}
    for given in found:
        for path in given.paths:
            if not path.is_file():
                raise DataError("the file does not exist" if not path.exists() else "is not a file", where=path)
            other = seen.setdefault(path.resolve(), given.name)
            if other is not given.name or given.paths.count(path) > 1:
                raise DataError(f'is given twice (for "{other}" and "{given.name}")', where=path)
    if len(found) < 2:
        raise PlanError(
            f"a comparison needs two methods, but {len(found) or 'none'} is given",
            hint="runs of one method are joined by commas, methods by spaces: a=run1.jsonl,run2.jsonl b=other.jsonl; "
            "for a single file there is vlbench score",
        )
    return found


def _given(word: str) -> Given:
    if not Path(word).exists():
        name, equals, rest = word.partition("=")
        if equals:
            paths = (Path(rest),) if rest and Path(rest).exists() else tuple(Path(p) for p in rest.split(",") if p)
            if not name or not paths:
                raise PlanError(f'"{word}" is not NAME=FILE[,FILE...]')
            return Given(name, paths)
        if "," in word:
            raise PlanError(f'the runs "{word}" have no name', hint=f"write NAME={word}")
    path = Path(word)
    name = path.name.removesuffix(".gz")
    return Given(name.removesuffix(".jsonl").removesuffix(".json") or path.name, (path,))


# --- what was measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One file. content: a digest of its rows, whatever their order. predictions: one per query in the order of
    ``Versus.queries``, None where the file has no answer.
    """

    path: Path
    content: str
    predictions: tuple[Prediction | None, ...]
    scores: Scores
    anatomy: Anatomy | None
    within: Reliability | None
    across: Reliability | None


@dataclass(frozen=True, slots=True)
class Method:
    """A name and its runs, in an order that the order of files does not change."""

    name: str
    runs: tuple[Run, ...]

    def values(self, metric: str) -> Floats | None:
        """(S, Q) scores, NaN outside the metric's population; None where the method does not answer this task."""
        if metric not in self.runs[0].scores.values:
            return None
        return np.stack([run.scores.values[metric] for run in self.runs])


@dataclass(frozen=True)
class Versus:
    """Methods on one set of queries.

    methods: the baseline first, then by name. clusters: a label per query, None where each query stands for itself.
    cluster: what the labels are. metrics: all that two methods or more have, one of them the baseline. primary: the
    declared ones that were measured. unavailable: metric -> why it cannot be tested. ceiling: (Q,) the HD-mAP that no
    ranking can exceed; attained: that of one ranking made from the annotations; ideal: its reliability. notes: what was
    decided in reading, a sentence each.
    """

    annotations: Path
    queries: tuple[Query, ...]
    methods: tuple[Method, ...]
    clusters: tuple[str, ...] | None
    cluster: Literal["source", "video", "query"]
    metrics: tuple[str, ...]
    primary: tuple[str, ...]
    unavailable: Mapping[str, str]
    mode: Mode
    clip_s: float
    ceiling: Floats | None
    attained: Floats | None
    ideal: Reliability | None
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Method:
        """The method that the others are compared with."""
        return self.methods[0]

    @property
    def others(self) -> tuple[Method, ...]:
        """The methods other than the baseline."""
        return self.methods[1:]

    def inside(self, metric: str) -> Mask:
        """(Q,) the metric's population."""
        values = next(found for method in self.methods if (found := method.values(metric)) is not None)
        inside: Mask = ~np.isnan(values[0])
        return inside

    def clusters_in(self, mask: Mask) -> list[str] | None:
        """The labels of some queries."""
        return None if self.clusters is None else [self.clusters[row] for row in np.flatnonzero(mask)]

    def task(self, metric: str) -> str:
        """``mr`` or ``hd``."""
        return str(catalog.metrics[metric].facts["task"])


def read(
    given: Sequence[Given],
    annotations: Path,
    *,
    baseline: str | None = None,
    cluster: Cluster = "auto",
    primary: Sequence[str] = (),
    mode: Mode = "compatible",
    clip_s: float = 2.0,
    allow_missing: bool = False,
) -> Versus:
    """Read and score every file.

    Args: baseline: a method's name; None: the first one. cluster: ``auto`` takes the source video where two queries
        share one, and else each query. primary: the metrics that the verdicts are about; none: MR-mAP and HD-mAP, as
        far as they are measured. allow_missing: a query that only some files answer counts 0 where it is missing,
        instead of being an error.
    Raises: DataError for files that cannot be read or do not belong together (file and line where there is one);
        PlanError for an unknown baseline, or if no primary metric can be tested.
    """
    names = [entry.name for entry in given]
    if baseline is not None and baseline not in names:
        raise PlanError(f'"{baseline}" is none of the methods', where="--baseline", hint=suggestion(baseline, names))
    for metric in primary:
        if metric not in catalog.metrics:
            raise PlanError(
                f'"{metric}" is not a metric', where="--primary", hint=suggestion(metric, list(catalog.metrics))
            )
    queries = tuple(sorted(read_annotations(annotations, clip_s=clip_s), key=lambda query: _key(query.qid)))
    if all(query.windows_se is None and query.saliency is None and query.labels is None for query in queries):
        raise DataError("holds neither windows nor saliency nor labels, so nothing can be scored", where=annotations)
    rows = {path: _rows(path) for entry in given for path in entry.paths}
    queries, notes = _domains(queries, rows.values())
    for path, found in rows.items():
        _belongs(path, found, queries, annotations, allow_missing)
    notes += _same_queries(rows, queries, allow_missing)

    methods = []
    first = baseline or names[0]
    for entry in sorted(given, key=lambda entry: (entry.name != first, entry.name)):
        runs = [_run(path, rows[path], queries, mode, clip_s) for path in entry.paths]
        runs.sort(key=lambda run: (run.content, str(run.path)))
        _own_runs(entry.name, runs)
        methods.append(Method(entry.name, tuple(runs)))
    notes += _copies(methods)
    clusters, which, said = _clusters(queries, cluster)
    gold = Packs(queries, (), mode, clip_s).clips
    ideal = None if gold is None else calibration.by_annotators(gold)
    versus = Versus(
        annotations=annotations,
        queries=queries,
        methods=tuple(methods),
        clusters=clusters,
        cluster=which,
        metrics=(),
        primary=(),
        unavailable={},
        mode=mode,
        clip_s=clip_s,
        ceiling=None if gold is None else calibration.ceiling(gold),
        attained=None if gold is None else calibration.one_ranking(gold),
        ideal=None if ideal is None else calibration.reliability(ideal),
        notes=(*notes, *said),
    )
    return _with_metrics(versus, tuple(dict.fromkeys(primary)))


def _with_metrics(versus: Versus, declared: tuple[str, ...]) -> Versus:
    measured = [
        metric
        for metric in catalog.metrics
        if versus.baseline.values(metric) is not None
        and any(method.values(metric) is not None for method in versus.others)
    ]
    unavailable: dict[str, str] = {}
    for metric in declared or PRIMARY:
        if metric not in measured:
            unavailable[metric] = _unmeasured(versus, metric)
    for metric in measured:
        why = _untestable(versus, metric)
        if why is not None:
            unavailable[metric] = why
    metrics = tuple(metric for metric in measured if metric not in unavailable)
    primary = tuple(metric for metric in declared or PRIMARY if metric in metrics)
    if not declared and not primary:
        primary = tuple(metric for metric in PRIMARY_ELSEWHERE if metric in metrics)
    if not primary:
        raise PlanError(
            "no primary metric can be tested: " + "; ".join(f"{name}: {why}" for name, why in unavailable.items()),
            where=versus.annotations,
        )
    return replace(versus, metrics=metrics, primary=primary, unavailable=unavailable)


def _unmeasured(versus: Versus, metric: str) -> str:
    """Why a metric has no values in the baseline and another method."""
    task = versus.task(metric)
    key = {"mr": "pred_relevant_windows", "hd": "pred_saliency_scores"}[task]
    if not Packs(versus.queries, (), versus.mode, versus.clip_s).asks(task):
        return f"the annotations hold no {'windows' if task == 'mr' else 'saliency'}"
    without = [method.name for method in versus.methods if not any(_answers(run, task) for run in method.runs)]
    if without:
        return f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} no {key}"
    return "no query of these annotations is in its population"


def _untestable(versus: Versus, metric: str) -> str | None:
    inside = versus.inside(metric)
    if inside.sum() < 2:
        return f"only {int(inside.sum())} query in its population, two are needed"
    clusters = versus.clusters_in(inside)
    if clusters is not None and len(set(clusters)) < 2:
        return f"all queries of its population come from one {_CLUSTER_WORDS[versus.cluster]}"
    return None


_CLUSTER_WORDS = {"source": "source video", "video": "video", "query": "query"}


# --- reading ----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> dict[Qid, Prediction]:
    """A file's rows by query. Raises: DataError for a repeated query, a number that is not finite, or no rows."""
    rows: dict[Qid, Prediction] = {}
    for index, row in enumerate(read_predictions(path)):
        if row.qid in rows:
            before = list(rows).index(row.qid)  # every row so far is here, in the order of the file
            raise DataError(
                f"query {row.qid!r} is answered twice, here and on line {_line(path, before)}",
                where=f"{path}:{_line(path, index)}",
                hint="keep one row per query",
            )
        for what, values in (("pred_relevant_windows", row.windows), ("pred_saliency_scores", row.saliency)):
            if values is not None and not np.isfinite(values).all():
                raise DataError(
                    f"{what} of query {row.qid!r} holds NaN or an infinite number",
                    where=f"{path}:{_line(path, index)}",
                    hint="mend the file; vlbench score says what the published evaluators make of it as it is",
                )
        rows[row.qid] = row
    if not rows:
        raise DataError("holds no prediction", where=path)
    return rows


def _line(path: Path, index: int) -> int:
    """The line of the row of this number; only errors ask."""
    return [number for number, _ in json_lines(open_text(path))][index]


def _domains(
    queries: tuple[Query, ...], files: Collection[Mapping[Qid, Prediction]]
) -> tuple[tuple[Query, ...], list[str]]:
    """Models of TVSum and YouTube Highlights are trained per domain: domains that no file answers are left out."""
    if any(query.labels is None or query.domain is None for query in queries):
        return queries, []
    given = {qid for rows in files for qid in rows}
    domains = {query.domain for query in queries if query.qid in given}
    kept = tuple(query for query in queries if query.domain in domains)
    if not kept or len(kept) == len(queries):
        return queries, []
    names = ", ".join(sorted(str(domain) for domain in domains))
    return kept, [f"the predictions are for {names}: {len(queries) - len(kept)} videos of other domains are left out"]


def _belongs(
    path: Path, rows: Mapping[Qid, Prediction], queries: tuple[Query, ...], annotations: Path, allow_missing: bool
) -> None:
    """Raises: DataError if a file was made for other annotations, or answers too few queries for one to know."""
    asked = {query.qid: query for query in queries}
    shared = asked.keys() & rows.keys()
    if not shared:
        texts = {str(qid) for qid in asked} & {str(qid) for qid in rows}
        first = (f"the annotations begin with {next(iter(asked))!r}, the file with {next(iter(rows))!r}",)
        kinds = "their qid are integers in one and strings in the other"
        raise DataError(
            f"answers none of the {len(asked)} queries of {annotations}",
            where=path,
            hint=kinds if texts else first[0],
        )
    others = len(rows) - len(shared)
    if len(shared) < BELONG * len(asked) and (others or not allow_missing):
        said = f"answers {len(shared)} of the {len(asked)} queries of {annotations}"
        raise DataError(
            f"{said}, and {others} others" if others else f"{said} and no other",
            where=path,
            hint="it was made for other annotations; give those, or the queries that were meant"
            if others
            else "complete the file, give the annotations of these queries, or count what is missing as 0 with "
            "--allow-missing",
        )
    wrong = [
        (qid, rows[qid].vid, query.vid) for qid, query in asked.items() if qid in shared and rows[qid].vid != query.vid
    ]
    wrong = [entry for entry in wrong if entry[1]]  # a row may leave its video out
    if wrong:
        qid, got, wanted = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(shared)} rows name another video than {annotations}, such as query {qid!r}: "
            f"{got!r}, annotated {wanted!r}",
            where=path,
            hint="it was made for other annotations; give those",
        )


def _same_queries(
    rows: Mapping[Path, Mapping[Qid, Prediction]], queries: tuple[Query, ...], allow_missing: bool
) -> list[str]:
    """Raises: DataError if the files answer different queries, unless that is allowed; then it says which."""
    asked = [query.qid for query in queries]
    sets = {path: {qid for qid in asked if qid in found} for path, found in rows.items()}
    everything = set().union(*sets.values())
    short = {path: everything - found for path, found in sets.items()}
    lacking = {
        path: [qid for qid in asked if qid in qids]
        for path, qids in sorted(short.items(), key=lambda item: str(item[0]))
        if qids
    }
    if not lacking:
        return []
    said = [
        f"{path.name} leaves out {len(qids)} of the {len(everything)} queries that the files answer together "
        f"(such as {_some(qids)})"
        for path, qids in lacking.items()
    ]
    if allow_missing:
        return [f"{text}: they count 0 for it" for text in said]
    raise DataError(
        f"the files answer different queries: {'; '.join(said)}",
        where=next(iter(lacking)),
        hint="complete the files, or count what is missing as 0 with --allow-missing; a common part is never taken "
        "silently",
    )


def _run(path: Path, rows: Mapping[Qid, Prediction], queries: tuple[Query, ...], mode: Mode, clip_s: float) -> Run:
    ordered = sorted(rows.values(), key=lambda row: _key(row.qid))
    packs = Packs(queries, ordered, mode, clip_s)
    scores = score_packs(packs)
    moments = packs.moments if packs.predicts("mr") else None
    clips = packs.clips if packs.predicts("hd") else None
    return Run(
        path=path,
        content=_digest(ordered),
        predictions=tuple(rows.get(query.qid) for query in queries),
        scores=scores,
        anatomy=None if moments is None else anatomy.anatomy(moments),
        within=None if clips is None else calibration.reliability(clips),
        across=None if clips is None else calibration.reliability(clips, across=True),
    )


def _digest(rows: Sequence[Prediction]) -> str:
    """Twelve hex digits of what a file says, in the order of queries."""
    content = hashlib.sha256()
    for row in rows:
        content.update(repr(row.qid).encode())
        for values in (row.windows, row.saliency):
            content.update(b"-" if values is None else repr(values.shape).encode() + values.tobytes())
    return content.hexdigest()[:12]


def _own_runs(name: str, runs: Sequence[Run]) -> None:
    """Raises: DataError for runs of one method that are copies of each other or answer different tasks."""
    for one, other in itertools.pairwise(runs):
        if one.content == other.content:
            raise DataError(
                f'holds the same predictions as {other.path}, so these are not two runs of "{name}"',
                where=one.path,
                hint="give each run once; a copy would pass for a seed",
            )
    for task, key in (("mr", "pred_relevant_windows"), ("hd", "pred_saliency_scores")):
        with_, without = ([run.path for run in runs if _answers(run, task) == has] for has in (True, False))
        if with_ and without:
            raise DataError(
                f'no row has {key}, which the other runs of "{name}" have ({with_[0]})',
                where=without[0],
                hint="give the two as different methods, or complete the run",
            )


def _answers(run: Run, task: str) -> bool:
    rows = [row for row in run.predictions if row is not None]
    return any((row.windows if task == "mr" else row.saliency) is not None for row in rows)


def _copies(methods: Sequence[Method]) -> list[str]:
    owner: dict[str, str] = {}
    found = []
    for method in methods:
        for run in method.runs:
            other = owner.setdefault(run.content, method.name)
            if other != method.name:
                found.append(f"{method.name} and {other} hold the same predictions ({run.content})")
    return found


def _clusters(
    queries: tuple[Query, ...], cluster: Cluster
) -> tuple[tuple[str, ...] | None, Literal["source", "video", "query"], list[str]]:
    if cluster not in get_args(Cluster):
        raise PlanError(f'"{cluster}" is not a cluster', where="--cluster", hint=suggestion(cluster, get_args(Cluster)))
    sources = tuple(query.source_video or query.vid for query in queries)
    if cluster == "source":
        return sources, "source", []
    if cluster == "video":
        return tuple(query.vid for query in queries), "video", []
    if cluster == "query" or len(set(sources)) == len(sources):
        return None, "query", []
    if len(set(sources)) == 1:
        return None, "query", ["all queries come from one source video: what is said about them holds for it alone"]
    return sources, "source", []


def _key(qid: Qid) -> tuple[str, int, str]:
    return (type(qid).__name__, qid, "") if isinstance(qid, int) else (type(qid).__name__, 0, qid)


def _some(qids: Sequence[Qid]) -> str:
    return ", ".join(map(repr, qids[:EXAMPLES])) + (", ..." if len(qids) > EXAMPLES else "")


# --- strata -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stratum:
    """Queries of one kind. group: what they are sorted by. label: which of its kinds. rows: (Q,) mask."""

    group: str
    label: str
    rows: Mask = field(repr=False)


SHORT_S, MIDDLE_S = 10.0, 30.0  # the field's ranges of moment lengths


def strata(queries: Sequence[Query]) -> tuple[Stratum, ...]:
    """The queries by moment length, number of moments, video length and annotator agreement.

    Within a group every query is in one stratum at most, and a group with a single kind is left out. Moment length:
    all of a query's moments are short (up to 10 s), middle (up to 30 s) or long, or they are mixed. Video length and
    agreement are cut at terciles of these queries. See ``agreement``.
    """
    lengths = [None if q.windows_se is None or not len(q.windows_se) else _length_word(q) for q in queries]
    counts = [
        None if q.windows_se is None or not len(q.windows_se) else _count_word(len(q.windows_se)) for q in queries
    ]
    found = [
        *_by_word("moment length", lengths, ("short, up to 10 s", "middle, 10 to 30 s", "long, over 30 s", "mixed")),
        *_by_word("moments", counts, ("1", "2", "3 or more")),
        *_by_tercile("video length", np.array([q.duration_s for q in queries]), lambda x: f"{x:.4g} s"),
        *_by_tercile("annotator agreement", np.array([agreement(q) for q in queries]), lambda x: f"{x:.2f}"),
    ]
    return tuple(found)


def agreement(query: Query) -> float:
    """How much the saliency annotators of a query agree: 1 minus the mean absolute difference of two annotators on an
    annotated clip, over the range of scores (0 to 4), over all pairs and clips. NaN for fewer than two annotators.
    """
    scores = query.saliency
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2 or not len(scores):
        return math.nan
    first, second = np.triu_indices(scores.shape[1], 1)
    return 1 - float(np.abs(scores[:, first] - scores[:, second]).mean()) / LEVELS["VeryGood"]


def _length_word(query: Query) -> str:
    assert query.windows_se is not None
    length = query.windows_se[:, 1] - query.windows_se[:, 0]
    kinds = {"short, up to 10 s" if x <= SHORT_S else "middle, 10 to 30 s" if x <= MIDDLE_S else "long, over 30 s"
             for x in length.tolist()}  # fmt: skip
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _count_word(number: int) -> str:
    return str(number) if number < 3 else "3 or more"


def _by_word(group: str, words: Sequence[str | None], order: Sequence[str]) -> list[Stratum]:
    found = [Stratum(group, label, np.array([word == label for word in words])) for label in order if label in words]
    return found if len(found) > 1 else []


def _by_tercile(group: str, values: Floats, say: Callable[[float], str]) -> list[Stratum]:
    known = ~np.isnan(values)
    if not known.any():
        return []
    edges = np.quantile(values[known], [1 / 3, 2 / 3], method="closest_observation")
    low, high = edges.tolist()
    kinds = [
        (f"below {say(low)}", values < low),
        (f"{say(low)} to below {say(high)}", (values >= low) & (values < high)),
    ]
    kinds.append((f"{say(high)} or more", values >= high))
    found = [Stratum(group, label, rows & known) for label, rows in kinds if (rows & known).any()]
    return found if len(found) > 1 else []


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Level:
    """The mean of one method and metric, with its runs and queries. sd_runs: of the run means (n - 1), in points."""

    method: str
    metric: str
    contrast: Contrast = field(repr=False)
    sd_runs: float | None

    @property
    def points(self) -> float:
        """The mean in points."""
        return 100 * self.contrast.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """95%, in points."""
        return _points(self.contrast)

    @property
    def runs(self) -> int:
        """Training runs behind the mean."""
        return min(self.contrast.seeds.values())


@dataclass(frozen=True, slots=True)
class Gap:
    """Method minus baseline on one metric. base: the baseline's mean on these queries, in points. p_adjusted: Holm over
    the primary rows, else the Benjamini-Hochberg q-value among the rows of its kind. verdict: of primary rows;
    ``helps`` says that the method is better than the baseline.
    """

    method: str
    metric: str
    kind: Kind
    stratum: Stratum | None
    base: float
    contrast: Contrast = field(repr=False)
    effects: Effects = field(repr=False)
    p_adjusted: float = math.nan
    verdict: Verdict | None = None

    @property
    def points(self) -> float:
        """The difference in points."""
        return 100 * self.contrast.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """95%, in points, not corrected."""
        return _points(self.contrast)

    @property
    def survives(self) -> bool:
        """Whether the difference differs from zero after correction."""
        return not self.contrast.constant and self.p_adjusted <= ALPHA


@dataclass(frozen=True, slots=True)
class Part:
    """The share of one kind of moment or window in a method. of: ``moments`` or ``windows``. share: of all of them, in
    percent, mean over runs. gap: its difference from the baseline; None for the baseline itself.
    """

    method: str
    of: Literal["moments", "windows"]
    kind: str
    share: float
    gap: Contrast | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one method made of one query, run by run. points: its mean score. windows_se: the best scored window (start
    s, end s, score) of each run; None where there is none. peaks_s: start of the best scored clip of each run, in s.
    """

    method: str
    points: float
    windows: tuple[tuple[float, float, float] | None, ...]
    peaks_s: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """A query on which a method and the baseline differ much. row: its place in ``Versus.queries`` and in every run's
    predictions. points: method minus baseline.
    """

    metric: str
    row: int
    qid: Qid
    text: str
    vid: str
    duration_s: float
    points: float
    method: Seen
    baseline: Seen
    annotated_se: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that is said about ``versus``. rows: methods x primary metrics, the family of the correction. levels,
    exploratory: without the metrics that the catalogue calls details, such as R1 at every threshold.
    """

    versus: Versus
    margin: float
    estimand: Estimand | None
    levels: Mapping[tuple[str, str], Level]
    rows: tuple[Gap, ...]
    exploratory: tuple[Gap, ...]
    by_stratum: tuple[Gap, ...]
    strata: tuple[Stratum, ...]
    parts: tuple[Part, ...]

    def row(self, method: str, metric: str) -> Gap | None:
        """The row of a method and a primary metric, None where the method does not answer the metric's task."""
        return self._by_name.get((method, metric))

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], Gap]:
        return {(row.method, row.metric): row for row in self.rows}

    @property
    def one_run(self) -> tuple[str, ...]:
        """The methods of which a single training run was seen."""
        return tuple(method.name for method in self.versus.methods if len(method.runs) == 1)


def compare(versus: Versus, *, margin: float = MARGIN, estimand: Estimand | None = None) -> Comparison:
    """Test every method against the baseline.

    Args: margin: the largest difference that does not matter, in points. estimand: what is random; None: training runs
        and queries where both methods have two runs or more, and else the queries alone.
    Raises: PlanError if the estimand needs runs that are not there; DataError for a margin <= 0.
    """
    if estimand in ("general", "benchmark"):
        single = [method.name for method in versus.methods if len(method.runs) == 1]
        if single:
            raise PlanError(
                f'"{estimand}" is about training again, so every method needs two runs or more; '
                f"one is given of {', '.join(single)}",
                where="--estimand",
                hint=f"give more runs: {single[0]}=run1.jsonl,run2.jsonl; or leave --estimand out",
            )
    kind: Estimand = estimand or "general"
    shown = [name for name in versus.metrics if name in versus.primary or not catalog.metrics[name].facts["detail"]]
    levels = {
        (method.name, metric): _level(versus, method, metric, kind)
        for metric in shown
        for method in versus.methods
        if method.values(metric) is not None
    }
    rows = [_gap(versus, m, metric, kind, "primary") for m in versus.others for metric in versus.primary]
    rest = [metric for metric in shown if metric not in versus.primary]
    others = [_gap(versus, m, metric, kind, "exploratory") for m in versus.others for metric in rest]
    groups = strata(versus.queries)
    split = [
        _gap(versus, method, metric, kind, "stratum", stratum)
        for method in versus.others
        for metric in versus.primary
        for stratum in groups
    ]
    return Comparison(
        versus=versus,
        margin=margin,
        estimand=estimand,
        levels=levels,
        rows=tuple(
            replace(row, verdict=verdict(row.contrast, direction="added", margin=margin, p_adjusted=row.p_adjusted))
            for row in _corrected(rows, holm)
        ),
        exploratory=_corrected(others, bh),
        by_stratum=_corrected(split, bh),
        strata=groups,
        parts=tuple(_parts(versus, kind)),
    )


def _corrected(rows: Sequence[Gap | None], correct: Callable[[Sequence[float]], Floats]) -> tuple[Gap, ...]:
    known = [row for row in rows if row is not None]
    if not known:
        return ()
    # where nothing varies there is no p-value; it counts as 1, because leaving it out would shrink the family
    adjusted = correct([1.0 if row.contrast.constant else row.contrast.p for row in known])
    return tuple(replace(row, p_adjusted=float(p)) for row, p in zip(known, adjusted, strict=True))


def _level(versus: Versus, method: Method, metric: str, estimand: Estimand) -> Level:
    inside = versus.inside(metric)
    values = method.values(metric)
    assert values is not None
    kept = values[:, inside]
    found = contrast({method.name: kept}, {method.name: 1.0}, clusters=versus.clusters_in(inside), estimand=estimand)
    spread = float(100 * np.std(kept.mean(axis=1), ddof=1)) if len(kept) > 1 else None
    return Level(method.name, metric, found, spread)


def _gap(
    versus: Versus, method: Method, metric: str, estimand: Estimand, kind: Kind, stratum: Stratum | None = None
) -> Gap | None:
    """None where the method does not answer the task, or a stratum has too few queries to say anything."""
    a, b = method.values(metric), versus.baseline.values(metric)
    if a is None or b is None:
        return None
    inside = versus.inside(metric)
    if stratum is not None:
        inside = inside & stratum.rows
        if len(set(versus.clusters_in(inside) or np.flatnonzero(inside).tolist())) < 2:
            return None
    a, b = a[:, inside], b[:, inside]
    found = difference(a, b, clusters=versus.clusters_in(inside), estimand=estimand)
    return Gap(method.name, metric, kind, stratum, 100 * float(b.mean()), found, effects(a, b))


def _parts(versus: Versus, estimand: Estimand) -> list[Part]:
    """Shares of kinds of moments and windows. A share is a ratio of sums over queries; it enters the engine linearised,
    so that its uncertainty counts queries with many moments as what they are.
    """
    found: list[Part] = []
    base = versus.baseline
    for of, kinds in (("moments", OF_MOMENTS), ("windows", OF_WINDOWS)):
        tables = {m.name: _linear(m, of) for m in versus.methods if all(run.anatomy is not None for run in m.runs)}
        for name, values in tables.items():
            for at, kind in enumerate(kinds):
                gap = None
                if name != base.name and base.name in tables:
                    inside = ~np.isnan(values[0, :, 0])
                    pair = values[:, inside, at], tables[base.name][:, inside, at]
                    gap = difference(*pair, clusters=versus.clusters_in(inside), estimand=estimand)
                share = 100 * float(np.nanmean(values[:, :, at]))
                found.append(Part(name, "moments" if of == "moments" else "windows", kind, share, gap))
    return found


def _linear(method: Method, of: str) -> Floats:
    """(S, Q, kinds) whose mean over queries is the share; NaN for a query without annotated moments."""
    tables = []
    for run in method.runs:
        assert run.anatomy is not None
        counts = run.anatomy.moment_counts if of == "moments" else run.anatomy.window_counts
        asked = run.anatomy.moment_counts.sum(1) > 0
        total = counts.sum(1, keepdims=True).astype(np.float64)  # Q 1
        share = counts.sum(0) / max(total.sum(), 1.0)  # kinds
        values = share + (counts - share * total) / max(total[asked].mean(), 1e-12)
        tables.append(np.where(asked[:, None], values, np.nan))
    return np.stack(tables)


def _points(found: Contrast) -> tuple[float, float]:
    low, high = found.ci(LEVEL)
    return 100 * low, 100 * high


# --- single queries ---------------------------------------------------------------------------------------------------


def moved(versus: Versus, method: str, metric: str, *, number: int = MOVED) -> tuple[Moved, ...]:
    """The queries on which a method gained most, then those on which it lost most, each from the largest on.

    Scores are means over runs; of equal differences the query that sorts first comes first. Nothing for a method that
    does not answer the metric's task.
    """
    own = next(entry for entry in versus.methods if entry.name == method)
    a, b = own.values(metric), versus.baseline.values(metric)
    if a is None or b is None:
        return ()
    means = np.sort(a, axis=0).mean(axis=0), np.sort(b, axis=0).mean(axis=0)  # Q each, NaN outside the population
    gap = np.round(np.nan_to_num(means[0] - means[1]), 9)
    best = [row for row in np.argsort(-gap, kind="stable")[:number].tolist() if gap[row] > 0]
    worst = [row for row in np.argsort(gap, kind="stable")[:number].tolist() if gap[row] < 0]
    return tuple(_moved(versus, own, metric, row, [float(mean[row]) for mean in means]) for row in [*best, *worst])


def _moved(versus: Versus, method: Method, metric: str, row: int, means: Sequence[float]) -> Moved:
    query = versus.queries[row]
    windows = np.zeros((0, 2)) if query.windows_se is None else query.windows_se
    return Moved(
        metric=metric,
        row=row,
        qid=query.qid,
        text=query.text,
        vid=query.vid,
        duration_s=query.duration_s,
        points=100 * (means[0] - means[1]),
        method=_seen(versus, method, row, means[0]),
        baseline=_seen(versus, versus.baseline, row, means[1]),
        annotated_se=tuple((float(start), float(end)) for start, end in windows.tolist()),
    )


def _seen(versus: Versus, method: Method, row: int, mean: float) -> Seen:
    rows = [run.predictions[row] for run in method.runs]
    clips = math.ceil(versus.queries[row].duration_s / versus.clip_s)
    return Seen(
        method.name,
        100 * mean,
        tuple(_top(found) for found in rows),
        tuple(_peak(found, clips, versus.clip_s) for found in rows),
    )


def _top(row: Prediction | None) -> tuple[float, float, float] | None:
    if row is None or row.windows is None or not len(row.windows):
        return None
    start, end, confidence = row.windows[int(row.windows[:, 2].argmax())].tolist()
    return start, end, confidence


def _peak(row: Prediction | None, clips: int, clip_s: float) -> float | None:
    if row is None or row.saliency is None or not len(row.saliency[:clips]):
        return None
    return int(row.saliency[:clips].argmax()) * clip_s
