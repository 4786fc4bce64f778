"""One step of the optimiser, and the ways in which a fit's steps can be carried out.

    place by place    operation after operation; on a CPU every number is looked at as soon as it is there
    compiled          prediction and losses as one piece of machine code, for batches of one shape
    recorded          the whole step as one CUDA graph, compiled or not, for batches of one shape

All of them compute the same up to the rounding of sums, so how a step was carried out is recorded beside a result and
is no part of what the result is of. On a GPU nothing is read back within an epoch: a number that is not finite is noted
there, with its step, and ends the fit when the epoch ends.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlbench.errors import CardError, Diverged
from vlbench.nn.dropout import Count, Lanes
from vlbench.nn.losses import Criterion
from vlbench.nn.model import Inputs, Targets, VideoMomentModel
from vlbench.nn.ways import AsAWhole
from vlbench.streams import seed_for
from vlbench.train.phases import phase
from vlbench.train.predict import autocast
from vlbench.train.recipe import Recipe

WARM = 3  # steps of a form before it is recorded: libraries choose their kernels and the optimiser makes its state

# --- prediction and losses as one function of tensors -----------------------------------------------------------------

Tensors = tuple[Tensor, ...]
# (inputs, targets, lanes, epoch) -> total, the total and every weighted term detached (1+T), what is finite (CHECKS)
LossOf = Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
CHECKS = ("a predicted span", "a predicted class", "the loss", "the gradient's norm")  # the last one by the caller


def loss_function(model: nn.Module, criterion: Criterion, precision: str) -> LossOf:
    """Prediction and losses without a look at any value: it can be compiled, recorded, and batched over runs.

    inputs, targets: the fields of ``Inputs`` and ``Targets`` in their order. lanes: random bits for every place where
    the model drops something, see ``Places``. epoch: from 0, float32, so that one compilation serves all epochs.
    """

    def loss_of(inputs: Tensors, targets: Tensors, lanes: Tensor, epoch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = inputs[0].device.type
        with AsAWhole():
            with Lanes(lanes), torch.autocast(device, dtype=torch.bfloat16, enabled=precision != "fp32"):
                outputs = model(Inputs(*inputs))
            losses = criterion(outputs, Targets(*targets), epoch=epoch)
        terms = torch.stack([losses.total, *(term.sum() for term in losses.terms.values())]).detach()
        checked = (outputs.spans_cw, outputs.logits, losses.total)
        return losses.total, terms, torch.stack([torch.isfinite(values).all() for values in checked])

    return loss_of


def machine_code(loss_of: LossOf) -> LossOf:
    """The same, compiled at its first call, and again for every other shape and precision."""
    import torch._dynamo

    torch._dynamo.config.allow_rnn = True  # the one recurrence here brings an operation that is not looked into
    compiled: LossOf = torch.compile(loss_of, dynamic=False, fullgraph=True)
    return compiled


class Places:
    """Where a model drops something, and how many random bits a pass takes. Counted once for every shape of inputs."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model, self.precision = model, precision
        self._counts: dict[tuple[torch.Size, ...], Count] = {}

    def of(self, inputs: Inputs) -> Count:
        """Runs the model once for a shape that is new; no generator is moved."""
        device = inputs.clips.device
        shape = (inputs.clips.shape, inputs.words.shape)
        if shape not in self._counts:
            generators = [device] if device.type == "cuda" else []
            count = Count()
            with torch.random.fork_rng(devices=generators), torch.no_grad(), AsAWhole(), count:  # noqa: SIM117
                with autocast(device, self.precision):
                    self.model(inputs)
            self._counts[shape] = count
        return self._counts[shape]


def fields(tensors: Inputs | Targets) -> Tensors:
    """The tensors in their order."""
    return tuple(getattr(tensors, name) for name in tensors.__dataclass_fields__)


# --- steps ------------------------------------------------------------------------------------------------------------


class Noted:
    """Sums of the losses, and the first step with a number that is not finite, kept on the device for an epoch.

    first: number of that step, from 0, -1 without one. what: index in CHECKS. terms: which terms were not finite.
    """

    def __init__(self, terms: Sequence[str], device: torch.device) -> None:
        self.names = ("total", *terms)
        self.sums = torch.zeros(len(self.names), device=device)
        self.steps, self.first, self.what = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
        self.terms = torch.zeros(len(self.names), dtype=torch.bool, device=device)
        self.begin()

    def begin(self) -> None:
        """Forget the epoch before."""
        self.sums.zero_()
        self.steps.zero_()
        self.first.fill_(-1)

    def note(self, terms: Tensor, finite: Tensor) -> None:
        """terms: the total and every term, 1+T. finite: CHECKS, or the first of them. Nothing is read back."""
        new = ~finite.all() & (self.first < 0)
        self.what.copy_(torch.where(new, (~finite).long().argmax(), self.what))
        self.terms.copy_(torch.where(new, ~torch.isfinite(terms), self.terms))
        self.first.copy_(torch.where(new, self.steps, self.first))
        self.sums += terms
        self.steps += 1

    def raised(self, epoch: int) -> None:
        """Raises Diverged, as the step itself would have, if any step of this epoch was not finite."""
        if (first := int(self.first)) < 0:
            return
        where = f"in epoch {epoch + 1}, step {first + 1}"
        bad = [name for name, not_finite in zip(self.names, self.terms.tolist(), strict=True) if not_finite]
        terms = f" (terms: {', '.join(bad[1:])})" if bad[1:] else ""
        raise Diverged(f"{CHECKS[int(self.what)]} is not finite {where}{terms}")


class Stepper:
    """The steps of one fit, place by place. how: what a record says of them.

    frozen: parameters that no longer learn from step ``stops`` of the whole fit on, counted from 0.
    """

    def __init__(
        self,
        model: VideoMomentModel,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.recipe, self.device = recipe, device
        self.parameters = list(model.parameters())
        self.how = "eager"
        self.frozen: Sequence[nn.Parameter] = ()
        self.stops = math.inf
        self.noted = Noted(list(criterion.terms), device)
        self.seed, self.epoch, self.at = 0, 0, 0

    def run(self, batches: Iterable[tuple[Inputs, Targets]], *, seed: int, epoch: int, first: int) -> dict[str, float]:
        """One epoch; returns the mean of the total and of every term over the batches.

        batches: on the device. first: number of the epoch's first step in the whole fit. Random bits of dropout come
        from the stream of this seed and epoch. Raises Diverged if a prediction, a loss or a gradient is not finite.
        """
        self.model.train()
        self.seed, self.epoch, self.at = seed, epoch, 0
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_for(seed, "dropout", epoch))
            self.begin()
            for inputs, targets in batches:
                self.step(inputs, targets, frozen=first + self.at >= self.stops)
                self.at += 1
            return self.end()

    def begin(self) -> None:
        """Before the first step of an epoch."""
        self.noted.begin()

    def step(self, inputs: Inputs, targets: Targets, *, frozen: bool) -> None:
        """One step. frozen: the parameters that stop learning have stopped."""
        with phase("forward"), autocast(self.device, self.recipe.precision):
            outputs = self.model(inputs)
        near = self.device.type == "cpu"
        if near and not bool(torch.isfinite(outputs.spans_cw).all()):
            raise Diverged(f"a predicted span is not finite {self._here}")
        with phase("losses"):
            losses = self.criterion(outputs, targets, epoch=self.epoch)
        if near and not bool(torch.isfinite(losses.total)):
            bad = ", ".join(name for name, value in losses.terms.items() if not bool(torch.isfinite(value).all()))
            raise Diverged(f"the loss is {float(losses.total.detach())} {self._here} (terms: {bad})")
        norm = self.learn(losses.total, frozen)
        terms = torch.stack([losses.total.detach(), *(term.detach().sum() for term in losses.terms.values())])
        if near:
            self.noted.sums += terms
            self.noted.steps += 1
        else:
            checked = (outputs.spans_cw, outputs.logits, losses.total, norm)
            self.noted.note(terms, torch.stack([torch.isfinite(values.detach()).all() for values in checked]))

    def learn(self, total: Tensor, frozen: bool) -> Tensor:
        """Differentiate, limit the gradient, move the weights; returns the gradient's norm.

        On a CPU, raises Diverged where the norm is not finite.
        """
        with phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
        with phase("optimiser"):
            if frozen:
                for parameter in self.frozen:
                    parameter.grad = None  # the optimiser leaves it alone, weight decay included
            norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
            if self.device.type == "cpu" and not bool(torch.isfinite(norm)):
                raise Diverged(f"the gradient's norm is {float(norm)} {self._here}")
            self.optimizer.step()
        return norm

    def end(self) -> dict[str, float]:
        """After the last step of an epoch: the means. The one place where a GPU is read."""
        self.noted.raised(self.epoch)
        return {name: value / self.at for name, value in zip(self.noted.names, self.noted.sums.tolist(), strict=True)}

    @property
    def _here(self) -> str:
        return f"in epoch {self.epoch + 1}, step {self.at + 1}"


class WholeStepper(Stepper):
    """Steps whose random bits are drawn beforehand, so that prediction and losses are one function of tensors.

    compiled: that function as machine code. It serves batches of ``full`` queries; a shorter one is the last of its
    epoch and goes place by place with the same bits.
    """

    def __init__(self, *given: Any, full: int, compiled: bool) -> None:
        super().__init__(*given)
        self.full = full
        self.how = "compiled" if compiled else "eager"
        self.places = Places(self.model, self.recipe.precision)
        self.plain_loss_of = loss_function(self.model, self.criterion, self.recipe.precision)
        self.loss_of: LossOf = self.plain_loss_of
        if compiled:
            self.loss_of = machine_code(self.plain_loss_of)
        self.now = torch.zeros((), device=self.device)  # the epoch

    def begin(self) -> None:
        """Before the first step of an epoch."""
        super().begin()
        self.now.fill_(self.epoch)

    def step(self, inputs: Inputs, targets: Targets, *, frozen: bool) -> None:
        """One step. frozen: the parameters that stop learning have stopped."""
        if len(inputs.clips) != self.full:
            super().step(inputs, targets, frozen=frozen)
            return
        with phase("forward"):
            lanes = self.places.of(inputs).decided()  # ready masks cost a compiled loop less than bits
            total, terms, finite = self.loss_of(fields(inputs), fields(targets), lanes, self.now)
        self.noted.note(terms, finite)
        self.noted.raised(self.epoch)
        self.learn(total, frozen)


class Recorder(Protocol):
    """How a step is warmed up, and recorded: what is returned by ``record`` does the same work again."""

    def warm(self, step: Callable[[], None]) -> None:
        """Carry the step out as it will be recorded."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run the step's code without its work; raises RuntimeError where the step cannot be recorded."""


class RecordedStepper(WholeStepper):
    """Steps as CUDA graphs: what changes from step to step is copied to where the recorded step reads it.

    A step of each form is carried out WARM times, as part of the training, before it is recorded; a form is the shapes
    of a full batch, and whether parameters have stopped. Shorter batches are never recorded. Where recording fails the
    fit goes on without, with the same bits, and says so.
    """

    def __init__(self, *given: Any, full: int, compiled: bool, recorder: Recorder) -> None:
        super().__init__(*given, full=full, compiled=compiled)
        self.recorder: Recorder | None = recorder
        self.how = "compiled, CUDA graph" if compiled else "CUDA graph"
        self.generator = torch.Generator(self.device)
        self.rate = torch.zeros((), device=self.device)
        self._rates: list[float] = []
        self._forms: dict[Any, _Given] = {}

    def begin(self) -> None:
        """Before the first step of an epoch."""
        super().begin()
        self.generator.manual_seed(seed_for(self.seed, "dropout", self.epoch))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            self.rate.fill_(group["lr"])  # where the recorded optimiser reads it: one rate for all parameters
            group["lr"], group["capturable"] = self.rate, self.device.type == "cuda"

    def end(self) -> dict[str, float]:
        """After the last step of an epoch: the means."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        return super().end()

    def step(self, inputs: Inputs, targets: Targets, *, frozen: bool) -> None:
        """One step. frozen: the parameters that stop learning have stopped."""
        full = len(inputs.clips) == self.full
        given = (*fields(inputs), *fields(targets))
        key = (frozen, *(tensor.shape for tensor in given))
        if key not in self._forms:
            places = self.places.of(inputs)
            words = torch.empty(places.draws, dtype=torch.int64, device=self.device)
            self._forms[key] = _Given([torch.empty_like(tensor) for tensor in given], words)
        form = self._forms[key]
        for place, tensor in zip(form.given, given, strict=True):
            place.copy_(tensor, non_blocking=True)
        form.words.random_(-(2**63), None, generator=self.generator)

        def work() -> None:
            self._work(form, frozen, self.loss_of if full else self.plain_loss_of)

        with phase("forward"):
            if not full or self.recorder is None:
                work()
            elif (why := form.carry_out(work, self.recorder)) is not None:
                warnings.warn(f"the step is not recorded as a CUDA graph, the fit goes on without: {why}", stacklevel=2)
                self.recorder, self.how = None, f"{self.how} failed: {why}"

    def _work(self, form: _Given, frozen: bool, loss_of: LossOf) -> None:
        """The whole step, from what is in the form's places; it touches nothing that is made anew for each step."""
        inputs, targets = form.given[: len(Inputs.__dataclass_fields__)], form.given[len(Inputs.__dataclass_fields__) :]
        lanes = form.words.view(torch.int16)
        total, terms, finite = loss_of(tuple(inputs), tuple(targets), lanes, self.now)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if frozen:
            for parameter in self.frozen:
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.noted.note(terms, torch.cat((finite, torch.isfinite(norm)[None])))


class Form:
    """A step on tensors that stay where they are. warmed: times carried out. replay: does it again, once recorded."""

    def __init__(self) -> None:
        self.warmed = 0
        self.replay: Callable[[], None] | None = None

    def carry_out(self, work: Callable[[], None], recorder: Recorder) -> str | None:
        """Do the work: WARM times as it is, then recorded. Returns why it cannot be recorded; it is done anyhow."""
        if self.replay is None and self.warmed < WARM:
            recorder.warm(work)
            self.warmed += 1
            return None
        if self.replay is None:
            try:
                self.replay = recorder.record(work)
            except RuntimeError as error:
                work()
                return str(error).splitlines()[0]
        self.replay()
        return None


class _Given(Form):
    """given: where a recorded step reads its batch. words: where it reads random bits."""

    def __init__(self, given: Sequence[Tensor], words: Tensor) -> None:
        super().__init__()
        self.given, self.words = given, words


class CudaGraphs:
    """Records on the current CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, step: Callable[[], None]) -> None:
        """On a stream of its own, as recording asks for."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step()
        current.wait_stream(self.stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """One graph of the step."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            step()
        return graph.replay


# --- which of them ----------------------------------------------------------------------------------------------------


def make_stepper(
    model: VideoMomentModel,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    device: torch.device,
    *,
    queries: int,
    compiled: bool = False,
    watched: bool = False,
) -> Stepper:
    """How the steps of this fit are carried out: recorded on CUDA where every batch has one shape.

    queries: of an epoch. compiled: as asked for. watched: the host has to see values on their way through the model,
    so that a step can neither be compiled nor recorded.

    Raises: CardError where steps cannot be compiled.
    """
    given = (model, criterion, optimizer, recipe, device)
    full = min(recipe.batch_size, queries)
    way = way_of(recipe, device.type, compiled=compiled, watched=watched)
    if way == "recorded":
        return RecordedStepper(*given, full=full, compiled=compiled, recorder=CudaGraphs(device))
    return WholeStepper(*given, full=full, compiled=True) if way == "compiled" else Stepper(*given)


def way_of(recipe: Recipe, device: str, *, compiled: bool, watched: bool) -> str:
    """``place by place``, ``compiled`` or ``recorded``. device: its type. Raises as ``make_stepper``."""
    if compiled:
        compilable(recipe, watched)
    if device == "cuda" and recipe.padding == "split" and not watched:
        return "recorded"
    return "compiled" if compiled else "place by place"


def compilable(recipe: Recipe, watched: bool = False) -> None:
    """Raises CardError unless steps by this recipe can be compiled."""
    if recipe.padding != "split":
        raise CardError(
            "steps are compiled for batches of one shape, and this recipe pads each batch to its own longest",
            where="--compile",
            hint="add --set train.padding=split",
        )
    if watched:
        raise CardError(
            "noise on what one head hands to the other is made between the operations of a step",
            where="--compile",
            hint="leave out --compile for this recipe",
        )


def why_no_compiler() -> str | None:
    """Why nothing can be compiled on this machine, or None."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:  # whatever it is, it would end every fit after minutes
        return f"there is no C++ compiler that torch can use: {str(error).splitlines()[0]}"
    return None
