"""Protects what speed is measured against: the plain loop computes what vlbench computes, from the same bits, and the
harness reports what it saw."""

import contextlib
import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vlbench.cards.kinds import Variant
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.annotations import read_annotations
from vlbench.data.base import open_dataset
from vlbench.data.packed import Packed
from vlbench.data.predictions import prediction_of
from vlbench.metrics.compatible import evaluate as published
from vlbench.nn.losses import Criterion
from vlbench.nn.model import Inputs, Targets, assemble, parameters_of
from vlbench.nn.official import official_names, to_official
from vlbench.train.batch import Split
from vlbench.workspace import find

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # the scripts there import each other by these names

import commands  # noqa: E402
import made_up  # noqa: E402
import plain  # noqa: E402
import plain_scores  # noqa: E402
import rows  # noqa: E402
import sides  # noqa: E402
import startup  # noqa: E402
import turns  # noqa: E402

NO_DROPOUT = {"model.projection.dropout": 0.0, "model.refinement.dropout": 0.0}
VIDEO, TEXT = {"slowfast": 20, "clip": 10, "blip2": 12}, {"clip": 8, "blip2": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eleven queries to train on and six to evaluate."""
    place = tmp_path_factory.mktemp("benchmarks") / "data"
    return made_up.write_dataset(place, {"train": 11, "val": 6}, video=VIDEO, text=TEXT, seed=3)


@pytest.fixture(scope="module")
def given(folder: Path) -> sides.Given:
    return sides.Given(folder=str(folder), batch_size=4, eval_batch_size=4, pool=0)


@pytest.fixture(scope="module")
def both(given: sides.Given) -> dict[str, Any]:
    """The measures of each side, by its name."""
    return {name: sides.measures(name, given) for name in ("plain", "vlbench")}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = SourceFileLoader("benchmarks_run", str(ROOT / "benchmarks" / "run"))
    spec = importlib.util.spec_from_loader("benchmarks_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = written
    return module


def variant(**changes: Any) -> Variant:
    card = load_variant("videolights_b", ROOT)
    return edit(card, {key.replace("__", "."): value for key, value in changes.items()}, origin="test").variant


# --- the model and its losses ---


def batch(seed: int, lengths: list[int], words: list[int], moments: list[int]) -> tuple[Inputs, Targets]:
    """Random features in float64, 21 wide and 13 wide, padded on the right."""
    g = torch.Generator().manual_seed(seed)
    B, L, W, N = len(lengths), max(lengths), max(words), max(moments)
    clip_mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    word_mask = torch.arange(W) < torch.tensor(words)[:, None]
    span_mask = torch.arange(N) < torch.tensor(moments)[:, None]
    features = torch.randn(B, L, 21, generator=g).double() * clip_mask[..., None]
    text = torch.randn(B, W, 13, generator=g).double() * word_mask[..., None]
    spans = (torch.rand(B, N, 2, generator=g) * torch.tensor([0.5, 0.2]) + torch.tensor([0.2, 0.05])).double()
    labels = torch.randint(0, 13, (B, L), generator=g).double() * clip_mask
    pairs = torch.randint(0, min(lengths), (2, B, 2), generator=g)
    inputs = Inputs(features, clip_mask, text, word_mask)
    salient = (labels > 0).double()
    return inputs, Targets(spans * span_mask[..., None], span_mask, labels, salient, pairs[0], pairs[1])


CASES = {
    "as in the benchmark": ({}, batch(0, [20, 20, 20, 20], [9, 5, 7, 8], [1, 3, 2, 1]), 0),
    "padded videos": ({}, batch(1, [20, 13, 17, 20, 6], [9, 5, 7, 4, 9], [1, 3, 2, 1, 5]), 2),
    "a sample alone": ({}, batch(2, [12], [6], [2]), 1),
    "other depths": (
        {"model__fusion__layers": 2, "model__encoder__layers": 1, "model__decoder__layers": 2},
        batch(3, [9, 12], [4, 6], [2, 1]),
        7,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_plain_model_is_the_model(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, loss and gradient in float64, without dropout."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # where vlbench goes back to float32 on purpose
    changes, (inputs, targets), epoch = case
    card = variant(**changes)
    ours = assemble(card, clip_width=21, word_width=13, seed=5).double().eval()
    layers = {name: len(getattr(ours, name).layers) for name in ("fusion", "encoder", "decoder")}
    other = plain.PlainVideoLights(21, 13, **layers).double().eval()
    other.load_state_dict(to_official(ours))
    assert sum(parameter.numel() for parameter in other.parameters()) == parameters_of(ours)

    outputs = ours(inputs)
    losses = Criterion.of(card)(outputs, targets, epoch=epoch)
    losses.total.backward()
    given, wanted = sides.plain_batch_of(inputs, targets)
    out = other(**given)
    found = plain.losses_of(out, wanted, epoch)
    total = plain.total_of(found)
    total.backward()

    close = {"rtol": 1e-10, "atol": 1e-10}
    real = inputs.clip_mask
    torch.testing.assert_close(out["spans"], outputs.spans_cw[-1], **close)
    torch.testing.assert_close(out["logits"], outputs.logits[-1], **close)
    for name in ("saliency", "saliency_negative", "saliency_feedback"):
        torch.testing.assert_close(out[name][real], getattr(outputs, name)[real], **close)
    torch.testing.assert_close(total, losses.total, **close)

    theirs, own = dict(other.named_parameters()), dict(ours.named_parameters())
    gap, size = 0.0, 0.0
    for official, name in official_names(ours).items():
        first, second = theirs[official].grad, own[name].grad
        first = torch.zeros_like(own[name]) if first is None else first.reshape(own[name].shape)
        second = torch.zeros_like(own[name]) if second is None else second
        gap, size = gap + float((first - second).square().sum()), size + float(second.square().sum())
    assert size > 0
    assert (gap / size) ** 0.5 < 1e-10


def test_the_plain_model_has_the_parameters_of_the_released_one() -> None:
    model = plain.PlainVideoLights(3586, 1280)
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_796_263


def test_a_plain_step_moves_the_weights_and_reads_every_loss(given: sides.Given) -> None:
    side = sides.PlainSide(given)
    before = {name: value.clone() for name, value in side.model.state_dict().items()}
    meters: dict[str, plain.Meter] = {}
    inputs, targets = sides.plain_batch(side.batches[0], torch.device("cpu"))
    side.model.train()
    first = plain.train_step(side.model, side.optimizer, inputs, targets, 0, meters)
    assert np.isfinite(first)
    assert {"total", "span", "saliency", "contrastive_0", "class_error_1"} <= meters.keys()
    assert all(meter.count == 1 for meter in meters.values())
    moved = [name for name, value in side.model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) > 100
    assert "transformer.decoder.layers.2.linear2.weight" in moved


# --- data ---


def test_batches_are_the_same_bits(folder: Path) -> None:
    dataset, card = open_dataset(made_up.DATASET, find(folder)), variant()
    split = Split(dataset, "train", card.features, Packed.open(dataset, "train", card.features, None))
    ours = split.batch(range(4), np.random.default_rng(0))
    samples = sides.PlainSide(sides.Given(folder=str(folder))).samples("train")
    annotations, inputs, targets = plain.collate([samples[row] for row in range(4)])
    assert [row["qid"] for row in annotations] == list(ours.qids)
    assert np.array_equal(inputs["clips"].numpy(), ours.clips)
    assert np.array_equal(inputs["words"].numpy(), ours.words)
    assert np.array_equal(inputs["clip_mask"].numpy().astype(bool), ours.clip_mask)
    assert np.array_equal(inputs["word_mask"].numpy().astype(bool), ours.word_mask)
    assert np.array_equal(targets["labels"].numpy(), ours.saliency)
    for b, windows in enumerate(targets["windows"]):
        if len(samples.rows[b]["relevant_windows"]) < plain.MOST_WINDOWS:
            assert np.allclose(windows.numpy(), ours.spans_cw[b][ours.span_mask[b]], atol=1e-7)


def test_made_up_data_have_the_form_of_qvhighlights(folder: Path) -> None:
    dataset, card = open_dataset(made_up.DATASET, find(folder)), variant()
    assert dataset.missing("train", card.features) == []
    assert [len(dataset.queries(name)) for name in ("train", "val")] == [11, 6]
    some = made_up.annotations(400, seed=1)
    assert some == made_up.annotations(400, seed=1)
    assert some != made_up.annotations(400, seed=2)
    for row in some:
        assert len(row["relevant_clip_ids"]) == len(row["saliency_scores"]) > 0
        covered = [clip for start, end in row["relevant_windows"] for clip in range(start // 2, end // 2)]
        assert covered == row["relevant_clip_ids"]
        assert row["relevant_windows"][-1][1] <= row["duration"] <= 150


# --- evaluation ---


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plain_evaluator_is_the_published_one(tmp_path: Path, seed: int) -> None:
    truth = made_up.annotations(120, seed)
    predicted = made_up.predictions(truth, seed)
    file = tmp_path / "truth.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in truth))
    ours = published(read_annotations(file), [prediction_of(row) for row in predicted], "videolights")
    found = plain_scores.evaluate(predicted, truth, processes=0)
    assert ours.brief.keys() <= found.keys()
    for name, value in ours.brief.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
        assert round(found[name], 2) == round(value, 2), name


def test_pools_change_nothing() -> None:
    truth = made_up.annotations(60, 4)
    predicted = made_up.predictions(truth, 4)
    assert plain_scores.evaluate(predicted, truth, processes=2) == plain_scores.evaluate(predicted, truth, processes=0)


def test_both_sides_see_the_same_in_an_evaluation(given: sides.Given) -> None:
    found = [sides.measures(name, given)("evaluation")() for name in ("plain", "vlbench")]
    checks = rows._equal_scores(*found)
    assert checks["metrics compared"] == 12
    assert checks["largest difference in points"] < 1e-6
    written = [json.loads(line) for line in (Path(given.folder) / "plain.jsonl").read_text().splitlines()]
    assert [row["qid"] for row in written] == [12, 13, 14, 15, 16, 17]
    assert all(0 <= start <= end <= 150 for row in written for start, end, _ in row["pred_relevant_windows"])


# --- sides ---


def test_both_sides_start_from_the_same_loss(given: sides.Given) -> None:
    first, second = (sides.measures(name, given)("loss")() for name in ("plain", "vlbench"))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["gradient"] == pytest.approx(first["gradient"], rel=1e-4)


@pytest.mark.parametrize("name", ["plain", "vlbench"])
@pytest.mark.parametrize("what", ["step", "epoch", "loading"])
def test_a_side_can_be_asked_again(both: dict[str, Any], name: str, what: str) -> None:
    measure = both[name](what)
    assert both[name](what) is measure
    for _ in range(2):
        json.dumps(measure())


def test_loaded_bits_are_equal(both: dict[str, Any]) -> None:
    first, second = (both[name]("loaded") for name in ("plain", "vlbench"))
    assert [first() for _ in range(3)] == [second() for _ in range(3)]


def test_a_side_can_be_told_to_compile(folder: Path) -> None:
    edits = {"train.precision": "bf16", **rows.ONE_SHAPE}
    side = sides.VlbenchSide(sides.Given(folder=str(folder), batch_size=4, edits=edits, compile=True))
    assert side.stepper.how == "compiled"
    assert side.fit.recipe.precision == "bf16"
    longest = max(row["duration"] // 2 for row in made_up.annotations(17, 3)[:11])
    assert {batch.clips.shape[1] for batch in side.batches} == {longest}


def test_a_pack_trains_what_its_members_train_alone(folder: Path) -> None:
    more = {"variant": "videolights_quick", "edits": {**rows.ONE_SHAPE, "model.dropout": 0.0, **NO_DROPOUT}}
    find_measure = sides.measures("vlbench", sides.Given(folder=str(folder), batch_size=4, **more))
    alone, packed = find_measure("alone"), find_measure("packed")
    for _ in range(2):
        assert packed() == pytest.approx(alone(), rel=1e-3)
    assert len(packed()) == rows.SEEDS


def test_the_products_of_a_step_are_counted(both: dict[str, Any]) -> None:
    floor, inference = both["vlbench"]("floor")(), both["vlbench"]("evaluation_floor")()
    assert floor["operations"] > 1e9
    # six queries forward, without the negative pair, against four forward with it and back
    assert inference["operations"] < floor["operations"] / 2
    assert min(floor["fp32"], floor["bf16"], inference["fp32"]) > 0
    times = {"cpu": {"slow_s": {"median": 4.0}, "fast_s": {"median": 2.0}}}
    said = rows._product_floor({"operations": 1e11, "fp32": 1e11}, times, "fp32", steps=1)
    assert "take 1.00 of 2.00 s at the 100 GFLOP/s" in said
    assert "at most 4.0x" in said


# --- turns ---


def test_turns_alternate_and_ratios_are_of_a_round() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]) -> Any:
        left = iter(seconds)

        def once() -> turns.Times:
            order.append(name)
            value = next(left)
            return {"cpu": value, "wall": 10 * value}

        return once

    found = turns.take_turns(side("slow", [4.0, 9.0, 8.0]), side("fast", [2.0, 3.0, 8.0]), 3)
    assert order == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert found["cpu"]["ratio"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert found["wall"]["slow_s"]["median"] == 80.0
    assert found["rounds"] == 3


def test_a_side_is_a_process_that_answers(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nfrom turns import serve\n"
        "seen = []\n"
        "def measure():\n    print('noise')\n    seen.append(1)\n    return {'calls': len(seen), 'pid': os.getpid()}\n"
        "serve(lambda what: {'count': measure}[what])\n"
    )
    with turns.Side([sys.executable, script]) as side:
        first, second = side.ask("count"), side.ask("count", 3)
        assert (first["value"]["calls"], second["value"]["calls"]) == (1, 4)
        assert first["value"]["pid"] == side.process.pid
        assert min(first["wall"], second["cpu"] + 1e-9) > 0
        seen = rows.both([side], "count")
        assert seen.keys() == {"cpu", "wall"}
    assert side.process.returncode == 0


def test_a_side_that_ends_early_ends_the_benchmark() -> None:
    side = turns.Side([sys.executable, "-c", "pass"])
    side.process.wait()
    with pytest.raises((SystemExit, BrokenPipeError)):
        side.ask("anything")
    for stream in (side.process.stdin, side.process.stdout):
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_the_machine_is_named() -> None:
    found = turns.machine()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert set(found["narrow"]) <= set(turns.NARROW)


# --- the table ---


def test_every_row_has_its_target() -> None:
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    targets = {row.name: row.target for row in rows.ROWS if row.target is not None}
    assert targets == {
        "step": 1.4,
        "step-compiled": 2.6,
        "two-fits": 3.6,
        "evaluation": 3.9,
        "scoring": 50,
        "loading": 15,
        "pack": 2.0,
        "pack-fp32": 1.3,
        "gpu-fit": 10,
        "gpu-study": 20,
        "start": 5,
    }


@pytest.mark.parametrize(("ratio", "most", "met"), [(1.5, False, True), (1.3, False, False), (1.3, True, True)])
def test_a_target_is_met_from_its_side(ratio: float, most: bool, met: bool) -> None:
    row = rows.Row("a", "b", "c", 1.4, "cpu", lambda bench: rows.Found({}), most)
    assert row.met(ratio) is met


def test_the_table_says_what_was_measured_and_what_was_not(program: ModuleType, tmp_path: Path) -> None:
    def found(bench: rows.Bench) -> rows.Found:
        times = turns.take_turns(lambda: {"cpu": 3.0, "wall": 3.0}, lambda: {"cpu": 2.0, "wall": 1.0}, bench.rounds)
        return rows.Found(times, {"bits are equal": True, "gap": 1.25e-7}, "a floor with a number")

    def unmeasured(bench: rows.Bench) -> rows.Found:
        raise rows.Unmeasured("needs a GPU")

    bench = rows.Bench(tmp_path, rounds=2)
    table = [
        rows.Row("one", "a step", "the plain loop", 1.4, "cpu", found),
        rows.Row("two", "a batch", "files", 15, "wall", found),
        rows.Row("three", "a fit", "the same GPU", 10, "wall", unmeasured),
        rows.Row("four", "an epoch", "the plain loop", None, "cpu", found),
    ]
    results = [program.measured(row, bench) for row in table]
    json.dumps(results)
    assert [result.get("met") for result in results] == [True, False, None, None]
    text = "\n".join(program.lines(results))
    assert "1.50x" in text
    assert ">= 1.4x  yes" in text
    assert "3.00x" in text
    assert ">= 15x  no" in text
    assert "needs a GPU" in text
    assert text.count("a floor with a number") == 2  # not where the target is met
    assert "gap: 1e-07" in text


def test_rows_that_need_something_else_say_so(tmp_path: Path) -> None:
    bench = rows.Bench(tmp_path)
    with pytest.raises(rows.Unmeasured, match="--before"):
        rows.command("help")(bench)
    if not torch.cuda.is_available():
        for measure in (rows.one_fit_on_gpu, rows.study_on_gpu):
            with pytest.raises(rows.Unmeasured, match="needs a GPU"):
                measure(bench)


def test_commands_that_are_timed_exist() -> None:
    known = {name for words in startup.commands() for name in words}
    assert {"ablate", "stress", "report"} <= known
    for case in commands.CASES.values():
        for words in (case.command, case.prepare):
            assert not words or words[0] in known | {"--help"}


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 2"):
        commands.run(("no-such-command",), ROOT, tmp_path)
    assert commands.run(("--help",), ROOT, tmp_path)["cpu"] > 0
