"""`Normalizer`: what the policy reads, in units of what training has seen (``env.normalize_*``).

Statistics are gathered with the rollouts, merged by the driver in task order, and frozen while an iteration lasts: the
result of a task depends on the shared state alone.

Shape legend: T time steps, B rows (episodes), O observation, M steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ssm_metarl.config import TrainConfig
from ssm_metarl.types import Moments, Rollout, Statistics

CLIP = 10.0
"""Deviations from the mean at which a normalised number is cut off."""
EPSILON = 1e-6
"""Added to variances: a component that never changed is not blown up to noise."""


class Normalizer:
    """Observations with mean 0 and deviation 1, rewards in units of the deviation of discounted returns.

    Args:
        config: of the run; says what is normalised.
        statistics: None: nothing was seen yet, and everything passes as it is.

    Example: ``Normalizer(config, shared.statistics).observation(observation_BO)``
    """

    def __init__(self, config: TrainConfig, statistics: Statistics | None) -> None:
        self.normalizes_observations = config.env.normalize_observations and statistics is not None
        self.reward_scale = 1.0
        if self.normalizes_observations:
            seen = statistics.observation
            self._mean_O = seen.mean_X.astype(np.float32)
            self._gain_O = (1 / np.sqrt(seen.variance_X + EPSILON)).astype(np.float32)
        if config.env.normalize_rewards and statistics is not None:
            self.reward_scale = float(1 / np.sqrt(statistics.discounted_return.variance_X[0] + EPSILON))

    def observation(self, observation_BO: np.ndarray) -> np.ndarray:
        """float32 [B, O]; the argument itself if nothing is to be done."""
        if not self.normalizes_observations:
            return observation_BO
        scaled_BO = observation_BO - self._mean_O
        scaled_BO *= self._gain_O
        np.minimum(scaled_BO, CLIP, out=scaled_BO)
        return np.maximum(scaled_BO, -CLIP, out=scaled_BO)

    def reward(self, reward_B: np.ndarray) -> np.ndarray:
        """As the policy reads it."""
        if self.reward_scale == 1.0:
            return reward_B
        return np.minimum(np.maximum(reward_B * self.reward_scale, -CLIP), CLIP)


def gather(rollouts: Sequence[Rollout], config: TrainConfig) -> Statistics | None:
    """The statistics of a task's rollouts, merged in their order; None: nothing is normalised."""
    if not (config.env.normalize_observations or config.env.normalize_rewards):
        return None
    return functools.reduce(Statistics.merge, (_seen(rollout, config.advantage.discount) for rollout in rollouts))


def _seen(rollout: Rollout, discount: float) -> Statistics:
    valid_TB, running_B = rollout.mask_TB > 0, np.zeros(rollout.mask_TB.shape[1])
    return_TB = np.empty(valid_TB.shape)
    for t, reward_B in enumerate(rollout.reward_TB):
        running_B = discount * running_B + reward_B
        return_TB[t] = running_B
    return Statistics(Moments.of(rollout.observation_TBO[valid_TB]), Moments.of(return_TB[valid_TB][:, None]))
