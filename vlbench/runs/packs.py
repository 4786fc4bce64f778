"""Fits of one form, run together: the claims, logs, events and records of each, around one computation.

A fit that cannot stay in its pack is run alone, from its last checkpoint, as if it had never been in one.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlbench.errors import VlbenchError
from vlbench.runs.bundles import MOST, form, together
from vlbench.runs.cells import Fit
from vlbench.runs.store import EventLog, Store
from vlbench.runs.work import (
    Options,
    conclude,
    device_of,
    fit_record,
    logged,
    open_events,
    open_split,
    recorded,
    run_alone,
)

if TYPE_CHECKING:
    from vlbench.train.loop import Course
    from vlbench.train.pack import Ended


def run_packs(fits: Sequence[Fit], store: Store, options: Options, due: Collection[str]) -> set[str]:
    """Run fits that have others of their form beside them; returns the ids of those that were run, however they ended.

    due: fits that are going to be scored.
    """
    if options.pack is None and not options.device.startswith("cuda"):
        return set()  # on a CPU a pack is slower than its members one after another
    missing = [fit for fit in fits if store.record(fit.id) is None]
    tried: set[str] = set()
    for group in together([form(fit) for fit in missing], missing, options.pack or MOST):
        if len(group) < 2:
            continue
        with contextlib.ExitStack() as claims:
            held = []
            for fit in group:
                folder = store.prepare(fit)
                if claims.enter_context(store.claim(fit.id)) and store.record(fit.id) is None:
                    held.append(_Member(fit, folder, options, keep=fit.id in due))
            _run(held, store, options)
            tried |= {member.cell.id for member in held}
    return tried


def _run(members: Sequence[_Member], store: Store, options: Options) -> None:
    """Train members whose claims this process holds, and those that left alone after the others."""
    left = list(members)
    if len(members) > 1:
        left = _run_together(members, store, options)
    for member in left:
        run_alone(member.cell, member.folder, store, options, member.keep)


def _run_together(members: Sequence[_Member], store: Store, options: Options) -> list[_Member]:
    """Train members as packs; returns those that are to go on alone."""
    from vlbench.train.pack import Left, train

    left: list[_Member] = []
    by_id = {member.cell.id: member for member in members}
    with contextlib.ExitStack() as open_:
        for member in members:
            member.log = open_.enter_context(logged(member.cell, member.folder))
            open_.callback(member.close)
            member.log.info("start fit %s on %s, in a pack of %d", member.cell.id, options.device, len(members))
        log = logging.getLogger("vlbench.run")
        open_.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, category, *_: log.warning("%s: %s", category.__name__, message)
        try:
            first = members[0].cell
            splits = tuple(open_split(first, role, first.variant.features, options) for role in ROLES)
        except VlbenchError:
            return list(members)  # each of them says so
        for member in members:
            member.splits = splits
        opened = {member.cell.id: member.open for member in members}
        for ended in train(opened, device=device_of(options.device), until=options.until, most=options.pack):
            member = by_id[ended.name]
            if isinstance(ended.outcome, Left):
                member.log.info("left its pack: %s; it goes on alone", ended.outcome.reason)
                left.append(member)
            else:
                _conclude(member, ended, store, options)
            member.close()
    return left


def _conclude(member: _Member, ended: Ended, store: Store, options: Options) -> None:
    from vlbench.train.loop import FitResult

    with recorded(member.cell, store, options, member.log):
        if isinstance(ended.outcome, Exception):
            raise ended.outcome
        done = None
        if isinstance(ended.outcome, FitResult):
            sizes = dict(zip(ROLES, map(len, member.splits), strict=True))
            wall = time.perf_counter() - member.begun
            record, cost = fit_record(member.cell, member.folder, ended.outcome, sizes, wall)
            done = record, {**cost, "pack": {"size": len(ended.beside), "members": list(ended.beside)}}
        conclude(member.cell, member.folder, store, options, member.log, done)


ROLES = ("fit", "tune")


@dataclass(slots=True, eq=False)
class _Member:
    """One fit of a pack: its files, and what is open of them."""

    cell: Fit
    folder: Path
    options: Options
    keep: bool
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("vlbench.run"))
    splits: tuple[Any, ...] = ()
    events: EventLog | None = None
    begun: float = 0.0

    def open(self) -> Course:
        """The fit, where its checkpoint is."""
        from vlbench.train.loop import Course

        self.close()
        self.begun = time.perf_counter()
        self.events = open_events(self.folder)
        return Course(
            self.cell.variant,
            *self.splits,
            seed=self.cell.seed,
            device=device_of(self.options.device),
            folder=self.folder,
            log=self.events.write,
            keep=self.keep,
            share=self.options.share,
        )

    def close(self) -> None:
        """Close the events; opening the fit again opens them again."""
        if self.events is not None:
            self.events.close()
            self.events = None
