"""Which published numbers cannot be, and which are odd: rules over rows of printed tables.

*Impossible*: no predictions on any annotations give such a row, whatever the model, beyond what printing with few
decimals moves. *Suspicious*: possible, but more often a slip or a test number that is none. Rules read values in
percent; each finding says which rule, where, and why.

Bounds that the rules rest on. Recall and average precision at one IoU threshold never rise with the threshold, so a
value at a threshold in between lies between its neighbours; the mean over ten thresholds, 0.5 to 0.95, and the mean
IoU, the integral of recall over all thresholds, lie between the sums of these bounds. Highlight AP gives a (query,
annotator) pair without a relevant clip 0, so its mean cannot exceed the share of pairs that have one.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, pairwise
from typing import Literal

from vlbench import catalog
from vlbench.cards.published import NOT_STATED, PublishedRow
from vlbench.errors import suggestion

Severity = Literal["impossible", "suspicious"]

MAP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
DOMAINS = {
    "tvsum": ("hd-top5-map", ("VT", "VU", "GA", "MS", "PK", "PR", "FM", "BK", "BT", "DS")),
    "youtube": ("hd-ap", ("dog", "gymnastics", "parkour", "skating", "skiing", "surfing")),
}
ONE_MOMENT = ("charades", "tacos", "activitynet")  # every query has one annotated moment

# The highest value that any prediction can reach, in percent. QVHighlights: the share of (query, annotator) pairs with
# a relevant clip at the level, and of queries where any annotator has one, counted in the released val annotations.
CEILINGS: dict[str, dict[str, float]] = {
    "qvhighlights": {
        "hd-map": 70.301,
        "hd-map-good": 94.172,
        "hd-map-fair": 98.903,
        "hd-hit1": 97.742,
        "hd-hit1-good": 99.935,
        "hd-hit1-fair": 100.0,
    },
}
CEILING_SPLIT = "val"
OTHER_SPLIT_SLACK = 2.0  # points: train lies 0.6 above val, and test is not released
# A search over lists of top-five clips reaches 91 on the ten videos that TVSum is scored on; ranking by the annotators'
# mean reaches 84. Single domains go higher.
REACHED: dict[tuple[str, str], float] = {("tvsum", "hd-top5-map"): 91.0}

SAME_DECIMALS = 2  # numbers with fewer decimals are equal by chance too often
OUT_OF_LINE = 6.0  # robust standard deviations
OUT_OF_LINE_LEAST = 0.1  # of the possible range
OUT_OF_LINE_ROWS = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd. ``known``: the row's own acknowledgement, None where it has none."""

    rule: str
    severity: Severity
    where: str
    row: str
    what: str
    why: str
    known: str | None = None


@dataclass(frozen=True, slots=True)
class _Problem:
    what: str
    key: str = "values"  # whose line the finding is placed at


_About = tuple[PublishedRow, _Problem]


def check(rows: Sequence[PublishedRow]) -> list[Finding]:
    """Every finding about the rows, in the order of the rows; a ``known`` that nothing matches is a finding too."""
    sound = [_sound(row) for row in rows]  # a value that cannot be is one finding, not one of every rule
    met: list[tuple[int, Finding]] = []
    for rule in _ROW_RULES:
        for number, row in enumerate(rows if rule.reads_all else sound):
            met += [(number, _finding(rule, problem, row)) for problem in rule.check(row)]
    numbers = {id(row): number for number, row in enumerate(sound)}
    for rule_of_all in _SET_RULES:
        for row, problem in rule_of_all.check(sound):
            met.append((numbers[id(row)], _finding(rule_of_all, problem, row)))
    kinds = {(number, finding.rule) for number, finding in met}
    for number, row in enumerate(rows):
        for name in row.known:
            if (number, name) not in kinds:
                hint = "" if name in RULES else f"; {suggestion(name, RULES)}"
                what = f'known names "{name}", but nothing of this kind is found here{hint}'
                met.append((number, _finding(_STALE, _Problem(what, "known"), row)))
    return [finding for _, finding in sorted(met, key=lambda pair: pair[0])]


def _sound(row: PublishedRow) -> PublishedRow:
    values = {name: value for name, value in row.values.items() if 0 <= value <= 100}
    return replace(row, values=values, domains={name: v for name, v in row.domains.items() if 0 <= v <= 100})


def _finding(rule: _Rule | _SetRule, problem: _Problem, row: PublishedRow) -> Finding:
    where, known = row.at(problem.key), row.known.get(rule.name)
    return Finding(rule.name, rule.severity, where, _title(row), problem.what, rule.why, known)


def _title(row: PublishedRow) -> str:
    """``VideoLights-B without FRA (qvhighlights val, arXiv v1, table V row 4)``."""
    return f"{row.name} ({row.dataset} {row.split}, {row.place})"


# --- rules about one row ----------------------------------------------------------------------------------------------


def _unknown_metric(row: PublishedRow) -> Iterator[_Problem]:
    for name in row.values:
        if name not in catalog.metrics:
            yield _Problem(f'"{name}" is not a metric; {suggestion(name, catalog.metrics)}')


def _range(row: PublishedRow) -> Iterator[_Problem]:
    for name, value in {**row.values, **row.domains}.items():
        if not 0 <= value <= 100:
            yield _Problem(f"{name} is {value:g}", "values" if name in row.values else "domains")


def _fractions(row: PublishedRow) -> Iterator[_Problem]:
    values = [*row.values.values(), *row.domains.values()]
    if values and all(0 <= value <= 1 for value in values) and any(values):
        yield _Problem(f"the largest value is {max(values):g}")


def _thresholds(row: PublishedRow) -> Iterator[_Problem]:
    for prefix in ("mr-r1", "mr-r5", "mr-map"):
        series = sorted(_at(row.values, prefix).items())
        for (loose, above), (strict, below) in combinations(series, 2):
            if below > above:
                yield _Problem(f"{prefix}@{strict:g} {below:g} is above {prefix}@{loose:g} {above:g}")


def _nested(row: PublishedRow) -> Iterator[_Problem]:
    pairs = [(f"mr-r1@{iou:g}", f"mr-r5@{iou:g}") for iou in _at(row.values, "mr-r5")]
    pairs += [("hd-hit1", "hd-hit1-good"), ("hd-hit1-good", "hd-hit1-fair"), ("hd-hit1", "hd-hit1-fair")]
    for inner, outer in pairs:
        if inner in row.values and outer in row.values and row.values[inner] > row.values[outer]:
            yield _Problem(f"{inner} {row.values[inner]:g} is above {outer} {row.values[outer]:g}")


def _map_mean(row: PublishedRow) -> Iterator[_Problem]:
    yield from _within(row, "mr-map", _at(row.values, "mr-map"), map_bounds, "mAP")


def _miou(row: PublishedRow) -> Iterator[_Problem]:
    yield from _within(row, "mr-miou", _at(row.values, "mr-r1"), miou_bounds, "R1")


def _within(
    row: PublishedRow,
    name: str,
    known: Mapping[float, float],
    bounds: Callable[[Mapping[float, float]], tuple[float, float]],
    title: str,
) -> Iterator[_Problem]:
    """A mean against what the values at its thresholds leave room for, as printed."""
    mean = row.values.get(name)
    if mean is None or not known or not _falling(known):
        return
    low, high = bounds(known)
    slack = _half_unit(mean) + max(map(_half_unit, known.values()))
    if not low - slack <= mean <= high + slack:
        given = ", ".join(f"{title}@{iou:g} {value:g}" for iou, value in sorted(known.items()))
        yield _Problem(f"{name} {mean:g} is outside {low:.2f} to {high:.2f}, what {given} leaves room for")


def _ceiling(row: PublishedRow) -> Iterator[_Problem]:
    slack = 0.0 if row.split == CEILING_SPLIT else OTHER_SPLIT_SLACK
    for name, most in CEILINGS.get(row.dataset, {}).items():
        value = row.values.get(name)
        if value is not None and value > most + slack + _half_unit(value):
            about = f"{most:.1f}" if not slack else f"about {most:.0f}"
            yield _Problem(f"{name} {value:g} is above {about}, what perfect predictions reach on {row.dataset}")


def _beyond_reach(row: PublishedRow) -> Iterator[_Problem]:
    for (dataset, name), most in REACHED.items():
        value = row.values.get(name)
        if row.dataset == dataset and value is not None and value > most:
            yield _Problem(f"{name} {value:g} is above {most:g}, the best that a search for it found")


def _domain_mean(row: PublishedRow) -> Iterator[_Problem]:
    if not row.domains or row.dataset not in DOMAINS:
        return
    metric, names = DOMAINS[row.dataset]
    for name in row.domains:
        if name not in names:
            yield _Problem(f'"{name}" is not a domain of {row.dataset}; {suggestion(name, names)}', "domains")
    given = [value for name, value in row.domains.items() if name in names]
    mean = row.values.get(metric)
    if mean is None or not given:
        return
    missing = len(names) - len(given)
    low, high = sum(given) / len(names), (sum(given) + 100 * missing) / len(names)
    finest = max(1, *map(_decimals, given))
    slack = 0.5 * 10.0**-finest + 0.5 * 10.0 ** -max(finest, _decimals(mean)) + 1e-9
    if not low - slack <= mean <= high + slack:
        shown = f"{low:.2f}" if not missing else f"between {low:.2f} and {high:.2f}"
        yield _Problem(f"{metric} is {mean:g}, but the mean of the domains is {shown}", "domains")


def _equal_columns(row: PublishedRow) -> Iterator[_Problem]:
    for (first, a), (second, b) in combinations(row.values.items(), 2):
        if a == b and 0 < a < 100 and _decimals(a) >= SAME_DECIMALS:
            yield _Problem(f"{first} and {second} are both {a:g}")


def _single_moment(row: PublishedRow) -> Iterator[_Problem]:
    if row.dataset not in ONE_MOMENT:
        return
    for iou, recall in _at(row.values, "mr-r1").items():
        precision = row.values.get(f"mr-map@{iou:g}")
        if precision is not None and recall > precision + _half_unit(recall) + _half_unit(precision):
            yield _Problem(f"mr-r1@{iou:g} {recall:g} is above mr-map@{iou:g} {precision:g}")


# --- rules about several rows -----------------------------------------------------------------------------------------


def _chosen_on_reported(rows: Sequence[PublishedRow]) -> Iterator[_About]:
    odd = [row for row in rows if row.chosen_on != NOT_STATED and row.chosen_on == row.split]
    for (file, split), group in groupby(odd, key=lambda row: (row.where.rpartition(":")[0], row.split)):
        first, *more = group
        others = f" (and {len(more)} more rows of {file.rpartition('/')[2]})" if more else ""
        rule = f", by this rule: {first.checkpoint}" if first.checkpoint != NOT_STATED else ""
        yield (
            first,
            _Problem(f"the checkpoint was chosen on {split}, the split of these numbers{others}{rule}", "chosen_on"),
        )


def _disagree(rows: Sequence[PublishedRow]) -> Iterator[_About]:
    for one, other in _pairs(rows, lambda row: (row.method, row.config, row.dataset, row.split)):
        if NOT_STATED not in (one.features, other.features) and one.features != other.features:
            continue
        if one.source != other.source and "rerun" in (one.kind, other.kind):
            continue  # trained again: it should differ
        if one.source == other.source and one.features != other.features:
            continue  # one paper's rows with and without a stated encoder may well be two models
        shared = [name for name in one.values if name in other.values]
        apart = [name for name in shared if not _same_printed(one.values[name], other.values[name])]
        if apart:
            said = ", ".join(f"{name} {one.values[name]:g} and {other.values[name]:g}" for name in apart)
            yield other, _Problem(f"{said}: here and in {_short(one, other)}")


def _split_as_other(rows: Sequence[PublishedRow]) -> Iterator[_About]:
    for one, other in _pairs(rows, lambda row: (row.dataset,)):
        if one.split == other.split:
            continue
        shared = [name for name in one.values if name in other.values]
        equal = [name for name in shared if one.values[name] == other.values[name]]
        if len(shared) >= 2 and len(equal) == len(shared):
            what = f"all {len(shared)} values are those of {one.split} in {_short(one, other)}"
            yield other, _Problem(what, "split")
        elif (one.method, one.config) == (other.method, other.config):
            fine = [name for name in equal if _decimals(one.values[name]) >= SAME_DECIMALS]
            if fine:
                said = ", ".join(f"{name} {one.values[name]:g}" for name in fine)
                yield other, _Problem(f"{said} stands under {one.split} too, in {_short(one, other)}")


def _copied(rows: Sequence[PublishedRow]) -> Iterator[_About]:
    """Rows of one source with other features and equal values; a lone column counts by how many methods repeat it."""
    columns: dict[tuple[str, ...], list[tuple[bool, PublishedRow, PublishedRow]]] = {}
    for one, other in _pairs(rows, lambda row: (row.source, row.dataset, row.split, row.method, row.config)):
        if one.features == other.features or NOT_STATED in (one.features, other.features):
            continue
        shared = [name for name in one.values if name in other.values]
        equal = bool(shared) and all(one.values[name] == other.values[name] for name in shared)
        if equal and len(shared) >= 2:
            what = f"all {len(shared)} values are those of {one.features} in {one.where.rpartition('/')[2]}"
            yield other, _Problem(what)
        elif shared:
            key = (one.source, one.dataset, one.split, one.features, other.features)
            columns.setdefault(key, []).append((equal, one, other))
    for (_, _, _, features, others), pairs in columns.items():
        same = [(one, other) for equal, one, other in pairs if equal]
        if len(same) >= 3 and 2 * len(same) > len(pairs):
            what = f"{len(same)} of {len(pairs)} methods have one value with {others} and with {features}"
            yield same[0][1], _Problem(what)


def _out_of_line(rows: Sequence[PublishedRow]) -> Iterator[_About]:
    """Where mr-map stands between its bounds, against the other rows of the same source and split."""
    groups: dict[tuple[str, str, str], list[tuple[float, PublishedRow]]] = {}
    for row in rows:
        known, mean = _at(row.values, "mr-map"), row.values.get("mr-map")
        if mean is None or not {0.5, 0.75} <= known.keys() or not _falling(known):
            continue
        low, high = map_bounds(known)
        if high > low:
            groups.setdefault((row.source, row.dataset, row.split), []).append(((mean - low) / (high - low), row))
    for group in groups.values():
        places = [place for place, _ in group]
        if len(places) < OUT_OF_LINE_ROWS:
            continue
        centre = statistics.median(places)
        scale = 1.4826 * statistics.median(abs(place - centre) for place in places)
        for place, row in group:
            if abs(place - centre) > max(OUT_OF_LINE * scale, OUT_OF_LINE_LEAST):
                a, b = row.values["mr-map@0.5"], row.values["mr-map@0.75"]
                likely = map_bounds(_at(row.values, "mr-map"))
                expected = likely[0] + centre * (likely[1] - likely[0])
                what = f"mr-map {row.values['mr-map']:g} beside mAP@0.5 {a:g} and mAP@0.75 {b:g}; "
                yield row, _Problem(what + f"its {len(places) - 1} neighbours suggest about {expected:.1f}")


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    severity: Severity
    why: str
    check: Callable[[PublishedRow], Iterator[_Problem]]
    reads_all: bool = False  # values out of range too


@dataclass(frozen=True, slots=True)
class _SetRule:
    name: str
    severity: Severity
    why: str
    check: Callable[[Sequence[PublishedRow]], Iterator[_About]]


_ROW_RULES = (
    _Rule("unknown-metric", "impossible", "values stand under the names of the catalogue", _unknown_metric, True),
    _Rule("range", "impossible", "every metric lies between 0 and 100 percent", _range, True),
    _Rule("fractions", "suspicious", "values are in percent", _fractions),
    _Rule("thresholds", "impossible", "what overlaps by the stricter IoU overlaps by the looser one", _thresholds),
    _Rule("nested", "impossible", "every hit of the one counts for the other", _nested),
    _Rule("map-mean", "impossible", "mAP is the mean over ten thresholds, and AP never rises with them", _map_mean),
    _Rule("miou", "impossible", "the mean IoU is the area under recall by threshold", _miou),
    _Rule("ceiling", "impossible", "queries without a relevant clip score 0 whatever is predicted", _ceiling),
    _Rule("beyond-reach", "suspicious", "no ranking is known that does better", _beyond_reach),
    _Rule("domain-mean", "impossible", "the printed mean is that of its domains", _domain_mean),
    _Rule("equal-columns", "suspicious", "two metrics seldom agree to two decimals: one may be copied", _equal_columns),
    _Rule(
        "single-moment",
        "suspicious",
        "with one moment per query, a first window that hits gives an AP of 1: windows may be listed out of order",
        _single_moment,
    ),
)
_SET_RULES = (
    _SetRule(
        "chosen-on-reported", "suspicious", "the best of many looks at a split is above its mean", _chosen_on_reported
    ),
    _SetRule("disagree", "suspicious", "one method, split and encoders have one published value", _disagree),
    _SetRule(
        "split-as-other",
        "suspicious",
        "two sets of videos do not give one number: one may be mislabelled",
        _split_as_other,
    ),
    _SetRule("copied", "suspicious", "other encoders do not give the same numbers: a row may be copied", _copied),
    _SetRule("out-of-line", "suspicious", "mAP follows from its thresholds alike in all rows", _out_of_line),
)
_STALE = _Rule(
    "stale", "suspicious", "an acknowledgement that hides nothing hides the next mistake", lambda row: iter(())
)
RULES: Mapping[str, str] = {rule.name: rule.why for rule in (*_ROW_RULES, *_SET_RULES, _STALE)}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def map_bounds(known: Mapping[float, float]) -> tuple[float, float]:
    """The least and the greatest mean over the ten thresholds, given AP at some of them. Percent.

    Between two known thresholds AP lies between their values; beyond the last it can fall to 0, before the first rise
    to 100.
    """
    lows, highs = [], []
    for iou in MAP_THRESHOLDS:
        lows.append(max((value for at, value in known.items() if at >= iou), default=0.0))
        highs.append(min((value for at, value in known.items() if at <= iou), default=100.0))
    return math.fsum(lows) / len(lows), math.fsum(highs) / len(highs)


def miou_bounds(known: Mapping[float, float]) -> tuple[float, float]:
    """The least and the greatest mean IoU, given recall at some thresholds in (0, 1]. Percent."""
    borders = [0.0, *sorted(known), 1.0]
    values = [100.0, *(known[iou] for iou in sorted(known)), 0.0]
    widths = [end - start for start, end in pairwise(borders)]
    low = math.fsum(width * value for width, value in zip(widths, values[1:], strict=True))
    high = math.fsum(width * value for width, value in zip(widths, values[:-1], strict=True))
    return low, high


def _at(values: Mapping[str, float], prefix: str) -> dict[float, float]:
    """The values of the metrics ``prefix@threshold`` by threshold."""
    found = {}
    for name, value in values.items():
        if (match := re.fullmatch(rf"{re.escape(prefix)}@(0?\.\d+|1(?:\.0)?)", name)) and math.isfinite(value):
            found[float(match[1])] = value
    return found


def _falling(known: Mapping[float, float]) -> bool:
    """Whether values never rise with the threshold; where they do, that is the finding, and no bound holds."""
    values = [known[iou] for iou in sorted(known)]
    return values == sorted(values, reverse=True)


def _decimals(value: float) -> int:
    """Decimals that a value is printed with, at least: 63.10 is read as 63.1, which only loosens a rule."""
    return len(repr(float(value)).partition(".")[2].rstrip("0")) if math.isfinite(value) else 0


def _half_unit(value: float) -> float:
    """Half a unit of the last decimal that is printed; one decimal is the least that tables have."""
    return 0.5 * 10.0 ** -max(_decimals(value), 1)


def _same_printed(one: float, other: float) -> bool:
    """Whether the two may be one number, printed with few decimals and with more."""
    return abs(one - other) <= max(_half_unit(one), _half_unit(other)) + 1e-9


def _pairs(
    rows: Sequence[PublishedRow], key: Callable[[PublishedRow], tuple[str, ...]]
) -> Iterator[tuple[PublishedRow, PublishedRow]]:
    """Every pair of rows with one key, earlier row first."""
    groups: dict[tuple[str, ...], list[PublishedRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    for group in groups.values():
        yield from combinations(group, 2)


def _short(row: PublishedRow, beside: PublishedRow) -> str:
    """A row as another row's finding names it."""
    return row.table if row.source == beside.source and row.table else row.place
