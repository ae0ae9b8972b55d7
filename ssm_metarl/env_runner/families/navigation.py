"""Navigation2D: a point on the plane walks to a goal that it cannot see, only feel through the reward.

Source: Finn et al., "Model-Agnostic Meta-Learning" (2017), section 5.3, and its code (point_env_randgoal).
Shape legend: N rows, S = O = A = 2 (x, y).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant

MAX_STEP = 0.1
GOAL_HALF_WIDTH = 0.01


class Navigation2DVectorEnv(NumpyVectorEnv):
    """``s += clip(a, -0.1, 0.1)`` from 0, reward ``-||s - g||`` after the move; over once ``|s - g| < 0.01`` in both.

    The observation is the position alone.
    """

    # Not at the start: the nominal task should not be over before it began.
    parameters: ClassVar[dict[str, float]] = {"goal_x": 0.5, "goal_y": 0.5}
    variants: ClassVar[dict[str, Variant]] = {
        "maml": Variant("MAML", 100, {"goal_x": {"uniform": (-0.5, 0.5)}, "goal_y": {"uniform": (-0.5, 0.5)}})
    }
    row_observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    row_action_space = Box(-MAX_STEP, MAX_STEP, (2,), np.float32)

    def refresh(self) -> None:
        self._goal_SN = np.stack([self.params["goal_x"], self.params["goal_y"]])

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.zeros((2, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        move_SN = np.minimum(np.maximum(actions.T.astype(np.float64), -MAX_STEP), MAX_STEP)
        state_SN = state_SN + move_SN
        offset_SN = np.abs(state_SN - self._goal_SN)
        reached_N = np.maximum(offset_SN[0], offset_SN[1]) < GOAL_HALF_WIDTH
        return state_SN, -np.hypot(offset_SN[0], offset_SN[1]), reached_N

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        return state_SN.T.astype(np.float32, order="C")


class Navigation2DEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = Navigation2DVectorEnv
