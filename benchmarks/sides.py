"""What the two sides do when asked: ``plain`` the plain loop, ``vlbench`` this package, on the same data and weights.

    python sides.py plain '{"folder": "FOLDER"}'         # FOLDER: of made_up.write_dataset
    python sides.py vlbench '{"folder": "FOLDER", "precision": "bf16"}'

Reads questions from stdin (``turns.serve``). Both sides start from the weights that vlbench gives seed 1. Measures:

    step        one optimiser step on a batch that is in memory already
    loss        total loss and norm of the gradient of the first batch without dropout, for comparison
    epoch       one pass over ``train``: data, steps, means of all losses, a line of log
    evaluation  one evaluation of ``val``: data, forward, windows, metrics
    alone       an epoch of ``train`` for five seeds, one fit after another (vlbench alone)
    packed      the same as a pack
    loading     the next batch of ``train`` in file order, as the model is given it, with its targets
    loaded      a digest of the bits of that batch
    scoring     the metrics of made-up predictions of 1,550 queries
    arranging   the part of that which brings rows into arrays (vlbench alone)
    floor, evaluation_floor
                the matrix products of a step or an evaluation, and how fast this machine multiplies (vlbench alone)
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count, cycle
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import plain
import plain_scores
import torch
from torch import Tensor, nn
from turns import Measure, serve

from vlbench.cards.kinds import Variant
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.annotations import read_annotations
from vlbench.data.base import Dataset, open_dataset
from vlbench.data.packed import Packed
from vlbench.data.predictions import prediction_of
from vlbench.data.samples import Batch
from vlbench.metrics.base import Packs, score
from vlbench.nn.losses import Criterion
from vlbench.nn.model import Inputs, Targets, VideoMomentModel, assemble
from vlbench.nn.official import to_official
from vlbench.train.batch import Split, to_inputs, to_targets
from vlbench.train.loop import Course, evaluate, train_epoch
from vlbench.train.predict import autocast
from vlbench.train.recipe import Recipe
from vlbench.train.step import Stepper
from vlbench.workspace import find

HERE = Path(__file__).resolve()
SEED, SCORED = 1, 1550


@dataclass(frozen=True)
class Given:
    """What both sides are told. edits: of the card, such as ``train.precision``; they act on vlbench alone."""

    folder: str
    device: str = "cpu"
    variant: str = "videolights_b"
    edits: dict[str, Any] | None = None
    batch_size: int = 32
    eval_batch_size: int = 100
    pool: int = 8
    compile: bool = False


class Common:
    """The data, and the model that both start from."""

    def __init__(self, given: Given) -> None:
        self.given, self.device, self.folder = given, torch.device(given.device), Path(given.folder)
        self.epochs = 0

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(made_up.DATASET, find(self.folder))

    @cached_property
    def variant(self) -> Variant:
        edits = {"train.batch_size": self.given.batch_size, "train.eval_batch_size": self.given.eval_batch_size}
        changes = {**edits, **(self.given.edits or {})}
        return edit(load_variant(self.given.variant, HERE.parents[1]), changes, origin="benchmark").variant

    def split(self, name: str) -> Split:
        """The queries of a split with their packed features, kept in the data's folder."""
        cache = self.folder / "packed"
        return Split(self.dataset, name, self.variant.features, Packed.open(self.dataset, name, self.features, cache))

    @property
    def features(self) -> Any:
        return self.variant.features

    def first_model(self) -> VideoMomentModel:
        clip_width, word_width = self.dataset.input_widths(self.features)
        return assemble(self.variant, clip_width=clip_width, word_width=word_width, seed=SEED)

    @cached_property
    def batches(self) -> list[Batch]:
        """The first four batches of ``train`` in this seed's order."""
        recipe = Recipe.of(self.variant.recipe)
        found = self.split("train").training(SEED, 0, recipe.batch_size, padding=recipe.padding)
        return [batch for batch, _ in zip(found, range(4), strict=False)]

    @cached_property
    def scored_rows(self) -> list[made_up.Row]:
        return made_up.annotations(SCORED, seed=1)

    def _loader(self) -> Callable[[], Any]:
        """What gives the next batch, in the side's own form."""
        raise NotImplementedError

    def _told(self, loaded: Any) -> tuple[Tensor, ...]:
        """Clips and words with their masks, of a batch in the side's own form."""
        raise NotImplementedError

    def loading(self) -> Measure:
        load = self._loader()
        return lambda: load() and None

    def loaded(self) -> Measure:
        load = self._loader()
        return lambda: digest_of(*self._told(load()))


class PlainSide(Common):
    @cached_property
    def model(self) -> plain.PlainVideoLights:
        first = self.first_model()
        state = to_official(first)
        clip_width, word_width = self.dataset.input_widths(self.features)
        layers = [len(part.layers) for part in (first.fusion, first.encoder, first.decoder)]
        model = plain.PlainVideoLights(clip_width, word_width, fusion=layers[0], encoder=layers[1], decoder=layers[2])
        model.load_state_dict(state)
        return model.to(self.device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return plain.optimizer_of(self.model)

    def samples(self, name: str) -> plain.Samples:
        folders = [
            made_up.encoder_folders(self.folder, kind, getattr(self.features, kind)) for kind in ("video", "text")
        ]
        return plain.Samples(self.folder / f"{name}.jsonl", *folders)

    def step(self) -> Measure:
        turns, meters = cycle([plain_batch(batch, self.device) for batch in self.batches]), {}
        self.model.train()
        return lambda: plain.train_step(self.model, self.optimizer, *next(turns), 0, meters)

    def loss(self) -> Measure:
        def look() -> dict[str, float]:
            inputs, targets = plain_batch(self.batches[0], self.device)
            self.model.eval()
            total = plain.total_of(plain.losses_of(self.model(**inputs), targets, 0))
            return _loss_and_gradient(self.model, total)

        return look

    def epoch(self) -> Measure:
        samples, log = self.samples("train"), self.folder / "plain.log"

        def once() -> float:
            self.epochs += 1
            return plain.train_epoch(
                self.model,
                self.optimizer,
                samples,
                epoch=self.epochs - 1,
                device=self.device,
                log=log,
                batch_size=self.given.batch_size,
            )

        return once

    def evaluation(self) -> Measure:
        samples, file = self.samples("val"), self.folder / "plain.jsonl"
        return lambda: plain.evaluate_epoch(
            self.model,
            samples,
            device=self.device,
            file=file,
            batch_size=self.given.eval_batch_size,
            processes=self.given.pool,
        )

    def _loader(self) -> Callable[[], dict[str, Tensor]]:
        samples = self.samples("train")
        rows = cycle(_chunks(len(samples), self.given.batch_size))

        def next_batch() -> dict[str, Tensor]:
            _, inputs, _ = plain.collate([samples[row] for row in next(rows)])
            return inputs

        return next_batch

    def _told(self, loaded: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return loaded["clips"], loaded["clip_mask"].bool(), loaded["words"], loaded["word_mask"].bool()

    def scoring(self) -> Measure:
        rows = self.scored_rows
        predicted = made_up.predictions(rows)
        return lambda: plain_scores.evaluate(predicted, rows, processes=self.given.pool)


class VlbenchSide(Common):
    def course(self, seed: int) -> Course:
        """A fit of this variant from its first epoch on, in a folder of its own."""
        return Course(
            self.variant,
            self.training,
            self.training,
            seed=seed,
            device=self.device,
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            log=lambda event: None,
        )

    @cached_property
    def training(self) -> Split:
        return self.split("train")

    @cached_property
    def fit(self) -> Course:
        return self.course(SEED)

    @cached_property
    def stepper(self) -> Stepper:
        return self.fit.stepper(compiled=self.given.compile)

    @cached_property
    def criterion(self) -> Criterion:
        return Criterion.of(self.variant)

    def step(self) -> Measure:
        turns = cycle([(to_inputs(batch, self.device), to_targets(batch, self.device)) for batch in self.batches])
        self.stepper.model.train()
        self.stepper.begin()
        return lambda: self.stepper.step(*next(turns), frozen=False)

    def loss(self) -> Measure:
        def look() -> dict[str, float]:
            batch, model = self.batches[0], self.fit.model
            model.eval()
            with autocast(self.device, self.fit.recipe.precision):
                outputs = model(to_inputs(batch, self.device))
            total = self.criterion(outputs, to_targets(batch, self.device), epoch=0).total
            return _loss_and_gradient(model, total)

        return look

    def epoch(self) -> Measure:
        log = self.folder / "vlbench.log"

        def once() -> float:
            return self._train(self.fit, self.stepper, log)

        return once

    def _train(self, fit: Course, stepper: Stepper, log: Path) -> float:
        fit.begin(fit.progress.next_epoch)
        losses = train_epoch(stepper, fit.training, seed=fit.seed, epoch=fit.progress.next_epoch)
        fit.progress.next_epoch += 1
        with log.open("a") as stream:
            stream.write(json.dumps(losses) + "\n")
        return losses["total"]

    def alone(self) -> Measure:
        """An epoch of five seeds, one fit after another."""
        fits = [self.course(seed) for seed in range(1, 6)]
        pairs, log = [(fit, fit.stepper(compiled=self.given.compile)) for fit in fits], self.folder / "alone.log"
        return lambda: [self._train(fit, stepper, log) for fit, stepper in pairs]

    def packed(self) -> Measure:
        """An epoch of the same five seeds as one computation."""
        from vlbench.train.pack import Stack

        fits = [self.course(seed) for seed in range(1, 6)]
        stack, numbers = Stack(fits, self.device, now=fits), count()
        return lambda: [found and found["total"] for found in stack.epoch(next(numbers))]

    def evaluation(self) -> Measure:
        split = self.split("val")
        return lambda: evaluate(self.fit.model, split, self.fit.recipe, self.device).means()

    def _loader(self) -> Callable[[], Inputs]:
        split = self.training
        rows, draws = cycle(_chunks(len(split), self.given.batch_size)), np.random.default_rng(0)

        def next_batch() -> Inputs:
            batch = split.batch(next(rows), draws)
            to_targets(batch, self.device)
            return to_inputs(batch, self.device)

        return next_batch

    def _told(self, loaded: Inputs) -> tuple[Tensor, ...]:
        return loaded.clips, loaded.clip_mask, loaded.words, loaded.word_mask

    def scoring(self) -> Measure:
        queries, rows = self._scored()
        return lambda: score(queries, rows).means()

    def arranging(self) -> Measure:
        """The part of scoring that brings windows and scores from rows into arrays."""
        queries, rows = self._scored()

        def arrange() -> None:
            packs = Packs(queries, rows, "compatible")
            assert packs.moments is not None
            assert packs.clips is not None

        return arrange

    def _scored(self) -> Any:
        file = self.folder / "scored.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in self.scored_rows))
        return read_annotations(file), [prediction_of(row) for row in made_up.predictions(self.scored_rows)]

    def floor(self) -> Measure:
        def look() -> dict[str, float]:
            inputs = to_inputs(self.batches[0], self.device)
            targets = to_targets(self.batches[0], self.device)
            return {"operations": _operations(self.fit.model, self.criterion, inputs, targets), **_speeds(self.device)}

        return look

    def evaluation_floor(self) -> Measure:
        def look() -> dict[str, float]:
            inputs, queries = to_inputs(self.batches[0], self.device), len(self.dataset.queries("val"))
            each = _inference_operations(self.fit.model, inputs) / len(inputs.clips)
            return {"operations": queries * each, **_speeds(self.device)}

        return look


# --- what both do -----------------------------------------------------------------------------------------------------


def plain_batch(batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A batch of vlbench in the form of the plain loop."""
    return plain_batch_of(to_inputs(batch, device), to_targets(batch, device))


def plain_batch_of(inputs: Inputs, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of tensors."""
    return (
        {
            "clips": inputs.clips,
            "clip_mask": inputs.clip_mask.float(),
            "words": inputs.words,
            "word_mask": inputs.word_mask.float(),
        },
        {
            "windows": [spans[mask] for spans, mask in zip(targets.spans_cw, targets.span_mask, strict=True)],
            "labels": targets.saliency,
            "salient": targets.salient,
            "positive": targets.positive,
            "negative": targets.negative,
        },
    )


def digest_of(*tensors: Tensor) -> str:
    """Equal for equal bits."""
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def _chunks(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _loss_and_gradient(model: nn.Module, total: Tensor) -> dict[str, float]:
    model.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    squares = [parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return {"loss": float(total.detach()), "gradient": float(torch.stack(squares).sum().sqrt())}


def _operations(model: VideoMomentModel, criterion: Criterion, inputs: Inputs, targets: Targets) -> float:
    """Multiplications and additions of matrix products in one step without dropout."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        criterion(model(inputs), targets, epoch=0).total.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _inference_operations(model: VideoMomentModel, inputs: Inputs) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs, negative=False)
    return float(counter.get_total_flops())


def _speeds(device: torch.device) -> dict[str, float]:
    """Operations per second of the product that these models multiply most: 2,400 rows, 256 by 1,024."""
    import time

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rows = torch.randn(2400, 256, device=device, dtype=dtype)
        weight = torch.randn(256, 1024, device=device, dtype=dtype)
        best = float("inf")
        for _ in range(10):
            started = time.process_time() if device.type == "cpu" else time.perf_counter()
            for _ in range(4):
                rows @ weight
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken = (time.process_time() if device.type == "cpu" else time.perf_counter()) - started
            best = min(best, taken / 4)
        found[name] = 2 * 2400 * 256 * 1024 / best
    return found


SIDES: dict[str, Callable[[Given], Common]] = {"plain": PlainSide, "vlbench": VlbenchSide}


def measures(name: str, given: Given) -> Callable[[str], Measure]:
    """A side's measures by name, each prepared when it is first asked for."""
    side, ready = SIDES[name](given), dict[str, Measure]()

    def find(what: str) -> Measure:
        if what not in ready:
            ready[what] = getattr(side, what)()
        return ready[what]

    return find


def main() -> None:
    import os

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    serve(measures(sys.argv[1], Given(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
