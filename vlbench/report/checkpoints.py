"""Which epoch a number is about: who chose it, and how many looks at the reporting split the choice has seen.

The rules are those of ``vlbench.runs.looks``. ``best`` is the maximum over all looks: it is shown with the word
"optimistic" and never judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlbench.report import words
from vlbench.report.frame import Frame

TITLES = {"selected": "selected", "last": "last", "crossfit": "cross-fitted", "best": "best, optimistic"}


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the epochs behind a checkpoint's numbers were chosen.

    looks: the fewest and the most epochs per run whose scores on the reporting split the choice has seen; 1 where that
    split had no part in it. label: a clause without a full stop. optimistic: whether the reported queries chose.
    """

    rule: str
    looks: tuple[int, int]
    label: str
    optimistic: bool

    @property
    def title(self) -> str:
        """The rule as tables name it."""
        return TITLES.get(self.rule, self.rule) if self.optimistic or self.rule != "best" else "best"

    @property
    def span(self) -> str:
        """The number of looks: ``4``, or ``3 to 5`` where runs differ."""
        low, high = self.looks
        return f"{low}" if low == high else f"{low} to {high}"

    def as_json(self) -> dict[str, Any]:
        """For ``results.json`` and the manifest."""
        return {"label": self.label, "looks": list(self.looks), "optimistic": self.optimistic}


def protocol(frame: Frame, rule: str) -> Protocol:
    """The protocol of one of the frame's rules."""
    runs = [run for arm in frame.arms for run in arm.runs]
    chosen = [run.records["score"].get("checkpoints", {}).get(rule, {}) for run in runs]
    counts = [int(entry.get("looks", 1)) for entry in chosen]
    looks = (min(counts), max(counts))
    found = Protocol(rule, looks, "", rule == "best" and looks[1] > 1)
    times = "1 look" if looks == (1, 1) else f"{found.span} looks"
    tuned = sorted({len(run.curve.tuned) for run in runs} - {0})
    among = f" among {tuned[0] if len(tuned) == 1 else f'{tuned[0]} to {tuned[-1]}'} looked at there" if tuned else ""
    label = {
        "selected": f"the best epoch on the tune split{among}; one look at the reporting split",
        "last": "the last epoch, without a choice; one look at the reporting split",
        "crossfit": "every query by the epoch that the other folds of source videos choose, "
        f"{times} at the reporting split",
        "best": f"the highest of {times} at the reporting split: optimistic, not judged"
        if found.optimistic
        else "one epoch per run, so nothing was chosen",
    }
    return Protocol(rule, looks, label[rule], found.optimistic)


def protocols(frame: Frame) -> dict[str, Protocol]:
    """Every rule that all runs were scored by, in the order of ``vlbench.runs.cells.SCORED``."""
    return {rule: protocol(frame, rule) for rule in frame.rules}


def why_fewer(frame: Frame) -> str | None:
    """Why cross-fitted and best scores are not shown, or None where they are."""
    if "crossfit" in frame.rules:
        return None
    causes: dict[str, int] = {}
    runs = [run for arm in frame.arms for run in arm.runs]
    for run in runs:
        entry = run.records["score"].get("checkpoints", {}).get("crossfit")
        if entry is None:
            cause = "scored at the selected and the last epoch only"
        elif "missing" in entry:
            cause = str(entry["missing"])
        else:
            continue
        causes[cause] = causes.get(cause, 0) + 1
    return "; ".join(f"{count} of {words.counted(len(runs), 'run')}: {cause}" for cause, count in causes.items())


def ledger(frame: Frame) -> str | None:
    """What the store's ledger says about this study's reporting split, or None where it has no entry."""
    found = frame.ledger
    if found is None:
        return None
    own = sum(len(run.records["score"].get("looked_at", ())) for arm in frame.arms for run in arm.runs)
    text = (
        f"The store's ledger counts {words.counted(found.looks, 'look')} at {found.dataset} ({found.split}), a look "
        f"being one epoch's weights scored on it: {words.counted(found.scorings, 'scoring')} of "
        f"{words.counted(found.fits, 'fit')} of {words.counted(found.variants, 'variant')} since {found.since[:10]}"
    )
    return f"{text}. {own} of these looks are behind this report." if own else f"{text}."
