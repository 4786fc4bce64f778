"""The alphabet of shapes as annotations, and the sizes that the slots of one model share.

``B`` batch, ``L`` clips, ``W`` words, ``A`` anchors, ``D`` width, ``K`` decoder layers, ``N`` moments, ``P`` sampled
pairs of clips, ``H`` heads, ``F`` input features, ``C`` projected width. The test run checks every annotation of this
package; without jaxtyping, which only tests need, the same annotations say nothing more than "a tensor".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vlbench.errors import CardError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _AnyShape:
            def __class_getitem__(cls, _: object) -> type[Tensor]:
                return Tensor

        Bool = Float = Int = _AnyShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The ``[model]`` table of a card. width: D. feedforward: inner width of a feed-forward block. dropout: in [0, 1).

    Raises CardError if the width cannot be divided among the heads or among the sine channels of an anchor, which
    takes width/2 channels for the centre and width/2 for the extent, each half sines and half cosines.
    """

    width: int
    attention_heads: int
    feedforward: int
    dropout: float

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4 or self.attention_heads < 1 or self.width % self.attention_heads:
            raise CardError(
                "model.width must be a multiple of 4 and of model.attention_heads "
                f"(got width={self.width}, attention_heads={self.attention_heads})"
            )
        if self.feedforward < 1:
            raise CardError(f"model.feedforward must be at least 1 (got {self.feedforward})")
        probability(self.dropout, "model.dropout")


def probability(value: float, name: str) -> float:
    """The value itself. Raises CardError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise CardError(f"0 <= {name} < 1 must hold (got {value})")
    return value


def at_least_one(value: int, name: str) -> int:
    """The value itself. Raises CardError unless value >= 1."""
    if value < 1:
        raise CardError(f"{name} must be at least 1 (got {value})")
    return value


__all__ = ["Bool", "Float", "Int", "Sizes", "at_least_one", "probability"]
