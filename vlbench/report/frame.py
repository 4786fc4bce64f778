"""What a study measured, read from the store: arrays of seeds x queries, what each run cost, and what is missing.

A frame is complete or says where it is not. Reading stops at a hole with the cells that are missing and the command
that runs them; ``allow_missing`` keeps the seeds that every arm has and carries the holes along, so that no output can
leave them out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.cards.kinds import Claim, Design, Factor, against_baseline
from vlbench.errors import DataError, PlanError, StoreError
from vlbench.report.stamps import Stamp, of_study
from vlbench.report.words import counted, listed
from vlbench.runs.cells import CHECKPOINTS, SCORED
from vlbench.runs.looks import Tally, tally
from vlbench.runs.store import Store
from vlbench.status import Status

Floats = NDArray[np.float64]

SCORES = "queries.parquet"
COLUMNS = ("qid", "source_video", "checkpoint")  # every other column is a metric
FLOAT32_DECIMALS = 7  # scores are kept as float32: rounding here makes 0.3 equal 0.3 again, so that ties stay ties
NAMED_HOLES = 8  # holes that an error names one by one


@dataclass(frozen=True, slots=True)
class Hole:
    """A planned run without a result. ``cause``: of a recorded failure, else empty."""

    arm: str
    seed: int
    fit: str
    score: str
    status: Status
    cause: str

    def __str__(self) -> str:
        cause = f": {self.cause}" if self.cause else ""
        return f"{self.arm}, seed {self.seed} (fit {self.fit}, score {self.score}): {self.status}{cause}"


@dataclass(frozen=True, slots=True)
class Look:
    """A complete comparison that was shown: how many seeds it had, and its margin in points.

    schedule: the looks that were declared then, empty for a fixed number of seeds. primary: the primary metrics then.
    None: shown by a version that did not keep them.
    """

    seeds: int
    margin: float
    schedule: tuple[int, ...] | None = None
    primary: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """How one run went. Epochs count from 1.

    epochs: (E,) of the losses. losses: term -> (E,). tuned: (T,) epochs that were scored on the tune split. tune:
    metric -> (T,) means in points; an epoch without this metric holds NaN. selected: the epoch whose weights were kept.
    """

    epochs: tuple[int, ...]
    losses: Mapping[str, tuple[float, ...]]
    tuned: tuple[int, ...]
    tune: Mapping[str, tuple[float, ...]]
    selected: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """One finished fit with its score.

    seconds: training time. device: as the fit's provenance names its kind, ``CPU`` or ``GPU``. device_seconds: of
    processor time, or of a held GPU. peak_bytes: the most memory held at once. Each None where it was not recorded.
    """

    seed: int
    fit: str
    score: str
    parameters: int | None
    seconds: float | None
    device: str | None
    device_seconds: float | None
    peak_bytes: int | None
    curve: Curve
    select: str  # the metrics whose mean on the tune split chose the checkpoint, as the recipe writes them
    mode: str  # of the evaluation: "compatible" or "strict"
    warnings: tuple[str, ...]
    oddities: tuple[Mapping[str, Any], ...]  # the warnings as values, with the checkpoint they are about
    records: Mapping[str, Mapping[str, Any]] = field(repr=False)  # "fit", "score" -> record.json
    made_by: Mapping[str, Mapping[str, Any]] = field(repr=False)  # "fit", "score" -> made_by.json


@dataclass(frozen=True, slots=True)
class ArmFrame:
    """One arm: its plan entry, its runs by seed, and its scores.

    scores: checkpoint -> metric -> (seeds, queries) fractions; NaN where a query is outside a metric's population. Of
    ``vlbench.runs.cells.SCORED`` those that all runs have, CHECKPOINTS always.
    reported: numbers that a paper printed for this variant, as the plan keeps them. flops: of one inference, None in
    older plans.
    """

    name: str
    variant: str
    title: str
    features: str
    edits: tuple[str, ...]
    parameters: int
    flops: int | None
    reported: tuple[Mapping[str, Any], ...]
    runs: tuple[Run, ...]
    scores: Mapping[str, Mapping[str, Floats]] = field(repr=False)

    @property
    def seconds(self) -> float | None:
        """Mean training time of a run, None where none was recorded."""
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return sum(known) / len(known) if known else None

    @property
    def device_seconds(self) -> float | None:
        """Mean time of the device over the runs that recorded it, None if none did."""
        known = [run.device_seconds for run in self.runs if run.device_seconds is not None]
        return sum(known) / len(known) if known else None

    @property
    def peak_bytes(self) -> int | None:
        """The most that a run held of the memory, None where none was recorded."""
        return max((run.peak_bytes for run in self.runs if run.peak_bytes is not None), default=None)


@dataclass(frozen=True)
class Frame:
    """A study as measured. ``arms[0]`` is the baseline; ``arms`` without a complete seed are in ``left_out``.

    seeds: those that every arm has, in the order of the plan. planned: those that the plan asked for. clusters: one
    label per query where some queries share a source video, else None. metrics: in the order of the catalogue. claims:
    those whose arms are all here. unsaid: the names of the planned claims whose arms are not. judged_kind: of the
    plan's first claim. design: of a study that crosses several components. looks: the numbers of seeds at which a
    sequential study may stop, declared before the first. looked: what was shown of this study before. title: of the
    component, where its card says. ledger: how often the store's studies looked at the reporting split. stamp: of what
    was read.
    """

    study: str
    kind: str
    question: str
    component: str
    adds: bool
    dataset: str
    split: str
    primary: tuple[str, ...]
    margin: float
    notes: tuple[str, ...]
    planned: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: tuple[ArmFrame, ...]
    queries: tuple[str, ...]
    clusters: tuple[str, ...] | None
    metrics: tuple[str, ...]
    holes: tuple[Hole, ...]
    left_out: tuple[str, ...]
    command: str
    claims: tuple[Claim, ...]
    unsaid: tuple[str, ...] = ()
    judged_kind: str = "arm"
    design: Design | None = None
    looks: tuple[int, ...] = ()
    looked: tuple[Look, ...] = ()
    title: str = ""
    ledger: Tally | None = None
    stamp: Stamp = field(default_factory=Stamp, repr=False)

    @property
    def rules(self) -> tuple[str, ...]:
        """The checkpoints that every run was scored at, in the order of SCORED."""
        return tuple(rule for rule in SCORED if all(rule in arm.scores for arm in self.arms))

    @property
    def judged(self) -> tuple[Claim, ...]:
        """The claims that the study is about: arms against the baseline, or the main effects of a lattice; those of the
        kind that comes first.
        """
        return tuple(claim for claim in self.claims if claim.kind == self.claims[0].kind)

    @property
    def look(self) -> int | None:
        """The declared look that these seeds are, None outside a sequential study's schedule."""
        return len(self.seeds) if len(self.seeds) in self.looks else None

    @property
    def unplanned(self) -> str | None:
        """Why the verdicts are exploratory: a choice that was made after results had been seen. None if none was."""
        now = len(self.seeds)
        planned = self.looks or (now,)
        if self.unsaid and self.judged_kind != self.claims[0].kind:
            return (
                f"what the study was planned to judge needs arms without any result ({listed(list(self.left_out))}), "
                "so other claims of the plan stand in its place"
            )
        if now not in planned:
            return f"{counted(now, 'seed')}, but the declared looks are at {listed([str(n) for n in self.looks])}"
        if self.looks and now != len(self.planned):
            return (
                f"{now} of {counted(len(self.planned), 'seed')}, which are not the seeds of the look at {now} as it "
                "was declared"
            )
        if odd := sorted({look.seeds for look in self.looked} - set(planned)):
            before = f"{listed([str(number) for number in odd])} seed{'s' if odd != [1] else ''}"
            return f"the number of seeds was changed to {now} after results with {before} were seen"
        for look in self.looked:
            seen = f"after results with {counted(look.seeds, 'seed')} were seen"
            if look.schedule is not None and look.schedule != self.looks:
                before = f"looks at {listed([str(n) for n in look.schedule])} seeds" if look.schedule else "one look"
                after = f"looks at {listed([str(n) for n in self.looks])} seeds" if self.looks else "one look"
                return f"the plan was changed from {before} to {after} {seen}"
            if look.primary is not None and look.primary != self.primary:
                before, after = (listed([title_of(name) for name in names]) for names in (look.primary, self.primary))
                return f"the primary metrics were changed from {before} to {after} {seen}"
        if margins := sorted({look.margin for look in self.looked} - {self.margin}):
            return f"the margin was changed from {margins[0]:g} to {self.margin:g} points after results were seen"
        return None

    @property
    def baseline(self) -> ArmFrame:
        """The arm that the others are compared with."""
        return self.arms[0]

    def title_of_component(self, component: str) -> str:
        """The component as its card, the design, the arms or the question spell it, such as FRA for ``fra``; else its
        name.
        """
        if self.title and (component == self.component or self.design is None):
            return self.title
        for factor in self.design.factors if self.design else ():
            if factor.name == component:
                return factor.title
        whole = re.compile(rf"(?<!\w){re.escape(component)}(?!\w)", re.IGNORECASE)
        for text in (*(arm.name for arm in self.arms[1:]), self.question):
            if (found := whole.search(text)) is not None:
                return found.group()
        return component

    @property
    def component_title(self) -> str:
        """The title of the component that the study is about; of a design, the titles of all of them."""
        if self.design is not None:
            return listed([factor.title for factor in self.design.factors])
        return self.title_of_component(self.component)

    @cached_property
    def ends_selected(self) -> int:
        """In how many runs the last of several epochs was the best one."""
        curves = [run.curve for arm in self.arms for run in arm.runs]
        return sum(len(curve.epochs) > 1 and curve.selected == curve.epochs[-1] for curve in curves)

    @property
    def total_runs(self) -> int:
        """Runs that the numbers come from."""
        return sum(len(arm.runs) for arm in self.arms)

    @cached_property
    def populations(self) -> Mapping[str, NDArray[np.bool_]]:
        """Metric -> (queries,) True where the metric is defined for a query.

        Raises: DataError if the arms or seeds disagree: a population follows from the annotations alone.
        """
        found = {}
        for metric in self.metrics:
            inside = ~np.isnan(self.baseline.scores[CHECKPOINTS[0]][metric][0])
            for arm in self.arms:
                for checkpoint in self.rules:
                    if not bool((np.isnan(arm.scores[checkpoint][metric]) == ~inside).all()):
                        raise DataError(
                            f'"{metric}" has values for other queries in "{arm.name}" than in "{self.baseline.name}"',
                            where=self.study,
                            hint="score the fits again with one version of vlbench",
                        )
            found[metric] = inside
        return found

    def values(self, metric: str, checkpoint: str) -> dict[str, Floats]:
        """Arm -> (seeds, queries of the metric's population), fractions without NaN."""
        inside = self.populations[metric]
        return {arm.name: arm.scores[checkpoint][metric][:, inside] for arm in self.arms}

    def clusters_of(self, metric: str) -> list[str] | None:
        """One label per query of the metric's population, or None where every query stands for itself."""
        if self.clusters is None:
            return None
        return [label for label, inside in zip(self.clusters, self.populations[metric], strict=True) if inside]

    @property
    def selection(self) -> str:
        """The rule that chose the checkpoints, in words. It has to be one rule for all arms."""
        rules = sorted({run.select for arm in self.arms for run in arm.runs if run.select})
        if not rules:
            return "the epoch selected on the tune split"
        said = [listed([title_of(name) for name in rule.split("+")]) for rule in rules]
        texts = [
            f"the mean of {said_of} on the tune split" if " and " in said_of else f"{said_of} on the tune split"
            for said_of in said
        ]
        if len(rules) > 1:
            return "the epoch with the highest value of a rule that DIFFERS between arms: " + "; ".join(texts)
        return f"the epoch with the highest value of {texts[0]}"


def title_of(metric: str) -> str:
    """The metric's short title, or its name if it is not in the catalogue."""
    return str(catalog.metrics[metric].facts.get("title", metric)) if metric in catalog.metrics else metric


def read(store: Store, study: str, *, allow_missing: bool = False) -> Frame:
    """A study's frame from the store.

    Args: allow_missing: keep the seeds that all arms have, and carry the holes along. An arm without any result is left
        out whole; the baseline cannot be.
    Raises: PlanError if cells are missing, naming them and the command that runs them, or if nothing is left to
        compare. StoreError if the store has no such study, or a file is not what its record says. DataError if the arms
        were not scored on the same queries.
    """
    stamp = of_study(store, study, allow_missing=allow_missing)
    plan = store.load_plan(study)
    command = command_of(plan)
    planned = tuple(int(seed) for seed in plan["seeds"])
    looked = [_hole(store, str(arm["name"]), cell) for arm in plan["arms"] for cell in arm["cells"]]
    holes = tuple(hole for hole in looked if hole is not None)
    if holes and not allow_missing:
        raise _incomplete(study, holes, planned, plan, command)
    missing = {(hole.arm, hole.seed) for hole in holes}
    has = {
        str(arm["name"]): [int(c["seed"]) for c in arm["cells"] if (str(arm["name"]), int(c["seed"])) not in missing]
        for arm in plan["arms"]
    }
    left_out = tuple(name for name, seeds in has.items() if not seeds)
    entries = [arm for arm in plan["arms"] if arm["name"] not in left_out]
    seeds = tuple(seed for seed in planned if entries and all(seed in has[str(arm["name"])] for arm in entries))
    if str(plan["arms"][0]["name"]) in left_out or len(entries) < 2 or not seeds:
        raise _incomplete(study, holes, planned, plan, command, "no seed is complete in the baseline and another arm")
    arms, queries, sources = _arms(store, entries, seeds)
    claims = _claims(plan)
    here = {arm.name for arm in arms}
    kept = tuple(claim for claim in claims if claim.weights.keys() <= here)
    if not kept:
        raise _incomplete(study, holes, planned, plan, command, "no claim of the plan has results for all of its arms")
    shared = len(set(sources)) < len(sources)
    return Frame(
        study=study,
        kind=str(plan.get("kind", "ablation")),
        question=str(plan["question"]),
        component=str(plan["component"]),
        adds=bool(plan["adds"]),
        dataset=str(plan["dataset"]),
        split=str(plan["split"]),
        primary=tuple(plan["primary"]),
        margin=float(plan["margin"]),
        notes=tuple(plan.get("notes", ())),
        planned=planned,
        seeds=seeds,
        arms=arms,
        queries=queries,
        clusters=sources if shared else None,
        metrics=_ordered(arms[0].scores[CHECKPOINTS[0]]),
        holes=holes,
        left_out=left_out,
        command=command,
        claims=kept,
        unsaid=tuple(claim.name for claim in claims if claim not in kept),
        judged_kind=claims[0].kind,
        design=_design(plan),
        looks=tuple(int(look) for look in plan.get("looks", ())),
        ledger=_ledger(store, plan),
        title=str(plan.get("title", "")),
        looked=tuple(_look(look) for look in store.looks(study)),
        stamp=stamp,
    )


def _ledger(store: Store, plan: Mapping[str, Any]) -> Tally | None:
    where = (str(plan["dataset"]), str(plan["split"]))
    return next((found for found in tally(store.ledger()) if (found.dataset, found.split) == where), None)


def _look(entry: Mapping[str, Any]) -> Look:
    schedule, primary = entry.get("schedule"), entry.get("primary")
    return Look(
        int(entry["seeds"]),
        float(entry["margin"]),
        None if schedule is None else tuple(int(number) for number in schedule),
        None if primary is None else tuple(str(name) for name in primary),
    )


def _claims(plan: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The plan's claims; a plan without any compares every arm with the baseline."""
    entries = plan.get("claims")
    if entries is None:
        base, *others = (str(arm["name"]) for arm in plan["arms"])
        component, adds = str(plan["component"]), bool(plan["adds"])
        return tuple(against_baseline(arm, base, component, adds=adds) for arm in others)
    return tuple(
        Claim(
            name=str(entry["name"]),
            kind=entry["kind"],
            components=tuple(entry["components"]),
            plus=str(entry["plus"]),
            minus=str(entry["minus"]),
            weights={str(arm): float(weight) for arm, weight in entry["weights"].items()},
        )
        for entry in entries
    )


def _design(plan: Mapping[str, Any]) -> Design | None:
    entry = plan.get("design")
    if entry is None:
        return None
    factors = tuple(Factor(str(factor["name"]), str(factor["title"])) for factor in entry["factors"])
    return Design(entry["kind"], factors, dict(entry["cells"]))


def _hole(store: Store, arm: str, cell: Mapping[str, Any]) -> Hole | None:
    fit, score = str(cell["fit"]), str(cell["score"])
    for cell_id in (fit, score):
        status = store.status(cell_id)
        if status is not Status.DONE:
            failure = (store.failure(cell_id) or {}) if status is Status.FAILED else {}
            return Hole(arm, int(cell["seed"]), fit, score, status, str(failure.get("cause", "")))
    return None


def _incomplete(
    study: str, holes: Sequence[Hole], planned: Sequence[int], plan: Mapping[str, Any], command: str, why: str = ""
) -> PlanError:
    total = sum(len(arm["cells"]) for arm in plan["arms"])
    if not holes:
        return PlanError("the plan has nothing to compare: it needs a baseline, another arm and a seed", where=study)
    named = "; ".join(str(hole) for hole in holes[:NAMED_HOLES])
    more = f"; and {len(holes) - NAMED_HOLES} more" if len(holes) > NAMED_HOLES else ""
    lead = f"{why}; " if why else ""
    hint = f"run them: {command}" + ("" if why else "; or report what there is with --allow-missing")
    return PlanError(f"{lead}{len(holes)} of {counted(total, 'run')} missing: {named}{more}", where=study, hint=hint)


def command_of(plan: Mapping[str, Any]) -> str:
    """The command that runs what is missing: the plan's own where it was kept, else made from the plan."""
    if plan.get("command"):
        return str(plan["command"])
    base = plan["arms"][0]
    words = ["vlbench", "ablate", "--component", str(plan["component"]), "--variant", str(base["variant"])]
    words += ["--dataset", str(plan["dataset"]), "--seeds", str(len(plan["seeds"]))]
    return shlex.join(words)


def _arms(
    store: Store, entries: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> tuple[tuple[ArmFrame, ...], tuple[str, ...], tuple[str, ...]]:
    """All arms with their scores in one order of queries, that order, and the queries' source videos."""
    arms = []
    queries: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    for entry in entries:
        cells = {int(cell["seed"]): cell for cell in entry["cells"]}
        runs, tables = [], []
        for seed in seeds:
            run = _run(store, cells[seed], seed)
            table = Scores.read(store, run.score, record=run.records["score"])
            if not queries:
                queries, sources = table.qids, table.sources
            tables.append(table.like(queries, f"{entry['name']}, seed {seed}"))
            runs.append(run)
        metrics = tables[0].values[CHECKPOINTS[0]].keys()
        rules = [rule for rule in SCORED if all(rule in table.values for table in tables)]
        for table in tables:
            if any(table.values[checkpoint].keys() != metrics for checkpoint in rules):
                raise DataError("the runs were scored by different metrics", where=str(entry["name"]))
        scores = {
            checkpoint: {metric: np.stack([table.values[checkpoint][metric] for table in tables]) for metric in metrics}
            for checkpoint in rules
        }
        arms.append(
            ArmFrame(
                name=str(entry["name"]),
                variant=str(entry["variant"]),
                title=str(entry.get("title", "")),
                features=str(entry.get("features", "")),
                edits=tuple(entry.get("edits", ())),
                parameters=int(entry["parameters"]),
                flops=None if entry.get("flops") is None else int(entry["flops"]),
                reported=tuple(entry.get("reported", ())),
                runs=tuple(runs),
                scores=scores,
            )
        )
    first = set(arms[0].scores[CHECKPOINTS[0]])
    for arm in arms[1:]:
        if set(arm.scores[CHECKPOINTS[0]]) != first:
            raise DataError("the arm was scored by other metrics than the baseline", where=arm.name)
    return tuple(arms), queries, sources


def _run(store: Store, cell: Mapping[str, Any], seed: int) -> Run:
    ids = {"fit": str(cell["fit"]), "score": str(cell["score"])}
    records = {kind: store.record(cell_id) or {} for kind, cell_id in ids.items()}
    made_by = {kind: store.made_by(cell_id) or {} for kind, cell_id in ids.items()}
    made = made_by["fit"]
    seconds, device_seconds, peak = (made.get(key) for key in ("seconds", "device_seconds", "peak_bytes"))
    parameters = records["fit"].get("parameters")
    return Run(
        seed=seed,
        fit=ids["fit"],
        score=ids["score"],
        parameters=None if parameters is None else int(parameters),
        seconds=None if seconds is None else float(seconds),
        device=None if "device" not in made else "GPU" if str(made["device"]).startswith("cuda") else "CPU",
        device_seconds=None if device_seconds is None else float(device_seconds),
        peak_bytes=None if peak is None else int(peak),
        curve=_curve_of(store, ids["fit"], records["fit"]),
        select=str(_identity(store, ids["fit"]).get("variant", {}).get("recipe", {}).get("select", "")),
        mode=str(_identity(store, ids["score"]).get("mode", "")),
        warnings=tuple(str(warning) for warning in records["score"].get("warnings", ())),
        oddities=tuple(records["score"].get("oddities", ())),
        records=records,
        made_by=made_by,
    )


def _identity(store: Store, cell_id: str) -> Mapping[str, Any]:
    """What a cell is; nothing where its spec is gone, since its record is enough to be read."""
    try:
        return dict(store.spec(cell_id).get("identity", {}))
    except StoreError:
        return {}


def curve_of(store: Store, fit: str) -> Curve:
    """How a fit went, as far as its events tell."""
    return _curve_of(store, fit, store.record(fit) or {})


def _curve_of(store: Store, fit: str, record: Mapping[str, Any]) -> Curve:
    selected = record.get("selected_epoch")
    return _curve(store.events(fit), None if selected is None else int(selected) + 1)


def _curve(events: Sequence[Mapping[str, Any]], selected: int | None) -> Curve:
    epochs = {int(event["epoch"]): event for event in events if event.get("event") == "epoch"}  # the last one counts
    ordered = [epochs[number] for number in sorted(epochs)]
    terms = sorted({term for event in ordered for term in event.get("loss", {})})
    tuned = [event for event in ordered if event.get("tune")]
    names = _ordered({name: None for event in tuned for name in event["tune"]})
    return Curve(
        epochs=tuple(int(event["epoch"]) + 1 for event in ordered),
        losses={term: tuple(_number(event.get("loss", {}).get(term)) for event in ordered) for term in terms},
        tuned=tuple(int(event["epoch"]) + 1 for event in tuned),
        tune={name: tuple(100 * _number(event["tune"].get(name)) for event in tuned) for name in names},
        selected=selected,
    )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _ordered(names: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics in the order of the catalogue, then what it does not know by name."""
    known = [name for name in catalog.metrics if name in names]
    return (*known, *sorted(set(names) - set(known)))


@dataclass(frozen=True, slots=True)
class Scores:
    """One score cell's table: queries as JSON, their source videos, checkpoint -> metric -> (queries,) fractions."""

    qids: tuple[str, ...]
    sources: tuple[str, ...]
    values: Mapping[str, Mapping[str, Floats]]
    path: Path

    @classmethod
    def read(
        cls,
        store: Store,
        score: str,
        checkpoints: Sequence[str] = CHECKPOINTS,
        *,
        record: Mapping[str, Any] | None = None,
    ) -> Scores:
        """The table of a finished score cell, which holds these checkpoints at least. record: the cell's, where known.

        Raises: StoreError if the file is not what its record says.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = store.folder(score) / SCORES
        try:
            known = (store.record(score) or {}) if record is None else record
            digest, content = known.get("files", {}).get(SCORES), path.read_bytes()
            if digest is not None and sha256(content).hexdigest() != digest:
                raise StoreError("the scores are not those that their record describes", where=path)
            # small files: one thread reads them faster than a pool
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
            held = {name: table.column(name) for name in table.column_names}
            marks = np.asarray(held["checkpoint"].to_pylist())
            qids = np.asarray(held["qid"].to_pylist())
            videos = held["source_video"].to_pylist()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StoreError(f"the scores cannot be read: {error}", where=path) from error
        held_rules = [rule for rule in SCORED if rule in checkpoints or rule in set(marks.tolist())]
        rows = {checkpoint: np.flatnonzero(marks == checkpoint) for checkpoint in held_rules}
        first = [str(qid) for qid in qids[rows[checkpoints[0]]]]
        if len(set(first)) != len(first) or not first:
            raise DataError("the scores hold no queries, or one of them twice", where=path)
        names = [name for name in held if name not in COLUMNS]
        columns = [np.from_dlpack(held[name].combine_chunks()) for name in names]  # to_numpy would import pandas for it
        wide = np.stack(columns).astype(np.float64)  # M N
        numbers: Floats = np.round(wide, FLOAT32_DECIMALS)
        values: dict[str, dict[str, Floats]] = {}
        for checkpoint, at in rows.items():
            position = {str(qid): row for qid, row in zip(qids[at], at, strict=True)}
            if position.keys() != set(first) or len(at) != len(first):
                raise DataError(f'the checkpoint "{checkpoint}" was scored on other queries', where=path)
            order = np.array([position[qid] for qid in first])
            values[checkpoint] = dict(zip(names, numbers[:, order], strict=True))
        # a query without a known source video is a cluster of its own; its label cannot be a video's name
        sources = [str(videos[row]) if videos[row] else f"query {qids[row]}" for row in rows[checkpoints[0]]]
        return cls(tuple(first), tuple(sources), values, path)

    def like(self, queries: tuple[str, ...], label: str) -> Scores:
        """The same table in this order of queries. Raises: DataError unless it holds exactly these."""
        if self.qids == queries:
            return self
        position = {qid: row for row, qid in enumerate(self.qids)}
        if position.keys() != set(queries):
            odd = sorted(position.keys() ^ set(queries))
            shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
            raise DataError(
                f"{counted(len(odd), 'query')} of {label} and of the baseline's first run are not in both: {shown}",
                where=self.path,
                hint="all arms must be scored on the same queries; plan again: run the same command",
            )
        order = [position[qid] for qid in queries]
        values = {mark: {name: column[order] for name, column in table.items()} for mark, table in self.values.items()}
        return Scores(queries, tuple(self.sources[row] for row in order), values, self.path)
