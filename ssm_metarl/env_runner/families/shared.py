"""What several numpy families share: checked arguments, success in the infos, worlds with finitely many states.

Shape legend: N rows, S = 2 (cell, steps since the start), C cells, O observation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from ssm_metarl.env_runner.families.native import NumpyVectorEnv
from ssm_metarl.env_runner.vector import Advance, TaskError


def whole_number(family: str, name: str, value: Any, least: int) -> int:
    """An argument of a family that counts something. Raises TaskError for all but an ``int`` of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise TaskError(f"env.kwargs: {family}: {name} = {value!r:.80} must be a whole number of at least {least}")
    return int(value)


class ReportsSuccess:
    """Put before ``NumpyVectorEnv``: infos say ``success`` (bool [N]) of the step; the dynamics leave ``success_N``."""

    success_N: np.ndarray

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        reward_N, terminated_N, truncated_N, info = super()._advance(actions, ended_N)
        success_N = self.success_N if ended_N is None else self.success_N & ~ended_N
        return reward_N, terminated_N, truncated_N, info | {"success": success_N, "_success": self._every_row}


class FiniteVectorEnv(NumpyVectorEnv):
    """A world with finitely many states (cells), which begins in cell 0 and never ends early.

    ``episode_steps`` makes one episode a trial of several short ones, as in RL² (Duan et al. 2016): after so many
    steps the world is back in cell 0, while the policy keeps its memory; ``max_episode_steps`` is the length of the
    trial. The observation then has one more number, 1 where a short episode begins and else 0.

    Args:
        args, kwargs: as for `NativeVectorEnv`.
        observation_CO: what is observed in each cell.
        episode_steps: steps after which the world is back in cell 0; None: it never is.
    """

    def __init__(self, *args: Any, observation_CO: np.ndarray, episode_steps: int | None = None, **kwargs: Any) -> None:
        self.episode_steps = episode_steps
        if episode_steps is not None:
            whole_number(self.label, "episode_steps", episode_steps, 1)
            observation_CO = np.pad(observation_CO, ((0, 0), (0, 1)))
        self._observation_CO = observation_CO.astype(np.float32)
        high_O = self._observation_CO.max(axis=0)
        if episode_steps is not None:
            high_O[-1] = 1.0
        self.row_observation_space = Box(self._observation_CO.min(axis=0), high_O, dtype=np.float32)
        super().__init__(*args, **kwargs)

    def move(self, cell_N: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next cells (a new array) and reward_N float64."""
        raise NotImplementedError

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.zeros((2, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        next_SN = np.empty_like(state_SN)
        next_SN[0], reward_N = self.move(state_SN[0].astype(np.intp), actions)
        next_SN[1] = state_SN[1] + 1
        if self.episode_steps is not None:
            next_SN[:, next_SN[1] >= self.episode_steps] = 0.0
        return next_SN, reward_N, np.zeros(self.num_envs, bool)

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        observation_NO = self._observation_CO[state_SN[0].astype(np.intp)]
        if self.episode_steps is not None:
            observation_NO[:, -1] = state_SN[1] == 0
        return observation_NO
