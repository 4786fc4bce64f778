"""What a corruption is, and where its randomness comes from.

A *family* is one way of spoiling something (``gauss``, ``clip_drop``, ``wrong_query`` ...), registered on the
catalogue page; a ``Corruption`` is one family at one level with one draw. What it spoils (``on``) decides what its
function looks like:

=============================  ====================================================  ===================================
on                             function                                              applied
=============================  ====================================================  ===================================
``video`` ``text`` ``query``   ``(Sample, amount, Noise) -> Sample``                 raw features, before they are
                                                                                     normalised and joined
``head``                       ``(Query, values (n,), amount, Noise) -> values``     what one head hands to the other,
                                                                                     at the fact ``hook``
``label``                      ``(Query, amount, Noise) -> Query``                   the queries that a fit learns from
``handed``                     as ``head``; of moments values (A, 2)                 while a fit runs, at the hooks that
                                                                                     its feedback reads
``training``                   the parameters' names (see ``train.loop``)            while a fit runs
=============================  ====================================================  ===================================

Facts of an entry beside ``on``: ``parameter`` what an amount is, in words; ``levels`` the amounts, for plug-ins (those
of built-in families stand in ``severities.toml``); ``limits`` of an amount; ``by_encoder`` whether one encoder alone
can be spoiled; ``battery`` whether a stress test runs it unless told otherwise; ``needs`` a task without which there
is nothing to spoil; ``hook`` the name of the module that a head corruption sits on.

*Common random numbers.* A base field is drawn once for family, encoder, video or query, and draw; the level only
scales or thresholds it. So levels are nested, and every variant, seed, batch size, worker and order of families meets
the same noise. Fields that are shared between encoders (which clips are dropped) are keyed without the encoder, and a
longer field begins with the shorter one, so encoders of unequal length agree.

Scores carry ``Corruption | None``; level 0 is None, so the clean score is one and the same cell. Training-time
families are not on a score but in the ``[train]`` table of a variant: ``train.corruption`` names one and
``train.corruption_level`` its level, so a card sets them like anything else. Their draw is the fit's seed: seeds are
the unit of their tests, and arms of one seed meet the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.cards.kinds import Variant
from vlbench.corrupt.severities import LEVELS, Severities
from vlbench.data.types import Query
from vlbench.errors import CardError, DataError, suggestion
from vlbench.streams import stream

Rows = NDArray[np.float32]
Numbers = NDArray[np.float64]

INPUTS = ("video", "text", "query")  # what a corruption of inputs can be on
TRAINING = catalog.spoils_training
LEFT_OUT = " left out: "  # in a note of a study: between an arm and why a family does not reach it
NEVER = "is never passed at inference"  # said of a hook, before the reason
HOOKS = {"saliency_handed": "saliency", "spans_handed": "moments"}  # of a model, and what passes there


@dataclass(frozen=True, slots=True)
class Corruption:
    """One family at one level above 0. ``corruption`` makes one.

    draw: which repetition, from 0. encoder: the only one that is spoiled, or None for all. amount: how strong, in the
    family's own measure; infinite means all. version: of the family.
    """

    family: str
    level: int
    draw: int
    encoder: str | None
    amount: float
    version: int

    def identity(self) -> dict[str, Any]:
        """What of it decides a result: all of it."""
        return {
            "family": self.family,
            "level": self.level,
            "draw": self.draw,
            "encoder": self.encoder,
            "amount": self.amount if math.isfinite(self.amount) else "all",
            "version": self.version,
        }

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Corruption:
        """What ``identity`` gave."""
        amount = identity["amount"]
        return cls(**{**identity, "amount": math.inf if amount == "all" else float(amount)})

    @property
    def group(self) -> tuple[str, str, int]:
        """Corruptions of one group share their base fields: they are one family, encoder and draw."""
        return self.family, self.encoder or "", self.draw

    @property
    def on(self) -> str:
        """What is spoiled: ``video``, ``text``, ``query``, ``head``, ``label``, ``handed`` or ``training``."""
        return str(catalog.corruptions[self.family].facts["on"])

    def __str__(self) -> str:
        of = f" of {self.encoder}" if self.encoder else ""
        return f"{self.family}{of}, level {self.level}, draw {self.draw}"


def corruption(
    family: str, level: int, *, draw: int = 0, encoder: str | None = None, severities: Severities | None = None
) -> Corruption | None:
    """One family at one level, or None for level 0, which is clean.

    Raises: CardError for an unknown family, a level or draw that cannot be, or an encoder where none can be named.
    """
    entry = catalog.corruptions[family]
    if type(level) is not int or level not in LEVELS:
        raise CardError(f"a level lies between 0 and 5 (got {level})", where=family, hint="0 is clean, 5 is the worst")
    if draw < 0:
        raise CardError(f"draws are counted from 0 (got {draw})", where=family)
    if encoder is not None and not entry.facts.get("by_encoder"):
        raise CardError(f"{family} cannot be narrowed to one encoder (got {encoder})")
    if level == 0:
        return None
    amount = (severities or Severities.read()).amount(family, level)
    return Corruption(family, level, draw, encoder, amount, entry.version)


def training_corruption(recipe: Mapping[str, Any], *, draw: int) -> Corruption | None:
    """What the ``[train]`` table spoils, or None. Raises CardError for a family that is not of training."""
    family, level = str(recipe.get("corruption", "none")), int(recipe.get("corruption_level", 0))
    if family == "none":
        if level:
            raise CardError(f"train.corruption_level = {level} without train.corruption")
        return None
    if catalog.corruptions[family].facts["on"] not in TRAINING:
        known = [entry.name for entry in catalog.corruptions.entries() if entry.facts["on"] in TRAINING]
        raise CardError(
            f'train.corruption = "{family}" acts on finished fits, not on training', hint=f"known: {', '.join(known)}"
        )
    return corruption(family, level, draw=draw)


def check(family: str, encoder: str | None, variant: Variant, tasks: Sequence[str]) -> None:
    """Raises CardError if a family has nothing to spoil in this variant on a dataset with these tasks.

    A head corruption is refused where the catalogue knows that nothing is handed over at inference, one of training
    where nothing is handed over then.
    """
    facts = catalog.corruptions[family].facts
    encoders = _encoders(str(facts["on"]), variant)
    if encoder is not None and encoder not in encoders:
        raise CardError(
            f'{variant.name} has no {facts["on"]} encoder "{encoder}" that {family} could spoil',
            hint=suggestion(encoder, encoders),
        )
    need = facts.get("needs")
    if need is not None and need not in tasks:
        has = ", ".join(sorted(tasks)) or "none"
        what = "annotated saliency" if need == "hd" else "moments"
        instead = facts.get("instead")
        hint = f"{instead} spoils labels that are made from moments, too" if instead else None
        raise CardError(f"{family} needs {what}, which the dataset does not have (its tasks: {has})", hint=hint)
    if facts["on"] == "handed" and not training_hooks(variant):
        raise unreached_in_training(variant, family)
    hook = facts.get("hook")
    use = variant.slots["feedback"].name
    if hook is not None and "/" not in use and hook not in catalog.model_slots["feedback"][use].facts.get("reads", ()):
        raise unreached(variant, family, str(hook))


def unreached(variant: Variant, family: str, hook: str) -> CardError:
    """The error of a head corruption whose hook no inference passes, with the reason."""
    use = variant.slots["feedback"].name
    facts = catalog.model_slots["feedback"][use].facts
    guides = [name for name, entry in _feedbacks().items() if hook in entry.facts.get("reads", ())]
    if "saliency" in facts.get("gives", ()):
        why = (
            f"its coupling ({use}) runs from moments to saliency, in the training loss only, so noise on predicted "
            "saliency at inference cannot change moment retrieval"
        )
    else:
        why = f"its feedback ({use}) hands nothing from one head to the other at inference"
    return CardError(
        f'{family} does not reach {variant.name}: the hook "{hook}" {NEVER}; {why}',
        hint=f"feedback that passes it: {', '.join(guides) or 'none'}",
    )


def training_hooks(variant: Variant) -> tuple[str, ...]:
    """The hooks where a head hands something to the other while this variant is trained, and it is read.

    What is read into a saliency that no loss reads is not read. Of a plug-in's feedback that does not say: all.
    """
    use = variant.slots["feedback"].name
    facts = catalog.model_slots["feedback"][use].facts
    if "/" in use and not {"reads", "reads_in_training"} & set(facts):
        return tuple(HOOKS)
    coupled = any(variant.losses[loss].name != "none" for loss in catalog.loss_needs if loss in variant.losses)
    return (*facts.get("reads", ()), *(facts.get("reads_in_training", ()) if coupled else ()))


def unreached_in_training(variant: Variant, family: str) -> CardError:
    """The error of noise on what is handed over in training where nothing is, with the reason."""
    use = variant.slots["feedback"].name
    why = f"its feedback ({use}) hands nothing from one head to the other"
    if catalog.model_slots["feedback"][use].facts.get("reads_in_training"):
        why = f"its feedback ({use}) hands moments to a saliency that no loss reads"
    passes = [name for name, entry in _feedbacks().items() if {"reads", "reads_in_training"} & set(entry.facts)]
    return CardError(
        f"{family} does not reach {variant.name}: {why}, so training under it is training without it",
        hint=f"feedback that hands something over: {', '.join(passes) or 'none'}",
    )


def _feedbacks() -> dict[str, Any]:
    return {entry.name: entry for entry in catalog.model_slots["feedback"].entries()}


def _encoders(on: str, variant: Variant) -> tuple[str, ...]:
    if on == "video":
        return variant.features.video
    return variant.features.text if on in ("text", "query") else ()


# --- what a function is given -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One query's raw inputs, before they are normalised and joined.

    clips: encoder -> (n, d), n the same for all. words: encoder -> (m, d), m >= 1 the same for all. touched: the
    encoders that may be changed.
    """

    query: Query
    clips: Mapping[str, Rows]
    words: Mapping[str, Rows]
    touched: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of clips."""
        return len(next(iter(self.clips.values())))

    @property
    def m(self) -> int:
        """Number of tokens."""
        return len(next(iter(self.words.values())))


@dataclass(frozen=True, slots=True)
class Moments:
    """Of every channel over the training clips: mean and standard deviation, (d,)."""

    mean: Rows
    sd: Rows


class Others(Protocol):
    """The other queries of the split, to take words from."""

    def strangers(self, query: Query) -> Sequence[int] | NDArray[np.integer]:
        """Places of all queries about another source video, in an order that hangs on qids alone."""

    def words(self, place: int) -> Mapping[str, Rows]:
        """Raw words of the query at a place, by encoder, cut to the shortest encoder."""


@dataclass(slots=True)
class Noise:
    """The base fields of one family and draw, each drawn once and kept until ``forget``.

    moments: encoder -> its channels' moments. others: the other queries; None where there are none to be had. apart:
    names that tell these fields from others of the same family and draw, such as the epoch of a fit.
    """

    family: str
    draw: int
    moments: Callable[[str], Moments] | None = None
    others: Others | None = None
    apart: tuple[str | int, ...] = ()
    _kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def of_video(self, query: Query, *names: str | int) -> np.random.Generator:
        """The stream of a video, shared by its queries."""
        return stream(self.draw, "corrupt", self.family, *self.apart, *names, "video", query.vid)

    def of_query(self, query: Query, *names: str | int) -> np.random.Generator:
        """The stream of a query."""
        return stream(self.draw, "corrupt", self.family, *self.apart, *names, "query", query.qid)

    def keep(self, key: tuple[Any, ...], draw: Callable[[], Any]) -> Any:
        """What ``draw`` gives, drawn once for this key: the levels of a family ask for the same fields."""
        if key not in self._kept:
            self._kept[key] = draw()
        return self._kept[key]

    def forget(self) -> None:
        """Drop the fields that were drawn; asking again draws the same ones."""
        self._kept.clear()

    def per_clip(self, sample: Sample, *names: str | int) -> Numbers:
        """(n,) uniform in [0, 1), one per clip of the video."""
        key = (*names, "clip", sample.query.vid, sample.n)
        return np.asarray(self.keep(key, lambda: self.of_video(sample.query, *names).random(sample.n)))

    def per_token(self, sample: Sample, *names: str | int) -> Numbers:
        """(m,) uniform in [0, 1), one per token of the query."""
        key = (*names, "token", sample.query.qid, sample.m)
        return np.asarray(self.keep(key, lambda: self.of_query(sample.query, *names).random(sample.m)))

    def per_video(self, query: Query, *names: str | int) -> float:
        """One uniform number in [0, 1) of the video."""
        return float(self.of_video(query, *names).random())

    def per_query(self, query: Query, *names: str | int) -> float:
        """One uniform number in [0, 1) of the query."""
        return float(self.of_query(query, *names).random())

    def strangers(self, query: Query) -> Sequence[int] | NDArray[np.integer]:
        """Places of the queries about other source videos. Raises DataError if there is none."""
        found = self.others.strangers(query) if self.others is not None else ()
        if not len(found):
            raise DataError(f"{self.family} takes words from queries about other videos, and there are none")
        return found


def spoil(sample: Sample, corruption: Corruption, noise: Noise) -> Sample:
    """The sample under a corruption of inputs."""
    function: Callable[[Sample, float, Noise], Sample] = catalog.corruptions[corruption.family].load()
    return function(sample, corruption.amount, noise)


def touched(corruption: Corruption, video: Sequence[str], text: Sequence[str]) -> tuple[str, ...]:
    """The encoders that a corruption may change, of those that a variant reads."""
    all_ = tuple(video) if corruption.on == "video" else tuple(text)
    return all_ if corruption.encoder is None else (corruption.encoder,)
