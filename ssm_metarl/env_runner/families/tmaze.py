"""T-maze: a cue at the start says which arm is right at the end of the corridor; the task says what the cue means.

After Bakker, "Reinforcement Learning with Long Short-Term Memory" (2002). Shape legend: N rows, S = 3 (position, cue,
whether it is the first step), O = 3 (cue, corridor, junction).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant
from ssm_metarl.env_runner.families.shared import ReportsSuccess, whole_number
from ssm_metarl.env_runner.vector import TaskError

NORTH, FORWARD, SOUTH = range(3)
REWARD_RIGHT_ARM, REWARD_STANDING_STILL = 1.0, -0.1


class TMazeVectorEnv(ReportsSuccess, NumpyVectorEnv):
    """``length`` steps through a corridor to a junction, then north or south: the right arm pays 1, either ends it.

    - Each episode draws its cue, -1 or 1 with equal chance. The right arm is north if ``cue * cue_sign`` is 1, else
      south. ``cue_sign`` is the task: it takes memory to carry the cue, and episodes to learn what it means.
    - Observation: the cue at the first step and 0 ever after; 1 in the corridor; 1 at the junction. Behind the
      junction all three are 0. Positions in the corridor look alike.
    - Actions: 0 north, 1 forward, 2 south. A turn in the corridor and a step forward at the junction stand still and
      cost 0.1. ``info["success"]`` is true at the step into the right arm.
    - In Bakker's maze the cue means the same for ever, stays visible at the start, there is a way back, and the arms
      pay 4 and -0.1.

    The horizon is ``2 * length`` unless given. ``gymnasium.make`` has its own, 20: give it ``max_episode_steps`` too.

    Args:
        args, kwargs: as for `NativeVectorEnv`; the horizon has at least ``length + 1`` steps.
        length: steps from the start to the junction.
    """

    parameters: ClassVar[dict[str, float]] = {"cue_sign": 1.0}
    variants: ClassVar[dict[str, Variant]] = {
        "default": Variant("after Bakker (2002)", 20, {"cue_sign": {"choice": (-1.0, 1.0)}})
    }
    row_observation_space = Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]), dtype=np.float32)
    row_action_space = Discrete(3)

    def __init__(self, *args: Any, length: int = 10, **kwargs: Any) -> None:
        self.length = whole_number(self.label, "length", length, 1)
        horizon = 2 * self.length
        self.variants = {name: dataclasses.replace(v, horizon=horizon) for name, v in type(self).variants.items()}
        super().__init__(*args, **kwargs)
        if self.horizon <= length:
            raise TaskError(
                f"env.horizon: {self.label}: {self.horizon} steps end before an arm of a maze of length {length} "
                f"can be reached; set env.horizon (max_episode_steps) to at least {length + 1}, or make length smaller"
            )

    def check_task(self, row: int) -> None:
        if abs(self.params["cue_sign"][row]) != 1:
            raise TaskError(f"{self.label}: cue_sign = {self.params['cue_sign'][row]} must be -1 or 1")

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.stack([np.zeros(count), 2.0 * rng.integers(2, size=count) - 1.0, np.ones(count)])

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position_N, cue_N, _ = state_SN
        at_junction_N, forward_N = position_N == self.length, actions == FORWARD
        still_N, turned_N = at_junction_N == forward_N, at_junction_N & ~forward_N
        north_N = cue_N * self.params["cue_sign"] > 0
        self.success_N = turned_N & ((actions == NORTH) == north_N)
        next_SN = np.empty_like(state_SN)
        next_SN[0], next_SN[1], next_SN[2] = position_N + ~still_N, cue_N, 0.0
        return next_SN, REWARD_RIGHT_ARM * self.success_N + REWARD_STANDING_STILL * still_N, turned_N

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        position_N, cue_N, is_first_N = state_SN
        observation_NO = np.empty((self.num_envs, 3), np.float32)
        observation_NO[:, 0] = cue_N * is_first_N
        observation_NO[:, 1], observation_NO[:, 2] = position_N < self.length, position_N == self.length
        return observation_NO


class TMazeEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = TMazeVectorEnv
