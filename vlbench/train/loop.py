"""The training loop: epochs, evaluation on the tune split, the selected and the last checkpoint.

It reads from top to bottom as the recipe does. The reporting split is not known here: a fit cannot look at it. The
weights of evaluated epochs stay in EPOCH_WEIGHTS until the fit was scored, so that the scoring can say what another
choice of the epoch would have given; they are scratch, and nothing but that scoring may count on them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlbench import catalog
from vlbench.canon import digest_file
from vlbench.cards.kinds import Variant
from vlbench.errors import CardError, Diverged
from vlbench.files import replacing
from vlbench.metrics.base import Scores, score
from vlbench.nn.losses import Criterion
from vlbench.nn.model import VideoMomentModel, assemble, parameters_of
from vlbench.train.batch import Split, to_inputs, to_targets
from vlbench.train.checkpoint import Progress, load_checkpoint, same_weights, save_checkpoint, save_weights
from vlbench.train.cost import Cost, Meter
from vlbench.train.handed import handing
from vlbench.train.phases import phase, timed
from vlbench.train.predict import predict
from vlbench.train.recipe import Recipe, make_optimizer
from vlbench.train.step import Stepper, make_stepper

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = {"selected": "model.safetensors", "last": "last.safetensors"}
EPOCH_SCORES = "epochs.npz"
EPOCH_WEIGHTS = "epochs"  # folder of scratch files, one per kept epoch
MOST_KEPT = 50  # epochs whose weights are kept: bounds the disk during a fit and the forward passes of its scoring

Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit leaves behind, beside its files. Values are fractions, not points."""

    parameters: int
    epochs: int
    selected_epoch: int
    summary: Mapping[str, float]
    weights: Mapping[int, str]  # digests of the weights after evaluated epochs
    seconds: float
    cost: Cost
    step: str  # how its steps were carried out
    resumed: int


def build(variant: Variant, split: Split, seed: int) -> VideoMomentModel:
    """The variant's model for this dataset's widths, with this seed's initial weights."""
    dataset = split.dataset
    clip_width, word_width = dataset.input_widths(variant.features)
    return assemble(
        variant,
        clip_width=clip_width,
        word_width=word_width,
        seed=seed,
        tasks=dataset.trains,
    )


def fit(
    variant: Variant,
    training: Split,
    tuning: Split,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    log: Log,
    resume: bool = True,
    until: int | None = None,
    keep: bool = True,
    share: float = 1.0,
    compiled: bool = False,
) -> FitResult | None:
    """Train one variant with one seed and leave weights, per-epoch scores and scratch weights in ``folder``.

    After every epoch a checkpoint is written, so a kill loses at most the epoch in progress; calling again goes on from
    it and ends with the same weights as an unbroken run. until: pause after so many epochs, with the checkpoint.
    Returns None where the fit is paused and not finished. keep: leave the weights of evaluated epochs for a scoring;
    a fit that nobody is going to score keeps their digests only. share: the part of a GPU that is this fit's.
    compiled: steps as machine code, see ``train.step``.

    Raises: Diverged if a loss, a prediction or a gradient is not finite; CardError if steps cannot be compiled.
    """
    course = Course(
        variant,
        training,
        tuning,
        seed=seed,
        device=device,
        folder=folder,
        log=log,
        resume=resume,
        keep=keep,
        share=share,
    )
    stepper = course.stepper(compiled=compiled)
    for epoch in course.left(until):
        started, meter = time.perf_counter(), Meter(str(device), share)
        course.begin(epoch)
        losses = train_epoch(stepper, course.training, seed=seed, epoch=epoch)
        course.how = stepper.how
        course.end(epoch, losses, time.perf_counter() - started, meter.lap())
    return course.result()


class Course:
    """One fit on its way through the epochs: its model, its optimiser, how far it is, and what it writes.

    Whoever trains it calls ``begin`` and ``end`` around every epoch that is ``left``, and asks for the ``result``; how
    the steps of an epoch are carried out is not its business. Arguments: as for ``fit``. training: what is trained on,
    spoiled if the recipe says so.
    """

    def __init__(
        self,
        variant: Variant,
        training: Split,
        tuning: Split,
        *,
        seed: int,
        device: torch.device,
        folder: Path,
        log: Log,
        resume: bool = True,
        keep: bool = True,
        share: float = 1.0,
    ) -> None:
        training, tuning = training.on(device, share), tuning.on(device, share)
        self.variant, self.tuning, self.seed, self.device = variant, tuning, seed, device
        self.folder, self.log, self.keep, self.share = folder, log, keep, share
        self.recipe = recipe = Recipe.of(variant.recipe)
        if (spoiled := recipe.spoils(seed)) is not None and spoiled.on == "label":
            training = training.mislabelled(spoiled)
        self.model = build(variant, training, seed).to(device)
        if spoiled is not None and spoiled.on == "handed":
            training = handing(self.model, variant, spoiled, training)
        self.training = training
        self.optimizer = make_optimizer(self.model, recipe)
        self.progress = Progress()
        if resume and (folder / CHECKPOINT).exists():
            self.progress = load_checkpoint(folder / CHECKPOINT, self.model, self.optimizer)
        self.how = "eager"  # how its steps are carried out
        self.names: tuple[str, ...] = ()
        self.kept = kept_epochs(recipe)
        (folder / EPOCH_WEIGHTS).mkdir(exist_ok=True)

    def left(self, until: int | None = None) -> range:
        """The epochs that are still to be trained, up to a pause."""
        return range(self.progress.next_epoch, self.recipe.epochs if until is None else min(until, self.recipe.epochs))

    def stepper(self, *, compiled: bool = False) -> Stepper:
        """What carries out the steps of this fit. Raises CardError if they cannot be compiled."""
        spoiled = self.recipe.spoils(self.seed)
        stepper = make_stepper(
            self.model,
            Criterion.of(self.variant, self.training.dataset.trains),
            self.optimizer,
            self.recipe,
            self.device,
            queries=len(self.training),
            compiled=compiled,
            watched=spoiled is not None and spoiled.on == "handed",
        )
        steps_per_epoch = math.ceil(len(self.training) / self.recipe.batch_size)
        stepper.stops, stepper.frozen = _undertrained(self.model, self.recipe, self.seed, steps_per_epoch)
        return stepper

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(epoch)

    def end(
        self, epoch: int, losses: Mapping[str, float], seconds: float, cost: Cost, scores: Scores | None = None
    ) -> None:
        """After the last step of an epoch: evaluate, keep the best weights, write the checkpoint, tell the log.

        losses: means over the epoch. seconds, cost: that the steps took, this fit's share of them where several were
        trained together. scores: of the tune split, where they are known already. Raises Diverged if the selecting
        metrics are not numbers.
        """
        started, meter = time.perf_counter(), Meter(str(self.device), self.share)
        recipe, progress = self.recipe, self.progress
        event: dict[str, Any] = {"event": "epoch", "epoch": epoch, "lr": recipe.lr_at(epoch), "loss": dict(losses)}
        if recipe.evaluates(epoch):
            with phase("evaluation"):
                scores = scores or evaluate(self.model, self.tuning, recipe, self.device)
            self.names = tuple(scores.values)
            value = selection_value(scores, recipe)
            progress.evaluated.append(epoch)
            progress.scores.append(as_float16(scores))
            event["tune"] = {name: scores.mean(name) for name in self.names}
            with phase("checkpoint"):
                self._keep_weights(epoch, value)
        progress.next_epoch = epoch + 1
        progress.seconds += seconds + time.perf_counter() - started
        progress.cost = progress.cost.plus(cost).plus(meter.lap())
        with phase("checkpoint"), replacing(self.folder / CHECKPOINT) as path:
            save_checkpoint(path, self.model, self.optimizer, progress)
        with phase("logging"):
            told = {"seconds": round(progress.seconds, 3), **progress.cost.as_json(), "epochs": recipe.epochs}
            self.log({**event, **told})

    def _keep_weights(self, epoch: int, value: float) -> None:
        """Of an evaluated epoch: for its scoring, and as the best so far. value: of the selecting metrics."""
        progress, folder = self.progress, self.folder
        if epoch in self.kept:
            _save_epoch(self.model, weights_at(folder, epoch), epoch)
            progress.weights[epoch] = digest_file(weights_at(folder, epoch))
        if value > progress.best_value:
            progress.best_epoch, progress.best_value = epoch, value
            _save_as(self.model, folder, "selected", epoch)
        if not self.keep:
            weights_at(folder, epoch).unlink(missing_ok=True)

    def result(self) -> FitResult | None:
        """What the fit leaves behind, after its last files are written; None where it is paused."""
        recipe, progress, folder = self.recipe, self.progress, self.folder
        if not self.keep:
            with contextlib.suppress(OSError):  # not empty: a scoring that was asked for earlier may still come
                (folder / EPOCH_WEIGHTS).rmdir()
        if progress.next_epoch < recipe.epochs:
            return None
        _save_as(self.model, folder, "last", recipe.epochs - 1)
        names = self.names
        if not names:  # resumed after the last epoch, before the record was written
            names = tuple(evaluate(self.model, self.tuning, recipe, self.device).values)
        with replacing(folder / EPOCH_SCORES) as path, path.open("wb") as stream:
            qids = [str(query.qid) for query in self.tuning.queries]
            save_epoch_scores(stream, names, qids, progress.evaluated, np.stack(progress.scores))
        return FitResult(
            parameters=parameters_of(self.model),
            epochs=recipe.epochs,
            selected_epoch=progress.best_epoch,
            summary=_summary(names, progress),
            weights=progress.weights,
            seconds=progress.seconds,
            cost=progress.cost,
            step=self.how,
            resumed=progress.resumed,
        )


def kept_epochs(recipe: Recipe) -> tuple[int, ...]:
    """The epochs whose weights wait for the scoring: every evaluated one, or every n-th so that MOST_KEPT are enough.

    A function of the recipe alone. Counted back from the last epoch, which is always among them.
    """
    evaluated = [epoch for epoch in range(recipe.epochs) if recipe.evaluates(epoch)]
    return tuple(evaluated[:: -math.ceil(len(evaluated) / MOST_KEPT)][::-1])


def weights_at(folder: Path, epoch: int) -> Path:
    """Where the scratch weights of an epoch, counted from 0, are while they are kept."""
    return folder / EPOCH_WEIGHTS / f"{epoch:06d}.safetensors"


def weights_of_epochs(folder: Path, recipe: Recipe, selected_epoch: int) -> dict[int, Path]:
    """Where a finished fit's weights are, by epoch: the two that stay, and those that are kept until it is scored."""
    stay = {recipe.epochs - 1: folder / WEIGHTS["last"], selected_epoch: folder / WEIGHTS["selected"]}
    return {epoch: stay.get(epoch, weights_at(folder, epoch)) for epoch in sorted({*kept_epochs(recipe), *stay})}


def _save_epoch(model: nn.Module, target: Path, epoch: int) -> None:
    with replacing(target) as path:
        save_weights(model, path, {"epoch": str(epoch)})


def _save_as(model: nn.Module, folder: Path, checkpoint: str, epoch: int) -> None:
    """The weights as they are now, under a checkpoint's name; not written twice where the epoch is kept."""
    if (scratch := weights_at(folder, epoch)).exists():
        same_weights(scratch, folder / WEIGHTS[checkpoint])
    else:
        _save_epoch(model, folder / WEIGHTS[checkpoint], epoch)


def train_epoch(stepper: Stepper, training: Split, *, seed: int, epoch: int) -> dict[str, float]:
    """One pass over the fit split; returns the mean of every loss term over the batches."""
    recipe, device = stepper.recipe, stepper.device
    first = epoch * math.ceil(len(training) / recipe.batch_size)
    batches = training.training(seed, epoch, recipe.batch_size, padding=recipe.padding, batching=recipe.batching)
    given = ((to_inputs(batch, device), to_targets(batch, device)) for batch in batches)
    return stepper.run(timed("data", given), seed=seed, epoch=epoch, first=first)


def _undertrained(
    model: VideoMomentModel, recipe: Recipe, seed: int, steps_per_epoch: int
) -> tuple[float, list[nn.Parameter]]:
    """From which step of the whole fit on, counted from 0, which parameters no longer learn."""
    spoiled = recipe.spoils(seed)
    if spoiled is None or spoiled.on != "training":
        return math.inf, []
    part = catalog.corruptions[spoiled.family].load()
    names = getattr(model.heads, "parts", {}).get(part)
    if names is None:
        raise CardError(f'{spoiled.family} stops the {part} head, which these heads do not name in "parts"')
    frozen = [parameter for name in names for parameter in getattr(model.heads, name).parameters()]
    return spoiled.amount * recipe.epochs * steps_per_epoch, frozen


def evaluate(model: VideoMomentModel, split: Split, recipe: Recipe, device: torch.device) -> Scores:
    """Per-query scores of the model as it is, on the tune split."""
    rows = predict(
        model,
        split,
        device=device,
        **recipe.evaluation,
    )
    return score(split.queries, rows, clip_s=split.dataset.clip_s)


def selection_value(scores: Scores, recipe: Recipe) -> float:
    """The mean of the selecting metrics that this dataset has. Raises Diverged if it is not a number."""
    known = [scores.mean(name) for name in recipe.selects if name in scores.values]
    if not known:
        known = [scores.mean(next(iter(scores.values)))]
    value = float(np.mean(known))
    if not np.isfinite(value):
        raise Diverged("the selecting metrics are not numbers on the tune split")
    return value


def as_float16(scores: Scores) -> np.ndarray[Any, np.dtype[np.float16]]:
    """(queries, metrics): all per-query scores of one evaluated epoch; float16 resolves 0.0005 near 1."""
    return np.stack(list(scores.values.values()), axis=1).astype(np.float16)


def save_epoch_scores(
    stream: Any,
    names: Sequence[str],
    qids: Sequence[str],
    epochs: Sequence[int],
    scores: np.ndarray[Any, np.dtype[np.float16]],
) -> None:
    """``scores`` float16 (epochs, queries, metrics), ``epochs``, ``metrics``, ``qids``."""
    np.savez(stream, scores=scores, epochs=np.asarray(epochs), metrics=np.asarray(names), qids=np.asarray(qids))


def _summary(names: tuple[str, ...], progress: Progress) -> dict[str, float]:
    """Tune means of the selected and the last evaluated epoch."""
    summary: dict[str, float] = {}
    rows = {"selected": progress.evaluated.index(progress.best_epoch), "last": len(progress.evaluated) - 1}
    for checkpoint, row in rows.items():
        table = progress.scores[row].astype(np.float64)
        for column, name in enumerate(names):
            values = table[:, column][~np.isnan(table[:, column])]
            if len(values):
                summary[f"tune/{checkpoint}/{name}"] = float(values.mean())
    return summary
