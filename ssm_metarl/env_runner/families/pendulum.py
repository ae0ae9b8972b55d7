"""Pendulum with varied physics: gymnasium's Pendulum-v1, a set of parameters per row.

Shape legend: N rows, S = 2 (angle, angular velocity), O = 3 (cos, sin, velocity), A = 1 (torque).
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
STEP_S = 0.05
_HIGH = np.array([1.0, 1.0, MAX_SPEED], np.float32)


class PendulumVectorEnv(NumpyVectorEnv):
    """Swing up a pole of mass ``m`` and length ``l`` under gravity ``g``.

    The reward is ``-(angle² + 0.1 speed² + 0.001 torque²)`` of the state before the step; no episode ends early. With
    nominal parameters the numbers are those of Pendulum-v1: the torque is rounded to float32 where gymnasium does it.
    """

    parameters: ClassVar[dict[str, float]] = {"m": 1.0, "l": 1.0, "g": 10.0}
    positive = ("m", "l")
    variants: ClassVar[dict[str, Variant]] = {
        "default": Variant("gymnasium's Pendulum-v1; the range is ours", 200, {"m": {"uniform": (0.5, 2.0)}})
    }
    row_observation_space = Box(-_HIGH, _HIGH, dtype=np.float32)
    row_action_space = Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)

    def refresh(self) -> None:
        mass_N, length_N = self.params["m"], self.params["l"]
        self._gravity_gain_N = 3 * self.params["g"] / (2 * length_N)
        self._torque_gain_N = (3.0 / (mass_N * (length_N * length_N))).astype(np.float32)

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        high_S1 = np.array([[math.pi], [1.0]])
        return rng.uniform(-high_S1, high_S1, (2, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle_N, speed_N = state_SN
        # np.clip is the slowest operation by far on arrays this small.
        torque_N = np.minimum(np.maximum(actions[:, 0].astype(np.float32), -MAX_TORQUE), MAX_TORQUE)
        upright_N = (angle_N + math.pi) % (2 * math.pi) - math.pi
        cost_N = upright_N * upright_N + 0.1 * (speed_N * speed_N) + 0.001 * (torque_N * torque_N)
        acceleration_N = self._gravity_gain_N * np.sin(angle_N) + self._torque_gain_N * torque_N
        next_SN = np.empty_like(state_SN)
        next_SN[1] = np.minimum(np.maximum(speed_N + acceleration_N * STEP_S, -MAX_SPEED), MAX_SPEED)
        next_SN[0] = angle_N + next_SN[1] * STEP_S
        return next_SN, -cost_N, np.zeros(self.num_envs, bool)

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        angle_N, speed_N = state_SN
        observation_NO = np.empty((self.num_envs, 3), np.float32)
        observation_NO[:, 0], observation_NO[:, 1], observation_NO[:, 2] = np.cos(angle_N), np.sin(angle_N), speed_N
        return observation_NO


class PendulumEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = PendulumVectorEnv
