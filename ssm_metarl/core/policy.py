"""`Policy`: a core that reads the policy's inputs and parametrises a distribution of actions; folded, it acts in numpy.

The folded single step is numpy: at these sizes a call's overhead decides, and numpy's is smaller than torch's
(``benchmarks/model.py`` prints the step's time beside nn.GRU's).

Shape legend: T time, B rows (episodes), I policy input, A action, D distribution parameters (A logits of a discrete
action, or A means and A log standard deviations), P parameters, L layers, N state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.baselines import GRU, MLP
from ssm_metarl.core.sequence import FoldedStep, SequenceModel, frozen
from ssm_metarl.core.ssm import SSM

HALF_LOG_TWO_PI = 0.5 * float(np.log(2 * np.pi))


def make_core(input_dim: int, output_dim: int, config: PolicyConfig) -> SequenceModel:
    """The network that ``policy.core`` names."""
    if config.core in ("ssm", "lti"):
        core = "rglru" if config.core == "ssm" else "lti"
        return SSM(input_dim, output_dim, config.hidden_dim, core=core, n_layers=config.num_layers)
    baseline = {"gru": GRU, "mlp": MLP}[config.core]
    return baseline(input_dim, output_dim, config.hidden_dim, n_layers=config.num_layers)


def build_policy(input_dim: int, action_dim: int, discrete: bool, config: PolicyConfig, seed: int) -> Policy:
    """A policy whose initial parameters depend on the arguments alone; torch's global random stream is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Policy(input_dim, action_dim, discrete, config)


class Policy(nn.Module):
    """Distributions over actions along episodes that begin at the zero state.

    Args:
        input_dim: I, size of the policy's input (see ``policy.inputs``).
        action_dim: A, size of the action, or the number of discrete actions.
        discrete: categorical actions; otherwise independent Gaussian ones, with a learned standard deviation that does
            not depend on the input.
        config: the core and its size.
    """

    def __init__(self, input_dim: int, action_dim: int, discrete: bool, config: PolicyConfig) -> None:
        super().__init__()
        self.action_dim, self.discrete = action_dim, discrete
        self.core = make_core(input_dim, action_dim, config)
        if not discrete:
            self.log_std = nn.Parameter(torch.full((action_dim,), config.initial_log_std))

    def forward(self, input_TBI: Tensor) -> Tensor:
        """Distribution parameters [T, B, D] of whole episodes, time first."""
        out_TBA, _ = self.core.unroll(input_TBI)
        return out_TBA if self.discrete else torch.cat([out_TBA, self.log_std.expand_as(out_TBA)], dim=-1)

    def distribution(self, dist: Tensor) -> Distribution:
        """The distribution over actions that parameters [..., D] stand for."""
        # Validation would read every element again; non-finite numbers are caught once, before a step that uses them.
        if self.discrete:
            return Categorical(logits=dist, validate_args=False)
        mean, log_std = dist.chunk(2, dim=-1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def to_vector(self, params: Mapping[str, Tensor] | None = None) -> np.ndarray:
        """Parameters (default: the own ones), or a gradient by their names, as one float32 vector [P]."""
        named = dict(self.named_parameters())
        params = named if params is None else params
        return np.concatenate([params[name].detach().cpu().numpy().ravel() for name in named]).astype(np.float32)

    def from_vector(self, vec_P: np.ndarray) -> dict[str, Tensor]:
        """The inverse of `to_vector`: fresh float32 leaves by parameter name, which require gradients.

        Raises:
            ValueError: the vector is not as long as the policy has parameters.
        """
        named = dict(self.named_parameters())
        sizes = [p.numel() for p in named.values()]
        if vec_P.shape != (sum(sizes),):
            raise ValueError(
                f"the vector has shape {vec_P.shape}, but this policy has {sum(sizes)} parameters: it was made for "
                "another policy.core, policy.hidden_dim, policy.num_layers, policy.inputs or environment"
            )
        pieces = torch.tensor(vec_P, dtype=torch.float32).split(sizes)
        shaped = zip(named.items(), pieces, strict=True)
        return {name: piece.reshape(p.shape).clone().requires_grad_() for (name, p), piece in shaped}

    def fold(self, params: Mapping[str, Tensor] | None = None) -> FoldedPolicy:
        """The policy under ``params`` (default: the own ones) for fast single steps; they are copied and detached."""
        params = dict(self.named_parameters()) if params is None else params
        core = {name.removeprefix("core."): value for name, value in params.items() if name != "log_std"}
        log_std_A = None if self.discrete else frozen(params["log_std"])
        return FoldedPolicy(self.core.fold(core), (self.core.n_layers, self.core.carry_dim), log_std_A)


class FoldedPolicy:
    """A policy at fixed parameters in numpy, made by `Policy.fold`: a float32 step of all rows, equal to 1e-6."""

    def __init__(self, core: FoldedStep, carry_LN: tuple[int, int], log_std_A: np.ndarray | None) -> None:
        self._core, self._carry_LN = core, carry_LN
        self._log_std_A, self.discrete = log_std_A, log_std_A is None

    def initial_state(self, batch_size: int) -> np.ndarray:
        """The zero state of ``batch_size`` rows, [L, B, N]."""
        layers, size = self._carry_LN
        return np.zeros((layers, batch_size, size), np.float32)

    def step(self, input_BI: np.ndarray, carry_LBN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means or logits of the actions [B, A], and the new state; the arguments are left as they are."""
        return self._core(input_BI, carry_LBN)

    def distribution(self, out_BA: np.ndarray) -> np.ndarray:
        """Distribution parameters [..., D] of means or logits [..., A]."""
        if self.discrete:
            return out_BA
        return np.concatenate([out_BA, np.broadcast_to(self._log_std_A, out_BA.shape)], axis=-1)

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """What is random in so many actions, drawn at once: `act` adds it."""
        if self.discrete:
            return rng.random((*shape, 1), dtype=np.float32)
        noise = rng.standard_normal((*shape, len(self._log_std_A)), dtype=np.float32)
        noise *= np.exp(self._log_std_A)
        return noise

    def act(self, out_BA: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions with this noise, of shape [B, ...]: float32 [B, A], or int64 [B] if discrete."""
        if not self.discrete:
            return out_BA + noise
        cumulative_BA = np.exp(out_BA - out_BA.max(axis=1, keepdims=True)).cumsum(axis=1)
        # The first action whose cumulative weight exceeds a uniform draw below the total.
        chosen_B = (cumulative_BA <= noise * cumulative_BA[:, -1:]).sum(axis=1)
        return np.minimum(chosen_B, out_BA.shape[1] - 1)

    def mode(self, out_BA: np.ndarray) -> np.ndarray:
        """The most probable action of each row."""
        return out_BA.argmax(axis=1) if self.discrete else out_BA.copy()

    def log_prob(self, dist: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-probabilities of actions under parameters [..., D], float32 [...]."""
        if self.discrete:
            shifted = dist - dist.max(axis=-1, keepdims=True)
            chosen = np.take_along_axis(shifted, action[..., None], axis=-1)[..., 0]
            return chosen - np.log(np.exp(shifted).sum(axis=-1))
        mean, log_std = np.split(dist, 2, axis=-1)
        # Of the rounded action, not of the noise: a later look at the same action must find the same probability.
        z = (action - mean) / np.exp(log_std)
        return (-0.5 * z * z - log_std - HALF_LOG_TWO_PI).sum(axis=-1)
