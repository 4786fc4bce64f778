"""A sweep as a page: what was tried, the best that was found, and what a maximum over trials is worth.

The best trial is the highest of many single runs on the tuning split. It is chosen and not measured, so the page shows
it beside the runs that fitted it again with fresh seeds, and beside how far a best of so many trials lies above its own
mean when nothing but the seed differs. Everything is read from ``studies/<name>/sweep.json`` (see
``vlbench.studies.sweep``) and from the cells of the final study. Values are in points here, hours are of training.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlbench.errors import PlanError, StoreError, VlbenchError
from vlbench.files import read_json
from vlbench.report import figures, files, page, sweep_figures, words
from vlbench.report import frame as frames
from vlbench.report.compare import Comparison, compare, subject
from vlbench.report.frame import title_of
from vlbench.report.page import Entry, Line, Section
from vlbench.report.stamps import of_study, of_sweep
from vlbench.report.sweep_figures import value_text
from vlbench.report.tables import MEMORY_NOTES, Cell, Column, Table
from vlbench.report.written import note, standing
from vlbench.runs.store import Store
from vlbench.stats.sweep import expected_best, expected_max
from vlbench.studies.sweep import FILE, FORMAT
from vlbench.studies.sweep import sweeps as sweeps

RESULTS_FORMAT = 1  # of results.json
EXCHANGEABLE = ("random", "qmc")  # samplers whose trials do not depend on each other
MOST_POINTS = 60  # numbers of trials at which the expected best is computed
SAMPLERS = {
    "tpe": "TPE",
    "random": "random search",
    "qmc": "quasi-random search",
    "gp": "a Gaussian process",
}
EXPLORATION = (
    "Importances are exploration and not an ablation: they say what separates good from bad among the values that were "
    "tried, in single runs on the tuning split, and they change with the ranges and with the sampler. Whether a "
    "parameter matters is asked by fitting with and without the change, with several seeds."
)
CHOICE = (
    "The best trial is the highest of {number} single runs on the tuning split: a choice, and no measurement. "
    "A maximum is optimistic"
)


# --- what the store says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of the space. values: one per objective, in points; None unless complete. rungs: epoch -> the mean of
    the objectives when the pruner was asked, in points. seconds: of training. device_seconds, peak_bytes, parameters:
    what it cost, None where that is not known.
    """

    number: int
    round: int
    state: str  # "running", "complete", "pruned" or "failed"
    params: Mapping[str, Any]
    edits: tuple[str, ...]
    values: tuple[float, ...] | None
    rungs: Mapping[int, float]
    cell: str | None
    epochs: int
    seconds: float
    device_seconds: float | None
    peak_bytes: int | None
    parameters: int | None
    cause: str

    @property
    def value(self) -> float | None:
        """The mean of the objectives of a complete trial."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def reached(self) -> float | None:
        """The value, or what a pruned trial had when it was stopped."""
        if self.value is not None or not self.rungs:
            return self.value
        return self.rungs[max(self.rungs)] if self.state == "pruned" else None


@dataclass(frozen=True, slots=True)
class Aim:
    """What a sweep makes as high as it can: the mean of its objectives, or each of them where they are kept apart."""

    key: str
    title: str
    metrics: tuple[str, ...]
    places: tuple[int, ...]

    def of(self, trial: Trial) -> float | None:
        """In points; None unless the trial is complete."""
        return None if trial.values is None else statistics.fmean(trial.values[place] for place in self.places)

    def of_fit(self, record: Mapping[str, Any]) -> float | None:
        """In points: what a fit reached on the tuning split at the epoch that it selected there."""
        names = [f"tune/selected/{metric}" for metric in self.metrics]
        summary = record.get("summary", {})
        if any(name not in summary for name in names):
            return None
        return 100 * statistics.fmean(float(summary[name]) for name in names)


@dataclass(frozen=True, slots=True)
class Refit:
    """An arm of the final study. trial: where its values come from, None for the card as it is. tune: aim -> one value
    per finished seed, in points, on the split that the trials were judged on. report: metric -> the same on the
    reporting split.
    """

    arm: str
    trial: int | None
    planned: int
    tune: Mapping[str, tuple[float, ...]]
    report: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Optimism:
    """How far the chosen trial lies above its own refits, and how far it would by chance alone. All in points.

    sd: of seeds, pooled over the arms of the final study. expected: what the best of ``trials`` settings that are all
    equally good is above its mean, if they differ by the seed's luck alone.
    """

    arm: str
    trial: float
    mean: float
    seeds: int
    sd: float
    trials: int
    expected: float

    @property
    def drop(self) -> float:
        """The trial's value less the mean of its refits."""
        return self.trial - self.mean


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it is, and what became of its winner. comparison: of the final study, where complete."""

    content: Mapping[str, Any]
    trials: tuple[Trial, ...]
    refits: tuple[Refit, ...] = ()
    comparison: Comparison | None = None
    unfinished: str = ""  # why the final study says nothing yet

    @property
    def study(self) -> str:
        """Its name."""
        return str(self.content["study"])

    @property
    def state(self) -> str:
        """``running``, ``trials``, ``finished`` or ``stopped``."""
        return str(self.content["state"])

    @property
    def budget(self) -> Mapping[str, Any]:
        """Trials, rounds, sampler and pruner."""
        return dict(self.content["budget"])

    @property
    def space(self) -> list[dict[str, Any]]:
        """What may vary, as the file says it."""
        return list(self.content["space"])

    @property
    def pareto(self) -> bool:
        """Whether several objectives are kept apart."""
        return bool(self.content["pareto"])

    @property
    def final(self) -> Mapping[str, Any] | None:
        """The study that fits the winner again."""
        return self.content.get("final")

    @cached_property
    def aims(self) -> tuple[Aim, ...]:
        """What is made as high as it can."""
        metrics = tuple(self.content["objective"])
        if self.pareto:
            return tuple(Aim(metric, title_of(metric), (metric,), (n,)) for n, metric in enumerate(metrics))
        titles = [title_of(metric) for metric in metrics]
        title = titles[0] if len(titles) == 1 else f"mean of {words.listed(titles)}"
        return (Aim("objective", title, metrics, tuple(range(len(metrics)))),)

    def of_state(self, state: str) -> list[Trial]:
        """The trials of a state."""
        return [trial for trial in self.trials if trial.state == state]

    def trial(self, number: int) -> Trial:
        """The trial of this number."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def front(self) -> list[Trial]:
        """Trials that no other one beats in every objective; with one objective, the best."""
        return [self.trial(int(number)) for number in self.content["front"]]

    @property
    def best(self) -> Trial | None:
        """The best trial, if there is one objective."""
        return None if self.content["best"] is None else self.trial(int(self.content["best"]))

    @property
    def hours(self) -> float:
        """Of training, all trials."""
        return math.fsum(trial.seconds for trial in self.trials) / 3600

    @property
    def ranked(self) -> list[str]:
        """The keys of the space, the most important first where that is known."""
        shares: Counter[str] = Counter()
        for one in self.content["importances"]:
            shares.update({key: float(share) for key, share in one["values"].items()})
        return sorted((one["key"] for one in self.space), key=lambda key: -shares[key])

    def best_so_far(self, aim: Aim) -> list[tuple[int, float, float | None]]:
        """Per trial, in order: how many there were, hours of training until then, and the highest value until then."""
        found, spent, best = [], 0.0, None
        for number, trial in enumerate(self.trials, start=1):
            spent += trial.seconds / 3600
            value = aim.of(trial)
            best = value if best is None else best if value is None else max(best, value)
            found.append((number, spent, best))
        return found

    def expected(self, aim: Aim) -> tuple[list[int], list[float]] | None:
        """Numbers of trials and the best value that so many are expected to find; None for samplers that look back.

        Pruned trials count with what they had when they were stopped. Failed ones have no value and are left out.
        """
        if self.budget["sampler"] not in EXCHANGEABLE:
            return None
        values = [trial.reached if trial.state == "pruned" else aim.of(trial) for trial in self.trials]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return None
        step = max(1, len(known) // MOST_POINTS)
        numbers = sorted({*range(1, len(known) + 1, step), len(known)})
        return numbers, expected_best(known, numbers).unbiased.tolist()

    def optimism(self, aim: Aim) -> list[Optimism]:
        """One entry per arm that was fitted again with at least one seed, where the spread of seeds is known."""
        series = [refit.tune[aim.key] for refit in self.refits if len(refit.tune.get(aim.key, ())) > 1]
        freedom = sum(len(values) - 1 for values in series)
        if not freedom:
            return []
        squares = math.fsum(statistics.variance(values) * (len(values) - 1) for values in series)
        sd, number = math.sqrt(squares / freedom), len(self.of_state("complete"))
        found = []
        for refit in self.refits:
            values = refit.tune.get(aim.key, ())
            chosen = None if refit.trial is None else aim.of(self.trial(refit.trial))
            if values and chosen is not None:
                mean, by_chance = statistics.fmean(values), expected_max(number) * sd
                found.append(Optimism(refit.arm, chosen, mean, len(values), sd, number, by_chance))
        return found


def read(store: Store, study: str, *, judge: bool = True) -> Sweep:
    """A sweep from the store. judge: compare the arms of its final study, where that is complete.

    Raises: StoreError if the store has no such sweep, or its file is of another version.
    """
    content = read_json(store.study_folder(study) / FILE)
    if content is None:
        raise StoreError(f'the store has no sweep "{study}"', where=store.root)
    if content.get("format") != FORMAT:
        what = f"{FILE} is of format {content.get('format')}, which this version does not read"
        raise StoreError(what, where=store.study_folder(study), hint="install the version that wrote it")
    found = Sweep(content, tuple(_trial(one) for one in content["trials"]))
    if found.final is None:
        return found
    name, comparison, unfinished = str(found.final["study"]), None, ""
    try:
        whole = frames.read(store, name)
        comparison = compare(whole) if judge else None
    except VlbenchError as problem:
        unfinished = str(problem).removeprefix(f"{name}: ")
    return Sweep(content, found.trials, tuple(_refits(store, found, name)), comparison, unfinished)


def _trial(one: Mapping[str, Any]) -> Trial:
    values, cost = one["values"], one.get("cost") or {}
    return Trial(
        number=int(one["number"]),
        round=int(one["round"]),
        state=str(one["state"]),
        params=dict(one["params"]),
        edits=tuple(one["edits"]),
        values=None if values is None or one["state"] != "complete" else tuple(100 * float(v) for v in values),
        rungs={int(epoch): 100 * float(value) for epoch, value in one["rungs"].items() if value is not None},
        cell=one["cell"],
        epochs=int(one["epochs"]),
        seconds=float(one["seconds"] or 0.0),
        device_seconds=cost.get("device_seconds"),
        peak_bytes=cost.get("peak_bytes"),
        parameters=cost.get("parameters"),
        cause=str(one["cause"] or ""),
    )


def _refits(store: Store, found: Sweep, study: str) -> list[Refit]:
    try:
        plan = store.load_plan(study)
    except StoreError:  # trials travelled without their final study
        return []
    sources = dict((found.final or {}).get("arms", {}))
    refits = []
    for arm in plan["arms"]:
        fits = [record for cell in arm["cells"] if (record := store.record(str(cell["fit"]))) is not None]
        scores = [record for cell in arm["cells"] if (record := store.record(str(cell["score"]))) is not None]
        tune = {aim.key: [aim.of_fit(record) for record in fits] for aim in found.aims}
        report = {
            metric: tuple(
                100 * float(record["summary"][f"selected/{metric}"])
                for record in scores
                if f"selected/{metric}" in record["summary"]
            )
            for metric in found.content["objective"]
        }
        known = {key: tuple(value for value in values if value is not None) for key, values in tune.items()}
        name = str(arm["name"])
        refits.append(Refit(name, sources.get(name), len(arm["cells"]), known, report))
    return refits


# --- words ------------------------------------------------------------------------------------------------------------


def setting(sweep: Sweep) -> str:
    """``planted-quick · tuning split · TPE, median pruner · 8 of 8 trials · 0.02 CPU-hours``."""
    budget = sweep.budget
    ended = sum(trial.state != "running" for trial in sweep.trials)
    pruner = "no pruning" if budget["pruner"] == "none" else f"{budget['pruner']} pruner"
    return " · ".join(
        [
            str(sweep.content["dataset"]),
            str(sweep.content["features"]),
            "tuning split",
            f"{SAMPLERS.get(budget['sampler'], budget['sampler'])}, {pruner}",
            f"{ended} of {words.counted(int(budget['trials']), 'trial')}",
            f"{hours(sweep.hours)} {hours_name(sweep)}",
        ]
    )


def hours(value: float) -> str:
    """``12.4``, ``0.023``: three digits."""
    return f"{value:.3g}"


def hours_name(sweep: Sweep) -> str:
    """``GPU-hours`` or ``CPU-hours``."""
    return "GPU-hours" if str(sweep.content["device"]).startswith("cuda") else "CPU-hours"


def cautions(sweep: Sweep) -> list[str]:
    """What has to be read before any number."""
    found, command = [], str(sweep.content["command"])
    complete = len(sweep.of_state("complete"))
    if sweep.state == "running":
        ended = sum(trial.state != "running" for trial in sweep.trials)
        found.append(f"Not finished: {ended} of {sweep.budget['trials']} trials have ended. To go on: {command}")
    if sweep.state == "stopped":
        found.append(f"Stopped: {sweep.content['stopped']}. After mending the cause, go on with: {command}")
    if complete:
        text = CHOICE.format(number=complete)
        if sweep.refits and not sweep.unfinished:
            found.append(f"{text}: believe the runs that fitted it again with fresh seeds.")
        elif sweep.final is not None:
            found.append(f"{text}, and its final study is not complete: {sweep.unfinished}")
        elif sweep.state in ("trials", "finished"):
            found.append(f"{text}, and it has not been fitted again with fresh seeds.")
        else:
            found.append(f"{text}.")
    return found


def answers(sweep: Sweep) -> list[dict[str, Any]]:
    """The best trials, and what the final study says of them, as the page's header shows them."""
    found = [
        {"subject": f"Trial {trial.number}", "changed": "; ".join(trial.edits) or "the card as it is", "lines": lines}
        for trial in (sweep.front if sweep.pareto else [sweep.best])
        if trial is not None and (lines := _best_lines(sweep, trial))
    ]
    if sweep.comparison is not None:
        found += [
            {
                "subject": subject(sweep.comparison, claim),
                "changed": f"fitted again, seeds {words.listed([str(s) for s in sweep.comparison.frame.seeds])}, "
                f"{sweep.comparison.frame.split}",
                "lines": page.verdict_lines(sweep.comparison, claim),
            }
            for claim in sweep.comparison.claims
        ]
    return found


def _best_lines(sweep: Sweep, trial: Trial) -> tuple[Line, ...]:
    number = words.counted(len(sweep.of_state("complete")), "trial")
    lines = []
    for aim in sweep.aims:
        again = next((one for refit in sweep.refits if refit.trial == trial.number for one in [refit]), None)
        values = () if again is None else again.tune.get(aim.key, ())
        evidence = ["one run on the tuning split"]
        if values:
            evidence.append(f"fitted again {spread(values)} there, {words.counted(len(values), 'seed')}")
        verdict = "not beaten in all objectives at once" if sweep.pareto else f"highest of {number}"
        value = aim.of(trial)
        lines.append(Line(aim.title, "", verdict, words.points(value), tuple(evidence)))
    return tuple(lines)


def spread(values: Sequence[float]) -> str:
    """``41.20 ± 0.35``: mean and standard deviation; one value stands alone."""
    mean = words.points(statistics.fmean(values))
    return f"{mean} ± {words.points(statistics.stdev(values))}" if len(values) > 1 else mean


def of_the_best(sweep: Sweep) -> list[str]:
    """Why the expected best is shown, or why it is not."""
    sampler = str(sweep.budget["sampler"])
    name = SAMPLERS.get(sampler, sampler)
    if sampler not in EXCHANGEABLE:
        return [
            f"Only the best so far is shown. Trials of {name} are not exchangeable: what it proposes late depends on "
            "what it saw early, so one sweep does not tell what a sweep of n trials finds on average. Random or "
            "quasi-random search does."
        ]
    if all(sweep.expected(aim) is None for aim in sweep.aims):
        return ["The expected best needs two trials with a value."]
    said = [
        f"The expected best of n trials is the mean over all subsets of n of these trials ({name}), without bias; it "
        "says what a smaller budget would have found."
    ]
    if pruned := len(sweep.of_state("pruned")):
        said.append(f"{words.counted(pruned, 'pruned trial')} count with the value at which they were stopped.")
    if failed := len(sweep.of_state("failed")):
        said.append(
            f"{words.counted(failed, 'failed trial')} without a value {'is' if failed == 1 else 'are'} left out."
        )
    return said


def of_the_optimism(sweep: Sweep) -> list[str]:
    """What of the best trial's value is luck."""
    said = []
    for aim in sweep.aims:
        for one in sweep.optimism(aim):
            drop = f"{words.points(abs(one.drop))} points {'above' if one.drop >= 0 else 'below'}"
            said.append(
                f"{aim.title}, {one.arm}: the trial lies {drop} the mean of its {words.counted(one.seeds, 'refit')}. "
                f"Seeds alone spread by {words.points(one.sd)} (standard deviation, pooled); the best of "
                f"{words.counted(one.trials, 'equally good setting')} is expected {words.points(one.expected)} above "
                "its own mean."
            )
    return said


def methods(sweep: Sweep) -> list[tuple[str, str]]:
    """How the trials were made, term by term."""
    content, budget = sweep.content, sweep.budget
    decisions = list(budget["decisions"])
    rungs = words.listed([str(epoch) for epoch in decisions])
    pruning = (
        "none: every trial runs to its end"
        if budget["pruner"] == "none" or not decisions
        else f"{budget['pruner']}, asked after {rungs} epochs of {budget['epochs']}; the trials of a round pause there "
        "and are judged in trial order"
    )
    seed = content["definition"].get("seed")
    return [
        ("Objective", f"{words.listed([aim.title for aim in sweep.aims])} on the tuning split, at the epoch that each "
         "trial selected there, in points. The reporting split is not opened by trials."),
        ("Proposals", f"{SAMPLERS.get(budget['sampler'], budget['sampler'])}, in rounds of {budget['batch']}, the "
         f"first {budget['startup']} without looking back; seeded per trial: the number of workers changes nothing."),
        ("Pruning", pruning + "."),
        ("Runs", f"One run per trial, all with seed {seed}; {budget['epochs']} epochs unless pruned."),
        ("Importances", "PED-ANOVA: what separates the best tenth of trials from the rest, shared out over the "
         "parameters." if content["importances"] else "Not computed: too few complete trials, or one parameter."),
        ("Storage", f"{content['storage']}; definition {content['digest'][:12]}."),
    ]  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def space_table(sweep: Sweep) -> Table:
    """What was varied, what the card has, and what the best trials have."""
    shown = (sweep.front if sweep.pareto else [t for t in [sweep.best] if t is not None])[:4]
    columns = (
        Column("Parameter"),
        Column("Tried"),
        Column("Card", False, "the value of the card as it is"),
        *(Column(f"Trial {trial.number}", False, "not beaten" if sweep.pareto else "the best") for trial in shown),
    )
    rows = tuple(
        (
            Cell(one["key"], number),
            Cell(tried(one)),
            Cell(value_text(one["now"])),
            *(Cell(value_text(trial.params.get(one["key"]))) for trial in shown),
        )
        for number, one in enumerate(sweep.space)
    )
    return Table("space", "The parameters that trials may set, and all that they may be.", columns, rows)


def tried(one: Mapping[str, Any]) -> str:
    """``1e-05 to 0.001, log``; ``none, fra``."""
    if one["kind"] == "choices":
        return ", ".join(value_text(choice) for choice in one["choices"])
    step = f", steps of {one['step']:g}" if one["step"] and not (one["kind"] == "int" and one["step"] == 1) else ""
    return f"{value_text(one['low'])} to {value_text(one['high'])}{', log' if one['log'] else step}"


def trials_table(sweep: Sweep) -> Table:
    """Every trial, complete, pruned or failed."""
    keys = [one["key"] for one in sweep.space]
    best = {trial.number for trial in (sweep.front if sweep.pareto else [sweep.best]) if trial is not None}
    costs = _costs(sweep)
    columns = (
        Column("Trial"),
        Column("State", False, "pruned: stopped at a decision because it was behind; its value is what it had then"),
        *(Column(aim.title, True, "tuning split, points") for aim in sweep.aims),
        *(Column(key) for key in keys),
        Column("Epochs", True, "trained for this trial; an epoch that the store had is not trained again"),
        Column("Training", True),
        *(column for column, _ in costs),
        Column("Cell"),
        Column("Cause", False, "of a failure"),
    )
    rows = []
    for trial in sweep.trials:
        values = [
            trial.reached if trial.state == "pruned" and not sweep.pareto else aim.of(trial) for aim in sweep.aims
        ]
        rows.append(
            (
                Cell(f"{trial.number}{' (best)' if trial.number in best and not sweep.pareto else ''}", trial.number),
                Cell(trial.state),
                *(Cell(words.points(value), value, trial.number in best) for value in values),
                *(Cell(value_text(trial.params.get(key)), _sortable(trial.params.get(key))) for key in keys),
                Cell(str(trial.epochs), trial.epochs),
                Cell(words.duration(trial.seconds), trial.seconds),
                *(cell(trial) for _, cell in costs),
                Cell(trial.cell or words.NOTHING),
                Cell(trial.cause.splitlines()[0] if trial.cause else ""),
            )
        )
    caption = "Every trial, one run each. Bold: " + (
        "not beaten in all objectives at once." if sweep.pareto else "best."
    )
    return Table("trials", caption, columns, tuple(rows))


def _costs(sweep: Sweep) -> list[tuple[Column, Callable[[Trial], Cell]]]:
    """What trials cost beside their time: of older sweeps what is known."""
    device = "GPU" if str(sweep.content.get("device")).startswith("cuda") else "CPU"
    known: list[tuple[Column, Callable[[Trial], Cell]]] = [
        (
            Column(f"{device} time", True, "processor time" if device == "CPU" else "for which the GPU was held"),
            lambda trial: Cell(words.duration(trial.device_seconds), trial.device_seconds),
        ),
        (
            Column("Peak memory", True, MEMORY_NOTES[device]),
            lambda trial: Cell(words.memory(trial.peak_bytes), trial.peak_bytes),
        ),
        (
            Column("Parameters", True, "of a finished fit"),
            lambda trial: Cell(
                words.NOTHING if trial.parameters is None else words.count(trial.parameters), trial.parameters
            ),
        ),
    ]
    return [one for one in known if any(one[1](trial).value is not None for trial in sweep.trials)]


def _sortable(value: Any) -> float | str | None:
    return None if value is None else value if isinstance(value, int | float) else str(value)


def front_table(sweep: Sweep) -> Table:
    """The trials that no other one beats in every objective."""
    columns = (
        Column("Trial"),
        *(Column(aim.title, True, "tuning split, points, one run") for aim in sweep.aims),
        Column("Changed"),
    )
    rows = tuple(
        (
            Cell(str(trial.number), trial.number),
            *(Cell(words.points(aim.of(trial)), aim.of(trial)) for aim in sweep.aims),
            Cell("; ".join(trial.edits) or "the card as it is"),
        )
        for trial in sorted(sweep.front, key=lambda trial: -(sweep.aims[0].of(trial) or 0.0))
    )
    caption = (
        "The Pareto front: for each of these, no other trial is better in one objective and as good in all others."
    )
    return Table("front", caption, columns, rows)


def refits_table(sweep: Sweep) -> Table:
    """The chosen trials beside the same settings with fresh seeds, and beside the card as it is."""
    metrics = list(sweep.content["objective"])
    several = len(sweep.aims) > 1

    def name(aim: Aim, what: str) -> str:
        return f"{what}, {aim.title}" if several else what

    columns = (
        Column("Arm"),
        *(Column(name(aim, "Trial"), True, "one run on the tuning split: what was chosen") for aim in sweep.aims),
        *(Column(name(aim, "Refits"), True, "tuning split, fresh seeds: mean and deviation") for aim in sweep.aims),
        *(Column(name(aim, "Trial − refits"), True, "how much of it did not come again") for aim in sweep.aims),
        *(Column(name(aim, "By chance"), True, "expected if all settings were equal") for aim in sweep.aims),
        *(Column(f"{title_of(metric)}, reported", True, "reporting split, selected epoch") for metric in metrics),
        Column("Seeds", True),
    )
    rows = []
    for number, refit in enumerate(sweep.refits):
        chosen = [None if refit.trial is None else aim.of(sweep.trial(refit.trial)) for aim in sweep.aims]
        tuned = [refit.tune.get(aim.key, ()) for aim in sweep.aims]
        luck = [next((one for one in sweep.optimism(aim) if one.arm == refit.arm), None) for aim in sweep.aims]
        reported = [refit.report.get(metric, ()) for metric in metrics]
        rows.append(
            (
                Cell(refit.arm if refit.trial is None else f"{refit.arm}, trial {refit.trial}", number),
                *(Cell(words.points(value), value) for value in chosen),
                *(_mean_cell(values) for values in tuned),
                *(Cell(words.signed(one.drop if one else None), one.drop if one else None) for one in luck),
                *(Cell(words.signed(one.expected if one else None), one.expected if one else None) for one in luck),
                *(_mean_cell(values) for values in reported),
                Cell(f"{max(map(len, tuned), default=0)} of {refit.planned}", max(map(len, tuned), default=0)),
            )
        )
    caption = "The chosen trials and the card, fitted again with seeds that no trial had. Points."
    return Table("refits", caption, columns, tuple(rows))


def _mean_cell(values: Sequence[float]) -> Cell:
    return Cell(spread(values), statistics.fmean(values)) if values else Cell(words.NOTHING)


def importances_table(sweep: Sweep) -> Table | None:
    """Shares per parameter and objective, marked as exploration."""
    found = list(sweep.content["importances"])
    if not found:
        return None
    titles = [aim.title if one["of"] == "objective" else title_of(one["of"]) for one in found for aim in sweep.aims[:1]]
    columns = (Column("Parameter"), *(Column(title, True, "share, exploration only") for title in titles))
    rows = tuple(
        (
            Cell(key, number),
            *(Cell(_percent(one["values"].get(key)), one["values"].get(key)) for one in found),
        )
        for number, key in enumerate(sweep.ranked)
    )
    method = words.listed(sorted({str(one["method"]) for one in found}))
    return Table("importances", f"Exploration only: shares of importance by {method}.", columns, rows)


def _percent(share: float | None) -> str:
    return words.NOTHING if share is None else f"{100 * share:.0f}%"


def failures(sweep: Sweep) -> list[str]:
    """How many trials failed of what, the most common cause first."""
    causes = Counter(
        trial.cause.splitlines()[0] if trial.cause else "unknown cause" for trial in sweep.of_state("failed")
    )
    return [f"{words.counted(number, 'trial')} failed: {cause}" for cause, number in causes.most_common()]


# --- the page ---------------------------------------------------------------------------------------------------------


def sections(sweep: Sweep, plots: Sequence[figures.Plot], beside: Sequence[str]) -> list[Section]:
    """The parts of the page that have something to say."""
    drawn = {plot.name: plot for plot in plots}

    def figure(name: str, title: str, remarks: Sequence[str] = (), made: Sequence[Table] = ()) -> Section | None:
        plot = drawn.get(name)
        if plot is None:
            return None
        panels = [figures.inline(panel) for panel in plot.panels]
        context = {"panels": panels, "caption": plot.caption, "remarks": list(remarks), "tables": list(made)}
        return Section(name, title, "figure.html.j2", context)

    def tables(anchor: str, title: str, made: Sequence[Table], lead: str = "", remarks: Sequence[str] = ()) -> Section:
        context = {"tables": list(made), "titles": [], "lead": lead, "remarks": [list(remarks)], "folded": None}
        return Section(anchor, title, "tables.html.j2", context)

    importances = importances_table(sweep)
    tuned = bool(sweep.refits)
    found: list[Section | None] = [
        tables("space", "What was varied", [space_table(sweep)]),
        figure("winner", "Is the winner real?", of_the_optimism(sweep), [refits_table(sweep)] if tuned else []),
        tables("front", "The Pareto front", [front_table(sweep)]) if sweep.pareto and sweep.front else None,
        figure("pareto", "One objective against the other"),
        figure("best-so-far", "Best so far", of_the_best(sweep)),
        figure("importances", "Importances (exploration)", [EXPLORATION], [importances] if importances else []),
        figure("slices", "Value by parameter"),
        figure("contour", "The two most important parameters"),
        tables("trials", "Every trial", [trials_table(sweep)], remarks=[*failures(sweep), *_pruned(sweep)]),
        Section("methods", "How it was searched", "methods.html.j2", {"entries": methods(sweep)}),
        Section("notes", "Notes", "notes.html.j2", {"notes": list(sweep.content["notes"]), "details": []})
        if sweep.content["notes"]
        else None,
        Section("files", "Files", "sweep_files.html.j2", {"beside": list(beside), "digest": sweep.content["digest"]}),
    ]
    return [section for section in found if section is not None]


def _pruned(sweep: Sweep) -> list[str]:
    at = Counter(max(trial.rungs) for trial in sweep.of_state("pruned") if trial.rungs)
    return [f"{words.counted(number, 'trial')} pruned after {epoch} epochs" for epoch, number in sorted(at.items())]


def to_html(
    sweep: Sweep,
    plots: Sequence[figures.Plot],
    beside: Sequence[str] = (),
    *,
    index: bool = True,
    refresh_s: float | None = None,
) -> str:
    """The page of one sweep. refresh_s: after how many seconds a browser reads it again; None: never."""
    return page.sweep_html(
        sweep=sweep.content,
        setting=setting(sweep),
        answers=answers(sweep),
        cautions=cautions(sweep),
        final=str(sweep.final["study"]) if sweep.final is not None else "",
        final_href=f"../{quote(str(sweep.final['study']))}/index.html" if sweep.final is not None else "",
        sections=sections(sweep, plots, beside),
        index=index,
        refresh_s=refresh_s,
    )


def to_markdown(sweep: Sweep) -> str:
    """The whole report, plain enough to read unrendered."""
    from vlbench.report.formats import md, md_table

    def listing(lines: Sequence[str]) -> list[str]:
        return ["\n".join(f"- {md(line)}" for line in lines)] if lines else []

    parts = [f"# {md(str(sweep.content['question']))}", f"Sweep `{sweep.study}`. {md(setting(sweep))}."]
    for answer in answers(sweep):
        lines = [
            f"{line.metric}: {line.verdict} {line.difference} ({'; '.join(line.evidence)})" for line in answer["lines"]
        ]
        parts += [f"**{md(answer['subject'])}** ({md(answer['changed'])})", *listing(lines)]
    parts += [f"> {md(caution)}" for caution in cautions(sweep)]
    parts += ["## What was varied", md_table(space_table(sweep))]
    if sweep.refits:
        parts += ["## Is the winner real?", md_table(refits_table(sweep)), *listing(of_the_optimism(sweep))]
    if sweep.pareto and sweep.front:
        parts += ["## The Pareto front", md_table(front_table(sweep))]
    parts += ["## Best so far", *listing(of_the_best(sweep))]
    if (table := importances_table(sweep)) is not None:
        parts += ["## Importances (exploration)", md(EXPLORATION), md_table(table)]
    parts += ["## Every trial", md_table(trials_table(sweep)), *listing([*failures(sweep), *_pruned(sweep)])]
    parts += ["## How it was searched", "\n".join(f"- **{md(a)}.** {md(b)}" for a, b in methods(sweep))]
    parts += ["## Notes", *listing(sweep.content["notes"])] if sweep.content["notes"] else []
    return "\n\n".join(parts) + "\n"


def to_csv(sweep: Sweep) -> str:
    """One line per trial, unrounded; empty where there is no number."""
    keys, metrics = [one["key"] for one in sweep.space], list(sweep.content["objective"])
    decisions = sorted({epoch for trial in sweep.trials for epoch in trial.rungs})
    stream = io.StringIO()
    names = ["trial", "round", "state", "value", *metrics, *(f"after {epoch} epochs" for epoch in decisions), *keys]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, "epochs", "seconds", "device_seconds", "peak_bytes", "parameters", "cell", "cause"])
    for trial in sweep.trials:
        values = trial.values or [None] * len(metrics)
        line = [trial.number, trial.round, trial.state, trial.value, *values, *(trial.rungs.get(e) for e in decisions)]
        cost = [trial.seconds, trial.device_seconds, trial.peak_bytes, trial.parameters]
        line += [*(trial.params.get(key) for key in keys), trial.epochs, *cost, trial.cell, trial.cause]
        writer.writerow(["" if value is None else value for value in line])
    return stream.getvalue()


def as_json(sweep: Sweep) -> dict[str, Any]:
    """What the page says, with unrounded numbers in points."""
    content = sweep.content
    return {
        "format": RESULTS_FORMAT,
        "study": sweep.study,
        "state": sweep.state,
        "question": content["question"],
        "dataset": content["dataset"],
        "digest": content["digest"],
        "objective": content["objective"],
        "pareto": sweep.pareto,
        "budget": sweep.budget,
        "trials": dict(Counter(trial.state for trial in sweep.trials)),
        "hours": sweep.hours,
        "best": content["best"],
        "front": content["front"],
        "best_so_far": {
            aim.key: [{"trials": n, "hours": spent, "points": best} for n, spent, best in sweep.best_so_far(aim)]
            for aim in sweep.aims
        },
        "expected_best": {
            aim.key: [{"trials": n, "points": value} for n, value in zip(*found, strict=True)]
            for aim in sweep.aims
            if (found := sweep.expected(aim)) is not None
        },
        "importances": [{**one, "exploratory": True} for one in content["importances"]],
        "refits": [
            {
                "arm": refit.arm,
                "trial": refit.trial,
                "planned": refit.planned,
                "tune": {key: list(values) for key, values in refit.tune.items()},
                "report": {key: list(values) for key, values in refit.report.items()},
            }
            for refit in sweep.refits
        ],
        "optimism": {
            aim.key: [
                {
                    "arm": one.arm,
                    "trial": one.trial,
                    "mean": one.mean,
                    "drop": one.drop,
                    "seed_sd": one.sd,
                    "trials": one.trials,
                    "expected": one.expected,
                }
                for one in sweep.optimism(aim)
            ]
            for aim in sweep.aims
        },
        "final": content["final"],
        "failures": failures(sweep),
        "cautions": cautions(sweep),
        "notes": list(content["notes"]),
    }


def entries(store: Store, out: Path) -> list[Entry]:
    """The lines of all sweeps on the index page, linked where a page was written. The final studies have their own."""
    found = []
    for study in sweeps(store):
        href = f"{quote(study)}/index.html" if (out / study / "index.html").exists() else ""
        try:
            sweep = read(store, study, judge=False)
        except VlbenchError as problem:
            found.append(Entry(study=study, href=href, problem=str(problem)))
            continue
        chosen = [
            (f"Trial {trial.number}", _best_lines(sweep, trial))
            for trial in (sweep.front if sweep.pareto else [sweep.best])
            if trial is not None
        ]
        found.append(
            Entry(
                study=study,
                question=str(sweep.content["question"]),
                setting=setting(sweep),
                href=href,
                answers=tuple(chosen),
                cautions=tuple(cautions(sweep)),
            )
        )
    return found


# --- on disk ----------------------------------------------------------------------------------------------------------


def write(
    store: Store,
    study: str,
    out: Path,
    *,
    format: str = "all",
    index: bool = True,
    refresh_s: float | None = None,
) -> list[Path]:
    """The report of one sweep under ``out/<study>/``; one that stands there as it would be written now is left alone.

    Args: format: all, html, md, csv or json. index: link to the index page. refresh_s: as in ``to_html``.
    Returns: the files, in the order written; ``manifest.json`` is the last.
    Raises: StoreError if there is no such sweep or a file cannot be written, PlanError for a format it does not have.
    """
    folder, form, stamp = out / study, (format, index, refresh_s), _stamp(store, study)
    if (there := standing(store, study, folder, stamp, form)) is not None:
        return there
    sweep = read(store, study)
    texts = {
        "md": ("report.md", to_markdown),
        "csv": ("trials.csv", to_csv),
        "json": ("results.json", lambda found: files.json_text(as_json(found))),
    }
    if format not in ("all", "html", *texts):
        raise PlanError(f"a sweep has no {format} form", where=study, hint=f"known: all, html, {', '.join(texts)}")
    written: list[Path] = []

    def save(name: str, content: bytes) -> None:
        files.save(folder / name, content)
        written.append(folder / name)

    for kind, (name, make) in texts.items():
        if format in ("all", kind):
            save(name, make(sweep).encode())
    plots = sweep_figures.plots(sweep) if format in ("all", "html") else []
    for plot in plots if format == "all" else ():
        save(f"figures/{plot.name}.svg", figures.to_svg(plot).encode())
        save(f"figures/{plot.name}.png", figures.to_png(plot))
        save(f"figures/{plot.name}.csv", figures.to_csv(plot).encode())
    if format in ("all", "html"):
        beside = [path.relative_to(folder).as_posix() for path in written]
        save("index.html", to_html(sweep, plots, beside, index=index, refresh_s=refresh_s).encode())
    made = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    content = {
        "format": RESULTS_FORMAT,
        "kind": "sweep",
        "study": study,
        "definition": sweep.content["digest"],
        "final": None if sweep.final is None else sweep.final["study"],
        "cells": [{"trial": trial.number, "state": trial.state, "fit": trial.cell} for trial in sweep.trials],
        "files": made,
    }
    save("manifest.json", files.json_text(content).encode())
    note(store, study, folder, stamp, form, written)
    return written


def _stamp(store: Store, study: str) -> str:
    """What the report of a sweep follows from, as a digest; empty while its final study is not complete."""
    path = store.study_folder(study) / FILE
    try:
        text = path.read_bytes()
        final = (read_json(path) or {}).get("final")
        return of_sweep(text, None if final is None else of_study(store, str(final["study"]), allow_missing=False))
    except (OSError, StoreError):  # there is none, or it travelled without its final study
        return ""


def watch(
    store: Store,
    out: Path,
    *,
    studies: Sequence[str],
    format: str = "all",
    every_s: float = 5.0,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Render sweeps while they run, until each is finished or stopped. say: hears a line whenever one has changed.

    Unlike a comparison, a sweep may be looked at while it runs: nothing is tested in it, and its number of trials was
    fixed beforehand.
    Returns: why sweeps have no winner, a line each. Raises: StoreError as ``write`` does.
    """
    pending, told, problems = list(dict.fromkeys(studies)), dict[str, bytes](), list[str]()
    while pending:
        for study in tuple(pending):
            text = (store.study_folder(study) / FILE).read_bytes()
            if told.get(study) == text:
                continue
            told[study] = text
            found = read(store, study, judge=False)
            ended = found.state in ("finished", "stopped")
            paths = write(store, study, out, format=format, refresh_s=None if ended else every_s)
            place = next((path for path in paths if path.suffix == ".html"), paths[0])
            say(f"{study}: {found.state}, {setting(found)}: {place}")
            if ended:
                pending.remove(study)
            if found.state == "stopped":
                problems.append(f"{study}: stopped: {found.content['stopped']}")
        if pending:
            pause(every_s)
    return problems
