"""Multi-armed bandits: which arm pays best must be found out by pulling.

Source: Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), section 3.1, which has
10, 100 and 500 pulls of 5, 10 and 50 arms. Shape legend: N rows, S = 0, O = 1, K arms.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant
from ssm_metarl.env_runner.families.shared import whole_number
from ssm_metarl.env_runner.vector import TaskError


class BanditVectorEnv(NumpyVectorEnv):
    """What the bandits share. One episode is a trial of many pulls, the horizon, with one action per arm.

    The observation is always 0, so a policy learns within the trial only if it has a memory and the inputs
    ``previous_action`` and ``previous_reward``.

    Args:
        args, kwargs: as for `NativeVectorEnv`; ``max_episode_steps`` is the number of pulls.
        num_arms: K, at least 2.
    """

    parameter: ClassVar[str]
    row_observation_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *args: Any, num_arms: int = 10, **kwargs: Any) -> None:
        self.num_arms = whole_number(self.label, "num_arms", num_arms, 2)
        self.parameters = {self.parameter: (0.5,) * self.num_arms}
        self.row_action_space = Discrete(self.num_arms)
        super().__init__(*args, **kwargs)
        self._row_N = np.arange(self.num_envs)

    def pull(self, value_N: np.ndarray) -> np.ndarray:
        """Draws reward_N float64 from the parameters of the arms that were pulled."""
        raise NotImplementedError

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.zeros((0, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward_N = self.pull(self.params[self.parameter][self._row_N, actions])
        return state_SN.copy(), reward_N, np.zeros(self.num_envs, bool)

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        return np.zeros((self.num_envs, 1), np.float32)


class BernoulliBanditVectorEnv(BanditVectorEnv):
    """An arm pays 1 with its ``probability``, which is uniform on [0, 1], else 0."""

    parameter = "probability"
    variants: ClassVar[dict[str, Variant]] = {"rl2": Variant("RL²", 100, {"probability": {"uniform": (0.0, 1.0)}})}

    def check_task(self, row: int) -> None:
        probability_K = self.params["probability"][row]
        if probability_K.min() < 0 or probability_K.max() > 1:
            raise TaskError(
                f"{self.label}: probability = {probability_K.tolist()!s:.80} must be from 0 to 1 for each arm"
            )

    def pull(self, value_N: np.ndarray) -> np.ndarray:
        return (self.np_random.random(self.num_envs) < value_N).astype(np.float64)


class GaussianBanditVectorEnv(BanditVectorEnv):
    """An arm pays its ``mean``, which is uniform on [0, 1], plus normal noise of standard deviation 1."""

    parameter = "mean"
    variants: ClassVar[dict[str, Variant]] = {"rl2": Variant("RL²", 100, {"mean": {"uniform": (0.0, 1.0)}})}

    def pull(self, value_N: np.ndarray) -> np.ndarray:
        return value_N + self.np_random.standard_normal(self.num_envs)


class BernoulliBanditEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = BernoulliBanditVectorEnv


class GaussianBanditEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = GaussianBanditVectorEnv
