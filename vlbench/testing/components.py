"""The contract of components and loss terms, callable on anyone's: ``check_component("refinement", "mypackage/film")``.

What is checked of a component: it gives the shapes of its slot; what it gives is finite and in evaluation repeatable;
a sample is the same in any batch, and the same alone as among longer ones; every parameter gets a gradient; the neutral
``none`` of a slot adds nothing; a placebo has exactly the parameters of its component. Exceptions are facts of the
registration, with a reason, and are checked as well: what is declared has to be so. Of a loss term: a finite value and
finite gradients with and without anything to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.catalog import find_slot, loss_slots
from vlbench.errors import CardError
from vlbench.nn.feedback import Feedback
from vlbench.nn.losses import Matches, Step, Term
from vlbench.nn.model import Outputs, Targets
from vlbench.nn.position import clip_positions
from vlbench.nn.shapes import Sizes
from vlbench.registry import Entry, Scalar

SIZES = Sizes(width=16, attention_heads=2, feedforward=24, dropout=0.1)
FEATURES, LAYERS, ANCHORS = 10, 2, 5
CLIPS, WORDS = (7, 4, 6), (5, 3, 2)  # lengths of three samples


@dataclass(frozen=True)
class Example:
    """Stand-ins for everything a slot can receive, of three samples padded to the longest."""

    features: Tensor  # B L F
    projected: Tensor  # B L D
    clips: Tensor  # B L D
    words: Tensor  # B W D
    positions: Tensor  # B L D
    word_positions: Tensor  # B W D
    clip_mask: Tensor  # B L
    word_mask: Tensor  # B W
    token: Tensor  # B D
    spans_cw: Tensor  # K B A 2
    logits: Tensor  # K B A 2
    states: Tensor  # K B A D
    targets_cw: Tensor  # B N 2
    target_mask: Tensor  # B N

    def sample(self, b: int) -> Example:
        """Sample b alone, without its padding."""
        L, W = int(self.clip_mask[b].sum()), int(self.word_mask[b].sum())
        values = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("spans_cw", "logits", "states"):
                values[item.name] = value[:, b : b + 1]
            elif item.name in ("words", "word_positions", "word_mask"):
                values[item.name] = value[b : b + 1, :W]
            elif item.name in ("token", "targets_cw", "target_mask"):
                values[item.name] = value[b : b + 1]
            else:
                values[item.name] = value[b : b + 1, :L]
        return Example(**values)

    def without_padding(self) -> Example:
        """The same numbers, every clip and word being real."""
        full = replace(self, clip_mask=torch.ones_like(self.clip_mask), word_mask=torch.ones_like(self.word_mask))
        return replace(full, positions=clip_positions(full.clip_mask, SIZES.width))


def example(seed: int = 0) -> Example:
    """A reproducible example; padded rows hold zeros as features and constants elsewhere, as in a real batch."""
    generator = torch.Generator().manual_seed(seed)
    B, L, W, D = len(CLIPS), max(CLIPS), max(WORDS), SIZES.width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    clip_mask = torch.arange(L) < torch.tensor(CLIPS)[:, None]
    word_mask = torch.arange(W) < torch.tensor(WORDS)[:, None]
    clip_rows, word_rows = clip_mask[..., None], word_mask[..., None]
    return Example(
        features=normal(B, L, FEATURES) * clip_rows,
        projected=torch.where(clip_rows, normal(B, L, D), normal(D)),
        clips=torch.where(clip_rows, normal(B, L, D), normal(D)),
        words=torch.where(word_rows, normal(B, W, D), normal(D)),
        positions=clip_positions(clip_mask, D),
        word_positions=normal(B, W, D),
        clip_mask=clip_mask,
        word_mask=word_mask,
        token=normal(B, D),
        # narrow moments in the middle, so that their clips lie inside every video
        spans_cw=torch.stack((normal(LAYERS, B, ANCHORS) * 0.05 + 0.5, torch.full((LAYERS, B, ANCHORS), 0.5)), -1),
        logits=normal(LAYERS, B, ANCHORS, 2),
        states=normal(LAYERS, B, ANCHORS, D),
        targets_cw=torch.tensor([[[0.3, 0.2], [0.7, 0.3]], [[0.5, 0.4], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        target_mask=torch.tensor([[True, True], [True, False], [False, False]]),
    )


# --- how each slot is called ------------------------------------------------------------------------------------------

Given = dict[str, Tensor]  # by name; the first axis is the sample, or the layer where the name begins with "layers"


def _projection(part: Any, x: Example) -> Given:
    return {"clips": part(x.features, x.clip_mask)}


def _word_position(part: Any, x: Example) -> Given:
    return {"words": part(x.words)}


def _refinement(part: Any, x: Example) -> Given:
    return {"clips": part(x.clips, x.words, x.clip_mask, x.word_mask)}


def _fusion(part: Any, x: Example) -> Given:
    return {"clips": part(x.clips, x.words, x.positions, x.word_positions, x.clip_mask, x.word_mask)}


def _encoder(part: Any, x: Example) -> Given:
    return {"clips": part(x.clips, x.positions, x.clip_mask)}


def _decoder(part: Any, x: Example) -> Given:
    states, references = part(x.clips, x.positions, x.clip_mask)
    return {"layers.states": states, "layers.references": references}


def _heads(part: Any, x: Example) -> Given:
    spans_cw, logits = part.moments(x.states, x.spans_cw)
    scores = part.saliency(x.clips, x.token)
    return {"layers.spans": spans_cw, "layers.logits": logits, "clips.saliency": scores}


def _feedback(part: Any, x: Example) -> Given:
    scores = part(x.spans_cw[-1], x.logits[-1], x.projected, x.clips, x.clip_mask)
    given = {} if scores is None else {"clips.saliency": scores}
    if part.guides:
        given["clips.read"] = part.guide(x.clips, x.clips[..., 0], x.clip_mask)
    return given


CALLS: dict[str, Callable[[Any, Example], Given]] = {
    "projection": _projection,
    "word_position": _word_position,
    "refinement": _refinement,
    "fusion": _fusion,
    "encoder": _encoder,
    "decoder": _decoder,
    "heads": _heads,
    "feedback": _feedback,
}


def _shapes(slot: str, x: Example, entry: Entry) -> dict[str, tuple[int, ...]]:
    (B, L), (_, W), D = x.clip_mask.shape, x.word_mask.shape, SIZES.width
    K, A = int(entry.args.get("layers", LAYERS)), int(entry.args.get("anchors", ANCHORS))
    if slot == "decoder":
        return {"layers.states": (K, B, A, D), "layers.references": (K, B, A, 2)}
    if slot == "heads":
        pairs = (LAYERS, B, ANCHORS, 2)
        return {"layers.spans": pairs, "layers.logits": pairs, "clips.saliency": (B, L)}
    if slot == "feedback":
        wanted: dict[str, tuple[int, ...]] = {}
        if "saliency" in entry.facts.get("gives", ()):
            wanted["clips.saliency"] = (B, L)
        if entry.load().guides:
            wanted["clips.read"] = (B, L, D)
        return wanted
    return {"words": (B, W, D)} if slot == "word_position" else {"clips": (B, L, D)}


# --- the checks -------------------------------------------------------------------------------------------------------


def check_component(key: str, name: str, *, args: Mapping[str, Scalar] | None = None) -> None:
    """Hold a registered component to its slot's contract.

    key: a slot such as ``refinement`` or ``loss.span``. args: values in place of the registered defaults.
    Raises AssertionError that lists every broken rule, CardError if nothing is registered under these names.
    """
    entry = find_slot(key)[name]
    entry = replace(entry, args={**entry.args, **(args or {})})
    if key.startswith("loss."):
        problems = list(_loss_problems(entry))
    elif key == "matcher":
        problems = list(_matcher_problems(entry))
    elif key == "negative":
        problems = list(_negative_problems(entry))
    elif key in CALLS:
        problems = list(_component_problems(key, entry))
    else:
        raise CardError(f'no contract is known for the slot "{key}"')
    assert not problems, f"{key}.{name} breaks its contract:\n  " + "\n  ".join(problems)


def built(key: str, entry: Entry) -> nn.Module:
    """The component of small sizes, with the same initial weights every time."""
    leading = (FEATURES,) if key == "projection" else ()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        part: nn.Module = entry.load()(*leading, SIZES, **entry.args)
    return part


def _component_problems(key: str, entry: Entry) -> Iterator[str]:
    part, x = built(key, entry), example()
    if key == "feedback" and not isinstance(part, Feedback):
        yield "it does not inherit vlbench.nn.feedback.Feedback, by which a model asks for both directions"
        return
    part.eval()

    def call(part: nn.Module, x: Example) -> Given:
        with torch.no_grad():
            return CALLS[key](part, x)

    given, again = call(part, x), call(part, x)
    if not given:
        if any(True for _ in part.parameters()):
            yield "it gives nothing but has parameters"
        return
    yield from _shape_problems(given, _shapes(key, x, entry))
    if key == "feedback" and "saliency" not in entry.facts.get("gives", ()) and "clips.saliency" in given:
        yield "it gives a saliency without declaring it (gives)"
    yield from (f"{what} is not finite" for what, value in given.items() if not bool(value.isfinite().all()))
    yield from (f"{what} is not repeatable in evaluation" for what in given if not given[what].equal(again[what]))
    if entry.name == "none":
        yield from _neutral_problems(key, part, given, x)
        return

    if (placebo := entry.facts.get("placebo")) is not None:
        yield from _placebo_problems(key, entry, placebo)
    full = x.without_padding()
    if apart := _apart(call(part, full), [call(part, full.sample(b)) for b in range(len(CLIPS))], full):
        yield f"a sample depends on the others in a batch without padding ({apart})"
    apart = _apart(given, [call(part, x.sample(b)) for b in range(len(CLIPS))], x)
    reason = entry.facts.get("depends_on_batch")
    if apart and not reason:
        yield f"a sample depends on the padding of its batch ({apart}), and no reason is declared"
    if reason and not apart:
        yield f"depends_on_batch is declared ({reason}), but nothing depends on it"
    if key == "fusion":
        yield from _stacking_problems(part, x)
    yield from _gradient_problems(key, part, entry, x)


def _stacking_problems(part: Any, x: Example) -> Iterator[str]:
    """The positive and the negative pair pass through fusion together, and must not notice each other."""
    words, word_mask = x.words.roll(-1, 0), x.word_mask.roll(-1, 0)
    pairs = [
        (x.clips, x.words, x.positions, x.word_positions, x.clip_mask, x.word_mask),
        (x.clips, words, x.positions, x.word_positions, x.clip_mask, word_mask),
    ]
    with torch.no_grad():
        apart = torch.cat([part(*given) for given in pairs])
        together = part(*map(torch.cat, zip(*pairs, strict=True)), batches=2)
    if together.shape != apart.shape or not torch.allclose(together, apart, atol=1e-5):
        yield "two batches given together differ from the same two given apart"


def _placebo_problems(key: str, entry: Entry, placebo: str) -> Iterator[str]:
    """A placebo takes the same arguments, has exactly the same parameters, and says something else."""
    if placebo not in find_slot(key):
        yield f'its placebo "{placebo}" is not a component of the slot'
        return
    other = find_slot(key)[placebo]
    if dict(other.args).keys() != dict(entry.args).keys():
        yield f"its placebo takes {sorted(other.args)}, not {sorted(entry.args)}"
        return
    part, blank, x = built(key, entry), built(key, replace(other, args=entry.args)), example()
    ours, theirs = ({name: tuple(p.shape) for name, p in side.named_parameters()} for side in (part, blank))
    if ours != theirs:
        yield f"its placebo has other parameters: {dict(ours.items() ^ theirs.items())}"
    with torch.no_grad():
        given, blank_given = CALLS[key](part.eval(), x), CALLS[key](blank.eval(), x)
    if given.keys() != blank_given.keys() or all(given[what].equal(blank_given[what]) for what in given):
        yield "its placebo gives other things, or the same numbers"


def _shape_problems(given: Given, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for what, shape in wanted.items():
        if what not in given:
            yield f"it does not give {what}"
        elif tuple(given[what].shape) != shape:
            yield f"{what} has shape {tuple(given[what].shape)} instead of {shape}"


def _neutral_problems(key: str, part: nn.Module, given: Given, x: Example) -> Iterator[str]:
    if any(True for _ in part.parameters()):
        yield "the neutral component has parameters"
    nothing = {"refinement": ("clips", x.clips), "word_position": ("words", torch.zeros_like(x.words))}
    if key in nothing:
        what, value = nothing[key]
        if not given[what].equal(value):
            yield f"the neutral component changes {what}"


def _apart(batch: Given, alone: list[Given], x: Example) -> str:
    """Where samples differ from themselves alone by more than rounding, real rows only; empty if nowhere."""
    found = []
    for what, value in batch.items():
        worst = 0.0
        for b, one in enumerate(alone):
            if what.startswith("layers"):
                ours, theirs = value[:, b], one[what][:, 0]
            else:
                mask = x.word_mask if what == "words" else x.clip_mask
                ours, theirs = value[b][mask[b]], one[what][0]
            worst = max(worst, float((ours - theirs).abs().max()) / (1 + float(theirs.abs().max())))
        if not worst < 1e-5:
            found.append(f"{what} by {worst:.2g}")
    return ", ".join(found)


def _gradient_problems(key: str, part: nn.Module, entry: Entry, x: Example) -> Iterator[str]:
    part.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        given = CALLS[key](part, x)
    given = {what: value for what, value in given.items() if value.requires_grad}
    weights = torch.Generator().manual_seed(2)
    for value in given.values():  # a plain sum would cancel in a norm or a softmax
        (value * torch.randn(value.shape, generator=weights)).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    never = tuple(entry.facts.get("never_trained", ()))
    for name, parameter in part.named_parameters():
        declared = any(piece.startswith(never) for piece in _endings(name)) if never else False
        reached = parameter.grad is not None
        if declared and reached:
            yield f"{name} is declared as never trained, but gets a gradient"
        if not declared and not reached:
            yield f"{name} gets no gradient"
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            yield f"the gradient of {name} is not finite"


def _endings(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[at:]) for at in range(len(pieces))]


def _matcher_problems(entry: Entry) -> Iterator[str]:
    x, matcher = example(), entry.load()(**entry.args)
    anchor, mask = matcher(x.spans_cw, x.logits, x.targets_cw, x.target_mask)
    if anchor.shape != (LAYERS, *x.target_mask.shape) or mask.shape != anchor.shape:
        yield f"anchor and mask have shapes {tuple(anchor.shape)} and {tuple(mask.shape)}, not K B N"
        return
    if not mask.equal(x.target_mask.expand_as(mask)):
        yield "not exactly the real moments are matched"
    for k in range(LAYERS):
        for b in range(len(CLIPS)):
            chosen = anchor[k, b][mask[k, b]].tolist()
            if len(set(chosen)) < len(chosen) or not all(0 <= a < ANCHORS for a in chosen):
                yield f"layer {k}, sample {b}: anchors {chosen} are not distinct anchors"
    # an anchor that predicts a moment exactly and confidently answers for it
    spans_cw, logits = x.spans_cw.clone(), x.logits.clone()
    spans_cw[:, :2, 3], logits[:, :2, 3] = x.targets_cw[:2, 0], torch.tensor([9.0, -9.0])
    anchor, _ = matcher(spans_cw, logits, x.targets_cw, x.target_mask)
    if not bool((anchor[:, :2, 0] == 3).all()):
        yield "an anchor that predicts a moment exactly does not answer for it"


class _Recorder(nn.Module):
    """A refinement that says which words it was given: the clips plus the mean of the real words."""

    def forward(self, clips: Tensor, words: Tensor, clip_mask: Tensor, word_mask: Tensor) -> Tensor:
        real = (words * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True)
        return clips + real[:, None]


def _negative_problems(entry: Entry) -> Iterator[str]:
    x, part, refinement = example(), built("negative", entry), _Recorder()
    if any(True for _ in part.parameters()):
        yield "it has parameters, which no loss of a model without negative pairs would reach"
    masks = (x.clip_mask, x.word_mask)
    refined = refinement(x.projected, x.words, *masks)
    pair = part(refinement, x.projected, refined, x.words, x.word_positions, *masks)
    shapes = (x.clips.shape, x.words.shape, x.word_positions.shape, x.word_mask.shape)
    if tuple(value.shape for value in pair) != shapes:
        yield f"the pair has shapes {[tuple(value.shape) for value in pair]}, not {[tuple(shape) for shape in shapes]}"
        return
    for b in range(len(CLIPS)):
        own = pair.word_mask[b].equal(x.word_mask[b]) and pair.words[b].equal(x.words[b])
        if own:
            yield f"sample {b} keeps its own query"
    if int(part.least) < 1:  # type: ignore[arg-type]
        yield f"least is {part.least}, but a batch has at least one sample"


def _loss_problems(entry: Entry) -> Iterator[str]:
    if entry.name == "none":
        return
    term: Term = entry.load()(**entry.args)
    if term.weight != entry.args["weight"]:
        yield f"the weight is {term.weight} instead of {entry.args['weight']}"
    for situation, step in steps().items():
        if not term.needs_matches:
            step = replace(step, matches=None)
        value = term(step)
        if value.dim() > 1 or (value.dim() == 1 and len(value) not in (1, LAYERS)):
            yield f"{situation}: the shape is {tuple(value.shape)}, not a scalar and not one value per layer"
        if not bool(value.isfinite().all()):
            yield f"{situation}: the value is {value.tolist()}"
            continue
        leaves = [item for item in _tensors(step.outputs) if item.requires_grad]
        reached = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else ()
        if situation == "annotated" and not any(grad is not None for grad in reached):
            yield "no output of the model gets a gradient"
        if not all(bool(grad.isfinite().all()) for grad in reached if grad is not None):
            yield f"{situation}: a gradient is not finite"


def steps() -> dict[str, Step]:
    """Situations a loss term has to survive."""
    x = example()
    generator = torch.Generator().manual_seed(3)
    B, L = x.clip_mask.shape
    W, C = x.word_mask.shape[1], 6

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    outputs = Outputs(
        spans_cw=x.spans_cw.clone().requires_grad_(),
        logits=x.logits.clone().requires_grad_(),
        saliency=leaf(B, L),
        words=leaf(B, W, SIZES.width),
        clips=leaf(B, L, SIZES.width),
        clip_mask=x.clip_mask,
        word_mask=x.word_mask,
        saliency_negative=leaf(B, L),
        saliency_feedback=leaf(B, L),
        anchors_projected=functional.normalize(leaf(LAYERS, B, ANCHORS, C), dim=-1).detach().requires_grad_(),
        words_projected=functional.normalize(leaf(B, W, C), dim=-1).detach().requires_grad_(),
        clips_projected=functional.normalize(leaf(B, L, C), dim=-1).detach().requires_grad_(),
    )
    labels = torch.randint(0, 13, (B, L), generator=generator).float() * x.clip_mask
    pairs = torch.tensor([[0, 1], [2, 0], [1, 3]])
    annotated = Targets(x.targets_cw, x.target_mask, labels, (labels > 0).float(), pairs, pairs.flip(1))
    nothing = torch.zeros_like(x.target_mask)
    no_moments = replace(annotated, spans_cw=torch.zeros_like(x.targets_cw), span_mask=nothing)
    flat = replace(annotated, saliency=torch.zeros_like(labels), salient=torch.zeros_like(labels))
    none = pairs[:, :0]
    cases = {
        "annotated": annotated,
        "no moments": no_moments,
        "no room for moments": replace(no_moments, spans_cw=x.targets_cw[:, :0], span_mask=nothing[:, :0]),
        "no saliency": flat,
        "no pairs": replace(annotated, positive=none, negative=none),
    }
    first = torch.arange(2).expand(LAYERS, B, 2)
    return {
        name: Step(
            outputs,
            targets,
            epoch=1,
            matches=Matches(first[..., : targets.span_mask.shape[1]], targets.span_mask.expand(LAYERS, -1, -1)),
        )
        for name, targets in cases.items()
    }


def _tensors(outputs: Outputs) -> list[Tensor]:
    values = [getattr(outputs, item.name) for item in fields(outputs)]
    return [value for value in values if isinstance(value, Tensor)]


def registered() -> list[tuple[str, str]]:
    """Every (slot, component) that ``check_component`` can check."""
    from vlbench.catalog import model_slots

    slots: dict[str, Any] = {**{name: model_slots[name] for name in model_slots}}
    slots |= {f"loss.{name}": slot for name, slot in loss_slots.items()}
    return [(key, name) for key, slot in slots.items() for name in slot]
