"""The linear recurrence h_t = a_t h_{t-1} + b_t as a family of autograd Functions closed under differentiation.

Differentiating the scan gives a scan that runs backwards in time and a product shifted by one step; differentiating
those gives the same three and the adjoint of the shift. Each backward below is written with members of the family, so
gradients of any order cost one loop over time per scan, and torch.func.grad works. (Autograd through the plain loop is
slower at second order: benchmarks/model.py, column "loop".)

Shape legend: T time, B rows (episodes), N state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function


def linear_scan(a_TBN: Tensor, b_TBN: Tensor, initial_BN: Tensor | None = None) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t for t = 0 .. T-1, with h_{-1} = ``initial_BN`` (default: zero).

    Args:
        a_TBN: factors, float32 or float64; 0 starts a row anew.
        b_TBN: inputs, of the same shape. (Any shape works whose first axis is the time, T >= 1.)
        initial_BN: the state before the first step.

    Returns:
        h_TBN, differentiable to any order in all arguments.

    Raises:
        ValueError: the shapes differ, or there is no step.
    """
    if a_TBN.shape != b_TBN.shape or not len(b_TBN):
        raise ValueError(
            f"linear_scan needs a and b of one shape [T, ...] with T >= 1, not {[*a_TBN.shape]} and {[*b_TBN.shape]}"
        )
    if initial_BN is not None:
        b_TBN = torch.cat([torch.addcmul(b_TBN[:1], a_TBN[:1], initial_BN), b_TBN[1:]])
    # Without a gradient to come, the bookkeeping of a Function would be a good part of the work.
    return _Scan.apply(a_TBN, b_TBN) if torch.is_grad_enabled() else _run(a_TBN, b_TBN, reverse=False)


def _recur(a_: Sequence[Any], b_: Sequence[Any], h_: Sequence[Any], lib: Any) -> None:
    """h_0 = b_0, h_i = a_{i-1} h_{i-1} + b_i, written into h_: time slices of ``lib``, which is numpy or torch."""
    multiply, add = lib.multiply, lib.add
    previous = h_[0]
    previous[...] = b_[0]
    for a, b, h in zip(a_, b_[1:], h_[1:], strict=True):
        multiply(a, previous, out=h)
        add(h, b, out=h)
        previous = h


def _run(a_TBN: Tensor, b_TBN: Tensor, reverse: bool) -> Tensor:
    h_TBN = torch.empty_like(b_TBN)
    tensors = (a_TBN.detach(), b_TBN.detach(), h_TBN)
    # The loop is bound by the overhead of a call: numpy's is smaller than torch's.
    if b_TBN.device.type == "cpu":
        lib, (a_, b_, h_) = np, (tensor.numpy() for tensor in tensors)
    else:
        lib, (a_, b_, h_) = torch, (tensor.unbind(0) for tensor in tensors)
    if reverse:
        b_, h_ = b_[::-1], h_[::-1]
    with np.errstate(all="ignore"):  # inf and nan travel silently, as in torch
        _recur(a_[:0:-1] if reverse else a_[1:], b_, h_, lib)
    return h_TBN


class _Scan(Function):
    """h_t = a_t h_{t-1} + b_t."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _run(a, b, reverse=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        grad_b = _ReversedScan.apply(a, grad_h)
        return _TimesPrevious.apply(grad_b, h), grad_b


class _ReversedScan(Function):
    """l_t = a_{t+1} l_{t+1} + g_t, the adjoint of the scan in b."""

    @staticmethod
    def forward(a: Tensor, g: Tensor) -> Tensor:
        return _run(a, g, reverse=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad_l: Tensor) -> tuple[Tensor, Tensor]:
        a, l = ctx.saved_tensors  # noqa: E741
        grad_g = _Scan.apply(a, grad_l)
        return _TimesPrevious.apply(l, grad_g), grad_g


class _TimesPrevious(Function):
    """p_t = x_t y_{t-1}, with y_{-1} = 0."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        p = torch.empty_like(x)
        p[0] = 0
        torch.mul(x[1:], y[:-1], out=p[1:])
        return p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_p: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return _TimesPrevious.apply(grad_p, y), _NextProduct.apply(grad_p, x)


class _NextProduct(Function):
    """q_t = x_{t+1} y_{t+1}, with q_{T-1} = 0: the adjoint of the shifted product in y."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        q = torch.empty_like(x)
        q[-1] = 0
        torch.mul(x[1:], y[1:], out=q[:-1])
        return q

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return _TimesPrevious.apply(y, grad_q), _TimesPrevious.apply(x, grad_q)
