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
        compiling = torch.compiler.is_compiling()
        if rows.device.type != "cpu" and not stacking() and not compiling:
            return super().forward(rows)[1][0]  # there the library's recurrence is one call both ways
        weight, recurrent_weight, bias, recurrent_bias = self.all_weights[0]
        given = functional.linear(rows.transpose(0, 1).contiguous(), weight, bias)  # L B 3D
        if stacking():
            return last_state(given, recurrent_weight, recurrent_bias)
        if compiling:
            last: Tensor = _compiled(given, recurrent_weight, recurrent_bias)[0]
            return last
        out: Tensor = _Recurrence.apply(given, recurrent_weight, recurrent_bias)  # type: ignore[no-untyped-call]
        return out


Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _forwards(given: Tensor, weight: Tensor, bias: Tensor) -> Five:
    """given: L B 3D, the rows through the input's map. weight: 3D D, bias: 3D, of the recurrent map. Returns the last
    state, B D, and what the way back reads: states, recurrent parts, gates and candidates."""
    (L, B, _), D = given.shape, weight.shape[1]
    states = given.new_zeros(L + 1, B, D)  # before every step, and after the last
    recurrent, candidates = given.new_empty(L, B, 3 * D), given.new_empty(L, B, D)
    gates = given.new_empty(L, B, 2 * D)  # reset and update
    gates_in, lasts_in = given.split_with_sizes([2 * D, D], -1)
    gates_own, lasts_own = recurrent.split_with_sizes([2 * D, D], -1)
    places = (states[:-1], states[1:], recurrent, gates_in, gates_own, gates, *gates.split_with_sizes([D, D], -1))
    steps = zip(*(place.unbind() for place in (*places, lasts_in, lasts_own, candidates)), strict=True)
    for state, after, parts, gate_in, gate_own, gate, reset, update, last_in, last_own, candidate in steps:
        torch.addmm(bias, state, weight.t(), out=parts)
        torch.add(gate_in, gate_own, out=gate).sigmoid_()
        torch.addcmul(last_in, reset, last_own, out=candidate).tanh_()
        torch.lerp(candidate, state, update, out=after)
    return states[-1].clone(), states, recurrent, gates, candidates


def _backwards(
    gradient: Tensor, states: Tensor, recurrent: Tensor, gates: Tensor, candidates: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of given, weight and bias, from that of the last state."""
    L, B, D = candidates.shape
    reset, update = gates.split_with_sizes([D, D], -1)  # L B D each
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


class _Recurrence(torch.autograd.Function):
    """As ``_forwards`` has it, for the last state alone."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        last, *kept = _forwards(given, weight, bias)
        ctx.save_for_backward(*kept, weight)
        return last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _backwards(gradient, *ctx.saved_tensors)


# --- the same as an operation that a compiler leaves as it is: unrolled, the steps would cost it minutes --------------

_compiled = torch.library.custom_op(
    "vlbench::recurrence",
    _forwards,
    mutates_args=(),
    schema="(Tensor given, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_compiled_back = torch.library.custom_op(
    "vlbench::recurrence_backward",
    _backwards,
    mutates_args=(),
    schema="(Tensor gradient, Tensor states, Tensor recurrent, Tensor gates, Tensor candidates, Tensor weight)"
    " -> (Tensor, Tensor, Tensor)",
)


@_compiled.register_fake
def _(given: Tensor, weight: Tensor, bias: Tensor) -> Five:
    (L, B, _), D = given.shape, weight.shape[1]
    kept = (given.new_empty(L, B, width) for width in (3 * D, 2 * D, D))
    return given.new_empty(B, D), given.new_empty(L + 1, B, D), *kept  # type: ignore[return-value]


@_compiled_back.register_fake
def _(
    gradient: Tensor, states: Tensor, recurrent: Tensor, gates: Tensor, candidates: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(recurrent), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Five) -> None:
    ctx.set_materialize_grads(False)  # nothing but the last state is read
    ctx.save_for_backward(*output[1:], inputs[1])


def _back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _compiled_back(gradient, *ctx.saved_tensors)
    return found


_compiled.register_autograd(_back, setup_context=_keep)
