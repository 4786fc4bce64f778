"""Everything that is built in, on one page, without importing torch.

A *slot* is a named position in a model and a *component* fills it. A slot's neutral component is what "removed" means:
``none`` is the identity, and where identity would cut the query off the slot names the plainest alternative instead.
A loss term is a slot too, so that each can be emptied alone. Arguments and their defaults stand here (see
``registry.Entry``); plug-ins make the same calls under names of the form ``package/name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlbench.errors import CardError, suggestion
from vlbench.registry import Entry, Registry, Scalar


class Slot(Registry):
    """One position of a model and the components that can fill it.

    ``neutral``: what stands there when a component is removed. ``placebo``: the one placebo of a slot that has but one.
    ``takes``/``gives``: the contract in shape letters (B batch, L clips, W words, A anchors, D width, K layers).
    ``later``: the slot is younger than stored cells, which hold its neutral component without saying so; an identity
    names the slot only where something else fills it.
    """

    def __init__(
        self, name: str, *, neutral: str, takes: str, gives: str, placebo: str | None = None, later: bool = False
    ) -> None:
        super().__init__(f"component of {name}")
        self.name, self.neutral, self.placebo, self.takes, self.gives = name, neutral, placebo, takes, gives
        self.later = later

    def placebo_of(self, component: str) -> str | None:
        """The component with the same parameters that cannot do what this one is for, or None if there is none.

        Its arguments are those of the component, so an arm that puts it in place keeps their values.
        """
        found: str | None = self[component].facts.get("placebo")
        return found


model_slots: dict[str, Slot] = {}
loss_slots: dict[str, Slot] = {}


def slot(name: str, *, neutral: str, takes: str, gives: str, placebo: str | None = None, later: bool = False) -> Slot:
    """Declare a model slot. Raises CardError if the name is taken."""
    if name in model_slots:
        raise CardError(f'the slot "{name}" is already declared')
    model_slots[name] = Slot(name, neutral=neutral, takes=takes, gives=gives, placebo=placebo, later=later)
    return model_slots[name]


def loss(name: str, use: str, target: str, *, task: str, version: int = 1, summary: str = "", **args: Scalar) -> None:
    """Declare a loss term as a slot of its own with the component ``use`` and the neutral ``none``.

    task: ``mr`` or ``hd``; a term is active on datasets that have this task. Terms of one name may have several
    components.
    """
    if name not in loss_slots:
        loss_slots[name] = Slot(f"loss.{name}", neutral="none", takes="Step", gives="scalar or K")
        loss_slots[name].add("none", "vlbench.nn.losses:Absent", summary="the term is absent")
    loss_slots[name].add(use, target, version=version, args={"weight": 1.0, **args}, summary=summary, task=task)


def find_slot(key: str) -> Slot:
    """The slot of a card key such as ``refinement`` or ``loss.span``. Raises CardError with the near miss."""
    table: Mapping[str, Slot] = model_slots
    name = key
    if key.startswith("loss."):
        table, name = loss_slots, key.removeprefix("loss.")
    if name not in table:
        raise CardError(f'"{key}" is not a slot', hint=suggestion(name, table))
    return table[name]


# --- the model -------------------------------------------------------------------------------------------------------

# Facts that the contract test holds components to: ``never_trained``, the beginnings of the names of parameters that no
# gradient reaches; ``depends_on_batch``, why a sample among padded others may differ from itself alone; ``placebo``,
# the component of the slot with the same parameters that cannot do what this one is for; ``gives``, what losses read.

# Sizes that several slots share; the [model] table of a card.
model_args: dict[str, Scalar] = {"width": 256, "attention_heads": 8, "feedforward": 1024, "dropout": 0.1}

projection = slot("projection", neutral="linear", takes="features B N F", gives="rows B N D")
projection.add(
    "linear",
    "vlbench.nn.projection:LinearProjection",
    args={"layers": 2, "dropout": 0.5},
    summary="LayerNorm, dropout and a linear map per layer (QD-DETR)",
)
projection.add(
    "conv",
    "vlbench.nn.projection:ConvProjection",
    args={"layers": 2, "dropout": 0.5, "kernel": 1},
    summary="the same with a 1-D convolution; kernel 1, as released, is a linear map",
)
projection.add(
    "conv-blind",
    "vlbench.nn.projection:BlindConvProjection",
    args={"layers": 2, "dropout": 0.5, "kernel": 3},
    summary="the parameters of a wide kernel that sees no neighbour: capacity without local context",
)

word_position = slot("word_position", neutral="none", takes="words B W D", gives="positions B W D")
word_position.add("none", "vlbench.nn.position:NoPosition", summary="words carry no position (every released script)")
word_position.add(
    "learned",
    "vlbench.nn.position:LearnedPosition",
    args={"max_words": 32, "dropout": 0.5},
    summary="a trained table of positions for the words",
    placebo="idle",
)
word_position.add(
    "idle",
    "vlbench.nn.position:IdlePosition",
    args={"max_words": 32, "dropout": 0.5},
    summary="none, beside a table that is never read: what released checkpoints hold and count as parameters",
    never_trained=("table", "norm"),
)

refinement = slot(
    "refinement", neutral="none", placebo="placebo", takes="clips B L D, words B W D", gives="clips B L D"
)
refinement.add("none", "vlbench.nn.refinement:Unchanged", summary="clips stay as they are projected")
refinement.add(
    "fra",
    "vlbench.nn.refinement:FeatureRefinement",
    args={"dropout": 0.1},
    summary="feature refinement and alignment: mixes clips with the sentence (VideoLights, as released)",
    placebo="placebo",
)
refinement.add(
    "placebo",
    "vlbench.nn.refinement:PlaceboRefinement",
    args={"dropout": 0.1},
    summary="FRA's parameters and operations with the clips in place of the words: capacity without the query",
)
refinement.add(
    "fra-described",
    "vlbench.nn.refinement:DescribedRefinement",
    args={"dropout": 0.1},
    summary="FRA with a correspondence map that carries the words' content and hides padding",
    placebo="fra-described-placebo",
)
refinement.add(
    "fra-described-placebo",
    "vlbench.nn.refinement:PlaceboDescribedRefinement",
    args={"dropout": 0.1},
    summary="fra-described with the clips in place of the words",
)

_PAIRS = "pairs of padded clips and words are hidden in the wrong sample, as in the released code"

fusion = slot(
    "fusion",
    neutral="one-way",
    takes="clips B L D, words B W D, positions of both, how many batches B is",
    gives="clips B L D",
)
fusion.add(
    "one-way",
    "vlbench.nn.fusion:OneWayFusion",
    args={"layers": 2},
    summary="clips attend to words (QD-DETR); the plainest fusion that lets the query in",
    depends_on_batch=_PAIRS,
)
fusion.add(
    "bicmf",
    "vlbench.nn.fusion:BiCMF",
    args={"layers": 1},
    summary="bi-directional cross-modal fusion (VideoLights, as released)",
    depends_on_batch=_PAIRS,
    never_trained=("norm2",),
    placebo="bicmf-placebo",
)
fusion.add(
    "bicmf-placebo",
    "vlbench.nn.fusion:PlaceboBiCMF",
    args={"layers": 1},
    summary="Bi-CMF's parameters and operations with words that attend to themselves: one direction only",
    depends_on_batch=_PAIRS,
    never_trained=("norm2",),
)
fusion.add(
    "one-way-masked",
    "vlbench.nn.fusion:MaskedOneWayFusion",
    args={"layers": 2},
    summary="one-way with the right mask: padding is hidden, and nothing of another sample",
)
fusion.add(
    "bicmf-described",
    "vlbench.nn.fusion:DescribedBiCMF",
    args={"layers": 1},
    summary="Bi-CMF with the right mask, a residual and a norm after every step, words carried from layer to layer",
    placebo="bicmf-described-placebo",
)
fusion.add(
    "bicmf-described-placebo",
    "vlbench.nn.fusion:PlaceboDescribedBiCMF",
    args={"layers": 1},
    summary="bicmf-described with words that attend to themselves",
)

encoder = slot("encoder", neutral="transformer", takes="global and clips B 1+L D", gives="memory B 1+L D")
encoder.add("transformer", "vlbench.nn.transformer:Encoder", args={"layers": 3}, summary="post-norm self-attention")

decoder = slot(
    "decoder", neutral="anchor", takes="clips B L D, positions B L D", gives="states K B A D, references K B A 2"
)
decoder.add(
    "anchor",
    "vlbench.nn.transformer:AnchorDecoder",
    args={"layers": 3, "anchors": 10},
    summary="DAB-style anchors with modulated cross-attention",
)

heads = slot(
    "heads",
    neutral="joint",
    takes="states K B A D, references K B A 2, clips B L D, token B D",
    gives="spans, logits, saliency",
)
heads.add("joint", "vlbench.nn.heads:JointHeads", summary="class and span per anchor, saliency per clip")

negative = slot(
    "negative",
    neutral="rolled",
    takes="the refinement, projected and refined clips B L D, words and positions B W D",
    gives="clips B L D, words and positions B W D, mask B W",
    later=True,
)
negative.add(
    "rolled",
    "vlbench.nn.negative:RolledNegative",
    summary="the next sample's words beside clips refined with their own (as released)",
)
negative.add(
    "refined",
    "vlbench.nn.negative:RefinedNegative",
    summary="clips refined with the next sample's words too; a sample that is alone has no negative pair",
)

feedback = slot(
    "feedback",
    neutral="none",
    takes="saliency B L and clips B L D before the decoder; spans, logits B A 2 and projected clips B L D after it",
    gives="what the decoder reads B L D, saliency B L or nothing",
)
feedback.add("none", "vlbench.nn.feedback:NoFeedback", summary="the two tasks share the encoder and nothing else")
feedback.add(
    "unijfm",
    "vlbench.nn.feedback:UniJFM",
    summary="a second saliency from the best predicted moment (VideoLights, as released: MR to HD, in the loss only)",
    gives=("saliency",),
    reads_in_training=("spans_handed",),
    depends_on_batch="the moment is cut out at the padded length of the batch",
    placebo="unijfm-placebo",
)
feedback.add(
    "unijfm-placebo",
    "vlbench.nn.feedback:PlaceboUniJFM",
    summary="Uni-JFM's parameters and operations on the middle half of the video, whatever was predicted",
    gives=("saliency",),
    depends_on_batch="the middle half of the video is cut out at the padded length of the batch",
)
feedback.add(
    "hd-to-mr",
    "vlbench.nn.feedback:GatedDecoder",
    version=2,
    reads=("saliency_handed",),
    summary="predicted saliency, against the mean of the video, gates what the decoder reads; no parameters",
    placebo="hd-to-mr-placebo",
)
feedback.add(
    "hd-to-mr-placebo",
    "vlbench.nn.feedback:PlaceboGatedDecoder",
    version=2,
    reads=("saliency_handed",),
    summary="the same gates, each on the clip half a video away",
)
feedback.add(
    "mr-to-hd",
    "vlbench.nn.feedback:SoftMoments",
    summary="a second saliency from all predicted moments, with real lengths and gradients to the moments",
    gives=("saliency",),
    reads_in_training=("spans_handed",),
    placebo="mr-to-hd-placebo",
)
feedback.add(
    "mr-to-hd-placebo",
    "vlbench.nn.feedback:PlaceboSoftMoments",
    summary="mr-to-hd on the middle half of the video, whatever was predicted",
    gives=("saliency",),
)
feedback.add(
    "both",
    "vlbench.nn.feedback:BothWays",
    version=2,
    reads=("saliency_handed",),
    summary="hd-to-mr and mr-to-hd",
    gives=("saliency",),
    reads_in_training=("spans_handed",),
    placebo="both-placebo",
)
feedback.add(
    "both-placebo",
    "vlbench.nn.feedback:PlaceboBothWays",
    version=2,
    reads=("saliency_handed",),
    summary="the placebos of both ways",
    gives=("saliency",),
)

matcher = slot("matcher", neutral="hungarian", takes="spans, logits, targets", gives="matched pairs")
matcher.add(
    "hungarian",
    "vlbench.nn.matcher:HungarianMatcher",
    args={"span": 10.0, "giou": 1.0, "label": 4.0},
    summary="optimal assignment of anchors to moments; the arguments are the weights of its cost",
)

# --- the losses (videolights.md 3.2) ----------------------------------------------------------------------------------

# ``auxiliary``: the term also applies to every decoder layer before the last, with the same weight.
loss("span", "l1", "vlbench.nn.losses:SpanL1", task="mr", auxiliary=True, summary="L1 distance of matched spans")
loss(
    "giou",
    "giou",
    "vlbench.nn.losses:SpanGIoU",
    task="mr",
    auxiliary=True,
    summary="1 - generalised IoU of matched spans",
)
loss(
    "label",
    "cross_entropy",
    "vlbench.nn.losses:LabelCrossEntropy",
    task="mr",
    auxiliary=True,
    background=0.1,
    summary="matched anchors are foreground; background counts by its own weight",
)
loss(
    "contrastive",
    "nce",
    "vlbench.nn.losses:AnchorWordNCE",
    task="mr",
    auxiliary=True,
    width=64,
    temperature=0.07,
    summary="matched anchors are close to the words, in a projected space",
)
loss(
    "contrastive",
    "nce-masked",
    "vlbench.nn.losses:MaskedNCE",
    task="mr",
    auxiliary=True,
    width=64,
    temperature=0.07,
    summary="the same with the mean of the real words",
)
loss(
    "alignment",
    "cosine",
    "vlbench.nn.losses:ClipTextAlignment",
    task="mr",
    summary="clips resemble the query where salient",
)
loss(
    "alignment",
    "cosine-per-sample",
    "vlbench.nn.losses:PerSampleAlignment",
    task="mr",
    summary="the same without padding, a mean over samples",
)
loss(
    "margin",
    "hinge",
    "vlbench.nn.losses:SaliencyMargin",
    task="hd",
    margin=0.2,
    summary="a salient clip above a dull one",
)
loss(
    "rank",
    "contrastive",
    "vlbench.nn.losses:RankContrastive",
    task="hd",
    temperature=0.5,
    summary="rank-aware contrastive loss over clips and the negative pair",
)
loss(
    "negative_pair", "rejection", "vlbench.nn.losses:NegativePair", task="hd", summary="no saliency for another's query"
)
loss(
    "negative_pair",
    "softplus",
    "vlbench.nn.losses:SoftplusRejection",
    task="hd",
    summary="the same quantity, finite for every score",
)
loss(
    "saliency_cosine", "cosine", "vlbench.nn.losses:SaliencyCosine", task="hd", summary="saliency resembles its labels"
)
loss(
    "saliency_cosine",
    "cosine-per-sample",
    "vlbench.nn.losses:PerSampleCosine",
    task="hd",
    summary="the same without padding, a mean over samples",
)
loss(
    "task_coupled",
    "cosine",
    "vlbench.nn.losses:TaskCoupled",
    task="hd",
    summary="the saliency that feedback derives from a moment resembles the labels",
)
loss(
    "task_coupled",
    "cosine-per-sample",
    "vlbench.nn.losses:PerSampleTaskCoupled",
    task="hd",
    summary="the same without padding, a mean over samples",
)
loss(
    "hard_saliency",
    "hard_pos_neg",
    "vlbench.nn.losses:HardPositiveNegative",
    task="hd",
    summary="squared error of normalised saliency, growing with the epoch",
)
loss(
    "hard_saliency",
    "mined",
    "vlbench.nn.losses:MinedPositiveNegative",
    task="hd",
    summary="squared error of the clips that are ranked on the wrong side of a clip of the other kind",
)

# A term that reads what a slot gives: the slot, and what its component has to give (its fact ``gives``). Without it the
# term has nothing to read, so removing the component removes the term in the same edit.
loss_needs: dict[str, tuple[str, str]] = {"task_coupled": ("feedback", "saliency")}


def feeds(component: str, loss: str) -> bool:
    """Whether a component of the slot that the loss term ``loss`` reads gives what the term needs."""
    slot_name, what = loss_needs[loss]
    return what in model_slots[slot_name][component].facts.get("gives", ())


def feeders(loss: str) -> list[str]:
    """The components that give what a loss term of ``loss_needs`` reads."""
    return [component for component in model_slots[loss_needs[loss][0]] if feeds(component, loss)]


# --- training (videolights.md 5.1 to 5.3) -----------------------------------------------------------------------------

# The [train] table of a card. AdamW with one parameter group, clipping to clip_norm, and a step schedule that
# multiplies lr by lr_gamma every lr_drop epochs. eval_every: epochs between evaluations on the tune split (the last
# epoch is always evaluated). select: the metrics whose mean on the tune split chooses the checkpoint; those that the
# dataset does not have are left out. corruption: a family on labels or on training (see corruptions below), at
# corruption_level 0 to 5. padding: batch (to the longest of the batch, as released) or split (to the longest of the
# split, so that every batch has one shape; released terms that read padding then see more of it). batching: shuffled
# (as released) or by-length (queries of like length together).
recipe_args: dict[str, Scalar] = {
    "epochs": 200,
    "batch_size": 32,
    "eval_batch_size": 100,
    "lr": 1e-4,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "lr_drop": 400,
    "lr_gamma": 0.1,
    "eval_every": 5,
    "select": "mr-map+hd-map",
    "precision": "fp32",
    "corruption": "none",
    "corruption_level": 0,
    "padding": "batch",
    "batching": "shuffled",
}
# younger than stored cells: an identity names them where they act
recipe_later = ("corruption", "corruption_level", "padding", "batching")
# keys that have one of a few values
recipe_choices = {
    "precision": ("bf16", "fp32"),
    "padding": ("batch", "split"),
    "batching": ("shuffled", "by-length"),
}
recipe_version = 1  # raised when the loop's results change

# --- encoders ---------------------------------------------------------------------------------------------------------

# Order is the order of concatenation. ``width`` is what the field's files hold; widths are read from data and checked.
video_encoders = Registry("video encoder")
for _name, _width, _summary in (
    ("i3d", 2048, "I3D, RGB and flow"),
    ("slowfast", 2304, "SlowFast, motion"),
    ("clip", 512, "CLIP ViT-B/32 image"),
    ("blip2", 768, "BLIP-2 query-token image embedding"),
    ("vgg", 4096, "VGG-16"),
    ("pann", 2050, "PANN audio"),
    ("internvideo2", 768, "InternVideo2"),
):
    video_encoders.add(_name, "vlbench.data.features:Encoder", summary=_summary, width=_width)

text_encoders = Registry("text encoder")
for _name, _width, _summary in (
    ("clip", 512, "CLIP ViT-B/32 tokens"),
    ("blip2", 768, "BLIP-2 tokens"),
    ("glove", 300, "GloVe 6B words"),
):
    text_encoders.add(_name, "vlbench.data.features:Encoder", summary=_summary, width=_width)

# --- datasets that need no files --------------------------------------------------------------------------------------

datasets = Registry("dataset")
datasets.add(
    "planted-quick",
    "vlbench.data.planted:quick",
    summary="embedded synthetic benchmark, small: a fit takes well under a minute on 2 cores",
)
datasets.add("planted", "vlbench.data.planted:full", summary="embedded synthetic benchmark of QVHighlights' size")

# --- metrics: every one gives one value per query in [0, 1], higher is better -----------------------------------------

metrics = Registry("metric")


def metric(
    name: str,
    target: str,
    *,
    task: str,
    reads: str,
    title: str,
    detail: bool = False,
    version: int = 1,
    args: Mapping[str, Scalar] | None = None,
) -> None:
    """Declare a metric: a function of what it ``reads`` (``vlbench.metrics.base.Packs``) and ``args``.

    detail: left out of short tables.
    """
    metrics.add(
        name,
        target,
        version=version,
        args=args,
        task=task,
        reads=reads,
        title=title,
        detail=detail,
        better="higher",
        range=(0.0, 1.0),
    )


def _mr(
    name: str, function: str, title: str, args: Mapping[str, Scalar] | None = None, *, detail: bool = False
) -> None:
    target = f"vlbench.metrics.moments:{function}"
    metric(name, target, task="mr", reads="moments", title=title, detail=detail, args=args)


def _hd(
    name: str,
    function: str,
    title: str,
    args: Mapping[str, Scalar] | None = None,
    *,
    reads: str = "clips",
    detail: bool = False,
) -> None:
    target = f"vlbench.metrics.highlights:{function}"
    metric(name, target, task="hd", reads=reads, title=title, detail=detail, args=args)


for _iou in (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
    _mr(f"mr-r1@{_iou:g}", "recall_at_1", f"R1@{_iou:g}", {"iou": _iou}, detail=_iou not in (0.3, 0.5, 0.7))
for _iou in (0.3, 0.5, 0.7):
    _mr(f"mr-r5@{_iou:g}", "recall_at_5", f"R5@{_iou:g}", {"iou": _iou}, detail=True)
_mr("mr-miou", "top1_iou", "mIoU")
_mr("mr-map", "mean_average_precision", "MR-mAP")
for _iou in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
    _mr(f"mr-map@{_iou:g}", "average_precision", f"mAP@{_iou:g}", {"iou": _iou}, detail=_iou not in (0.5, 0.75))
for _range, _above_s, _up_to_s in (("short", 0.0, 10.0), ("middle", 10.0, 30.0), ("long", 30.0, 150.0)):
    _mr(
        f"mr-map-{_range}",
        "mean_average_precision_of_length",
        f"mAP {_range}",
        {"longer_than_s": _above_s, "up_to_s": _up_to_s},
    )
for _level, _at_least, _suffix in (("VeryGood", 4, ""), ("Good", 3, "-good"), ("Fair", 2, "-fair")):
    _note = "" if not _suffix else f" ({_level})"
    _hd(f"hd-map{_suffix}", "average_precision", f"HD-mAP{_note}", {"at_least": _at_least}, detail=bool(_suffix))
    _hd(f"hd-hit1{_suffix}", "hit_at_1", f"HIT@1{_note}", {"at_least": _at_least}, detail=bool(_suffix))
_hd("hd-top5-map", "tvsum_top5", "top-5 mAP (TVSum)", reads="annotators")
_hd("hd-ap", "youtube_ap", "AP (YouTube Highlights)", reads="labels")

# --- corruptions: how a stress test spoils inputs, heads and labels (vlbench.corrupt.base) ----------------------------

corruptions = Registry("corruption")


def _corrupt(name: str, target: str, summary: str, *, on: str, parameter: str, **facts: Any) -> None:
    corruptions.add(name, f"vlbench.corrupt.{target}", summary=summary, on=on, parameter=parameter, **facts)


spoils_training = ("label", "training", "handed")  # ``on`` of the families that a fit is trained under
_SHARE = {"limits": (0.0, 1.0)}
_EACH = {"by_encoder": True, "battery": True}  # one encoder alone can be spoiled; part of a stress test by default
_corrupt(
    "gauss",
    "features:gauss",
    "Gaussian noise on every channel",
    on="video",
    parameter="noise sd in sds of the channel over the training clips",
    **_EACH,
)
_corrupt(
    "clip_drop", "features:clip_drop", "clips set to zero", on="video", parameter="share of clips", **_EACH, **_SHARE
)
_corrupt(
    "clip_mean",
    "features:clip_mean",
    "clips set to the mean of the training clips",
    on="video",
    parameter="share of clips",
    by_encoder=True,
    **_SHARE,
)
_corrupt(
    "freeze",
    "timing:freeze",
    "stale stretches of 2 to 8 clips that repeat the clip before",
    on="video",
    parameter="share of clips",
    **_EACH,
    **_SHARE,
)
_corrupt(
    "shuffle",
    "timing:shuffle",
    "clips in another order within windows",
    on="video",
    parameter="clips per window",
    windows=True,
    **_EACH,
)
_corrupt("jitter", "timing:jitter", "clips taken from nearby", on="video", parameter="farthest shift in clips", **_EACH)
_corrupt(
    "channel_drop",
    "features:channel_drop",
    "channels set to zero, the same for a whole video",
    on="video",
    parameter="share of channels",
    **_EACH,
    **_SHARE,
)
_corrupt(
    "modality_drop",
    "features:modality_drop",
    "an encoder set to zero for a video: the named one, or one at random",
    on="video",
    parameter="share of videos",
    **_EACH,
    **_SHARE,
    whole=True,
)
_corrupt(
    "token_drop",
    "query:token_drop",
    "tokens removed, at least one left",
    on="text",
    parameter="share of tokens",
    battery=True,
    **_SHARE,
)
_corrupt(
    "token_swap",
    "query:token_swap",
    "tokens replaced by those of other queries",
    on="text",
    parameter="share of tokens",
    battery=True,
    **_SHARE,
)
_corrupt(
    "wrong_query",
    "query:wrong_query",
    "the query of another source video; level 5, all of them, is what chance gives",
    on="query",
    parameter="share of queries",
    battery=True,
    **_SHARE,
    whole=True,
)
_corrupt(
    "query_blank",
    "query:query_blank",
    "the query's features set to zero",
    on="text",
    parameter="share of queries",
    **_EACH,
    **_SHARE,
    whole=True,
)
for _name, _function, _summary, _parameter in (
    ("head_noise", "noise", "noise on the saliency that is handed to the moments", "noise sd in sds of its scores"),
    ("head_shuffle", "shuffle", "anchor: the handed saliency in another order", "share"),
    ("head_const", "const", "anchor: the mean in place of every handed saliency", "share"),
    ("head_oracle", "oracle", "anchor: the annotated saliency is handed over", "share"),
):
    _corrupt(
        _name,
        f"heads:{_function}",
        _summary,
        on="head",
        parameter=_parameter,
        hook="saliency_handed",
        **({"needs": "hd"} if _name == "head_oracle" else {}),
    )
_corrupt(
    "label_noise",
    "labels:label_noise",
    "training: saliency labels moved by 1 or 2 or swapped between clips",
    on="label",
    parameter="share of labelled clips",
    needs="hd",
    instead="target_noise",  # where saliency labels are made from moments
    **_SHARE,
)
_corrupt(
    "target_noise",
    "labels:target_noise",
    "training: the same for whatever saliency a fit learns from, labels made from moments included",
    on="label",
    parameter="share of labelled clips",
    **_SHARE,
)
_corrupt(
    "boundary_jitter",
    "labels:boundary_jitter",
    "training: ends of moments moved",
    on="label",
    parameter="farthest shift in lengths of the moment",
    needs="mr",
    limits=(0.0, 0.45),
)
_corrupt(
    "one_annotator",
    "labels:one_annotator",
    "training: saliency labels of one annotator instead of all",
    on="label",
    parameter="share of queries",
    needs="hd",
    **_SHARE,
)
for _name, _part in (("undertrained_head", "saliency"), ("undertrained_moments", "moments")):
    _corrupt(
        _name,
        f"labels:{_name.upper()}",
        f"training: the {_part} head stops learning early",
        on="training",
        parameter="share of the schedule that the head is trained for",
        falling=True,
        **_SHARE,
    )

_corrupt(
    "handed_noise",
    "heads:handed",
    "training: noise on what one head hands to the other: the saliency that guides moments, the moments that are read",
    on="handed",
    parameter="noise sd in sds of the scores, or in lengths of the moments",
)

# --- executors --------------------------------------------------------------------------------------------------------

executors = Registry("executor")
executors.add("local", "vlbench.runs.executors.local:LocalExecutor", summary="worker processes on this machine")
executors.add("inline", "vlbench.runs.executors.inline:InlineExecutor", summary="this process, for debugging")
executors.add(
    "ray",
    "vlbench.runs.executors.ray:RayExecutor",
    summary="tasks on a Ray cluster, or on one of its own on this machine",
    cluster=True,  # it finds devices and the number of slots itself
)


def components() -> dict[str, list[tuple[str, Entry]]]:
    """Every component by name: the (card key, entry) pairs where a slot knows this name, neutral ones left out."""
    found: dict[str, list[tuple[str, Entry]]] = {}
    for prefix, table in (("model.", model_slots), ("loss.", loss_slots)):
        for name, slot_ in table.items():
            for entry in slot_.entries():
                if entry.name != "none":
                    found.setdefault(entry.name, []).append((prefix + name, entry))
    return found
