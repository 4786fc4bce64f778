"""Packs: several fits of one form trained as one computation.

Members share everything but the seed and the losses. Their weights are stacked, and the model's own code runs once for
all of them (``torch.vmap``). Every member keeps its own order of batches, sampled targets and dropout bits, its own
gradient norm, checkpoint and events. What a member is asked to compute is what it computes alone; only the order in
which numbers are added up differs, so results agree up to rounding and not bit by bit.

After every epoch the members' own models and optimisers are views of the stacks, so that evaluation, checkpoints and
records are those of a fit that is alone. Members that are behind are trained until they have caught up.

A member whose numbers stop being finite disturbs no other, because no operation mixes members. It leaves the pack, and
is left to whoever called: alone, from its last checkpoint, it shows whether it diverges by itself and of what.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from vlbench.canon import canonical
from vlbench.data.types import Prediction
from vlbench.errors import VlbenchError
from vlbench.metrics.base import Scores, score
from vlbench.nn.dropout import Count, Lanes
from vlbench.nn.losses import Criterion, Term
from vlbench.nn.model import Inputs, Targets
from vlbench.nn.stacked import members as as_members
from vlbench.nn.ways import AsAWhole
from vlbench.streams import seed_for
from vlbench.train.batch import to_inputs, to_targets
from vlbench.train.cost import Meter
from vlbench.train.loop import Course, FitResult
from vlbench.train.predict import answers, autocast, read
from vlbench.train.step import WARM, CudaGraphs, Form, Places, Recorder

SIZES = (1, 2, 4, 8)  # members at once that a measurement tries
TIMED = 5  # steps of a measurement
WORTH = 0.95  # a larger pack has to take at most this part of the time per member

Stacked = dict[str, Tensor]  # by name, with the members as the first dimension
Batches = list[tuple[Inputs, Targets]]  # one of each member


@dataclass(frozen=True, slots=True)
class Left:
    """A member left its pack, for this reason. Nothing of the epoch in progress was written."""

    reason: str


Outcome = FitResult | Left | VlbenchError | OSError | None  # None: paused. An error: of this member alone


@dataclass(frozen=True, slots=True)
class Ended:
    """A member that ended. beside: all that were trained together last, itself included."""

    name: str
    outcome: Outcome
    beside: tuple[str, ...]


def train(
    fits: Mapping[str, Callable[[], Course]], *, device: torch.device, until: int | None, most: int | None
) -> Iterator[Ended]:
    """Train fits of one form, at most so many at once, and tell of each as it ends.

    fits: by name, each opened where it is to go on. until: epochs after which all pause. most: None: as many as a
    measurement finds worth it. A pack that the device's memory does not suffice for is halved.
    """
    waiting = list(fits)
    if most is None:
        most = _worth_it([fits[name] for name in waiting[: SIZES[-1]]], device)
    while waiting:
        running: dict[str, Course] = {}
        for name in waiting[:most]:
            try:
                running[name] = fits[name]()
            except (VlbenchError, OSError) as error:
                yield Ended(name, error, (name,))
        waiting = waiting[most:]
        try:
            yield from _together(running, device, until)
        except torch.OutOfMemoryError:
            if len(running) > 1:
                waiting, most = [*running, *waiting], len(running) // 2
            else:
                yield from (Ended(name, Left("the device's memory does not suffice"), (name,)) for name in running)
            _free(device)
        except (RuntimeError, ValueError, TypeError) as error:  # of a component whose code torch cannot batch
            reason = f"it cannot be trained with others ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            yield from (Ended(name, Left(reason), (name,)) for name in running)


def _together(running: dict[str, Course], device: torch.device, until: int | None) -> Iterator[Ended]:
    """Epoch by epoch, those that are behind first. Members that ended are taken out of ``running``.

    All members keep their rows to the end, also while they wait for others and after they left: a member's last digits
    may depend on its row and on how many there are, and a pack that was broken off has to end as an unbroken one.
    """
    members, beside = dict(running), tuple(running)
    stack: Stack | None = None

    def ended(name: str, outcome: Outcome) -> Ended:
        del running[name]
        return Ended(name, outcome, beside)

    while True:
        for name, course in list(running.items()):
            if not course.left(until):
                yield ended(name, _own(course.result))
        if not running:
            return
        epoch = min(course.progress.next_epoch for course in running.values())
        behind = {name: course for name, course in running.items() if course.progress.next_epoch == epoch}
        if stack is None:
            stack = Stack(list(members.values()), device, now=list(behind.values()))
        started, meter = time.perf_counter(), Meter(str(device), next(iter(behind.values())).share)
        trained, how = dict(zip(members, stack.epoch(epoch), strict=True)), stack.how
        sound = [course for name, course in behind.items() if trained[name] is not None]
        known: dict[Course, Scores] = {}
        if device.type == "cuda" and sound and stack.recipe.evaluates(epoch):
            known = dict(zip(sound, stack.evaluate(sound), strict=True))  # on a CPU one after another is faster
        seconds, cost = (time.perf_counter() - started) / len(behind), meter.lap()
        cost = replace(cost, device_seconds=cost.device_seconds / len(behind))
        stack.hand_back(list(behind.values()))
        if len(behind) < len(running):
            stack = None  # the rows of those that waited were trained for nothing
        for name, course in behind.items():
            losses, course.how = trained[name], how
            if losses is None:
                yield ended(name, Left(f"a number is not finite in epoch {epoch + 1}"))
            elif (problem := _own(partial(course.end, epoch, losses, seconds, cost, known.get(course)))) is not None:
                yield ended(name, problem)


def _own(work: Callable[[], Any]) -> Any:
    """What the work returns, or an error that is one member's and no other's."""
    try:
        return work()
    except (VlbenchError, OSError) as error:
        return error


def _worth_it(fits: Sequence[Callable[[], Course]], device: torch.device) -> int:
    """``measured``; where something is wrong the largest size, so that training says what."""
    opened = (_own(open_) for open_ in fits)
    try:
        return measured([course for course in opened if isinstance(course, Course)], device)
    except (RuntimeError, ValueError, TypeError):
        return SIZES[-1]


def measured(courses: Sequence[Course], device: torch.device) -> int:
    """How many members at once take the least time for each, by a few steps on the device; the fits stay as they are.

    Larger packs are tried as long as they gain and memory allows.
    """
    best, least = 1, float("inf")
    for size in (size for size in SIZES if size <= len(courses)):
        try:
            seconds = Stack(courses[:size], device, now=courses).pace(courses[0].progress.next_epoch) / size
        except torch.OutOfMemoryError:
            _free(device)
            break
        if seconds > least * WORTH:
            break
        best, least = size, seconds
    return best


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- losses -----------------------------------------------------------------------------------------------------------


class Joint:
    """The terms of all members, each computed once for all; every member weighs those that are its own.

    names: of each member, its terms and their columns. weights: K T. own: K T, True where a member has the term.
    """

    def __init__(self, courses: Sequence[Course], device: torch.device) -> None:
        criteria = [Criterion.of(course.variant, course.training.dataset.trains) for course in courses]
        terms: dict[str, Term] = {}
        self.names: list[dict[str, int]] = []
        for course, criterion in zip(courses, criteria, strict=True):
            kinds = {name: _kind(course, name) for name in criterion.terms}
            for name, kind in kinds.items():
                terms.setdefault(kind, criterion.terms[name])
            self.names.append({name: list(terms).index(kind) for name, kind in kinds.items()})
        self.criterion = Criterion(terms, criteria[0].matcher)
        weights, own = torch.zeros(len(courses), len(terms)), torch.zeros(len(courses), len(terms), dtype=torch.bool)
        for member, (criterion, columns) in enumerate(zip(criteria, self.names, strict=True)):
            for name, column in columns.items():
                weights[member, column], own[member, column] = criterion.terms[name].weight, True
        self.mixed = not bool(own.all())
        self.alone = criteria
        self.weights, self.own = weights.to(device), own.to(device)


def _kind(course: Course, name: str) -> str:
    """A loss term with its arguments, but without its weight."""
    use = course.variant.losses[name]
    return canonical([name, use.name, use.version, {key: use.args[key] for key in use.args if key != "weight"}])


# --- the computation --------------------------------------------------------------------------------------------------


class Stack:
    """The weights and the optimiser's moments of K fits, as tensors with the members first.

    The fits are left as they are until ``hand_back``.
    """

    def __init__(
        self,
        courses: Sequence[Course],
        device: torch.device,
        *,
        now: Collection[Course],
        recorder: Recorder | None = None,
    ) -> None:
        """now: the fits that are to be trained; the others may have done more steps. recorder: None: as the device
        asks for."""
        self.courses, self.device, self.recipe = list(courses), device, courses[0].recipe
        self.model = courses[0].model  # whose code runs; its own weights are not read
        self.joint = Joint(courses, device)
        models = [dict(course.model.named_parameters()) for course in courses]
        self.parameters: Stacked = {
            name: torch.stack([model[name].detach() for model in models]).requires_grad_() for name in models[0]
        }
        held = [dict(course.model.named_buffers()) for course in courses]
        self.buffers: Stacked = {name: torch.stack([buffers[name] for buffers in held]) for name in held[0]}
        group = {key: value for key, value in courses[0].optimizer.param_groups[0].items() if key != "params"}
        self.optimizer = type(courses[0].optimizer)([{**group, "params": list(self.parameters.values())}])
        for name, stacked in self.parameters.items():
            states = [course.optimizer.state.get(model[name]) for course, model in zip(courses, models, strict=True)]
            if any(states):
                counted = [state for course, state in zip(courses, states, strict=True) if state and course in now]
                self.optimizer.state[stacked] = _moments(states, counted)
        K, T = self.joint.weights.shape
        self.sums = torch.zeros(K, T + 1, device=device)  # of the weighted terms, then of the total, in this epoch
        self.broken = torch.zeros(K, dtype=torch.bool, device=device)
        self.now, self.rate = torch.zeros((), device=device), torch.zeros((), device=device)  # epoch, learning rate
        self.places = Places(self.model, self.recipe.precision)
        if recorder is None and device.type == "cuda":
            recorder = CudaGraphs(device)
        self.recorder, self.how = recorder, "eager" if recorder is None else "CUDA graph"
        self._forms: dict[Any, Batched] = {}
        self._untouched: dict[str, Tensor] | None = None

    def hand_back(self, to: Collection[Course]) -> None:
        """Let the models and optimisers of these fits be views of their rows."""
        for member, course in enumerate(self.courses):
            if course not in to:
                continue
            for name, parameter in course.model.named_parameters():
                stacked = self.parameters[name]
                parameter.data = stacked.data[member]
                state = self.optimizer.state.get(stacked)
                if state and not self._is_untouched(name, member):
                    course.optimizer.state[parameter] = {
                        key: value[member] if value.dim() else value.clone() for key, value in state.items()
                    }
            for name, buffer in course.model.named_buffers():
                buffer.data = self.buffers[name][member]

    # --- an epoch ---

    def epoch(self, number: int) -> list[dict[str, float] | None]:
        """One pass over every member's queries: the means of its loss terms, or None where a number was not finite."""
        generators = self._begin(number)
        steps = 0
        for batches in self._batches(number):
            self._step(batches, generators)
            steps += 1
        means, lost = (self.sums / steps).tolist(), self.broken.tolist()
        return [
            None if lost[member] else {"total": row[-1], **{name: row[at] for name, at in columns.items()}}
            for member, (row, columns) in enumerate(zip(means, self.joint.names, strict=True))
        ]

    @torch.no_grad()
    def evaluate(self, courses: Sequence[Course]) -> list[Scores]:
        """Scores of these members on the tune split, by their rows: one pass over the split for all."""
        split, recipe = courses[0].tuning, self.recipe
        rows: list[list[Prediction]] = [[] for _ in courses]
        places = [self.courses.index(course) for course in courses]
        self.model.eval()
        for queries, batch in split.evaluation(recipe.eval_batch_size, padding=recipe.padding):
            inputs = to_inputs(batch, self.device)
            with as_members(), AsAWhole():
                found = vmap(partial(self._answer, inputs))(self.parameters, self.buffers)
            values = [value.cpu().numpy() for value in found]
            for place, own in zip(places, rows, strict=True):
                own += answers(split, queries, batch, *(value[place] for value in values))
        self.model.train()
        return [score(split.queries, own, clip_s=split.dataset.clip_s) for own in rows]

    def _answer(self, inputs: Inputs, parameters: Stacked, buffers: Stacked) -> tuple[Tensor, Tensor, Tensor]:
        """What one member's predictions are made of."""
        with autocast(self.device, self.recipe.precision):
            outputs = functional_call(self.model, {**parameters, **buffers}, (inputs,), {"negative": False})
        return read(outputs)

    def pace(self, number: int) -> float:
        """Seconds of a step, after some to warm up; what was trained by them is lost with this object."""
        generators, batches = self._begin(number), next(self._batches(number))
        for _ in range(WARM + 1):
            self._step(batches, generators)
        started = self._clock()
        for _ in range(TIMED):
            self._step(batches, generators)
        return (self._clock() - started) / TIMED

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _begin(self, number: int) -> dict[int, torch.Generator]:
        """Before the first step of an epoch; returns the source of each seed's dropout bits."""
        for course in self.courses:
            course.begin(number)
            course.model.train()
        rate = self.recipe.lr_at(number)
        self.rate.fill_(rate)
        for group in self.optimizer.param_groups:  # a recorded optimiser reads the rate where it lies
            group["lr"] = rate if self.recorder is None else self.rate
            group["capturable"] = self.recorder is not None and self.device.type == "cuda"
        self.now.fill_(number)
        self.sums.zero_()
        self.broken.zero_()
        return {
            course.seed: torch.Generator(self.device).manual_seed(seed_for(course.seed, "dropout", number))
            for course in self.courses
        }

    def _batches(self, number: int) -> Iterator[Batches]:
        """The next batch of every member, on the device; members of one seed share theirs."""
        recipe = self.recipe
        streams = {
            course.seed: course.training.training(
                course.seed, number, recipe.batch_size, padding=recipe.padding, batching=recipe.batching
            )
            for course in self.courses
        }
        for batches in zip(*streams.values(), strict=True):
            given = {
                seed: (to_inputs(batch, self.device), to_targets(batch, self.device))
                for seed, batch in zip(streams, batches, strict=True)
            }
            yield [given[course.seed] for course in self.courses]

    # --- a step ---

    def _step(self, batches: Batches, generators: Mapping[int, torch.Generator]) -> None:
        """Train all members by one batch each. Nothing is read back to the host."""
        if self._untouched is None:
            self._untouched = self._find_untouched(batches[0]) if self.joint.mixed else {}
        words = self._words(batches[0][0], generators)
        inputs, targets = _stack([given for given, _ in batches]), _stack([wanted for _, wanted in batches])
        if self.recorder is None:
            self._work(inputs, targets, words)
            return
        shapes = tuple(tensor.shape for tensor in (*inputs.values(), *targets.values()))
        if shapes not in self._forms:
            self._forms[shapes] = Batched(inputs, targets, words)
        form = self._forms[shapes]
        for place, tensor in zip(form.places, (*inputs.values(), *targets.values(), words), strict=True):
            place.copy_(tensor, non_blocking=True)
        work = partial(self._work, form.inputs, form.targets, form.words)
        if (why := form.carry_out(work, self.recorder)) is not None:
            warnings.warn(f"the pack's step is not recorded as a CUDA graph, it goes on without: {why}", stacklevel=2)
            self.recorder, self.how = None, f"{self.how} failed: {why}"

    def _work(self, inputs: Stacked, targets: Stacked, words: Tensor) -> None:
        """The whole step, from tensors that stay where they are."""
        joint = self.joint
        with as_members(), AsAWhole():
            values, finite = vmap(self._member)(
                self.parameters, self.buffers, inputs, targets, words.view(torch.int16), joint.weights, joint.own
            )
        self.optimizer.zero_grad(set_to_none=True)
        values[:, -1].sum().backward()  # type: ignore[no-untyped-call]
        finite = finite & self._clip().isfinite()
        untouched = self._untouched or {}
        kept = {name: self.parameters[name].detach()[rows] for name, rows in untouched.items()}
        self.optimizer.step()
        for name, rows in kept.items():  # a parameter without a gradient does not decay either
            self.parameters[name].data[untouched[name]] = rows
        self.sums += values.detach()
        self.broken |= ~finite

    def _member(
        self,
        parameters: Stacked,
        buffers: Stacked,
        inputs: Stacked,
        targets: Stacked,
        lanes: Tensor,
        weights: Tensor,
        own: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One member's weighted terms and their total, T+1, and whether its predictions and its loss are finite."""
        with Lanes(lanes), autocast(self.device, self.recipe.precision):
            outputs = functional_call(self.model, {**parameters, **buffers}, (Inputs(**inputs),))
        values = self.joint.criterion.values(outputs, Targets(**targets), epoch=self.now)
        terms = torch.stack([value.sum() for value in values.values()])
        terms = torch.where(own, weights * terms, 0.0)
        total = terms.sum()
        finite = total.isfinite() & outputs.spans_cw.isfinite().all() & outputs.logits.isfinite().all()
        return torch.cat((terms, total[None])), finite

    def _clip(self) -> Tensor:
        """Scale each member's gradients down to the recipe's norm; returns the norms before, K."""
        gradients = [stacked.grad for stacked in self.parameters.values() if stacked.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        norm: Tensor = torch.linalg.vector_norm(norms, dim=0)  # K
        scale = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
        return norm

    def _words(self, inputs: Inputs, generators: Mapping[int, torch.Generator]) -> Tensor:
        """Every member's random bits for this step, K M words of 64, the same as it draws alone."""
        draws = self.places.of(inputs).draws
        drawn = {
            seed: torch.empty(draws, dtype=torch.int64, device=self.device).random_(-(2**63), None, generator=source)
            for seed, source in generators.items()
        }
        return torch.stack([drawn[course.seed] for course in self.courses])

    # --- members with other losses ---

    def _find_untouched(self, batch: tuple[Inputs, Targets]) -> dict[str, Tensor]:
        """Parameters that some members' losses reach and others' do not, with the rows of the others."""
        reached: dict[str, set[str]] = {}
        for columns, criterion in zip(self.joint.names, self.joint.alone, strict=True):
            if (key := canonical(columns)) not in reached:
                with Count():
                    criterion(self.model(batch[0]), batch[1], epoch=0).total.backward()  # type: ignore[no-untyped-call]
                reached[key] = {name for name, own in self.model.named_parameters() if own.grad is not None}
                self.model.zero_grad(set_to_none=True)
        by_member = [reached[canonical(columns)] for columns in self.joint.names]
        found = {}
        for name in self.parameters:
            rows = [member for member, names in enumerate(by_member) if name not in names]
            if 0 < len(rows) < len(by_member):
                found[name] = torch.tensor(rows, device=self.device)
        return found

    def _is_untouched(self, name: str, member: int) -> bool:
        rows = (self._untouched or {}).get(name)
        return rows is not None and member in rows.tolist()


class Batched(Form):
    """Batches of one shape, where a recorded step reads them."""

    def __init__(self, inputs: Stacked, targets: Stacked, words: Tensor) -> None:
        super().__init__()
        self.inputs = {name: torch.empty_like(tensor) for name, tensor in inputs.items()}
        self.targets = {name: torch.empty_like(tensor) for name, tensor in targets.items()}
        self.words = torch.empty_like(words)
        self.places = (*self.inputs.values(), *self.targets.values(), self.words)


def _moments(states: Sequence[dict[str, Tensor] | None], counted: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The optimiser's state of a parameter of all members: zeros for who has none, and the steps of one of ``counted``,
    which are at the same epoch."""
    found = {}
    for key, known in next(state for state in states if state).items():
        nothing = torch.zeros_like(known)
        if known.dim():
            found[key] = torch.stack([state[key] if state else nothing for state in states])
        else:
            found[key] = counted[0][key].clone() if counted else nothing
    return found


def _stack(parts: Sequence[Inputs] | Sequence[Targets]) -> Stacked:
    """Batches side by side; where spoiled labels have other numbers of moments, padded to the most."""
    found = {}
    for field in fields(parts[0]):
        tensors = [getattr(part, field.name) for part in parts]
        widest = max(tensor.shape[1] for tensor in tensors)
        if field.name in ("spans_cw", "span_mask"):
            beside = (0, 0) * (tensors[0].dim() - 2)
            tensors = [functional.pad(tensor, (*beside, 0, widest - tensor.shape[1])) for tensor in tensors]
        found[field.name] = torch.stack(tensors)
    return found
