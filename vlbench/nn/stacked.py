"""Several models of one form in one computation: what of a model has to be written for that by hand.

The weights of K members are stacked along a first dimension, and ``torch.vmap`` runs the model's own code once for all
of them. A recurrence has a backward pass of its own, which vmap cannot see into; here it is for all members.

Nothing here is used by a model that is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_depth = 0


def stacking() -> bool:
    """Whether the code runs for all members of a pack at once: then every tensor that is seen is one member's."""
    return _depth > 0


@contextlib.contextmanager
def members() -> Iterator[None]:
    """For the block, modules take what this file has."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def last_state(given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As ``recurrence`` has it: given L B 3D, weight 3D D, bias 3D; returns B D."""
    out: Tensor = _LastState.apply(given, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _first(tensor: Tensor, dim: int | None, members: int) -> Tensor:
    """The tensor with the members as its first dimension."""
    return tensor.expand(members, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _ForAll(torch.autograd.Function):
    """What vmap asks for when it meets an operation: ``each`` is the same with the members first."""

    each: type[torch.autograd.Function]

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise RuntimeError("this operation is for members of a pack")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing to keep: ``each`` does."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *operands: Tensor) -> tuple[Tensor, int]:
        placed = (_first(operand, dim, info.batch_size) for operand, dim in zip(operands, in_dims, strict=True))
        return cls.each.apply(*placed), 0  # type: ignore[no-untyped-call]


class _LastStateEach(torch.autograd.Function):
    """given: K L B 3D, weight: K 3D D, bias: K 3D. Returns K B D. The steps are those of ``recurrence``."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given = given.movedim(1, 0).contiguous()  # L K B 3D
        (L, K, B, _), D = given.shape, weight.shape[2]
        states = given.new_zeros(L + 1, K, B, D)  # before every step, and after the last
        recurrent, candidates = given.new_empty(L, K, B, 3 * D), given.new_empty(L, K, B, D)
        gates = given.new_empty(L, K, B, 2 * D)  # reset and update
        inward, offset = weight.transpose(1, 2), bias[:, None]
        for at in range(L):
            parts, gate = recurrent[at], gates[at]
            torch.baddbmm(offset, states[at], inward, out=parts)
            torch.add(given[at, ..., : 2 * D], parts[..., : 2 * D], out=gate).sigmoid_()
            reset, update = gate[..., :D], gate[..., D:]
            candidate = candidates[at]
            torch.addcmul(given[at, ..., 2 * D :], reset, parts[..., 2 * D :], out=candidate).tanh_()
            torch.lerp(candidate, states[at], update, out=states[at + 1])
        ctx.save_for_backward(states, recurrent, gates, candidates, weight)
        return states[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, recurrent, gates, candidates, weight = ctx.saved_tensors
        L, K, B, D = candidates.shape
        reset, update = gates.split(D, -1)  # L K B D each
        by_candidate = (1 - update) * (1 - candidates.square())  # by how much the next state moves with each part
        by_update = (states[:-1] - candidates) * update * (1 - update)
        by_reset = by_candidate * recurrent[..., 2 * D :] * reset * (1 - reset)
        slopes = torch.stack((by_reset, by_update, by_candidate * reset), dim=3)  # L K B 3 D, of the recurrent map

        of_state = gradient.new_empty(L, K, B, 1, D)  # gradients of the state after every step
        of_recurrent = gradient.new_empty(L, K, B, 3, D)
        flat = of_recurrent.view(L, K, B, 3 * D)
        for at in reversed(range(L)):
            of_state[at].copy_(gradient[:, :, None])
            torch.mul(slopes[at], of_state[at], out=of_recurrent[at])
            gradient = torch.baddbmm(update[at] * gradient, flat[at], weight)

        of_given = torch.cat((of_recurrent[..., :2, :], by_candidate[..., None, :] * of_state), dim=3)
        rows = flat.movedim(1, 0).reshape(K, L * B, 3 * D)
        before = states[:-1].movedim(1, 0).reshape(K, L * B, D)
        return of_given.view(L, K, B, 3 * D).movedim(1, 0), rows.transpose(1, 2) @ before, rows.sum(1)


class _LastState(_ForAll):
    each = _LastStateEach
