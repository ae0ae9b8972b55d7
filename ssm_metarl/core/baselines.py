"""Baselines outside the state space family, with its interface: a gated recurrent unit and a network without memory.

nn.GRU is not used: it has no vmap rule, and its cell here is a dozen plain operations, differentiable to any order.

Shape legend: T time, B rows (episodes), O observation, A outputs, L layers, N state and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ssm_metarl.core.sequence import FoldedStep, SequenceModel, folded_linear, frozen_params, init_head


class GRU(SequenceModel):
    """Gated recurrent units (Cho et al. 2014, arXiv 1406.1078) in the form of nn.GRU, and a linear head.

        r, z = sigmoid(W_i x + b_i + W_h h + b_h),   n = tanh(W_i x + b_i + r (W_h h + b_h)),   h' = (1 - z) n + z h

    Args and errors as for `SequenceModel`.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int = 64, *, n_layers: int = 1) -> None:
        super().__init__(state_dim, action_dim, hidden_dim, n_layers)
        self.layers = nn.ModuleList(_GRULayer(hidden_dim if i else state_dim, hidden_dim) for i in range(n_layers))
        self.head = init_head(nn.Linear(hidden_dim, action_dim))

    def unroll(
        self, x_TBO: Tensor, carry_LBN: Tensor | None = None, reset_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        keep_TB1 = None if reset_TB is None else (1 - reset_TB.to(x_TBO.dtype)).unsqueeze(-1)
        carry_LBN = self.initial_state(x_TBO.shape[1]) if carry_LBN is None else carry_LBN
        x_TBN, last = x_TBO, []
        for layer, h_BN in zip(self.layers, carry_LBN, strict=True):
            x_TBN = layer(x_TBN, h_BN, keep_TB1)
            last.append(x_TBN[-1])
        return self.head(x_TBN), torch.stack(last)

    def fold(self, params: Mapping[str, Tensor] | None = None) -> FoldedStep:
        p = frozen_params(self, params)
        W_o, b_o = folded_linear(p, "head")
        layers = [layer.fold(p, f"layers.{i}") for i, layer in enumerate(self.layers)]

        def step(x_BO: np.ndarray, carry_LBN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x_BN, new_LBN = x_BO, np.empty_like(carry_LBN)
            for layer, h_BN, new_BN in zip(layers, carry_LBN, new_LBN, strict=True):
                layer(x_BN, h_BN, new_BN)
                x_BN = new_BN
            return x_BN @ W_o + b_o, new_LBN

        return step


class _GRULayer(nn.Module):
    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(in_dim, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)

    def forward(self, x_TBI: Tensor, h_BN: Tensor, keep_TB1: Tensor | None) -> Tensor:
        outputs = []
        for t, input_BK in enumerate(self.input(x_TBI)):
            h_BN = h_BN if keep_TB1 is None else h_BN * keep_TB1[t]
            h_BN = self._cell(input_BK, h_BN)
            outputs.append(h_BN)
        return torch.stack(outputs)

    def _cell(self, input_BK: Tensor, h_BN: Tensor) -> Tensor:
        input_rz, input_n = input_BK.split([2 * self.width, self.width], dim=-1)
        hidden_rz, hidden_n = self.hidden(h_BN).split([2 * self.width, self.width], dim=-1)
        r, z = torch.sigmoid(input_rz + hidden_rz).chunk(2, dim=-1)
        n = torch.tanh(input_n + r * hidden_n)
        return n + z * (h_BN - n)

    def fold(self, params: Mapping[str, np.ndarray], name: str) -> Callable[..., None]:
        """``step(x_BI, h_BN, new_BN)``, which writes the new state into ``new_BN``."""
        # sigmoid(x) = (1 + tanh(x/2)) / 2: the halves that it and the product with r need go into the weights.
        N = self.width
        halves = np.repeat(np.float32([0.5, 0.5, 1]), N)
        W_i, b_i = (weight * halves for weight in folded_linear(params, f"{name}.input"))
        W_h, b_h = (weight / 2 for weight in folded_linear(params, f"{name}.hidden"))

        def step(x_BI: np.ndarray, h_BN: np.ndarray, new_BN: np.ndarray) -> None:
            inputs, hidden = x_BI @ W_i, h_BN @ W_h
            inputs += b_i
            hidden += b_h
            twice_rz = np.tanh(inputs[:, : 2 * N] + hidden[:, : 2 * N])
            twice_rz += 1
            n = np.tanh(inputs[:, 2 * N :] + twice_rz[:, :N] * hidden[:, 2 * N :])
            np.subtract(h_BN, n, out=new_BN)
            new_BN *= twice_rz[:, N:] / 2
            new_BN += n

        return step


class MLP(SequenceModel):
    """tanh layers and a linear head, each step on its own: an input layer and ``n_layers`` more. Its state has size 0.

    Args and errors as for `SequenceModel`.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int = 64, *, n_layers: int = 1) -> None:
        super().__init__(state_dim, action_dim, hidden_dim, n_layers)
        self.carry_dim = 0
        self.layers = nn.ModuleList(nn.Linear(hidden_dim if i else state_dim, hidden_dim) for i in range(n_layers + 1))
        self.head = init_head(nn.Linear(hidden_dim, action_dim))

    def unroll(
        self, x_TBO: Tensor, carry_LBN: Tensor | None = None, reset_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x_TBN = x_TBO
        for layer in self.layers:
            x_TBN = torch.tanh(layer(x_TBN))
        return self.head(x_TBN), self.initial_state(x_TBO.shape[1])

    def fold(self, params: Mapping[str, Tensor] | None = None) -> FoldedStep:
        p = frozen_params(self, params)
        W_o, b_o = folded_linear(p, "head")
        layers = [folded_linear(p, f"layers.{i}") for i in range(len(self.layers))]

        def step(x_BO: np.ndarray, carry_LBN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x_BN = x_BO
            for W, b in layers:
                x_BN = np.tanh(x_BN @ W + b)
            return x_BN @ W_o + b_o, carry_LBN

        return step
