"""What every core offers, whatever its recurrence: sequences, single steps, a carried state, a folded step.

Shape legend: T time, B rows (episodes), O observation, A outputs (action logits), L layers, N state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

FoldedStep = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(x_BO, carry_LBN) -> (out_BA, carry_LBN)`` in numpy, float32, arguments untouched; not for two threads at once."""

HEAD_GAIN = 0.01


class SequenceModel(nn.Module, ABC):
    """A causal map from a sequence of observations to a sequence of outputs, with a state of shape [L, B, N].

    Args:
        state_dim: O, size of an observation (the environment's state).
        action_dim: A, number of outputs.
        hidden_dim: width of the layers.
        n_layers: number of layers.

    Raises:
        ValueError: a size is not a positive integer.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "hidden_dim": hidden_dim, "n_layers": n_layers}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        self.state_dim, self.action_dim, self.hidden_dim, self.n_layers = sizes.values()
        self.carry_dim = hidden_dim

    @abstractmethod
    def unroll(
        self, x_TBO: Tensor, carry_LBN: Tensor | None = None, reset_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, A] and the last state; where ``reset_TB`` is 1, the state is zeroed before the input."""

    @abstractmethod
    def fold(self, params: Mapping[str, Tensor] | None = None) -> FoldedStep:
        """A single step in numpy for fast acting: weights extracted and laid out once, equal to `step` to 1e-6.

        Args:
            params: parameters by name, detached here (default: the module's own). Later changes of them are not seen.
        """

    def forward(
        self, state: Tensor, carry: Tensor | None = None, resets: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs (action logits) for observations.

        Args:
            state: [B, T, O] sequences; or [B, O] or [O] single steps, from the zero state without ``carry``.
            carry: state before the first step, from `initial_state` or an earlier call.
            resets: [B, T], [B] or a scalar, to match ``state``; 1 zeroes the state before consuming that step's input.

        Returns:
            [B, T, A], [B, A] or [A]; with ``carry`` a pair of that and the state after the last step.

        Raises:
            ValueError: a shape does not match.
        """
        x_TBO = self._time_major(state)
        self._check_memory(x_TBO, carry, state, resets)
        reset_TB = None if resets is None else (resets.mT if state.dim() == 3 else resets.reshape(1, -1))
        out_TBA, new_carry = self.unroll(x_TBO, carry, reset_TB)
        out = out_TBA.transpose(0, 1) if state.dim() == 3 else out_TBA.reshape(*state.shape[:-1], self.action_dim)
        return out if carry is None else (out, new_carry)

    def step(self, state: Tensor, carry: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of [B, O] or [O] observations from ``carry``: outputs and the new state.

        Raises:
            ValueError: a shape does not match; sequences are for `forward`.
        """
        if state.dim() == 3:
            raise ValueError("step takes one step, [B, state_dim] or [state_dim]; call forward for a sequence")
        return self.forward(state, carry, reset)

    def initial_state(self, batch_size: int = 1) -> Tensor:
        """The zero state of ``batch_size`` rows, [L, B, N]."""
        return next(self.parameters()).new_zeros(self.n_layers, batch_size, self.carry_dim)

    def _time_major(self, state: Tensor) -> Tensor:
        shape = [*state.shape]
        if len(shape) not in (1, 2, 3) or shape[-1] != self.state_dim or 0 in shape:
            raise ValueError(
                f"state has shape {shape}, but the model takes [{self.state_dim}], [B, {self.state_dim}] or "
                f"[B, T, {self.state_dim}] (state_dim={self.state_dim}): reshape it, or build the model with the "
                "observation's size as state_dim"
            )
        return state.transpose(0, 1).contiguous() if len(shape) == 3 else state.reshape(1, -1, self.state_dim)

    def _check_memory(self, x_TBO: Tensor, carry: Tensor | None, state: Tensor, resets: Tensor | None) -> None:
        shape = (self.n_layers, x_TBO.shape[1], self.carry_dim)
        if carry is not None and carry.shape != shape:
            raise ValueError(f"carry has shape {[*carry.shape]}, not {[*shape]}: begin with initial_state({shape[1]})")
        if resets is not None and resets.shape != state.shape[:-1]:
            raise ValueError(
                f"resets has shape {[*resets.shape]}, not {[*state.shape[:-1]]}: one number per observation of state"
            )


def init_head(head: nn.Linear) -> nn.Linear:
    """A fresh output layer scaled down, so that the first policy is nearly the same in all states."""
    with torch.no_grad():
        head.weight.mul_(HEAD_GAIN)
        head.bias.mul_(HEAD_GAIN)
    return head


def frozen(tensor: Tensor) -> np.ndarray:
    """A float32 copy, off the graph."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()


def frozen_params(module: nn.Module, params: Mapping[str, Tensor] | None) -> dict[str, np.ndarray]:
    """``params``, or the module's own parameters, as `frozen` arrays."""
    params = dict(module.named_parameters()) if params is None else params
    return {name: frozen(value) for name, value in params.items()}


def aligned(array: np.ndarray) -> np.ndarray:
    """A float32 copy that begins at a multiple of 64 bytes: vector units are quickest there."""
    raw = np.empty(array.size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.size * 4].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


def constant(value: float) -> np.ndarray:
    """A float32 number for the folded steps: numpy converts a Python number at every use, which costs a call more."""
    return np.array(value, np.float32)


def folded_linear(params: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(W_IO, b_O) of a linear layer, laid out for ``x_BI @ W_IO + b_O``."""
    return aligned(params[f"{name}.weight"].T), aligned(params[f"{name}.bias"])
