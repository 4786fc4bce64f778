"""Input projections: features of any width to rows of the model's width.

Source: QD-DETR (arXiv:2303.13874) for the linear form; VideoLights (arXiv:2412.01558), section "convolutional
projection", for the other. The released convolution has kernel 1 and so is the linear map with another parameter shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.errors import CardError
from vlbench.nn.dropout import Dropout
from vlbench.nn.shapes import Bool, Float, Sizes, at_least_one, probability


class LinearProjection(nn.Module):
    """Layers of LayerNorm, dropout and a linear map, with ReLU between them.

    A padded row is not hidden: it becomes the projection of zeros, a constant row, which some losses read.
    features: input width. layers: number of maps. dropout: before each map.
    """

    def __init__(self, features: int, sizes: Sizes, *, layers: int, dropout: float) -> None:
        super().__init__()
        at_least_one(layers, "model.projection.layers")
        widths = [features] + [sizes.width] * (layers - 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.maps = nn.ModuleList(self._map(width, sizes.width) for width in widths)
        self.dropout = Dropout(probability(dropout, "model.projection.dropout"))

    def forward(self, features: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        rows: Tensor = features
        for at, norm in enumerate(self.norms):
            rows = self._mapped(at, self.dropout(norm(rows)), mask)  # B N D
            if at < len(self.norms) - 1:
                rows = rows.relu()
        return rows

    def _map(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)

    def _mapped(self, at: int, rows: Tensor, mask: Tensor) -> Tensor:
        mapped: Tensor = self.maps[at](rows)
        return mapped


class ConvProjection(LinearProjection):
    """The same with 1-D convolutions over neighbouring rows.

    kernel: odd number of rows. Kernel 1 reproduces the released code. A wider kernel sees zeros beyond the last real
    row, so that padding does not leak into it.
    """

    def __init__(self, features: int, sizes: Sizes, *, layers: int, dropout: float, kernel: int) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise CardError(f"model.projection.kernel must be odd and positive (got {kernel})")
        self._kernel = kernel
        super().__init__(features, sizes, layers=layers, dropout=dropout)

    def _map(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv1d(inputs, outputs, self._kernel, padding=self._kernel // 2)

    def _mapped(self, at: int, rows: Tensor, mask: Tensor) -> Tensor:
        conv = self.maps[at]
        if self._kernel == 1:  # the same numbers without two transpositions
            return functional.linear(rows, torch.squeeze(conv.weight, -1), conv.bias)  # type: ignore[arg-type]
        seen: Tensor = conv((rows * mask[..., None]).transpose(1, 2))  # B D N
        return seen.transpose(1, 2)


class BlindConvProjection(ConvProjection):
    """The parameters of a wide kernel without its neighbours: every place of the kernel sees the row itself."""

    def _mapped(self, at: int, rows: Tensor, mask: Tensor) -> Tensor:
        conv = self.maps[at]
        return functional.linear(rows, torch.sum(conv.weight, -1), conv.bias)  # type: ignore[arg-type]
