"""Protects corruptions where they meet the rest: what can be named, identities, batches, hooks, scores in the store."""

import json
import math
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlbench import catalog
from vlbench.cards.kinds import Features
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.corrupt.base import Corruption, Moments, Noise, check, corruption, training_corruption
from vlbench.corrupt.severities import Severities
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed, channel_moments
from vlbench.data.planted import QUICK, planted, varied
from vlbench.errors import CardError, DataError, StoreError
from vlbench.registry import Entry
from vlbench.runs.cells import DataRef, Fit, from_spec, score_of, to_spec
from vlbench.runs.store import Store
from vlbench.runs.work import Options, run_cells
from vlbench.status import Status
from vlbench.train.batch import Split, Strangers
from vlbench.workspace import find

SMALL = {
    "model.width": 16, "model.attention_heads": 2, "model.feedforward": 16, "train.epochs": 1, "train.eval_every": 1,
    "model.encoder.layers": 1, "model.decoder.layers": 1,
}  # fmt: skip
INPUTS = [e.name for e in catalog.corruptions.entries() if e.facts["on"] in ("video", "text", "query")]


# --- names and levels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: corruption("gaus", 1), 'did you mean "gauss"'),
        (lambda: corruption("gauss", 6), "a level lies between 0 and 5 (got 6)"),
        (lambda: corruption("gauss", -1), "a level lies between 0 and 5"),
        (lambda: corruption("gauss", True), "a level lies between 0 and 5"),
        (lambda: corruption("gauss", 1, draw=-1), "draws are counted from 0"),
        (lambda: corruption("wrong_query", 1, encoder="clip"), "cannot be narrowed to one encoder"),
        (lambda: corruption("head_oracle", 3), "has no level 3"),
        (lambda: training_corruption({"corruption": "gauss", "corruption_level": 1}, draw=0), "acts on finished fits"),
        (lambda: training_corruption({"corruption": "none", "corruption_level": 2}, draw=0), "without"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(ask, says):
    with pytest.raises(CardError, match=None) as error:
        ask()
    assert says in str(error.value)


def test_level_0_is_the_clean_score():
    assert corruption("gauss", 0) is None
    assert training_corruption({"corruption": "label_noise", "corruption_level": 0}, draw=1) is None


@pytest.mark.parametrize("family", INPUTS)
def test_an_identity_gives_its_corruption_back(family):
    for level in Severities.read().levels(family):
        found = corruption(family, level, draw=2)
        assert Corruption.of(json.loads(json.dumps(found.identity(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("family", "encoder", "tasks", "says"),
    [
        ("gauss", "blip2", ("mr", "hd"), 'has no video encoder "blip2"'),
        ("head_noise", None, ("mr", "hd"), "from moments to saliency, in the training loss only"),
        ("label_noise", None, ("mr",), "needs annotated saliency"),
        ("label_noise", None, ("mr",), "target_noise spoils"),
        ("boundary_jitter", None, ("hd",), "needs moments"),
    ],
)
def test_a_family_without_anything_to_spoil_is_refused(family, encoder, tasks, says):
    with pytest.raises(CardError) as error:
        check(family, encoder, load_variant("videolights", find().root), tasks)
    assert says in str(error.value)


def test_the_released_model_cannot_be_reached_by_noise_on_its_saliency():
    released = load_variant("videolights", find().root)
    with pytest.raises(CardError) as error:
        check("head_noise", None, released, ("mr", "hd"))
    assert "noise on predicted saliency at inference cannot change moment retrieval" in str(error.value)
    guided = edit(released, {"model.feedback.use": "hd-to-mr", "loss.task_coupled.use": "none"}, origin="test").variant
    check("head_noise", None, guided, ("mr", "hd"))
    alone = edit(released, {"model.feedback.use": "none", "loss.task_coupled.use": "none"}, origin="test").variant
    with pytest.raises(CardError, match="hands nothing from one head to the other"):
        check("head_noise", None, alone, ("mr", "hd"))


# --- the table of severities ------------------------------------------------------------------------------------------


def test_the_table_of_the_protocol_is_pinned():
    table = Severities.read()
    assert (table.version, table.digest[:12]) == (2, "3f72b4cbe8f0")  # raise the version with any change


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("gauss = [0.1, 0.2]", "five amounts are needed"),
        ("gauss = [0.1, 0.2, 0.2, 0.3, 0.4]", "amounts rise"),
        ("clip_drop = [0.1, 0.2, 0.3, 0.4, 1.5]", "between 0 and 1"),
        ("undertrained_head = [0.1, 0.2, 0.3, 0.4, 0.5]", "amounts fall"),
        ("shuffle = [2, 3, 4, 8, 16]", "divide the next"),
        ("shuffle = [1.5, 3, 6, 12, 24]", "whole numbers"),
        ("gaus = [0.1, 0.2, 0.3, 0.4, 0.5]", 'did you mean "gauss"'),
    ],
)
def test_a_broken_table_is_told_with_file_and_line(tmp_path, row, says):
    path = tmp_path / "mine.toml"
    path.write_text(f"version = 2\n\n[levels]\n{row}\n")
    with pytest.raises(CardError) as error:
        Severities.read(path)
    assert says in str(error.value) and f"{path}:4" in str(error.value)


def test_a_written_table_is_read_back(tmp_path):
    table = Severities.read().with_rows({"gauss": (0.2, 0.5, 1.0, 2.0, 4.0)})
    table.write(tmp_path / "t.toml")
    again = Severities.read(tmp_path / "t.toml")
    assert (
        again.version == Severities.read().version + 1
        and again.digest == table.digest
        and again.amount("gauss", 5) == 4.0
    )
    assert corruption("gauss", 5, severities=again).amount == 4.0


# --- batches ----------------------------------------------------------------------------------------------------------

FEATURES = Features(("slowfast", "clip"), ("clip", "blip2"))


@pytest.fixture(scope="module")
def split():
    dataset = open_dataset("planted-quick", find())
    return Split(dataset, "report", FEATURES, Packed.open(dataset, "report", FEATURES, None))


@pytest.fixture(scope="module")
def moments(split):
    return {name: Moments(*channel_moments(split.dataset, "fit", name, None)) for name in FEATURES.video}


def noise_of(spoils, split, moments):
    return Noise(spoils.family, spoils.draw, moments.__getitem__, Strangers(split))


def rows_of(split, moments, spoils, batch_size, count=40):
    """qid -> (clips, words) without padding, under one corruption."""
    found = {}
    noise = noise_of(spoils, split, moments)
    for queries, (batch,) in split.spoiled(batch_size, [spoils], noise):
        for row, query in enumerate(queries):
            found[query.qid] = (batch.clips[row][batch.clip_mask[row]], batch.words[row][batch.word_mask[row]])
        if len(found) >= count:
            return dict(list(found.items())[:count])
    return found


def test_nothing_at_amount_0_is_the_clean_batch_bit_for_bit(split, moments):
    clean = next(split.evaluation(16))[1]
    for family in INPUTS:
        spoils = replace(corruption(family, 1), amount=0.0)
        _, (batch,) = next(split.spoiled(16, [spoils], noise_of(spoils, split, moments)))
        for name in ("clips", "clip_mask", "words", "word_mask"):
            assert np.array_equal(getattr(batch, name), getattr(clean, name)), family


@pytest.mark.parametrize("family", INPUTS)
def test_the_batch_size_does_not_move_a_byte(split, moments, family):
    spoils = corruption(family, 3)
    by_7, by_40 = (rows_of(split, moments, spoils, size) for size in (7, 40))
    assert by_7.keys() == by_40.keys()
    for qid, (clips, words) in by_7.items():
        assert np.array_equal(clips, by_40[qid][0]) and np.array_equal(words, by_40[qid][1])


@pytest.mark.parametrize("family", INPUTS)
def test_places_masks_and_padding_stay(split, moments, family):
    clean = next(split.evaluation(16))[1]
    levels = [corruption(family, level) for level in range(1, 6)]
    _, batches = next(split.spoiled(16, levels, noise_of(levels[0], split, moments)))
    batches = list(batches)
    for batch in batches:
        assert np.array_equal(batch.clips[..., -2:], clean.clips[..., -2:])  # where each clip starts and ends
        assert np.array_equal(batch.clip_mask, clean.clip_mask)
        assert not batch.clips[~batch.clip_mask].any() and not batch.words[~batch.word_mask].any()
        assert np.isfinite(batch.clips).all() and batch.word_mask.any(axis=1).all()
        if catalog.corruptions[family].facts["on"] == "video":
            assert np.array_equal(batch.words, clean.words) and np.array_equal(batch.word_mask, clean.word_mask)
        elif family not in ("token_drop", "wrong_query"):
            assert np.array_equal(batch.word_mask, clean.word_mask)
    assert not np.array_equal(batches[-1].clips, clean.clips) or not np.array_equal(batches[-1].words, clean.words)


def test_what_is_spoiled_is_normalised_afterwards(split, moments):
    for clips, _ in rows_of(split, moments, corruption("gauss", 5), 20, count=20).values():
        for part in (clips[:, :32], clips[:, 32:80]):
            assert np.allclose(np.linalg.norm(part, axis=1), 1, atol=1e-4)


def test_one_encoder_alone(split, moments):
    clean = next(split.evaluation(16))[1]
    spoils = corruption("gauss", 5, encoder="clip")
    _, (batch,) = next(split.spoiled(16, [spoils], noise_of(spoils, split, moments)))
    assert np.array_equal(batch.clips[..., :32], clean.clips[..., :32])
    assert not np.allclose(batch.clips[..., 32:80], clean.clips[..., 32:80])
    both = replace(spoils, encoder=None)
    _, (other,) = next(split.spoiled(16, [both], noise_of(both, split, moments)))
    assert np.array_equal(batch.clips[..., 32:80], other.clips[..., 32:80])  # its noise does not know of the others


def test_a_wrong_query_is_about_another_upload(split, moments):
    rows = {str(query.qid): (row, query) for row, query in enumerate(split.queries)}
    words = {qid: split.packed.sample(row)[1] for qid, (row, _) in rows.items()}
    told = rows_of(split, moments, corruption("wrong_query", 5), 50, count=50)
    for qid, (_, given) in told.items():
        whose = [other for other, own in words.items() if np.array_equal(own, given)]
        assert whose
        assert all(rows[other][1].source_video != rows[str(qid)][1].source_video for other in whose)


def test_moments_of_channels_are_those_of_the_clips(split, tmp_path):
    dataset = split.dataset
    videos = {query.vid: query for query in dataset.queries("fit")}
    rows = np.concatenate([dataset.clips(query, "clip") for query in videos.values()]).astype(np.float64)
    for _ in range(2):  # made, then read
        mean, sd = channel_moments(dataset, "fit", "clip", tmp_path)
        assert np.allclose(mean, rows.mean(0), atol=1e-6) and np.allclose(sd, rows.std(0), rtol=1e-5)
    assert len(list(tmp_path.glob("packs/*-moments.npy"))) == 1


# --- what an encoder carries ------------------------------------------------------------------------------------------


def test_losing_an_encoder_hurts_exactly_the_queries_that_need_it():
    """An observer who knows the planted meanings: action in slowfast, object in clip.

    A query needs slowfast where another scene has its object with another action, and clip where another has its
    action with another object.
    """
    dataset = varied("easy", "quick", difficulty=0.0)
    features = Features(("slowfast", "clip"), ("clip",))
    easy = Split(dataset, "report", features, Packed.open(dataset, "report", features, None))
    world = dataset.stream("video", "clip").world
    order = {}
    for gone in (None, "slowfast", "clip"):
        spoils = corruption("modality_drop", 5, encoder=gone or "clip")
        spoils = spoils if gone else replace(spoils, amount=0.0)
        noise = Noise(spoils.family, 0, None, Strangers(easy))
        for queries, (batch,) in easy.spoiled(50, [spoils], noise):
            for row, query in enumerate(queries):
                sentence, n = world.sentences[query.qid], int(batch.clip_mask[row].sum())
                clips = batch.clips[row, :n]
                seen = clips[:, :32] @ world.action_in_slowfast[sentence.action]
                seen = seen + clips[:, 32:80] @ world.clip_words["thing"][sentence.thing]
                inside = np.zeros(n, bool)
                inside[[c for c in query.relevant_clips if c < n]] = True
                if inside.all():
                    continue
                order.setdefault(query.qid, {})[gone] = (seen[inside][:, None] > seen[~inside]).mean()
    hurt = {"slowfast": {True: [], False: []}, "clip": {True: [], False: []}}
    for query in easy.queries:
        if query.qid not in order:
            continue
        scene, sentence = world.scenes[query.vid], world.sentences[query.qid]
        thing, action = scene.thing == sentence.thing, scene.action == sentence.action
        for gone, needs in (("slowfast", (thing & ~action).any()), ("clip", (action & ~thing).any())):
            hurt[gone][bool(needs)].append(order[query.qid][None] - order[query.qid][gone])
    for gone, lost in hurt.items():
        assert len(lost[True]) > 30 and len(lost[False]) > 30
        assert np.quantile(lost[True], 0.1) > 0.005 > max(lost[False]), gone


# --- in the store -----------------------------------------------------------------------------------------------------


def tiny():
    return planted("tiny", replace(QUICK, train=32, val=12, test=24))


@pytest.fixture(autouse=True)
def tiny_dataset(monkeypatch):
    monkeypatch.setitem(catalog.datasets._entries, "tiny", Entry("tiny", f"{__name__}:tiny"))


class World:
    def __init__(self, root, changes=()):
        self.root, self.store = root, Store(root / ".vlbench")
        self.store.root.mkdir(exist_ok=True)
        self.dataset = open_dataset("tiny", find())
        self.options = Options(str(self.store.root), str(root))
        self.variant = edit(
            load_variant("videolights_quick", find().root), {**SMALL, **dict(changes)}, origin="test"
        ).variant
        features = self.variant.features
        prints = {role: self.dataset.fingerprint(role, features) for role in ("fit", "tune", "report")}
        data = {role: prints[role] for role in ("fit", "tune")}
        self.fit = Fit(self.variant, DataRef("tiny", data, ("hd", "mr")), 0)
        self.reporting = DataRef("tiny", {"report": prints["report"]}, ("hd", "mr"))

    def score(self, *args, **kwargs):
        return score_of(self.fit, self.reporting, corruption(*args, **kwargs) if args else None)

    def run(self, *cells):
        run_cells([to_spec(cell) for cell in cells], self.options)

    def table(self, cell):
        return (self.store.folder(cell.id) / "queries.parquet").read_bytes()


def test_scores_under_corruptions(workspace):
    world = World(workspace)
    world.run(world.fit)
    levels = [world.score("clip_drop", level) for level in (1, 3, 5)]
    others = [
        world.score("wrong_query", 5),
        world.score("gauss", 2, encoder="slowfast", draw=1),
        world.score("jitter", 4),
    ]
    clean = world.score("clip_drop", 0)
    assert clean.id == world.score().id and len({cell.id for cell in [clean, *levels, *others]}) == 7
    for cell in [*levels, *others]:
        assert from_spec(json.loads(to_spec(cell))).id == cell.id

    scratch = world.store.folder(world.fit.id) / "epochs"
    kept = sorted(path.name for path in scratch.glob("*")) if scratch.exists() else []
    world.run(*others, *levels)
    assert (sorted(path.name for path in scratch.glob("*")) if scratch.exists() else []) == kept
    assert world.store.ledger() == []  # no choice is made by them
    for cell in [*levels, *others]:
        record = world.store.record(cell.id)
        assert record["corruption"] == cell.corruption.identity() and set(record["files"]) == {"queries.parquet"}
        assert all(name.startswith("selected/") for name in record["summary"])
        assert record["checkpoints"]["selected"]["epoch"] == 0

    again = World(workspace)
    again.store = Store(workspace / "second")
    again.options = Options(str(again.store.root), str(workspace))
    again.store.root.mkdir()
    again.run(again.fit)
    for cell in [levels[2], others[2], levels[0], others[0], others[1], levels[1]]:  # one by one, in another order
        again.run(cell)
        assert again.table(cell) == world.table(cell)
        assert again.store.record(cell.id) == world.store.record(cell.id)

    before = world.store.folder(levels[0].id).joinpath("record.json").stat().st_mtime_ns
    world.run(*levels, clean)
    assert world.store.folder(levels[0].id).joinpath("record.json").stat().st_mtime_ns == before
    assert world.store.record(clean.id)["queries"] == 24 and len(world.store.ledger()) == 1


def test_a_hook_that_is_never_passed_fails_with_the_reason(workspace, monkeypatch):
    world = World(workspace)
    world.run(world.fit)
    noisy, fine = world.score("head_noise", 3), world.score("token_drop", 5)
    world.run(noisy, fine)
    assert "in the training loss only" in world.store.failure(noisy.id)["cause"]
    assert world.store.record(noisy.id) is None and world.store.status(fine.id) is Status.DONE
    # a component that claims to read it and does not is found out at inference
    monkeypatch.setitem(catalog.model_slots["feedback"]["unijfm"].facts, "reads", ("saliency_handed",))
    world.run(noisy)
    assert "is never passed at inference" in world.store.failure(noisy.id)["cause"]
    # and a hook that is not there is named
    monkeypatch.setitem(catalog.model_slots["feedback"]["unijfm"].facts, "reads", ("saliency_handed", "saliency_hand"))
    monkeypatch.setitem(catalog.corruptions["head_noise"].facts, "hook", "saliency_hand")
    world.run(noisy)
    assert 'did you mean "saliency_handed"' in world.store.failure(noisy.id)["cause"]


def test_noise_on_the_saliency_that_guides_moments_changes_moments_and_no_highlight(workspace):
    world = World(workspace, {"model.feedback.use": "hd-to-mr", "loss.task_coupled.use": "none"})
    cells = [world.score("head_noise", level) for level in (1, 5)]
    anchors = [world.score(name, 5) for name in ("head_shuffle", "head_const", "head_oracle")]
    clean = world.score()
    world.run(world.fit, clean, *cells, *anchors)
    highlights = {world.store.record(cell.id)["summary"]["selected/hd-map"] for cell in [clean, *cells, *anchors]}
    moments = {world.store.record(cell.id)["summary"]["selected/mr-miou"] for cell in [clean, *cells, *anchors]}
    assert len(highlights) == 1 and len(moments) > 3
    weak, strong = (world.store.record(cell.id)["kept"] for cell in cells)
    assert 0.98 < weak < 1 and 0.2 < strong < 0.7  # Spearman of handed to clean saliency
    shuffled, constant, _ = (world.store.record(cell.id)["kept"] for cell in anchors)
    assert abs(shuffled) < 0.1 and constant is None


def test_a_bench_measures_what_amounts_cost(workspace):
    from vlbench.runs.spoiled import Bench

    world = World(workspace)
    with pytest.raises(StoreError):
        Bench(world.store, world.fit.id, world.reporting, world.variant.features, world.options)
    world.run(world.fit)
    bench = Bench(world.store, world.fit.id, world.reporting, world.variant.features, world.options)
    nothing, all_of_it, shuffled = (
        bench.lost(family, amounts, metrics=("hd-map",), draws=2)
        for family, amounts in (("clip_drop", [0.0]), ("query_blank", [1.0, 1.0]), ("shuffle", [1.0, math.inf]))
    )
    assert nothing == [0.0] and all_of_it[0] == all_of_it[1] and shuffled[0] == 0.0 != shuffled[1]
    record = world.run(level := world.score("query_blank", 5)) or world.store.record(level.id)
    clean = bench.clean(("hd-map",))["hd-map"]
    assert all_of_it[0] == pytest.approx(1 - record["summary"]["selected/hd-map"] / clean)
    with pytest.raises(DataError, match="clean score of hd-ap"):
        bench.lost("clip_drop", [0.5], metrics=("hd-ap",))
    with pytest.raises(CardError, match='has no video encoder "blip2"'):
        bench.run([corruption("gauss", 1, encoder="blip2")])


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_corruption_of_training_is_part_of_the_fit_and_only_where_it_acts():
    def fit(**changes):
        keys = {f"train.{key}": value for key, value in changes.items()}
        variant = edit(load_variant("videolights_quick", find().root), keys, origin="test").variant
        return Fit(variant, DataRef("d", {"fit": "f", "tune": "t"}, ("hd", "mr")), 0)

    clean = fit()
    assert "corruption" not in clean.identity()["variant"]["recipe"]
    assert fit(corruption="label_noise").id == clean.id  # level 0
    noisy = [fit(corruption="label_noise", corruption_level=level) for level in (1, 5)]
    noisy += [fit(corruption="undertrained_head", corruption_level=5)]
    assert len({clean.id, *(cell.id for cell in noisy)}) == 4
    for cell in [clean, *noisy]:
        assert from_spec(json.loads(to_spec(cell))).id == cell.id
    with pytest.raises(CardError, match="spoils finished fits"):
        fit(corruption="gauss", corruption_level=1)
    with pytest.raises(CardError, match='did you mean "label_noise"'):
        fit(corruption="labelnoise", corruption_level=1)
    with pytest.raises(CardError, match="levels are 0 to 5"):
        fit(corruption="label_noise", corruption_level=6)
    with pytest.raises(CardError, match="0 without a corruption"):
        fit(corruption_level=3)


def test_labels_of_training_are_spoiled_alike_for_every_arm_and_no_other_labels(split):
    spoils = corruption("label_noise", 5, draw=3)
    first, second = split.mislabelled(spoils), split.mislabelled(spoils)
    changed = 0
    for own, one, other in zip(split.queries, first.queries, second.queries, strict=True):
        assert np.array_equal(one.saliency, other.saliency) and one.relevant_clips == own.relevant_clips
        assert np.array_equal(one.windows_se, own.windows_se)
        changed += int(not np.array_equal(one.saliency, own.saliency))
    assert changed > 250
    assert split.mislabelled(replace(spoils, draw=4)).queries[0].saliency is not first.queries[0].saliency
    batch = first.batch(range(8), np.random.default_rng(0))
    assert not np.array_equal(batch.saliency, split.batch(range(8), np.random.default_rng(0)).saliency)


@pytest.mark.parametrize(("family", "still", "moves"), [
    ("undertrained_head", "heads.clip_saliency.weight", "heads.classes.weight"),
    ("undertrained_moments", "heads.classes.weight", "heads.clip_saliency.weight"),
])  # fmt: skip
def test_an_undertrained_head_stops_where_its_schedule_ends(workspace, family, still, moves):
    from safetensors.torch import load_file

    from vlbench.train.loop import build

    world = World(workspace, {"train.corruption": family, "train.corruption_level": 5})
    world.run(world.fit)
    dataset = world.dataset
    features = world.variant.features
    fresh = build(world.variant, Split(dataset, "tune", features, Packed.open(dataset, "tune", features, None)), 0)
    trained = load_file(world.store.folder(world.fit.id) / "last.safetensors")
    start = fresh.state_dict()
    assert torch.equal(trained[still], start[still]) and not torch.equal(trained[moves], start[moves])
    assert math.isfinite(sum(float(value.sum()) for value in trained.values()))


# --- what is handed over while a fit runs -----------------------------------------------------------------------------

HD_TO_MR = {"model.feedback.use": "hd-to-mr", "loss.task_coupled.use": "none"}


def weights_of(world):
    from safetensors.torch import load_file

    world.run(world.fit)
    assert world.store.record(world.fit.id) is not None, world.store.failure(world.fit.id)
    return torch.cat([w.flatten() for w in load_file(world.store.folder(world.fit.id) / "last.safetensors").values()])


@pytest.mark.parametrize("feedback", [{}, HD_TO_MR, {"model.feedback.use": "both"}], ids=["released", "hd", "both"])
def test_noise_on_what_is_handed_over_reaches_training_and_none_of_it_is_clean(workspace, monkeypatch, feedback):
    noisy = {**feedback, "train.corruption": "handed_noise", "train.corruption_level": 5}
    clean = weights_of(World(workspace, feedback))
    moved = (weights_of(World(workspace, noisy)) - clean).abs().sum()
    monkeypatch.setattr(
        Severities, "amount", lambda *_: 0.0
    )  # level 0 is no corruption at all; this hangs on the hooks
    nothing = World(workspace, noisy)
    assert nothing.fit.identity()["variant"]["recipe"]["corrupted"]["amount"] == 0.0
    assert moved > 0.01
    assert (weights_of(nothing) - clean).abs().sum() < moved / 20  # gradients add up in another order


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.feedback.use": "none", "loss.task_coupled.use": "none"}, "hands nothing from one head to the other"),
        ({"loss.task_coupled.use": "none"}, "hands moments to a saliency that no loss reads"),
    ],
)
def test_where_nothing_is_handed_over_training_under_noise_is_refused(workspace, changes, says):
    changes = {**changes, "train.corruption": "handed_noise", "train.corruption_level": 1}
    world = World(workspace, changes)
    with pytest.raises(CardError, match=says):
        check("handed_noise", None, world.variant, ("mr", "hd"))
    world.run(world.fit)
    assert says in world.store.failure(world.fit.id)["cause"]


def test_a_hook_that_training_does_not_pass_is_an_error_and_no_clean_fit(workspace, monkeypatch):
    facts = catalog.model_slots["feedback"]["unijfm"].facts
    monkeypatch.setitem(facts, "reads", ("saliency_handed",))
    world = World(workspace, {"train.corruption": "handed_noise", "train.corruption_level": 1})
    world.run(world.fit)
    assert (
        '"saliency_handed", where saliency is handed over, is not passed' in world.store.failure(world.fit.id)["cause"]
    )


class Echo(torch.nn.Module):
    """Hands over what it is given."""

    def __init__(self):
        super().__init__()
        from vlbench.nn.model import Handover

        self.saliency_handed, self.spans_handed = Handover(), Handover()


def handed_over(split, size, epoch, *, draw=3):
    """qid -> what arrives of a saliency that counts up, and of moments, in an epoch of batches of a size."""
    from vlbench.train.handed import handing

    variant = edit(load_variant("videolights_quick", find().root), {"model.feedback.use": "both"}, origin="x").variant
    echo, found = Echo(), {}
    watched = handing(echo, variant, corruption("handed_noise", 3, draw=draw), split)
    for batch in watched.training(draw, epoch, size):
        B, L = batch.clip_mask.shape
        saliency = echo.saliency_handed(torch.arange(L, dtype=torch.float32).repeat(B, 1).requires_grad_())
        spans = echo.spans_handed(torch.full((B, 4, 2), 0.3).requires_grad_())
        (gradient,) = torch.autograd.grad(saliency.sum(), saliency)
        assert torch.equal(gradient, torch.ones(B, L))
        for row, (qid, n) in enumerate(zip(batch.qids, batch.clip_mask.sum(1), strict=True)):
            assert torch.equal(saliency[row, n:], torch.arange(L, dtype=torch.float32)[n:])  # padding
            found[qid] = saliency[row, :n].detach().numpy(), spans[row].detach().numpy()
    untouched = torch.ones(2, 5)
    assert echo.saliency_handed(untouched) is untouched  # evaluation after the epoch
    return found


def test_noise_of_a_query_hangs_on_seed_and_epoch_and_on_nothing_else(split):
    one, other = handed_over(split, 16, 2), handed_over(split, 50, 2)
    later, apart = handed_over(split, 16, 3), handed_over(split, 16, 2, draw=4)
    assert len(one) == len(split)
    for qid, (saliency, spans) in one.items():
        for mine, same, *others in zip((saliency, spans), other[qid], later[qid], apart[qid], strict=True):
            assert np.array_equal(mine, same)
            assert not any(np.array_equal(mine, noisy) for noisy in others)
        assert spans.min() >= 0 and spans.max() <= 1


def test_labels_that_are_made_from_moments_can_be_noisy_too(split, monkeypatch):
    spoils = corruption("target_noise", 5, draw=3)
    assert not any(query.inside is not None for query in split.mislabelled(spoils).queries)  # these are annotated
    monkeypatch.setattr(split.dataset, "_labels", "binary")
    monkeypatch.delitem(split.dataset.__dict__, "labels", raising=False)
    split = copy(split)
    split.__dict__.pop("labels", None)  # of the other rule
    clean, noisy = (one.batch(range(40), np.random.default_rng(0)) for one in (split, split.mislabelled(spoils)))
    assert np.array_equal(clean.spans_cw, noisy.spans_cw) and set(np.unique(noisy.saliency)) == {0.0, 1.0}
    moved = (clean.saliency != noisy.saliency)[clean.clip_mask].mean()
    assert 0.1 < moved < 0.3  # 0.4 are spoiled, of which what moves off the scale or swaps with its like stays
    nothing = split.mislabelled(replace(spoils, amount=0.0)).batch(range(40), np.random.default_rng(0))
    assert np.array_equal(nothing.saliency, clean.saliency) and np.array_equal(nothing.positive, clean.positive)
