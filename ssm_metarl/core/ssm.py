"""`SSM`: a state space policy core, a selective diagonal linear recurrence between pointwise maps.

With observation o_t, width N and L layers (layer indices left out):

    x_t = silu(W_e o_t + b_e)
    u_t = x_t / rms(x_t)
    v_t, r_t, g_t = W_i u_t + b_i
    log a_t = -8 softplus(lambda) sigmoid(r_t) - 1e-4
    h_t = a_t h_{t-1} + sqrt(1 - a_t²) v_t
    y_t = x_t + (W_c h_t + b_c) silu(g_t)              (the next layer's x_t)
    logits_t = W_o y_t + b_o

The recurrence is the RG-LRU of Griffin (De et al. 2024, arXiv 2402.19427, Eqs. 1-4) without its input gate. As
0 < a < 1 for any value of the parameters, no step of an inner loop can make it unstable; 1e-4 bounds the derivatives
of sqrt(1 - a²). ``core="lti"`` is the same with r = 0: a decay that does not depend on the input.

Shape legend: T time, B rows (episodes), O observation, A outputs, L layers, N state and width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from ssm_metarl.core.elementwise import RMS_EPSILON, decay_and_scale, rms_norm
from ssm_metarl.core.scan import linear_scan
from ssm_metarl.core.sequence import (
    FoldedStep,
    SequenceModel,
    aligned,
    constant,
    folded_linear,
    frozen_params,
    init_head,
)

RATE = 8.0
MIN_RATE = 1e-4
INITIAL_DECAY = (0.9, 0.999)

ONE, TWO, EXP_LIMIT, HALF_MIN_RATE = (constant(value) for value in (1, 2, 80, MIN_RATE / 2))


class SSM(SequenceModel):
    """A state space model from observations to action logits; the equations are at the top of this file.

    Args:
        state_dim: O, size of an observation.
        action_dim: A, number of logits.
        hidden_dim: N, width of the layers and of their states.
        core: ``"rglru"``, selective, or ``"lti"``, linear and time-invariant.
        n_layers: number of layers.

    Raises:
        ValueError: a size is not a positive integer, or ``core`` is unknown.

    Example:
        >>> model = SSM(state_dim=10, action_dim=4)
        >>> model(torch.zeros(32, 10)).shape, model(torch.zeros(32, 7, 10)).shape
        (torch.Size([32, 4]), torch.Size([32, 7, 4]))
    """

    def __init__(
        self, state_dim: int, action_dim: int, hidden_dim: int = 64, *, core: str = "rglru", n_layers: int = 1
    ) -> None:
        super().__init__(state_dim, action_dim, hidden_dim, n_layers)
        if core not in ("rglru", "lti"):
            raise ValueError(f"core must be 'rglru' or 'lti', not {core!r}")
        self.encoder = nn.Linear(state_dim, hidden_dim)
        self.layers = nn.ModuleList(_Layer(hidden_dim, selective=core == "rglru") for _ in range(n_layers))
        self.head = init_head(nn.Linear(hidden_dim, action_dim))

    def unroll(
        self, x_TBO: Tensor, carry_LBN: Tensor | None = None, reset_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        keep_TB1 = None if reset_TB is None else (1 - reset_TB.to(x_TBO.dtype)).unsqueeze(-1)
        x_TBN, last = silu(self.encoder(x_TBO)), []
        for i, layer in enumerate(self.layers):
            x_TBN, h_BN = layer(x_TBN, None if carry_LBN is None else carry_LBN[i], keep_TB1)
            last.append(h_BN)
        return self.head(x_TBN), torch.stack(last)

    def fold(self, params: Mapping[str, Tensor] | None = None) -> FoldedStep:
        p = frozen_params(self, params)
        W_e, b_e = (aligned(weight / 2) for weight in folded_linear(p, "encoder"))
        W_o, b_o = folded_linear(p, "head")
        layers = [layer.fold(p, f"layers.{i}") for i, layer in enumerate(self.layers)]

        def step(x_BO: np.ndarray, carry_LBN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            encoded = x_BO @ W_e
            encoded += b_e
            x_BN, new_LBN = _silu_of_twice(encoded), np.empty_like(carry_LBN)
            for layer, h_BN, new_BN in zip(layers, carry_LBN, new_LBN, strict=True):
                x_BN = layer(x_BN, h_BN, new_BN)
            out_BA = x_BN @ W_o
            out_BA += b_o
            return out_BA, new_LBN

        return step


class _Layer(nn.Module):
    """Norm, recurrence, gate and residual of one layer."""

    def __init__(self, width: int, selective: bool) -> None:
        super().__init__()
        self.selective = selective
        self.inputs = nn.Linear(width, (3 if selective else 2) * width)
        self.output = nn.Linear(width, width)
        # A long memory to begin with: at r = 0 the decay a is uniform in INITIAL_DECAY.
        rate = -torch.log(torch.empty(width).uniform_(*INITIAL_DECAY)) * 2 / RATE
        self.lam = nn.Parameter(torch.log(torch.expm1(rate)))

    def forward(self, x_TBN: Tensor, h_BN: Tensor | None, keep_TB1: Tensor | None) -> tuple[Tensor, Tensor]:
        u_TBN = rms_norm(x_TBN)
        if self.selective:
            v_TBN, r_TBN, g_TBN = self.inputs(u_TBN).chunk(3, dim=-1)
            gate = torch.sigmoid(r_TBN)
        else:
            v_TBN, g_TBN = self.inputs(u_TBN).chunk(2, dim=-1)
            gate = 0.5
        a, scale = decay_and_scale(-RATE * softplus(self.lam) * gate - MIN_RATE)
        b_TBN = scale * v_TBN
        a_TBN = a.expand_as(b_TBN) if keep_TB1 is None else a * keep_TB1
        h_TBN = linear_scan(a_TBN, b_TBN, h_BN)
        return x_TBN + self.output(h_TBN) * silu(g_TBN), h_TBN[-1]

    def fold(self, params: Mapping[str, np.ndarray], name: str) -> Callable[..., np.ndarray]:
        """``step(x_BN, h_BN, new_BN) -> y_BN``: the new state goes into ``new_BN``, y is valid until the next call."""
        W_c, b_c = folded_linear(params, f"{name}.output")
        W_i, b_i = folded_linear(params, f"{name}.inputs")
        half_rate_N = RATE / 2 * np.logaddexp(params[f"{name}.lam"], np.float32(0))
        N, K = len(half_rate_N), 3 if self.selective else 2
        # One product with [x / norm, 1] gives v, -r and g/2, each in one piece of memory.
        factors = np.repeat(np.float32([1, -1, 0.5] if self.selective else [1, 0.5]), N)
        W_MC = np.vstack([W_i * np.float32(N**0.5), b_i]) * factors
        W_KMN, epsilon = aligned(W_MC.reshape(N + 1, K, N).swapaxes(0, 1)), constant(N * RMS_EPSILON)
        fixed = _decay_and_scale(half_rate_N / 2 + HALF_MIN_RATE, *np.empty((2, N), np.float32))

        @functools.lru_cache(maxsize=4)
        def scratch(rows: int) -> tuple[np.ndarray, ...]:
            u_BM, inputs_KBN, y_BN, spare_BN = (np.ones(s) for s in ((rows, N + 1), (K, rows, N), (rows, N), (rows, N)))
            return tuple(map(aligned, (u_BM, inputs_KBN, y_BN, spare_BN)))

        def step(x_BN: np.ndarray, h_BN: np.ndarray, new_BN: np.ndarray) -> np.ndarray:
            u_BM, inputs, y_BN, spare_BN = scratch(len(x_BN))
            norm_B = np.vecdot(x_BN, x_BN)
            norm_B += epsilon
            np.divide(x_BN, np.sqrt(norm_B)[:, None], out=u_BM[:, :N])
            np.matmul(u_BM, W_KMN, out=inputs)
            v_BN, half_g_BN = inputs[0], inputs[-1]
            a, scale = fixed
            if self.selective:
                a, scale = _decay_and_scale(_half_decay_rate(half_rate_N, inputs[1]), y_BN, spare_BN)
            np.multiply(a, h_BN, out=new_BN)
            v_BN *= scale
            new_BN += v_BN
            np.matmul(new_BN, W_c, out=y_BN)
            y_BN += b_c
            y_BN *= _silu_of_twice(half_g_BN, spare_BN)
            y_BN += x_BN
            return y_BN

        return step


# What follows works in place: at these sizes, memory that is warm counts as much as the number of calls.


def _silu_of_twice(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """silu(2 x) = x (1 + tanh x), without the overflow of exp."""
    t = np.tanh(x, out=out)
    t += ONE
    t *= x
    return t


def _half_decay_rate(half_rate_N: np.ndarray, minus_r: np.ndarray) -> np.ndarray:
    """-log(a)/2, written into ``minus_r``."""
    # sigmoid(r) by exp, because tanh would round a small one to nothing; bounded, so that exp does not overflow.
    gate = np.minimum(minus_r, EXP_LIMIT, out=minus_r)
    np.exp(gate, out=gate)
    gate += ONE
    np.divide(half_rate_N, gate, out=gate)
    gate += HALF_MIN_RATE
    return gate


def _decay_and_scale(half_rate: np.ndarray, scale: np.ndarray, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, sqrt(1 - a²)) from -log(a)/2: its tanh t gives 1 - 2 t/(1 + t) and 2 sqrt(t)/(1 + t), precise near 1."""
    t = np.tanh(half_rate, out=half_rate)
    w = np.add(t, ONE, out=spare)
    np.divide(TWO, w, out=w)
    np.sqrt(t, out=scale)
    scale *= w
    t *= w
    return np.subtract(ONE, t, out=t), scale
