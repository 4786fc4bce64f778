"""What training minimises: one small class per term, each a slot of its own with its own weight.

Source: Moment-DETR (arXiv:2107.09609) for span, giou, label and margin; QD-DETR (arXiv:2303.13874) for rank and
negative_pair; VideoLights (arXiv:2412.01558) for the others, all as the released code computes them. What the paper
describes stands behind its released form where the two differ.

    paper                              here
    L_L1, L_gIoU, L_cls                SpanL1, SpanGIoU, LabelCrossEntropy
    L_cont, L_neg of saliency          RankContrastive, NegativePair
    alignment loss                     ClipTextAlignment; the released code adds it to AnchorWordNCE
    saliency cosine similarity loss    SaliencyCosine
    task coupled loss                  TaskCoupled
    adaptive hard pos/neg loss         HardPositiveNegative
    the same, as described             MaskedNCE, PerSampleAlignment, PerSampleCosine, PerSampleTaskCoupled,
                                       MinedPositiveNegative, SoftplusRejection

Padded clips and words are part of several released terms, so the composition of a batch is too; none of the others
reads padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vlbench.cards.kinds import Use, Variant
from vlbench.catalog import find_slot
from vlbench.errors import CardError
from vlbench.nn.model import Outputs, Targets
from vlbench.nn.shapes import Bool, Float, Int
from vlbench.nn.spans import giou, to_se

# --- the sum ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matches:
    """anchor: the anchor that answers for each moment. mask: True where there is one."""

    anchor: Int[Tensor, "K B N"]
    mask: Bool[Tensor, "K B N"]

    def pick(self, spans_cw: Float[Tensor, "K B A 2"]) -> Float[Tensor, "K B N 2"]:
        """The spans of the matched anchors."""
        return spans_cw.gather(2, self.anchor[..., None].expand(-1, -1, -1, 2))

    def foreground(self, anchors: int) -> Bool[Tensor, "K B {anchors}"]:
        """Which anchors are matched."""
        places = torch.arange(anchors, device=self.anchor.device)
        return ((self.anchor[..., None] == places) & self.mask[..., None]).any(2)

    def mean(self, values: Float[Tensor, "K B N"]) -> Float[Tensor, " K"]:
        """Mean over the matched pairs of the batch, for every layer; 0 where there are none."""
        return (values * self.mask).sum((1, 2)) / self.mask.sum((1, 2)).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Step:
    """All that a term may read.

    epoch: from 0; 0 in evaluation; a tensor in a step that is carried out as a whole. matches: None when no active term
    needs them.
    """

    outputs: Outputs
    targets: Targets
    epoch: int | Tensor
    matches: Matches | None = None

    @property
    def matched(self) -> Matches:
        """The matches. Raises RuntimeError for a term that did not declare ``needs_matches``."""
        if self.matches is None:
            raise RuntimeError("a term reads matches without declaring needs_matches")
        return self.matches


class Term:
    """One summand. A call returns its unweighted value: a scalar, or one value per decoder layer, the last one last.

    weight: what it is multiplied with in the total. ``needs_matches``: it reads which anchor answers for which moment.
    """

    needs_matches = False

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, step: Step) -> Tensor:
        raise NotImplementedError


class LayerTerm(Term):
    """A term of every decoder layer. auxiliary: the layers before the last count too, each with the full weight."""

    def __init__(self, *, weight: float, auxiliary: bool) -> None:
        super().__init__(weight=weight)
        self.auxiliary = auxiliary

    def __call__(self, step: Step) -> Float[Tensor, " K"]:
        values = self.layers(step)
        return values if self.auxiliary else values[-1:]

    def layers(self, step: Step) -> Float[Tensor, " K"]:
        """The value of every decoder layer."""
        raise NotImplementedError


class Absent(Term):
    """No term; the neutral component of every loss slot. The criterion leaves it out."""

    def __init__(self) -> None:
        super().__init__(weight=0.0)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return step.outputs.saliency.new_zeros(())


@dataclass(frozen=True, slots=True)
class Losses:
    """total: the weighted sum, to be minimised. terms: its summands, weighted, layers added up. unweighted: what each
    term returned, detached."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor]
    unweighted: dict[str, Tensor]


Matcher = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Criterion:
    """The weighted sum of the active terms, in float32 whatever the outputs are."""

    def __init__(self, terms: Mapping[str, Term], matcher: Matcher) -> None:
        self.terms, self.matcher = dict(terms), matcher

    @classmethod
    def of(cls, variant: Variant, tasks: frozenset[str] = frozenset({"mr", "hd"})) -> Criterion:
        """The criterion of a variant. A term is active if its task is one of the tasks.

        Raises CardError if no term is left.
        """
        terms = {}
        for name, use in variant.losses.items():
            entry = find_slot(f"loss.{name}")[use.name]
            if use.name != "none" and entry.facts["task"] in tasks:
                terms[name] = entry.load()(**use.args)
        if not terms:
            raise CardError(f"{variant.name} has no loss term for {' and '.join(sorted(tasks)) or 'no task'}")
        matcher: Use = variant.slots["matcher"]
        return cls(terms, find_slot("matcher")[matcher.name].load()(**matcher.args))

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """Which anchor answers for which moment, for every decoder layer. Raises Diverged for values not finite."""
        return Matches(*self.matcher(outputs.spans_cw, outputs.logits, targets.spans_cw, targets.span_mask))

    def __call__(self, outputs: Outputs, targets: Targets, *, epoch: int | Tensor) -> Losses:
        """epoch: from 0; the hard saliency term grows with it, and evaluation uses 0."""
        values = self.values(outputs, targets, epoch=epoch)
        with torch.autocast(outputs.saliency.device.type, enabled=False):
            weighted = {name: self.terms[name].weight * value.sum() for name, value in values.items()}
            total = torch.stack(list(weighted.values())).sum()
        return Losses(total, weighted, {name: value.detach() for name, value in values.items()})

    def values(self, outputs: Outputs, targets: Targets, *, epoch: int | Tensor) -> dict[str, Tensor]:
        """What each term returns: a scalar, or one value per decoder layer, not weighted."""
        with torch.autocast(outputs.saliency.device.type, enabled=False):
            outputs = outputs.float()
            needed = any(term.needs_matches for term in self.terms.values())
            step = Step(outputs, targets, epoch, self.match(outputs, targets) if needed else None)
            return {name: term(step) for name, term in self.terms.items()}


# --- moment retrieval -------------------------------------------------------------------------------------------------


class SpanL1(LayerTerm):
    """Mean distance of matched spans, over centre and width."""

    needs_matches = True

    def layers(self, step: Step) -> Float[Tensor, " K"]:
        distance = (step.matched.pick(step.outputs.spans_cw) - step.targets.spans_cw).abs()  # K B N 2
        return step.matched.mean(distance.mean(-1))


class SpanGIoU(LayerTerm):
    """Mean of 1 - generalised IoU of matched spans."""

    needs_matches = True

    def layers(self, step: Step) -> Float[Tensor, " K"]:
        predicted = to_se(step.matched.pick(step.outputs.spans_cw))  # K B N 2
        return step.matched.mean(1 - giou(predicted, to_se(step.targets.spans_cw)))


class LabelCrossEntropy(LayerTerm):
    """Cross-entropy of anchors, matched ones being foreground; a plain mean, not divided by the sum of the weights.

    background: weight of an anchor that is not matched; a matched one weighs 1.
    """

    needs_matches = True

    def __init__(self, *, weight: float, auxiliary: bool, background: float) -> None:
        super().__init__(weight=weight, auxiliary=auxiliary)
        self.background = background

    def layers(self, step: Step) -> Float[Tensor, " K"]:
        foreground = step.matched.foreground(step.outputs.logits.shape[2])  # K B A
        surprise = -step.outputs.logits.log_softmax(-1)  # K B A 2
        return torch.where(foreground, surprise[..., 0], self.background * surprise[..., 1]).mean((1, 2))


class AnchorWordNCE(LayerTerm):
    """Matched anchors agree with the words more than others do: cross-entropy among the anchors of a sample.

    Words are added up over all places, padding included. A sample without a moment adds 0. width: C of the projected
    space (read by the assembly). temperature: divides the agreements.
    """

    needs_matches = True

    def __init__(self, *, weight: float, auxiliary: bool, width: int, temperature: float) -> None:
        super().__init__(weight=weight, auxiliary=auxiliary)
        self.width, self.temperature = width, temperature

    def layers(self, step: Step) -> Float[Tensor, " K"]:
        anchors, words = step.outputs.anchors_projected, step.outputs.words_projected
        if anchors is None or words is None:
            raise RuntimeError("loss.contrastive needs the projections that a model computes with negative=True")
        text = self.text(words, step.outputs.word_mask)  # B C
        agreement = torch.einsum("kbac,bc->kba", anchors, text) / self.temperature  # K B A
        foreground = step.matched.foreground(anchors.shape[2])  # K B A
        count = foreground.sum(-1)  # K B
        positive = (agreement * foreground).sum(-1) / count.clamp(min=1)  # K B
        return torch.where(count > 0, agreement.logsumexp(-1) - positive, 0).mean(1)

    def text(self, words: Float[Tensor, "B W C"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B C"]:
        """What stands for the words of a query."""
        return words.sum(1)


class MaskedNCE(AnchorWordNCE):
    """The same with the mean of the real words, so that neither padding nor the number of words counts."""

    def text(self, words: Float[Tensor, "B W C"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B C"]:
        return real_mean(words, mask)


def real_mean(words: Float[Tensor, "B W D"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B D"]:
    """The mean of the real words of every sample."""
    return (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class ClipTextAlignment(Term):
    """Refined clips resemble the mean of the words as much as they are salient; see ``cosine_gap``.

    Padded words are part of the mean and padded clips of the comparison.
    """

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        text = step.outputs.words.mean(1, keepdim=True)  # B 1 D
        return cosine_gap(functional.cosine_similarity(text, step.outputs.clips, dim=-1), step.targets.saliency)


class PerSampleAlignment(Term):
    """Refined clips resemble the mean of the real words as much as they are salient; see ``mean_cosine_gap``."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        text = real_mean(step.outputs.words, step.outputs.word_mask)[:, None]  # B 1 D
        resemblance = functional.cosine_similarity(text, step.outputs.clips, dim=-1)  # B L
        return mean_cosine_gap(resemblance, step.targets.saliency, step.outputs.clip_mask)


# --- highlight detection ----------------------------------------------------------------------------------------------


def unit_rows(
    scores: Float[Tensor, "B L"], labels: Float[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Scores and labels as unit vectors per sample, scores shifted to start at 0; the zero vector stays what it is.

    The shift is the minimum of the whole batch, padding included. The division by the range of the labels has no
    effect after normalisation; where all labels of the batch are equal the released code divides by 0 and yields NaN,
    and here the division is left out.
    """
    reach = labels.max() - labels.min()
    shifted = (scores - scores.min()) / torch.where(reach > 0, reach, 1.0)
    return functional.normalize(shifted, dim=1), functional.normalize(labels, dim=1)


def cosine_gap(scores: Float[Tensor, "B L"], labels: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
    """1 - cosine of scores and labels, added up over the batch: its weight grows with the batch size."""
    return (1 - functional.cosine_similarity(*unit_rows(scores, labels), dim=1)).sum()


def unit_real_rows(
    scores: Float[Tensor, "B L"], labels: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Scores and labels of the real clips as unit vectors per sample, scores shifted to start at 0; 0 on padding.

    The shift is the minimum of the sample's own real clips. Equal scores, and labels that are all 0, give zeros.
    """
    least = scores.masked_fill(~mask, torch.inf).amin(1, keepdim=True)  # B 1
    return _unit(torch.where(mask, scores - least, 0.0)), _unit(torch.where(mask, labels, 0.0))


def _unit(rows: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Rows of length 1, or shorter than 1 where a row is next to nothing; the gradient stays bounded there."""
    return rows / (rows.square().sum(1, keepdim=True) + 1e-6).sqrt()


def mean_cosine_gap(
    scores: Float[Tensor, "B L"], labels: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """1 - cosine of scores and labels over the real clips, averaged over the samples that have a label above 0.

    Each sample counts alone and the batch size does not; 0 if no sample has a label.
    """
    ours, wanted = unit_real_rows(scores, labels, mask)
    labelled = (wanted > 0).any(1)  # B
    gap = (1 - (ours * wanted).sum(1)) * labelled  # B
    return gap.sum() / labelled.sum().clamp(min=1)


def negative_scores(step: Step) -> Float[Tensor, "B L"]:
    """Saliency under another sample's query. Raises RuntimeError if the model was asked not to compute it."""
    if step.outputs.saliency_negative is None:
        raise RuntimeError("this term needs the negative pair: call the model with negative=True")
    return step.outputs.saliency_negative


class SaliencyMargin(Term):
    """Hinge: the first clip of a pair scores higher than the second by ``margin``. Twice the mean over all pairs."""

    def __init__(self, *, weight: float, margin: float) -> None:
        super().__init__(weight=weight)
        self.margin = margin

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        scores, pairs = step.outputs.saliency, max(step.targets.positive.numel(), 1)
        gap = scores.gather(1, step.targets.negative) - scores.gather(1, step.targets.positive)  # B P
        return (self.margin + gap).clamp(min=0).sum() * 2 / pairs


class RankContrastive(Term):
    """For each of eleven levels: clips labelled at least that high stand out among all clips and the negative pair.

    Divided by twelve, as released. temperature: divides the scores.
    """

    levels = 11

    def __init__(self, *, weight: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.temperature = temperature

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        L, mask = step.targets.saliency.shape[1], step.outputs.clip_mask
        both = torch.cat((step.outputs.saliency, negative_scores(step)), dim=1)  # B 2L
        scores = torch.where(torch.cat((mask, mask), dim=1), both, -1000.0) / self.temperature
        scores = scores - scores.amax(1, keepdim=True)
        log_share = scores - (scores.exp().sum(1, keepdim=True) + 1e-6).log()  # B 2L
        log_share = log_share[:, :L] * mask  # B L; the negative pair is never a positive
        level = torch.arange(1, self.levels + 1, device=mask.device)[:, None, None]  # R 1 1
        above = step.targets.saliency >= level  # R B L
        count = above.sum(-1)  # R B
        per_level = (log_share * above).sum(-1) / (count + 1e-6) * (count > 0)  # R B
        return -per_level.mean(1).sum() / (self.levels + 1)


class NegativePair(Term):
    """No clip is salient for another sample's query: -log(1 - sigmoid), evaluated as written.

    Scores above about 17 give infinity in float32, and NaN if the clip is padded.
    """

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        surprise = -(1 - negative_scores(step).sigmoid()).log()  # B L
        return (step.outputs.clip_mask * surprise).sum(1).mean()


class SoftplusRejection(Term):
    """No clip is salient for another sample's query: the same quantity as softplus, finite for every score."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        surprise = functional.softplus(negative_scores(step))  # B L
        return (step.outputs.clip_mask * surprise).sum(1).mean()


class SaliencyCosine(Term):
    """Saliency resembles its labels; see ``cosine_gap``."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return cosine_gap(step.outputs.saliency, step.targets.saliency)


class PerSampleCosine(Term):
    """Saliency resembles its labels, each sample on its own; see ``mean_cosine_gap``."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return mean_cosine_gap(step.outputs.saliency, step.targets.saliency, step.outputs.clip_mask)


def feedback_scores(step: Step) -> Float[Tensor, "B L"]:
    """The saliency that feedback derives from the moments. Raises CardError if the model has none."""
    if step.outputs.saliency_feedback is None:
        raise CardError(
            "loss.task_coupled has nothing to read: this model gives no saliency from its feedback",
            hint='set model.feedback.use = "unijfm", or loss.task_coupled.use = "none"',
        )
    return step.outputs.saliency_feedback


class TaskCoupled(Term):
    """The saliency that feedback derives from a moment resembles the labels; see ``cosine_gap``."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return cosine_gap(feedback_scores(step), step.targets.saliency)


class PerSampleTaskCoupled(Term):
    """The saliency that feedback derives from moments resembles the labels; see ``mean_cosine_gap``."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return mean_cosine_gap(feedback_scores(step), step.targets.saliency, step.outputs.clip_mask)


class HardPositiveNegative(Term):
    """Squared error of saliency against labels, as unit vectors, where clips are salient and where they are not.

    Both parts are means over all clips, so they add up to one plain mean: nothing is mined. Grows as epoch + 1.
    """

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return self.parts(step).sum()

    def parts(self, step: Step) -> Float[Tensor, " 2"]:
        """The part of clips that are not salient, and of those that are."""
        scores, labels = unit_rows(step.outputs.saliency, step.targets.saliency)
        error = (labels - scores).square()  # B L
        parts = ((error * (1 - step.targets.salient)).mean(), (error * step.targets.salient).mean())
        return (step.epoch + 1) * torch.stack(parts)


class MinedPositiveNegative(Term):
    """Squared error of saliency against labels, as unit vectors per sample, of the hard clips alone.

    A salient clip is hard if a clip that is not salient scores at least as high; a clip that is not salient is hard if
    a salient one scores no higher. The mean over the real clips of a sample, then over the samples; the same in every
    epoch. 0 where the ranking is perfect.
    """

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        mask = step.outputs.clip_mask
        scores, labels = unit_real_rows(step.outputs.saliency, step.targets.saliency, mask)
        hard = self.hard(step.outputs.saliency, step.targets.salient > 0, mask)
        error = (labels - scores).square() * hard  # B L
        return (error.sum(1) / mask.sum(1)).mean()

    def hard(
        self, scores: Float[Tensor, "B L"], salient: Bool[Tensor, "B L"], mask: Bool[Tensor, "B L"]
    ) -> Bool[Tensor, "B L"]:
        """The clips that are on the wrong side of some clip of the other kind."""
        with torch.no_grad():
            salient, dull = salient & mask, ~salient & mask
            best_dull = scores.masked_fill(~dull, -torch.inf).amax(1, keepdim=True)  # B 1
            worst_salient = scores.masked_fill(~salient, torch.inf).amin(1, keepdim=True)  # B 1
            return (salient & (scores <= best_dull)) | (dull & (scores >= worst_salient))
