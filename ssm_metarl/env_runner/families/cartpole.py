"""CartPole with varied physics: gymnasium's CartPole-v1 (Barto, Sutton and Anderson, 1983), parameters per row.

Shape legend: N rows, S = O = 4 (x, x_dot, theta, theta_dot).
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant

MAX_X = 2.4
MAX_ANGLE = 12 * 2 * math.pi / 360
_HIGH = np.array([MAX_X * 2, np.inf, MAX_ANGLE * 2, np.inf], np.float32)
_DIRECTION = np.array([-1.0, 1.0])


class CartPoleVectorEnv(NumpyVectorEnv):
    """Action 1 pushes with ``force_sign * force_mag``, action 0 the other way; reward 1 a step; over when it falls.

    ``length`` is half the pole's, as in gymnasium. With nominal parameters the numbers are those of CartPole-v1, bit by
    bit: the formulas keep its order of operations.
    """

    parameters: ClassVar[dict[str, float]] = {
        "gravity": 9.8,
        "masscart": 1.0,
        "masspole": 0.1,
        "length": 0.5,
        "force_mag": 10.0,
        "force_sign": 1.0,
        "tau": 0.02,
    }
    positive = ("masscart", "masspole", "length", "tau")
    variants: ClassVar[dict[str, Variant]] = {
        "default": Variant(
            "gymnasium's CartPole-v1; the ranges are ours",
            200,
            {"length": {"uniform": (0.25, 1.0)}, "force_sign": {"choice": (-1.0, 1.0)}},
        )
    }
    row_observation_space = Box(-_HIGH, _HIGH, dtype=np.float32)
    row_action_space = Discrete(2)

    def refresh(self) -> None:
        self._total_mass_N = self.params["masspole"] + self.params["masscart"]
        self._polemass_length_N = self.params["masspole"] * self.params["length"]
        self._force_N = self.params["force_sign"] * self.params["force_mag"]
        self._one_N = np.ones(self.num_envs)

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.uniform(-0.05, 0.05, (4, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        params, total_mass_N, polemass_length_N = self.params, self._total_mass_N, self._polemass_length_N
        _, x_dot_N, theta_N, theta_dot_N = state_SN
        force_N = _DIRECTION[actions] * self._force_N
        cos_N, sin_N = np.cos(theta_N), np.sin(theta_N)
        temp_N = (force_N + polemass_length_N * np.square(theta_dot_N) * sin_N) / total_mass_N
        theta_acc_N = (params["gravity"] * sin_N - cos_N * temp_N) / (
            params["length"] * (4.0 / 3.0 - params["masspole"] * np.square(cos_N) / total_mass_N)
        )
        x_acc_N = temp_N - polemass_length_N * theta_acc_N * cos_N / total_mass_N
        rate_SN = np.empty_like(state_SN)
        rate_SN[0], rate_SN[1], rate_SN[2], rate_SN[3] = x_dot_N, x_acc_N, theta_dot_N, theta_acc_N
        state_SN = state_SN + params["tau"] * rate_SN
        terminated_N = (np.abs(state_SN[0]) > MAX_X) | (np.abs(state_SN[2]) > MAX_ANGLE)
        return state_SN, self._one_N.copy(), terminated_N

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        return state_SN.T.astype(np.float32, order="C")


class CartPoleEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = CartPoleVectorEnv
