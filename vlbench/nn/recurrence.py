"""A GRU of which only the last state is wanted, with few small operations on a CPU.

Source: "Learning phrase representations using RNN encoder-decoder" (arXiv:1406.1078), with the reset gate after the
recurrent map, as torch has it. Both maps give three parts:

    reset, update = sigmoid(given + recurrent)          of their first two parts
    candidate     = tanh(given + reset * recurrent)     of their third parts
    next state    = candidate + update * (state - candidate)

Torch's own recurrence on a CPU differentiates dozens of small operations one by one at every step. How the parts move
the next state does not depend on the gradient that comes back, so here it is computed for all steps at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.shapes import Float
from vlbench.nn.stacked import last_state, stacking


class LastState(nn.GRU):
    """What a GRU of one layer, which starts from zeros, holds after the last row."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, batch_first=True)

    def forward(self, rows: Float[Tensor, "B L D"]) -> Float[Tensor, "B D"]:  # type: ignore[override]
        if rows.device.type != "cpu" and not stacking():  # there the library's recurrence is one call both ways
            return super().forward(rows)[1][0]
        weight, recurrent_weight, bias, recurrent_bias = self.all_weights[0]
        given = functional.linear(rows.transpose(0, 1).contiguous(), weight, bias)  # L B 3D
        if stacking():
            return last_state(given, recurrent_weight, recurrent_bias)
        out: Tensor = _Recurrence.apply(given, recurrent_weight, recurrent_bias)  # type: ignore[no-untyped-call]
        return out


class _Recurrence(torch.autograd.Function):
    """given: L B 3D, the rows through the input's map. weight: 3D D, bias: 3D, of the recurrent map. Returns B D."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        (L, B, _), D = given.shape, weight.shape[1]
        states = given.new_zeros(L + 1, B, D)  # before every step, and after the last
        recurrent, candidates = given.new_empty(L, B, 3 * D), given.new_empty(L, B, D)
        gates = given.new_empty(L, B, 2 * D)  # reset and update
        gates_in, lasts_in = torch.split(given, [2 * D, D], -1)
        gates_own, lasts_own = torch.split(recurrent, [2 * D, D], -1)
        places = (states[:-1], states[1:], recurrent, gates_in, gates_own, gates, *torch.split(gates, D, -1))
        steps = zip(*(place.unbind() for place in (*places, lasts_in, lasts_own, candidates)), strict=True)
        for state, after, parts, gate_in, gate_own, gate, reset, update, last_in, last_own, candidate in steps:
            torch.addmm(bias, state, weight.t(), out=parts)
            torch.add(gate_in, gate_own, out=gate).sigmoid_()
            torch.addcmul(last_in, reset, last_own, out=candidate).tanh_()
            torch.lerp(candidate, state, update, out=after)
        ctx.save_for_backward(states, recurrent, gates, candidates, weight)
        return states[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, recurrent, gates, candidates, weight = ctx.saved_tensors
        L, B, D = candidates.shape
        reset, update = gates.split(D, -1)  # L B D each
        by_candidate = (1 - update) * (1 - candidates.square())  # by how much the next state moves with each part
        by_update = (states[:-1] - candidates) * update * (1 - update)
        by_reset = by_candidate * recurrent[..., 2 * D :] * reset * (1 - reset)
        slopes = torch.stack((by_reset, by_update, by_candidate * reset), dim=2)  # L B 3 D, of the recurrent map

        of_state = gradient.new_empty(L, B, 1, D)  # gradients of the state after every step
        of_recurrent = gradient.new_empty(L, B, 3, D)
        flat = of_recurrent.view(L, B, 3 * D)
        places = (slopes, update, of_state, of_recurrent, flat)
        for slope, kept, here, parts, flat_parts in zip(*(reversed(place.unbind()) for place in places), strict=True):
            here.copy_(gradient[:, None])
            torch.mul(slope, here, out=parts)
            gradient = torch.addmm(kept * gradient, flat_parts, weight)

        of_given = torch.cat((of_recurrent[:, :, :2], by_candidate[:, :, None] * of_state), dim=2).view(L, B, 3 * D)
        rows = flat.view(L * B, 3 * D)
        return of_given, rows.t() @ states[:-1].view(L * B, D), rows.sum(0)
