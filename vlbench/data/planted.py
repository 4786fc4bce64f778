"""``planted``: a synthetic benchmark inside the package, whose answers are known because they were put there.

*What is planted.* A query names an object and an action ("a potter is juggling ..."), sometimes a place. A clip shows
one object, one action and one place. In the query's windows both match; outside them scenes follow one another, and a
share of them are distractors that have the object with another action or the action with another object. Encoders see
different factors:

- ``slowfast`` the action, in a space of its own, so its meaning has to be learnt;
- ``clip`` the object and the place, in the space of the ``clip`` words;
- ``blip2`` the conjunction of object and action, in the space of the ``blip2`` words;
- ``noise`` nothing.

How clearly a clip shows its content follows a slow rhythm that the three annotators notice as well, each with a level
of their own; this is what highlight detection can learn. Annotations follow the distributions measured on QVHighlights:
duration, number, length, gaps and place of windows, crops per upload, words per query, and the shares of variance in
saliency scores.

*What it can show.* That the machinery works from end to end; the direction of removing an encoder (without ``slowfast``
the distractors with the right object cannot be told apart; without ``clip`` those with the right action; ``noise`` adds
nothing); that a statistic finds an effect that is there and none where there is none. *What it cannot show:* how large
an effect is on real video, or which of two architectures is better there. Scenes have hard cuts, words have one
meaning, and noise is Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlbench.canon import digest
from vlbench.cards.kinds import Features
from vlbench.data.annotations import source_of
from vlbench.data.base import Dataset, Split
from vlbench.data.features import Problem, Rows
from vlbench.data.predictions import WindowRule
from vlbench.data.types import Query
from vlbench.errors import DataError
from vlbench.streams import stream

VERSION = 1  # raised whenever the same recipe gives other data
CLIP_S = 2.0
VIDEO = ("slowfast", "clip", "blip2", "noise")
TEXT = ("clip", "blip2")
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the benchmark is made from; two equal recipes give equal bytes.

    train, val, test: queries per split. objects, actions, places: how many there are to tell apart. widths: columns per
    encoder. difficulty: 0 (easy) to 1 (hard); it sets the noise and the share of distractor scenes between their
    two limits. noise: length of the noise in a clip's row, where the planted signal has length 1. distractors: share of
    scenes outside the windows that share one factor with the query. place: strength of the place beside the object in
    ``clip``. rhythm: how much the slow rhythm changes the signal's strength. word_noise: the same for words. context:
    how much of the whole sentence each word carries. scene_clips: mean length of the scenes outside the windows.
    """

    train: int
    val: int
    test: int
    objects: int
    actions: int
    places: int
    widths: Mapping[str, int]
    seed: int = 0
    difficulty: float = 0.5
    noise: tuple[float, float] = (0.4, 2.0)
    distractors: tuple[float, float] = (0.2, 0.8)
    place: float = 0.4
    rhythm: float = 0.3
    word_noise: float = 0.3
    context: float = 0.5
    scene_clips: float = 6.0

    def between(self, limits: tuple[float, float]) -> float:
        """The value between two limits that this difficulty asks for."""
        return limits[0] + self.difficulty * (limits[1] - limits[0])


QUICK = Recipe(
    train=560,
    val=150,
    test=300,
    objects=12,
    actions=8,
    places=8,
    widths={"slowfast": 32, "clip": 48, "blip2": 48, "noise": 32},
)
FULL = Recipe(
    train=7218,
    val=1550,
    test=0,
    objects=40,
    actions=24,
    places=16,
    widths={"slowfast": 128, "clip": 128, "blip2": 128, "noise": 128},
)
PRESETS: Mapping[str, Recipe] = {"quick": QUICK, "full": FULL}
NAMES: Mapping[str, str] = {"quick": "planted-quick", "full": "planted"}


def quick() -> Dataset:
    """560 queries to fit, 150 to tune, 300 to report: a fit takes well under a minute on 2 cores."""
    return varied("planted-quick", "quick")


def full() -> Dataset:
    """As many queries as QVHighlights: 7218 to divide into fit and tune, 1550 to report."""
    return varied("planted", "full")


def varied(
    name: str, preset: Literal["quick", "full"], *, difficulty: float | None = None, seed: int | None = None
) -> Dataset:
    """A preset with another difficulty or seed."""
    recipe = PRESETS[preset]
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed)
    return planted(name, replace(recipe, difficulty=recipe.difficulty if difficulty is None else difficulty))


def planted(name: str, recipe: Recipe) -> Dataset:
    """The dataset of a recipe. Nothing is made before it is asked for."""
    world = _world(_Frozen(recipe))
    sizes = {"train": recipe.train, "val": recipe.val, "test": recipe.test}
    return Dataset(
        name,
        splits=[Split(split, partial(world.load, split), world.identity) for split, size in sizes.items() if size],
        video=[Shown(encoder, world) for encoder in VIDEO],
        text=[Spoken(encoder, world) for encoder in TEXT],
        clip_s=CLIP_S,
        rule=WindowRule(round_to_s=CLIP_S, clamp_s=150.0),
        max_clips=75,
        max_words=32,
        labels="qvhighlights",
        default_features=Features(("slowfast", "clip"), ("clip",)),
    )


# --- annotations -----------------------------------------------------------------------------------------------------

# Quantiles measured on the QVHighlights train split (percent: value), read as piecewise linear distributions.
WORDS: Mapping[float, float] = {
    0: 4,
    1: 5,
    5: 6,
    10: 6.5,
    25: 8.3,
    50: 10.5,
    75: 13.2,
    90: 16,
    95: 17.8,
    99: 22,
    99.9: 30,
    100: 45,
}
GAP_S: Mapping[float, float] = {0: 2, 30: 2, 50: 6, 75: 13, 90: 30, 95: 44, 99: 90, 100: 132}
COVERED: Mapping[int, Mapping[float, float]] = {  # fraction of the video inside windows, by the number of windows
    1: {0: 0.093, 5: 0.093, 10: 0.095, 25: 0.133, 50: 0.187, 75: 0.3, 83: 0.4, 90: 0.653, 93.5: 1.0, 100: 1.0},
    2: {0: 0.093, 5: 0.107, 10: 0.108, 25: 0.147, 50: 0.213, 75: 0.36, 90: 0.68, 95: 0.92, 100: 0.987},
    3: {0: 0.093, 5: 0.107, 10: 0.133, 25: 0.16, 50: 0.227, 75: 0.387, 90: 0.713, 95: 0.867, 100: 0.973},
    4: {0: 0.093, 5: 0.133, 10: 0.147, 25: 0.187, 50: 0.28, 75: 0.507, 90: 0.8, 95: 0.893, 100: 0.96},
    6: {0: 0.093, 5: 0.173, 10: 0.187, 25: 0.24, 50: 0.347, 75: 0.507, 90: 0.664, 95: 0.773, 100: 0.907},
    10: {0: 0.213, 5: 0.265, 10: 0.276, 25: 0.32, 50: 0.387, 75: 0.468, 90: 0.56, 95: 0.615, 100: 0.667},
}
WINDOW_COUNT = {  # share of queries
    1: 0.6726,
    2: 0.1704,
    3: 0.0646,
    4: 0.0369,
    5: 0.0194,
    6: 0.0112,
    7: 0.0076,
    8: 0.0055,
    9: 0.0037,
    10: 0.0011,
    12: 0.0016,
    14: 0.0013,
    17: 0.0023,
    20: 0.0009,
    24: 0.0009,
}
CROPS = {1: 0.15, 2: 0.08, 3: 0.34, 4: 0.28, 5: 0.15}  # of one upload
SHORTER = 0.029  # share of videos under 150 s
SECOND_QUERY = 0.017  # share of videos with two queries
LEAST_S = 14.0  # windows of a query cover at least this much
AT_START, AT_END = 0.13, 0.15  # share of queries whose first window starts, last window ends with the video
SCORE_SHARE = (0.0324, 0.0726, 0.1846, 0.3065, 0.4039)  # of the scores 0 to 4
LEVEL_QUERY, LEVEL_ANNOTATOR = 0.3, 0.7  # latent standard deviations of the levels; see _scores
STEADY = 0.17  # share of annotators who hardly vary within a query
SHARED = 0.4  # of the variation between clips, what annotators have in common
SLOWNESS = 0.6  # of the rhythm, from one clip to the next
ANNOTATORS = 3


@dataclass(frozen=True, slots=True)
class Scene:
    """What each clip of a video shows: indices into the meanings, and how clearly. All (clips,)."""

    thing: Numbers
    action: Numbers
    place: Numbers
    clarity: Numbers


@dataclass(frozen=True, slots=True)
class Sentence:
    """A query's words with the meaning of each: ``("thing", 3)``, ``("filler", 17)``."""

    words: tuple[tuple[str, int], ...]
    thing: int
    action: int

    @property
    def text(self) -> str:
        """The sentence to read."""
        return " ".join(_word(kind, index) for kind, index in self.words) + "."


class World:
    """The queries, videos and meanings of one recipe, made split by split."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.scenes: dict[str, Scene] = {}
        self.sentences: dict[int, Sentence] = {}
        self._queries: dict[str, tuple[Query, ...]] = {}

    def identity(self) -> str:
        """A digest of all that decides the data."""
        recipe = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.recipe).items()}
        return digest(["planted", VERSION, {**recipe, "difficulty": float(self.recipe.difficulty)}])

    def load(self, split: str, faults: list[DataError] | None) -> tuple[Query, ...]:
        """The queries of a split; there are no faults to report."""
        return self.queries(split)

    def queries(self, split: str) -> tuple[Query, ...]:
        """The queries of a split; their scenes and sentences are kept."""
        if split not in self._queries:
            sizes = {"train": self.recipe.train, "val": self.recipe.val, "test": self.recipe.test}
            first = sum(size for name, size in sizes.items() if list(sizes).index(name) < list(sizes).index(split))
            self._queries[split] = tuple(self._split(split, first, sizes[split]))
        return self._queries[split]

    def _split(self, split: str, first: int, count: int) -> Iterator[Query]:
        qid, upload = first, 0
        while True:
            for query in self._upload(split, upload, qid):
                if qid == first + count:
                    return
                yield query
                qid += 1
            upload += 1

    def _upload(self, split: str, upload: int, qid: int) -> Iterator[Query]:
        """The queries of all crops of one upload, which shares its usual place."""
        rng = stream(self.recipe.seed, "planted", split, upload)
        home = int(rng.integers(self.recipe.places))
        for crop in range(_pick(rng, CROPS)):
            duration_s = 150 if rng.random() >= SHORTER else int(2 * rng.integers(60, 75))
            clips = int(duration_s / CLIP_S)
            start_s = 60.0 + 150.0 * crop
            vid = f"{split}{upload:05d}_{start_s}_{start_s + duration_s}"
            thing, action = int(rng.integers(self.recipe.objects)), int(rng.integers(self.recipe.actions))
            windows = _windows(rng, clips)
            inside = np.zeros(clips, dtype=bool)
            for start, end in windows:
                inside[start:end] = True
            self.scenes[vid] = self._scene(rng, inside, thing, action, home)
            for _ in range(2 if rng.random() < SECOND_QUERY else 1):
                self.sentences[qid] = self._sentence(rng, thing, action, home)
                yield Query(
                    qid=qid,
                    text=self.sentences[qid].text,
                    vid=vid,
                    duration_s=float(duration_s),
                    windows_se=np.array(windows, dtype=np.float64) * CLIP_S,
                    relevant_clips=tuple(np.flatnonzero(inside).tolist()),
                    saliency=_scores(rng, self.scenes[vid].clarity[inside]),
                    source_video=source_of(vid),
                )
                qid += 1

    def _scene(self, rng: np.random.Generator, inside: Numbers, thing: int, action: int, home: int) -> Scene:
        """Scenes one after the other; outside the windows none has both the object and the action of the query."""
        recipe, n = self.recipe, len(inside)
        things, actions, places = (np.zeros(n, dtype=np.int64) for _ in range(3))
        distracting = recipe.between(recipe.distractors)
        start = 0
        while start < n:
            stops = np.flatnonzero(inside[start:] != inside[start])
            end = start + int(stops[0]) if len(stops) else n
            if inside[start]:
                seen = (thing, action)
            else:
                end = min(end, start + int(rng.geometric(1 / recipe.scene_clips)))
                other_thing = (thing + 1 + int(rng.integers(recipe.objects - 1))) % recipe.objects
                other_action = (action + 1 + int(rng.integers(recipe.actions - 1))) % recipe.actions
                draw = rng.random()
                seen = (other_thing, other_action)
                if draw < distracting / 2:
                    seen = (thing, other_action)
                elif draw < distracting:
                    seen = (other_thing, action)
            things[start:end], actions[start:end] = seen
            places[start:end] = home if rng.random() < 0.7 else int(rng.integers(recipe.places))
            start = end
        return Scene(things, actions, places, _rhythm(rng, n)[:, 0])

    def _sentence(self, rng: np.random.Generator, thing: int, action: int, home: int) -> Sentence:
        """``a THING is ACTION``, then the place if there is room, then words that mean nothing."""
        count = int(_quantile(rng, WORDS))
        words = [("filler", 0), ("thing", thing), ("filler", 1), ("action", action)]
        if count >= 7 and rng.random() < 0.5:
            words += [("filler", 2), ("filler", 3), ("place", home)]
        ranks = np.arange(4, len(FILLERS)) - 3.0
        shares = (1 / ranks) / (1 / ranks).sum()  # a few words make most of a text
        words += [("filler", int(i)) for i in 4 + rng.choice(len(ranks), size=count - len(words), p=shares)]
        return Sentence(tuple(words), thing, action)

    # --- meanings ----------------------------------------------------------------------------------------------------

    def meanings(self, encoder: str, kind: str, count: int) -> Numbers:
        """(count, width) unit vectors. Video and words of one encoder share the vectors of one kind."""
        rows = stream(self.recipe.seed, "planted", "meaning", encoder, kind).normal(
            size=(count, self.recipe.widths[encoder])
        )
        return _unit(rows)

    @cached_property
    def action_in_slowfast(self) -> Numbers:
        """(actions, width)."""
        return self.meanings("slowfast", "action", self.recipe.actions)

    @cached_property
    def clip_words(self) -> dict[str, Numbers]:
        """By kind: (things or actions or ..., width)."""
        return self._vocabulary("clip")

    @cached_property
    def blip2_words(self) -> dict[str, Numbers]:
        """By kind: (things or actions or ..., width)."""
        return self._vocabulary("blip2")

    @cached_property
    def conjunction(self) -> Numbers:
        """(objects, actions, width): both factors and something that only their combination has."""
        recipe, words = self.recipe, self.blip2_words
        own = self.meanings("blip2", "conjunction", recipe.objects * recipe.actions)
        both = words["thing"][:, None] + words["action"][None] + own.reshape(recipe.objects, recipe.actions, -1)
        return _unit(both)

    def _vocabulary(self, encoder: str) -> dict[str, Numbers]:
        recipe = self.recipe
        sizes = {"thing": recipe.objects, "action": recipe.actions, "place": recipe.places, "filler": len(FILLERS)}
        return {kind: self.meanings(encoder, kind, size) for kind, size in sizes.items()}


@dataclass(frozen=True)
class _Frozen:
    """A recipe as a key of the cache below: its mapping of widths has no hash of its own."""

    recipe: Recipe

    def __hash__(self) -> int:
        return hash(repr(self.recipe))


@lru_cache(maxsize=2)
def _world(frozen: _Frozen) -> World:
    return World(frozen.recipe)


def _unit(rows: Numbers) -> Numbers:
    unit: Numbers = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def _windows(rng: np.random.Generator, clips: int) -> list[tuple[int, int]]:
    """Windows as (first clip, clip after the last), sorted, at least one clip apart."""
    count = _pick(rng, WINDOW_COUNT)
    table = COVERED[max(size for size in COVERED if size <= count)]
    covered = round(_quantile(rng, table) * clips)
    covered = min(max(covered, count, int(LEAST_S / CLIP_S)), clips - (count - 1))
    lengths = _parts(rng, covered, count)
    free = clips - covered
    gaps = [max(1, round(_quantile(rng, GAP_S) / CLIP_S)) for _ in range(count - 1)]
    while sum(gaps) > free:
        widest = gaps.index(max(gaps))
        gaps[widest] = max(1, gaps[widest] - max(1, (sum(gaps) - free) // 2))
    free -= sum(gaps)
    draw = rng.random()
    position = 0 if draw < AT_START else free if draw > 1 - AT_END else int(rng.integers(free + 1))
    windows = []
    for length, gap in zip(lengths, [*gaps, 0], strict=True):
        windows.append((position, position + length))
        position += length + gap
    return windows


def _parts(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """Random lengths of at least 1 that add up to total."""
    if count == 1:
        return [total]
    shares = np.floor(rng.dirichlet(np.ones(count)) * (total - count)).astype(int)
    shares[: total - count - shares.sum()] += 1
    return [int(share) + 1 for share in rng.permutation(shares)]


def _rhythm(rng: np.random.Generator, clips: int, columns: int = 1) -> Numbers:
    """(clips, columns) slow standard normal processes."""
    rhythm: Numbers = _SLOW[:clips, :clips] @ rng.normal(size=(clips, columns))
    return rhythm


def _scores(rng: np.random.Generator, clarity: Numbers) -> Numbers:
    """(clips, annotators) scores 0 to 4.

    A latent normal value cut into five scores: a level of the query, a level of each annotator in this query, and
    between clips the common rhythm with each annotator's own. Some annotators hardly vary at all.
    """
    clips = len(clarity)
    between = np.sqrt(1 - LEVEL_QUERY**2 - LEVEL_ANNOTATOR**2)
    spread = np.where(rng.random(ANNOTATORS) < STEADY, 0.1, rng.uniform(0.35, 1.8, ANNOTATORS)) * between
    own = _rhythm(rng, clips, ANNOTATORS)
    varying = np.sqrt(SHARED) * clarity[:, None] + np.sqrt(1 - SHARED) * own  # clips annotators
    level = LEVEL_QUERY * rng.normal() + LEVEL_ANNOTATOR * rng.normal(size=ANNOTATORS)
    scores: Numbers = np.searchsorted(_CUTS, level + spread * varying).astype(np.float64)
    return scores


def _quantile(rng: np.random.Generator, table: Mapping[float, float]) -> float:
    return float(np.interp(100 * rng.random(), list(table), list(table.values())))


def _pick(rng: np.random.Generator, shares: Mapping[int, float]) -> int:
    total = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(total / total[-1], rng.random(), side="right"))]


def _normal_cuts() -> Numbers:
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(share) for share in np.cumsum(SCORE_SHARE)[:-1]])


def _slow(clips: int) -> Numbers:
    """(clips, clips) what turns independent steps into a stationary first-order process."""
    lag = np.subtract.outer(np.arange(clips), np.arange(clips))
    weights = np.where(lag >= 0, SLOWNESS ** np.maximum(lag, 0), 0.0)
    weights[:, 1:] *= np.sqrt(1 - SLOWNESS**2)
    slow: Numbers = weights
    return slow


_CUTS, _SLOW = _normal_cuts(), _slow(75)


# --- encoders --------------------------------------------------------------------------------------------------------


class _Planted:
    """What both kinds of encoder have in common."""

    resident = True

    def __init__(self, name: str, world: World) -> None:
        self.name, self.world = name, world

    def width(self, queries: Iterable[Query]) -> int:
        """The recipe's width of this encoder."""
        return self.world.recipe.widths[self.name]

    def problems(self, queries: Iterable[Query]) -> list[Problem]:
        """None: nothing is read."""
        return []

    def digest(self, queries: Iterable[Query]) -> str:
        """The recipe stands for the content."""
        return digest([self.world.identity(), type(self).__name__, self.name])


class Shown(_Planted):
    """A video encoder: rows are made from the video's scenes, the same every time."""

    def key(self, query: Query) -> str:
        """Rows belong to a video."""
        return query.vid

    def shape(self, query: Query) -> tuple[int, int, np.dtype[Any]]:
        """Clips, columns, float16."""
        return int(query.duration_s / CLIP_S), self.width(()), np.dtype(np.float16)

    def read(self, query: Query) -> Rows:
        """(clips, width) float16."""
        world, recipe, scene = self.world, self.world.recipe, self.world.scenes[query.vid]
        rng = stream(recipe.seed, "planted", "rows", self.name, query.vid)
        width = recipe.widths[self.name]
        rows = rng.normal(size=(len(scene.thing), width)) / np.sqrt(width)
        strength = np.maximum(0.2, 1 + recipe.rhythm * scene.clarity)[:, None]
        if self.name != "noise":
            rows *= recipe.between(recipe.noise)
        if self.name == "slowfast":
            rows += strength * world.action_in_slowfast[scene.action]
        elif self.name == "clip":
            rows += strength * world.clip_words["thing"][scene.thing]
            rows += recipe.place * world.clip_words["place"][scene.place]
        elif self.name == "blip2":
            rows += strength * world.conjunction[scene.thing, scene.action]
        shown: Rows = rows.astype(np.float16)
        return shown


class Spoken(_Planted):
    """A text encoder: a start token, one row per word, an end token that stands for the sentence."""

    def key(self, query: Query) -> str:
        """Rows belong to a query."""
        return str(query.qid)

    def shape(self, query: Query) -> tuple[int, int, np.dtype[Any]]:
        """Words and the two special tokens, columns, float16."""
        return len(self._sentence(query).words) + 2, self.width(()), np.dtype(np.float16)

    def read(self, query: Query) -> Rows:
        """(words + 2, width) float16."""
        world, recipe, sentence = self.world, self.world.recipe, self._sentence(query)
        rng = stream(recipe.seed, "planted", "words", self.name, query.qid)
        vocabulary = world.clip_words if self.name == "clip" else world.blip2_words
        if self.name == "clip":
            whole = vocabulary["thing"][sentence.thing] + vocabulary["action"][sentence.action]
            whole = _unit(whole)
        else:
            whole = world.conjunction[sentence.thing, sentence.action]
        words = np.stack([vocabulary[kind][index] for kind, index in sentence.words]) + recipe.context * whole
        start = vocabulary["filler"][-1:]
        rows = np.concatenate([start, words, whole[None]])
        rows[1:] += recipe.word_noise * rng.normal(size=rows[1:].shape) / np.sqrt(rows.shape[1])
        spoken: Rows = rows.astype(np.float16)
        return spoken

    def _sentence(self, query: Query) -> Sentence:
        assert isinstance(query.qid, int)
        return self.world.sentences[query.qid]


# --- words -----------------------------------------------------------------------------------------------------------

THINGS, ACTIONS, PLACES, FILLERS = (
    line.split()
    for line in (
        """potter fisherman dancer baker gardener climber painter surfer mechanic drummer swimmer cyclist barber tailor
        chef nurse juggler skater sailor farmer singer tourist vlogger reporter teacher carpenter florist guitarist
        boxer rider waiter archer diver miner sculptor hiker golfer pianist driver clown""",
        """juggling singing stretching laughing cooking jumping pointing waving resting painting running talking eating
        climbing folding digging clapping reading drinking spinning throwing lifting sleeping shouting""",
        """kitchen harbour forest market garage meadow tunnel library stadium museum desert office temple bridge cellar
        attic""",
        """a is in the and of on her with to while near then it he she two small red blue white slowly outside again
        before after other people some under table window camera quickly together around behind front old young long
        short day morning side away back left right green dark bright""",
    )
)


def _word(kind: str, index: int) -> str:
    return {"thing": THINGS, "action": ACTIONS, "place": PLACES, "filler": FILLERS}[kind][index]
