"""Elementwise parts of the state space core, with gradients written in their own outputs.

Autograd's gradient of each formula is right, but long: second order keeps and revisits every intermediate result, and
these passes over memory, not the matrix products, are most of a meta-gradient's time. A backward that needs the outputs
alone, in differentiable operations, is short and closed under differentiation.

Shape legend: ``...`` any leading axes, N features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

RMS_EPSILON = 1e-6


def rms_norm(x: Tensor) -> Tensor:
    """u = x / sqrt(mean(x²) + 1e-6) over the last axis, without weights: those of the next linear layer do."""
    return (_RmsNorm.apply if torch.is_grad_enabled() else _RmsNorm.forward)(x)[0]


def decay_and_scale(log_a: Tensor) -> tuple[Tensor, Tensor]:
    """(a, sqrt(1 - a²)) of log a < 0, precise where a is close to 1: a h + sqrt(1 - a²) v keeps the variance."""
    return (_DecayAndScale.apply if torch.is_grad_enabled() else _DecayAndScale.forward)(log_a)


class _RmsNorm(Function):
    """u = x r with r = (mean(x²) + epsilon)^(-1/2), so dr = -r² mean(u dx)."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        squared = x * x
        r = squared.mean(-1, keepdim=True).add_(RMS_EPSILON).rsqrt_()
        return torch.mul(x, r, out=squared), r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_r: Tensor) -> Tensor:
        u, r = ctx.saved_tensors
        projection = (grad_u * u).mean(-1, keepdim=True) + r * grad_r / u.shape[-1]
        return r * (grad_u - u * projection)


class _DecayAndScale(Function):
    """a = exp(l), s = sqrt(1 - exp(2 l)), so da = a dl and ds = -a²/s dl."""

    @staticmethod
    def forward(log_a: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(log_a), torch.mul(log_a, 2).expm1_().neg_().sqrt_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor, grad_s: Tensor) -> Tensor:
        a, s = ctx.saved_tensors
        return a * (grad_a - grad_s * (a / s))
